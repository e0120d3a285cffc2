//! A partition's queued commands: decided when they come, when their agent has news, and when they expire.
//!
//! A command is settled in the store by a transaction of the worker, and sent only after that: whatever
//! stops in between, it is never sent twice.

use std::collections::{BTreeMap, BTreeSet};

use muster_domain::agent::Transport;
use muster_domain::command::{Action, Command, CommandState, Decision, Status, decide};
use muster_domain::ids::{AgentKey, CommandId, GatewayId, SessionId, Tenant, Timestamp};
use muster_ports::store::{Commit, CommitError, QueuedCommand, SettledCommand};
use tracing::{error, info};

use super::{Batch, Restart, Worker};
use crate::offers;

/// Agents looked at for their commands at a time.
const AGENTS: usize = 100;
/// Commands settled in one transaction. Each may hold 64 KiB.
const CHUNK: usize = 64;

/// A command that was settled as sent.
pub(crate) struct OutgoingCommand {
    /// The agent.
    pub(crate) key: AgentKey,
    /// Its session.
    pub(crate) session: SessionId,
    /// The gateway that holds the session, or on which one of polls began.
    pub(crate) gateway: GatewayId,
    /// Whether the agent polls.
    pub(crate) polls: bool,
    /// The command's id.
    pub(crate) id: CommandId,
    /// From when on it is not written.
    pub(crate) expires_at: Timestamp,
    /// What the agent is to do.
    pub(crate) action: Action,
}

/// The queued commands of a partition, as far as the worker knows.
#[derive(Default)]
pub(super) struct Waiting {
    by_agent: BTreeMap<AgentKey, BTreeMap<CommandId, Timestamp>>,
    due: BTreeSet<(Timestamp, CommandId, AgentKey)>,
}

impl Waiting {
    fn new(queued: &[QueuedCommand]) -> Self {
        let mut all = Self::default();
        for QueuedCommand { id, key, expires_at } in queued {
            all.by_agent.entry(key.clone()).or_default().insert(*id, *expires_at);
            all.due.insert((*expires_at, *id, key.clone()));
        }
        all
    }

    /// When the first of them expires.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(due, ..)| *due)
    }

    fn of<'a>(&'a self, key: &'a AgentKey) -> impl Iterator<Item = (CommandId, Timestamp)> + 'a {
        self.by_agent.get(key).into_iter().flatten().map(|(id, expires_at)| (*id, *expires_at))
    }

    fn remove(&mut self, key: &AgentKey, id: CommandId) {
        let Some(of_agent) = self.by_agent.get_mut(key) else { return };
        if let Some(expires_at) = of_agent.remove(&id) {
            self.due.remove(&(expires_at, id, key.clone()));
        }
        if of_agent.is_empty() {
            self.by_agent.remove(key);
        }
    }
}

