//! What a gateway does about a lease that has lapsed, on engines in memory and on a clock that is held.
#![expect(clippy::unwrap_used, reason = "tests end with their panics")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use muster_adapters_memory::{MemoryBlobs, MemoryBus, MemoryKeyValue, MemoryLog, MemoryOwnership};
use muster_domain::ids::{AgentKey, InstanceUid, Partition, SessionId, Timestamp};
use muster_gateway::{Engines, Gateway, Metrics, Settings};
use muster_ports::kv::{KeyValue, Precondition, PutError, Versioned};
use muster_ports::log::{Log, Position};
use muster_ports::ownership::{ClaimOutcome, ClaimRequest, Owned, Ownership, Settled};
use muster_ports::{EngineError, LEASE_TTL, Random, Spawner};
use muster_proto::Message;
use muster_proto::bus::{Envelope, GatewayLease};
use muster_proto::opamp::AgentToServer;
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

struct Rig {
    gateway: Gateway,
    log: Arc<MemoryLog>,
    leases: Arc<Leases>,
    owners: Arc<Owners>,
    key: AgentKey,
    /// The agent's end of its connection.
    agent: DuplexStream,
}

impl Rig {
    /// A gateway with one agent that has reported.
    async fn start() -> Self {
        let log = Arc::new(MemoryLog::default());
        let leases = Arc::new(Leases(MemoryKeyValue::new(Some(LEASE_TTL)), Mood::default()));
        let owners = Arc::new(Owners(MemoryOwnership::new(), Mood::default()));
        let count = AtomicU64::new(1);
        let engines = Engines {
            log: log.clone(),
            blobs: Arc::new(MemoryBlobs::default()),
            ownership: owners.clone(),
            polls: Arc::new(MemoryOwnership::new()),
            bus: Arc::new(MemoryBus::default()),
            leases: leases.clone(),
            values: Arc::new(MemoryKeyValue::new(None)),
            clock: Arc::new(|| Timestamp(1_000_000)),
            random: Random::new(move || count.fetch_add(1, Ordering::SeqCst)),
            spawner: Spawner::new(|task| drop(tokio::spawn(task))),
        };
        let settings = Settings::new("here".parse().unwrap(), "g1".parse().unwrap());
        let metrics = Metrics::register(&Registry::new(), "here").unwrap();
        let gateway = Gateway::start(settings, engines, metrics).await.unwrap();
        let (mut agent, stream) = tokio::io::duplex(1 << 16);
        assert!(gateway.serve(stream, "10.0.0.1:1".parse().unwrap()));
        let uid = Uuid::from_u128(7);
        let report = AgentToServer {
            instance_uid: uid.as_bytes().to_vec(),
            agent_description: Some(Default::default()),
            ..AgentToServer::default()
        };
        // A frame that is masked with zeros, then the header of the message.
        let mut frame = vec![0x82, 0x80, 0, 0, 0, 0, 0];
        frame.extend(report.encode_to_vec());
        frame[1] |= u8::try_from(frame.len() - 6).unwrap();
        agent.write_all(&frame).await.unwrap();
        agent.read_u8().await.unwrap();
        let key = AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(uid) };
        Self { gateway, log, leases, owners, key, agent }
    }

    async fn incarnation(&self) -> Option<Bytes> {
        let lease = self.leases.get("gateways/here/g1").await.unwrap()?;
        Some(GatewayLease::decode(lease.value).unwrap().incarnation)
    }

    /// Sessions and incarnations of the agent that were announced.
    async fn announced(&self) -> Vec<(Bytes, Bytes)> {
        let mut reader = self.log.read(Partition::of(&self.key), Position::default()).await.unwrap();
        let entries = reader.next(99).await.unwrap();
        let envelopes = entries.into_iter().map(|entry| Envelope::decode(entry.payload).unwrap());
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
