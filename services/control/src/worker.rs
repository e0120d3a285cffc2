//! One partition's worker: folds its log, keeps its agents' desired state, sends their offers.
//!
//! Every transaction first moves the partition row by compare-and-swap. When it did not move, another
//! worker was there: what this one remembers is dropped, and it begins again from the row. So order,
//! redelivery, two workers at once, and a crash between write and acknowledgement are one case.

pub(crate) mod batch;
pub(crate) mod commands;
mod components;
mod epoch;
mod news;
mod read;
mod silent;
pub(crate) mod standings;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use muster_domain::agent::EndReason;
use muster_domain::ids::{AgentKey, Incarnation, IntentRevision, MessageId, Partition, Tenant, Timestamp};
use muster_ports::EngineError;
use muster_ports::log::{LogEntry, Position};
use muster_ports::rollouts::PartitionCounts;
use muster_ports::store::{Commit, CommitError, PartitionRow, StoredAgent};
use muster_proto::Message;
use muster_proto::bus::GatewayLease;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::changes::Watcher;
use crate::mail::Route;
use crate::polls::Polls;
use crate::trace::Folding;
use crate::worker::batch::{Batch, Happened};
use crate::worker::components::Lists;
use crate::worker::news::{News, next_news};
use crate::worker::read::{Bad, Part};
use crate::{Shared, decode, intents::Planners, offers};

/// Agents remembered between batches.
const CACHE: usize = 64;
/// Agents looked at in one transaction of a sweep.
const PAGE: usize = 500;
/// First and longest wait before a worker that failed begins again.
const RESTART: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Agents that poll are looked at no more often than this.
const SHORTEST_LOOK: Duration = Duration::from_millis(500);
/// A worker that stops folds what comes within this time after the entry before.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// Epoch, last folded position, and the id of the entry there.
type Progress = (u64, Position, Option<MessageId>);

/// Why a worker has to begin again from the partition row.
#[derive(Debug, thiserror::Error)]
enum Restart {
    #[error("another worker moved the partition row")]
    RowMoved,
    #[error("the store refused the commit: {0}")]
    Rejected(String),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

struct Worker<'a> {
    shared: &'a Shared,
    partition: Partition,
    row: PartitionRow,
    /// Agents as they are stored, with labels as of `cached_at`.
    cache: BTreeMap<AgentKey, StoredAgent>,
    cached_at: BTreeMap<Tenant, IntentRevision>,
    /// Revision of each tenant's intent that all agents of the partition were decided on.
    looked_at: BTreeMap<Tenant, IntentRevision>,
    /// Agents whose offer is repeated at that time unless they report.
    due: BTreeSet<(Timestamp, AgentKey)>,
    due_at: BTreeMap<AgentKey, Timestamp>,
    /// Lives of gateways that have sessions and no lease, and since when this worker knows.
    gone: BTreeMap<Incarnation, Instant>,
    /// Live sessions of agents that poll.
    polls: Polls,
    /// Traces of the entries that are folded now.
    folding: Folding,
    stop: &'a CancellationToken,
    lists: Lists,
    /// Commands that are queued for its agents.
    commands: commands::Waiting,
    /// Where its agents stand in rollouts, as it is stored.
    counts: PartitionCounts,
}

impl From<CommitError> for Restart {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Engine(error) => Self::Engine(error),
            CommitError::Rejected { reason } => Self::Rejected(reason),
            CommitError::RowMoved | CommitError::IntentMoved(_) | CommitError::CommandMoved(_) => {
                Self::RowMoved
            }
        }
    }
}

