//! What happens to agents, told on the bus to whoever watches.
//!
//! Best effort, and never in the way of folding: what cannot be queued is left out, and counted, so that
//! listeners know by the numbers that they missed some.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use muster_domain::agent::AgentEvent as Event;
use muster_domain::ids::{AgentKey, Tenant, Timestamp};
use muster_domain::rollout::{Rollout, Transition};
use muster_ports::bus::Subject;
use muster_proto::Message;
use muster_proto::bus::agent_event::Event as Told;
use muster_proto::bus::{
    AgentConfigApplied, AgentConfigFailed, AgentConnected, AgentDisconnected, AgentDriftEnded, AgentDrifted,
    AgentEvent, AgentEvents, AgentHealth, AgentMessage, AgentReachable, AgentUnreachable, RolloutMoved,
    Unsent,
};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::Shared;

/// Batches of events that may wait to be told.
const QUEUE: usize = 1024;
/// Bytes of events after which a message ends.
const MESSAGE: usize = 256 << 10;
/// Longest data of a custom message that is told; longer data is left out.
const DATA: usize = 256 << 10;

/// Longest text of an agent that is told.
const TEXT: usize = 4096;

/// Events of one tenant, of one transaction.
type Batch = (Tenant, Vec<AgentEvent>);

/// Where workers leave what happened.
pub(crate) struct Events {
    queue: mpsc::Sender<Batch>,
    /// The other end, for [`publish`].
    batches: Mutex<mpsc::Receiver<Batch>>,
    /// Events that were not queued, since the last message.
    lost: std::sync::Mutex<BTreeMap<Tenant, u64>>,
}

impl Default for Events {
    fn default() -> Self {
        let (queue, batches) = mpsc::channel(QUEUE);
        Self { queue, batches: Mutex::new(batches), lost: std::sync::Mutex::default() }
    }
}

impl Events {
    /// Leaves what a transaction did to agents. Never waits.
    pub(crate) fn tell<'a>(
        &self,
        now: Timestamp,
        happened: impl Iterator<Item = (&'a AgentKey, &'a Event, &'a str)>,
    ) {
        let mut batches: BTreeMap<&Tenant, Vec<AgentEvent>> = BTreeMap::new();
        for (key, event, remote_addr) in happened {
            batches.entry(&key.tenant).or_default().push(AgentEvent {
                instance_uid: key.uid.as_bytes().to_vec().into(),
                at_us: now.0,
                event: Some(told(event, remote_addr)),
            });
        }
        for (tenant, events) in batches {
            let count = events.len() as u64;
            if self.queue.try_send((tenant.clone(), events)).is_err() {
                let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
                *lost.entry(tenant.clone()).or_default() += count;
            }
        }
    }

    /// Leaves what happened to a rollout. Never waits.
    pub(crate) fn tell_rollout(&self, tenant: &Tenant, rollout: &Rollout, transition: &Transition) {
        let moved = RolloutMoved {
            rollout_id: rollout.id.as_bytes().to_vec().into(),
            assignment: rollout.assignment.clone(),
            state: transition.state.name().to_owned(),
            stage: transition.stage as u64,
            actor: transition.actor.clone(),
            reason: cut(&transition.reason),
        };
        let event =
            AgentEvent { at_us: transition.at.0, event: Some(Told::Rollout(moved)), ..AgentEvent::default() };
        if self.queue.try_send((tenant.clone(), vec![event])).is_err() {
            let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            *lost.entry(tenant.clone()).or_default() += 1;
        }
    }

    fn take_lost(&self, tenant: &Tenant) -> u64 {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant).unwrap_or_default()
    }
}

/// A text of an agent, not longer than is of use to people.
fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT)].to_owned()
}

