//! An intent after a change.

use super::{Intent, IntentChange, MAX_RETRIES};
use crate::ids::IntentRevision;

impl Intent {
    /// The intent as it is once this change, planned on it, is written.
    pub fn with(&self, change: &IntentChange) -> Self {
        let mut after = self.clone();
        after.apply(change);
        after
    }

    /// Does what [`Intent::with`] says to this intent.
    pub fn apply(&mut self, change: &IntentChange) {
        if change.is_empty() {
            return;
        }
        for name in &change.removed_assignments {
            self.assignments.remove(name);
        }
        for name in &change.removed_templates {
            self.templates.remove(name);
        }
        for revision in &change.templates {
            self.templates.entry(revision.name.clone()).or_default().push(revision.clone());
        }
        for assignment in &change.assignments {
            self.assignments.insert(assignment.name.clone(), assignment.clone());
        }
        for (object, owner) in &change.owners {
            match owner {
                Some(owner) => self.owners.insert(object.clone(), owner.clone()),
                None => self.owners.remove(object),
            };
        }
        for strategy in &change.strategies {
            self.strategies.insert(strategy.name.clone(), strategy.clone());
        }
        self.revision.0 += 1;
        for assignment in &change.floors {
            self.floors.insert(assignment.clone(), self.revision);
        }
        for uid in &change.retries {
            self.retries.insert(*uid, self.revision);
        }
        self.forget_oldest_retries();
    }

    /// Forgets the oldest retries where there are too many; those of one revision go together.
    fn forget_oldest_retries(&mut self) {
        if self.retries.len() <= MAX_RETRIES {
            return;
        }
        let mut revisions: Vec<IntentRevision> = self.retries.values().copied().collect();
        revisions.sort_unstable_by(|a, b| b.cmp(a));
        if let Some(oldest) = revisions.get(MAX_RETRIES).copied() {
            self.retries.retain(|_, revision| *revision > oldest);
        }
    }
}
