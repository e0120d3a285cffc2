//! The state of one agent, and how one entry of the log changes it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capabilities::AgentCapabilities;
use crate::drift::{Baseline, Drift, DriftKind, Settling};
use crate::ids::{
    AgentKey, Claim, ConfigHash, Digest, GatewayId, Incarnation, IntentRevision, RolloutId, SessionId,
    Tenant, Timestamp,
};
use crate::report::{
    AvailableComponents, ComponentsKey, ConfigMap, ConfigStatus, CustomMessage, Description, Health,
    RemoteConfigStatus, Report, config_map_digest,
};
use crate::rollout::standing::Track;

/// Everything known of an agent but its labels (intent) and the text of its effective config.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    /// Which agent this is.
    pub key: AgentKey,
    /// The session that speaks for the agent, or the last one that did.
    pub session: Option<Session>,
    /// What the agent reported and what was decided for it.
    pub state: AgentState,
}

/// The part of an agent that reports and decisions change.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct AgentState {
    /// Whether it runs something else than it had applied. The first field: the text of a state tells by
    /// its beginning whether the agent has drifted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
    /// When the first report was received.
    pub first_seen: Timestamp,
    /// When the last report that was not a heartbeat was received.
    pub last_report: Timestamp,
    /// Sequence number of that report.
    pub sequence_num: u64,
    /// The last description.
    #[serde(default)]
    pub description: Option<Description>,
    /// The last capabilities.
    #[serde(default)]
    pub capabilities: AgentCapabilities,
    /// The last health.
    #[serde(default)]
    pub health: Option<Health>,
    /// Custom capabilities, by name.
    #[serde(default)]
    pub custom_capabilities: Vec<String>,
    /// The last remote config status.
    #[serde(default)]
    pub remote_config: RemoteConfigStatus,
    /// The last changes of that status, oldest first, at most [`HISTORY`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remote_config_history: Vec<ConfigChange>,
    /// The agent's hash of the components that it can be configured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_components: Option<String>,
    /// Digest of the last effective config; its text is stored apart.
    #[serde(default)]
    pub effective_config: Option<Digest>,
    /// That effective config has no content at all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub effective_is_blank: bool,
    /// What drift is measured against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
    /// The last offer, while what changes is put down to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settling: Option<Settling>,
    /// Hash of the config that the agent should run, by the intent last looked at.
    #[serde(default)]
    pub desired: Option<ConfigHash>,
    /// Why the agent gets no config although an assignment matches.
    #[serde(default)]
    pub held: Option<String>,
    /// The last offer that is not settled by a report.
    #[serde(default)]
    pub offered: Option<Offered>,
    /// The config that the agent could not apply, while that is the desired one.
    #[serde(default)]
    pub failed: Option<FailedConfig>,
    /// Revision of the intent at which an operator last asked for another try, as far as that was done.
    #[serde(default)]
    pub retried: IntentRevision,
    /// Where it stands in rollouts that are under way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rollouts: Vec<Track>,
    /// Rollouts whose change the agent has reported, of those that agents may have.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub holding: BTreeSet<RolloutId>,
}

/// Changes of a remote config's status that are kept.
pub const HISTORY: usize = 10;
/// Bytes of an error message that the history keeps.
const HISTORY_TEXT: usize = 1000;

/// A change of a remote config's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigChange {
    /// When it was reported.
    pub at: Timestamp,
    /// What was reported; of a long error message only the beginning.
    pub status: RemoteConfigStatus,
}

/// A remote config that was sent and not yet reported as applied or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offered {
    /// Its hash.
    pub hash: ConfigHash,
    /// The session that it was sent to.
    pub session: SessionId,
    /// When it was first sent.
    pub first_at: Timestamp,
    /// How often it was sent to this session.
    pub attempts: u32,
    /// When it is due again if nothing is reported.
    pub next_at: Timestamp,
}

/// A config that failed on an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedConfig {
    /// Its hash.
    pub hash: ConfigHash,
    /// The agent's message.
    pub error_message: String,
    /// When that was reported.
    pub at: Timestamp,
}

/// A session of an agent, as the log told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Its claim on the instance_uid.
    pub claim: Claim,
    /// Gateway that holds it.
    pub gateway: GatewayId,
    /// The life of the gateway in which it began.
    pub incarnation: Incarnation,
    /// How the agent is connected.
    pub transport: Transport,
    /// Peer address, for people.
    pub remote_addr: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When and why it ended.
    pub ended: Option<(Timestamp, EndReason)>,
    /// Since when its agent is known to say nothing, on a connection that is open.
    pub silent_since: Option<Timestamp>,
}

