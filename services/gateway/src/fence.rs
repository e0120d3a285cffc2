//! What keeps a gateway from sending an offer that is superseded: floors, and its own lease.
//!
//! A gateway that was halted for a while, or cut off, cannot know what was rolled back meanwhile: until it
//! has renewed its lease and loaded the floors it sends no offers, and what it held before it never sends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use muster_domain::ids::{IntentRevision, Tenant};
use muster_ports::bus::Subscription;
use muster_ports::floors::{Floors, head, load};
use muster_ports::{EngineError, LEASE_TTL};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::Shared;
use crate::mailbox::Offer;

/// How often the floors are looked at without a wake-up; more often while none are loaded.
const LOOK_EVERY: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Longest wait for the bucket.
const DEADLINE: Duration = Duration::from_secs(2);

/// Why an offer is not sent. Control sends it again, if it is still wanted then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The lease was not renewed in time, now or since the session was claimed: what waited meanwhile is not
    /// told from what is new, and the agent may be elsewhere.
    LeaseLapsed,
    /// No floors are loaded.
    FloorsUnknown,
    /// An assignment of the offer has a higher floor.
    BelowFloor,
}

impl Refusal {
    /// As metrics name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::LeaseLapsed => "lease_lapsed",
            Self::FloorsUnknown => "floors_unknown",
            Self::BelowFloor => "below_floor",
        }
    }
}

/// The fence.
#[derive(Default)]
pub(crate) struct Fence {
    floors: ArcSwapOption<Floors>,
    /// When the renewal began by which the lease was renewed last.
    renewed: Mutex<Option<Instant>>,
    /// The floors have changed: the lease is to say so.
    pub(crate) risen: Notify,
}

impl Fence {
    /// The lease was renewed; the renewal began at this time.
    pub(crate) fn renewed(&self, at: Instant) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    /// Whether the lease holds.
    pub(crate) fn is_leased(&self) -> bool {
        let renewed = *self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        renewed.is_some_and(|at| at.elapsed() < LEASE_TTL)
    }

    /// Sum of the floors that this gateway keeps to.
    pub(crate) fn applied(&self) -> Option<u64> {
        self.floors.load().as_ref().map(|floors| floors.sum())
    }

    /// Why this offer may not be sent now.
    pub(crate) fn refusal(&self, shared: &Shared, tenant: &Tenant, offer: &Offer) -> Option<Refusal> {
        if offer.incarnation != shared.incarnation() || !self.is_leased() {
            return Some(Refusal::LeaseLapsed);
        }
        self.below_floor(tenant, offer.revision, &offer.assignments)
    }

    /// Why nothing of these assignments may be sent that was decided at this revision.
    fn below_floor(
        &self,
        tenant: &Tenant,
        revision: IntentRevision,
        assignments: &[String],
    ) -> Option<Refusal> {
        let floors = self.floors.load();
        let Some(floors) = floors.as_ref() else { return Some(Refusal::FloorsUnknown) };
        let is_below = |assignment: &String| revision < floors.of(tenant, assignment);
        assignments.iter().any(is_below).then_some(Refusal::BelowFloor)
    }

    /// Loads the floors if they are others than those applied.
    async fn look(&self, shared: &Shared) -> Result<(), EngineError> {
        let (bucket, cell) = (shared.engines.values.as_ref(), &shared.settings.cell);
        let applied = self.applied();
        if applied.is_some() && head(bucket, cell).await? == applied {
            return Ok(());
        }
        let loaded = load(bucket, cell).await?;
        let changed = loaded.as_ref().map(Floors::sum) != applied;
        self.floors.store(loaded.map(Arc::new));
        if changed {
            self.risen.notify_one();
        }
        Ok(())
    }
}

/// Keeps to the floors until `stop`, and looks for new epochs of the log, which are in the same bucket.
pub(crate) async fn keep(shared: Arc<Shared>, mut wake: Box<dyn Subscription>, stop: CancellationToken) {
    let fence = &shared.fence;
    loop {
        let look = async {
            fence.look(&shared).await?;
            shared.lives.look(&shared).await
        };
        match tokio::time::timeout(DEADLINE, look).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tell(&shared, &error),
            Err(_) => tell(&shared, &"no answer in time"),
        }
        let next = if fence.applied().is_some() { LOOK_EVERY } else { LOOK_AGAIN };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            received = wake.next() => if received.is_none() { return },
            () = tokio::time::sleep(next) => {}
        }
    }
}

fn tell(shared: &Shared, error: &dyn std::fmt::Display) {
    if let Some(more) = shared.outages.floors.tell((shared.engines.clock)()) {
        warn!(%error, more, "floors and epochs could not be read; they are read again");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn an_offer_below_a_floor_of_any_of_its_assignments_is_superseded() {
        let fence = Fence::default();
        let tenant: Tenant = "a".parse().unwrap();
        let below = |revision, assignments: &[&str]| {
            let assignments: Vec<_> = assignments.iter().map(|name| (*name).to_owned()).collect();
            fence.below_floor(&tenant, IntentRevision(revision), &assignments)
        };
        assert_eq!(below(9, &["x"]), Some(Refusal::FloorsUnknown));
        let mut floors = Floors::default();
        floors.raise(&tenant, &BTreeMap::from([("x".to_owned(), IntentRevision(5))]));
        floors.raise(&"b".parse().unwrap(), &BTreeMap::from([("y".to_owned(), IntentRevision(50))]));
        fence.floors.store(Some(Arc::new(floors)));
        assert_eq!(below(4, &["y", "x"]), Some(Refusal::BelowFloor));
        assert_eq!(below(5, &["y", "x"]), None);
        assert_eq!(below(4, &["y"]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_not_renewed_lapses() {
        let fence = Fence::default();
        assert!(!fence.is_leased());
        fence.renewed(Instant::now());
        tokio::time::advance(LEASE_TTL - Duration::from_millis(1)).await;
        assert!(fence.is_leased());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!fence.is_leased());
    }
}
