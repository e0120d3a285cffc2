//! What the engines inside the process promise beyond the ports: their bounds, and how they end.
#![expect(clippy::unwrap_used, reason = "tests, of which clippy knows only the functions marked so")]

use std::time::Duration;

use bytes::Bytes;
use muster_adapters_memory::log::{DEDUPLICATION_IDS, DEDUPLICATION_WINDOW};
use muster_adapters_memory::{MemoryBus, MemoryLog, bus, log};
use muster_domain::ids::{MessageId, Partition};
use muster_ports::bus::{Bus as _, Subject};
use muster_ports::log::{Log as _, Position, PublishError};
use tokio::time::advance;
use uuid::Uuid;

fn id(number: usize) -> MessageId {
    MessageId(Uuid::from_u128(number as u128))
}

fn partition() -> Partition {
    Partition::new(3).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_id_is_forgotten_after_its_window() {
    let log = MemoryLog::default();
    let publish = async || log.publish(partition(), id(1), Bytes::from_static(b"x")).await.unwrap();
    let first = publish().await;
    advance(DEDUPLICATION_WINDOW).await;
    assert_eq!(publish().await, first);
    advance(Duration::from_millis(1)).await;
    assert!(publish().await > first);
}

#[tokio::test(start_paused = true)]
async fn the_ids_that_are_remembered_are_bounded() {
    let log = MemoryLog::default();
    let publish = async |number| log.publish(partition(), id(number), Bytes::new()).await.unwrap();
    let first = publish(0).await;
    let second = publish(1).await;
    for number in 2..=DEDUPLICATION_IDS {
        publish(number).await;
    }
    assert_eq!(publish(1).await, second);
    assert!(publish(0).await > first, "the oldest is forgotten");
}

#[tokio::test(start_paused = true)]
async fn the_usual_payload_limit_is_a_mebibyte() {
    let log = MemoryLog::default();
    let largest = Bytes::from(vec![0; 1024 * 1024]);
    log.publish(partition(), id(1), largest.clone()).await.unwrap();
    let refused = log.publish(partition(), id(2), [&largest[..], &[0]].concat().into()).await;
    assert!(matches!(refused, Err(PublishError::TooLarge { limit: 1_048_576, .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_purged_log_counts_nothing() {
    let log = MemoryLog::new(log::Limits { payload_bytes: 100, total_bytes: 10_000 });
    for number in 0..20 {
        log.publish(partition(), id(number), Bytes::from(vec![0; number])).await.unwrap();
    }
    assert!(log.used_bytes() > 0);
    log.purge(partition(), Position(u64::MAX)).await.unwrap();
    assert_eq!(log.used_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_listener_loses_its_oldest_messages_and_they_are_counted() {
    let subject = Subject::Wake("local".parse().unwrap());
    let bus = MemoryBus::new(bus::Limits { messages: 3, bytes: 10 });
    let mut subscription = bus.subscribe(&subject).await.unwrap();
    for payload in ["1", "2", "3", "4", "5"] {
        bus.publish(&subject, Bytes::from_static(payload.as_bytes())).await.unwrap();
    }
    assert_eq!(bus.lost(), 2);
    bus.publish(&subject, Bytes::from_static(b"123456789")).await.unwrap();
    assert_eq!(bus.lost(), 4, "by bytes as well");
    for expected in ["5", "123456789"] {
        assert_eq!(subscription.next().await.unwrap().payload, expected);
    }
    bus.publish(&subject, Bytes::from_static(b"longer than all that may wait")).await.unwrap();
    assert_eq!(subscription.next().await.unwrap().payload, "longer than all that may wait");
    assert_eq!(bus.lost(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_is_gone_ends_its_subscriptions() {
    let subject = Subject::Wake("local".parse().unwrap());
    let bus = MemoryBus::default();
    let mut waiting = bus.subscribe(&subject).await.unwrap();
    let mut behind = bus.subscribe(&subject).await.unwrap();
    bus.publish(&subject, Bytes::from_static(b"last")).await.unwrap();
    assert_eq!(waiting.next().await.unwrap().payload, "last");
    let (ended, ()) = tokio::join!(waiting.next(), async { drop(bus) });
    assert!(ended.is_none());
    assert_eq!(behind.next().await.unwrap().payload, "last", "what had arrived is still read");
    assert!(behind.next().await.is_none());
}