/// How an agent is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// A WebSocket.
    #[serde(rename = "websocket")]
    WebSocket,
    /// Polling by plain HTTP.
    Http,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The agent said goodbye (agent_disconnect).
    AgentDisconnect,
    /// The connection was lost.
    ConnectionLost,
    /// The agent closed the connection in order, and did not say that it shuts down.
    Closed,
    /// An operator had it ended.
    Operator,
    /// The gateway stopped in order.
    GatewayStopped,
    /// The gateway is gone.
    GatewayLost,
    /// Another session took over.
    Superseded,
    /// Nothing was heard within the deadline.
    Silent,
    /// The agent broke the protocol.
    ProtocolError,
}

impl EndReason {
    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AgentDisconnect => "agent_disconnect",
            Self::ConnectionLost => "connection_lost",
            Self::Closed => "closed",
            Self::Operator => "operator",
            Self::GatewayStopped => "gateway_stopped",
            Self::GatewayLost => "gateway_lost",
            Self::Superseded => "superseded",
            Self::Silent => "silent",
            Self::ProtocolError => "protocol_error",
        }
    }
}

/// One entry of the log about one agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The session that it is from.
    pub session: SessionId,
    /// That session's claim.
    pub claim: Claim,
    /// Gateway that published it.
    pub gateway: GatewayId,
    /// That gateway's life.
    pub incarnation: Incarnation,
    /// When the gateway received it.
    pub received_at: Timestamp,
    /// AgentToServer.sequence_num.
    pub sequence_num: u64,
    /// Set on a session's first entry: transport and peer address.
    pub started: Option<(Transport, String)>,
    /// What the agent reports.
    pub report: Option<Report>,
    /// The config that the agent was sent last on its connection, if one was; `None` where its gateway does
    /// not say.
    pub sent: Option<Option<ConfigHash>>,
    /// Set on a session's last entry.
    pub ended: Option<EndReason>,
    /// The agent says nothing for longer than its heartbeats allow, on a connection that is open.
    pub silent: bool,
    /// Something that the agent is not sent.
    pub unsent: Option<Unsent>,
}

/// A message that is not sent to an agent, since it is larger than what agents are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsent {
    /// Hash of the config that it offers.
    pub hash: ConfigHash,
    /// Its bytes.
    pub size: u64,
    /// Bytes that agents are sent at most.
    pub limit: u64,
}

/// What an entry did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Folded {
    /// [`Agent::session`] changed.
    pub session_changed: bool,
    /// [`Agent::state`] changed.
    pub state_changed: bool,
    /// A new effective config, to be stored.
    pub effective_config: Option<ConfigMap>,
    /// What was said of available components.
    pub components: Option<AvailableComponents>,
    /// The session that this entry's session took over from; its gateway should close it.
    pub superseded: Option<Session>,
    /// The known claim, if the entry's is lower and it was not folded for that.
    pub outclaimed: Option<Claim>,
    /// What happened, for logs, metrics and history.
    pub events: Vec<AgentEvent>,
}

/// Something that happened to an agent.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentEvent {
    /// A session began.
    Connected,
    /// The session ended.
    Disconnected(EndReason),
    /// The agent has fallen silent on a connection that is open.
    Unreachable,
    /// It is heard again.
    Reachable,
    /// The agent applied an offered config.
    ConfigApplied {
        /// Hash of the config.
        hash: ConfigHash,
        /// From the first offer to the report.
        took: Option<Duration>,
    },
    /// The agent could not apply a config.
    ConfigFailed {
        /// Hash of the config, as far as known.
        hash: Option<ConfigHash>,
        /// The agent's message.
        error_message: String,
    },
    /// The agent's health turned.
    HealthChanged {
        /// Whether it is healthy now.
        healthy: bool,
    },
    /// The agent sent a message of a custom capability.
    CustomMessage(CustomMessage),
    /// The agent is not sent something.
    Unsent(Unsent),
    /// The agent runs something else than it had applied.
    Drifted(Drift),
    /// It does so no longer.
    DriftEnded(DriftKind),
}

