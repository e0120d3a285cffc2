//! What operators want, prepared for deciding, and kept up to date.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use muster_domain::desired::Planner;
use muster_domain::ids::{IntentRevision, Tenant};
use muster_domain::intent::Intent;
use muster_ports::EngineError;
use muster_ports::bus::Subscription;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::Shared;

/// Planners by tenant.
pub(crate) type Planners = BTreeMap<Tenant, Arc<Planner>>;

/// The intent of all tenants, as last read.
pub(crate) struct Intents {
    planners: ArcSwap<Planners>,
    /// One refresh at a time.
    refreshing: Mutex<()>,
    /// Says that the planners have changed, whoever noticed first.
    changed: watch::Sender<()>,
}

impl Default for Intents {
    fn default() -> Self {
        let (changed, _) = watch::channel(());
        Self { planners: ArcSwap::default(), refreshing: Mutex::default(), changed }
    }
}

impl Intents {
    /// Wakes on every change of the planners.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
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

    /// Reads the intents that changed, and tells every worker if any did.
    pub(crate) async fn refresh(&self, shared: &Shared) -> Result<(), EngineError> {
        let _one = self.refreshing.lock().await;
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
            planners.insert((*tenant).clone(), Arc::new(Planner::new(&intent)));
        }
        if !changed.is_empty() {
            self.planners.store(Arc::new(planners));
            self.changed.send_replace(());
        }
        Ok(())
    }
}

/// Looks at intent on every wake-up and from time to time.
pub(crate) async fn watch(shared: Arc<Shared>, mut wake: Box<dyn Subscription>, stop: CancellationToken) {
    loop {
        tokio::select! {
            received = wake.next() => if received.is_none() { return },
            () = tokio::time::sleep(shared.settings.poll_every) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = shared.intents.refresh(&shared).await {
            warn!(%error, "intent could not be read; it is read again");
        }
    }
}