impl Worker<'_> {
    /// Takes what is queued now in the place of what was known, and decides on it.
    pub(super) async fn take_commands(&mut self, queued: &[QueuedCommand]) -> Result<(), Restart> {
        self.commands = Waiting::new(queued);
        let keys: Vec<_> = self.commands.by_agent.keys().cloned().collect();
        self.decide_commands(keys).await
    }

    /// Decides on the commands of agents that have news.
    pub(super) async fn commands_of(&mut self, keys: &BTreeSet<AgentKey>) -> Result<(), Restart> {
        let keys = keys.iter().filter(|key| self.commands.by_agent.contains_key(*key)).cloned().collect();
        self.decide_commands(keys).await
    }

    /// Settles those whose time is over.
    pub(super) async fn expire_commands(&mut self) -> Result<(), Restart> {
        let now = self.now();
        let over = self.commands.due.iter().take_while(|(due, ..)| *due <= now);
        let keys: BTreeSet<_> = over.map(|(.., key)| key.clone()).collect();
        self.decide_commands(keys.into_iter().collect()).await
    }

    async fn decide_commands(&mut self, keys: Vec<AgentKey>) -> Result<(), Restart> {
        for keys in keys.chunks(AGENTS) {
            let keys: BTreeSet<_> = keys.iter().cloned().collect();
            let batch = Batch::new(self.now(), self.shared.intents.planners());
            self.remember(&batch, &keys).await?;
            let now = self.now();
            let mut due: BTreeMap<Tenant, Vec<CommandId>> = BTreeMap::new();
            for key in &keys {
                let live = self.cache.get(key).is_some_and(|stored| stored.agent.live_session().is_some());
                let of_agent = self.commands.of(key).filter(|(_, expires_at)| live || *expires_at <= now);
                let of_agent: Vec<_> = of_agent.map(|(id, _)| id).collect();
                if !of_agent.is_empty() {
                    due.entry(key.tenant.clone()).or_default().extend(of_agent);
                }
            }
            for (tenant, mut ids) in due {
                // As they were given, whosever they are.
                ids.sort_unstable();
                for ids in ids.chunks(CHUNK) {
                    let commands = self.shared.engines.commands.commands(&tenant, ids).await?;
                    self.settle(&keys, &tenant, ids, commands).await?;
                }
            }
        }
        Ok(())
    }

    /// Decides on these commands, all of agents that are remembered; settles what is decided; sends what
    /// is to be sent.
    async fn settle(
        &mut self,
        keys: &BTreeSet<AgentKey>,
        tenant: &Tenant,
        ids: &[CommandId],
        mut commands: Vec<Command>,
    ) -> Result<(), Restart> {
        // What is not queued any more was settled after the look, here or elsewhere.
        commands.retain(|command| command.state.status == Status::Queued && keys.contains(&command.key));
        let gone: BTreeSet<_> =
            ids.iter().filter(|id| commands.iter().all(|command| command.id != **id)).collect();
        for key in keys {
            let gone: Vec<_> =
                self.commands.of(key).map(|(id, _)| id).filter(|id| gone.contains(id)).collect();
            gone.into_iter().for_each(|id| self.commands.remove(key, id));
        }
        loop {
            let now = self.now();
            let mut outgoing = Vec::new();
            let mut settled: Vec<(&Command, CommandState)> = Vec::new();
            for command in &commands {
                let agent = self.cache.get(&command.key).map(|stored| &stored.agent);
                let state = match decide(&command.action, command.expires_at, agent, now) {
                    Decision::Wait(_) => continue,
                    Decision::Refuse(why) => CommandState::settled(Status::Refused, why.to_string(), now),
                    Decision::Expire(why) => CommandState::settled(Status::Expired, why.to_string(), now),
                    Decision::Send(session) => {
                        outgoing.push(OutgoingCommand {
                            key: command.key.clone(),
                            session: session.id,
                            gateway: session.gateway.clone(),
                            polls: session.transport == Transport::Http,
                            id: command.id,
                            expires_at: command.expires_at,
                            action: command.action.clone(),
                        });
                        CommandState::settled(Status::Sent, "", now)
                    }
                };
                settled.push((command, state));
            }
            if settled.is_empty() {
                return Ok(());
            }
            let of_commit = settled.iter().map(|(command, state)| SettledCommand {
                tenant: tenant.clone(),
                id: command.id,
                state: state.clone(),
            });
            let commit = Commit {
                commands: of_commit.collect(),
                ..self.commit(self.progress(), BTreeMap::new(), Vec::new())
            };
            match self.write(commit).await {
                Ok(row) => self.row = row,
                Err(CommitError::CommandMoved(moved)) => {
                    if let Some(at) = commands.iter().position(|command| command.id == moved) {
                        let command = commands.remove(at);
                        self.commands.remove(&command.key, moved);
                        continue;
                    }
                    return Err(Restart::RowMoved);
                }
                Err(CommitError::RowMoved | CommitError::IntentMoved(_)) => return Err(Restart::RowMoved),
                Err(CommitError::Engine(engine)) => return Err(Restart::Engine(engine)),
                Err(CommitError::Rejected { reason }) => {
                    // Nothing of it was sent. A worker that begins anew finds them queued again.
                    error!(%tenant, commands = commands.len(), error = reason, "commands cannot be settled: they are left queued");
                    commands.iter().for_each(|command| self.commands.remove(&command.key, command.id));
                    return Ok(());
                }
            }
            for (command, state) in settled {
                self.commands.remove(&command.key, command.id);
                self.tell_settled(command, &state);
            }
            offers::send_commands(self.shared, outgoing).await;
            return Ok(());
        }
    }

    fn tell_settled(&self, command: &Command, state: &CommandState) {
        let (action, status) = (command.action.name(), state.status.name());
        self.shared.metrics.commands.with_label_values(&[action, status]).inc();
        let (tenant, agent_id) = (&command.key.tenant, &command.key.uid);
        info!(event = "command_settled", %tenant, %agent_id, command = %command.id, action, status, actor = command.actor, reason = state.reason, "a command was decided on");
    }
}
