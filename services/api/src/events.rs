//! `GET /api/v1/events`: what happens to agents, as it happens.
//!
//! Best effort: whoever listens is told what control folds from then on. What a listener misses, because
//! it reads too slowly or the bus lost it, is told as a number. There is no history to go back to.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{self, Stream};
use muster_domain::ids::{InstanceUid, RolloutId, Timestamp};
use muster_ports::bus::{Subject, Subscription};
use muster_proto::Message;
use muster_proto::bus::agent_event::Event as Told;
use muster_proto::bus::{AgentEvent, AgentEvents};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use utoipa::IntoParams;

use crate::Shared;
use crate::caller::Caller;
use crate::problem::{ApiError, Problem};
use crate::views::rfc3339;

/// Listeners of one process at once.
pub(crate) const MAX_LISTENERS: usize = 100;
/// A comment is sent after this long without an event.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Publishers whose numbers are remembered.
const MAX_PUBLISHERS: usize = 1000;
/// Kinds of events.
const KINDS: [&str; 12] = [
    "connected",
    "disconnected",
    "unreachable",
    "reachable",
    "health",
    "config_applied",
    "config_failed",
    "config_not_sent",
    "drifted",
    "drift_ended",
    "custom_message",
    "rollout",
];

/// Cancelled when the process stops: streams end then.
#[derive(Debug, Clone)]
pub(crate) struct Stopping(pub(crate) CancellationToken);

/// What to listen to.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventsQuery {
    /// Kinds of events, with commas between; all by default: `connected`, `disconnected`,
    /// `unreachable`, `reachable`, `health`,
    /// `config_applied`, `config_failed`, `config_not_sent`, `drifted`, `drift_ended`, `custom_message`, `rollout`.
    kinds: Option<String>,
    /// Only events of the agent with this instance_uid.
    agent: Option<String>,
}

/// Streams what happens to agents as server-sent events. The event `missed` says how many were not told
/// since the one before, of any kind and agent.
#[utoipa::path(
    get, path = "/api/v1/events", tag = "agents", operation_id = "watchEvents", params(EventsQuery),
    responses(
        (status = 200, body = String, content_type = "text/event-stream"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json")
    )
)]
pub(crate) async fn watch(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    stopping: Option<Extension<Stopping>>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let filter = Filter::read(&query)?;
    let permit = Arc::clone(&shared.listeners).try_acquire_owned().map_err(|_| {
        ApiError::Busy(format!(
            "{MAX_LISTENERS} listen already, which is all that one process serves: try another one"
        ))
    })?;
    let subject = Subject::Events(shared.settings.cell.clone(), caller.tenant.clone());
    let listener = Listener {
        subscription: shared.engines.bus.subscribe(&subject).await?,
        filter,
        numbers: Numbers::default(),
        waiting: Vec::new().into_iter(),
        stop: stopping.map(|Extension(Stopping(stop))| stop).unwrap_or_default(),
        _permit: permit,
    };
    let events = stream::unfold(listener, |mut listener| async move {
        let event = listener.next().await?;
        Some((Ok(event), listener))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)))
}

/// Which events are wanted.
#[derive(Debug, PartialEq, Eq)]
struct Filter {
    /// None for all.
    kinds: Option<BTreeSet<String>>,
    agent: Option<InstanceUid>,
}

impl Filter {
    fn read(query: &EventsQuery) -> Result<Self, ApiError> {
        let kinds: Option<BTreeSet<String>> =
            query.kinds.as_ref().map(|kinds| kinds.split(',').map(str::to_owned).collect());
        if let Some(unknown) = kinds.iter().flatten().find(|kind| !KINDS.contains(&kind.as_str())) {
            let known = KINDS.join(", ");
            return Err(ApiError::BadRequest(format!(
                "kinds: {unknown:?} is none; use {known}, or leave it out"
            )));
        }
        let agent = query.agent.as_ref().map(|uid| uid.parse()).transpose();
        Ok(Self { kinds, agent: agent.map_err(|error| ApiError::BadRequest(format!("agent: {error}")))? })
    }

    fn wants(&self, kind: &str, uid: &[u8]) -> bool {
        self.kinds.as_ref().is_none_or(|kinds| kinds.contains(kind))
            && self.agent.is_none_or(|agent| agent.as_bytes().as_slice() == uid)
    }
}

/// How far each publisher is, to know what was missed.
#[derive(Default)]
struct Numbers(BTreeMap<String, u64>);

impl Numbers {
    /// How many events of the publisher were missed before this message.
    fn missed(&mut self, message: &AgentEvents) -> u64 {
        if self.0.len() >= MAX_PUBLISHERS {
            self.0.clear();
        }
        let next = message.before.saturating_add(message.events.len() as u64);
        let known = self.0.insert(message.publisher.clone(), next);
        known.map_or(0, |known| message.before.saturating_sub(known))
    }
}

