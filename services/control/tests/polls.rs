//! Control and agents that poll: letters in place of deliveries, and an end to silence.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests end with their panics")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_adapters_memory::{
    MemoryBlobs, MemoryBus, MemoryKeyValue, MemoryLog, MemoryOwnership, MemoryStore,
};
use muster_control::{Engines, Metrics, Settings, run};
use muster_domain::agent::{Agent, EndReason};
use muster_domain::capabilities::AgentCapabilities;
use muster_domain::ids::{AgentKey, InstanceUid, MessageId, Partition, PollId, SessionId, Timestamp};
use muster_domain::intent::plan;
use muster_domain::manifest;
use muster_domain::poll::{Begun, Mail, Poll, PollEnd, Taken};
use muster_domain::sequence::{Numbered, Tracker};
use muster_ports::bus::{Bus, Subject, Subscription};
use muster_ports::log::Log;
use muster_ports::ownership::Ownership;
use muster_ports::polls::{PollOutcome, Polls};
use muster_ports::store::{FleetStore, IntentStore};
use muster_ports::{LEASE_TTL, Random, Spawner};
use muster_proto::Message;
use muster_proto::bus::delivery::Action;
use muster_proto::bus::{
    ControlReply, ControlRequest, Delivery, Envelope, GetOffer, SessionRef, SessionStarted, Transport,
    control_reply, control_request,
};
use muster_proto::opamp::any_value::Value;
use muster_proto::opamp::{AgentDescription, AgentToServer, AnyValue, KeyValue};
use prometheus::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(10);
const MANIFESTS: &str = "
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: base}
spec: {config: {a: 1}}
---
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {name: blue}
spec: {template: {name: base}, selector: {matchLabels: {team: blue}}}
";

struct Cluster {
    log: Arc<MemoryLog>,
    bus: Arc<MemoryBus>,
    store: Arc<MemoryStore>,
    ownership: Arc<MemoryOwnership>,
    clock: Arc<AtomicU64>,
    stop: CancellationToken,
    control: JoinHandle<()>,
    deliveries: Box<dyn Subscription>,
    requests: u128,
    sequence: u64,
}

fn key() -> AgentKey {
    AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(1)) }
}

impl Cluster {
    async fn start() -> Self {
        let (log, bus) = (Arc::new(MemoryLog::default()), Arc::new(MemoryBus::default()));
        let (store, ownership) = (Arc::new(MemoryStore::new()), Arc::new(MemoryOwnership::new()));
        let clock = Arc::new(AtomicU64::new(1_790_000_000_000_000));
        let now = clock.clone();
        let engines = Engines {
            log: log.clone(),
            blobs: Arc::new(MemoryBlobs::default()),
            bus: bus.clone(),
            leases: Arc::new(MemoryKeyValue::new(Some(LEASE_TTL))),
            values: Arc::new(MemoryKeyValue::new(None)),
            polls: ownership.clone(),
            components: store.clone(),
            commands: store.clone(),
            rollouts: store.clone(),
            fleet: store.clone(),
            fold: store.clone(),
            intent: store.clone(),
            clock: Arc::new(move || Timestamp(now.load(Ordering::SeqCst))),
            spawner: Spawner::new(|task| drop(tokio::spawn(task))),
            random: Random::new(|| Uuid::now_v7().as_u64_pair().1),
        };
        let gateway = Subject::Deliveries("default".parse().unwrap(), "gw".parse().unwrap());
        let deliveries = bus.subscribe(&gateway).await.unwrap();
        let metrics = Metrics::register(&Registry::new()).unwrap();
        let settings = Settings {
            poll_deadline: Duration::from_secs(90),
            sweep_every: Duration::from_millis(500),
            ..Settings::new("default".parse().unwrap(), "control")
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let control = tokio::spawn(async move { run(settings, engines, metrics, stopped).await.unwrap() });
        Self { log, bus, store, ownership, clock, stop, control, deliveries, requests: 0, sequence: 0 }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.control.await.unwrap();
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.clock.load(Ordering::SeqCst))
    }

    fn later(&self, time: Duration) {
        self.clock.fetch_add(u64::try_from(time.as_micros()).unwrap(), Ordering::SeqCst);
    }

