//! Removes blobs that nothing refers to any more.
//!
//! Who puts a blob refers to it within [`USED_WITHIN`]. So of all that was put before some moment, every
//! reference from an entry of the log is there a while later; from then on it is enough that each partition
//! is folded past its last entry of that time. Then everything goes that was put before that moment and not
//! again since: a content that is put once more counts as new, however old it is.
//!
//! - A crash of control, or of the one that removes: nothing is remembered but in memory, so the next one
//!   begins anew with a later moment. That costs time alone. Several at once do the same thing.
//! - Slow folds: positions are those of committed transactions; blobs wait for the slowest partition.
//! - A worker that was halted, and reads entries that another one has folded meanwhile, may miss a blob: its
//!   transaction fails as any that comes too late, so nothing is quarantined for it.
//! - A lost log: positions of two lives of a log cannot be compared, so a new epoch is a new beginning, and
//!   a partition whose row is not known to be of the present log counts as not folded.
//! - A lost store of blobs: moments are of one life of the store and have no effect on another.
//! - A gateway that was halted between its put and its publish gives the report up; one that is halted in the
//!   very instant between its look at the clock and the publish leaves an entry without its blob. That is
//!   quarantined, and the agent asked for its full state.
//!
//! [`USED_WITHIN`]: muster_ports::blobs::USED_WITHIN

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use muster_domain::ids::Partition;
use muster_ports::EngineError;
use muster_ports::blobs::{Mark, USED_WITHIN};
use muster_ports::log::Position;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::Shared;

/// How long after a moment everything that refers to earlier blobs is taken to be in the log. More than
/// twice what publishers have.
const REFERRED_AFTER: Duration = Duration::from_secs(2 * USED_WITHIN.as_secs() + 30);
/// How often a moment is noted, and looked whether another one's blobs can go.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Moments that are kept; more than pass before the first one counts.
const MARKS: usize = 16;
/// Longest wait for one look.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long the folds may take before an operator is told, and how often then.
const TELL_AFTER: Duration = Duration::from_secs(600);

/// What is to be removed.
#[derive(Default)]
struct Janitor {
    /// Moments, and when they were, the last one last. What refers to blobs before them may still be
    /// published.
    marks: VecDeque<(Mark, Instant)>,
    /// The one whose blobs go when partitions are folded so far.
    folding: Option<Folding>,
}

struct Folding {
    mark: Mark,
    /// The partitions that were not seen to be folded so far.
    ends: Vec<End>,
    told: Instant,
}

/// Where a partition's log ended.
struct End {
    partition: Partition,
    /// The epoch of the row at that moment.
    epoch: u64,
    position: Position,
}

/// Removes blobs until `stop`.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut janitor = Janitor::default();
    loop {
        let look = async {
            tokio::time::sleep(LOOK_EVERY).await;
            timeout(DEADLINE, janitor.look(&shared)).await
        };
        let error = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            look = look => match look {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            },
        };
        if let Some(more) = shared.outages.blobs.tell((shared.engines.clock)()) {
            warn!(error, more, "blobs that are read cannot be removed now; it is tried again");
        }
    }
}

