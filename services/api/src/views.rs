//! Agents as the API shows them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_domain::agent::{Agent, ConfigChange, Transport};
use muster_domain::drift::Drift;
use muster_domain::ids::Timestamp;
use muster_domain::report::{
    Attributes, Component, Components, ConfigFile, ConfigMap, ConfigStatus, Description, Health,
};
use muster_ports::ownership::Owned;
use muster_ports::store::StoredAgent;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

/// An agent: what it reports, and what it should run.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AgentView {
    /// The agent's instance_uid, a lower-case hyphenated UUID.
    instance_uid: String,
    /// Whether a live session speaks for it.
    connected: bool,
    /// `connected`, `unreachable` (silent on an open connection, or lost without a word), `disconnected` (in
    /// order, by the server, or with it), `shut_down` (it said goodbye).
    liveness: &'static str,
    /// Whether it reports that it is healthy; null if it reports no health.
    healthy: Option<bool>,
    /// The agent's own word for its state.
    status: String,
    /// When any message of it came last (RFC 3339).
    last_seen: String,
    /// When its first message came (RFC 3339).
    first_seen: String,
    /// What it says of itself.
    attributes: AttributesView,
    /// What operators say of it.
    labels: BTreeMap<String, String>,
    /// Names of its capabilities.
    capabilities: Vec<String>,
    /// Sequence number of its last message.
    sequence_num: u64,
    /// The config that it should run, and how far it is.
    remote_config: RemoteConfigView,
    /// Set while it runs something else than the config that it had applied, and nobody offered it that.
    drift: Option<DriftView>,
    /// The config that it runs, by file name. Absent in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    effective_config: Option<BTreeMap<String, FileView>>,
    /// Its health; null if it reports none.
    health: Option<HealthView>,
    /// Names of its custom capabilities.
    custom_capabilities: Vec<String>,
    /// The components that it can be configured with; null if it reports none.
    available_components: Option<AvailableComponentsView>,
    /// Its session, or the last one.
    session: Option<SessionView>,
    /// Goes into `remote_config` where it is shown.
    #[serde(skip)]
    history: Vec<ConfigChangeView>,
}

/// Attributes by key, as plain JSON.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct AttributesView {
    /// Those that identify the agent.
    #[schema(value_type = Object)]
    identifying: Attributes,
    /// Those that describe it.
    #[schema(value_type = Object)]
    non_identifying: Attributes,
}

/// How far an agent is with its remote config.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RemoteConfigView {
    /// Hash of the config that it should run, hex; null if no assignment matches.
    desired_hash: Option<String>,
    /// Hash that it reports, hex.
    reported_hash: Option<String>,
    /// UNSET, APPLIED, APPLYING or FAILED. FAILED stays while the desired config is one that failed,
    /// also when the agent went back to the one before.
    status: ConfigStatusView,
    /// What went wrong.
    error_message: String,
    /// Hash of the desired config if it is known to fail on this agent: it is not offered again.
    failed_hash: Option<String>,
    /// Why the agent gets no config although an assignment matches.
    held: Option<String>,
    /// What the agent reported last, the oldest first. Absent in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Vec<ConfigChangeView>>,
}

/// An agent runs something else than the config that it had applied.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DriftView {
    /// What tells of it: `remote_config` (the reported hash left the desired one; the config is offered
    /// again) or `effective_config` (it changed without an offer; it is only shown).
    kind: &'static str,
    /// When that was reported first (RFC 3339).
    since: String,
    /// What it had, hex: the hash of the remote config, or the digest of the effective config.
    expected: String,
    /// What it reports instead; null where it reports no hash.
    found: Option<String>,
    /// When its config is offered again at the earliest (RFC 3339), where it left it more than once.
    offered_again_at: Option<String>,
}

/// A status of a remote config that an agent reported.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ConfigChangeView {
    /// When it was reported (RFC 3339).
    at: String,
    /// The hash that it is about, hex.
    hash: Option<String>,
    /// UNSET, APPLIED, APPLYING or FAILED.
    status: ConfigStatusView,
    /// What went wrong; of a long message the beginning.
    error_message: String,
}

/// Components that an agent can be configured with.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AvailableComponentsView {
    /// The agent's hash of the list, hex.
    hash: String,
    /// The list, by name; null while none of the agents with this hash has reported it. Absent in
    /// lists of agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    components: Option<Option<BTreeMap<String, ComponentView>>>,
}

