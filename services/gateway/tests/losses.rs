//! What a gateway does about engines that lost what they knew, on engines in memory and on a clock that is
//! held.
#![expect(clippy::unwrap_used, reason = "tests end with their panics")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use muster_adapters_memory::{MemoryBlobs, MemoryBus, MemoryKeyValue, MemoryLog, MemoryOwnership};
use muster_domain::ids::{AgentKey, InstanceUid, MessageId, Partition, SessionId, Timestamp};
use muster_gateway::{Engines, Gateway, Metrics, Settings};
use muster_ports::bus::{Bus, Subject};
use muster_ports::kv::{KeyValue, Precondition, PutError, Versioned};
use muster_ports::log::{Log, LogReader, Position, PublishError};
use muster_ports::ownership::{ClaimOutcome, ClaimRequest, Owned, Ownership, Settled};
use muster_ports::{EngineError, LEASE_TTL, Random, Spawner, epochs};
use muster_proto::Message;
use muster_proto::bus::delivery::Action;
use muster_proto::bus::{Delivery, EndReason, Envelope, GatewayLease, ReclaimSessions, SessionRef};
use muster_proto::opamp::{AgentToServer, ServerToAgent};
use prometheus::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::sleep;
use uuid::Uuid;

/// How an engine answers: at once (0), not at all ([`DOWN`]), or after so many milliseconds.
#[derive(Default)]
struct Mood(AtomicU64);

const DOWN: u64 = u64::MAX;

impl Mood {
    fn set(&self, mood: u64) {
        self.0.store(mood, Ordering::SeqCst);
    }

    async fn pass(&self) -> Result<(), EngineError> {
        match self.0.load(Ordering::SeqCst) {
            DOWN => Err(EngineError::Unavailable { engine: "it", reason: "it is down".to_owned() }),
            millis => {
                sleep(Duration::from_millis(millis)).await;
                Ok(())
            }
        }
    }
}

struct Leases(MemoryKeyValue, Mood);

#[async_trait]
impl KeyValue for Leases {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, EngineError> {
        self.0.get(key).await
    }

    async fn put(&self, key: &str, value: Bytes, precondition: Precondition) -> Result<u64, PutError> {
        self.1.pass().await?;
        self.0.put(key, value, precondition).await
    }

