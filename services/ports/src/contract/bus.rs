//! The contract of [`crate::bus`].

use std::time::Duration;

use bytes::Bytes;
use muster_domain::ids::{Cell, GatewayId};

use super::poll::{join, poll_once};
use crate::bus::{Bus, MAX_PAYLOAD, Received, RequestError, Subject, Subscription};

/// Runs every case, each on a bus of its own that `make` gives. `pause` lets time go by, so that
/// what was sent has arrived. A case that does not end is a failure too: a listener was not woken.
pub async fn all<B: Bus>(make: impl AsyncFn() -> B, pause: impl AsyncFn(Duration)) {
    a_message_reaches_every_listener(&make().await, &pause).await;
    messages_arrive_in_order(&make().await).await;
    a_waiting_listener_is_woken(&make().await).await;
    a_cancelled_wait_loses_nothing(&make().await).await;
    subjects_are_apart(&make().await, &pause).await;
    a_queue_gives_each_message_to_one_listener(&make().await, &pause).await;
    a_request_is_answered(&make().await, &pause).await;
    a_request_to_a_queue_reaches_one_listener(&make().await, &pause).await;
    nobody_listens(&make().await, &pause).await;
    nobody_answers(&make().await).await;
    a_large_message_arrives(&make().await).await;
    a_slow_listener_goes_on(&make().await, &pause).await;
}

/// Long enough for a message to arrive.
const MOMENT: Duration = Duration::from_millis(200);
/// Long enough for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

fn cell(name: &str) -> Cell {
    name.parse().unwrap()
}

fn gateway(name: &str) -> GatewayId {
    name.parse().unwrap()
}

fn deliveries() -> Subject {
    Subject::Deliveries(cell("here"), gateway("g1"))
}

fn control() -> Subject {
    Subject::Control(cell("here"))
}

fn number(number: u32) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

/// Everything that is there, with the time that it takes to arrive.
async fn drain(subscription: &mut dyn Subscription, pause: &impl AsyncFn(Duration)) -> Vec<Bytes> {
    pause(MOMENT).await;
    let mut payloads = Vec::new();
    while let Some(received) = poll_once(subscription.next()) {
        payloads.push(received.unwrap().payload);
    }
    payloads
}

async fn next(subscription: &mut dyn Subscription) -> Received {
    subscription.next().await.unwrap()
}

/// Answers one request with its own payload and a mark.
async fn answer(subscription: &mut dyn Subscription, mark: &str) {
    let received = next(subscription).await;
    let payload = [&received.payload[..], mark.as_bytes()].concat();
    received.reply.unwrap().send(payload.into()).await.unwrap();
}

async fn a_message_reaches_every_listener(bus: &dyn Bus, pause: &impl AsyncFn(Duration)) {
    let wake = Subject::Wake(cell("here"));
    bus.publish(&wake, number(0)).await.unwrap();
    let mut one = bus.subscribe(&wake).await.unwrap();
    let mut other = bus.subscribe(&wake).await.unwrap();
    for payload in [number(1), Bytes::new(), number(2)] {
        bus.publish(&wake, payload).await.unwrap();
    }
    let expected = [number(1), Bytes::new(), number(2)];
    assert_eq!(drain(&mut *one, pause).await, expected, "what is sent after subscribing, and nothing else");
    assert_eq!(drain(&mut *other, pause).await, expected);
    drop(one);
    pause(MOMENT).await;
    bus.publish(&wake, number(3)).await.unwrap();
    let received = next(&mut *other).await;
    assert_eq!(received.payload, number(3));
    assert!(received.reply.is_none(), "nobody awaits an answer");
}

async fn messages_arrive_in_order(bus: &dyn Bus) {
    let mut subscription = bus.subscribe(&deliveries()).await.unwrap();
    for at in 0..200 {
        bus.publish(&deliveries(), number(at)).await.unwrap();
    }
    for at in 0..200 {
        assert_eq!(next(&mut *subscription).await.payload, number(at));
    }
}

