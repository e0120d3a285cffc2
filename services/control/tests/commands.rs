//! Control and commands, on engines in memory: each is decided on, and sent once or never.
#![expect(clippy::unwrap_used, reason = "tests end with their panics")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use muster_adapters_memory::{
    MemoryBlobs, MemoryBus, MemoryKeyValue, MemoryLog, MemoryOwnership, MemoryStore,
};
use muster_control::{Engines, Metrics, Settings, run};
use muster_domain::command::{Action, Command, CommandState, Status};
use muster_domain::ids::{
    AgentKey, Cell, CommandId, Incarnation, InstanceUid, MessageId, Partition, Timestamp,
};
use muster_domain::report::CustomMessage;
use muster_ports::bus::{Bus, RequestError, Subject, Subscription};
use muster_ports::log::Log;
use muster_ports::store::{
    CommandStore, Commit, CommitError, FleetStore, FoldStore, PartitionRow, StoredAgent,
};
use muster_ports::{EngineError, LEASE_TTL, Random, Spawner};
use muster_proto::Message;
use muster_proto::bus::agent_event::Event;
use muster_proto::bus::send_command;
use muster_proto::bus::{AgentEvents, Delivery, Envelope, SessionEnded, SessionStarted, delivery};
use muster_proto::opamp::{self, AgentDescription, AgentToServer, CustomCapabilities};
use prometheus::Registry;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(10);
const RESTART: u64 = 0x400;

/// Commits and deliveries that can be held back.
struct Held {
    store: Arc<MemoryStore>,
    bus: Arc<MemoryBus>,
    /// Commits that settle commands, and deliveries, wait while these are false.
    commits: watch::Receiver<bool>,
    deliveries: watch::Receiver<bool>,
    /// How many wait, or have.
    waited: AtomicUsize,
}

impl Held {
    async fn wait(&self, open: &watch::Receiver<bool>) {
        if !*open.borrow() {
            self.waited.fetch_add(1, Ordering::SeqCst);
            // A gate that is dropped never opens.
            if open.clone().wait_for(|open| *open).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn has_waited(&self) {
        let waits = async {
            while self.waited.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, waits).await.unwrap();
    }
}

#[async_trait]
impl FoldStore for Held {
    async fn partition(&self, cell: &Cell, partition: Partition) -> Result<PartitionRow, EngineError> {
        self.store.partition(cell, partition).await
    }

    async fn agents(&self, cell: &Cell, keys: &[AgentKey]) -> Result<Vec<StoredAgent>, EngineError> {
        self.store.agents(cell, keys).await
    }

    async fn partition_agents(
        &self,
        cell: &Cell,
        partition: Partition,
        after: Option<&AgentKey>,
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        self.store.partition_agents(cell, partition, after, limit).await
    }

    async fn orphans(
        &self,
        cell: &Cell,
        partition: Partition,
        live: &[Incarnation],
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        self.store.orphans(cell, partition, live, limit).await
    }

    async fn commit(&self, commit: Commit) -> Result<PartitionRow, CommitError> {
        if !commit.commands.is_empty() {
            self.wait(&self.commits).await;
        }
        self.store.commit(commit).await
    }
}

#[async_trait]
impl Bus for Held {
    async fn publish(&self, subject: &Subject, payload: Bytes) -> Result<(), EngineError> {
        if matches!(subject, Subject::Deliveries(..)) {
            self.wait(&self.deliveries).await;
        }
        self.bus.publish(subject, payload).await
    }

    async fn request(
        &self,
        subject: &Subject,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, RequestError> {
        self.bus.request(subject, payload, timeout).await
    }

    async fn subscribe(&self, subject: &Subject) -> Result<Box<dyn Subscription>, EngineError> {
        self.bus.subscribe(subject).await
    }
}

struct Cluster {
    log: Arc<MemoryLog>,
    bus: Arc<MemoryBus>,
    store: Arc<MemoryStore>,
    /// What the gateway of all agents receives.
    deliveries: Box<dyn Subscription>,
    stop: CancellationToken,
    controls: Vec<JoinHandle<()>>,
}

fn cell() -> Cell {
    "default".parse().unwrap()
}

fn key(number: u128) -> AgentKey {
    AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(number)) }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(since.as_micros()).unwrap())
}

impl Cluster {
    async fn new() -> Self {
        let bus = Arc::new(MemoryBus::default());
        let deliveries = bus.subscribe(&Subject::Deliveries(cell(), "gw".parse().unwrap())).await.unwrap();
        Self {
            log: Arc::new(MemoryLog::default()),
            bus,
            store: Arc::new(MemoryStore::default()),
            deliveries,
            stop: CancellationToken::new(),
            controls: Vec::new(),
        }
    }

