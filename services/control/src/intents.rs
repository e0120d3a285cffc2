//! What operators want, prepared for deciding, and kept up to date.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use muster_domain::desired::Planner;
use muster_domain::ids::{IntentRevision, Tenant};
use muster_domain::intent::Intent;
use muster_domain::rollout::Rollout;
use muster_ports::EngineError;
use muster_ports::bus::{Subject, Subscription};
use muster_ports::floors::{self, Floors};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::changes::{Changes, Watcher};
use crate::{Shared, commands};

/// Longest wait for floors to be raised before new intent takes effect all the same.
const FLOORS_DEADLINE: Duration = Duration::from_secs(2);

/// Planners by tenant.
pub(crate) type Planners = BTreeMap<Tenant, Arc<Planner>>;

/// The intent of all tenants, as last read.
#[derive(Default)]
pub(crate) struct Intents {
    planners: ArcSwap<Planners>,
    /// One refresh at a time.
    refreshing: Mutex<Raised>,
    /// Says that the planners have changed, whoever noticed first.
    changed: Changes,
}

/// Floors as this control knows them.
#[derive(Default)]
struct Raised {
    /// Those of the intents that were read.
    wanted: Floors,
    /// Those that are in the bucket.
    written: Floors,
    /// Intent revisions that the bucket is to keep in mind, and those that it does.
    revisions: BTreeMap<Tenant, IntentRevision>,
    kept: BTreeMap<Tenant, IntentRevision>,
    /// The store is known not to be older than the bucket.
    compared: bool,
}

impl Intents {
    /// Wakes on every change of the planners.
    pub(crate) fn watch(&self) -> Watcher {
        self.changed.watch()
    }

    /// The planners of all tenants that have any intent.
    pub(crate) fn planners(&self) -> Arc<Planners> {
        self.planners.load_full()
    }

    /// The planner of a tenant; of one without intent, a planner that gives nothing.
    pub(crate) fn planner(&self, tenant: &Tenant) -> Arc<Planner> {
        let planners = self.planners.load();
        planners.get(tenant).cloned().unwrap_or_else(|| Arc::new(Planner::new(&Intent::default())))
    }

    /// Whether an assignment still has a strategy, as far as the intent of the rollout or a later one was read.
    pub(crate) fn is_staged(&self, tenant: &Tenant, rollout: &Rollout) -> bool {
        let planners = self.planners.load();
        let planner = planners.get(tenant).filter(|planner| planner.revision() >= rollout.revision);
        planner.is_none_or(|planner| planner.is_staged(&rollout.assignment))
    }

    /// Reads the intents that changed, and tells every worker if any did.
    pub(crate) async fn refresh(&self, shared: &Shared) -> Result<(), EngineError> {
        let mut raised = self.refreshing.lock().await;
        if !raised.compared {
            raised.compared = raised.compare(shared).await;
        }
        let revisions = shared.engines.intent.revisions().await?;
        let mut planners = Planners::clone(&self.planners.load());
        let is_new = |tenant: &Tenant, revision: &IntentRevision| {
            planners.get(tenant).is_none_or(|planner| planner.revision() != *revision)
        };
        let changed: Vec<_> = revisions
            .iter()
            .filter(|(tenant, revision)| is_new(tenant, revision))
            .map(|(tenant, _)| tenant)
            .collect();
        for tenant in &changed {
            let intent = shared.engines.intent.intent(tenant).await?;
            raised.wanted.raise(tenant, &intent.floors);
            raised.revisions.insert((*tenant).clone(), intent.revision);
            planners.insert((*tenant).clone(), Arc::new(Planner::new(&intent)));
        }
        // Before anything is decided on the new intent: what the old one gave goes no further.
        raised.raise(shared).await;
        if !changed.is_empty() {
            self.planners.store(Arc::new(planners));
            self.changed.happen();
        }
        Ok(())
    }
}

impl Raised {
    /// Raises the revisions of a store that was restored from a backup past those that were used since:
    /// gateways would hold offers of theirs for superseded. Whether that is done.
    async fn compare(&mut self, shared: &Shared) -> bool {
        let work = async {
            let known = floors::revisions(shared.engines.values.as_ref(), &shared.settings.cell).await?;
            let stored = shared.engines.intent.revisions().await?;
            for (tenant, known) in known {
                let stored = stored.get(&tenant).copied().unwrap_or_default();
                if stored < known {
                    let next = IntentRevision(known.0.saturating_add(1));
                    shared.engines.intent.advance(&tenant, next).await?;
                    warn!(event = "intent_advanced", %tenant, %stored, %known, "the store is older than what gateways were sent, as after a restore: its intent counts anew");
                }
            }
            Ok::<_, EngineError>(())
        };
        match tokio::time::timeout(FLOORS_DEADLINE, work).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => tell_not_raised(shared, &error),
            Err(_) => tell_not_raised(shared, &"no answer in time"),
        }
        false
    }

    /// Raises the floors that gateways keep to. Those that could not be raised now are at the next look.
    async fn raise(&mut self, shared: &Shared) {
        let (bucket, cell) = (shared.engines.values.as_ref(), &shared.settings.cell);
        let work = async {
            for (tenant, revision) in &self.revisions {
                if self.kept.get(tenant) != Some(revision) {
                    floors::raise_revision(bucket, cell, tenant, *revision).await?;
                    self.kept.insert(tenant.clone(), *revision);
                }
            }
            floors::raise(bucket, cell, &self.wanted, &mut self.written).await
        };
        match tokio::time::timeout(FLOORS_DEADLINE, work).await {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => {
                if let Err(error) =
                    shared.engines.bus.publish(&Subject::Floors(cell.clone()), Bytes::new()).await
                {
                    debug!(%error, "gateways were not told that floors have risen; they look by themselves");
                }
            }
            Ok(Err(error)) => tell_not_raised(shared, &error),
            Err(_) => tell_not_raised(shared, &"no answer in time"),
        }
    }
}

fn tell_not_raised(shared: &Shared, error: &dyn std::fmt::Display) {
    if let Some(more) = shared.outages.floors.tell((shared.engines.clock)()) {
        warn!(%error, more, "floors were not raised: gateways may still send superseded offers");
    }
}

/// Looks at intent and at queued commands on every wake-up and from time to time.
pub(crate) async fn watch(shared: Arc<Shared>, mut wake: Box<dyn Subscription>, stop: CancellationToken) {
    let mut forgetting = commands::Forgetting::default();
    let mut first = true;
    loop {
        if !std::mem::take(&mut first) {
            look(&shared).await;
        }
        if let Err(error) = shared.commands.refresh(&shared).await
            && let Some(more) = shared.outages.commands.tell((shared.engines.clock)())
        {
            warn!(%error, more, "queued commands could not be read; they are read again");
        }
        if let Err(error) = forgetting.step(&shared).await {
            debug!(%error, "old commands were not forgotten; they are later");
        }
        // A wake-up and the time lead to the same look, so neither can starve the other.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            received = wake.next() => if received.is_none() { return },
            () = tokio::time::sleep(shared.settings.poll_every) => {}
        }
    }
}

async fn look(shared: &Shared) {
    if let Err(error) = shared.intents.refresh(shared).await
        && let Some(more) = shared.outages.intent.tell((shared.engines.clock)())
    {
        warn!(%error, more, "intent could not be read; it is read again");
    }
}
