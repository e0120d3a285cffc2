//! Control on engines in memory: reports that are blobs, and offers that are larger than a message.
#![expect(clippy::unwrap_used, reason = "tests end with their panics")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use muster_adapters_memory::{
    MemoryBlobs, MemoryBus, MemoryKeyValue, MemoryLog, MemoryOwnership, MemoryStore,
};
use muster_control::{Engines, Metrics, Settings, run};
use muster_domain::ids::{AgentKey, Digest, InstanceUid, MessageId, Partition, Tenant, Timestamp};
use muster_domain::intent::plan;
use muster_domain::manifest;
use muster_ports::blobs::{BlobRef, Blobs, Mark, PutError};
use muster_ports::bus::{Bus, MAX_PAYLOAD, Subject, Subscription};
use muster_ports::host::Random;
use muster_ports::host::Spawner;
use muster_ports::log::Log;
use muster_ports::store::{FleetStore, FoldStore, IntentStore};
use muster_ports::{EngineError, LEASE_TTL};
use muster_proto::Message;
use muster_proto::bus::delivery::Action;
use muster_proto::bus::{
    self, CompiledBody, ControlReply, ControlRequest, Delivery, Envelope, GetBody, SessionStarted,
    control_reply, control_request,
};
use muster_proto::opamp::any_value::Value;
use muster_proto::opamp::{AgentDescription, AgentToServer, AnyValue, KeyValue};
use prometheus::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(300);

/// Blobs of an engine that may be away, and that counts what is read.
#[derive(Default)]
struct Moody {
    blobs: MemoryBlobs,
    /// Reads that are still to fail because the engine is away.
    away: AtomicU64,
    /// Whether reads have no end.
    silent: AtomicBool,
    /// Reads that are still to find something else in the place.
    damaged: AtomicU64,
    /// Reads in their order, as sizes.
    read: std::sync::Mutex<Vec<u64>>,
}

fn one_less(left: &AtomicU64) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

#[async_trait]
impl Blobs for Moody {
    async fn put(&self, tenant: &Tenant, content: Bytes) -> Result<BlobRef, PutError> {
        self.blobs.put(tenant, content).await
    }

    async fn get(&self, tenant: &Tenant, blob: &BlobRef) -> Result<Option<Bytes>, EngineError> {
        if self.silent.load(Ordering::SeqCst) {
            self.read.lock().unwrap().push(blob.size);
            std::future::pending::<()>().await;
        }
        if one_less(&self.away) {
            return Err(EngineError::Unavailable { engine: "blobs", reason: "away".to_owned() });
        }
        if one_less(&self.damaged) {
            let place = blob.digest.to_string();
            return Err(EngineError::Corrupt { engine: "blobs", place, reason: "damaged".to_owned() });
        }
        self.read.lock().unwrap().push(blob.size);
        self.blobs.get(tenant, blob).await
    }

    async fn mark(&self) -> Result<Mark, EngineError> {
        self.blobs.mark().await
    }

    async fn remove_before(&self, mark: &Mark) -> Result<(), EngineError> {
        self.blobs.remove_before(mark).await
    }
}

struct Cluster {
    log: Arc<MemoryLog>,
    blobs: Arc<Moody>,
    bus: Arc<MemoryBus>,
    store: Arc<MemoryStore>,
    registry: Registry,
    stop: CancellationToken,
    control: Option<JoinHandle<()>>,
}

impl Cluster {
    fn new() -> Self {
        Self {
            log: Arc::new(MemoryLog::default()),
            blobs: Arc::new(Moody::default()),
            bus: Arc::new(MemoryBus::default()),
            store: Arc::new(MemoryStore::new()),
            registry: Registry::new(),
            stop: CancellationToken::new(),
            control: None,
        }
    }

    fn start(&mut self) {
        let clock = AtomicU64::new(1_000_000);
        let engines = Engines {
            log: self.log.clone(),
            blobs: self.blobs.clone(),
            bus: self.bus.clone(),
            leases: Arc::new(MemoryKeyValue::new(Some(LEASE_TTL))),
            values: Arc::new(MemoryKeyValue::new(None)),
            polls: Arc::new(MemoryOwnership::new()),
            fold: self.store.clone(),
            components: self.store.clone(),
            intent: self.store.clone(),
            commands: self.store.clone(),
            rollouts: self.store.clone(),
            fleet: self.store.clone(),
            clock: Arc::new(move || Timestamp(clock.fetch_add(1, Ordering::Relaxed))),
            random: Random::new(|| Uuid::now_v7().as_u64_pair().1),
            spawner: Spawner::new(|task| drop(tokio::spawn(task))),
        };
        let metrics = Metrics::register(&self.registry).unwrap();
        let settings = Settings::new("default".parse().unwrap(), "control");
        let stop = self.stop.clone();
        self.control =
            Some(tokio::spawn(async move { run(settings, engines, metrics, stop).await.unwrap() }));
    }