    fn start_control(&mut self) {
        self.start_control_on(self.store.clone(), self.bus.clone());
    }

    /// Starts one more control, that works on all partitions: it sees no other. Returns the tasks that
    /// it has begun, to be aborted.
    fn start_control_on(&mut self, fold: Arc<dyn FoldStore>, bus: Arc<dyn Bus>) -> Arc<watch::Sender<bool>> {
        let gone = Arc::new(watch::Sender::new(false));
        let spawned = Arc::clone(&gone);
        let engines = Engines {
            log: self.log.clone(),
            blobs: Arc::new(MemoryBlobs::default()),
            bus,
            leases: Arc::new(MemoryKeyValue::new(Some(LEASE_TTL))),
            values: Arc::new(MemoryKeyValue::new(None)),
            polls: Arc::new(MemoryOwnership::new()),
            fold,
            intent: self.store.clone(),
            commands: self.store.clone(),
            rollouts: self.store.clone(),
            fleet: self.store.clone(),
            components: self.store.clone(),
            clock: Arc::new(now),
            random: Random::new(|| Uuid::now_v7().as_u64_pair().1),
            spawner: Spawner::new(move |task| {
                let mut gone = spawned.subscribe();
                drop(tokio::spawn(async move {
                    tokio::select! {
                        biased;
                        _ = gone.wait_for(|gone| *gone) => {}
                        () = task => {}
                    }
                }));
            }),
        };
        let metrics = Metrics::register(&Registry::new()).unwrap();
        let settings = Settings { poll_every: Duration::from_secs(3600), ..Settings::new(cell(), "control") };
        let stop = self.stop.clone();
        self.controls.push(tokio::spawn(async move { run(settings, engines, metrics, stop).await.unwrap() }));
        gone
    }

    /// An entry of an agent's n-th session.
    async fn publish(&self, key: &AgentKey, n: u64, envelope: Envelope) {
        let envelope = Envelope {
            cell: "default".to_owned(),
            tenant: key.tenant.to_string(),
            instance_uid: key.uid.as_bytes().to_vec().into(),
            session_id: Uuid::from_u128(n.into()).as_bytes().to_vec().into(),
            claim: n,
            gateway: "gw".to_owned(),
            incarnation: Uuid::from_u128(8).as_bytes().to_vec().into(),
            received_at_us: now().0,
            ..envelope
        };
        let id = MessageId(Uuid::now_v7());
        self.log.publish(Partition::of(key), id, envelope.encode_to_vec().into()).await.unwrap();
    }

    /// The agent begins its n-th session with a full report.
    async fn connect(&self, key: &AgentKey, n: u64, capabilities: u64, custom: &[&str]) {
        let message = AgentToServer {
            instance_uid: key.uid.as_bytes().to_vec(),
            capabilities,
            agent_description: Some(AgentDescription::default()),
            custom_capabilities: Some(CustomCapabilities {
                capabilities: custom.iter().map(|&name| name.to_owned()).collect(),
            }),
            ..AgentToServer::default()
        };
        self.publish(
            key,
            n,
            Envelope {
                agent_to_server: Some(message.encode_to_vec().into()),
                started: Some(SessionStarted::default()),
                ..Envelope::default()
            },
        )
        .await;
    }

    async fn disconnect(&self, key: &AgentKey, n: u64) {
        self.publish(key, n, Envelope { ended: Some(SessionEnded::default()), ..Envelope::default() }).await;
    }

