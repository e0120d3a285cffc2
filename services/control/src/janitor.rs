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
#[path = "janitor_tests.rs"]
mod tests;
