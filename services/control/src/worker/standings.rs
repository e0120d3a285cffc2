//! Where the partition's agents stand in rollouts: counted with every commit that moves one.

use std::collections::BTreeMap;

use muster_domain::ids::{IntentRevision, RolloutId, Tenant};
use muster_domain::rollout::Standing;
use muster_ports::rollouts::PartitionCounts;

use super::{Restart, Worker};

/// Agents of a tenant that stand elsewhere in a rollout: from where to where.
pub(crate) type Moves = Vec<(Tenant, RolloutId, Option<Standing>, Option<Standing>)>;

/// The counts that these moves change, as they are then.
pub(super) fn counted(counts: &PartitionCounts, moves: Moves) -> PartitionCounts {
    let mut changed = PartitionCounts::new();
    for (tenant, rollout, before, after) in moves {
        let key = (tenant, rollout);
        let known = || counts.get(&key).cloned().unwrap_or_default();
        changed.entry(key.clone()).or_insert_with(known).step(before, after);
    }
    changed
}

impl Worker<'_> {
    /// Notes that all agents of these tenants were looked at with these revisions, where a rollout is under
    /// way: only then its counts say something of the stage that it is in.
    pub(super) async fn note_looked_at(
        &mut self,
        looked_at: &BTreeMap<Tenant, IntentRevision>,
    ) -> Result<(), Restart> {
        let planners = self.shared.intents.planners();
        let mut counts = PartitionCounts::new();
        for (tenant, revision) in looked_at {
            let Some(planner) = planners.get(tenant) else { continue };
            for rollout in planner.under_way() {
                let key = (tenant.clone(), rollout);
                let mut known = self.counts.get(&key).cloned().unwrap_or_default();
                if known.looked_at < *revision {
                    known.looked_at = *revision;
                    counts.insert(key, known);
                }
            }
        }
        // What has ended is not kept in mind.
        self.counts.retain(|(tenant, rollout), _| {
            planners.get(tenant).is_some_and(|planner| planner.is_under_way(*rollout))
        });
        if counts.is_empty() {
            return Ok(());
        }
        let mut commit = self.commit(self.progress(), BTreeMap::new(), Vec::new());
        commit.counts = counts.clone();
        self.row = self.write(commit).await?;
        self.take_counts(counts);
        Ok(())
    }

    /// Keeps in mind what was committed.
    pub(super) fn take_counts(&mut self, counts: PartitionCounts) {
        if !counts.is_empty() {
            self.counts.extend(counts);
            self.shared.rollouts.counted();
        }
    }
}
