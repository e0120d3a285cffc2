//! A gateway as agents and control see it. The tests are the control; the engines are in memory.
#![expect(clippy::unwrap_used, reason = "tests end with their panics")]

mod admission;
mod commands;
mod duplicates;
mod epochs;
mod liveness;
mod offers;
mod polls;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use muster_adapters_memory::{MemoryBlobs, MemoryBus, MemoryKeyValue, MemoryLog, MemoryOwnership};
use muster_domain::ids::{AgentKey, Cell, Digest, InstanceUid, IntentRevision, Partition, Timestamp};
use muster_gateway::{Engines, Metrics, Settings, run};
use muster_ports::bus::{Bus, Reply, Subject};
use muster_ports::floors::{self, Floors};
use muster_ports::host::{Random, Spawner};
use muster_ports::kv::{KeyValue, Precondition, PutError, Versioned};
use muster_ports::log::{Log, Position};
use muster_ports::{EngineError, LEASE_TTL};
use muster_proto::Message;
use muster_proto::bus::delivery::Action;
use muster_proto::bus::{
    CompiledBody, ControlReply, ControlRequest, Delivery, Envelope, GatewayLease, OfferTarget, OfferedFile,
    RemoteConfigOffer, ResolveContest, Segment, SlotValues, control_reply, control_request, segment,
};
use muster_testkit::{RawAgent, eventually, messages};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const AGENT: u128 = 7;
const SOON: Duration = Duration::from_secs(30);

/// Leases that cannot be written while it is down.
pub(crate) struct Unkind {
    bucket: MemoryKeyValue,
    is_down: AtomicBool,
}

#[async_trait]
impl KeyValue for Unkind {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, EngineError> {
        self.bucket.get(key).await
    }

    async fn put(&self, key: &str, value: Bytes, precondition: Precondition) -> Result<u64, PutError> {
        if self.is_down.load(Ordering::SeqCst) {
            let reason = "it is down".to_owned();
            return Err(PutError::Engine(EngineError::Unavailable { engine: "lease bucket", reason }));
        }
        self.bucket.put(key, value, precondition).await
    }

