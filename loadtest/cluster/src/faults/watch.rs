//! Looks at the API all the time: no agent's state may go backward.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::check::Apis;
use crate::reporter::{Number, SERVICE};

/// Time between two looks.
const EVERY: Duration = Duration::from_millis(300);

/// Looks until it is [`ended`](Self::end).
#[derive(Debug)]
pub(super) struct Watch {
    stop: CancellationToken,
    task: JoinHandle<(u64, Vec<String>)>,
}

impl Watch {
    pub(super) fn start(apis: Apis) -> Self {
        let stop = CancellationToken::new();
        Self { task: tokio::spawn(look(apis, stop.clone())), stop }
    }

    /// How often it looked, and what went backward.
    pub(super) async fn end(self) -> (u64, Vec<String>) {
        self.stop.cancel();
        self.task.await.unwrap_or_else(|error| (0, vec![format!("the look at the API broke down: {error}")]))
    }
}

async fn look(apis: Apis, stop: CancellationToken) -> (u64, Vec<String>) {
    let mut latest: BTreeMap<Uuid, Number> = BTreeMap::new();
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
        for (uid, agent) in listed {
            let shown = Number::read(&agent.last_error);
            let before = latest.insert(uid, shown).unwrap_or_default();
            if shown < before {
                backward.push(format!("{uid} went back from report {} to {}", before.0, shown.0));
            }
        }
    }
}
