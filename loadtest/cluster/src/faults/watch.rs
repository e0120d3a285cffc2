//! Looks at the API all the time: no agent's state may go backward.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::check::Apis;
use crate::reporter::{Number, SERVICE};

/// Time between two looks.
const EVERY: Duration = Duration::from_millis(300);

/// The latest that was shown of each agent: the number of its report and of its message.
type Latest = Arc<Mutex<BTreeMap<Uuid, (Number, u64)>>>;

/// Looks until it is [`ended`](Self::end).
#[derive(Debug)]
pub(super) struct Watch {
    stop: CancellationToken,
    latest: Latest,
    /// Whether numbers of messages count, and not those of reports alone.
    messages: Arc<AtomicBool>,
    task: JoinHandle<(u64, Vec<String>)>,
}

impl Watch {
    pub(super) fn start(apis: Apis) -> Self {
        let (stop, latest) = (CancellationToken::new(), Latest::default());
        let messages = Arc::new(AtomicBool::new(true));
        let task = tokio::spawn(look(apis, Arc::clone(&latest), Arc::clone(&messages), stop.clone()));
        Self { stop, latest, messages, task }
    }

    /// What is shown from now on may be older than what was shown before, once.
    pub(super) fn forget(&self) {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Ownership alone knows of heartbeats, and forgets some of them now: their numbers are shown no more.
    pub(super) fn forget_heartbeats(&self) {
        self.messages.store(false, Ordering::Relaxed);
    }

    /// How often it looked, and what went backward.
    pub(super) async fn end(self) -> (u64, Vec<String>) {
        self.stop.cancel();
        self.task.await.unwrap_or_else(|error| (0, vec![format!("the look at the API broke down: {error}")]))
    }
}

async fn look(
    apis: Apis,
    latest: Latest,
    messages: Arc<AtomicBool>,
    stop: CancellationToken,
) -> (u64, Vec<String>) {
    let mut backward = Vec::new();
    let mut looks = 0;
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return (looks, backward),
        }
        // An api that does not answer is part of some faults.
        let Ok(listed) = apis.list(&format!("service.name={SERVICE}")).await else { continue };
        looks += 1;
        let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
        for (uid, agent) in listed {
            let shown = (Number::read(&agent.last_error), agent.sequence);
            let before = latest.insert(uid, shown).unwrap_or_default();
            if shown.0 < before.0 || (shown.1 < before.1 && messages.load(Ordering::Relaxed)) {
                backward.push(format!(
                    "{uid} went back from report {}, message {} to report {}, message {}",
                    before.0.0, before.1, shown.0.0, shown.1
                ));
            }
        }
    }
}