    /// Waits until it is stored whether the agent is connected.
    async fn is_connected(&self, key: &AgentKey, connected: bool) {
        let stored = async {
            loop {
                let found = self.store.agent(key).await.unwrap();
                if found.is_some_and(|(stored, _)| stored.agent.live_session().is_some() == connected) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, stored).await.unwrap();
    }

    /// Queues a command and wakes control.
    async fn give(&self, key: &AgentKey, action: Action, ttl: Duration) -> CommandId {
        let id = CommandId(Uuid::now_v7());
        let command = Command {
            id,
            key: key.clone(),
            action,
            created_at: now(),
            expires_at: now().plus(ttl),
            actor: "test".to_owned(),
            state: CommandState::QUEUED,
        };
        self.store.queue(&key.tenant, &[command], 1000, None).await.unwrap();
        self.wake().await;
        id
    }

    async fn wake(&self) {
        self.bus.publish(&Subject::Wake(cell()), Bytes::new()).await.unwrap();
    }

    /// Waits until the command is no longer queued; what became of it, and why.
    async fn settled(&self, id: CommandId) -> (Status, String) {
        let settled = async {
            loop {
                let found = self.store.commands(&key(0).tenant, &[id]).await.unwrap().pop().unwrap();
                if found.state.status != Status::Queued {
                    return (found.state.status, found.state.reason);
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, settled).await.unwrap()
    }

    async fn status(&self, id: CommandId) -> Status {
        self.store.commands(&key(0).tenant, &[id]).await.unwrap().pop().unwrap().state.status
    }

    /// The next commands that the gateway receives: session and id of each.
    async fn received(&mut self) -> Vec<(u128, CommandId, send_command::Action)> {
        let received = tokio::time::timeout(SOON, self.deliveries.next()).await.unwrap().unwrap();
        let Some(delivery::Action::SendCommands(send)) = Delivery::decode(received.payload).unwrap().action
        else {
            unreachable!("no other delivery is due")
        };
        let command = |command: muster_proto::bus::SendCommand| {
            let session = Uuid::from_slice(&command.session.unwrap().session_id).unwrap().as_u128();
            (session, command.id.as_ref().try_into().unwrap(), command.action.unwrap())
        };
        send.commands.into_iter().map(command).collect()
    }

    /// A command that is the last thing to arrive: what was to arrive before it has, or never will.
    async fn nothing_before(&mut self, key: &AgentKey) {
        let last = self.give(key, Action::ReportFullState, SOON).await;
        let received = self.received().await;
        assert_eq!(received.iter().map(|(_, id, _)| *id).collect::<Vec<_>>(), [last]);
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        for control in self.controls.drain(..) {
            control.await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_command_goes_to_the_agents_session() {
    let mut cluster = Cluster::new().await;
    cluster.start_control();
    cluster.connect(&key(1), 1, RESTART, &["com.example.x"]).await;
    cluster.is_connected(&key(1), true).await;
    let restart = cluster.give(&key(1), Action::Restart, SOON).await;
    assert_eq!(cluster.settled(restart).await, (Status::Sent, String::new()));
    let received = cluster.received().await;
    assert!(
        matches!(received[..], [(1, id, send_command::Action::Restart(_))] if id == restart),
        "{received:?}"
    );

    let (capability, kind) = ("com.example.x".to_owned(), "t".to_owned());
    let message = CustomMessage { capability, kind, data: vec![0, 1] };
    let message = cluster.give(&key(1), Action::Message(message), SOON).await;
    let (_, id, action) = cluster.received().await.pop().unwrap();
    let send_command::Action::Message(sent) = action else { unreachable!("{action:?}") };
    assert_eq!((id, sent.r#type.as_str(), &sent.data[..]), (message, "t", &[0, 1][..]));
    cluster.stop().await;
}

#[tokio::test]
async fn a_command_is_refused_where_the_agent_cannot_do_it() {
    let mut cluster = Cluster::new().await;
    cluster.start_control();
    cluster.connect(&key(1), 1, 1, &[]).await;
    cluster.is_connected(&key(1), true).await;
    let restart = cluster.give(&key(1), Action::Restart, SOON).await;
    let (status, reason) = cluster.settled(restart).await;
    assert_eq!(status, Status::Refused);
    assert_eq!(reason, "the agent does not have the capability AcceptsRestartCommand");
    let pause = cluster.give(&key(1), Action::Pause, SOON).await;
    assert_eq!(cluster.settled(pause).await.0, Status::Refused);
    cluster.nothing_before(&key(1)).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_command_waits_for_the_session_and_is_sent_at_its_start() {
    let mut cluster = Cluster::new().await;
    cluster.start_control();
    cluster.connect(&key(1), 1, RESTART, &[]).await;
    cluster.disconnect(&key(1), 1).await;
    cluster.is_connected(&key(1), false).await;
    let restart = cluster.give(&key(1), Action::Restart, SOON).await;
    let short = cluster.give(&key(1), Action::Restart, Duration::from_millis(50)).await;
    // No wake-up and no look is due: the worker knows by itself.
    assert_eq!(cluster.settled(short).await, (Status::Expired, "the agent was not connected".to_owned()));
    assert_eq!(cluster.status(restart).await, Status::Queued);
    cluster.connect(&key(1), 2, RESTART, &[]).await;
    let received = cluster.received().await;
    assert!(matches!(received[..], [(2, id, _)] if id == restart), "{received:?}");
    cluster.stop().await;
}

#[tokio::test]
async fn two_controls_send_each_command_once() {
    let mut cluster = Cluster::new().await;
    cluster.start_control();
    cluster.start_control();
    for number in 0..10 {
        cluster.connect(&key(number), 1, RESTART, &[]).await;
    }
    for number in 0..10 {
        cluster.is_connected(&key(number), true).await;
    }
    let mut given = Vec::new();
    for round in 0..50 {
        given.push(cluster.give(&key(round % 10), Action::Restart, SOON).await);
    }
    let mut received = Vec::new();
    while received.len() < given.len() {
        received.extend(cluster.received().await.into_iter().map(|(_, id, _)| id));
    }
    for id in &given {
        assert_eq!(cluster.status(*id).await, Status::Sent);
    }
    received.sort_unstable();
    assert_eq!(received, given, "each once");
    cluster.nothing_before(&key(0)).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_control_that_dies_between_commit_and_delivery_never_sends_twice() {
    let mut cluster = Cluster::new().await;
    let (_commits, commits) = watch::channel(true);
    let (gate, deliveries) = watch::channel(false);
    let (store, bus, waited) = (cluster.store.clone(), cluster.bus.clone(), AtomicUsize::new(0));
    let held = Arc::new(Held { store, bus, commits, deliveries, waited });
    let dies = cluster.start_control_on(held.clone(), held.clone());
    cluster.connect(&key(1), 1, RESTART, &[]).await;
    cluster.is_connected(&key(1), true).await;
    let restart = cluster.give(&key(1), Action::Restart, SOON).await;
    held.has_waited().await;
    assert_eq!(cluster.status(restart).await, Status::Sent, "it has left the queue before it is sent");
    dies.send_replace(true);
    drop(gate);
    // The one that takes over looks at all there is, and does not send it.
    cluster.start_control();
    cluster.nothing_before(&key(1)).await;
    assert_eq!(cluster.status(restart).await, Status::Sent);
    cluster.stop().await;
}

#[tokio::test]
async fn a_control_paused_before_its_commit_does_not_send_what_another_one_sent() {
    let mut cluster = Cluster::new().await;
    let (gate, commits) = watch::channel(false);
    let (_deliveries, deliveries) = watch::channel(true);
    let (store, bus, waited) = (cluster.store.clone(), cluster.bus.clone(), AtomicUsize::new(0));
    let held = Arc::new(Held { store, bus, commits, deliveries, waited });
    cluster.start_control_on(held.clone(), held.clone());
    cluster.connect(&key(1), 1, RESTART, &[]).await;
    cluster.is_connected(&key(1), true).await;
    let restart = cluster.give(&key(1), Action::Restart, SOON).await;
    held.has_waited().await;
    cluster.start_control();
    let received = cluster.received().await;
    assert!(matches!(received[..], [(1, id, _)] if id == restart), "{received:?}");
    gate.send_replace(true);
    cluster.nothing_before(&key(1)).await;
    cluster.stop().await;
}

#[tokio::test]
async fn what_happens_to_agents_is_told_with_numbers() {
    let mut cluster = Cluster::new().await;
    let subject = Subject::Events(cell(), key(1).tenant);
    let mut events = cluster.bus.subscribe(&subject).await.unwrap();
    cluster.start_control();
    cluster.connect(&key(1), 1, 1, &[]).await;
    let custom =
        opamp::CustomMessage { capability: "c".to_owned(), r#type: "t".to_owned(), data: vec![0, 0xff] };
    let message = AgentToServer {
        instance_uid: key(1).uid.as_bytes().to_vec(),
        sequence_num: 1,
        custom_message: Some(custom),
        ..AgentToServer::default()
    };
    let report = Envelope { agent_to_server: Some(message.encode_to_vec().into()), ..Envelope::default() };
    cluster.publish(&key(1), 1, report).await;
    cluster.disconnect(&key(1), 1).await;
    let mut told = Vec::new();
    let mut numbers: BTreeMap<String, u64> = BTreeMap::new();
    while told.len() < 3 {
        let received = tokio::time::timeout(SOON, events.next()).await.unwrap().unwrap();
        let message = AgentEvents::decode(received.payload).unwrap();
        let count = message.events.len() as u64;
        let next = numbers.entry(message.publisher).or_default();
        assert_eq!(message.before, *next);
        *next += count;
        told.extend(message.events.into_iter().map(|event| event.event.unwrap()));
    }
    assert!(matches!(told[0], Event::Connected(_)), "{told:?}");
    assert!(matches!(&told[1], Event::CustomMessage(message) if message.data == [0, 0xff][..]), "{told:?}");
    assert!(matches!(&told[2], Event::Disconnected(ended) if ended.reason == "connection_lost"), "{told:?}");
    cluster.stop().await;
}
