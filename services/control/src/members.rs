//! Which partitions this control works on: as many as the announced controls leave it.
//!
//! Every control announces itself by a lease and reads the others'. Two that disagree for a moment
//! may work on one partition at once: the partition row's compare-and-swap keeps that harmless.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use muster_domain::ids::Partition;
use muster_domain::membership::owner;
use muster_ports::EngineError;
use muster_ports::kv::{Precondition, PutError};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Shared, worker};

/// How often the members are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the own lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Longest wait for the lease bucket.
const DEADLINE: Duration = Duration::from_secs(2);

/// The workers of this control.
struct Workers {
    shared: Arc<Shared>,
    /// What stops each, and what says that it has ended.
    running: BTreeMap<Partition, (CancellationToken, oneshot::Receiver<()>)>,
}

/// Announces this control and works on its share of the partitions until `stop`.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut workers = Workers { shared: Arc::clone(&shared), running: BTreeMap::new() };
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewed: Option<Instant> = None;
    loop {
        // The stop comes once; until then every tick is taken.
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        let result = tokio::time::timeout(DEADLINE, async {
            if renewed.is_none_or(|at| at.elapsed() >= RENEW_EVERY) {
                renew(&shared).await?;
                renewed = Some(Instant::now());
            }
            members(&shared).await
        });
        match result.await {
            Ok(Ok(members)) => workers.share(&members).await,
            // The partitions stay as they are: who else took one over is noticed by its row.
            Ok(Err(error)) => tell_unseen(&shared, &error),
            Err(_) => tell_unseen(&shared, &"no answer in time"),
        }
    }
    workers.stop_all().await;
    match tokio::time::timeout(DEADLINE, shared.engines.leases.remove(&key(&shared))).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "the control's lease was not given back; it lapses by itself"),
        Err(_) => warn!("the control's lease was not given back in time; it lapses by itself"),
    }
}

fn tell_unseen(shared: &Shared, error: &dyn std::fmt::Display) {
    if let Some(more) = shared.outages.members.tell((shared.engines.clock)()) {
        warn!(%error, more, "the other controls cannot be seen; partitions stay as they are");
    }
}

fn prefix(shared: &Shared) -> String {
    format!("controls/{}/", shared.settings.cell)
}

fn key(shared: &Shared) -> String {
    format!("{}{}", prefix(shared), shared.settings.id)
}

async fn renew(shared: &Shared) -> Result<(), EngineError> {
    match shared.engines.leases.put(&key(shared), Bytes::new(), Precondition::Any).await {
        Ok(_) => Ok(()),
        Err(PutError::Engine(error)) => Err(error),
        Err(PutError::Conflict) => Err(EngineError::Unavailable {
            engine: "lease bucket",
            reason: "an unconditional write was refused".to_owned(),
        }),
    }
}

async fn members(shared: &Shared) -> Result<Vec<String>, EngineError> {
    let prefix = prefix(shared);
    let leases = shared.engines.leases.list(&prefix).await?;
    Ok(leases.into_iter().filter_map(|(key, _)| key.strip_prefix(&prefix).map(str::to_owned)).collect())
}

impl Workers {
    /// Starts and stops workers so that this control has its share.
    async fn share(&mut self, members: &[String]) {
        let id = &self.shared.settings.id;
        let mine = |partition: &Partition| owner(*partition, members.iter().map(String::as_str)) == Some(id);
        let lost: Vec<_> = self.running.keys().copied().filter(|partition| !mine(partition)).collect();
        let gained: Vec<_> = Partition::all()
            .filter(|partition| mine(partition) && !self.running.contains_key(partition))
            .collect();
        if lost.is_empty() && gained.is_empty() {
            return;
        }
        info!(event = "partitions_moved", control = %id, members = members.len(), gained = gained.len(), lost = lost.len(), "this control's share of the partitions has changed");
        for partition in &lost {
            if let Some((stop, _)) = self.running.get(partition) {
                stop.cancel();
            }
        }
        for partition in lost {
            if let Some((_, ended)) = self.running.remove(&partition) {
                join(partition, ended).await;
            }
        }
        for partition in gained {
            let stop = CancellationToken::new();
            let work = worker::run(
                Arc::clone(&self.shared),
                partition,
                self.shared.intents.watch(),
                self.shared.commands.watch(),
                stop.clone(),
            );
            let (end, ended) = oneshot::channel();
            self.shared.engines.spawner.spawn(async move {
                work.await;
                // Nobody waits for a worker whose control is gone.
                let _ = end.send(());
            });
            self.running.insert(partition, (stop, ended));
        }
        self.shared.metrics.partitions.set(i64::try_from(self.running.len()).unwrap_or(i64::MAX));
    }

    async fn stop_all(&mut self) {
        for (stop, _) in self.running.values() {
            stop.cancel();
        }
        for (partition, (_, ended)) in std::mem::take(&mut self.running) {
            join(partition, ended).await;
        }
    }
}

async fn join(partition: Partition, ended: oneshot::Receiver<()>) {
    if ended.await.is_err() {
        warn!(%partition, "a partition's worker was lost");
    }
}
