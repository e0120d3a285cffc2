//! The file behind the store: who may have it, and what is not taken for a store.
#![expect(clippy::unwrap_used, reason = "tests, of which clippy knows only the functions marked so")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use muster_adapters::sqlite::SqliteStore;
use muster_domain::agent::Agent;
use muster_domain::ids::{AgentKey, Cell, InstanceUid, Partition, Timestamp};
use muster_domain::selector::AgentSelector;
use muster_ports::EngineError;
use muster_ports::store::{AgentWrite, Commit, FleetStore as _, FoldStore as _, IntentStore as _};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use uuid::Uuid;

fn key(number: u128) -> AgentKey {
    AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(number)) }
}

async fn store_agent(store: &SqliteStore, number: u128) {
    let cell: Cell = "local".parse().unwrap();
    let agent = Agent::new(key(number), Timestamp(1));
    let partition = Partition::of(&agent.key);
    let row = store.partition(&cell, partition).await.unwrap();
    let agents = vec![AgentWrite { agent, session: true, state: true, effective_config: None }];
    let progress = (row.epoch, row.position, row.message);
    let generation = row.generation;
    let (decided_on, quarantined) = Default::default();
    let commit = Commit {
        cell,
        partition,
        generation,
        progress,
        decided_on,
        agents,
        quarantined,
        commands: Vec::new(),
        counts: Default::default(),
    };
    store.commit(commit).await.unwrap();
}

/// Changes the file in a way that the store itself never does.
async fn tamper(path: &Path, statement: &'static str) {
    let options = SqliteConnectOptions::new().filename(path);
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn refusal(path: &Path) -> EngineError {
    SqliteStore::open(path).await.err().unwrap()
}

#[tokio::test]
async fn the_file_and_its_directory_are_their_owners_alone() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("new").join("data");
    let store = SqliteStore::open(data.join("muster.db")).await.unwrap();
    store_agent(&store, 1).await;
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    for file in ["muster.db", "muster.db-wal", "muster.db-shm", "muster.db.lock"] {
        assert_eq!(mode(&data.join(file)), 0o600, "{file}");
    }
}

#[tokio::test]
async fn a_closed_store_is_opened_again_with_all_that_was_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("muster.db");
    for round in 0..3 {
        let store = SqliteStore::open(&path).await.unwrap();
        for earlier in 0..round {
            assert!(store.agent(&key(earlier)).await.unwrap().is_some(), "agent {earlier} in round {round}");
        }
        store_agent(&store, round).await;
        store.close().await;
    }
}

#[tokio::test]
async fn a_store_is_not_opened_twice() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("muster.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let refused = refusal(&path).await;
    assert_eq!(
        refused.to_string(),
        format!(
            "SQLite is not available: {} is in use by another process (process {}): \
             stop that one, or use another data directory",
            path.display(),
            std::process::id()
        )
    );
    store.ping().await.unwrap();
    drop(store);
    SqliteStore::open(&path).await.unwrap();
}

#[tokio::test]
async fn a_place_that_cannot_be_had_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below = file.join("data").join("muster.db");
    let refused = refusal(&below).await;
    let expected = format!("SQLite is not available: cannot open {}: Not a directory", below.display());
    assert!(refused.to_string().starts_with(&expected), "{refused}");
    let taken = directory.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    let refused = refusal(&taken).await;
    assert!(refused.to_string().contains("taken"), "{refused}");
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("muster.db");
    SqliteStore::open(&path).await.unwrap().close().await;
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (1000, 'later', true, x'00', 0)";
    tamper(&path, newer).await;
    let before = std::fs::read(&path).unwrap();
    let refused = refusal(&path).await;
    assert!(matches!(refused, EngineError::Corrupt { .. }), "{refused:?}");
    let told = refused.to_string();
    assert!(
        told.contains("muster.db") && told.contains("a newer version of this program wrote it"),
        "{told}"
    );
    assert!(told.contains("its schema has number 1000"), "{told}");
    assert!(std::fs::read(&path).unwrap() == before, "the file was changed");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("muster.db");
    let text = "This is not a database. ".repeat(1000);
    std::fs::write(&path, &text).unwrap();
    let refused = refusal(&path).await;
    let is_clear = |told: &str| told.contains("muster.db") && told.contains("file is not a database");
    assert!(matches!(refused, EngineError::Corrupt { .. }) && is_clear(&refused.to_string()), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "the file was changed");
}

#[tokio::test]
async fn a_damaged_file_is_an_error_that_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("muster.db");
    let store = SqliteStore::open(&path).await.unwrap();
    for number in 0..500 {
        store_agent(&store, number).await;
    }
    store.close().await;
    let mut bytes = std::fs::read(&path).unwrap();
    // All but the pages of the schema and of the list of migrations.
    let from = bytes.len() / 2;
    bytes[from..].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let damaged = match SqliteStore::open(&path).await {
        Err(error) => error,
        Ok(store) => store.page(&key(0).tenant, &AgentSelector::default(), None, 1000).await.unwrap_err(),
    };
    assert!(matches!(damaged, EngineError::Corrupt { engine: "SQLite", .. }), "{damaged:?}");
    assert!(damaged.to_string().contains("malformed"), "{damaged}");
}

#[tokio::test]
async fn a_row_that_cannot_be_understood_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("muster.db");
    let store = SqliteStore::open(&path).await.unwrap();
    store_agent(&store, 1).await;
    store.close().await;
    tamper(&path, "UPDATE agents SET state = '{\"first_seen\": \"yesterday\"}'").await;
    let store = SqliteStore::open(&path).await.unwrap();
    let error = store.agents(&"local".parse().unwrap(), &[key(1)]).await.unwrap_err().to_string();
    let place = format!("SQLite holds unusable data in agents, {}, state: invalid type", key(1));
    assert!(error.starts_with(&place), "{error}");
    store.close().await;
    tamper(&path, "UPDATE agents SET state = '{'; INSERT INTO intents VALUES ('No Name', 1)").await;
    let store = SqliteStore::open(&path).await.unwrap();
    let error = store.revisions().await.unwrap_err().to_string();
    assert!(
        error.starts_with("SQLite holds unusable data in intents, tenant: tenant \"No Name\""),
        "{error}"
    );
}