/// Works on a partition until `stop`.
pub(crate) async fn run(
    shared: Arc<Shared>,
    partition: Partition,
    mut changed: Watcher,
    mut queued: Watcher,
    stop: CancellationToken,
) {
    let mut wait = RESTART.0;
    while !stop.is_cancelled() {
        let began = Instant::now();
        let Err(restart) = work(&shared, partition, &mut changed, &mut queued, &stop).await else { return };
        if stop.is_cancelled() {
            return debug!(%partition, error = %restart, "a partition's worker ends in the middle of its work");
        }
        if began.elapsed() > RESTART.1 {
            wait = RESTART.0;
        }
        if let Some(more) = shared.outages.workers.tell((shared.engines.clock)()) {
            warn!(%partition, error = %restart, more, "a partition's worker begins again");
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = (wait * 2).min(RESTART.1);
    }
}

async fn work(
    shared: &Shared,
    partition: Partition,
    changed: &mut Watcher,
    queued: &mut Watcher,
    stop: &CancellationToken,
) -> Result<(), Restart> {
    let row = shared.engines.fold.partition(&shared.settings.cell, partition).await?;
    // Read after the row: if they are newer than it, the first commit is refused.
    let counts = shared.engines.rollouts.partition_counts(&shared.settings.cell, partition).await?;
    let mut worker = Worker {
        shared,
        partition,
        row,
        cache: BTreeMap::new(),
        cached_at: BTreeMap::new(),
        looked_at: BTreeMap::new(),
        due: BTreeSet::new(),
        due_at: BTreeMap::new(),
        gone: BTreeMap::new(),
        polls: Polls::new(shared.metrics.polling_agents.clone()),
        folding: Folding::default(),
        stop,
        lists: Lists::default(),
        commands: commands::Waiting::default(),
        counts,
    };
    worker.verify_epoch().await?;
    let mut reader = loop {
        let reader = shared.engines.log.read(partition, worker.row.position).await?;
        // A log that took the place of the verified one before it was opened would be read from the middle.
        if worker.is_log_known().await? {
            break reader;
        }
        worker.verify_epoch().await?;
    };
    changed.mark_seen();
    worker.look_at_all(&shared.intents.planners(), true).await?;
    // What was queued before this worker began.
    worker.take_commands(shared.commands.queued().get(&partition).map_or(&[], Vec::as_slice)).await?;

    let mut sweep = tokio::time::interval(shared.settings.sweep_every);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let look_every = (shared.settings.poll_deadline / 3).min(shared.settings.sweep_every).max(SHORTEST_LOOK);
    let mut silent = tokio::time::interval(look_every);
    silent.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut purged = Position::default();
    let mut intent_first = true;
    loop {
        let due = worker.next_due();
        // None starves: the stop comes once, what is due and ticks are far apart and stay due while
        // others are served, and the log and the intent take turns.
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = tokio::time::sleep_until(due) => {
                worker.repeat_offers().await?;
                worker.expire_commands().await?;
            }
            // Looks are as far apart as wake-ups and ticks.
            () = queued.changed() => {
                let queued = shared.commands.queued();
                worker.take_commands(queued.get(&partition).map_or(&[], Vec::as_slice)).await?;
            }
            _ = sweep.tick() => {
                worker.verify_row().await?;
                worker.tell_epoch().await?;
                worker.end_orphans().await?;
                worker.lists.ask(shared).await;
                if !worker.gone.is_empty() {
                    // A lease that comes back meanwhile is to be seen.
                    sweep.reset_after(shared.settings.orphan_grace / 4);
                }
                // What is folded may go, but for the entry that the log is recognised by.
                if worker.row.position != purged {
                    purged = worker.row.position;
                    shared.engines.log.purge(partition, purged).await?;
                }
            }
            _ = silent.tick() => worker.end_silent().await?,
            news = next_news(&mut *reader, changed, intent_first, shared.settings.max_batch) => match news {
                News::Entries(entries) => {
                    worker.fold(entries?).await?;
                    intent_first = true;
                }
                News::Intent => {
                    worker.look_at_all(&shared.intents.planners(), false).await?;
                    intent_first = false;
                }
            }
        }
    }
    if !shared.settings.fold_last_words {
        return Ok(());
    }
    // What gateways said last, such as the ends of their sessions, is still there to be folded.
    while let Ok(entries) = tokio::time::timeout(LAST_WORDS, reader.next(shared.settings.max_batch)).await {
        worker.fold(entries?).await?;
    }
    Ok(())
}

