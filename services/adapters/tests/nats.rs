//! The log, the buckets and the bus on a real NATS server: the contracts, and the days on which the
//! server goes away.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests, of which clippy knows only the functions marked so"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream as streams};
use muster_adapters::nats::{Nats, NatsError, NatsOptions};
use muster_domain::ids::{Cell, MessageId, Partition};
use muster_ports::EngineError;
use muster_ports::bus::{Bus as _, RequestError, Subject};
use muster_ports::contract;
use muster_ports::kv::{KeyValue as _, Precondition};
use muster_ports::log::{Log, LogEntry, LogReader, Position, PublishError};
use muster_testkit::engines::{self, Engine, engines_or_skip};
use tokio::sync::OnceCell;
use uuid::Uuid;

const CLUSTER: Uuid = Uuid::from_u128(1);
const PATIENCE: Duration = Duration::from_secs(30);

/// Changes a stream.
type Change = fn(&mut stream::Config);

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
        cluster: Some(CLUSTER),
        max_bytes: 64 * 1024 * 1024,
        max_blob_bytes: 16 * 1024 * 1024,
        deadline: Duration::from_secs(20),
        ..NatsOptions::new(url, new_cell())
    }
}

async fn connect(options: &NatsOptions) -> Nats {
    Nats::connect(options.clone()).await.unwrap()
}

