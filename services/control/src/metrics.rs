//! What a control counts.

use muster_domain::drift::DriftKind;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// A control's metrics, under the names that operators' dashboards use.
#[derive(Clone)]
pub struct Metrics {
    pub(crate) config_updates: IntCounterVec,
    pub(crate) config_update_duration: Histogram,
    pub(crate) health_check_failures: IntCounter,
    pub(crate) partitions: IntGauge,
    pub(crate) polling_agents: IntGauge,
    pub(crate) folded: IntCounter,
    pub(crate) quarantined: IntCounter,
    pub(crate) commits: IntCounterVec,
    pub(crate) fold_time: Histogram,
    pub(crate) offers: IntCounter,
    pub(crate) offers_too_large: IntCounter,
    pub(crate) blobs: IntCounterVec,
    pub(crate) blob_bytes: IntGauge,
    pub(crate) duplicates: IntCounterVec,
    pub(crate) commands: IntCounterVec,
    pub(crate) drifts: IntCounterVec,
    pub(crate) sessions_ended: IntCounterVec,
    pub(crate) silences: IntCounter,
    pub(crate) rollouts: IntCounterVec,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let family = |name: &str, help: &str, label: &str| -> prometheus::Result<IntCounterVec> {
            let family = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let commands = IntCounterVec::new(
            Opts::new("muster_control_commands_total", "Commands that were decided on."),
            &["action", "result"],
        )?;
        registry.register(Box::new(commands.clone()))?;
        let histogram = |name: &str, help: &str, buckets: &[f64]| -> prometheus::Result<Histogram> {
            let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
            registry.register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        let config_updates = family(
            "opamp_server_config_updates_total",
            "Remote configs that agents reported as applied (success) or failed (failure).",
            "status",
        )?;
        for status in ["success", "failure"] {
            config_updates.with_label_values(&[status]);
        }
        let drifts = family(
            "muster_control_drifts_total",
            "Agents that were found to run something else than they had applied, by what told of it.",
            "kind",
        )?;
        for kind in [DriftKind::RemoteConfig, DriftKind::EffectiveConfig] {
            drifts.with_label_values(&[kind.name()]);
        }
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        Ok(Self {
            config_updates,
            drifts,
            sessions_ended: family(
                "muster_control_sessions_ended_total",
                "Sessions of agents that ended, by reason.",
                "reason",
            )?,
            silences: counter(
                "muster_control_silences_total",
                "Agents that fell silent on a connection that is open.",
            )?,
            rollouts: family(
                "muster_control_rollouts_total",
                "Transitions of rollouts, by the state that they led to.",
                "state",
            )?,
            partitions: gauge("muster_control_partitions", "Partitions that this control works on.")?,
            polling_agents: gauge(
                "muster_control_polling_agents",
                "Agents of these partitions with a live session over plain HTTP, which is on no gateway.",
            )?,
            blob_bytes: gauge(
                "muster_control_blob_bytes",
                "Bytes of blobs that wait to be read or removed.",
            )?,
            commands,
            config_update_duration: histogram(
                "opamp_server_config_update_duration_seconds",
                "From the first offer of a remote config to the agent's report that it is applied.",
                &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0],
            )?,
            health_check_failures: counter(
                "opamp_server_health_check_failures_total",
                "Reports by which an agent turned unhealthy.",
            )?,
            folded: counter("muster_control_folded_entries_total", "Log entries folded into agent state.")?,
            quarantined: counter(
                "muster_control_quarantined_entries_total",
                "Log entries that could not be understood and were passed over.",
            )?,
            commits: family(
                "muster_control_commits_total",
                "Transactions of partition workers, by result.",
                "result",
            )?,
            fold_time: histogram(
                "muster_control_fold_seconds",
                "Time to fold one batch of log entries, with its transaction.",
                &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0],
            )?,
            offers: counter("muster_control_offers_total", "Remote config offers handed to gateways.")?,
            offers_too_large: counter(
                "muster_control_offers_too_large_total",
                "Remote config offers that were not sent because an agent's values are too large.",
            )?,
            blobs: family(
                "muster_control_blobs_total",
                "Reads of reports that were too large for the log.",
                "result",
            )?,
            duplicates: family(
                "muster_duplicate_instance_uids_total",
                "Agents whose instance_uid another session held: takeover, duplicate (two live agents), undecided.",
                "verdict",
            )?,
        })
    }
}
