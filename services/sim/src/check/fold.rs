//! The reference of stored state: the log, folded in order, once.

use std::collections::{BTreeMap, BTreeSet};

use muster_domain::agent::{Agent, EndReason, Offered};
use muster_domain::capabilities::AgentCapabilities;
use muster_domain::desired::{Desired, Labels, Planner};
use muster_domain::ids::{Claim, ConfigHash, Digest, Incarnation, InstanceUid, IntentRevision, SessionId};
use muster_domain::report::{ConfigFile, ConfigStatus, config_map_digest};
use muster_ports::log::Position;
use muster_ports::store::AgentWrite;
use muster_proto::opamp::any_value::Value;
use muster_proto::opamp::{AgentToServer, RemoteConfigStatuses};

use super::{Checker, Committed, Entry, invariant};
use crate::trace::Short;

/// An agent as it should be stored.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Reference {
    session: Option<Session>,
    sequence_num: u64,
    reported: Reported,
    /// What control decided last; the rest is from the log.
    desired: Option<ConfigHash>,
    offered: Option<Offered>,
    failed: Option<ConfigHash>,
}

#[derive(Debug, Clone, PartialEq)]
struct Session {
    id: SessionId,
    claim: Claim,
    incarnation: Incarnation,
    peer: String,
    ended: Option<EndReason>,
    silent: bool,
}

/// What an agent says of itself, as far as the checker looks.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Reported {
    /// Attributes `who` and `n`: which agent, and how often its description has changed.
    pub(crate) description: Option<(String, i64)>,
    pub(crate) capabilities: u64,
    pub(crate) health: Option<(bool, String)>,
    pub(crate) effective: Option<Digest>,
    pub(crate) remote: (Option<ConfigHash>, ConfigStatus),
}

impl Reported {
    /// As it is stored.
    pub(crate) fn stored(agent: &Agent) -> Self {
        let state = &agent.state;
        let attribute =
            |key: &str| state.description.as_ref().and_then(|description| description.attribute(key));
        Self {
            description: attribute("who").zip(attribute("n")).and_then(|(who, n)| {
                let who = who.as_str()?.to_owned();
                Some((who, n.as_i64()?))
            }),
            capabilities: state.capabilities.0,
            health: state.health.as_ref().map(|health| (health.healthy, health.status.clone())),
            effective: state.effective_config,
            remote: (state.remote_config.hash.clone(), state.remote_config.status),
        }
    }

    /// Takes what a message says over what was said before. `sent` is what its session was sent
    /// last: news without a hash are about that. A full report without a hash says that all is as
    /// before, if it seems so.
    pub(crate) fn take(&mut self, message: &AgentToServer, sent: Option<&ConfigHash>) {
        let effective = self.effective;
        if let Some(description) = &message.agent_description {
            let attributes = description
                .identifying_attributes
                .iter()
                .chain(&description.non_identifying_attributes)
                .filter_map(|pair| Some((pair.key.as_str(), pair.value.as_ref()?.value.as_ref()?)))
                .collect::<BTreeMap<_, _>>();
            self.description = match (attributes.get("who"), attributes.get("n")) {
                (Some(Value::StringValue(who)), Some(Value::IntValue(n))) => Some((who.clone(), *n)),
                _ => None,
            };
        }
        if message.capabilities != 0 {
            self.capabilities = message.capabilities;
        }
        if let Some(health) = &message.health {
            self.health = Some((health.healthy, health.status.clone()));
        }
        if let Some(effective) = &message.effective_config {
            let files = effective.config_map.iter().flat_map(|map| &map.config_map);
            let file = |file: &muster_proto::opamp::AgentConfigFile| ConfigFile {
                content_type: file.content_type.clone(),
                body: file.body.to_vec(),
            };
            let map = files.map(|(name, content)| (name.clone(), file(content))).collect();
            self.effective = Some(config_map_digest(&map));
        }
        if let Some(status) = &message.remote_config_status {
            let kind = match status.status() {
                RemoteConfigStatuses::Unset => ConfigStatus::Unset,
                RemoteConfigStatuses::Applied => ConfigStatus::Applied,
                RemoteConfigStatuses::Applying => ConfigStatus::Applying,
                RemoteConfigStatuses::Failed => ConfigStatus::Failed,
            };
            let mut hash = ConfigHash::new(&status.last_remote_config_hash);
            if hash.is_none() && kind != ConfigStatus::Unset {
                let is_as_before = self.remote.1 == kind && self.effective == effective;
                hash = match &message.agent_description {
                    None => sent.cloned(),
                    Some(_) => self.remote.0.clone().filter(|_| is_as_before),
                };
            }
            self.remote = (hash, kind);
        }
    }
}

