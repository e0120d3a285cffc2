//! The store on a real Postgres.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests, of which clippy knows only those marked so")]

mod commits;
mod load;
mod migrations;
mod outages;
mod selectors;

use std::collections::BTreeMap;

use muster_adapters::postgres::{PostgresOptions, PostgresStore};
use muster_domain::agent::{Agent, Session, Transport};
use muster_domain::ids::{
    AgentKey, Cell, Claim, Incarnation, InstanceUid, MessageId, Partition, SessionId, Timestamp,
};
use muster_ports::contract;
use muster_ports::log::Position;
use muster_ports::store::{AgentWrite, Commit, PartitionRow};
use muster_testkit::engines::{Engine, Postgres, engines_or_skip};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// The server that tests share which leave it running; none where Postgres is not installed.
async fn server() -> Option<&'static Postgres> {
    static SERVER: OnceCell<Postgres> = OnceCell::const_new();
    if !engines_or_skip(&[Engine::Postgres]) {
        return None;
    }
    Some(SERVER.get_or_init(async || Postgres::builder().without_fsync().start().await).await)
}

/// A store in an empty database, whose schema is up to date.
async fn store(url: String) -> PostgresStore {
    let store = PostgresStore::connect(PostgresOptions::new(url)).await.unwrap();
    store.migrate().await.unwrap();
    store
}

fn cell() -> Cell {
    "here".parse().unwrap()
}

fn key(number: u128) -> AgentKey {
    AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(number)) }
}

/// So many keys of one partition.
fn keys_in(partition: Partition, count: usize) -> Vec<AgentKey> {
    (1..).map(key).filter(|key| Partition::of(key) == partition).take(count).collect()
}

fn session(number: u128) -> Session {
    Session {
        id: SessionId(Uuid::from_u128(number)),
        claim: Claim(1),
        gateway: "gateway-1".parse().unwrap(),
        incarnation: Incarnation(Uuid::from_u128(1)),
        transport: Transport::WebSocket,
        remote_addr: "10.0.0.1:5000".to_owned(),
        started_at: Timestamp(1_790_000_000_000_000),
        ended: None,
        silent_since: None,
    }
}

fn write(agent: Agent) -> AgentWrite {
    AgentWrite { agent, session: true, state: true, effective_config: None }
}

/// A commit that moves the row to the next position and writes these agents.
fn commit(partition: Partition, row: PartitionRow, agents: Vec<AgentWrite>) -> Commit {
    let position = row.position.0 + 1;
    Commit {
        cell: cell(),
        partition,
        generation: row.generation,
        progress: (row.epoch, Position(position), Some(MessageId(Uuid::from_u128(position.into())))),
        decided_on: BTreeMap::new(),
        agents,
        quarantined: Vec::new(),
        commands: Vec::new(),
        counts: BTreeMap::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract() {
    let Some(server) = server().await else { return };
    contract::store::all(async || store(server.database().await).await).await;
    contract::credentials::all(async || store(server.database().await).await).await;
}

#[test]
fn options_do_not_show_the_password() {
    let options = PostgresOptions::new("postgres://muster:s3cret@db:5432/muster");
    assert!(!format!("{options:?}").contains("s3cret"));
}

#[tokio::test]
async fn a_store_does_not_show_the_password() {
    let Some(server) = server().await else { return };
    let url = server.url();
    let store = PostgresStore::connect(PostgresOptions::new(&url)).await.unwrap();
    assert_eq!(
        format!("{store:?}"),
        format!("PostgresStore {{ database: \"127.0.0.1:{}/muster\", .. }}", server.port())
    );
    let wrong = url.replace(":muster@", ":s3cret@");
    let refused = PostgresStore::connect(PostgresOptions::new(wrong)).await.unwrap_err().to_string();
    assert!(refused.contains("password authentication failed"), "{refused}");
    assert!(refused.contains(&server.port().to_string()) && !refused.contains("s3cret"), "{refused}");
    let refused = PostgresStore::connect(PostgresOptions::new("postgres://u:s3cret@h:port/x")).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("address of the database") && !refused.contains("s3cret"), "{refused}");
}