async fn a_waiting_listener_is_woken(bus: &dyn Bus) {
    let mut one = bus.subscribe(&deliveries()).await.unwrap();
    let mut other = bus.subscribe(&deliveries()).await.unwrap();
    for at in 0..3 {
        let waiting = join(next(&mut *one), next(&mut *other));
        let ((one, other), sent) = join(waiting, bus.publish(&deliveries(), number(at))).await;
        sent.unwrap();
        assert_eq!((one.payload, other.payload), (number(at), number(at)));
    }
}

async fn a_cancelled_wait_loses_nothing(bus: &dyn Bus) {
    let mut subscription = bus.subscribe(&control()).await.unwrap();
    let mut read = Vec::new();
    for at in 0..20 {
        // What a wait returns at once is not cancelled, and counts.
        read.extend(poll_once(subscription.next()).flatten().map(|received| received.payload));
        bus.publish(&control(), number(at)).await.unwrap();
    }
    while read.len() < 20 {
        read.push(next(&mut *subscription).await.payload);
    }
    assert_eq!(read, (0..20).map(number).collect::<Vec<_>>());
}

async fn subjects_are_apart(bus: &dyn Bus, pause: &impl AsyncFn(Duration)) {
    let subjects = [
        Subject::Deliveries(cell("here"), gateway("g1")),
        Subject::Deliveries(cell("here"), gateway("g2")),
        Subject::Deliveries(cell("there"), gateway("g1")),
        Subject::Deliveries(cell("here.g1"), gateway("g1")),
        Subject::Deliveries(cell("here"), gateway("g1.g1")),
        Subject::Gateway(cell("here"), gateway("g1")),
        Subject::Control(cell("here")),
        Subject::Control(cell("there")),
        Subject::Wake(cell("here")),
        Subject::Wake(cell("there")),
        Subject::Floors(cell("here")),
        Subject::Events(cell("here"), "default".parse().unwrap()),
        Subject::Events(cell("here"), "other".parse().unwrap()),
    ];
    let mut subscriptions = Vec::new();
    for subject in &subjects {
        subscriptions.push(bus.subscribe(subject).await.unwrap());
    }
    for (at, subject) in (0..).zip(&subjects) {
        bus.publish(subject, number(at)).await.unwrap();
    }
    for (at, subscription) in (0..).zip(&mut subscriptions) {
        assert_eq!(drain(&mut **subscription, pause).await, [number(at)], "{:?}", subjects[at as usize]);
    }
}

async fn a_queue_gives_each_message_to_one_listener(bus: &dyn Bus, pause: &impl AsyncFn(Duration)) {
    assert!(control().is_queue());
    let mut one = bus.subscribe(&control()).await.unwrap();
    let mut other = bus.subscribe(&control()).await.unwrap();
    for at in 0..100 {
        bus.publish(&control(), number(at)).await.unwrap();
    }
    let (of_one, of_other) = (drain(&mut *one, pause).await, drain(&mut *other, pause).await);
    assert!(!of_one.is_empty() && !of_other.is_empty(), "one listener got all of 100 messages");
    let mut all = [of_one, of_other].concat();
    all.sort();
    assert_eq!(all, (0..100).map(number).collect::<Vec<_>>(), "each once, to one of them");
    drop(one);
    pause(MOMENT).await;
    for at in 0..10 {
        bus.publish(&control(), number(at)).await.unwrap();
    }
    assert_eq!(drain(&mut *other, pause).await.len(), 10, "the one that is left gets all");
}

async fn a_request_is_answered(bus: &dyn Bus, pause: &impl AsyncFn(Duration)) {
    let subject = Subject::Gateway(cell("here"), gateway("g1"));
    let mut subscription = bus.subscribe(&subject).await.unwrap();
    for round in ["", "a", "b"] {
        let request = bus.request(&subject, Bytes::from(round.to_owned()), PATIENCE);
        let (answered, ()) = join(request, answer(&mut *subscription, "!")).await;
        assert_eq!(answered.unwrap(), format!("{round}!"));
    }
    // Several at once, answered in another order: each gets its own.
    let both = join(
        bus.request(&subject, Bytes::from_static(b"x"), PATIENCE),
        bus.request(&subject, Bytes::from_static(b"y"), PATIENCE),
    );
    let in_reverse = async {
        let first = next(&mut *subscription).await;
        let second = next(&mut *subscription).await;
        for received in [second, first] {
            received.reply.unwrap().send(received.payload).await.unwrap();
        }
    };
    let ((x, y), ()) = join(both, in_reverse).await;
    assert_eq!((x.unwrap(), y.unwrap()), (Bytes::from_static(b"x"), Bytes::from_static(b"y")));
    assert_eq!(drain(&mut *subscription, pause).await, [""; 0]);
}