impl Reference {
    /// Folds one entry. Whether it changed anything.
    fn fold(&mut self, entry: &Entry) -> bool {
        let known = self.session.as_ref();
        if known.is_some_and(|known| known.id != entry.session && known.claim >= entry.claim) {
            return false;
        }
        let mut changed = false;
        if known.is_none_or(|known| known.id != entry.session) {
            self.session = Some(Session {
                id: entry.session,
                claim: entry.claim,
                incarnation: entry.incarnation,
                peer: entry.peer.clone().unwrap_or_default(),
                ended: None,
                silent: false,
            });
            changed = true;
        }
        if let Some(report) = &entry.report {
            changed = true;
            self.sequence_num = entry.sequence_num;
            let before = self.reported.remote.clone();
            self.reported.take(report, entry.sent.as_ref());
            if self.reported.remote != before {
                self.remote_changed();
            }
        }
        if let Some(session) = self.session.as_mut().filter(|session| session.ended.is_none()) {
            let before = (session.ended, session.silent);
            session.ended = entry.ended;
            session.silent = entry.silent && entry.ended.is_none();
            changed |= (session.ended, session.silent) != before;
        }
        changed
    }

    fn remote_changed(&mut self) {
        let (hash, status) = &self.reported.remote;
        let is_end = matches!(status, ConfigStatus::Applied | ConfigStatus::Failed);
        self.offered.take_if(|offered| is_end && Some(&offered.hash) == hash.as_ref());
        match status {
            ConfigStatus::Failed if hash.is_some() && *hash == self.desired => self.failed = hash.clone(),
            ConfigStatus::Applied => drop(self.failed.take_if(|failed| Some(&*failed) == hash.as_ref())),
            _ => {}
        }
    }

    fn live_session(&self) -> Option<SessionId> {
        self.session.as_ref().filter(|session| session.ended.is_none()).map(|session| session.id)
    }

    /// How the stored agent differs from this.
    fn difference(&self, agent: &Agent) -> Option<String> {
        let session = agent.session.as_ref().map(|session| Session {
            id: session.id,
            claim: session.claim,
            incarnation: session.incarnation,
            peer: session.remote_addr.clone(),
            ended: session.ended.map(|(_, reason)| reason),
            silent: session.silent_since.is_some(),
        });
        if session != self.session {
            return Some(format!("its session is {session:?}, not {:?}", self.session));
        }
        let reported = Reported::stored(agent);
        if reported != self.reported {
            return Some(format!("it is {reported:?}, not {:?}", self.reported));
        }
        let sequence_num = agent.state.sequence_num;
        (sequence_num != self.sequence_num)
            .then(|| format!("its sequence number is {sequence_num}, not {}", self.sequence_num))
    }
}

impl Checker {
    /// Whether the planner of this intent is there.
    pub(crate) fn has_planner(&self, revision: IntentRevision) -> bool {
        self.planner.as_ref().is_some_and(|(known, _)| *known == revision)
    }

    /// The store took a commit.
    pub(crate) fn committed(&mut self, committed: &Committed<'_>) {
        if let Some(intent) = &committed.intent {
            self.planner = Some((intent.revision, Planner::new(intent)));
        }
        if let Err((invariant, what)) = self.judge(committed) {
            let place = format!("partition {}: {what}", committed.commit.partition);
            self.wrong(invariant, place);
        }
    }