    async fn apply(&self, text: &str) {
        let tenant = "default".parse().unwrap();
        let documents = manifest::parse(text).unwrap();
        let intent = self.store.intent(&tenant).await.unwrap();
        let change = plan(&intent, &documents, Timestamp(1), Uuid::now_v7).unwrap();
        self.store.change(&tenant, &change).await.unwrap();
        self.bus.publish(&Subject::Wake("default".parse().unwrap()), Default::default()).await.unwrap();
    }

    /// A request as a gateway carries it out; what waits stays there.
    async fn poll(&mut self, is_report: bool) -> Option<Taken> {
        self.requests += 1;
        self.sequence += 1;
        let message = Numbered {
            sequence_num: self.sequence,
            digest: self.sequence,
            has_description: is_report,
            is_full: is_report,
        };
        let poll = Poll {
            id: PollId(Uuid::from_u128(self.requests)),
            session: SessionId(Uuid::from_u128(0x5e55 << 64 | self.requests)),
            message: Some(message),
            plain: !is_report,
            capabilities: AgentCapabilities(0x1003),
            now: self.now(),
            lease: Duration::from_secs(10),
            displace: None,
            epoch: 0,
        };
        let PollOutcome::Begun(begun) = self.ownership.begin(&key(), poll.clone()).await.unwrap() else {
            panic!("nobody else is there")
        };
        let Begun::Taken(taken) = begun else { return None };
        if is_report {
            self.publish(&taken).await;
        }
        let mut tracker = Tracker::from(taken.kept.tracker);
        tracker.step(message);
        let mut kept = taken.kept;
        kept.tracker = tracker.parts();
        kept.capabilities = poll.capabilities;
        kept.announced = true;
        let end = PollEnd {
            session: taken.session,
            poll: poll.id,
            kept,
            settled: Some(self.sequence),
            delivered: Mail::default(),
            over: false,
            now: self.now(),
        };
        assert!(self.ownership.end(&key(), end).await.unwrap());
        Some(*taken)
    }

    async fn publish(&self, taken: &Taken) {
        let team = KeyValue {
            key: "team".to_owned(),
            value: Some(AnyValue { value: Some(Value::StringValue("blue".to_owned())) }),
        };
        let message = AgentToServer {
            instance_uid: key().uid.as_bytes().to_vec(),
            sequence_num: self.sequence,
            capabilities: 0x1003,
            agent_description: Some(AgentDescription {
                non_identifying_attributes: vec![team],
                ..AgentDescription::default()
            }),
            ..AgentToServer::default()
        };
        let start = SessionStarted { transport: Transport::Http.into(), ..SessionStarted::default() };
        let envelope = Envelope {
            cell: "default".to_owned(),
            tenant: "default".to_owned(),
            instance_uid: key().uid.as_bytes().to_vec().into(),
            session_id: taken.session.as_bytes().to_vec().into(),
            claim: taken.claim.0,
            gateway: "gw".to_owned(),
            // Of a life that no lease is of.
            incarnation: Uuid::from_u128(8).as_bytes().to_vec().into(),
            received_at_us: self.now().0,
            sequence_num: self.sequence,
            agent_to_server: Some(message.encode_to_vec().into()),
            started: (!taken.kept.announced).then_some(start),
            transport: Transport::Http.into(),
            ..Envelope::default()
        };
        let id = MessageId(Uuid::now_v7());
        self.log.publish(Partition::of(&key()), id, envelope.encode_to_vec().into()).await.unwrap();
    }

    async fn delivery(&mut self) -> Action {
        let received = tokio::time::timeout(SOON, self.deliveries.next()).await.unwrap().unwrap();
        Delivery::decode(received.payload).unwrap().action.unwrap()
    }