    async fn remove(&self, key: &str) -> Result<(), EngineError> {
        self.0.remove(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, EngineError> {
        self.0.list(prefix).await
    }
}

struct Owners(MemoryOwnership, Mood);

#[async_trait]
impl Ownership for Owners {
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimOutcome, EngineError> {
        self.1.pass().await?;
        self.0.claim(request).await
    }

    async fn settle(&self, settled: Vec<Settled>) -> Result<Vec<(AgentKey, SessionId)>, EngineError> {
        self.0.settle(settled).await
    }

    async fn release(&self, key: &AgentKey, session: SessionId) -> Result<(), EngineError> {
        self.0.release(key, session).await
    }

    async fn look_up(&self, keys: &[AgentKey]) -> Result<Vec<Option<Owned>>, EngineError> {
        self.0.look_up(keys).await
    }
}

struct Logs(MemoryLog, Mood);

#[async_trait]
impl Log for Logs {
    async fn publish(
        &self,
        partition: Partition,
        id: MessageId,
        payload: Bytes,
    ) -> Result<Position, PublishError> {
        self.1.pass().await?;
        self.0.publish(partition, id, payload).await
    }

    async fn read(&self, partition: Partition, after: Position) -> Result<Box<dyn LogReader>, EngineError> {
        self.0.read(partition, after).await
    }

    async fn id_at(
        &self,
        partition: Partition,
        position: Position,
    ) -> Result<Option<MessageId>, EngineError> {
        self.0.id_at(partition, position).await
    }

    async fn purge(&self, partition: Partition, position: Position) -> Result<(), EngineError> {
        self.0.purge(partition, position).await
    }

    fn max_payload(&self) -> usize {
        self.0.max_payload()
    }

    async fn last(&self, partition: Partition) -> Result<Position, EngineError> {
        self.0.last(partition).await
    }
}

struct Rig {
    gateway: Gateway,
    log: Arc<Logs>,
    bus: Arc<MemoryBus>,
    values: Arc<MemoryKeyValue>,
    leases: Arc<Leases>,
    owners: Arc<Owners>,
    key: AgentKey,
    /// The agent's end of its connection.
    agent: DuplexStream,
}

/// Connects the agent, which reports, and hears the answer.
async fn connect(gateway: &Gateway) -> DuplexStream {
    let (mut agent, stream) = tokio::io::duplex(1 << 16);
    assert!(gateway.serve(stream, "10.0.0.1:1".parse().unwrap()));
    let report = AgentToServer {
        instance_uid: Uuid::from_u128(7).as_bytes().to_vec(),
        agent_description: Some(Default::default()),
        ..AgentToServer::default()
    };
    // A frame that is masked with zeros, then the header of the message.
    let mut frame = vec![0x82, 0x80, 0, 0, 0, 0, 0];
    frame.extend(report.encode_to_vec());
    frame[1] |= u8::try_from(frame.len() - 6).unwrap();
    agent.write_all(&frame).await.unwrap();
    hear(&mut agent).await;
    agent
}

/// The next frame of the server: its opcode and its payload.
async fn hear(agent: &mut DuplexStream) -> (u8, Vec<u8>) {
    let (head, length) = (agent.read_u8().await.unwrap(), agent.read_u8().await.unwrap());
    let mut payload = vec![0; usize::from(length)];
    agent.read_exact(&mut payload).await.unwrap();
    (head & 0x0f, payload)
}

impl Rig {
    /// A gateway with one agent that has reported.
    async fn start() -> Self {
        let log = Arc::new(Logs(MemoryLog::default(), Mood::default()));
        let (bus, values) = (Arc::new(MemoryBus::default()), Arc::new(MemoryKeyValue::new(None)));
        let leases = Arc::new(Leases(MemoryKeyValue::new(Some(LEASE_TTL)), Mood::default()));
        let owners = Arc::new(Owners(MemoryOwnership::new(), Mood::default()));
        let count = AtomicU64::new(1);
        let engines = Engines {
            log: log.clone(),
            blobs: Arc::new(MemoryBlobs::default()),
            ownership: owners.clone(),
            polls: Arc::new(MemoryOwnership::new()),
            bus: bus.clone(),
            leases: leases.clone(),
            values: values.clone(),
            clock: Arc::new(|| Timestamp(1_000_000)),
            random: Random::new(move || count.fetch_add(1, Ordering::SeqCst)),
            spawner: Spawner::new(|task| drop(tokio::spawn(task))),
        };
        let settings = Settings::new("here".parse().unwrap(), "g1".parse().unwrap());
        let metrics = Metrics::register(&Registry::new(), "here").unwrap();
        let gateway = Gateway::start(settings, engines, metrics).await.unwrap();
        let key = AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(7)) };
        let agent = connect(&gateway).await;
        Self { gateway, log, bus, values, leases, owners, key, agent }
    }

    async fn incarnation(&self) -> Option<Bytes> {
        let lease = self.leases.get("gateways/here/g1").await.unwrap()?;
        Some(GatewayLease::decode(lease.value).unwrap().incarnation)
    }

    async fn entries(&self) -> Vec<Envelope> {
        let mut reader = self.log.read(Partition::of(&self.key), Position::default()).await.unwrap();
        let entries = reader.next(99).await.unwrap();
        entries.into_iter().map(|entry| Envelope::decode(entry.payload).unwrap()).collect()
    }

