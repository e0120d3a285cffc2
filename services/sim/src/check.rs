//! The checker: what must hold after every step, kept beside the cluster and apart from its code.
//!
//! It sees what engines did at the moment when they did it, what control hands to the bus, and what
//! gateways write to agents. Invariants are named as in `docs/architecture.md`.

mod answers;
mod fold;
mod offers;
mod settled;

use std::collections::BTreeMap;

use bytes::Bytes;
use muster_domain::agent::EndReason;
use muster_domain::desired::{Labels, Planner};
use muster_domain::ids::{
    AgentKey, Claim, ConfigHash, Incarnation, InstanceUid, IntentRevision, MessageId, Partition, SessionId,
};
use muster_domain::intent::Intent;
use muster_ports::log::Position;
use muster_ports::store::{Commit, PartitionRow, RESYNC_LIFT};
use muster_proto::Message;
use muster_proto::bus::{self, Envelope};
use muster_proto::opamp::AgentToServer;

pub(crate) use answers::digest;
pub(crate) use fold::Reported;
pub(crate) use settled::{AgentView, Settled, settled};

/// Names of the invariants.
pub(crate) mod invariant {
    /// Stored state is the fold of the log, in order, once.
    pub(crate) const FOLD: &str = "stored-is-folded";
    /// An epoch begins only with another log.
    pub(crate) const EPOCH: &str = "epoch-is-another-log";
    /// A session is ended for its gateway only when that life of the gateway is over.
    pub(crate) const ORPHANS: &str = "orphans-are-orphans";
    /// Only the current session of an agent is sent offers, and only offers that were committed.
    pub(crate) const CURRENT: &str = "offers-to-current-session";
    /// No offer without capability, difference, and a hash not known to fail.
    pub(crate) const WANTED: &str = "offers-are-wanted";
    /// A session is never sent an older intent after a newer one.
    pub(crate) const NEWEST: &str = "intent-never-goes-back";
    /// Desired state is a function of intent, attributes and labels.
    pub(crate) const DESIRED: &str = "desired-is-a-function";
    /// Only heartbeats and what the log has are answered.
    pub(crate) const ANSWERS: &str = "answers-are-safe";
    /// When faults stop, everything comes to rest as it should be.
    pub(crate) const SETTLES: &str = "everything-settles";
}

/// What the checker knows.
#[derive(Default)]
pub(crate) struct Checker {
    found: Option<(&'static str, String)>,
    /// Rules that were looked at since the last time.
    looked: Vec<&'static str>,
    /// Every entry of every log there was, the present one last.
    logs: Vec<BTreeMap<Partition, BTreeMap<Position, Entry>>>,
    stored: Stored,
    planner: Option<(IntentRevision, Planner)>,
    offers: offers::Offers,
    answers: answers::Answers,
}

/// What should be stored now.
#[derive(Default, Clone)]
pub(crate) struct Stored {
    rows: BTreeMap<Partition, PartitionRow>,
    agents: BTreeMap<InstanceUid, fold::Reference>,
}

/// A commit that the store took, and what was so at that moment.
pub(crate) struct Committed<'a> {
    pub(crate) commit: &'a Commit,
    /// The row before.
    pub(crate) before: PartitionRow,
    /// The row after.
    pub(crate) row: PartitionRow,
    /// What the log has at the position of the row before.
    pub(crate) log_knows: Option<MessageId>,
    /// Labels of the agents.
    pub(crate) labels: BTreeMap<AgentKey, Labels>,
    /// The intent, where the checker does not know it.
    pub(crate) intent: Option<Intent>,
    /// Lives of gateways that have a lease.
    pub(crate) live: Vec<Incarnation>,
}

/// One entry of a log.
#[derive(Debug, Clone)]
struct Entry {
    id: MessageId,
    uid: InstanceUid,
    session: SessionId,
    claim: Claim,
    incarnation: Incarnation,
    sequence_num: u64,
    /// Set on the first entry of a session: where the agent is.
    peer: Option<String>,
    report: Option<AgentToServer>,
    /// The config that the agent was sent last.
    sent: Option<ConfigHash>,
    ended: Option<EndReason>,
    silent: bool,
}