async fn a_request_to_a_queue_reaches_one_listener(bus: &dyn Bus, pause: &impl AsyncFn(Duration)) {
    let mut one = bus.subscribe(&control()).await.unwrap();
    let mut other = bus.subscribe(&control()).await.unwrap();
    let serve = async {
        // Who gets it answers; a second listener that got it too would be seen below.
        loop {
            pause(MOMENT / 10).await;
            for subscription in [&mut one, &mut other] {
                if let Some(received) = poll_once(subscription.next()) {
                    let received = received.unwrap();
                    received.reply.unwrap().send(received.payload).await.unwrap();
                    return;
                }
            }
        }
    };
    let (answer, ()) = join(bus.request(&control(), number(7), PATIENCE), serve).await;
    assert_eq!(answer.unwrap(), number(7));
    let more = [drain(&mut *one, pause).await, drain(&mut *other, pause).await].concat();
    assert_eq!(more, [""; 0], "both listeners got the request");
}

async fn nobody_listens(bus: &dyn Bus, pause: &impl AsyncFn(Duration)) {
    for subject in [control(), deliveries()] {
        bus.publish(&subject, number(0)).await.unwrap();
        let refused = bus.request(&subject, number(0), PATIENCE).await;
        assert!(matches!(refused, Err(RequestError::NoResponders)), "{refused:?} on {subject:?}");
        let subscription = bus.subscribe(&subject).await.unwrap();
        drop(subscription);
        pause(MOMENT).await;
        let refused = bus.request(&subject, number(0), PATIENCE).await;
        assert!(matches!(refused, Err(RequestError::NoResponders)), "{refused:?} after the last left");
    }
}

async fn nobody_answers(bus: &dyn Bus) {
    let mut subscription = bus.subscribe(&control()).await.unwrap();
    let unread = bus.request(&control(), number(0), MOMENT).await;
    assert!(matches!(unread, Err(RequestError::TimedOut)), "{unread:?} from a listener that is busy");
    let kept = async {
        next(&mut *subscription).await;
        next(&mut *subscription).await
    };
    let (silent, kept) = join(bus.request(&control(), number(1), MOMENT), kept).await;
    assert!(matches!(silent, Err(RequestError::TimedOut)), "{silent:?} from a listener that is silent");
    drop(kept);
    let dropping = async { drop(next(&mut *subscription).await) };
    let (dropped, ()) = join(bus.request(&control(), number(2), MOMENT), dropping).await;
    assert!(matches!(dropped, Err(RequestError::TimedOut)), "{dropped:?} where the request was dropped");
}

async fn a_large_message_arrives(bus: &dyn Bus) {
    let largest = Bytes::from(vec![7; MAX_PAYLOAD]);
    let mut deliveries = bus.subscribe(&self::deliveries()).await.unwrap();
    bus.publish(&self::deliveries(), largest.clone()).await.unwrap();
    assert!(next(&mut *deliveries).await.payload == largest);
    let mut requests = bus.subscribe(&control()).await.unwrap();
    let (answered, ()) =
        join(bus.request(&control(), largest.clone(), PATIENCE), answer(&mut *requests, "")).await;
    assert!(answered.unwrap() == largest);
}

async fn a_slow_listener_goes_on(bus: &dyn Bus, pause: &impl AsyncFn(Duration)) {
    const FLOOD: u32 = 100_000;
    let mut slow = bus.subscribe(&deliveries()).await.unwrap();
    for at in 0..FLOOD {
        bus.publish(&deliveries(), number(at)).await.unwrap();
    }
    let read = drain(&mut *slow, pause).await;
    assert!(!read.is_empty() && read.len() < FLOOD as usize, "the queue holds {} messages", read.len());
    assert!(read.is_sorted(), "what is left is in order, each once");
    bus.publish(&deliveries(), number(FLOOD)).await.unwrap();
    assert_eq!(next(&mut *slow).await.payload, number(FLOOD), "the loss ends when the listener is back");
}
