//! The log and the leases on a cluster of three NATS servers, of which one goes away.
#![expect(clippy::panic, reason = "tests, of which clippy knows only the functions marked so")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use muster_adapters::nats::{Nats, NatsLog, NatsOptions};
use muster_domain::ids::{MessageId, Partition};
use muster_ports::kv::{KeyValue as _, Precondition};
use muster_ports::log::{Log as _, LogEntry, Position, PublishError};
use muster_testkit::engines::{Engine, NatsCluster, engines_or_skip};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);
/// Payload of the last entry of a partition.
const LAST: &str = "last";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_with_one_server() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let mut cluster = NatsCluster::start(3).await;
    let options = NatsOptions {
        cluster: Some(Uuid::from_u128(1)),
        replicas: 3,
        max_bytes: 64 * 1024 * 1024,
        max_blob_bytes: 16 * 1024 * 1024,
        ..NatsOptions::new(cluster.url(), "eu.west".parse().unwrap())
    };
    let nats = Nats::connect(options).await.unwrap();
    let (log, leases) = (nats.log(), nats.leases());
    let partitions: Vec<Partition> = Partition::all().take(8).collect();
    let publisher = tokio::spawn({
        let (log, partitions) = (log.clone(), partitions.clone());
        async move {
            let mut published: Vec<Vec<LogEntry>> = vec![Vec::new(); partitions.len()];
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(8) {
                for (partition, published) in partitions.iter().zip(&mut published) {
                    published.push(publish(&log, *partition, "entry").await);
                }
            }
            for (partition, published) in partitions.iter().zip(&mut published) {
                published.push(publish(&log, *partition, LAST).await);
            }
            published
        }
    });
    let readers: Vec<_> = partitions
        .iter()
        .map(|partition| {
            let (log, partition) = (log.clone(), *partition);
            tokio::spawn(async move {
                let mut reader = log.read(partition, Position::default()).await.unwrap();
                let mut read: Vec<LogEntry> = Vec::new();
                while read.last().is_none_or(|entry| entry.payload != LAST) {
                    let next = tokio::time::timeout(PATIENCE, reader.next(100)).await;
                    read.extend(next.unwrap_or_else(|_| panic!("{} entries, no more", read.len())).unwrap());
                }
                read
            })
        })
        .collect();
    let mut versions = Vec::new();
    let lease = async |number: u64| {
        let until = Instant::now() + PATIENCE;
        let value = Bytes::from(number.to_be_bytes().to_vec());
        loop {
            match leases.put("gateway/g1", value.clone(), Precondition::Any).await {
                Ok(version) => {
                    let found = leases.get("gateway/g1").await;
                    if let Ok(found) = found {
                        assert_eq!(found.unwrap().value, value, "a read sees what was acknowledged");
                        return version;
                    }
                }
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
        }
    };
    for number in 0..50 {
        versions.push(lease(number).await);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let leader = cluster.leader().await.unwrap();
    cluster.servers_mut()[leader].kill9().await;
    for number in 50..100 {
        versions.push(lease(number).await);
    }
    cluster.servers_mut()[leader].restart().await;
    cluster.ready().await;
    for number in 100..150 {
        versions.push(lease(number).await);
    }
    assert!(versions.is_sorted_by(|one, next| one < next));
    let published = publisher.await.unwrap();
    for (reader, published) in readers.into_iter().zip(published) {
        let positions = |entries: &[LogEntry]| entries.iter().map(|e| e.position.0).collect::<Vec<_>>();
        let read = reader.await.unwrap();
        assert_eq!(positions(&read), positions(&published), "each once, in order");
        assert!(read == published, "another entry at a position");
    }
}

/// Publishes an entry until it is acknowledged, as a gateway that must not lose it would.
async fn publish(log: &NatsLog, partition: Partition, text: &'static str) -> LogEntry {
    let (id, payload) = (MessageId(Uuid::now_v7()), Bytes::from_static(text.as_bytes()));
    let until = Instant::now() + PATIENCE;
    loop {
        match log.publish(partition, id, payload.clone()).await {
            Ok(position) => return LogEntry { position, id, payload },
            Err(PublishError::Engine(_)) if Instant::now() < until => {}
            Err(error) => panic!("{error}"),
        }
    }
}
