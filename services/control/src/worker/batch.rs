//! What one transaction of a worker does to agents, decided without I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_domain::agent::{Agent, AgentEvent, EndReason, Entry, Folded, Session, Transport, Unsent};
use muster_domain::capabilities::AgentCapabilities;
use muster_domain::desired::{Desired, DesiredConfig, Planner};
use muster_domain::ids::{
    AgentKey, Claim, ConfigHash, GatewayId, IntentRevision, SessionId, Tenant, Timestamp,
};
use muster_domain::intent::Intent;
use muster_domain::reconcile::{Decision, Why, reconcile_agent};
use muster_domain::report::{Components, ComponentsKey};
use muster_domain::rollout::follow::follow;
use muster_ports::log::LogEntry;
use muster_ports::store::{AgentWrite, Quarantined, StoredAgent};
use tracing::{debug, info, warn};

use crate::Metrics;
use crate::intents::Planners;
use crate::mail::Route;
use crate::offers::Outgoing;
use crate::worker::components::Source;
use crate::worker::standings::Moves;

/// Agents that a transaction touches.
pub(crate) struct Batch {
    now: Timestamp,
    planners: Arc<Planners>,
    nothing: Arc<Planner>,
    agents: BTreeMap<AgentKey, Touched>,
    quarantined: Vec<Quarantined>,
    lists: BTreeMap<ComponentsKey, Components>,
    outclaimed: Outclaimed,
}

/// Sessions that spoke with a claim below the known one, each with its gateway and that claim.
pub(crate) type Outclaimed = BTreeMap<(AgentKey, SessionId), (GatewayId, Claim)>;

struct Touched {
    stored: StoredAgent,
    folded: Folded,
    /// The agent told the hash of its components and not the list.
    told_components: bool,
}

impl Touched {
    fn new(stored: StoredAgent) -> Self {
        Self { stored, folded: Folded::default(), told_components: false }
    }
}

/// What is to be written, and what follows once it is.
#[derive(Default)]
pub(crate) struct Decided {
    /// For the transaction.
    pub(crate) writes: Vec<AgentWrite>,
    /// Entries that are passed over.
    pub(crate) quarantined: Vec<Quarantined>,
    /// Lists of components that were reported.
    pub(crate) lists: BTreeMap<ComponentsKey, Components>,
    /// Lists of which only the hash was told, and who told it.
    pub(crate) told_components: Vec<(ComponentsKey, Source)>,
    /// Intent revisions that the decisions rest on.
    pub(crate) decided_on: BTreeMap<Tenant, IntentRevision>,
    /// The agents as they are then.
    pub(crate) stored: Vec<StoredAgent>,
    /// Offers to send.
    pub(crate) outgoing: Vec<Outgoing>,
    /// Sessions of polls that have begun: a request may wait for what is decided for them.
    pub(crate) begun: Vec<(AgentKey, Route)>,
    /// When agents are to be looked at again.
    pub(crate) waiting: BTreeMap<AgentKey, Option<Timestamp>>,
    /// Where agents stand in rollouts, as far as that changes.
    pub(crate) moves: Moves,
    /// Sessions to close.
    pub(crate) superseded: Vec<(AgentKey, Session)>,
    /// Sessions to be claimed anew.
    pub(crate) outclaimed: Outclaimed,
    /// What happened.
    pub(crate) events: Vec<Happened>,
}

/// Something that happened to an agent, with what operators want to know beside it.
pub(crate) struct Happened {
    /// The agent.
    pub(crate) key: AgentKey,
    event: AgentEvent,
    version: String,
    remote_addr: String,
}

impl Batch {
    /// A transaction that has touched nothing yet.
    pub(crate) fn new(now: Timestamp, planners: Arc<Planners>) -> Self {
        let nothing = Arc::new(Planner::new(&Intent::default()));
        Self {
            now,
            planners,
            nothing,
            agents: BTreeMap::new(),
            quarantined: Vec::new(),
            lists: BTreeMap::new(),
            outclaimed: BTreeMap::new(),
        }
    }

    /// The intent revision that a tenant's agents are decided on.
    pub(crate) fn revision(&self, tenant: &Tenant) -> IntentRevision {
        self.planner(tenant).revision()
    }

    fn planner(&self, tenant: &Tenant) -> &Planner {
        self.planners.get(tenant).unwrap_or(&self.nothing)
    }

    /// Folds an entry. `stored` is the agent before this transaction, if it is known.
    pub(crate) fn fold(&mut self, key: &AgentKey, stored: Option<&StoredAgent>, entry: Entry) {
        let new =
            || StoredAgent { agent: Agent::new(key.clone(), entry.received_at), labels: BTreeMap::new() };
        let (session, gateway, is_last) = (entry.session, entry.gateway.clone(), entry.ended.is_some());
        let touched = self
            .agents
            .entry(key.clone())
            .or_insert_with(|| Touched::new(stored.cloned().unwrap_or_else(new)));
        let mut folded = touched.stored.agent.fold(entry);
        if let Some(above) = folded.outclaimed.filter(|_| !is_last) {
            self.outclaimed.insert((key.clone(), session), (gateway, above));
        }
        if let Some(available) = folded.components.take()
            && let Some(id) = touched.stored.agent.state.components_key(&key.tenant)
        {
            touched.told_components = available.components.is_none();
            self.lists.extend(available.components.map(|list| (id, list)));
        }
        touched.add(folded);
    }