impl Worker<'_> {
    fn now(&self) -> Timestamp {
        (self.shared.engines.clock)()
    }

    fn commit(
        &self,
        progress: Progress,
        decided_on: BTreeMap<Tenant, IntentRevision>,
        agents: Vec<muster_ports::store::AgentWrite>,
    ) -> Commit {
        Commit {
            cell: self.shared.settings.cell.clone(),
            partition: self.partition,
            generation: self.row.generation,
            progress,
            decided_on,
            agents,
            quarantined: Vec::new(),
            commands: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    async fn write(&self, commit: Commit) -> Result<PartitionRow, CommitError> {
        let result = self.shared.engines.fold.commit(commit).await;
        let label = match &result {
            Ok(_) => "committed",
            Err(CommitError::RowMoved) => "row_moved",
            Err(CommitError::IntentMoved(_)) => "intent_moved",
            Err(CommitError::CommandMoved(_)) => "command_moved",
            Err(CommitError::Rejected { .. }) => "rejected",
            Err(CommitError::Engine(_)) => "failed",
        };
        self.shared.metrics.commits.with_label_values(&[label]).inc();
        result
    }

    /// Folds entries. If the store refuses them for a lasting reason, the one at fault is found by
    /// halving, quarantined, and its agent asked for full state; the rest is folded.
    async fn fold(&mut self, entries: Vec<LogEntry>) -> Result<(), Restart> {
        let mut parts = vec![entries];
        while let Some(mut part) = parts.pop() {
            let read = read::read(self.shared, &part, self.stop).await?;
            let rest = part.split_off(read.items.len());
            if !rest.is_empty() {
                parts.push(rest);
            }
            match self.fold_part(&part, read).await {
                Err(Restart::Rejected(reason)) if part.len() <= 1 => {
                    for entry in part {
                        self.quarantine(&entry, &reason).await?;
                    }
                }
                Err(Restart::Rejected(_)) => {
                    let rest = part.split_off(part.len() / 2);
                    parts.extend([rest, part]);
                }
                result => result?,
            }
        }
        self.folding = Folding::default();
        Ok(())
    }

    /// Folds entries, decides for the agents that they touch, writes all of it at once.
    async fn fold_part(&mut self, entries: &[LogEntry], part: Part) -> Result<(), Restart> {
        let Some(last) = entries.last() else { return Ok(()) };
        let progress = (self.row.epoch, last.position, Some(last.id));
        let timer = self.shared.metrics.fold_time.start_timer();
        let mut decoded = Vec::with_capacity(entries.len());
        let mut unusable = Vec::new();
        self.folding = Folding::default();
        for (entry, item) in entries.iter().zip(part.items) {
            match item {
                Ok(read) => {
                    if let Some(trace) = read.trace {
                        self.folding.add(&read.key, &trace, self.partition, entries.len());
                    }
                    decoded.push((read.key, read.entry));
                }
                Err(bad) => unusable.push((entry, bad)),
            }
        }
        let keys: BTreeSet<_> = decoded.iter().map(|(key, _)| key.clone()).collect();
        loop {
            let mut batch = Batch::new(self.now(), self.shared.intents.planners());
            self.remember(&batch, &keys).await?;
            for (key, entry) in &decoded {
                batch.fold(key, self.cache.get(key), entry.clone());
            }
            for (entry, bad) in &unusable {
                batch.quarantine(entry, bad.key(), &bad.reason);
            }
            if self.finish(batch, progress).await? {
                break;
            }
        }
        for (entry, bad) in unusable {
            self.quarantined(entry, &bad).await;
        }
        self.shared.metrics.folded.inc_by(entries.len() as u64);
        timer.observe_duration();
        self.commands_of(&keys).await
    }

    /// Passes over an entry that the store refuses, keeps it for people, and asks its agent for full
    /// state.
    async fn quarantine(&mut self, entry: &LogEntry, reason: &str) -> Result<(), Restart> {
        let decoded = decode::envelope(entry.payload.clone()).ok();
        let from = decoded.map(|read| (read.key, Route::from(&read.entry)));
        let bad = Bad { reason: reason.to_owned(), from };
        let mut batch = Batch::new(self.now(), self.shared.intents.planners());
        batch.quarantine(entry, bad.key(), reason);
        self.finish(batch, (self.row.epoch, entry.position, Some(entry.id))).await?;
        self.quarantined(entry, &bad).await;
        Ok(())
    }

    /// Tells of an entry that was passed over, and asks its agent for full state.
    async fn quarantined(&self, entry: &LogEntry, bad: &Bad) {
        self.shared.metrics.quarantined.inc();
        let (tenant, agent_id) =
            bad.key().map(|key| (key.tenant.to_string(), key.uid.to_string())).unwrap_or_default();
        let reason = &bad.reason;
        error!(event = "report_quarantined", partition = %self.partition, position = entry.position.0, tenant, agent_id, error = reason, "a report cannot be folded: it is kept in quarantine and passed over");
        if let Some((key, route)) = &bad.from {
            offers::request_full_state(self.shared, key, route).await;
        }
    }

    /// Loads these agents unless they are remembered. What is remembered of a tenant whose intent
    /// has moved is forgotten: labels are part of intent.
    async fn remember(&mut self, batch: &Batch, keys: &BTreeSet<AgentKey>) -> Result<(), Restart> {
        if self.cache.len() > CACHE {
            self.cache.clear();
        }
        for tenant in keys.iter().map(|key| &key.tenant).collect::<BTreeSet<_>>() {
            let revision = batch.revision(tenant);
            if self.cached_at.insert(tenant.clone(), revision) != Some(revision) {
                self.cache.retain(|key, _| key.tenant != *tenant);
            }
        }
        let missing: Vec<_> = keys.iter().filter(|key| !self.cache.contains_key(*key)).cloned().collect();
        if !missing.is_empty() {
            let stored = self.shared.engines.fold.agents(&self.shared.settings.cell, &missing).await?;
            self.cache.extend(stored.into_iter().map(|stored| (stored.agent.key.clone(), stored)));
        }
        Ok(())
    }

    /// Decides, writes, and does what follows. `false`: the intent has moved, decide again.
    async fn finish(&mut self, batch: Batch, progress: Progress) -> Result<bool, Restart> {
        let decided = batch.decide();
        if decided.writes.is_empty() && decided.quarantined.is_empty() && progress == self.progress() {
            self.schedule(&decided.waiting);
            return Ok(true);
        }
        self.lists.store(self.shared, &decided.lists).await;
        let counts = standings::counted(&self.counts, decided.moves);
        let commit = Commit {
            quarantined: decided.quarantined,
            counts: counts.clone(),
            ..self.commit(progress, decided.decided_on, decided.writes)
        };
        match self.write(commit).await {
            Ok(row) => self.row = row,
            Err(CommitError::IntentMoved(tenant)) => {
                debug!(%tenant, "the intent moved while agents were decided on: once more");
                self.shared.intents.refresh(self.shared).await?;
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        self.take_counts(counts);
        self.schedule(&decided.waiting);
        for stored in decided.stored {
            self.polls.note(&stored.agent);
            self.cache.insert(stored.agent.key.clone(), stored);
        }
        self.shared.events.tell(self.now(), decided.events.iter().map(Happened::told));
        for event in &decided.events {
            self.folding.within(&event.key, || event.tell(&self.shared.metrics));
        }
        for (key, old) in &decided.superseded {
            offers::close(self.shared, key, &old.into()).await;
        }
        offers::reclaim(self.shared, decided.outclaimed).await;
        offers::send(self.shared, decided.outgoing, decided.begun, &self.folding).await;
        if !decided.told_components.is_empty() {
            self.lists.note(decided.told_components);
            self.lists.ask(self.shared).await;
        }
        Ok(true)
    }

    /// Notes when each of these agents is to be looked at again, or that it need not be.
    fn schedule(&mut self, waiting: &BTreeMap<AgentKey, Option<Timestamp>>) {
        for (key, due) in waiting {
            if let Some(before) = self.due_at.remove(key) {
                self.due.remove(&(before, key.clone()));
            }
            if let Some(due) = due {
                self.due_at.insert(key.clone(), *due);
                self.due.insert((*due, key.clone()));
            }
        }
    }

    fn next_due(&self) -> Instant {
        let first = self.due.first().map(|(due, _)| *due).into_iter().chain(self.commands.next_due()).min();
        let first = first.map(|due| due.since(self.now()));
        Instant::now() + first.unwrap_or(Duration::from_secs(3600))
    }

    /// Looks again at agents that did not report on an offer in time.
    async fn repeat_offers(&mut self) -> Result<(), Restart> {
        let now = self.now();
        let late = self.due.iter().take_while(|(due, _)| *due <= now).take(PAGE);
        let keys: BTreeSet<_> = late.map(|(_, key)| key.clone()).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let gone = keys.iter().map(|key| (key.clone(), None)).collect();
        loop {
            let mut batch = Batch::new(now, self.shared.intents.planners());
            self.remember(&batch, &keys).await?;
            for stored in keys.iter().filter_map(|key| self.cache.get(key)) {
                batch.look_at(stored);
            }
            self.schedule(&gone);
            if self.finish(batch, self.progress()).await? {
                return Ok(());
            }
        }
    }

    fn progress(&self) -> Progress {
        (self.row.epoch, self.row.position, self.row.message)
    }

    /// Decides for all agents of the tenants whose intent moved since the last look, and at the
    /// worker's start for all agents.
    async fn look_at_all(&mut self, planners: &Planners, start: bool) -> Result<(), Restart> {
        let moved: BTreeMap<_, _> = planners
            .iter()
            .map(|(tenant, planner)| (tenant.clone(), planner.revision()))
            .filter(|(tenant, revision)| start || self.looked_at.get(tenant) != Some(revision))
            .collect();
        if moved.is_empty() && !start {
            return Ok(());
        }
        let mut after: Option<AgentKey> = None;
        loop {
            let cell = &self.shared.settings.cell;
            let page =
                self.shared.engines.fold.partition_agents(cell, self.partition, after.as_ref(), PAGE).await?;
            let Some(last) = page.last().map(|stored| stored.agent.key.clone()) else { break };
            if start {
                page.iter().for_each(|stored| self.polls.note(&stored.agent));
            }
            let keys: BTreeSet<_> = page
                .iter()
                .map(|stored| stored.agent.key.clone())
                .filter(|key| start || moved.contains_key(&key.tenant))
                .collect();
            let mut batch = Batch::new(self.now(), self.shared.intents.planners());
            for stored in page.iter().filter(|stored| keys.contains(&stored.agent.key)) {
                batch.look_at(stored);
            }
            while !self.finish(batch, self.progress()).await? {
                batch = Batch::new(self.now(), self.shared.intents.planners());
                self.remember(&batch, &keys).await?;
                for stored in keys.iter().filter_map(|key| self.cache.get(key)) {
                    batch.look_at(stored);
                }
            }
            after = Some(last);
        }
        self.note_looked_at(&moved).await?;
        self.looked_at.extend(moved);
        Ok(())
    }

    /// Ends sessions whose gateway's life has been over for the time of grace, by this worker's own
    /// observation: clocks of gateways have no part in it.
    async fn end_orphans(&mut self) -> Result<(), Restart> {
        let cell = self.shared.settings.cell.clone();
        let leases = self.shared.engines.leases.list(&format!("gateways/{cell}/")).await?;
        let live: Vec<_> = leases
            .iter()
            .filter_map(|(_, lease)| GatewayLease::decode(lease.value.clone()).ok())
            .filter_map(|lease| Incarnation::try_from(lease.incarnation.as_ref()).ok())
            .collect();
        let mut gone = BTreeMap::new();
        loop {
            let found = self.shared.engines.fold.orphans(&cell, self.partition, &live, PAGE).await?;
            let full_page = found.len() == PAGE;
            let mut batch = Batch::new(self.now(), self.shared.intents.planners());
            let mut ended = 0;
            for stored in &found {
                let Some(session) = stored.agent.live_session() else { continue };
                let since = self.gone.get(&session.incarnation).copied().unwrap_or_else(Instant::now);
                gone.insert(session.incarnation, since);
                if since.elapsed() >= self.shared.settings.orphan_grace {
                    batch.end_session(stored, EndReason::GatewayLost);
                    ended += 1;
                }
            }
            if ended > 0 {
                info!(partition = %self.partition, sessions = ended, "ended sessions of a gateway that is gone");
                // If the intent moved, the next sweep does it.
                self.finish(batch, self.progress()).await?;
            }
            if !full_page || ended == 0 {
                self.gone = gone;
                return Ok(());
            }
        }
    }
}
