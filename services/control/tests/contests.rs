//! Contested instance_uids as gateways ask control about them. The tests are the gateways; the engines are
//! in memory.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests end with their panics")]

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
use muster_domain::ids::{Cell, Timestamp};
use muster_ports::bus::{Bus, Subject};
use muster_ports::kv::{KeyValue, Precondition, PutError, Versioned};
use muster_ports::{EngineError, LEASE_TTL, Random, Spawner};
use muster_proto::Message;
use muster_proto::bus::{
    ContestVerdict, ControlReply, ControlRequest, GatewayReply, GatewayRequest, ProbeResult, ResolveContest,
    control_reply, control_request, gateway_reply, gateway_request,
};
use prometheus::Registry;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Leases that cannot be read while it is down.
struct Leases {
    bucket: MemoryKeyValue,
    is_down: AtomicBool,
    looks: AtomicU64,
}

#[async_trait]
impl KeyValue for Leases {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, EngineError> {
        self.bucket.get(key).await
    }

    async fn put(&self, key: &str, value: Bytes, precondition: Precondition) -> Result<u64, PutError> {
        self.bucket.put(key, value, precondition).await
    }

    async fn remove(&self, key: &str) -> Result<(), EngineError> {
        self.bucket.remove(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, EngineError> {
        if prefix == "gateways/default/" {
            self.looks.fetch_add(1, Ordering::SeqCst);
        }
        if self.is_down.load(Ordering::SeqCst) {
            return Err(EngineError::Unavailable { engine: "lease bucket", reason: "it is down".to_owned() });
        }
        self.bucket.list(prefix).await
    }
}

struct Rig {
    bus: Arc<MemoryBus>,
    leases: Arc<Leases>,
    registry: Registry,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

/// What a gateway does when it is asked for an agent.
#[derive(Clone, Copy)]
enum Gateway {
    Says(ProbeResult),
    SaysAfter(ProbeResult, Duration),
    IsBusy,
    IsSilent,
}

fn cell() -> Cell {
    "default".parse().unwrap()
}

impl Rig {
    async fn start() -> Self {
        let bus = Arc::new(MemoryBus::default());
        let leases = Arc::new(Leases {
            bucket: MemoryKeyValue::new(Some(LEASE_TTL)),
            is_down: AtomicBool::new(false),
            looks: AtomicU64::new(0),
        });
        let store = Arc::new(MemoryStore::default());
        let engines = Engines {
            log: Arc::new(MemoryLog::default()),
            blobs: Arc::new(MemoryBlobs::default()),
            bus: bus.clone(),
            leases: leases.clone(),
            values: Arc::new(MemoryKeyValue::new(None)),
            polls: Arc::new(MemoryOwnership::new()),
            fold: store.clone(),
            commands: store.clone(),
            rollouts: store.clone(),
            fleet: store.clone(),
            components: store.clone(),
            intent: store.clone(),
            clock: Arc::new(|| Timestamp(1_000_000)),
            random: Random::new(|| Uuid::now_v7().as_u64_pair().1),
            spawner: Spawner::new(|task| drop(tokio::spawn(task))),
        };
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let settings = Settings::new(cell(), "control");
        let control = tokio::spawn(async move { run(settings, engines, metrics, stopped).await.unwrap() });
        Self { bus, leases, registry, stop, tasks: vec![control] }
    }

    async fn lease(&self, gateway: &str) {
        let key = format!("gateways/default/{gateway}");
        self.leases.put(&key, Bytes::from_static(b"1"), Precondition::Any).await.unwrap();
    }

    /// A gateway that answers probes from now on.
    async fn gateway(&mut self, name: &str, gateway: Gateway) {
        let mut requests =
            self.bus.subscribe(&Subject::Gateway(cell(), name.parse().unwrap())).await.unwrap();
        let stop = self.stop.clone();
        self.tasks.push(tokio::spawn(async move {
            let mut answers = JoinSet::new();
            let mut unanswered = Vec::new();
            while let Some(Some(request)) = stop.run_until_cancelled(requests.next()).await {
                let question = GatewayRequest::decode(request.payload).unwrap().request;
                let reply = request.reply.unwrap();
                let gateway = match question {
                    Some(gateway_request::Request::Probe(_)) => gateway,
                    // As every gateway does; one that is silent is silent.
                    None if matches!(gateway, Gateway::IsSilent) => gateway,
                    None => Gateway::IsBusy,
                };
                let (answer, after) = match gateway {
                    Gateway::Says(result) => (gateway_reply::Reply::Probe(result.into()), Duration::ZERO),
                    Gateway::SaysAfter(result, after) => (gateway_reply::Reply::Probe(result.into()), after),
                    Gateway::IsBusy => (gateway_reply::Reply::Error("busy".to_owned()), Duration::ZERO),
                    Gateway::IsSilent => {
                        unanswered.push(reply);
                        continue;
                    }
                };
                answers.spawn(async move {
                    tokio::time::sleep(after).await;
                    let answer = GatewayReply { reply: Some(answer) };
                    reply.send(answer.encode_to_vec().into()).await.unwrap();
                });
            }
        }));
    }

    /// Asks about an agent that this gateway holds; the answer, and how long it took.
    async fn ask(&self, agent: u128, gateway: &str) -> (Answer, Duration) {
        let contest = ResolveContest {
            instance_uid: Uuid::from_u128(agent).as_bytes().to_vec().into(),
            newcomer_session_id: Uuid::from_u128(1).as_bytes().to_vec().into(),
            newcomer_gateway: "newcomers".to_owned(),
            holder_session_id: Uuid::from_u128(2).as_bytes().to_vec().into(),
            holder_gateway: gateway.to_owned(),
            holder_claim: 1,
        };
        let request = ControlRequest {
            cell: "default".to_owned(),
            tenant: "default".to_owned(),
            traceparent: String::new(),
            request: Some(control_request::Request::ResolveContest(contest)),
        };
        let begin = Instant::now();
        let payload = Bytes::from(request.encode_to_vec());
        let deadline = Duration::from_secs(5);
        let reply = loop {
            match self.bus.request(&Subject::Control(cell()), payload.clone(), deadline).await {
                // Control has not begun yet.
                Err(muster_ports::bus::RequestError::NoResponders) => tokio::task::yield_now().await,
                reply => break reply.unwrap(),
            }
        };
        let answer = match ControlReply::decode(reply).unwrap().reply.unwrap() {
            control_reply::Reply::Contest(resolved) => match resolved.verdict() {
                ContestVerdict::Takeover => Answer::Takeover,
                ContestVerdict::HolderAlive => {
                    Answer::Duplicate(Uuid::from_slice(&resolved.new_instance_uid).unwrap())
                }
                ContestVerdict::Unspecified => panic!("{resolved:?}"),
            },
            control_reply::Reply::Error(_) => Answer::Undecided,
            other => panic!("{other:?}"),
        };
        (answer, begin.elapsed())
    }

    fn decided(&self, verdict: &str) -> u64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == "muster_duplicate_instance_uids_total");
        let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
        let of_verdict = metrics.iter().find(|metric| metric.get_label()[0].value() == verdict);
        of_verdict.map_or(0, |metric| metric.get_counter().get_value() as u64)
    }

    async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    Takeover,
    Duplicate(Uuid),
    Undecided,
}

const AT_ONCE: Duration = Duration::ZERO;

#[tokio::test(start_paused = true)]
async fn the_gateways_word_decides() {
    let mut rig = Rig::start().await;
    rig.gateway("g1", Gateway::Says(ProbeResult::Alive)).await;
    rig.gateway("g2", Gateway::SaysAfter(ProbeResult::Silent, Duration::from_secs(3))).await;
    rig.gateway("g3", Gateway::Says(ProbeResult::Absent)).await;
    for gateway in ["g1", "g2", "g3"] {
        rig.lease(gateway).await;
    }
    let (first, _) = rig.ask(7, "g1").await;
    let (second, took) = rig.ask(7, "g1").await;
    let (Answer::Duplicate(first), Answer::Duplicate(second)) = (first, second) else {
        panic!("{first:?}, {second:?}");
    };
    assert_ne!(first, second);
    assert_eq!((first.get_version_num(), took), (7, AT_ONCE));
    assert_eq!(rig.ask(7, "g2").await, (Answer::Takeover, Duration::from_secs(3)));
    assert_eq!(rig.ask(7, "g3").await, (Answer::Takeover, AT_ONCE));
    assert_eq!((rig.decided("duplicate"), rig.decided("takeover"), rig.decided("undecided")), (2, 2, 0));
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lapsed_lease_is_a_takeover_without_a_probe() {
    let mut rig = Rig::start().await;
    // It would say that the agent lives.
    rig.gateway("g1", Gateway::Says(ProbeResult::Alive)).await;
    assert_eq!(rig.ask(7, "g1").await, (Answer::Takeover, AT_ONCE));
    rig.lease("g1").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(matches!(rig.ask(7, "g1").await.0, Answer::Duplicate(_)));
    tokio::time::sleep(LEASE_TTL).await;
    assert_eq!(rig.ask(7, "g1").await, (Answer::Takeover, AT_ONCE));
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_listening_is_asked_twice_once_for_all() {
    let rig = Rig::start().await;
    rig.lease("g1").await;
    rig.lease("g2").await;
    let twice = Duration::from_millis(300);
    let (one, other) = tokio::join!(rig.ask(7, "g1"), rig.ask(8, "g1"));
    assert_eq!((one, other), ((Answer::Takeover, twice), (Answer::Takeover, twice)));
    assert_eq!(rig.ask(9, "g1").await, (Answer::Takeover, AT_ONCE), "its end is known by now");
    // One that connects to the bus anew listens again a moment later: its agent keeps its uid.
    let asked = async { rig.ask(7, "g2").await };
    let back = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        rig.bus.subscribe(&Subject::Gateway(cell(), "g2".parse().unwrap())).await.unwrap()
    };
    let ((answer, _), mut requests) = tokio::join!(asked, async {
        let mut requests = back.await;
        let request = requests.next().await.unwrap();
        let answer = GatewayReply { reply: Some(gateway_reply::Reply::Probe(ProbeResult::Alive.into())) };
        request.reply.unwrap().send(answer.encode_to_vec().into()).await.unwrap();
        requests
    });
    assert!(matches!(answer, Answer::Duplicate(_)));
    // One that was found gone and has renewed its lease is asked again.
    drop(requests);
    assert_eq!(rig.ask(7, "g2").await.0, Answer::Takeover);
    requests = rig.bus.subscribe(&Subject::Gateway(cell(), "g2".parse().unwrap())).await.unwrap();
    rig.lease("g2").await;
    tokio::time::sleep(twice).await;
    let (question, asked) = tokio::join!(requests.next(), async {
        tokio::time::timeout(Duration::from_millis(1), rig.ask(7, "g2")).await
    });
    assert!(question.is_some() && asked.is_err());
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_does_not_answer_is_gone_and_one_that_is_busy_is_not() {
    let mut rig = Rig::start().await;
    rig.gateway("g1", Gateway::IsSilent).await;
    rig.gateway("g2", Gateway::IsBusy).await;
    rig.lease("g1").await;
    rig.lease("g2").await;
    assert_eq!(rig.ask(7, "g1").await, (Answer::Takeover, Duration::from_millis(3500)));
    assert_eq!(rig.ask(7, "g2").await, (Answer::Undecided, AT_ONCE));
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_a_gateway_took_with_it_is_not_waited_for() {
    let rig = Rig::start().await;
    rig.lease("g1").await;
    let mut requests = rig.bus.subscribe(&Subject::Gateway(cell(), "g1".parse().unwrap())).await.unwrap();
    let crash = async {
        let probe = requests.next().await;
        drop(requests);
        probe
    };
    let (answer, _probe) = tokio::join!(rig.ask(7, "g1"), crash);
    // Looked after, and then asked twice.
    assert_eq!(answer, (Answer::Takeover, Duration::from_millis(400 + 300)));
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_leases_silence_proves_nothing() {
    let mut rig = Rig::start().await;
    rig.gateway("g1", Gateway::IsSilent).await;
    rig.gateway("g2", Gateway::Says(ProbeResult::Absent)).await;
    rig.leases.is_down.store(true, Ordering::SeqCst);
    assert_eq!(rig.ask(7, "g1").await.0, Answer::Undecided);
    assert_eq!(rig.ask(7, "g2").await.0, Answer::Takeover, "that is the gateway's own word");
    assert_eq!(rig.ask(7, "g3").await.0, Answer::Undecided, "nobody listens");
    rig.stop().await;
}

/// Agents that come back after the loss of a load balancer, within the time that one probe takes.
const CROWD: u128 = 3000;

#[tokio::test(start_paused = true)]
async fn thousands_are_decided_within_the_time_of_one() {
    let mut rig = Rig::start().await;
    rig.gateway("g1", Gateway::SaysAfter(ProbeResult::Silent, Duration::from_secs(3))).await;
    rig.lease("g1").await;
    rig.ask(0, "g1").await;
    let looks = rig.leases.looks.load(Ordering::SeqCst);
    let rig = Arc::new(rig);
    let mut asking = JoinSet::new();
    for agent in 1..=CROWD {
        let rig = Arc::clone(&rig);
        asking.spawn(async move { rig.ask(agent, "g1").await });
    }
    let answers: BTreeSet<_> = asking
        .join_all()
        .await
        .into_iter()
        .map(|(answer, took)| (answer == Answer::Takeover, took))
        .collect();
    assert_eq!(answers, BTreeSet::from([(true, Duration::from_secs(3))]));
    let looks = rig.leases.looks.load(Ordering::SeqCst) - looks;
    assert!(looks <= 64 + 10, "the partitions' workers look too, but not each contest: {looks}");
    Arc::into_inner(rig).unwrap().stop().await;
}
