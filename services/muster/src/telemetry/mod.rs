//! What the process tells of itself: its log on standard error, and its traces, sent by OTLP.
//!
//! Log and traces are filtered apart. A span of less than the log's level is made only if traces are
//! sent, so what is traced at level debug costs nothing where they are not.

mod json;
mod level;
mod traces;

use std::io::IsTerminal;

use anyhow::Context;
use tokio::runtime::Runtime;
use tracing::{Dispatch, error};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

pub use level::{Handle, InvalidLevel};

use crate::config::{Config, LogFormat};
use json::JsonLines;
use traces::Traces;

/// Telemetry while it runs. What was not sent yet is sent when this is dropped, within a few seconds.
#[must_use = "telemetry ends when this is dropped"]
pub struct Telemetry {
    handle: Handle,
    traces: Option<Traces>,
    /// Work of telemetry never waits for the work that it tells of, and outlives it.
    runtime: Option<Runtime>,
}

/// Starts telemetry of a process of every role. `level` overrides the configuration's.
///
/// # Errors
/// If the level or the traces' endpoint is not one, or logging was started before.
pub fn init(config: &Config, level: Option<&str>) -> anyhow::Result<Telemetry> {
    init_as("gateway,control,api", config, level)
}

/// As [`init`], of a process with these roles: so they are called in traces.
///
/// # Errors
/// As [`init`].
pub fn init_as(roles: &str, config: &Config, level: Option<&str>) -> anyhow::Result<Telemetry> {
    let (dispatch, telemetry) = build(roles, config, level, std::io::stderr)?;
    dispatch.try_init().context("logging cannot be started")?;
    telemetry.toggle_level_on_signal()?;
    Ok(telemetry)
}

/// What [`init_as`] starts, for a part of the process only and with another place for the log.
///
/// # Errors
/// If the level or the traces' endpoint is not one.
pub fn build<W>(
    roles: &str,
    config: &Config,
    level: Option<&str>,
    writer: W,
) -> anyhow::Result<(Dispatch, Telemetry)>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let logs = &config.telemetry.logs;
    // The configuration's is one for certain.
    let level = level.unwrap_or(logs.level.as_str());
    let (filter, filter_handle) = reload::Layer::new(level::filter(level).context("--log-level")?);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match logs.format() {
        LogFormat::Json => Box::new(JsonLines::new(writer)),
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            Box::new(tracing_subscriber::fmt::layer().with_ansi(ansi).with_writer(writer))
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("muster-telemetry")
        .enable_all()
        .build()
        .context("the runtime of telemetry cannot be started")?;
    let traces = match config.telemetry.traces.endpoint.as_deref() {
        Some(endpoint) => {
            let traces = Traces::start(endpoint, &config.region, roles, runtime.handle());
            Some(traces.with_context(|| format!("telemetry.traces.endpoint: {endpoint:?}"))?)
        }
        None => None,
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
    let dispatch = match &traces {
        Some(traces) => Dispatch::new(subscriber.with(traces.layer())),
        None => Dispatch::new(subscriber),
    };
    let handle = Handle::new(filter_handle, level);
    Ok((dispatch, Telemetry { handle, traces, runtime: Some(runtime) }))
}

impl Telemetry {
    /// What changes the log's level.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    fn toggle_level_on_signal(&self) -> anyhow::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let Some(runtime) = &self.runtime else { return Ok(()) };
        let _entered = runtime.enter();
        let mut signals = signal(SignalKind::user_defined1()).context("signals cannot be received")?;
        let handle = self.handle.clone();
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                if let Err(error) = handle.toggle() {
                    error!(error = &error as &dyn std::error::Error, "the log's level was not changed");
                }
            }
        });
        Ok(())
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(traces) = self.traces.take() {
            traces.stop();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
