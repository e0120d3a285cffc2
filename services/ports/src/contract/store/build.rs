//! Agents, commits and changes for the cases.

use std::collections::BTreeMap;

use muster_domain::agent::{
    Agent, AgentState, ConfigChange, EndReason, FailedConfig, Offered, Session, Transport,
};
use muster_domain::capabilities::AgentCapabilities;
use muster_domain::drift::{Baseline, Drift, DriftKind, Settling};
use muster_domain::ids::{
    AgentKey, Cell, Claim, ConfigHash, Digest, GatewayId, Incarnation, InstanceUid, IntentRevision,
    MessageId, Partition, RolloutId, SessionId, Tenant, Timestamp,
};
use muster_domain::report::{
    Attributes, ConfigFile, ConfigMap, ConfigStatus, Description, Health, RemoteConfigStatus,
};
use muster_domain::rollout::Standing;
use muster_domain::rollout::standing::Track;
use uuid::Uuid;

use crate::log::Position;
use crate::store::{AgentWrite, Commit, PartitionRow, Store, StoredAgent};

pub(super) const NOW: Timestamp = Timestamp(1_790_000_000_123_456);

pub(super) fn cell() -> Cell {
    "here".parse().unwrap()
}

pub(super) fn tenant(name: &str) -> Tenant {
    name.parse().unwrap()
}

pub(super) fn key(number: u128) -> AgentKey {
    key_of("default", number)
}

pub(super) fn key_of(tenant_name: &str, number: u128) -> AgentKey {
    AgentKey { tenant: tenant(tenant_name), uid: InstanceUid(Uuid::from_u128(number)) }
}

/// So many keys of a tenant that are in this partition.
pub(super) fn keys_in(partition: Partition, tenant_name: &str, count: usize) -> Vec<AgentKey> {
    let all = (1..).map(|number| key_of(tenant_name, number));
    all.filter(|key| Partition::of(key) == partition).take(count).collect()
}

pub(super) fn message(number: u128) -> MessageId {
    MessageId(Uuid::from_u128(0x0e55 << 64 | number))
}

pub(super) fn incarnation(number: u128) -> Incarnation {
    Incarnation(Uuid::from_u128(0x11fe << 64 | number))
}

/// A live session that began in gateway life `life`.
pub(super) fn session(number: u128, life: u128) -> Session {
    Session {
        id: SessionId(Uuid::from_u128(0x5e55 << 64 | number)),
        claim: Claim(NOW.0 + 1),
        gateway: "gateway-1".parse::<GatewayId>().unwrap(),
        incarnation: incarnation(life),
        transport: Transport::WebSocket,
        remote_addr: "[2001:db8::1]:50000".to_owned(),
        started_at: NOW,
        ended: None,
        silent_since: None,
    }
}

/// An agent of which only a live session is known.
pub(super) fn agent(key: &AgentKey) -> Agent {
    Agent { session: Some(session(1, 1)), ..Agent::new(key.clone(), NOW) }
}

/// An agent with a session that has ended and a state in which nothing is left out.
pub(super) fn rich_agent(key: &AgentKey) -> Agent {
    let ended = Some((NOW.plus(std::time::Duration::from_micros(1)), EndReason::Silent));
    Agent { key: key.clone(), session: Some(Session { ended, ..session(2, 3) }), state: rich_state() }
}

/// Text that engines like to spoil: not ASCII, a NUL, quotes, line ends, both kinds of null.
pub(super) const TEXT: &str =
    "Grüße, \u{1f980} \u{0}nul 'quote' \"double\" \\back\r\n\ttab null NULL %s {{.x}} \u{fffd}";