impl Agent {
    /// An agent of which nothing is known yet.
    pub fn new(key: AgentKey, first_seen: Timestamp) -> Self {
        Self { key, session: None, state: AgentState { first_seen, ..AgentState::default() } }
    }

    /// The live session.
    pub fn live_session(&self) -> Option<&Session> {
        self.session.as_ref().filter(|session| session.ended.is_none())
    }

    /// Changes the agent by one entry.
    ///
    /// An entry of a session with a lower claim than the known one changes nothing: most are late words of
    /// a session that was taken over. If ownership has lost what it knew, or clocks of gateways differ,
    /// the session may be the agent's all the same: its gateway is to claim anew.
    pub fn fold(&mut self, entry: Entry) -> Folded {
        let mut folded = Folded::default();
        let known = self.session.as_ref();
        if let Some(known) = known.filter(|known| known.id != entry.session && known.claim >= entry.claim) {
            folded.outclaimed = Some(known.claim);
            return folded;
        }
        if known.is_none_or(|known| known.id != entry.session) {
            self.start_session(&entry, &mut folded);
        }
        if let Some(report) = entry.report {
            let Entry { session, sequence_num, received_at, .. } = entry;
            let sent = entry.sent.unwrap_or_else(|| self.state.offered_to(session));
            self.fold_report(report, sent, sequence_num, received_at, &mut folded);
        }
        folded.events.extend(entry.unsent.map(AgentEvent::Unsent));
        match entry.ended {
            Some(reason) => self.end_session(entry.received_at, reason, &mut folded),
            None => self.fold_silence(entry.silent, entry.received_at, &mut folded),
        }
        folded
    }

    /// Ends the live session, if there is one: what a gateway's end or loss does.
    pub fn end_session(&mut self, at: Timestamp, reason: EndReason, folded: &mut Folded) {
        if let Some(session) = self.session.as_mut().filter(|session| session.ended.is_none()) {
            session.ended = Some((at, reason));
            session.silent_since = None;
            folded.session_changed = true;
            folded.events.push(AgentEvent::Disconnected(reason));
        }
    }

    fn fold_silence(&mut self, silent: bool, at: Timestamp, folded: &mut Folded) {
        if let Some(session) = self.session.as_mut().filter(|session| session.ended.is_none())
            && session.silent_since.is_some() != silent
        {
            session.silent_since = silent.then_some(at);
            folded.session_changed = true;
            folded.events.push(if silent { AgentEvent::Unreachable } else { AgentEvent::Reachable });
        }
    }

    fn start_session(&mut self, entry: &Entry, folded: &mut Folded) {
        let (transport, remote_addr) = entry.started.clone().unwrap_or((Transport::WebSocket, String::new()));
        let session = Session {
            id: entry.session,
            claim: entry.claim,
            gateway: entry.gateway.clone(),
            incarnation: entry.incarnation,
            transport,
            remote_addr,
            started_at: entry.received_at,
            ended: None,
            silent_since: None,
        };
        folded.superseded = self.session.replace(session).filter(|old| old.ended.is_none());
        folded.session_changed = true;
        folded.events.push(AgentEvent::Connected);
    }

    fn fold_report(
        &mut self,
        report: Report,
        sent: Option<ConfigHash>,
        sequence_num: u64,
        at: Timestamp,
        folded: &mut Folded,
    ) {
        let state = &mut self.state;
        let is_full = report.description.is_some();
        let effective_before = state.effective_config;
        folded.state_changed = true;
        state.sequence_num = sequence_num;
        state.last_report = at;
        if let Some(description) = report.description {
            state.description = Some(description);
        }
        if report.capabilities != AgentCapabilities::default() {
            state.capabilities = report.capabilities;
        }
        if let Some(health) = report.health {
            if state.health.as_ref().map(|known| known.healthy) != Some(health.healthy) {
                folded.events.push(AgentEvent::HealthChanged { healthy: health.healthy });
            }
            state.health = Some(health);
        }
        if let Some(custom) = report.custom_capabilities {
            state.custom_capabilities = custom;
        }
        if let Some(available) = report.available_components {
            state.available_components = Some(available.hash.clone());
            folded.components = Some(available);
        }
        if let Some(effective) = report.effective_config {
            let digest = config_map_digest(&effective);
            if state.effective_config != Some(digest) {
                state.effective_config = Some(digest);
                state.effective_is_blank = effective.values().all(|file| file.body.is_empty());
                folded.effective_config = Some(effective);
            }
        }
        if let Some(mut status) = report.remote_config {
            if status.hash.is_none() && status.status != ConfigStatus::Unset {
                let is_same = state.effective_config == effective_before;
                status.hash = state.hash_meant(status.status, sent, is_full, is_same);
            }
            state.fold_remote_config(status, at, folded);
        }
        folded.events.extend(report.custom_message.map(AgentEvent::CustomMessage));
    }
}