fn told(event: &Event, remote_addr: &str) -> Told {
    match event {
        Event::Connected => Told::Connected(AgentConnected { remote_addr: remote_addr.to_owned() }),
        Event::Disconnected(reason) => {
            let liveness = reason.liveness().name().to_owned();
            Told::Disconnected(AgentDisconnected { reason: reason.name().to_owned(), liveness })
        }
        Event::ConfigApplied { hash, .. } => {
            Told::ConfigApplied(AgentConfigApplied { config_hash: hash.as_bytes().to_vec().into() })
        }
        Event::ConfigFailed { hash, error_message } => Told::ConfigFailed(AgentConfigFailed {
            config_hash: hash.as_ref().map(|hash| hash.as_bytes().to_vec()).unwrap_or_default().into(),
            error_message: cut(error_message),
        }),
        Event::Unreachable => Told::Unreachable(AgentUnreachable {}),
        Event::Reachable => Told::Reachable(AgentReachable {}),
        Event::Unsent(unsent) => Told::Unsent(Unsent {
            config_hash: unsent.hash.as_bytes().to_vec().into(),
            size: unsent.size,
            limit: unsent.limit,
        }),
        Event::Drifted(drift) => Told::Drifted(AgentDrifted {
            kind: drift.kind.name().to_owned(),
            since_us: drift.since.0,
            expected: drift.expected.clone(),
            found: drift.found.clone().unwrap_or_default(),
        }),
        Event::DriftEnded(kind) => Told::DriftEnded(AgentDriftEnded { kind: kind.name().to_owned() }),
        Event::HealthChanged { healthy } => Told::Health(AgentHealth { healthy: *healthy }),
        Event::CustomMessage(message) => {
            let data_left_out = message.data.len() > DATA;
            let data = if data_left_out { Vec::new() } else { message.data.clone() };
            Told::CustomMessage(AgentMessage {
                capability: cut(&message.capability),
                r#type: cut(&message.kind),
                data: data.into(),
                data_left_out,
            })
        }
    }
}

/// Publishes what workers leave, until `stop`.
pub(crate) async fn publish(shared: Arc<Shared>, stop: CancellationToken) {
    let publisher = shared.engines.random.uuid((shared.engines.clock)()).to_string();
    // Held for as long as the control works: nobody else takes them.
    let mut batches = shared.events.batches.lock().await;
    let mut told: BTreeMap<Tenant, u64> = BTreeMap::new();
    loop {
        // The stop comes once; until then every batch is taken.
        let batch = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            batch = batches.recv() => batch,
        };
        let Some((tenant, events)) = batch else { return };
        let before = told.entry(tenant.clone()).or_default();
        *before += shared.events.take_lost(&tenant);
        for events in parts(events) {
            let count = events.len() as u64;
            let message = AgentEvents {
                cell: shared.settings.cell.to_string(),
                tenant: tenant.to_string(),
                traceparent: String::new(),
                publisher: publisher.clone(),
                before: *before,
                events,
            };
            *before += count;
            let subject = Subject::Events(shared.settings.cell.clone(), tenant.clone());
            if let Err(error) = shared.engines.bus.publish(&subject, message.encode_to_vec().into()).await {
                debug!(%tenant, %error, "events were not told: listeners see a gap");
            }
        }
    }
}

/// Events in messages that are not too large.
fn parts(events: Vec<AgentEvent>) -> Vec<Vec<AgentEvent>> {
    let mut parts: Vec<Vec<AgentEvent>> = Vec::new();
    let mut size = MESSAGE;
    for event in events {
        if size >= MESSAGE {
            parts.push(Vec::new());
            size = 0;
        }
        size += event.encoded_len();
        if let Some(part) = parts.last_mut() {
            part.push(event);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_bounded_and_lose_nothing() {
        let event = |at_us, length| AgentEvent {
            at_us,
            event: Some(Told::CustomMessage(AgentMessage {
                data: vec![0; length].into(),
                ..AgentMessage::default()
            })),
            ..AgentEvent::default()
        };
        assert_eq!(parts(Vec::new()), Vec::<Vec<_>>::new());
        let events: Vec<_> = (0..40).map(|at| event(at, if at == 7 { DATA } else { 30_000 })).collect();
        let parts = parts(events.clone());
        assert!(parts.len() > 3 && parts.iter().all(|part| part.len() <= 11), "{}", parts.len());
        assert_eq!(parts.concat(), events);
    }
}
