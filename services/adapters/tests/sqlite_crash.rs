//! What is left in the file when a write is broken off: all of it, or nothing.
#![expect(clippy::unwrap_used, reason = "tests, of which clippy knows only the functions marked so")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use muster_adapters::sqlite::SqliteStore;
use muster_domain::agent::Agent;
use muster_domain::ids::{
    AgentKey, Cell, InstanceUid, IntentRevision, MessageId, Partition, Tenant, Timestamp,
};
use muster_domain::intent::{Assignment, IntentChange, OnRemoval};
use muster_domain::report::{ConfigFile, ConfigMap};
use muster_domain::selector::AgentSelector;
use muster_ports::log::Position;
use muster_ports::store::{
    AgentWrite, Commit, CommitError, FleetStore as _, FoldStore as _, IntentStore as _, PartitionRow,
};
use uuid::Uuid;

const AGENTS: usize = 100;
/// Set for the process that is killed: the file that it writes.
const CHILD: &str = "MUSTER_TEST_CRASH_FILE";

fn cell() -> Cell {
    "local".parse().unwrap()
}

fn tenant() -> Tenant {
    "default".parse().unwrap()
}

static KEYS: LazyLock<Vec<AgentKey>> = LazyLock::new(|| {
    let key = |number| AgentKey { tenant: tenant(), uid: InstanceUid(Uuid::from_u128(number)) };
    (0..).map(key).filter(|key| Partition::of(key) == partition()).take(AGENTS).collect()
});

fn partition() -> Partition {
    Partition::new(0).unwrap()
}

/// A commit after which every agent's state and effective config tell the new position.
fn commit(row: PartitionRow) -> Commit {
    let position = row.position.0 + 1;
    let agents = KEYS.iter().map(|key| {
        let mut agent = Agent::new(key.clone(), Timestamp(1));
        agent.state.sequence_num = position;
        let file = ConfigFile { content_type: String::new(), body: position.to_string().repeat(500).into() };
        let effective_config = Some(ConfigMap::from([("file".to_owned(), file)]));
        AgentWrite { agent, session: true, state: true, effective_config }
    });
    Commit {
        cell: cell(),
        partition: partition(),
        generation: row.generation,
        progress: (1, Position(position), Some(MessageId(Uuid::from_u128(u128::from(position))))),
        decided_on: BTreeMap::new(),
        agents: agents.collect(),
        quarantined: Vec::new(),
        commands: Vec::new(),
        counts: BTreeMap::new(),
    }
}

/// A change after which two assignments tell the new revision.
fn change(planned_on: IntentRevision) -> IntentChange {
    let assignment = |name: &str| Assignment {
        name: name.to_owned(),
        template: "t".to_owned(),
        version: Some((planned_on.0 + 1).to_string()),
        values: BTreeMap::new(),
        selector: AgentSelector::default(),
        priority: 0,
        file: None,
        on_removal: OnRemoval::default(),
        retired_at: None,
        strategy: None,
        created_at: Timestamp(1),
        updated_at: Timestamp(1),
    };
    let assignments = vec![assignment("one"), assignment("other")];
    IntentChange { planned_on, assignments, ..IntentChange::default() }
}

/// Checks that all rows tell of the same commit and of the same change; returns which.
async fn assert_whole(store: &SqliteStore) -> (u64, u64) {
    let row = store.partition(&cell(), partition()).await.unwrap();
    let position = row.position.0;
    assert_eq!(row.generation, position);
    assert_eq!(row.message, (position > 0).then(|| MessageId(Uuid::from_u128(u128::from(position)))));
    let found = store.agents(&cell(), &KEYS).await.unwrap();
    assert_eq!(found.len(), if position > 0 { AGENTS } else { 0 });
    for stored in found {
        assert_eq!(stored.agent.state.sequence_num, position, "an agent of another commit");
        let (_, config) = store.agent(&stored.agent.key).await.unwrap().unwrap();
        assert_eq!(config.unwrap()["file"].body, position.to_string().repeat(500).into_bytes());
    }
    let intent = store.intent(&tenant()).await.unwrap();
    let revision = intent.revision.0;
    assert_eq!(intent.assignments.len(), if revision > 0 { 2 } else { 0 });
    for assignment in intent.assignments.values() {
        assert_eq!(assignment.version, Some(revision.to_string()), "an assignment of another change");
    }
    (position, revision)
}

/// Writes until it is killed, and says on standard output what the store has acknowledged.
async fn write_until_killed(path: &Path) {
    let store = SqliteStore::open(path).await.unwrap();
    let mut row = store.partition(&cell(), partition()).await.unwrap();
    let mut revision = store.intent(&tenant()).await.unwrap().revision;
    loop {
        row = store.commit(commit(row)).await.unwrap();
        println!("\nposition {}", row.position.0);
        revision = store.change(&tenant(), &change(revision)).await.unwrap();
        println!("\nrevision {}", revision.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_leaves_what_was_acknowledged() {
    if let Some(path) = std::env::var_os(CHILD) {
        return write_until_killed(Path::new(&path)).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("muster.db");
    let (mut position, mut revision) = (0, 0);
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_killed_process_leaves_what_was_acknowledged", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut heard = 0;
        for line in told.by_ref() {
            let line = line.unwrap();
            let number = |what| line.strip_prefix(what).map(|number: &str| number.parse::<u64>().unwrap());
            position = number("position ").unwrap_or(position);
            revision = number("revision ").unwrap_or(revision);
            heard += u32::from(number("position ").or(number("revision ")).is_some());
            if heard > 3 {
                break;
            }
        }
        // At another place of the work in every round.
        std::thread::sleep(Duration::from_micros(700 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(heard > 3, "the process ended by itself");
        let store = SqliteStore::open(&path).await.unwrap();
        let found = assert_whole(&store).await;
        assert!(
            found.0 >= position && found.1 >= revision,
            "{found:?}, {position} and {revision} acknowledged"
        );
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_write_leaves_all_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path().join("muster.db")).await.unwrap();
    let mut row = store.partition(&cell(), partition()).await.unwrap();
    let mut cancelled = 0;
    // From nothing at all to longer than a commit takes.
    for patience in (0..60).map(|step| Duration::from_micros(step * step * 20)) {
        match tokio::time::timeout(patience, store.commit(commit(row))).await {
            Ok(committed) => row = committed.unwrap(),
            Err(_) => cancelled += 1,
        }
        // Whoever writes comes after what the cancelled one had begun.
        let nobody = AgentKey { tenant: tenant(), uid: InstanceUid(Uuid::max()) };
        assert_eq!(store.label(&nobody, &BTreeMap::new(), Timestamp(1), None).await.unwrap(), None);
        let (position, _) = assert_whole(&store).await;
        let present = store.partition(&cell(), partition()).await.unwrap();
        if present.generation != row.generation {
            let refused = store.commit(commit(row)).await;
            assert!(matches!(refused, Err(CommitError::RowMoved)), "{refused:?}");
        }
        assert!(position == row.position.0 || position == row.position.0 + 1);
        row = present;
    }
    assert!(cancelled > 0);
    store.commit(commit(row)).await.unwrap();
    assert_whole(&store).await;
}