    /// Decides for an agent of which there is no news.
    pub(crate) fn look_at(&mut self, stored: &StoredAgent) {
        let touched = Touched::new(stored.clone());
        self.agents.entry(stored.agent.key.clone()).or_insert(touched);
    }

    /// Passes over an entry.
    pub(crate) fn quarantine(&mut self, entry: &LogEntry, key: Option<&AgentKey>, reason: &str) {
        self.quarantined.push(Quarantined {
            position: entry.position,
            message: entry.id,
            payload: entry.payload.clone(),
            reason: reason.to_owned(),
            at: self.now,
            key: key.cloned(),
        });
    }

    /// Ends the agent's session.
    pub(crate) fn end_session(&mut self, stored: &StoredAgent, reason: EndReason) {
        let mut touched = Touched::new(stored.clone());
        touched.stored.agent.end_session(self.now, reason, &mut touched.folded);
        self.agents.insert(stored.agent.key.clone(), touched);
    }

    /// Decides for every touched agent.
    pub(crate) fn decide(mut self) -> Decided {
        let mut decided = Decided {
            quarantined: self.quarantined.clone(),
            lists: std::mem::take(&mut self.lists),
            outclaimed: std::mem::take(&mut self.outclaimed),
            ..Decided::default()
        };
        let tenants: BTreeSet<_> = self.agents.keys().map(|key| key.tenant.clone()).collect();
        for tenant in tenants {
            let revision = self.revision(&tenant);
            // A tenant without intent has no revision that could move.
            if self.planners.contains_key(&tenant) {
                decided.decided_on.insert(tenant, revision);
            }
        }
        let planners = Arc::clone(&self.planners);
        let nothing = Arc::clone(&self.nothing);
        for (key, touched) in self.agents {
            let planner = planners.get(&key.tenant).unwrap_or(&nothing);
            decided.take(key, touched, planner, self.now);
        }
        decided
    }
}

impl Touched {
    /// Adds what a further entry did.
    fn add(&mut self, folded: Folded) {
        let all = &mut self.folded;
        all.session_changed |= folded.session_changed;
        all.state_changed |= folded.state_changed;
        all.effective_config = folded.effective_config.or(all.effective_config.take());
        all.superseded = all.superseded.take().or(folded.superseded);
        all.events.extend(folded.events);
    }
}

impl Decided {
    fn take(&mut self, key: AgentKey, touched: Touched, planner: &Planner, now: Timestamp) {
        let Touched { stored: StoredAgent { mut agent, labels }, mut folded, told_components } = touched;
        if told_components
            && agent.state.capabilities.has(AgentCapabilities::REPORTS_AVAILABLE_COMPONENTS)
            && let (Some(id), Some(session)) = (agent.state.components_key(&key.tenant), agent.live_session())
        {
            self.told_components.push((id, (key.clone(), Route::from(session))));
        }
        let decision = planner.decide(&agent, &labels);
        let (config, held) = match decision.desired.clone() {
            Desired::Nothing => (None, None),
            Desired::Held { reason } => (None, Some(reason)),
            Desired::Config(config) => (Some(config), None),
        };
        let hash: Option<ConfigHash> = config.as_ref().map(|config| config.hash.clone());
        folded.state_changed |= agent.state.set_retried(planner.retry(key.uid));
        folded.state_changed |= agent.state.set_desired(hash, held);
        folded.state_changed |= agent.judge_drift(now, &mut folded.events);
        let due = match reconcile_agent(&agent, now) {
            Decision::Offer(offer) => {
                let due = offer.next_at;
                agent.state.set_offered(offer, now);
                folded.state_changed = true;
                self.send(&agent, config, planner.revision());
                Some(due)
            }
            Decision::Nothing(Why::AwaitingReport(due) | Why::LeavesItAgain(due)) => Some(due),
            Decision::Nothing(_) => None,
        };
        let followed = follow(&mut agent, &decision, planner, now);
        folded.state_changed |= followed.changed;
        let moved = |(rollout, before, after)| (key.tenant.clone(), rollout, before, after);
        self.moves.extend(followed.moves.into_iter().map(moved));
        self.waiting.insert(key.clone(), due.into_iter().chain(followed.due).min());
        if folded.events.contains(&AgentEvent::Connected)
            && let Some(session) = agent.live_session().filter(|session| session.transport == Transport::Http)
        {
            self.begun.push((key.clone(), session.into()));
        }
        self.events.extend(folded.events.into_iter().map(|event| Happened::new(&agent, event)));
        self.superseded.extend(folded.superseded.map(|old| (key, old)));
        if folded.session_changed || folded.state_changed || folded.effective_config.is_some() {
            self.writes.push(AgentWrite {
                agent: agent.clone(),
                session: folded.session_changed,
                state: folded.state_changed,
                effective_config: folded.effective_config,
            });
            self.stored.push(StoredAgent { agent, labels });
        }
    }

