//! What a gateway counts.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// A gateway's metrics, under the names that operators' dashboards use.
#[derive(Clone)]
pub struct Metrics {
    pub(crate) connected_agents: IntGauge,
    pub(crate) websocket_connections: IntCounter,
    pub(crate) open_connections: IntGauge,
    pub(crate) received: IntCounter,
    pub(crate) sent: IntCounter,
    pub(crate) refused_connections: IntCounterVec,
    pub(crate) denied: IntCounterVec,
    pub(crate) expiring: IntCounter,
    pub(crate) publishes: IntCounterVec,
    pub(crate) blobs: IntCounterVec,
    pub(crate) over_budget: IntCounterVec,
    pub(crate) claims: IntCounterVec,
    pub(crate) new_uids: IntCounterVec,
    pub(crate) offers: IntCounterVec,
    pub(crate) commands: IntCounterVec,
    pub(crate) http_requests: IntCounterVec,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn register(registry: &Registry, region: &str) -> prometheus::Result<Self> {
        let counter = |opts: Opts| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::with_opts(opts)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |opts: Opts| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::with_opts(opts)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let family = |name: &str, help: &str, label: &str| -> prometheus::Result<IntCounterVec> {
            let family = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let over_budget = family(
            "muster_gateway_over_budget_total",
            "Reports refused because the budget of their agent or tenant was used up.",
            "scope",
        )?;
        for scope in ["agent", "tenant"] {
            over_budget.with_label_values(&[scope]);
        }
        let commands = IntCounterVec::new(
            Opts::new("muster_gateway_commands_total", "Commands for agents that arrived."),
            &["action", "result"],
        )?;
        registry.register(Box::new(commands.clone()))?;
        Ok(Self {
            over_budget,
            commands,
            connected_agents: gauge(
                Opts::new("opamp_server_connected_agents", "Agents with a live session on this server.")
                    .const_label("region", region),
            )?,
            websocket_connections: counter(Opts::new(
                "opamp_server_websocket_connections_total",
                "WebSocket connections that were opened.",
            ))?,
            open_connections: gauge(Opts::new(
                "muster_gateway_open_connections",
                "WebSocket connections that are open.",
            ))?,
            received: counter(
                Opts::new("opamp_server_messages_received_total", "Messages received from agents.")
                    .const_label("type", "AgentToServer"),
            )?,
            sent: counter(
                Opts::new("opamp_server_messages_sent_total", "Messages sent to agents.")
                    .const_label("type", "ServerToAgent"),
            )?,
            refused_connections: family(
                "muster_gateway_refused_connections_total",
                "Connections and upgrades that were not taken.",
                "reason",
            )?,
            denied: family(
                "muster_gateway_denied_total",
                "Connections and requests that were not let in, by reason.",
                "reason",
            )?,
            expiring: counter(Opts::new(
                "muster_gateway_expiring_credentials_total",
                "Times that an agent has shown a credential which ends soon.",
            ))?,
            publishes: family("muster_gateway_publishes_total", "Entries published to the log.", "result")?,
            blobs: family(
                "muster_gateway_blobs_total",
                "Reports too large for the log, put as blobs.",
                "result",
            )?,
            claims: family("muster_gateway_claims_total", "Claims of agents.", "result")?,
            new_uids: family(
                "muster_gateway_new_instance_uids_total",
                "New instance_uids for agents, by what became of them: given, issued, taken, not_taken, refused.",
                "result",
            )?,
            offers: family("muster_gateway_offers_total", "Remote config offers to agents.", "result")?,
            http_requests: family(
                "muster_gateway_http_requests_total",
                "Requests of agents that poll over plain HTTP.",
                "result",
            )?,
        })
    }
}