    /// Polls with heartbeats until something waits.
    async fn mail(&mut self) -> (SessionId, Mail) {
        let waits = async {
            loop {
                if let Some(taken) = self.poll(false).await
                    && taken.mail != Mail::default()
                {
                    return (taken.session, taken.mail);
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, waits).await.unwrap()
    }

    /// Asks for the offer that waits, and returns its hash.
    async fn wanted(&self, session: SessionId, mail: &Mail) -> Option<Vec<u8>> {
        let (hash, revision) = mail.offer.clone().unwrap();
        let wanted = GetOffer {
            session: Some(SessionRef {
                instance_uid: key().uid.as_bytes().to_vec().into(),
                session_id: session.as_bytes().to_vec().into(),
            }),
            config_hash: hash.as_bytes().to_vec().into(),
            intent_revision: revision.0,
        };
        let request = ControlRequest {
            cell: "default".to_owned(),
            tenant: "default".to_owned(),
            traceparent: String::new(),
            request: Some(control_request::Request::GetOffer(wanted)),
        };
        let subject = Subject::Control("default".parse().unwrap());
        let answer = self.bus.request(&subject, request.encode_to_vec().into(), SOON).await.unwrap();
        match ControlReply::decode(answer).unwrap().reply.unwrap() {
            control_reply::Reply::Offer(offer) => Some(offer.remote_config?.targets[0].config_hash.to_vec()),
            other => panic!("{other:?}"),
        }
    }

    async fn agent(&self) -> Agent {
        self.store.agent(&key()).await.unwrap().unwrap().0.agent
    }
}

#[tokio::test]
async fn offers_wait_in_the_mailbox_and_only_a_first_report_is_told() {
    let mut cluster = Cluster::start().await;
    cluster.apply(MANIFESTS).await;
    let first = cluster.poll(true).await.unwrap();
    // The request of the first report waits on its gateway.
    let Action::RemoteConfig(offer) = cluster.delivery().await else { panic!() };
    assert_eq!(offer.targets[0].session_id, first.session.as_bytes().as_slice());
    let Action::Decided(decided) = cluster.delivery().await else { panic!() };
    assert_eq!(decided.sessions[0].session_id, first.session.as_bytes().as_slice());
    let (session, mail) = cluster.mail().await;
    let (hash, _) = mail.offer.clone().unwrap();
    assert_eq!(hash.as_bytes(), offer.targets[0].config_hash.as_ref());
    assert_eq!(cluster.wanted(session, &mail).await.as_deref(), Some(hash.as_bytes()));
    assert_eq!(cluster.wanted(SessionId(Uuid::nil()), &mail).await, None, "of another session");

    // What is not wanted any more is not given, and what is now takes its place without a delivery.
    cluster.apply(&MANIFESTS.replace("{a: 1}", "{a: 2}")).await;
    let changed = async {
        loop {
            let (_, next) = cluster.mail().await;
            if next != mail {
                return next;
            }
            tokio::task::yield_now().await;
        }
    };
    let next = tokio::time::timeout(SOON, changed).await.unwrap();
    assert!(next.offer.as_ref().unwrap().1 > mail.offer.as_ref().unwrap().1);
    assert_eq!(cluster.wanted(session, &mail).await, None);
    assert!(cluster.wanted(session, &next).await.is_some());
    // Nothing more was delivered: the next delivery is that of the next session.
    cluster.sequence = 0;
    cluster.poll(true).await.unwrap();
    let Action::RemoteConfig(offer) = cluster.delivery().await else { panic!() };
    assert_ne!(offer.targets[0].session_id, first.session.as_bytes().as_slice());
    cluster.stop().await;
}

#[tokio::test]
async fn silence_ends_a_session_and_the_loss_of_a_gateway_does_not() {
    let mut cluster = Cluster::start().await;
    cluster.poll(true).await.unwrap();
    let Action::Decided(_) = cluster.delivery().await else { panic!() };
    // Heard all the time; the gateway that its session began on has no lease, and never had.
    for _ in 0..10 {
        cluster.later(Duration::from_secs(60));
        assert_eq!(cluster.poll(false).await, None, "a heartbeat");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(cluster.agent().await.live_session().is_some());
    }
    let ended = async {
        loop {
            cluster.later(Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(100)).await;
            if let Some(ended) = cluster.agent().await.session.unwrap().ended {
                return ended;
            }
        }
    };
    let (_, reason) = tokio::time::timeout(SOON, ended).await.unwrap();
    assert_eq!(reason, EndReason::Silent);
    // Ownership knows it too: the next request begins another session.
    let before = cluster.agent().await.session.unwrap().id;
    let next = cluster.poll(true).await.unwrap();
    assert_ne!(next.session, before);
    assert!(cluster.ownership.look_up(&[key()]).await.unwrap()[0].is_some());
    cluster.stop().await;
}