    async fn apply(&self, manifests: &str) {
        let tenant = "default".parse().unwrap();
        let documents = manifest::parse(manifests).unwrap();
        let intent = self.store.intent(&tenant).await.unwrap();
        let change = plan(&intent, &documents, Timestamp(1), Uuid::now_v7).unwrap();
        self.store.change(&tenant, &change).await.unwrap();
        self.bus.publish(&Subject::Wake("default".parse().unwrap()), Bytes::new()).await.unwrap();
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        self.control.take().unwrap().await.unwrap();
    }

    async fn deliveries(&self) -> Box<dyn Subscription> {
        let gateway = Subject::Deliveries("default".parse().unwrap(), "gw".parse().unwrap());
        self.bus.subscribe(&gateway).await.unwrap()
    }

    /// Publishes the n-th report of an agent, as a blob or as it is. Its attribute `note` has this length.
    async fn report(&self, key: &AgentKey, n: u64, note: usize, apart: bool) -> Envelope {
        let attribute =
            |key: &str, value| KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) };
        let description = AgentDescription {
            non_identifying_attributes: vec![
                attribute("team", Value::StringValue("blue".to_owned())),
                attribute("note", Value::StringValue("x".repeat(note))),
            ],
            ..AgentDescription::default()
        };
        let message = AgentToServer {
            instance_uid: key.uid.as_bytes().to_vec(),
            sequence_num: n,
            capabilities: 0x1003,
            agent_description: Some(description),
            ..AgentToServer::default()
        };
        let bytes = Bytes::from(message.encode_to_vec());
        let blob = match apart {
            true => {
                let blob = self.blobs.put(&key.tenant, bytes.clone()).await.unwrap();
                let digest = Bytes::copy_from_slice(&blob.digest.0);
                Some(bus::BlobRef { digest, size: blob.size })
            }
            false => None,
        };
        let envelope = Envelope {
            cell: "default".to_owned(),
            tenant: key.tenant.to_string(),
            instance_uid: key.uid.as_bytes().to_vec().into(),
            session_id: Uuid::from_u128(7).as_bytes().to_vec().into(),
            claim: 1,
            gateway: "gw".to_owned(),
            incarnation: Uuid::from_u128(8).as_bytes().to_vec().into(),
            received_at_us: 1_000_000,
            sequence_num: n,
            agent_to_server: (!apart).then_some(bytes),
            agent_to_server_blob: blob,
            started: (n == 0).then(SessionStarted::default),
            ..Envelope::default()
        };
        self.publish(key, &envelope).await;
        envelope
    }

    async fn publish(&self, key: &AgentKey, envelope: &Envelope) {
        let id = MessageId(Uuid::now_v7());
        self.log.publish(Partition::of(key), id, envelope.encode_to_vec().into()).await.unwrap();
    }

    /// Waits until an agent has its n-th report; returns the length of its note.
    async fn agent_at(&self, key: &AgentKey, n: u64) -> usize {
        let wait = async {
            loop {
                if let Some((stored, _)) = self.store.agent(key).await.unwrap()
                    && stored.agent.state.sequence_num == n
                {
                    let description = stored.agent.state.description.unwrap();
                    return description.non_identifying["note"].as_str().unwrap().len();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, wait).await.unwrap()
    }

    fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let has =
            |metric: &&prometheus::proto::Metric| metric.get_label().iter().all(|pair| pair.value() == label);
        let metrics = family.into_iter().flat_map(|family| family.get_metric()).filter(has);
        metrics.map(|metric| metric.get_counter().get_value()).sum()
    }
}

fn key(number: u128) -> AgentKey {
    AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(number)) }
}

/// Agents of one partition.
fn keys(count: usize) -> Vec<AgentKey> {
    let partition = Partition::of(&key(0));
    (0..).map(key).filter(|key| Partition::of(key) == partition).take(count).collect()
}

