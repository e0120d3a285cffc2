//! Which agents a stage admits: always the same for the same fleet, and those of a stage stay in the next.

use std::collections::BTreeSet;

use super::strategy::Size;
use crate::ids::{Digest, InstanceUid};

/// An agent that the change may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub uid: InstanceUid,
    /// Whether it matches what the stage asks for beside the assignment.
    pub is_of_stage: bool,
}

/// Agents that the change may reach, as they were found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Population {
    /// Those that the assignment and the strategy's target match and that accept remote config.
    pub candidates: Vec<Candidate>,
    /// The ledger.
    pub exposed: BTreeSet<InstanceUid>,
}

impl Population {
    /// Agents that the ledger is to have when the stage is full.
    pub fn target(&self, size: &Size) -> u64 {
        let exposed = self.exposed.len() as u64;
        let wanted = match size {
            Size::Share(share) => share.of(self.candidates.len() as u64),
            Size::Count(count) => *count,
            Size::Matching(_) => exposed + self.fresh(true).count() as u64,
        };
        wanted.max(exposed)
    }

    /// The next agents to admit, at most so many, in the order in which an assignment's agents always come.
    pub fn next(&self, assignment: &str, size: &Size, most: u64) -> Vec<InstanceUid> {
        let only_of_stage = matches!(size, Size::Matching(_));
        let mut fresh: Vec<_> = self
            .fresh(only_of_stage)
            .map(|candidate| (place(assignment, candidate.uid), candidate.uid))
            .collect();
        fresh.sort_unstable_by_key(|(place, uid)| (place.0, *uid));
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        fresh.into_iter().take(most).map(|(_, uid)| uid).collect()
    }

    fn fresh(&self, only_of_stage: bool) -> impl Iterator<Item = &Candidate> {
        self.candidates.iter().filter(move |candidate| {
            !self.exposed.contains(&candidate.uid) && (candidate.is_of_stage || !only_of_stage)
        })
    }
}

/// Where an agent stands among those of an assignment. It has nothing to do with the order of uids, which
/// follows the time at which agents were made; another assignment has another order.
fn place(assignment: &str, uid: InstanceUid) -> Digest {
    Digest::of_parts([b"muster-cohort-v1".as_slice(), assignment.as_bytes(), uid.as_bytes()])
}