impl AgentState {
    /// What a session was offered last, sent or not.
    fn offered_to(&self, session: SessionId) -> Option<ConfigHash> {
        let offered = self.offered.as_ref().filter(|offered| offered.session == session);
        offered.map(|offered| offered.hash.clone())
    }

    /// What a status is about that some clients report without a hash. News is about what the agent was
    /// sent last. A full report repeats what was so before, if nothing speaks against it: the
    /// offer may not have arrived. Otherwise nobody knows, and the config is offered again.
    fn hash_meant(
        &self,
        status: ConfigStatus,
        sent: Option<ConfigHash>,
        is_full: bool,
        is_same: bool,
    ) -> Option<ConfigHash> {
        if is_full {
            let known = &self.remote_config;
            return known.hash.clone().filter(|_| known.status == status && is_same);
        }
        sent
    }

    fn fold_remote_config(&mut self, status: RemoteConfigStatus, at: Timestamp, folded: &mut Folded) {
        if status == self.remote_config {
            return;
        }
        let settled = self.offered.take_if(|offered| {
            status.hash.as_ref() == Some(&offered.hash)
                && matches!(status.status, ConfigStatus::Applied | ConfigStatus::Failed)
        });
        match (status.status, &status.hash) {
            (ConfigStatus::Failed, hash) => {
                if let Some(hash) = hash.clone().filter(|hash| self.desired.as_ref() == Some(hash)) {
                    let error_message = status.error_message.clone();
                    self.failed = Some(FailedConfig { hash, error_message, at });
                }
                folded.events.push(AgentEvent::ConfigFailed {
                    hash: hash.clone(),
                    error_message: status.error_message.clone(),
                });
            }
            (ConfigStatus::Applied, Some(hash)) => {
                self.failed.take_if(|failed| failed.hash == *hash);
                let took = settled.map(|offered| at.since(offered.first_at));
                folded.events.push(AgentEvent::ConfigApplied { hash: hash.clone(), took });
            }
            _ => {}
        }
        self.remember(status.clone(), at);
        self.remote_config = status;
    }

    fn remember(&mut self, mut status: RemoteConfigStatus, at: Timestamp) {
        let end = status.error_message.floor_char_boundary(HISTORY_TEXT);
        status.error_message.truncate(end);
        self.remote_config_history.push(ConfigChange { at, status });
        let surplus = self.remote_config_history.len().saturating_sub(HISTORY);
        self.remote_config_history.drain(..surplus);
    }

    /// Takes over that an operator asked at this revision for another try: what is known of a failure is
    /// forgotten, and what drift is measured against, once for each asking. Returns whether anything changed.
    pub fn set_retried(&mut self, asked: IntentRevision) -> bool {
        if asked <= self.retried {
            return false;
        }
        self.retried = asked;
        self.failed = None;
        self.offered = None;
        self.baseline = None;
        self.settling = None;
        if self.remote_config.status == ConfigStatus::Failed {
            // Not reported yet, so that the same report is news when it comes again.
            self.remote_config = RemoteConfigStatus::default();
        }
        true
    }

    /// Which list of components the agent speaks of.
    pub fn components_key(&self, tenant: &Tenant) -> Option<ComponentsKey> {
        let hash = self.available_components.clone()?;
        let agent_type = self.description.as_ref().map(Description::agent_type).unwrap_or_default();
        Some(ComponentsKey { tenant: tenant.clone(), agent_type: agent_type.to_owned(), hash })
    }

    /// Takes over what the agent should run now. A failure and an offer of another config are
    /// forgotten. Returns whether anything changed.
    pub fn set_desired(&mut self, desired: Option<ConfigHash>, held: Option<String>) -> bool {
        if self.desired == desired && self.held == held {
            return false;
        }
        self.failed.take_if(|failed| desired.as_ref() != Some(&failed.hash));
        self.offered.take_if(|offered| desired.as_ref() != Some(&offered.hash));
        self.desired = desired;
        self.held = held;
        true
    }
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