impl Entry {
    /// Reads an entry; its report may have come as a blob.
    fn read(id: MessageId, payload: &Bytes, report: Option<&Bytes>) -> Option<Self> {
        let envelope = Envelope::decode(payload.clone()).ok()?;
        Some(Self {
            id,
            uid: envelope.instance_uid.as_ref().try_into().ok()?,
            session: envelope.session_id.as_ref().try_into().ok()?,
            claim: Claim(envelope.claim),
            incarnation: envelope.incarnation.as_ref().try_into().ok()?,
            sequence_num: envelope.sequence_num,
            peer: envelope.started.map(|started| started.remote_addr),
            silent: envelope.silent,
            sent: envelope.sent_config_hash.and_then(|hash| ConfigHash::new(&hash)),
            report: report.and_then(|report| AgentToServer::decode(report.clone()).ok()),
            ended: envelope.ended.map(|ended| match ended.reason() {
                bus::EndReason::AgentDisconnect => EndReason::AgentDisconnect,
                bus::EndReason::Closed => EndReason::Closed,
                bus::EndReason::Operator => EndReason::Operator,
                bus::EndReason::GatewayStopped => EndReason::GatewayStopped,
                bus::EndReason::Superseded => EndReason::Superseded,
                bus::EndReason::Silent => EndReason::Silent,
                bus::EndReason::ProtocolError => EndReason::ProtocolError,
                bus::EndReason::ConnectionLost | bus::EndReason::Unspecified => EndReason::ConnectionLost,
            }),
        })
    }
}

impl Checker {
    /// What was found wrong since the last time.
    pub(crate) fn take_found(&mut self) -> Option<(&'static str, String)> {
        self.found.take()
    }

    /// Rules that were looked at since the last time.
    pub(crate) fn take_looked(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.looked)
    }

    fn wrong(&mut self, invariant: &'static str, what: String) {
        self.found.get_or_insert((invariant, what));
    }

    /// A gateway is about to publish.
    pub(crate) fn publishing(&mut self, payload: &Bytes) {
        if let Some(entry) = Entry::read(MessageId(uuid::Uuid::nil()), payload, None)
            && let Some(peer) = entry.peer
        {
            self.offers.session_began(peer, entry.uid, entry.session);
        }
    }

    /// The log has an entry; in short what it is.
    pub(crate) fn appended(
        &mut self,
        partition: Partition,
        position: Position,
        id: MessageId,
        payload: &Bytes,
        report: Option<Bytes>,
    ) -> String {
        let Some(entry) = Entry::read(id, payload, report.as_ref()) else { return "garbage".to_owned() };
        if let Some(report) = report {
            self.answers.stored(entry.uid, &report);
        }
        let told = format!(
            "{} of {} claim {}{}{}{}",
            crate::trace::Short(entry.session.0),
            crate::trace::Short(entry.uid.0),
            entry.claim.0,
            entry.peer.as_ref().map(|_| " started").unwrap_or_default(),
            entry.report.as_ref().map(|_| format!(" report {}", entry.sequence_num)).unwrap_or_default(),
            entry.ended.map(|reason| format!(" ended {reason:?}")).unwrap_or_default(),
        );
        if self.logs.is_empty() {
            self.logs.push(BTreeMap::new());
        }
        if let Some(log) = self.logs.last_mut() {
            log.entry(partition).or_default().entry(position).or_insert(entry);
        }
        told
    }

    /// The log no longer has what is below a position.
    pub(crate) fn purged(&mut self, partition: Partition, below: Position) {
        if let Some(log) = self.logs.last_mut().and_then(|log| log.get_mut(&partition)) {
            *log = log.split_off(&below);
        }
    }

    /// The log is lost, and another one takes its place.
    pub(crate) fn log_replaced(&mut self) {
        self.logs.push(BTreeMap::new());
    }

    /// What should be stored now, for a backup of the store.
    pub(crate) fn backup(&self) -> Stored {
        self.stored.clone()
    }

    /// The store is another one, of which this is known.
    pub(crate) fn restore(&mut self, stored: Stored) {
        self.stored = stored;
        self.planner = None;
    }

    /// The store was put in front of what it has forgotten.
    pub(crate) fn resynced(&mut self) {
        for row in self.stored.rows.values_mut() {
            row.epoch += RESYNC_LIFT;
            row.generation += RESYNC_LIFT;
        }
        self.planner = None;
    }

    /// The last entry in the present log of the partition's first agent: where a worker would begin that
    /// took its position from an agent.
    pub(crate) fn last_of_an_agent(&self, partition: Partition) -> Option<(Position, MessageId)> {
        let row = self.stored.rows.get(&partition)?;
        let mut folded = self.logs.last()?.get(&partition)?.range(..=row.position);
        let first = folded.clone().map(|(_, entry)| entry.uid).min()?;
        let (position, entry) = folded.rfind(|(_, entry)| entry.uid == first)?;
        Some((*position, entry.id))
    }
}