pub(super) fn rich_attributes() -> Attributes {
    let nested: Attributes = [("inner".to_owned(), vec![1, 2].into())].into();
    [
        ("service.name", TEXT.into()),
        ("", "no key".into()),
        (TEXT, "".into()),
        ("flag", true.into()),
        ("nothing", ().into()),
        ("largest", u64::MAX.into()),
        ("smallest", i64::MIN.into()),
        ("whole float", 1.0.into()),
        ("float", 0.1.into()),
        // One that a careless reader of decimals gets wrong in the last bit.
        ("long float", 481_837.925_201_105_24.into()),
        ("list", vec!["a", "b"].into()),
        ("map", nested.into_iter().collect()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

fn rich_health(depth: u32) -> Health {
    Health {
        healthy: depth > 0,
        status: TEXT.to_owned(),
        last_error: "boom".to_owned(),
        start_time: Some(NOW),
        status_time: Some(Timestamp(u64::MAX)),
        attributes: rich_attributes(),
        components: (1..=depth).map(|at| (format!("part/{at}"), rich_health(depth - 1))).collect(),
    }
}

fn rich_state() -> AgentState {
    let hash = |byte: u8, len: usize| ConfigHash::new(&vec![byte; len]).unwrap();
    let failed = RemoteConfigStatus {
        hash: Some(hash(0, 1)),
        status: ConfigStatus::Failed,
        error_message: TEXT.to_owned(),
    };
    AgentState {
        drift: Some(Drift {
            kind: DriftKind::EffectiveConfig,
            since: NOW,
            expected: TEXT.to_owned(),
            found: None,
            again: Some((session(2, 3).id, NOW)),
        }),
        effective_is_blank: true,
        baseline: Some(Baseline {
            hash: hash(4, 32),
            effective: Some(Digest([8; 32])),
            seen: NOW,
            left: u32::MAX,
        }),
        settling: Some(Settling { hash: hash(5, 1), until: Timestamp(u64::MAX) }),
        first_seen: NOW,
        last_report: Timestamp(u64::MAX),
        sequence_num: u64::MAX,
        description: Some(Description { identifying: rich_attributes(), non_identifying: rich_attributes() }),
        capabilities: AgentCapabilities(u64::MAX),
        health: Some(rich_health(2)),
        custom_capabilities: vec!["com.example.pause".to_owned(), TEXT.to_owned()],
        remote_config: failed.clone(),
        effective_config: Some(Digest([7; 32])),
        desired: Some(hash(0xff, ConfigHash::MAX)),
        held: Some(TEXT.to_owned()),
        offered: Some(Offered {
            hash: hash(2, 32),
            session: session(2, 3).id,
            first_at: NOW,
            attempts: u32::MAX,
            next_at: NOW,
        }),
        failed: Some(FailedConfig { hash: hash(3, 32), error_message: TEXT.to_owned(), at: NOW }),
        retried: IntentRevision(u64::MAX),
        remote_config_history: vec![ConfigChange { at: NOW, status: failed }],
        available_components: Some(TEXT.to_owned()),
        rollouts: vec![Track {
            rollout: RolloutId(Uuid::from_u128(7)),
            standing: Standing::UnhealthyBefore,
            since: Some(NOW),
            was_unhealthy: true,
            exposed: true,
            sent: true,
        }],
        holding: [RolloutId(Uuid::from_u128(8))].into(),
    }
}

/// Files with every byte, without a type, without a name, empty and large.
pub(super) fn rich_config() -> ConfigMap {
    let file = |content_type: &str, body: Vec<u8>| ConfigFile { content_type: content_type.to_owned(), body };
    [
        ("", file("text/yaml", b"a: 1\n".to_vec())),
        ("collector.yaml", file("", (0..=u8::MAX).collect())),
        ("größe", file("application/octet-stream", Vec::new())),
        ("large", file("x", vec![0xc3; 300_000])),
    ]
    .into_iter()
    .map(|(name, file)| (name.to_owned(), file))
    .collect()
}

/// Writes all of an agent but an effective config.
pub(super) fn write(agent: Agent) -> AgentWrite {
    AgentWrite { agent, session: true, state: true, effective_config: None }
}

/// A commit on this row that moves it to the next position and writes these agents.
pub(super) fn commit(
    cell: &Cell,
    partition: Partition,
    row: PartitionRow,
    agents: Vec<AgentWrite>,
) -> Commit {
    let position = row.position.0 + 1;
    Commit {
        cell: cell.clone(),
        partition,
        generation: row.generation,
        progress: (row.epoch, Position(position), Some(message(u128::from(position)))),
        decided_on: BTreeMap::new(),
        agents,
        quarantined: Vec::new(),
        commands: Vec::new(),
        counts: BTreeMap::new(),
    }
}

/// Commits these writes of one cell, partition by partition.
pub(super) async fn store_in(store: &dyn Store, cell: &Cell, writes: Vec<AgentWrite>) {
    let mut by_partition = BTreeMap::<Partition, Vec<AgentWrite>>::new();
    for write in writes {
        by_partition.entry(Partition::of(&write.agent.key)).or_default().push(write);
    }
    for (partition, writes) in by_partition {
        let row = store.partition(cell, partition).await.unwrap();
        store.commit(commit(cell, partition, row, writes)).await.unwrap();
    }
}

/// Commits these agents with all their parts.
pub(super) async fn store_all(store: &dyn Store, agents: impl IntoIterator<Item = Agent>) {
    store_in(store, &cell(), agents.into_iter().map(write).collect()).await;
}

/// Reads one agent back.
pub(super) async fn stored(store: &dyn Store, key: &AgentKey) -> Option<Agent> {
    let mut found = store.agents(&cell(), std::slice::from_ref(key)).await.unwrap();
    assert!(found.len() <= 1, "one agent for one key");
    found.pop().map(|stored| stored.agent)
}

pub(super) fn keys(found: &[StoredAgent]) -> Vec<AgentKey> {
    found.iter().map(|stored| stored.agent.key.clone()).collect()
}