/// The agent that the next delivery asks for its full state.
async fn asked(deliveries: &mut dyn Subscription) -> Bytes {
    let received = tokio::time::timeout(SOON, deliveries.next()).await.unwrap().unwrap();
    match Delivery::decode(received.payload).unwrap().action {
        Some(Action::RequestFullState(asked)) => asked.sessions[0].instance_uid.clone(),
        other => unreachable!("no other delivery is due: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn reports_in_blobs_are_folded_in_order() {
    let mut cluster = Cluster::new();
    cluster.start();
    let key = key(1);
    for n in 0..20 {
        cluster.report(&key, n, 1000 + n as usize, n % 2 == 1).await;
    }
    assert_eq!(cluster.agent_at(&key, 19).await, 1019);
    cluster.stop().await;
    assert_eq!(cluster.metric("muster_control_blobs_total", "found"), 10.0);
    assert!(cluster.store.quarantined().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_report_whose_blob_is_gone_or_damaged_is_quarantined_and_its_agent_asked() {
    let mut cluster = Cluster::new();
    let mut deliveries = cluster.deliveries().await;
    let keys = keys(3);
    cluster.start();
    for key in &keys {
        cluster.report(key, 0, 10, false).await;
    }
    cluster.agent_at(&keys[2], 0).await;
    // Put by nobody.
    let digest = Bytes::copy_from_slice(&Digest::of(b"nothing").0);
    let lost = Envelope {
        agent_to_server: None,
        agent_to_server_blob: Some(bus::BlobRef { digest, size: 7 }),
        ..cluster.report(&keys[0], 1, 10, false).await
    };
    cluster.publish(&keys[0], &lost).await;
    assert_eq!(asked(&mut *deliveries).await, keys[0].uid.as_bytes().as_slice());
    cluster.blobs.damaged.store(1, Ordering::SeqCst);
    let damaged = cluster.report(&keys[1], 1, 20, true).await;
    assert_eq!(asked(&mut *deliveries).await, keys[1].uid.as_bytes().as_slice());
    // A blob that is there and holds no report.
    let blob = cluster.blobs.put(&keys[2].tenant, Bytes::from_static(&[0xff; 9])).await.unwrap();
    let digest = Bytes::copy_from_slice(&blob.digest.0);
    let nonsense =
        Envelope { agent_to_server_blob: Some(bus::BlobRef { digest, size: blob.size }), ..lost.clone() };
    cluster.publish(&keys[2], &nonsense).await;
    assert_eq!(
        asked(&mut *deliveries).await,
        keys[0].uid.as_bytes().as_slice(),
        "the envelope says whose it is"
    );
    // The others go on.
    for key in &keys {
        cluster.report(key, 2, 30, true).await;
        assert_eq!(cluster.agent_at(key, 2).await, 30);
    }
    cluster.stop().await;
    let kept: Vec<_> = cluster
        .store
        .quarantined()
        .into_iter()
        .map(|entry| (entry.payload, entry.key, entry.reason))
        .collect();
    let envelopes = [&lost, &damaged, &nonsense].map(|envelope| Bytes::from(envelope.encode_to_vec()));
    let (payloads, whose): (Vec<_>, Vec<_>) =
        kept.iter().map(|(payload, key, _)| (payload.clone(), key.clone().unwrap())).unzip();
    assert_eq!(payloads, envelopes, "the envelopes are kept");
    assert_eq!(whose, [keys[0].clone(), keys[1].clone(), keys[0].clone()]);
    for ((.., reason), word) in kept.iter().zip(["is not there", "damaged", "not an AgentToServer"]) {
        assert!(reason.contains(word), "{reason}");
    }
    assert_eq!(cluster.metric("muster_control_quarantined_entries_total", ""), 3.0);
}

#[tokio::test(start_paused = true)]
async fn a_blob_store_that_is_away_is_waited_for_and_loses_nothing() {
    let mut cluster = Cluster::new();
    let key = key(1);
    cluster.blobs.away.store(20, Ordering::SeqCst);
    for n in 0..4 {
        cluster.report(&key, n, 100 + n as usize, n > 0).await;
    }
    cluster.start();
    assert_eq!(cluster.agent_at(&key, 3).await, 103);
    cluster.stop().await;
    assert_eq!(cluster.metric("muster_control_blobs_total", "failed"), 20.0);
    assert!(cluster.store.quarantined().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_control_that_is_stopped_does_not_wait_for_a_blob_store() {
    let mut cluster = Cluster::new();
    cluster.blobs.silent.store(true, Ordering::SeqCst);
    cluster.report(&key(1), 0, 10, true).await;
    cluster.start();
    while cluster.blobs.read.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::timeout(Duration::from_secs(5), cluster.stop()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_more_reports_are_held_at_once_than_there_is_memory_for() {
    const MIB: usize = 1 << 20;
    let mut cluster = Cluster::new();
    // A different size each, so that each is a blob of its own; one is larger than what goes together.
    let sizes: Vec<usize> =
        (0..8).map(|n| 6 * MIB + n).chain([40 * MIB]).chain((8..12).map(|n| 6 * MIB + n)).collect();
    let keys = keys(sizes.len());
    for (key, size) in keys.iter().zip(&sizes) {
        cluster.report(key, 0, *size, true).await;
    }
    cluster.start();
    for (key, size) in keys.iter().zip(&sizes) {
        assert_eq!(cluster.agent_at(key, 0).await, *size);
    }
    cluster.stop().await;
    // Of 32 MiB, five reports at most went into one transaction.
    let row = cluster.store.partition(&"default".parse().unwrap(), Partition::of(&keys[0])).await.unwrap();
    assert_eq!(row.generation, 4, "5 and 3, then the large one, then 4");
    let read = cluster.blobs.read.lock().unwrap().clone();
    assert_eq!(read.len(), sizes.len(), "each once");
}

const MANIFESTS: &str = "
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: base}
spec: {config: {note: '{{.agent.attributes[\"note\"]}}'}}
---
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {name: blue}
spec: {template: {name: base}, selector: {matchLabels: {team: blue}}}
";

#[tokio::test(start_paused = true)]
async fn a_delivery_is_no_larger_than_a_message() {
    let mut cluster = Cluster::new();
    let mut deliveries = cluster.deliveries().await;
    cluster.start();
    let keys = keys(21);
    let (huge, others) = keys.split_first().unwrap();
    cluster.report(huge, 0, 900_000, false).await;
    for key in others {
        cluster.report(key, 0, 100_000, false).await;
    }
    for key in &keys {
        cluster.agent_at(key, 0).await;
    }
    cluster.apply(MANIFESTS).await;
    let (mut offered, mut count) = (BTreeSet::new(), 0);
    while offered.len() < others.len() {
        let received = tokio::time::timeout(SOON, deliveries.next()).await.unwrap().unwrap();
        assert!(received.payload.len() <= MAX_PAYLOAD, "{} bytes", received.payload.len());
        if let Some(Action::RemoteConfig(offer)) = Delivery::decode(received.payload).unwrap().action {
            offered.extend(offer.targets.into_iter().map(|target| target.instance_uid));
            count += 1;
        }
    }
    assert_eq!(count, 2, "ten of 100 kB fit");
    assert!(!offered.contains(huge.uid.as_bytes().as_slice()));
    let (stored, _) = cluster.store.agent(huge).await.unwrap().unwrap();
    assert!(stored.agent.state.held.unwrap().contains("make them shorter"), "an operator sees why");
    cluster.stop().await;
}

/// Asks for the body of the only template, until control knows it.
async fn body(cluster: &Cluster) -> control_reply::Reply {
    let tenant: Tenant = "default".parse().unwrap();
    let intent = cluster.store.intent(&tenant).await.unwrap();
    let template = intent.templates.values().next().unwrap().last().unwrap();
    let body_digest = Bytes::copy_from_slice(&template.compiled.files[0].digest.0);
    let request = ControlRequest {
        cell: "default".to_owned(),
        tenant: tenant.to_string(),
        request: Some(control_request::Request::GetBody(GetBody { body_digest })),
        ..ControlRequest::default()
    };
    let subject = Subject::Control("default".parse().unwrap());
    let asking = async {
        loop {
            // Nobody listens yet while control starts.
            if let Ok(answer) = cluster.bus.request(&subject, request.encode_to_vec().into(), SOON).await {
                assert!(answer.len() <= MAX_PAYLOAD, "{} bytes", answer.len());
                match ControlReply::decode(answer).unwrap().reply.unwrap() {
                    control_reply::Reply::Error(_) => {}
                    reply => return reply,
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, asking).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_too_large_for_an_answer_is_put_once_for_many_gateways() {
    let mut cluster = Cluster::new();
    cluster.start();
    let with_note =
        |note: usize| MANIFESTS.replace("config: {", &format!("config: {{text: {}, ", "x".repeat(note)));
    cluster.apply(&with_note(1_500_000)).await;
    let mut blobs = BTreeSet::new();
    for _ in 0..5 {
        let control_reply::Reply::BodyBlob(blob) = body(&cluster).await else { panic!("it is no blob") };
        blobs.insert(blob.digest.clone());
        let blob = BlobRef { digest: Digest::try_from(blob.digest.as_ref()).unwrap(), size: blob.size };
        let content = cluster.blobs.get(&"default".parse().unwrap(), &blob).await.unwrap().unwrap();
        assert!(CompiledBody::decode(content).unwrap().segments.len() >= 2);
    }
    assert_eq!(blobs.len(), 1);
    assert_eq!(cluster.blobs.mark().await.unwrap().position, 1, "one put");
    // Before it may be removed, it is put again for those who ask.
    tokio::time::sleep(Duration::from_secs(31)).await;
    body(&cluster).await;
    assert_eq!(cluster.blobs.mark().await.unwrap().position, 2);
    cluster.stop().await;

    let mut cluster = Cluster::new();
    cluster.start();
    cluster.apply(&with_note(1_000_000)).await;
    assert!(matches!(body(&cluster).await, control_reply::Reply::Body(_)), "what fits is not put");
    cluster.stop().await;
}