impl Janitor {
    /// Does what can be done now. After an error it goes on from where it was.
    async fn look(&mut self, shared: &Shared) -> Result<(), EngineError> {
        let mark = shared.engines.blobs.mark().await?;
        shared.metrics.blob_bytes.set(i64::try_from(mark.bytes).unwrap_or(i64::MAX));
        if mark.bytes == 0 {
            // What it was to remove is gone already.
            *self = Self::default();
            return Ok(());
        }
        if self.marks.len() < MARKS && self.marks.back().is_none_or(|(last, _)| *last != mark) {
            self.marks.push_back((mark, Instant::now()));
        }
        if self.folding.is_none() {
            let due = self.marks.iter().take_while(|(_, at)| at.elapsed() >= REFERRED_AFTER).count();
            let Some((mark, _)) = due.checked_sub(1).and_then(|last| self.marks.get(last)) else {
                return Ok(());
            };
            self.folding = Some(Folding { mark: *mark, ends: ends(shared).await?, told: Instant::now() });
            self.marks.drain(..due);
        }
        let Some(Folding { mark, ends, told }) = &mut self.folding else { return Ok(()) };
        match folded(shared, ends).await? {
            Folded::All => {
                shared.engines.blobs.remove_before(mark).await?;
                debug!(bytes = mark.bytes, "removed blobs that were read");
                self.folding = None;
            }
            Folded::Not(partition) if told.elapsed() >= TELL_AFTER => {
                *told = Instant::now();
                warn!(event = "blobs_wait", %partition, bytes = mark.bytes, "blobs cannot be removed before the partition's log is folded");
            }
            Folded::Not(_) => {}
            Folded::AnotherLog => *self = Self::default(),
        }
        Ok(())
    }
}

/// Where every partition's log ends now.
async fn ends(shared: &Shared) -> Result<Vec<End>, EngineError> {
    let mut ends = Vec::new();
    for partition in Partition::all() {
        let epoch = shared.engines.fold.partition(&shared.settings.cell, partition).await?.epoch;
        let position = shared.engines.log.last(partition).await?;
        ends.push(End { partition, epoch, position });
    }
    Ok(ends)
}

/// How far the folds are.
enum Folded {
    /// Every partition is past its end.
    All,
    /// This one is not.
    Not(Partition),
    /// The log is another one since.
    AnotherLog,
}