/// A component that an agent can be configured with.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ComponentView {
    /// Facts about it, such as its version.
    #[schema(value_type = Object)]
    metadata: Attributes,
    /// Components inside it, by name.
    #[schema(no_recursion)]
    components: BTreeMap<String, ComponentView>,
}

/// Status of a remote config.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum ConfigStatusView {
    /// Nothing was reported.
    Unset,
    /// In use.
    Applied,
    /// Being applied.
    Applying,
    /// Could not be applied.
    Failed,
}

/// A file of a config.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FileView {
    /// Its text; base64 where `encoding` says so.
    body: String,
    /// Its MIME type; may be empty.
    content_type: String,
    /// `base64` for a body that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

/// Health of an agent or a part of it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HealthView {
    /// Whether it works.
    healthy: bool,
    /// Its own word for its state.
    status: String,
    /// What went wrong last.
    last_error: String,
    /// When it started (RFC 3339).
    start_time: Option<String>,
    /// When the status was true (RFC 3339).
    status_time: Option<String>,
    /// Its attributes.
    #[schema(value_type = Object)]
    attributes: Attributes,
    /// Health of its parts, by name.
    #[schema(no_recursion)]
    components: BTreeMap<String, HealthView>,
}

/// A session of an agent.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SessionView {
    /// Its id.
    id: String,
    /// The gateway that holds it; of one over HTTP, the one that it began on.
    gateway: String,
    /// `websocket` or `http`.
    transport: &'static str,
    /// Peer address.
    remote_addr: String,
    /// When it began (RFC 3339).
    started_at: String,
    /// When it ended (RFC 3339).
    ended_at: Option<String>,
    /// Why it ended.
    end_reason: Option<&'static str>,
    /// Since when the agent says nothing although the connection is open (RFC 3339).
    silent_since: Option<String>,
}

/// A moment as RFC 3339, in UTC.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1000);
    moment.ok().and_then(|moment| moment.format(&Rfc3339).ok()).unwrap_or_default()
}

/// An agent as the API shows it. What ownership knows is newer than what is stored.
pub(crate) fn agent(stored: StoredAgent, owned: Option<&Owned>) -> AgentView {
    let StoredAgent { agent, labels } = stored;
    let (connected, liveness) = (agent.live_session().is_some(), agent.liveness().name());
    let remote_config = remote_config(&agent);
    let session = agent.session.as_ref();
    // The store does not learn of heartbeats; ownership learns a little late, and not at all of reports that
    // followed a gap. Times do not tell which is newer: gateways' clocks differ. Nor do sessions: ownership
    // knows of a claim before the store does.
    let settled = owned.and_then(|owned| owned.settled).unwrap_or_default();
    let seen = owned.map_or(agent.state.last_report, |owned| owned.seen.max(agent.state.last_report));
    let session = session.map(session_view);
    let state = agent.state;
    let Description { identifying, non_identifying } = state.description.unwrap_or_default();
    AgentView {
        instance_uid: agent.key.uid.to_string(),
        connected,
        liveness,
        healthy: state.health.as_ref().map(|health| health.healthy),
        status: state.health.as_ref().map(|health| health.status.clone()).unwrap_or_default(),
        last_seen: rfc3339(seen),
        first_seen: rfc3339(state.first_seen),
        attributes: AttributesView { identifying, non_identifying },
        labels,
        capabilities: state.capabilities.names(),
        sequence_num: settled.max(state.sequence_num),
        remote_config,
        drift: state.drift.map(drift),
        effective_config: None,
        health: state.health.map(health),
        custom_capabilities: state.custom_capabilities,
        available_components: state
            .available_components
            .map(|hash| AvailableComponentsView { hash, components: None }),
        session,
        history: state.remote_config_history.into_iter().map(config_change).collect(),
    }
}

impl AgentView {
    /// With what is left out of lists.
    pub(crate) fn with_details(mut self, effective_config: ConfigMap, list: Option<Components>) -> Self {
        self.effective_config = Some(files(effective_config));
        self.remote_config.history = Some(std::mem::take(&mut self.history));
        if let Some(available) = &mut self.available_components {
            available.components = Some(list.map(components));
        }
        self
    }
}

