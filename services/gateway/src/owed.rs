//! Ends of sessions that the log did not take: it is told of them when it takes something again.
//!
//! Nobody else knows that these sessions are over: until it is told, the fleet shows their agents as
//! connected.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_domain::ids::AgentKey;
use muster_opamp::connection::Publish;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{Shared, upstream};

/// How often it is tried again.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// Ends that are kept. With more of them a new life of the gateway begins, which ends them all.
const MOST: usize = 10_000;

/// What the log is owed.
#[derive(Default)]
pub(crate) struct Owed(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    ends: VecDeque<(AgentKey, Publish)>,
    /// Some were dropped.
    overflowed: bool,
}

impl Owed {
    /// Keeps the end of a session for later.
    pub(crate) fn keep(&self, key: AgentKey, end: Publish) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.ends.len() < MOST {
            waiting.ends.push_back((key, end));
        } else {
            waiting.overflowed = true;
        }
    }

    fn next(&self) -> Option<(AgentKey, Publish)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ends.pop_front()
    }

    /// Whether ends were dropped since the last time, so that only a new life of the gateway can end
    /// those sessions.
    pub(crate) fn take_overflow(&self) -> bool {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).overflowed)
    }
}

/// Tells the log what it is owed, until `stop`.
pub(crate) async fn keep(shared: Arc<Shared>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(TRY_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // The stop comes once; until then every tick is taken.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let mut told = 0_usize;
        while let Some((key, end)) = shared.owed.next() {
            if upstream::publish(&shared, &key, end.clone(), "").await.is_err() {
                shared.owed.keep(key, end);
                break;
            }
            told += 1;
        }
        if told > 0 {
            warn!(sessions = told, "the log was told late of sessions that had ended");
        }
    }
}