    fn judge(&mut self, committed: &Committed<'_>) -> Result<(), (&'static str, String)> {
        let Committed { commit, before, row, .. } = committed;
        let fold = |what: String| Err((invariant::FOLD, what));
        let known = self.stored.rows.get(&commit.partition);
        let (expected, generation) =
            known.map_or((before.epoch, before.generation), |row| (row.epoch, row.generation));
        if row.generation != generation + 1 || before.generation != generation {
            return fold(format!("generation {} follows {generation}", row.generation));
        }
        self.looked.push(invariant::FOLD);
        let (epoch, position, message) = commit.progress;
        if epoch != expected {
            self.looked.push(invariant::EPOCH);
        }
        let from = if epoch == expected {
            if position < before.position {
                return fold(format!("its position goes back from {} to {}", before.position.0, position.0));
            }
            before.position
        } else if epoch == expected + 1 {
            if before.message.is_some() && committed.log_knows == before.message {
                let what = format!("epoch {epoch} begins with the log that was folded before");
                return Err((invariant::EPOCH, what));
            }
            Position::default()
        } else if epoch > expected {
            // The store was set back: gateways had been told of later epochs than it knows.
            match before.message.is_some() && committed.log_knows == before.message {
                true => before.position,
                false => Position::default(),
            }
        } else {
            return fold(format!("epoch {epoch} follows {expected}"));
        };
        self.stored.rows.insert(commit.partition, *row);
        let entries = self.entries(commit.partition, from, position, message);
        let Some(entries) = entries else {
            return fold(format!("no log has {message:?} at {}", position.0));
        };
        let passed_over: BTreeSet<_> = commit.quarantined.iter().map(|entry| entry.position).collect();
        let mut changed = BTreeSet::new();
        for (_, entry) in entries.iter().filter(|(position, _)| !passed_over.contains(position)) {
            if self.stored.agents.entry(entry.uid).or_default().fold(entry) {
                changed.insert(entry.uid);
            }
        }
        for write in &commit.agents {
            changed.remove(&write.agent.key.uid);
            self.judge_write(committed, write)?;
        }
        match changed.first() {
            Some(uid) => fold(format!("what was folded of agent {} is not written", Short(uid.0))),
            None => Ok(()),
        }
    }

    /// The entries after one position up to another, at which this message is.
    fn entries(
        &self,
        partition: muster_domain::ids::Partition,
        from: Position,
        to: Position,
        message: Option<muster_domain::ids::MessageId>,
    ) -> Option<Vec<(Position, Entry)>> {
        if from == to {
            return Some(Vec::new());
        }
        // What was read of a log before it was lost may be committed after.
        let has_it = |log: &&BTreeMap<_, BTreeMap<Position, Entry>>| {
            log.get(&partition).and_then(|log| log.get(&to)).is_some_and(|entry| Some(entry.id) == message)
        };
        let log = self.logs.iter().rev().find(has_it)?.get(&partition)?;
        let range = (std::ops::Bound::Excluded(from), std::ops::Bound::Included(to));
        Some(log.range(range).map(|(position, entry)| (*position, entry.clone())).collect())
    }

    fn judge_write(
        &mut self,
        committed: &Committed<'_>,
        write: &AgentWrite,
    ) -> Result<(), (&'static str, String)> {
        let agent = &write.agent;
        let uid = agent.key.uid;
        let name = Short(uid.0).to_string();
        let reference = self.stored.agents.entry(uid).or_default();
        let lost = agent.session.as_ref().and_then(|session| session.ended);
        if let (Some((_, EndReason::GatewayLost)), Some(session)) = (lost, &mut reference.session)
            && session.ended.is_none()
        {
            self.looked.push(invariant::ORPHANS);
            if committed.live.contains(&session.incarnation) {
                let what = format!(
                    "the session of agent {name} is ended, though its gateway's lease says {}",
                    session.incarnation
                );
                return Err((invariant::ORPHANS, what));
            }
            session.ended = Some(EndReason::GatewayLost);
        }
        if let Some(difference) = reference.difference(agent) {
            return Err((invariant::FOLD, format!("agent {name}: {difference}")));
        }
        let offered_before = reference.offered.clone();
        let failed_before = reference.failed.clone();
        let session = reference.live_session();
        reference.desired.clone_from(&agent.state.desired);
        reference.offered.clone_from(&agent.state.offered);
        reference.failed.take_if(|failed| Some(&*failed) != agent.state.desired.as_ref());
        let failed = reference.failed.clone();
        if agent.state.failed.as_ref().map(|failed| &failed.hash) != failed.as_ref() {
            let what = format!(
                "agent {name}: its failed config is {:?}, not {failed:?} (before: {failed_before:?})",
                agent.state.failed
            );
            return Err((invariant::FOLD, what));
        }
        self.looked.push(invariant::DESIRED);
        self.judge_desired(committed, agent, &name)?;
        if let Some(offered) = &agent.state.offered
            && Some(offered) != offered_before.as_ref()
        {
            self.looked.push(invariant::WANTED);
            judge_offer(agent, offered, offered_before.as_ref(), session)
                .map_err(|what| (invariant::WANTED, format!("agent {name}: {what}")))?;
            self.offers.committed(uid, offered.session, offered.hash.clone());
        }
        Ok(())
    }

