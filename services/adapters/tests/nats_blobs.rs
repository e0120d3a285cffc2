//! Blobs on real NATS servers: the contract, and what may lie in the stream.
#![expect(clippy::unwrap_used, reason = "tests, of which clippy knows only the functions marked so")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use bytes::Bytes;
use muster_adapters::nats::{Nats, NatsBlobs, NatsOptions};
use muster_domain::ids::{Cell, Tenant};
use muster_ports::blobs::{BlobRef, Blobs as _, PutError, patience};
use muster_ports::{EngineError, contract};
use muster_testkit::engines::{self, Engine, NatsCluster, engines_or_skip};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// A server that the tests share which leave it alone.
async fn shared() -> &'static engines::Nats {
    static SERVER: OnceCell<engines::Nats> = OnceCell::const_new();
    SERVER.get_or_init(engines::Nats::start).await
}

/// A cell that no other test uses.
fn new_cell() -> Cell {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("cell.{}", COUNT.fetch_add(1, Ordering::Relaxed)).parse().unwrap()
}

fn options(url: String) -> NatsOptions {
    NatsOptions {
        cluster: Some(Uuid::from_u128(1)),
        max_bytes: 16 << 20,
        max_blob_bytes: 256 << 20,
        deadline: Duration::from_secs(20),
        ..NatsOptions::new(url, new_cell())
    }
}

async fn connect(options: &NatsOptions) -> NatsBlobs {
    Nats::connect(options.clone()).await.unwrap().blobs()
}

fn tenant() -> Tenant {
    "default".parse().unwrap()
}

fn content(seed: u8, size: usize) -> Bytes {
    (0..size).map(|at| (at / 251 + at) as u8 ^ seed).collect()
}

/// The subject of a piece, as it stands in the stream.
fn subject(options: &NatsOptions, blob: &BlobRef, piece: usize) -> String {
    let cell = options.cell.as_str().replace('.', "_");
    format!("muster.{cell}.blob.default.{}.{piece}", blob.digest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let make = async |bytes: usize| {
        connect(&NatsOptions { max_blob_bytes: bytes as u64, ..options(shared().await.url()) }).await
    };
    contract::blobs::all(make).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_of_the_largest_message_is_put_and_read() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let blobs = connect(&options(shared().await.url())).await;
    let content = content(1, 64 << 20);
    let began = Instant::now();
    let blob = blobs.put(&tenant(), content.clone()).await.unwrap();
    let put = began.elapsed();
    assert!(blobs.get(&tenant(), &blob).await.unwrap() == Some(content));
    println!("64 MiB: put in {put:?}, read in {:?}", began.elapsed() - put);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_content_in_a_blobs_place_is_told() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let options = options(shared().await.url());
    let blobs = connect(&options).await;
    let context = jetstream::new(async_nats::connect(&options.url).await.unwrap());
    let good = content(1, 600_000);
    let blob = blobs.put(&tenant(), good.clone()).await.unwrap();
    for (piece, bytes) in [(0, vec![0; 262_144]), (1, vec![0; 262_144]), (2, vec![0; 10]), (2, vec![])] {
        let subject = subject(&options, &blob, piece);
        context.publish(subject, bytes.into()).await.unwrap().await.unwrap();
        let found = blobs.get(&tenant(), &blob).await;
        assert!(matches!(found, Err(EngineError::Corrupt { .. })), "piece {piece}");
        blobs.put(&tenant(), good.clone()).await.unwrap();
        assert!(
            blobs.get(&tenant(), &blob).await.unwrap() == Some(good.clone()),
            "put again, it is good again"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_off_put_is_no_blob_and_is_removed_with_the_others() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let options = options(shared().await.url());
    let blobs = connect(&options).await;
    let context = jetstream::new(async_nats::connect(&options.url).await.unwrap());
    let whole = content(1, 600_000);
    let blob = blobs.put(&tenant(), whole.clone()).await.unwrap();
    for missing in 0..3 {
        let stream = context.get_stream(blobs.stream_name()).await.unwrap();
        stream.purge().filter(subject(&options, &blob, missing)).await.unwrap();
        assert_eq!(blobs.get(&tenant(), &blob).await.unwrap(), None, "without piece {missing}");
        if missing < 2 {
            blobs.put(&tenant(), whole.clone()).await.unwrap();
        }
    }
    let mark = blobs.mark().await.unwrap();
    assert!(mark.bytes > 500_000);
    blobs.remove_before(&mark).await.unwrap();
    assert_eq!(blobs.mark().await.unwrap().bytes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_removes_nothing_from_a_stream_that_was_made_anew() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let options = options(shared().await.url());
    let old = connect(&options).await;
    for seed in 0..3 {
        old.put(&tenant(), content(seed, 600_000)).await.unwrap();
    }
    let mark = old.mark().await.unwrap();
    let context = jetstream::new(async_nats::connect(&options.url).await.unwrap());
    context.delete_stream(old.stream_name()).await.unwrap();
    let refused = old.put(&tenant(), content(1, 600_000)).await.unwrap_err().to_string();
    assert!(refused.ends_with(&format!("the stream {} does not answer", old.stream_name())), "{refused}");
    let unread = old.mark().await.unwrap_err().to_string();
    assert!(unread.contains("is gone; a control creates it when it starts"), "{unread}");
    let new = connect(&options).await;
    let blob = new.put(&tenant(), content(1, 600_000)).await.unwrap();
    for blobs in [&old, &new] {
        blobs.remove_before(&mark).await.unwrap();
        assert!(blobs.get(&tenant(), &blob).await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_server_is_told_in_time_and_loses_nothing() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let mut server = engines::Nats::start().await;
    let options = NatsOptions { timeout: Duration::from_secs(1), ..options(server.url()) };
    let blobs = connect(&options).await;
    let content = content(1, 600_000);
    let blob = blobs.put(&tenant(), content.clone()).await.unwrap();
    server.kill9().await;
    let began = Instant::now();
    let refused = blobs.put(&tenant(), content.clone()).await;
    assert!(matches!(refused, Err(PutError::Engine(EngineError::Unavailable { .. }))), "{refused:?}");
    let unread = blobs.get(&tenant(), &blob).await;
    assert!(matches!(unread, Err(EngineError::Unavailable { .. })), "{unread:?}");
    assert!(blobs.mark().await.is_err());
    assert!(began.elapsed() < 2 * patience(600_000));
    server.restart().await;
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match blobs.get(&tenant(), &blob).await {
            Ok(found) => break assert!(found == Some(content)),
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_goes_on_over_the_loss_of_one_server_of_three() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let mut cluster = NatsCluster::start(3).await;
    let options = NatsOptions { replicas: 3, ..options(cluster.url()) };
    let blobs = connect(&options).await;
    let contents: Vec<Bytes> = (0..6).map(|seed| content(seed, 3 << 20)).collect();
    let mut put = Vec::new();
    for (at, content) in contents.iter().enumerate() {
        if at == 3 {
            let leader = cluster.leader().await.unwrap();
            cluster.servers_mut()[leader].kill9().await;
        }
        let until = Instant::now() + Duration::from_secs(30);
        let blob = loop {
            match blobs.put(&tenant(), content.clone()).await {
                Ok(blob) => break blob,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
        };
        put.push(blob);
    }
    for (blob, content) in put.iter().zip(&contents) {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            match blobs.get(&tenant(), blob).await {
                Ok(found) => break assert!(found.as_ref() == Some(content), "an answered put is not found"),
                Err(error @ EngineError::Unavailable { .. }) => assert!(Instant::now() < until, "{error}"),
                Err(error) => panic!("{error}"),
            }
        }
    }
}