    /// Sessions and incarnations of the agent that were announced.
    async fn announced(&self) -> Vec<(Bytes, Bytes)> {
        let envelopes = self.entries().await.into_iter();
        let started = envelopes.filter(|envelope| envelope.started.is_some());
        started.map(|envelope| (envelope.session_id, envelope.incarnation)).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_cannot_be_claimed_anew_at_once_is_claimed_later() {
    let rig = Rig::start().await;
    rig.leases.1.set(DOWN);
    sleep(LEASE_TTL).await;
    rig.owners.1.set(DOWN);
    rig.leases.1.set(0);
    sleep(Duration::from_secs(15)).await;
    assert_eq!(rig.announced().await.len(), 1, "nothing can be claimed");
    rig.owners.1.set(0);
    sleep(Duration::from_secs(10)).await;
    let announced = rig.announced().await;
    assert_eq!(announced.len(), 2, "it is announced anew, once");
    assert_eq!(Some(&announced[1].1), rig.incarnation().await.as_ref());
    assert_ne!(announced[0], announced[1]);
    drop(rig.agent);
    rig.gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_lapses_while_it_is_renewed_begins_another_life() {
    let rig = Rig::start().await;
    let first = rig.incarnation().await;
    rig.leases.1.set(DOWN);
    sleep(Duration::from_secs(8)).await;
    // Just in time, and answered too late.
    rig.leases.1.set(2500);
    sleep(Duration::from_secs(4)).await;
    rig.leases.1.set(0);
    sleep(Duration::from_secs(10)).await;
    assert_ne!(rig.incarnation().await, first);
    assert_eq!(rig.announced().await.len(), 2);
    drop(rig.agent);
    rig.gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_the_loss_of_the_log_sessions_are_announced_anew_and_agents_asked() {
    let mut rig = Rig::start().await;
    let cell = "here".parse().unwrap();
    let partition = Partition::of(&rig.key);
    epochs::raise(rig.values.as_ref(), &cell, partition, 1).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(rig.announced().await.len(), 1, "the first epoch is no loss");
    epochs::raise(rig.values.as_ref(), &cell, partition, 2).await.unwrap();
    sleep(Duration::from_secs(15)).await;
    let announced = rig.announced().await;
    assert_eq!(announced.len(), 2);
    assert_eq!(Some(&announced[1].1), rig.incarnation().await.as_ref(), "what ended meanwhile ends for all");
    let asked = loop {
        let (opcode, payload) = hear(&mut rig.agent).await;
        if opcode == 2 {
            break ServerToAgent::decode(&payload[1..]).unwrap();
        }
    };
    assert_eq!(asked.flags, 1, "ReportFullState");
    drop(rig.agent);
    rig.gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_log_is_told_of_a_session_that_ended_while_it_was_away() {
    let rig = Rig::start().await;
    rig.log.1.set(DOWN);
    drop(rig.agent);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(rig.log.last(Partition::of(&rig.key)).await.unwrap(), Position(1));
    rig.log.1.set(0);
    sleep(Duration::from_secs(5)).await;
    let mut reader = rig.log.read(Partition::of(&rig.key), Position(1)).await.unwrap();
    let entries = reader.next(9).await.unwrap();
    let ended = Envelope::decode(entries[0].payload.clone()).unwrap();
    assert_eq!(ended.ended.map(|ended| ended.reason()), Some(EndReason::ConnectionLost));
    assert_eq!(entries.len(), 1);
    rig.gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_another_one_of_the_gateway_took_over_from_is_closed() {
    let mut rig = Rig::start().await;
    // Ownership has forgotten the agent, which comes a second time.
    rig.owners.0.release(&rig.key, session(&rig.entries().await[0])).await.unwrap();
    let _newcomer = connect(&rig.gateway).await;
    let (opcode, payload) = hear(&mut rig.agent).await;
    assert_eq!((opcode, &payload[..2]), (8, &1008_u16.to_be_bytes()[..]));
    drop(rig.agent);
    rig.gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_claim_is_too_low_is_claimed_above() {
    let mut rig = Rig::start().await;
    let first = rig.entries().await.remove(0);
    let target =
        SessionRef { instance_uid: first.instance_uid.clone(), session_id: first.session_id.clone() };
    let above = first.claim + 3_600_000_000;
    let delivery = Delivery {
        cell: "here".to_owned(),
        tenant: "default".to_owned(),
        traceparent: String::new(),
        action: Some(Action::ReclaimSessions(ReclaimSessions { sessions: vec![target], above })),
    };
    let subject = Subject::Deliveries("here".parse().unwrap(), "g1".parse().unwrap());
    rig.bus.publish(&subject, delivery.encode_to_vec().into()).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let announced = rig.entries().await.remove(1);
    assert!(announced.claim > above && announced.started.is_some());
    assert_ne!(announced.session_id, first.session_id);
    let asked = loop {
        let (opcode, payload) = hear(&mut rig.agent).await;
        if opcode == 2 {
            break ServerToAgent::decode(&payload[1..]).unwrap();
        }
    };
    assert_eq!(asked.flags, 1, "what it said under the lower claim was not folded");
    // Told of the session before once more, it asks in the one that has taken its place.
    rig.bus.publish(&subject, delivery.encode_to_vec().into()).await.unwrap();
    let asked = loop {
        let (opcode, payload) = hear(&mut rig.agent).await;
        if opcode == 2 {
            break ServerToAgent::decode(&payload[1..]).unwrap();
        }
    };
    assert_eq!((asked.flags, rig.entries().await.len()), (1, 2));
    drop(rig.agent);
    rig.gateway.stop().await;
}

fn session(envelope: &Envelope) -> SessionId {
    envelope.session_id.as_ref().try_into().unwrap()
}