    fn judge_desired(
        &self,
        committed: &Committed<'_>,
        agent: &Agent,
        name: &str,
    ) -> Result<(), (&'static str, String)> {
        let nothing = Labels::new();
        let labels = committed.labels.get(&agent.key).unwrap_or(&nothing);
        let desired = match committed.commit.decided_on.get(&agent.key.tenant) {
            None => Desired::Nothing,
            Some(revision) => match &self.planner {
                Some((known, planner)) if known == revision => planner.desired(agent, labels),
                _ => return Ok(()),
            },
        };
        let hash = match desired {
            Desired::Config(config) => Some(config.hash),
            Desired::Held { .. } | Desired::Nothing => None,
        };
        if agent.state.desired == hash {
            return Ok(());
        }
        let what = format!("agent {name} should run {hash:?}, and is to run {:?}", agent.state.desired);
        Err((invariant::DESIRED, what))
    }

    /// How far a partition is folded, and where its log ends.
    pub(super) fn folded_to(&self, partition: muster_domain::ids::Partition) -> (Position, Position) {
        let row = self.stored.rows.get(&partition).map(|row| row.position).unwrap_or_default();
        let log = self.logs.last().and_then(|log| log.get(&partition));
        (row, log.and_then(|log| log.keys().next_back().copied()).unwrap_or_default())
    }

    /// Partitions that have a log.
    pub(super) fn partitions(&self) -> Vec<muster_domain::ids::Partition> {
        self.logs.last().map(|log| log.keys().copied().collect()).unwrap_or_default()
    }

    /// The agents that are stored as connected, and where they are.
    pub(super) fn live(&self) -> Vec<(InstanceUid, String)> {
        let live = |(uid, agent): (&InstanceUid, &Reference)| {
            Some((*uid, self.offers.peer(agent.live_session()?).unwrap_or_default().to_owned()))
        };
        self.stored.agents.iter().filter_map(live).collect()
    }

    /// Where a session is.
    pub(super) fn peer(&self, session: SessionId) -> Option<String> {
        self.offers.peer(session).map(str::to_owned)
    }
}

/// Whether an offer may be made.
fn judge_offer(
    agent: &Agent,
    offered: &Offered,
    before: Option<&Offered>,
    session: Option<SessionId>,
) -> Result<(), String> {
    let state = &agent.state;
    if Some(offered.session) != session {
        return Err(format!("an offer for session {}, and the live one is {session:?}", offered.session));
    }
    if !state.capabilities.has(AgentCapabilities::ACCEPTS_REMOTE_CONFIG) {
        return Err("an offer, though it accepts none".to_owned());
    }
    if state.desired.as_ref() != Some(&offered.hash) {
        return Err(format!("an offer of {}, and it should run {:?}", offered.hash, state.desired));
    }
    let is_applying = state.remote_config.status == ConfigStatus::Applying;
    if state.remote_config.hash.as_ref() == Some(&offered.hash) && !is_applying {
        return Err(format!("an offer of {}, which it reports already", offered.hash));
    }
    if state.failed.as_ref().is_some_and(|failed| failed.hash == offered.hash) {
        return Err(format!("an offer of {}, which is known to fail", offered.hash));
    }
    let again = before.filter(|before| before.hash == offered.hash && before.session == offered.session);
    if let Some(before) = again
        && offered.attempts != before.attempts + 1
    {
        return Err(format!("attempt {} follows {}", offered.attempts, before.attempts));
    }
    Ok(())
}