    async fn remove(&self, key: &str) -> Result<(), EngineError> {
        self.bucket.remove(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, EngineError> {
        self.bucket.list(prefix).await
    }
}

struct Gateway {
    url: String,
    unsteady: Arc<polls::Unsteady>,
    /// What control says that the agent is to be offered.
    wanted: Arc<Mutex<polls::Wanted>>,
    log: Arc<MemoryLog>,
    bus: Arc<MemoryBus>,
    leases: Arc<Unkind>,
    values: Arc<MemoryKeyValue>,
    ownership: Arc<MemoryOwnership>,
    registry: Registry,
    /// The gateway's time, in microseconds.
    time: Arc<AtomicU64>,
    /// Contests that the gateway asks control about.
    contests: mpsc::UnboundedReceiver<Contest>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

fn cell() -> Cell {
    "here".parse().unwrap()
}

impl Gateway {
    async fn start() -> Self {
        Self::start_with(Settings::new(cell(), "g1".parse().unwrap())).await
    }

    async fn start_with(settings: Settings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/v1/opamp", listener.local_addr().unwrap());
        let (log, bus) = (Arc::new(MemoryLog::default()), Arc::new(MemoryBus::default()));
        let leases = Arc::new(Unkind {
            bucket: MemoryKeyValue::new(Some(LEASE_TTL)),
            is_down: AtomicBool::new(false),
        });
        let values = Arc::new(MemoryKeyValue::new(None));
        let time = Arc::new(AtomicU64::new(1_000_000));
        let unsteady = Arc::new(polls::Unsteady::new(log.clone()));
        let ownership = unsteady.ownership.clone();
        let engines = Engines {
            log: unsteady.clone(),
            blobs: Arc::new(MemoryBlobs::default()),
            ownership: ownership.clone(),
            polls: unsteady.clone(),
            bus: bus.clone(),
            leases: leases.clone(),
            values: values.clone(),
            clock: {
                let time = time.clone();
                Arc::new(move || Timestamp(time.load(Ordering::SeqCst)))
            },
            random: Random::new(|| Uuid::new_v4().as_u64_pair().1),
            spawner: Spawner::new(|task| drop(tokio::spawn(task))),
        };
        let registry = Registry::new();
        let metrics = Metrics::register(&registry, "here").unwrap();
        let stop = CancellationToken::new();
        let wanted = Arc::default();
        let (stopped, controls) = (stop.clone(), bus.subscribe(&Subject::Control(cell())).await.unwrap());
        let (contested, contests) = mpsc::unbounded_channel();
        let tasks = vec![
            tokio::spawn(async move { run(settings, engines, metrics, listener, stopped).await.unwrap() }),
            tokio::spawn(control(controls, contested, Arc::clone(&wanted), stop.clone())),
        ];
        Self {
            url,
            unsteady,
            wanted,
            log,
            bus,
            leases,
            values,
            ownership,
            registry,
            time,
            contests,
            stop,
            tasks,
        }
    }

    /// Connects the agent and returns it with its session.
    async fn connect(&self) -> (RawAgent, Bytes) {
        let mut agent = RawAgent::connect(&self.url).await;
        agent.exchange(&messages::first_report(Uuid::from_u128(AGENT), &[])).await;
        (agent, self.session().await)
    }

    /// The agent's session that was published last.
    async fn session(&self) -> Bytes {
        self.published(Uuid::from_u128(AGENT)).await.pop().unwrap().session_id
    }

    /// What was published about an agent.
    async fn published(&self, uid: Uuid) -> Vec<Envelope> {
        let key = AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(uid) };
        let mut entries = self.log.read(Partition::of(&key), Position::default()).await.unwrap();
        let read = tokio::time::timeout(Duration::from_millis(100), entries.next(99)).await;
        let entries = read.map(Result::unwrap).unwrap_or_default();
        let envelopes = entries.iter().map(|entry| Envelope::decode(entry.payload.clone()).unwrap());
        envelopes.filter(|envelope| envelope.instance_uid.as_ref() == uid.as_bytes()).collect()
    }

    async fn raise_floor(&self, assignment: &str, revision: u64) {
        let mut floors = Floors::default();
        let raised = BTreeMap::from([(assignment.to_owned(), IntentRevision(revision))]);
        floors.raise(&"default".parse().unwrap(), &raised);
        floors::raise(self.values.as_ref(), &cell(), &floors, &mut Floors::default()).await.unwrap();
        self.bus.publish(&Subject::Floors(cell()), Bytes::new()).await.unwrap();
        eventually(SOON, async || {
            let lease = self.leases.get("gateways/here/g1").await.unwrap().ok_or("there is no lease")?;
            let floors = GatewayLease::decode(lease.value).unwrap().floors;
            if floors >= Some(revision) {
                Ok(())
            } else {
                Err(format!("the lease tells of floors {floors:?}"))
            }
        })
        .await;
    }

    /// Sends an offer as control does, of the assignment `all`.
    async fn offer(&self, session: &Bytes, revision: u64) {
        self.deliver(Action::RemoteConfig(offer(session, revision))).await;
    }

    async fn deliver(&self, action: Action) {
        let delivery = Delivery {
            cell: "here".to_owned(),
            tenant: "default".to_owned(),
            traceparent: String::new(),
            action: Some(action),
        };
        let subject = Subject::Deliveries(cell(), "g1".parse().unwrap());
        self.bus.publish(&subject, delivery.encode_to_vec().into()).await.unwrap();
    }

    /// How many offers had this result.
    fn count(&self, result: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == "muster_gateway_offers_total");
        let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
        let found = metrics.iter().find(|metric| metric.get_label()[0].value() == result);
        found.map_or(0.0, |metric| metric.get_counter().get_value())
    }

    /// Whether any offer had this result.
    fn had(&self, result: &str) -> bool {
        self.count(result) > 0.0
    }

    /// Waits until an offer has had this result.
    async fn has(&self, result: &str) {
        eventually(SOON, async || if self.had(result) { Ok(()) } else { Err(format!("none is {result}")) })
            .await;
    }

    async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

/// A contest that a gateway asks control about.
struct Contest {
    question: ResolveContest,
    reply: Box<dyn Reply>,
}

impl Contest {
    async fn answer(self, answer: control_reply::Reply) {
        let reply = ControlReply { reply: Some(answer) };
        self.reply.send(reply.encode_to_vec().into()).await.unwrap();
    }
}

/// The offer of the assignment `all` at this revision, which is its hash too.
fn offer(session: &Bytes, revision: u64) -> RemoteConfigOffer {
    RemoteConfigOffer {
        intent_revision: revision,
        files: vec![OfferedFile {
            name: "collector".to_owned(),
            content_type: "text/yaml".to_owned(),
            body_digest: Digest([1; 32]).0.to_vec().into(),
        }],
        targets: vec![OfferTarget {
            instance_uid: Uuid::from_u128(AGENT).as_bytes().to_vec().into(),
            session_id: session.clone(),
            config_hash: revision.to_be_bytes().to_vec().into(),
            slots: vec![SlotValues::default()],
        }],
        assignments: vec!["all".to_owned()],
    }
}

/// Answers every request for a body or an offer, and leaves contests to the test.
async fn control(
    mut requests: Box<dyn muster_ports::bus::Subscription>,
    contests: mpsc::UnboundedSender<Contest>,
    wanted: Arc<Mutex<polls::Wanted>>,
    stop: CancellationToken,
) {
    while let Some(Some(request)) = stop.run_until_cancelled(requests.next()).await {
        let reply = request.reply.unwrap();
        let answer = match ControlRequest::decode(request.payload).unwrap().request.unwrap() {
            control_request::Request::ResolveContest(question) => {
                contests.send(Contest { question, reply }).unwrap();
                continue;
            }
            control_request::Request::GetOffer(asked) => wanted.lock().unwrap().answer(&asked),
            control_request::Request::GetCommand(asked) => Some(polls::command(&asked)),
            _ => {
                let kind = Some(segment::Kind::Literal(Bytes::from_static(b"a: 1\n")));
                Some(control_reply::Reply::Body(CompiledBody { segments: vec![Segment { kind }] }))
            }
        };
        if answer.is_some() {
            let answer = ControlReply { reply: answer };
            reply.send(answer.encode_to_vec().into()).await.unwrap();
        }
    }
}