fn drift(drift: Drift) -> DriftView {
    DriftView {
        kind: drift.kind.name(),
        since: rfc3339(drift.since),
        expected: drift.expected,
        found: drift.found,
        offered_again_at: drift.again.map(|(_, at)| rfc3339(at)),
    }
}

fn config_change(change: ConfigChange) -> ConfigChangeView {
    let ConfigChange { at, status } = change;
    ConfigChangeView {
        at: rfc3339(at),
        hash: status.hash.as_ref().map(ToString::to_string),
        status: status.status.into(),
        error_message: status.error_message,
    }
}

fn components(list: Components) -> BTreeMap<String, ComponentView> {
    let view = |component: Component| ComponentView {
        metadata: component.metadata,
        components: components(component.components),
    };
    list.into_iter().map(|(name, component)| (name, view(component))).collect()
}

impl From<ConfigStatus> for ConfigStatusView {
    fn from(status: ConfigStatus) -> Self {
        match status {
            ConfigStatus::Unset => Self::Unset,
            ConfigStatus::Applied => Self::Applied,
            ConfigStatus::Applying => Self::Applying,
            ConfigStatus::Failed => Self::Failed,
        }
    }
}

fn remote_config(agent: &Agent) -> RemoteConfigView {
    let state = &agent.state;
    let reported = &state.remote_config;
    let (status, error_message) = match &state.failed {
        Some(failed) => (ConfigStatusView::Failed, failed.error_message.clone()),
        None => (reported.status.into(), reported.error_message.clone()),
    };
    RemoteConfigView {
        desired_hash: state.desired.as_ref().map(ToString::to_string),
        reported_hash: reported.hash.as_ref().map(ToString::to_string),
        status,
        error_message,
        failed_hash: state.failed.as_ref().map(|failed| failed.hash.to_string()),
        held: state.held.clone(),
        history: None,
    }
}

fn session_view(session: &muster_domain::agent::Session) -> SessionView {
    SessionView {
        id: session.id.to_string(),
        gateway: session.gateway.to_string(),
        transport: match session.transport {
            Transport::WebSocket => "websocket",
            Transport::Http => "http",
        },
        remote_addr: session.remote_addr.clone(),
        started_at: rfc3339(session.started_at),
        ended_at: session.ended.map(|(at, _)| rfc3339(at)),
        end_reason: session.ended.map(|(_, reason)| reason.name()),
        silent_since: session.silent_since.map(rfc3339),
    }
}

fn health(health: Health) -> HealthView {
    HealthView {
        healthy: health.healthy,
        status: health.status,
        last_error: health.last_error,
        start_time: health.start_time.map(rfc3339),
        status_time: health.status_time.map(rfc3339),
        attributes: health.attributes,
        components: health.components.into_iter().map(|(name, part)| (name, self::health(part))).collect(),
    }
}

fn files(map: ConfigMap) -> BTreeMap<String, FileView> {
    let view = |file: ConfigFile| match String::from_utf8(file.body) {
        Ok(body) => FileView { body, content_type: file.content_type, encoding: None },
        Err(error) => FileView {
            body: STANDARD.encode(error.as_bytes()),
            content_type: file.content_type,
            encoding: Some("base64"),
        },
    };
    map.into_iter().map(|(name, file)| (name, view(file))).collect()
}

#[cfg(test)]
mod tests {
    use muster_domain::ids::{AgentKey, InstanceUid};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_number_of_a_message_does_not_go_back_while_an_agent_is_claimed_anew() {
        let key = AgentKey { tenant: "a".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(1)) };
        let mut stored = Agent::new(key, Timestamp(1));
        (stored.state.sequence_num, stored.state.last_report) = (5, Timestamp(9_000));
        let shown = |owned: Option<&Owned>| {
            agent(StoredAgent { agent: stored.clone(), labels: Default::default() }, owned).sequence_num
        };
        // The store knows nothing of the session that holds the agent, whose gateway's clock is behind.
        let owned = |settled| Owned { holder: None, settled, seen: Timestamp(7_000) };
        assert_eq!(shown(Some(&owned(Some(8)))), 8);
        assert_eq!(shown(Some(&owned(Some(4)))), 5, "a report after a gap is not settled");
        assert_eq!(shown(Some(&owned(None))), 5);
        assert_eq!(shown(None), 5);
    }
}
