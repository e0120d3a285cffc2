//! Commits: who wins, what is refused, and what stands in the way of what.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_adapters::postgres::PostgresStore;
use muster_domain::agent::Agent;
use muster_domain::ids::{IntentRevision, MessageId, Partition, Timestamp};
use muster_domain::intent::{Assignment, IntentChange, OnRemoval};
use muster_domain::report::{ConfigFile, ConfigMap};
use muster_domain::selector::AgentSelector;
use muster_ports::log::Position;
use muster_ports::store::{
    AgentWrite, Commit, CommitError, FleetStore as _, FoldStore as _, IntentStore as _, Quarantined,
};
use muster_testkit::engines::Postgres;
use sqlx::{Connection as _, PgConnection};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::{cell, commit, key, keys_in, server, session, store, write};

fn partition() -> Partition {
    Partition::of(&key(1))
}

/// Folds numbered entries, one a commit, beginning again from the row whenever another worker was
/// there. Returns the positions of its commits.
async fn work(url: String, entries: u64) -> Vec<u64> {
    let store = PostgresStore::connect(muster_adapters::postgres::PostgresOptions::new(url)).await.unwrap();
    let mut mine = Vec::new();
    loop {
        let mut row = store.partition(&cell(), partition()).await.unwrap();
        loop {
            if row.position.0 == entries {
                return mine;
            }
            let found = store.agents(&cell(), &[key(1)]).await.unwrap().pop();
            let mut agent = found.map_or_else(|| Agent::new(key(1), Timestamp(1)), |stored| stored.agent);
            agent.state.sequence_num += 1;
            match store.commit(commit(partition(), row, vec![write(agent)])).await {
                Ok(moved) => {
                    mine.push(moved.position.0);
                    row = moved;
                }
                Err(CommitError::RowMoved) => break,
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_on_one_partition_fold_each_entry_once() {
    let Some(server) = server().await else { return };
    let url = server.database().await;
    let store = store(url.clone()).await;
    let (one, other) = (tokio::spawn(work(url.clone(), 300)), tokio::spawn(work(url, 300)));
    let (one, other) = (one.await.unwrap(), other.await.unwrap());
    println!("{} and {} commits", one.len(), other.len());
    let mut all = [one, other].concat();
    all.sort_unstable();
    assert!(all.into_iter().eq(1..=300), "an entry was folded twice, or never");
    let agent = store.agents(&cell(), &[key(1)]).await.unwrap().remove(0).agent;
    assert_eq!(agent.state.sequence_num, 300);
    assert_eq!(store.partition(&cell(), partition()).await.unwrap().generation, 300);
}

fn with_file(number: u128, name: &str) -> AgentWrite {
    let file = ConfigFile { content_type: String::new(), body: b"x".to_vec() };
    let effective_config = Some(ConfigMap::from([(name.to_owned(), file)]));
    AgentWrite { effective_config, ..write(Agent::new(key(number), Timestamp(1))) }
}

#[tokio::test]
async fn what_cannot_be_stored_is_rejected_whole_and_for_good() {
    let Some(server) = server().await else { return };
    let store = store(server.database().await).await;
    let row = store.partition(&cell(), partition()).await.unwrap();
    let mut named = session(1);
    named.remote_addr = "a\0b".to_owned();
    let with_session = AgentWrite {
        agent: Agent { session: Some(named), ..Agent::new(key(1), Timestamp(1)) },
        ..with_file(1, "file")
    };
    let wrong = [
        (with_file(1, "a\0b"), "UTF8"),
        (with_file(1, &"x".repeat(1 << 20)), "index"),
        (with_session, "UTF8"),
    ];
    for (agent, told) in wrong {
        for _ in 0..2 {
            let tried = commit(partition(), row, vec![with_file(2, "file"), agent.clone()]);
            match store.commit(tried).await {
                Err(CommitError::Rejected { reason }) => assert!(reason.contains(told), "{reason}"),
                other => panic!("{other:?}"),
            }
            assert_eq!(store.partition(&cell(), partition()).await.unwrap(), row);
            assert_eq!(store.agents(&cell(), &[key(1), key(2)]).await.unwrap(), []);
        }
    }
    store.commit(commit(partition(), row, vec![with_file(2, "file")])).await.unwrap();
}

#[tokio::test]
async fn what_is_quarantined_can_be_read() {
    let Some(server) = server().await else { return };
    let url = server.database().await;
    let store = store(url.clone()).await;
    let row = store.partition(&cell(), partition()).await.unwrap();
    let entry = |position, key| Quarantined {
        position: Position(position),
        message: MessageId(Uuid::from_u128(position.into())),
        payload: vec![0, 0xff].into(),
        reason: "a\0b".to_owned(),
        at: Timestamp(7),
        key,
    };
    let quarantined = vec![entry(5, None), entry(6, Some(key(1)))];
    store.commit(Commit { quarantined, ..commit(partition(), row, Vec::new()) }).await.unwrap();
    let rows =
        "SELECT position, message_id, tenant, uid, payload, reason, at FROM quarantine ORDER BY position";
    let expected = format!(
        "5|{}|||\\x00ff|a\u{fffd}b|7\n6|{}|default|{}|\\x00ff|a\u{fffd}b|7",
        Uuid::from_u128(5),
        Uuid::from_u128(6),
        key(1).uid
    );
    assert_eq!(Postgres::psql(&url, rows).await, expected);
}

fn change(planned_on: u64) -> IntentChange {
    let assignment = Assignment {
        name: "a".to_owned(),
        template: "t".to_owned(),
        version: None,
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
    let planned_on = IntentRevision(planned_on);
    IntentChange { planned_on, assignments: vec![assignment], ..IntentChange::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_intent_waits_for_the_commits_that_rest_on_it() {
    let Some(server) = server().await else { return };
    let url = server.database().await;
    let store = store(url.clone()).await;
    let tenant = key(1).tenant;
    // From the first change on, when the tenant has no row of intent yet.
    for revision in 0..3 {
        let row = store.partition(&cell(), partition()).await.unwrap();
        // Holds the agent's row up, so that the commit stops in the middle.
        let mut blocker = PgConnection::connect(&url).await.unwrap();
        let mut held = blocker.begin().await.unwrap();
        sqlx::query("LOCK TABLE agent_states IN SHARE MODE").execute(&mut *held).await.unwrap();
        let decided_on = BTreeMap::from([(tenant.clone(), IntentRevision(revision))]);
        let tried = Commit {
            decided_on,
            ..commit(partition(), row, vec![write(Agent::new(key(1), Timestamp(revision)))])
        };
        let committing = store.commit(tried);
        let changing = async {
            sleep(Duration::from_millis(200)).await;
            let planned = change(revision);
            let mut changing = std::pin::pin!(store.change(&tenant, &planned));
            let early = timeout(Duration::from_millis(300), &mut changing).await;
            assert!(early.is_err(), "the change did not wait: {early:?}");
            held.rollback().await.unwrap();
            changing.await.unwrap()
        };
        let (committed, changed) = tokio::join!(committing, changing);
        committed.unwrap();
        assert_eq!(changed, IntentRevision(revision + 1));
    }
}

/// Commits again and again until it is told to stop; returns how often.
async fn keep_busy(store: &PostgresStore, number: u16, stop: &std::sync::atomic::AtomicBool) -> u64 {
    let partition = Partition::new(number).unwrap();
    let agent = keys_in(partition, 1).remove(0);
    let mut row = store.partition(&cell(), partition).await.unwrap();
    let mut commits = 0;
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        let write = write(Agent::new(agent.clone(), Timestamp(1)));
        row = store.commit(commit(partition, row, vec![write])).await.unwrap();
        commits += 1;
    }
    commits
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_commits_does_not_hold_changes_up() {
    let Some(server) = server().await else { return };
    let store = store(server.database().await).await;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let workers = (0..16).map(|number| keep_busy(&store, number, &stop));
    let agent = keys_in(Partition::new(0).unwrap(), 1).remove(0);
    let changes = async {
        while store.agent(&agent).await.unwrap().is_none() {
            sleep(Duration::from_millis(10)).await;
        }
        let mut slowest = Duration::ZERO;
        for revision in 0..20 {
            let began = std::time::Instant::now();
            if revision % 2 == 0 {
                store.change(&agent.tenant, &change(revision)).await.unwrap();
            } else {
                let labels = BTreeMap::from([("n".to_owned(), Some(revision.to_string()))]);
                store.label(&agent, &labels, Timestamp(1), None).await.unwrap().unwrap();
            }
            slowest = slowest.max(began.elapsed());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        slowest
    };
    let (commits, slowest) = tokio::join!(futures_util::future::join_all(workers), changes);
    println!("slowest of 20 changes beside {} commits: {slowest:?}", commits.iter().sum::<u64>());
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    // What commits wrote meanwhile has not lost a label.
    let found = store.page(&agent.tenant, &selector("n=19"), None, 10).await.unwrap();
    assert_eq!(found.len(), 1);
}

fn selector(text: &str) -> AgentSelector {
    AgentSelector { requirements: text.parse().unwrap(), ..AgentSelector::default() }
}

#[tokio::test]
async fn a_commit_that_is_broken_off_leaves_all_or_nothing() {
    let Some(server) = server().await else { return };
    let store = store(server.database().await).await;
    let members = keys_in(partition(), 50);
    let mut row = store.partition(&cell(), partition()).await.unwrap();
    let mut broken_off = 0;
    for step in 0..60_u64 {
        let writes = members.iter().map(|key| {
            let mut agent = Agent::new(key.clone(), Timestamp(1));
            agent.state.sequence_num = row.position.0 + 1;
            write(agent)
        });
        let patience = Duration::from_micros(step * step * 20);
        let tried = timeout(patience, store.commit(commit(partition(), row, writes.collect()))).await;
        broken_off += u32::from(tried.is_err());
        // What the broken-off commit was doing goes on for a moment, maybe between two looks.
        sleep(Duration::from_millis(20)).await;
        let found = loop {
            row = store.partition(&cell(), partition()).await.unwrap();
            let found = store.agents(&cell(), &members).await.unwrap();
            if store.partition(&cell(), partition()).await.unwrap() == row {
                break found;
            }
        };
        assert_eq!(found.len(), if row.position.0 > 0 { 50 } else { 0 });
        assert!(found.iter().all(|stored| stored.agent.state.sequence_num == row.position.0));
    }
    assert!(broken_off > 0 && row.position.0 > 0, "{broken_off} of 60");
}
