//! Logs of the process: text for people at a terminal, JSON lines elsewhere, on standard error.

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Config, LogFormat};

/// Starts logging. `level` overrides the configuration's.
///
/// # Errors
/// If the level is not one, or logging was started before.
pub fn init(config: &Config, level: Option<&str>) -> anyhow::Result<()> {
    let logs = &config.telemetry.logs;
    let level = level.unwrap_or(logs.level.as_str());
    let filter =
        EnvFilter::try_new(level).with_context(|| format!("--log-level {level:?} is not a level"))?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match logs.format() {
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
        LogFormat::Text => registry.with(layer).try_init(),
    }
    .context("logging cannot be started")
}
