//! A store that was restored from a backup.

use muster_domain::ids::{IntentRevision, Partition};

use super::build::{agent, cell, commit, key, message, store_all, tenant, write};
use super::intent::{change, revision_of};
use crate::log::Position;
use crate::store::{Commit, CommitError, IntentError, RESYNC_LIFT, Store};

pub(super) async fn everything_that_counts_is_lifted(store: &dyn Store) {
    for name in ["a", "b"] {
        store.change(&tenant(name), &change(0, "x")).await.unwrap();
    }
    store_all(store, [agent(&key(1))]).await;
    let home = Partition::of(&key(1));
    let known = store.partition(&cell(), home).await.unwrap();
    let progress = (known.epoch, Position(7), Some(message(7)));
    store.commit(Commit { progress, ..commit(&cell(), home, known, Vec::new()) }).await.unwrap();

    for times in 1..=2 {
        let mut before = Vec::new();
        for partition in Partition::all().step_by(if times == 1 { 2 } else { 1 }) {
            before.push((partition, store.partition(&cell(), partition).await.unwrap()));
        }
        let revisions = store.resync(&cell()).await.unwrap();
        assert_eq!(revisions, store.revisions().await.unwrap());
        for name in ["a", "b"] {
            assert_eq!(revision_of(store, name).await, IntentRevision(1 + times * RESYNC_LIFT));
        }
        for (partition, before) in before {
            let row = store.partition(&cell(), partition).await.unwrap();
            assert_eq!(row.epoch, before.epoch + RESYNC_LIFT);
            assert_eq!(row.generation, before.generation + RESYNC_LIFT);
            assert_eq!((row.position, row.message), (before.position, before.message), "where it is stays");
        }
        for partition in Partition::all() {
            let row = store.partition(&cell(), partition).await.unwrap();
            assert!(row.epoch > times * RESYNC_LIFT, "also those that had no row: {partition}");
        }
    }
    let stored = store.agents(&cell(), &[key(1)]).await.unwrap();
    assert_eq!(stored[0].agent, agent(&key(1)), "agents stay as they are");
    // Life goes on.
    let planned_on = revision_of(store, "a").await;
    store.change(&tenant("a"), &change(planned_on.0, "y")).await.unwrap();
    assert_eq!(revision_of(store, "a").await, IntentRevision(planned_on.0 + 1));
    let row = store.partition(&cell(), home).await.unwrap();
    store.commit(commit(&cell(), home, row, vec![write(agent(&key(1)))])).await.unwrap();
}

pub(super) async fn who_decided_before_writes_nothing(store: &dyn Store) {
    store.change(&tenant("default"), &change(0, "x")).await.unwrap();
    let home = Partition::of(&key(1));
    let row = store.partition(&cell(), home).await.unwrap();
    store.resync(&cell()).await.unwrap();
    let late = store.commit(commit(&cell(), home, row, vec![write(agent(&key(1)))])).await;
    assert!(matches!(late, Err(CommitError::RowMoved)), "{late:?}");
    assert_eq!(store.agents(&cell(), &[key(1)]).await.unwrap(), []);
    let late = store.change(&tenant("default"), &change(1, "y")).await;
    assert!(matches!(late, Err(IntentError::Moved)), "{late:?}");
    let row = store.partition(&cell(), home).await.unwrap();
    let decided_on = [(tenant("default"), IntentRevision(1))].into();
    let late =
        store.commit(Commit { decided_on, ..commit(&cell(), home, row, vec![write(agent(&key(1)))]) }).await;
    assert!(matches!(late, Err(CommitError::IntentMoved(_))), "{late:?}");
}

pub(super) async fn another_cell_is_left_alone(store: &dyn Store) {
    let there = "there".parse().unwrap();
    let partition = Partition::of(&key(1));
    let row = store.partition(&there, partition).await.unwrap();
    assert_eq!(store.resync(&cell()).await.unwrap(), [].into(), "there is no intent");
    assert_eq!(store.partition(&there, partition).await.unwrap(), row);
}