async fn folded(shared: &Shared, ends: &mut Vec<End>) -> Result<Folded, EngineError> {
    while let Some(End { partition, epoch, position }) = ends.last() {
        if *position > Position::default() {
            let row = shared.engines.fold.partition(&shared.settings.cell, *partition).await?;
            if row.epoch != *epoch {
                return Ok(Folded::AnotherLog);
            }
            let is_past = row.position >= *position
                && shared.engines.log.id_at(*partition, row.position).await? == row.message;
            if !is_past {
                return Ok(Folded::Not(*partition));
            }
        }
        // What is folded once stays folded.
        ends.pop();
    }
    Ok(Folded::All)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use muster_adapters_memory::{
        MemoryBlobs, MemoryBus, MemoryKeyValue, MemoryLog, MemoryOwnership, MemoryStore,
    };
    use muster_domain::ids::{MessageId, Tenant, Timestamp};
    use muster_ports::blobs::{BlobRef, Blobs as _};
    use muster_ports::host::{Random, Spawner};
    use muster_ports::log::Log as _;
    use muster_ports::store::{Commit, FoldStore as _};
    use prometheus::Registry;
    use tokio::time::advance;
    use uuid::Uuid;

    use super::*;
    use crate::{Engines, Metrics, Settings};

    /// A cluster whose partitions are folded by hand.
    struct Rig {
        janitor: Janitor,
        shared: Shared,
        log: Arc<MemoryLog>,
        store: Arc<MemoryStore>,
        blobs: Arc<MemoryBlobs>,
    }

    fn shared(log: &Arc<MemoryLog>, store: &Arc<MemoryStore>, blobs: &Arc<MemoryBlobs>) -> Shared {
        let engines = Engines {
            log: log.clone(),
            blobs: blobs.clone(),
            bus: Arc::new(MemoryBus::default()),
            leases: Arc::new(MemoryKeyValue::new(None)),
            values: Arc::new(MemoryKeyValue::new(None)),
            polls: Arc::new(MemoryOwnership::new()),
            fold: store.clone(),
            components: store.clone(),
            intent: store.clone(),
            commands: store.clone(),
            rollouts: store.clone(),
            fleet: store.clone(),
            clock: Arc::new(|| Timestamp(1)),
            random: Random::new(|| 1),
            spawner: Spawner::new(|task| drop(tokio::spawn(task))),
        };
        let metrics = Metrics::register(&Registry::new()).unwrap();
        Shared::new(Settings::new("default".parse().unwrap(), "control"), engines, metrics)
    }

    fn tenant() -> Tenant {
        "default".parse().unwrap()
    }

    fn partition(number: u16) -> Partition {
        Partition::new(number).unwrap()
    }

    impl Rig {
        fn new() -> Self {
            let (log, store) = (Arc::new(MemoryLog::default()), Arc::new(MemoryStore::new()));
            let blobs = Arc::new(MemoryBlobs::default());
            Self { janitor: Janitor::default(), shared: shared(&log, &store, &blobs), log, store, blobs }
        }

        async fn put(&self, content: &'static str) -> BlobRef {
            self.blobs.put(&tenant(), Bytes::from_static(content.as_bytes())).await.unwrap()
        }

        async fn is_there(&self, blob: &BlobRef) -> bool {
            self.blobs.get(&tenant(), blob).await.unwrap().is_some()
        }

        /// Publishes an entry.
        async fn publish(&self, number: u16) -> (Partition, Position, MessageId) {
            let id = MessageId(Uuid::now_v7());
            (partition(number), self.log.publish(partition(number), id, Bytes::new()).await.unwrap(), id)
        }

        /// Moves a partition's row up to an entry, as its worker does.
        async fn fold_in(&self, epoch: u64, (partition, position, id): (Partition, Position, MessageId)) {
            let cell = &self.shared.settings.cell;
            let commit = Commit {
                cell: cell.clone(),
                partition,
                generation: self.store.partition(cell, partition).await.unwrap().generation,
                progress: (epoch, position, Some(id)),
                decided_on: Default::default(),
                agents: Vec::new(),
                quarantined: Vec::new(),
                commands: Vec::new(),
                counts: Default::default(),
            };
            self.store.commit(commit).await.unwrap();
        }

        /// Looks as often as it does in this time.
        async fn look_for(&mut self, time: Duration) {
            let end = Instant::now() + time;
            while Instant::now() < end {
                advance(LOOK_EVERY).await;
                self.janitor.look(&self.shared).await.unwrap();
            }
        }
    }

    /// From a put until nothing can refer to it any more, with the looks between.
    const LONG: Duration = Duration::from_secs(240);

    #[tokio::test(start_paused = true)]
    async fn a_blob_goes_when_what_may_refer_to_it_is_folded() {
        let mut rig = Rig::new();
        let blob = rig.put("report").await;
        let entry = rig.publish(7).await;
        rig.fold_in(1, entry).await;
        // Another entry may refer to it and be on its way still.
        rig.look_for(2 * USED_WITHIN).await;
        assert!(rig.is_there(&blob).await);
        rig.look_for(LONG - 2 * USED_WITHIN).await;
        assert!(!rig.is_there(&blob).await, "it is kept for ever");
        assert_eq!(rig.blobs.mark().await.unwrap().bytes, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_blob_waits_for_the_slowest_partition() {
        let mut rig = Rig::new();
        let blob = rig.put("report").await;
        let (early, late) = (rig.publish(3).await, rig.publish(60).await);
        rig.fold_in(1, early).await;
        rig.look_for(Duration::from_secs(24 * 3600)).await;
        assert!(rig.is_there(&blob).await);
        rig.fold_in(1, late).await;
        rig.look_for(LOOK_EVERY).await;
        assert!(!rig.is_there(&blob).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_that_was_published_late_is_waited_for() {
        let mut rig = Rig::new();
        let blob = rig.put("report").await;
        rig.look_for(USED_WITHIN).await;
        let entry = rig.publish(3).await;
        rig.look_for(2 * LONG).await;
        assert!(rig.is_there(&blob).await);
        rig.fold_in(1, entry).await;
        rig.look_for(LOOK_EVERY).await;
        assert!(!rig.is_there(&blob).await);
    }

    #[tokio::test(start_paused = true)]
    async fn later_entries_are_not_waited_for() {
        let mut rig = Rig::new();
        let blob = rig.put("report").await;
        let entry = rig.publish(3).await;
        rig.look_for(LONG).await;
        // The partition never catches up with its log from here on.
        rig.publish(3).await;
        rig.fold_in(1, entry).await;
        rig.look_for(LOOK_EVERY).await;
        assert!(!rig.is_there(&blob).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_content_that_is_put_again_meanwhile_stays() {
        let mut rig = Rig::new();
        let (again, once) = (rig.put("again").await, rig.put("once").await);
        let first = rig.publish(3).await;
        // It is known by now what has to be folded.
        rig.look_for(LONG).await;
        rig.put("again").await;
        let second = rig.publish(3).await;
        rig.fold_in(1, first).await;
        rig.look_for(LOOK_EVERY).await;
        assert!((rig.is_there(&again).await, rig.is_there(&once).await) == (true, false));
        rig.fold_in(1, second).await;
        rig.look_for(LONG).await;
        assert!(!rig.is_there(&again).await);
    }

    #[tokio::test(start_paused = true)]
    async fn blobs_that_come_all_the_time_go_all_the_time() {
        let mut rig = Rig::new();
        let mut put = Vec::new();
        for number in 0..100_u32 {
            let content = number.to_be_bytes().to_vec();
            put.push(rig.blobs.put(&tenant(), content.into()).await.unwrap());
            let entry = rig.publish(3).await;
            rig.fold_in(1, entry).await;
            rig.look_for(LOOK_EVERY).await;
        }
        let mut there = 0;
        for blob in &put {
            there += usize::from(rig.is_there(blob).await);
        }
        // As many as come in the time that each is kept.
        let kept = usize::try_from((REFERRED_AFTER.as_secs() / LOOK_EVERY.as_secs()) + 2).unwrap();
        assert!(there <= kept, "{there} blobs are there");
        assert!(rig.janitor.marks.len() <= kept);
    }

    #[tokio::test(start_paused = true)]
    async fn a_row_of_another_log_is_not_folded() {
        let mut rig = Rig::new();
        for _ in 0..5 {
            rig.publish(3).await;
        }
        let old = rig.publish(3).await;
        rig.fold_in(1, old).await;
        // The log is lost, and what is in the new one is not looked at yet.
        let log = Arc::new(MemoryLog::default());
        rig.shared = shared(&log, &rig.store, &rig.blobs);
        rig.log = log;
        let blob = rig.put("report").await;
        let entry = rig.publish(3).await;
        assert!(old.1 > entry.1, "by its number it would be folded");
        rig.look_for(10 * LONG).await;
        assert!(rig.is_there(&blob).await);
        // The worker notices and begins a new epoch. What was waited for is worth nothing then.
        rig.fold_in(2, entry).await;
        rig.look_for(LOOK_EVERY).await;
        assert!(rig.is_there(&blob).await);
        rig.look_for(LONG).await;
        assert!(!rig.is_there(&blob).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_is_lost_while_it_is_waited_for_does_not_keep_blobs_for_ever() {
        let mut rig = Rig::new();
        for _ in 0..5 {
            rig.publish(3).await;
        }
        let blob = rig.put("report").await;
        rig.publish(3).await;
        rig.look_for(LONG).await;
        assert!(rig.is_there(&blob).await);
        let log = Arc::new(MemoryLog::default());
        rig.shared = shared(&log, &rig.store, &rig.blobs);
        rig.log = log;
        let entry = rig.publish(3).await;
        rig.fold_in(2, entry).await;
        rig.look_for(2 * LONG).await;
        assert!(!rig.is_there(&blob).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_janitor_that_begins_anew_keeps_what_is_not_folded() {
        let mut rig = Rig::new();
        let blob = rig.put("report").await;
        let entry = rig.publish(3).await;
        for _ in 0..5 {
            rig.look_for(LONG).await;
            rig.janitor = Janitor::default();
        }
        assert!(rig.is_there(&blob).await);
        rig.fold_in(1, entry).await;
        rig.look_for(LONG).await;
        assert!(!rig.is_there(&blob).await);
    }
}