    fn send(&mut self, agent: &Agent, config: Option<DesiredConfig>, revision: IntentRevision) {
        // An offer is made only for a desired config and a live session.
        if let (Some(config), Some(session)) = (config, agent.live_session()) {
            self.outgoing.push(Outgoing { key: agent.key.clone(), route: session.into(), config, revision });
        }
    }
}

impl Happened {
    fn new(agent: &Agent, event: AgentEvent) -> Self {
        let description = agent.state.description.as_ref();
        let version = description.and_then(|description| description.attribute("service.version"));
        Self {
            key: agent.key.clone(),
            event,
            version: version.and_then(serde_json::Value::as_str).unwrap_or_default().to_owned(),
            remote_addr: agent
                .session
                .as_ref()
                .map(|session| session.remote_addr.clone())
                .unwrap_or_default(),
        }
    }

    /// What of it is told to listeners: the agent, what happened, its peer address.
    pub(crate) fn told(&self) -> (&AgentKey, &AgentEvent, &str) {
        (&self.key, &self.event, &self.remote_addr)
    }

    /// Counts and logs it.
    pub(crate) fn tell(&self, metrics: &Metrics) {
        let Self { key, event, version, remote_addr } = self;
        let (tenant, agent_id, agent_version) = (&key.tenant, &key.uid, version);
        match event {
            AgentEvent::Connected => {
                info!(event = "agent_connected", %tenant, %agent_id, agent_version, remote_addr, "an agent connected");
            }
            AgentEvent::Disconnected(reason) => {
                metrics.sessions_ended.with_label_values(&[reason.name()]).inc();
                let liveness = reason.liveness().name();
                info!(event = "agent_disconnected", %tenant, %agent_id, agent_version, remote_addr, liveness, ?reason, "an agent disconnected");
            }
            AgentEvent::Unreachable => {
                metrics.silences.inc();
                warn!(event = "agent_unreachable", %tenant, %agent_id, agent_version, remote_addr, "an agent has fallen silent on a connection that is open");
            }
            AgentEvent::Reachable => {
                info!(event = "agent_reachable", %tenant, %agent_id, agent_version, remote_addr, "an agent that was silent is heard again");
            }
            AgentEvent::ConfigApplied { hash, took } => {
                // Agents also report as applied what nobody offered.
                if let Some(took) = took {
                    metrics.config_updates.with_label_values(&["success"]).inc();
                    metrics.config_update_duration.observe(took.as_secs_f64());
                    let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                    info!(event = "config_updated", %tenant, %agent_id, agent_version, config_hash = %hash, duration_ms, "an agent applied its remote config");
                }
            }
            AgentEvent::ConfigFailed { hash, error_message } => {
                metrics.config_updates.with_label_values(&["failure"]).inc();
                let config_hash = hash.as_ref().map(ToString::to_string).unwrap_or_default();
                warn!(event = "config_update_failed", %tenant, %agent_id, agent_version, config_hash, error = error_message, "an agent could not apply its remote config");
            }
            AgentEvent::CustomMessage(message) => {
                let (capability, kind, bytes) = (&message.capability, &message.kind, message.data.len());
                debug!(event = "custom_message", %tenant, %agent_id, capability, kind, bytes, "an agent sent a custom message");
            }
            AgentEvent::Unsent(Unsent { hash, size, limit }) => {
                warn!(event = "config_not_sent", %tenant, %agent_id, agent_version, config_hash = %hash, size, limit, "a remote config is larger than what agents are sent");
            }
            AgentEvent::Drifted(drift) => {
                let (kind, expected, found) = (drift.kind.name(), &drift.expected, drift.found.as_deref());
                let found = found.unwrap_or_default();
                metrics.drifts.with_label_values(&[kind]).inc();
                warn!(event = "agent_drifted", %tenant, %agent_id, agent_version, kind, expected, found, "an agent runs something else than the config that it had applied");
            }
            AgentEvent::DriftEnded(kind) => {
                info!(event = "agent_drift_ended", %tenant, %agent_id, agent_version, kind = kind.name(), "an agent's drift is over");
            }
            AgentEvent::HealthChanged { healthy: true } => {
                info!(event = "agent_healthy", %tenant, %agent_id, agent_version, "an agent is healthy");
            }
            AgentEvent::HealthChanged { healthy: false } => {
                metrics.health_check_failures.inc();
                warn!(event = "agent_unhealthy", %tenant, %agent_id, agent_version, "an agent is unhealthy");
            }
        }
    }
}