/// One listener.
struct Listener {
    subscription: Box<dyn Subscription>,
    filter: Filter,
    numbers: Numbers,
    waiting: std::vec::IntoIter<Event>,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Listener {
    /// The next event; `None` when the process stops or the bus is closed.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.next() {
                return Some(event);
            }
            // The stop comes once; until then every message is taken.
            let received = tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                received = self.subscription.next() => received?,
            };
            match AgentEvents::decode(received.payload) {
                Ok(message) => {
                    let missed = self.numbers.missed(&message);
                    let missed = (missed > 0)
                        .then(|| Event::default().event("missed").data(json!({"count": missed}).to_string()));
                    let events = message.events.into_iter().filter_map(|event| self.filter.event(event));
                    self.waiting = missed.into_iter().chain(events).collect::<Vec<_>>().into_iter();
                }
                Err(error) => debug!(%error, "a message on the bus is not one of events"),
            }
        }
    }
}

impl Filter {
    /// The event as it is sent, if it is wanted and known.
    fn event(&self, event: AgentEvent) -> Option<Event> {
        let (kind, uid, data) = view(event)?;
        // Characters that end a line do not stand in JSON.
        self.wants(kind, &uid).then(|| Event::default().event(kind).data(data.to_string()))
    }
}

/// Kind, agent and content.
fn view(event: AgentEvent) -> Option<(&'static str, Vec<u8>, Value)> {
    let (kind, more) = match event.event? {
        Told::Connected(connected) => ("connected", json!({"remote_addr": connected.remote_addr})),
        Told::Disconnected(disconnected) => {
            ("disconnected", json!({"reason": disconnected.reason, "liveness": disconnected.liveness}))
        }
        Told::Unreachable(_) => ("unreachable", json!({})),
        Told::Reachable(_) => ("reachable", json!({})),
        Told::Health(health) => ("health", json!({"healthy": health.healthy})),
        Told::ConfigApplied(applied) => ("config_applied", json!({"config_hash": hex(&applied.config_hash)})),
        Told::ConfigFailed(failed) => (
            "config_failed",
            json!({"config_hash": hex(&failed.config_hash), "error_message": failed.error_message}),
        ),
        Told::Unsent(unsent) => (
            "config_not_sent",
            json!({"config_hash": hex(&unsent.config_hash), "size": unsent.size, "limit": unsent.limit}),
        ),
        Told::Drifted(drift) => (
            "drifted",
            json!({
                "drift": drift.kind,
                "since": rfc3339(Timestamp(drift.since_us)),
                "expected": drift.expected,
                "found": Some(drift.found).filter(|found| !found.is_empty()),
            }),
        ),
        Told::DriftEnded(ended) => ("drift_ended", json!({"drift": ended.kind})),
        Told::CustomMessage(message) => {
            let mut more = json!({"capability": message.capability, "type": message.r#type});
            match std::str::from_utf8(&message.data) {
                _ if message.data_left_out => more["data_left_out"] = true.into(),
                Ok(text) => more["data"] = text.into(),
                Err(_) => more["data_base64"] = STANDARD.encode(&message.data).into(),
            }
            ("custom_message", more)
        }
        Told::Rollout(moved) => {
            let id = RolloutId::try_from(moved.rollout_id.as_ref()).ok()?;
            let data = json!({
                "kind": "rollout",
                "rollout": id.to_string(),
                "assignment": moved.assignment,
                "state": moved.state,
                "stage": moved.stage,
                "actor": moved.actor,
                "reason": moved.reason,
                "at": rfc3339(Timestamp(event.at_us)),
            });
            return Some(("rollout", Vec::new(), data));
        }
    };
    let uid = InstanceUid::try_from(event.instance_uid.as_ref()).ok()?;
    let mut data =
        json!({"kind": kind, "instance_uid": uid.to_string(), "at": rfc3339(Timestamp(event.at_us))});
    if let (Some(data), Value::Object(more)) = (data.as_object_mut(), more) {
        data.extend(more);
    }
    Some((kind, event.instance_uid.to_vec(), data))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_in_the_numbers_is_what_was_missed() {
        let message = |publisher: &str, before, events| AgentEvents {
            publisher: publisher.to_owned(),
            before,
            events: vec![AgentEvent::default(); events],
            ..AgentEvents::default()
        };
        let mut numbers = Numbers::default();
        let steps = [
            (message("a", 7, 2), 0),
            (message("a", 9, 1), 0),
            (message("b", 0, 1), 0),
            (message("a", 15, 1), 5),
            (message("b", 1, 1), 0),
        ];
        for (message, missed) in steps {
            assert_eq!(numbers.missed(&message), missed, "{message:?}");
        }
    }

    #[test]
    fn a_filter_is_checked() {
        let read = |kinds: Option<&str>, agent: Option<&str>| {
            let query = EventsQuery { kinds: kinds.map(str::to_owned), agent: agent.map(str::to_owned) };
            Filter::read(&query).map_err(|error| format!("{error:?}"))
        };
        let all = read(None, None).unwrap();
        assert!(KINDS.iter().all(|kind| all.wants(kind, &[7; 16])));
        let some = read(Some("connected,health"), Some("07070707-0707-0707-0707-070707070707")).unwrap();
        assert!(some.wants("health", &[7; 16]) && !some.wants("health", &[8; 16]));
        assert!(!some.wants("custom_message", &[7; 16]));
        assert!(read(Some("conected"), None).unwrap_err().contains("kinds: "));
        assert!(read(Some(""), None).unwrap_err().contains("kinds: "));
        assert!(read(None, Some("x")).unwrap_err().contains("agent: "));
    }
}