async fn refused(options: NatsOptions) -> String {
    match Nats::connect(options).await {
        Ok(_) => panic!("it was not refused"),
        Err(error @ NatsError::Refused { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
    }
}

fn partition(number: u16) -> Partition {
    Partition::new(number).unwrap()
}

fn entry(number: u64) -> (MessageId, Bytes) {
    (MessageId(Uuid::now_v7()), Bytes::from(format!("entry {number}")))
}

/// Publishes an entry until it is acknowledged, as a gateway that must not lose it would.
async fn publish(log: &dyn Log, partition: Partition, number: u64) -> LogEntry {
    let (id, payload) = entry(number);
    let until = Instant::now() + PATIENCE;
    loop {
        match log.publish(partition, id, payload.clone()).await {
            Ok(position) => return LogEntry { position, id, payload },
            Err(PublishError::Engine(_)) if Instant::now() < until => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn take(reader: &mut dyn LogReader, count: usize) -> Vec<LogEntry> {
    let mut entries = Vec::new();
    let read = async {
        while entries.len() < count {
            entries.extend(reader.next(count - entries.len()).await.unwrap());
        }
    };
    if tokio::time::timeout(PATIENCE, read).await.is_err() {
        panic!("{} of {count} entries", entries.len());
    }
    entries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let make = async |limits: contract::log::Limits| {
        let options = NatsOptions {
            max_payload: Some(limits.payload_bytes),
            max_bytes: limits.total_bytes as u64,
            ..options(shared().await.url())
        };
        connect(&options).await.log()
    };
    contract::log::all(make).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_value() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let make = async |ttl: Option<Duration>| {
        let mut options = options(shared().await.url());
        match ttl {
            Some(ttl) => {
                options.lease_ttl = ttl;
                connect(&options).await.leases()
            }
            None => connect(&options).await.kv(),
        }
    };
    contract::kv::all(make, tokio::time::sleep).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bus() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    // The cases share subjects: a server of their own, and each waits until the one before has left.
    let server = engines::Nats::start().await;
    let options = options(server.url());
    let probe = connect(&options).await;
    let make = async || {
        let here: Cell = "here".parse().unwrap();
        let gateway = "g1".parse().unwrap();
        for subject in [
            Subject::Control(here.clone()),
            Subject::Wake(here.clone()),
            Subject::Deliveries(here.clone(), gateway),
        ] {
            let left = async || {
                let asked = probe.bus().request(&subject, Bytes::new(), Duration::from_millis(50)).await;
                matches!(asked, Err(RequestError::NoResponders))
            };
            while !left().await {}
        }
        connect(&options).await.bus()
    };
    let pause = async |time| {
        tokio::time::sleep(time).await;
        // What was sent has reached the server, and from there the listeners' queues.
        probe.flush().await.unwrap();
        tokio::time::sleep(time).await;
    };
    contract::bus::all(make, pause).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_goes_on_over_a_crash_of_the_server() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let mut server = engines::Nats::start().await;
    let nats = connect(&options(server.url())).await;
    let log = nats.log();
    let mut reader = log.read(partition(3), Position::default()).await.unwrap();
    // A reader that has nothing to read yet must not begin anew at another place either.
    let first = publish(&log, partition(9), 0).await;
    let mut idle = log.read(partition(9), first.position).await.unwrap();
    let publisher = tokio::spawn({
        let log = log.clone();
        async move {
            let mut published = Vec::new();
            for number in 0..600 {
                published.push(publish(&log, partition(3), number).await);
            }
            published
        }
    });
    let mut read = take(&mut *reader, 100).await;
    let began = Instant::now();
    server.kill9().await;
    server.restart().await;
    read.extend(take(&mut *reader, 100).await);
    eprintln!("entries come again {:?} after the crash", began.elapsed());
    server.kill9().await;
    server.restart().await;
    let published = publisher.await.unwrap();
    read.extend(take(&mut *reader, published.len() - read.len()).await);
    assert_eq!(read, published, "each once, in order");
    let later = publish(&log, partition(9), 1).await;
    assert_eq!(take(&mut *idle, 1).await, [later]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_made_anew_is_told_from_the_old_one() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let options = options(shared().await.url());
    let log = connect(&options).await.log();
    let mut published = Vec::new();
    for number in 0..5 {
        published.push(publish(&log, partition(1), number).await);
    }
    let mut reader = log.read(partition(1), Position::default()).await.unwrap();
    assert_eq!(take(&mut *reader, 5).await, published);

    let own = log.id_at(partition(1), Position::default()).await.unwrap();
    assert!(own.is_some());
    let context = jetstream::new(async_nats::connect(&options.url).await.unwrap());
    context.delete_stream(log.stream_name()).await.unwrap();
    assert!(log.id_at(partition(1), Position::default()).await.is_err());
    let gone = log.publish(partition(1), entry(0).0, Bytes::new()).await.unwrap_err().to_string();
    assert!(gone.contains("does not answer"), "{gone}");
    let gone = log.id_at(partition(1), published[0].position).await.unwrap_err().to_string();
    assert!(gone.contains("is gone"), "{gone}");

    let log = connect(&options).await.log();
    let other = log.id_at(partition(1), Position::default()).await.unwrap();
    assert!(other.is_some() && other != own, "another stream has another id");
    for number in 0..9 {
        publish(&log, partition(1), number).await;
    }
    for old in &published {
        let found = log.id_at(partition(1), old.position).await.unwrap();
        assert!(found.is_some() && found != Some(old.id), "another entry is at the position now");
    }
    assert_eq!(log.id_at(partition(2), published[0].position).await.unwrap(), None);
    assert_eq!(log.id_at(partition(1), Position(10)).await.unwrap(), None, "not written yet");
    let told = tokio::time::timeout(PATIENCE, reader.next(10)).await.unwrap();
    match told {
        Err(EngineError::Corrupt { reason, .. }) => assert!(reason.contains("made anew"), "{reason}"),
        other => panic!("{other:?} from a reader whose stream was made anew"),
    }
    assert!(matches!(reader.next(1).await, Err(EngineError::Corrupt { .. })), "it does not go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_settings_are_refused_with_the_fix() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let options = options(shared().await.url());
    let context = jetstream::new(async_nats::connect(&options.url).await.unwrap());
    let nats = connect(&options).await;
    let name = nats.log().stream_name().to_owned();
    connect(&options).await;

    let other = refused(NatsOptions { cluster: Some(Uuid::from_u128(2)), ..options.clone() }).await;
    assert!(other.contains("belongs to another cluster"), "{other}");
    let other = refused(NatsOptions { max_bytes: 1024 * 1024, ..options.clone() }).await;
    assert!(other.contains(&format!("`nats stream edit {name} --max-bytes=1048576`")), "{other}");
    let other = refused(NatsOptions { lease_ttl: Duration::from_secs(20), ..options.clone() }).await;
    assert!(other.contains("-leases has a maximum age of 10s where 20s is asked for"), "{other}");
    let other = refused(NatsOptions { replicas: 3, ..options.clone() }).await;
    assert!(other.contains("has replicas 1 where 3 is asked for"), "{other}");
    let alone = refused(NatsOptions { replicas: 3, cell: new_cell(), ..options.clone() }).await;
    assert!(alone.contains("replicas > 1 not supported in non-clustered mode"), "{alone}");

    let config = context.get_stream(&name).await.unwrap().cached_info().config.clone();
    let changes: [(&str, Change); 4] = [
        ("discard policy Old", |config| config.discard = stream::DiscardPolicy::Old),
        ("a duplicate window of 60s", |config| config.duplicate_window = Duration::from_secs(60)),
        ("a maximum age of 3600s", |config| config.max_age = Duration::from_secs(3600)),
        ("subjects", |config| config.subjects.push("muster.more".to_owned())),
    ];
    for (told, change) in changes {
        let mut changed = config.clone();
        change(&mut changed);
        context.update_stream(&changed).await.unwrap();
        let reason = refused(NatsOptions { cluster: None, ..options.clone() }).await;
        assert!(reason.contains(told) && reason.contains("`nats stream edit"), "{reason}");
    }
    context.update_stream(&config).await.unwrap();
    connect(&options).await;

    context.delete_stream(&name).await.unwrap();
    let mut changed = config.clone();
    changed.metadata.insert("muster-partitions".to_owned(), "32".to_owned());
    context.create_stream(&changed).await.unwrap();
    let reason = refused(options.clone()).await;
    assert!(reason.contains("has 32 partitions where 64 are asked for"), "{reason}");

    context.delete_stream(&name).await.unwrap();
    context.create_stream(stream::Config { storage: stream::StorageType::Memory, ..config }).await.unwrap();
    let reason = refused(options).await;
    assert!(reason.contains("has storage Memory where File is asked for"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_waits_for_the_stream() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let options = options(shared().await.url());
    let gateway = NatsOptions { cluster: None, ..options.clone() };
    let hasty = NatsOptions { deadline: Duration::from_millis(500), ..gateway.clone() };
    let error = Nats::connect(hasty).await.err().unwrap();
    assert!(matches!(error, NatsError::NotReady { .. }), "{error:?}");
    assert!(error.to_string().contains("there is no stream muster-cell_"), "{error}");
    let waiting = tokio::spawn(Nats::connect(gateway));
    connect(&options).await;
    waiting.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_waits_for_the_server_and_gives_up() {
    // Nothing listens on port 1.
    let options = NatsOptions {
        deadline: Duration::from_millis(1500),
        ..options("nats://someone:secret@127.0.0.1:1".to_owned())
    };
    let began = Instant::now();
    assert!(!format!("{options:?}").contains("secret"));
    let error = Nats::connect(options).await.err().unwrap();
    assert!(matches!(error, NatsError::NotReady { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with("NATS at nats://***@127.0.0.1:1 was not ready within 1.5s"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_partition_is_read_at_once() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let log = connect(&options(shared().await.url())).await.log();
    let mut readers = Vec::new();
    for partition in Partition::all() {
        readers.push(log.read(partition, Position::default()).await.unwrap());
    }
    let published = streams::iter(0..640_u64)
        .map(|number| publish(&log, partition((number % 64) as u16), number))
        .buffered(64)
        .collect::<Vec<_>>();
    let read = futures_util::future::join_all(readers.iter_mut().map(|reader| take(&mut **reader, 10)));
    let (published, read) = tokio::join!(published, read);
    for (at, entries) in read.iter().enumerate() {
        assert!(entries.is_sorted_by(|one, next| one.position < next.position));
        let mut expected: Vec<_> = published.iter().skip(at).step_by(64).cloned().collect();
        expected.sort_by_key(|entry| entry.position);
        assert_eq!(*entries, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_publish_stops_no_reader() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let options = options(shared().await.url());
    let log = connect(&options).await.log();
    let context = jetstream::new(async_nats::connect(&options.url).await.unwrap());
    let subject = format!("muster.{}.log.5", options.cell.as_str().replace('.', "_"));
    let position = context.publish(subject, "foreign".into()).await.unwrap().await.unwrap().sequence;
    let own = publish(&log, partition(5), 1).await;
    let mut reader = log.read(partition(5), Position::default()).await.unwrap();
    let foreign =
        LogEntry { position: Position(position), id: MessageId(Uuid::nil()), payload: "foreign".into() };
    assert_eq!(take(&mut *reader, 2).await, [foreign, own]);
    assert_eq!(log.id_at(partition(5), Position(position)).await.unwrap(), Some(MessageId(Uuid::nil())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_entry_is_found_again() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let log = connect(&options(shared().await.url())).await.log();
    let (id, payload) = (MessageId(Uuid::now_v7()), Bytes::from(vec![7; log.max_payload()]));
    assert!(payload.len() > (1 << 20) - 100);
    let position = log.publish(partition(5), id, payload.clone()).await.unwrap();
    assert_eq!(log.id_at(partition(5), position).await.unwrap(), Some(id));
    assert_eq!(log.last(partition(5)).await.unwrap(), position);
    let mut reader = log.read(partition(5), Position::default()).await.unwrap();
    assert!(take(&mut *reader, 1).await == [LogEntry { position, id, payload }]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_may_hold_anything() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let bucket = connect(&options(shared().await.url())).await.kv();
    let mut keys = vec!["", ".", "a..b", "gateway/g.1", "*", ">", "a b", "ü", "=", "end."];
    for key in &keys {
        bucket.put(key, Bytes::from((*key).to_owned()), Precondition::Absent).await.unwrap();
    }
    keys.sort_unstable();
    let listed = bucket.list("").await.unwrap();
    assert_eq!(listed.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), keys);
    for (key, found) in listed {
        assert_eq!(
            (found.value.as_ref(), bucket.get(&key).await.unwrap()),
            (key.as_bytes(), Some(found.clone()))
        );
    }
}

/// A measurement, on servers that run already:
/// `NATS_URL=nats://.. NATS_REPLICAS=1 cargo test --release -p muster-adapters --test nats -- --nocapture throughput`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throughput() {
    const SECONDS: Duration = Duration::from_secs(5);
    let Ok(url) = std::env::var("NATS_URL") else { return };
    let replicas = std::env::var("NATS_REPLICAS").map_or(1, |replicas| replicas.parse().unwrap());
    let cell = format!("measured-{}", Uuid::now_v7().simple()).parse().unwrap();
    let options = NatsOptions { replicas, cell, max_bytes: 4 << 30, ..options(url) };
    let log = Arc::new(connect(&options).await.log());
    let payload = Bytes::from(vec![7; 512]);
    for in_flight in [1, 256] {
        let began = Instant::now();
        let count = streams::iter((0..u16::MAX).cycle().take_while(|_| began.elapsed() < SECONDS))
            .map(|number| log.publish(partition(number % 64), MessageId(Uuid::now_v7()), payload.clone()))
            .buffer_unordered(in_flight)
            .map(Result::unwrap)
            .count()
            .await;
        println!("published, {in_flight} in flight: {:.0}/s", count as f64 / began.elapsed().as_secs_f64());
    }
    let began = Instant::now();
    let readers = Partition::all().map(|partition| {
        let log = Arc::clone(&log);
        tokio::spawn(async move {
            let mut reader = log.read(partition, Position::default()).await.unwrap();
            let (mut read, mut batches, mut last) = (0, 0, Instant::now());
            while let Ok(entries) = tokio::time::timeout(Duration::from_secs(1), reader.next(500)).await {
                (read, batches, last) = (read + entries.unwrap().len(), batches + 1, Instant::now());
            }
            (read, batches, last)
        })
    });
    let read = futures_util::future::join_all(readers).await;
    let read: Vec<(usize, usize, Instant)> = read.into_iter().map(Result::unwrap).collect();
    let last = read.iter().map(|(_, _, last)| *last).max().unwrap();
    let all: usize = read.iter().map(|(count, _, _)| count).sum();
    let batches: usize = read.iter().map(|(_, batches, _)| batches).sum();
    let seconds = last.duration_since(began).as_secs_f64();
    println!("read by 64 readers: {all} in {seconds:.2} s, {:.0}/s, {batches} batches", all as f64 / seconds);
}
