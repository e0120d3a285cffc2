//! Commits, and finding agents by key and by partition.

use std::collections::BTreeMap;

use muster_domain::agent::{Agent, EndReason, Session, Transport};
use muster_domain::ids::{AgentKey, Cell, IntentRevision, Partition, Timestamp};
use muster_domain::report::ConfigMap;

use super::build::{
    NOW, TEXT, agent, cell, commit, incarnation, key, key_of, keys, keys_in, message, rich_agent,
    rich_config, session, store_all, store_in, stored, tenant, write,
};
use super::intent::{change, revision_of};
use crate::contract::poll::join;
use crate::log::Position;
use crate::store::{AgentWrite, Commit, CommitError, PartitionRow, Quarantined, Store, StoredAgent};

fn partition() -> Partition {
    Partition::of(&key(1))
}

async fn row(store: &dyn Store) -> PartitionRow {
    store.partition(&cell(), partition()).await.unwrap()
}

pub(super) async fn a_partition_row_is_made_once(store: &dyn Store) {
    let first = row(store).await;
    let expected =
        PartitionRow { epoch: 1, position: Position(0), message: None, generation: first.generation };
    assert_eq!(first, expected);
    assert_eq!(row(store).await, first);
    store.commit(commit(&cell(), partition(), first, Vec::new())).await.unwrap();
    for partition in Partition::all() {
        for cell in [cell(), "there".parse().unwrap()] {
            let found = store.partition(&cell, partition).await.unwrap();
            let moved = (&cell, partition) == (&self::cell(), self::partition());
            assert_eq!(found.position, Position(u64::from(moved)), "{cell} {partition}");
            assert_eq!(store.partition(&cell, partition).await.unwrap(), found);
        }
    }
}

pub(super) async fn a_commit_moves_the_row(store: &dyn Store) {
    let mut known = row(store).await;
    // Also back: a new epoch begins before the first entry. Also without moving: a sweep.
    let steps = [
        (1, Position(7), Some(message(7))),
        (1, Position(i64::MAX as u64), Some(message(8))),
        (2, Position(0), None),
        (2, Position(0), None),
    ];
    for progress in steps {
        let moved = store
            .commit(Commit { progress, ..commit(&cell(), partition(), known, Vec::new()) })
            .await
            .unwrap();
        let (epoch, position, message) = progress;
        let generation = known.generation + 1;
        assert_eq!(moved, PartitionRow { epoch, position, message, generation });
        assert_eq!(row(store).await, moved);
        known = moved;
    }
}

/// Tries a commit that would change one agent's every part and make another, and must not.
async fn assert_refused(store: &dyn Store, tried: Commit) -> CommitError {
    let known = key(1);
    let new = keys_in(partition(), "default", 2).pop().unwrap();
    let before = (row(store).await, store.agent(&known).await.unwrap());
    assert!(before.1.is_some(), "the case begins with this agent");
    let other = Agent { session: Some(session(9, 9)), ..Agent::new(known.clone(), Timestamp(1)) };
    let agents = vec![
        AgentWrite { effective_config: Some(rich_config()), ..write(agent(&new)) },
        AgentWrite { effective_config: Some(ConfigMap::new()), ..write(other) },
    ];
    let refused = store.commit(Commit { agents, ..tried }).await.unwrap_err();
    assert_eq!((row(store).await, store.agent(&known).await.unwrap()), before, "something was written");
    assert_eq!(stored(store, &new).await, None, "something was written");
    refused
}

pub(super) async fn an_old_generation_writes_nothing(store: &dyn Store) {
    let unmade = PartitionRow { epoch: 1, position: Position(0), message: None, generation: 0 };
    let refused = store.commit(commit(&cell(), partition(), unmade, vec![write(agent(&key(1)))])).await;
    assert!(matches!(refused, Err(CommitError::RowMoved)), "{refused:?} where there is no row yet");
    assert_eq!(stored(store, &key(1)).await, None);

    store_all(store, [agent(&key(1))]).await;
    let present = row(store).await;
    store.commit(commit(&cell(), partition(), present, Vec::new())).await.unwrap();
    for generation in [present.generation, present.generation + 2] {
        let tried = commit(&cell(), partition(), PartitionRow { generation, ..present }, Vec::new());
        let refused = assert_refused(store, tried).await;
        assert!(matches!(refused, CommitError::RowMoved), "{refused:?}");
    }
    let both = Commit {
        decided_on: BTreeMap::from([(tenant("default"), IntentRevision(99))]),
        ..commit(&cell(), partition(), present, Vec::new())
    };
    let refused = assert_refused(store, both).await;
    assert!(matches!(refused, CommitError::RowMoved), "{refused:?} where the intent has moved as well");
}

pub(super) async fn one_of_two_commits_wins(store: &dyn Store) {
    store_all(store, [agent(&key(1))]).await;
    for round in 0..5 {
        let known = row(store).await;
        let tried = |owner: u128| {
            let session = Some(session(2 * round + owner, owner));
            let agents = vec![write(Agent { session, ..agent(&key(1)) })];
            store.commit(commit(&cell(), partition(), known, agents))
        };
        let winner = match join(tried(0), tried(1)).await {
            (Ok(row), Err(CommitError::RowMoved)) => (row, 0),
            (Err(CommitError::RowMoved), Ok(row)) => (row, 1),
            outcomes => panic!("{outcomes:?} of two commits on one generation"),
        };
        assert_eq!(row(store).await, winner.0);
        let held_by = stored(store, &key(1)).await.unwrap().session;
        assert_eq!(held_by, Some(session(2 * round + winner.1, winner.1)));
    }
}

pub(super) async fn moved_intent_writes_nothing(store: &dyn Store) {
    store_all(store, [agent(&key(1))]).await;
    store.change(&tenant("busy"), &change(0, "a")).await.unwrap();
    store.change(&tenant("busy"), &change(1, "b")).await.unwrap();
    store.change(&tenant("calm"), &change(0, "a")).await.unwrap();
    let decided_on = |revisions: &[(&str, u64)]| {
        let revisions = revisions.iter().map(|(name, number)| (tenant(name), IntentRevision(*number)));
        revisions.collect::<BTreeMap<_, _>>()
    };
    // Old, not yet there, forgotten, never there.
    let moved = [
        (decided_on(&[("busy", 1), ("calm", 1)]), "busy"),
        (decided_on(&[("busy", 2), ("calm", 2)]), "calm"),
        (decided_on(&[("calm", 0)]), "calm"),
        (decided_on(&[("none", 1)]), "none"),
    ];
    for (decided_on, name) in moved {
        let tried = Commit { decided_on, ..commit(&cell(), partition(), row(store).await, Vec::new()) };
        match assert_refused(store, tried).await {
            CommitError::IntentMoved(moved) => assert_eq!(moved, tenant(name)),
            other => panic!("{other:?} where the intent of {name} has moved"),
        }
    }
    let present = Commit {
        decided_on: decided_on(&[("busy", 2), ("calm", 1), ("none", 0)]),
        ..commit(&cell(), partition(), row(store).await, Vec::new())
    };
    store.commit(present).await.unwrap();
    assert_eq!(revision_of(store, "busy").await, IntentRevision(2), "a commit raises no revision");
}

pub(super) async fn many_agents_in_one_commit(store: &dyn Store) {
    const MANY: usize = 1500;
    let wanted = keys_in(partition(), "default", MANY);
    let numbered = |round: u64| {
        let numbered = (0..).zip(&wanted).map(move |(number, key)| {
            let mut agent = agent(key);
            agent.state.sequence_num = number * 10 + round;
            agent.session = Some(session(number.into(), u128::from(round)));
            agent
        });
        numbered.collect::<Vec<_>>()
    };
    for round in 0..2 {
        store_all(store, numbered(round)).await;
        let mut found = store.agents(&cell(), &wanted).await.unwrap();
        found.sort_by(|one, other| one.agent.key.cmp(&other.agent.key));
        let mut expected = numbered(round);
        expected.sort_by(|one, other| one.key.cmp(&other.key));
        assert!(found.into_iter().map(|stored| stored.agent).eq(expected), "in round {round}");
    }
}

pub(super) async fn agents_are_found_by_key(store: &dyn Store) {
    assert_eq!(store.agents(&cell(), &[]).await.unwrap(), []);
    store_all(store, [1, 2, 3].map(|number| agent(&key(number)))).await;
    let asked = [key(3), key(9), key_of("other", 1), key(1)];
    let mut found = keys(&store.agents(&cell(), &asked).await.unwrap());
    found.sort();
    assert_eq!(found, [key(1), key(3)]);
}

/// Reads a partition page by page.
async fn page_through(store: &dyn Store, cell: &Cell, partition: Partition, limit: usize) -> Vec<AgentKey> {
    let mut found = Vec::<AgentKey>::new();
    loop {
        let page = store.partition_agents(cell, partition, found.last(), limit).await.unwrap();
        assert!(page.len() <= limit);
        let page = keys(&page);
        if page.is_empty() {
            return found;
        }
        assert!(found.last() < page.first(), "a page does not begin after the one before");
        found.extend(page);
    }
}

pub(super) async fn a_partition_is_paged_in_key_order(store: &dyn Store) {
    // Names that the rules of a language sort otherwise than their bytes.
    let names = ["a-z", "a.b", "a0", "ab", "b", "a"];
    let mut expected: Vec<AgentKey> = names.iter().flat_map(|name| keys_in(partition(), name, 3)).collect();
    store_all(store, expected.iter().rev().map(agent)).await;
    expected.sort();
    for limit in [1, 2, 5, 18, 100] {
        assert_eq!(page_through(store, &cell(), partition(), limit).await, expected, "{limit} a page");
    }
    let between = AgentKey { uid: key(0).uid, ..expected[4].clone() };
    let page = store.partition_agents(&cell(), partition(), Some(&between), 100).await.unwrap();
    let after: Vec<_> = expected.iter().filter(|key| **key > between).cloned().collect();
    assert_eq!(keys(&page), after, "after a key that is not stored");
    let labels = BTreeMap::from([("zone".to_owned(), Some("eu".to_owned()))]);
    store.label(&expected[0], &labels, Timestamp(1), None).await.unwrap();
    let page = store.partition_agents(&cell(), partition(), None, 2).await.unwrap();
    assert_eq!(page[0].labels, BTreeMap::from([("zone".to_owned(), "eu".to_owned())]));
    assert_eq!(page[0].agent, agent(&expected[0]));
    assert_eq!(page[1].labels, BTreeMap::new());
}

pub(super) async fn cells_and_partitions_are_apart(store: &dyn Store) {
    let there: Cell = "there".parse().unwrap();
    let everything: Vec<AgentKey> = (1..200).map(key).collect();
    let (near, far) = everything.split_at(150);
    store_in(store, &cell(), near.iter().map(|key| write(agent(key))).collect()).await;
    store_in(store, &there, far.iter().map(|key| write(agent(key))).collect()).await;
    for partition in Partition::all() {
        for (cell, of_cell) in [(cell(), near), (there.clone(), far)] {
            let expected: Vec<_> =
                of_cell.iter().filter(|key| Partition::of(key) == partition).cloned().collect();
            assert_eq!(page_through(store, &cell, partition, 10).await, expected);
            let orphans = store.orphans(&cell, partition, &[], 1000).await.unwrap();
            let mut orphans = keys(&orphans);
            orphans.sort();
            assert_eq!(orphans, expected);
        }
    }
    for (cell, of_cell) in [(cell(), near), (there, far)] {
        let mut found = keys(&store.agents(&cell, &everything).await.unwrap());
        found.sort();
        assert_eq!(found, of_cell, "a key finds the cell's own agent");
    }
}

pub(super) async fn a_cell_leaves_the_agent_of_another_as_it_is(store: &dyn Store) {
    let there: Cell = "there".parse().unwrap();
    let old = Agent { session: Some(session(1, 1)), ..rich_agent(&key(1)) };
    let whole = AgentWrite { effective_config: Some(rich_config()), ..write(old.clone()) };
    store_in(store, &cell(), vec![whole]).await;
    let labels = BTreeMap::from([("zone".to_owned(), Some("eu".to_owned()))]);
    let labels = store.label(&key(1), &labels, Timestamp(1), None).await.unwrap().unwrap();
    // It is new there: written whole, whatever the write says.
    let started_at = Timestamp(NOW.0 + 1);
    let moved = Agent { session: Some(Session { started_at, ..session(2, 2) }), ..agent(&key(1)) };
    let partial = AgentWrite { session: false, state: false, ..write(moved.clone()) };
    store_in(store, &there, vec![partial]).await;
    let as_stored = |agent: &Agent| vec![StoredAgent { agent: agent.clone(), labels: labels.clone() }];
    assert_eq!(store.agents(&cell(), &[key(1)]).await.unwrap(), as_stored(&old));
    assert_eq!(store.agents(&there, &[key(1)]).await.unwrap(), as_stored(&moved));
    // What the old cell learns late.
    let ended = Some((Timestamp(NOW.0 + 9), EndReason::ConnectionLost));
    let old = Agent { session: Some(Session { ended, ..session(1, 1) }), ..old };
    store_in(store, &cell(), vec![AgentWrite { state: false, ..write(old.clone()) }]).await;
    for (cell, agent) in [(cell(), &old), (there.clone(), &moved)] {
        assert_eq!(store.agents(&cell, &[key(1)]).await.unwrap(), as_stored(agent));
        let members = store.partition_agents(&cell, partition(), None, 10).await.unwrap();
        assert_eq!(members, as_stored(agent));
    }
    let (_, config) = store.agent(&key(1)).await.unwrap().unwrap();
    assert_eq!(config, None, "the effective config of another cell");
}

pub(super) async fn entries_are_quarantined_with_the_commit(store: &dyn Store) {
    let entry = |position, key| Quarantined {
        position: Position(position),
        message: message(u128::from(position)),
        payload: vec![0, 0xff, 0xc3].into(),
        reason: TEXT.to_owned(),
        at: NOW,
        key,
    };
    for _ in 0..2 {
        let quarantined = vec![entry(5, None), entry(7, Some(key(1)))];
        let tried = commit(&cell(), partition(), row(store).await, vec![write(agent(&key(1)))]);
        // A log that was made anew has the same positions again.
        let epoch = row(store).await.epoch + 1;
        let progress = (epoch, Position(7), Some(message(7)));
        let moved = store.commit(Commit { quarantined, progress, ..tried.clone() }).await.unwrap();
        assert_eq!(moved.position, Position(7));
        assert_eq!(stored(store, &key(1)).await, Some(agent(&key(1))));
        let refused = store.commit(Commit { quarantined: vec![entry(8, None)], ..tried }).await;
        assert!(matches!(refused, Err(CommitError::RowMoved)), "{refused:?}");
        assert_eq!(row(store).await, moved);
    }
}

pub(super) async fn orphans_are_live_sessions_of_dead_gateways(store: &dyn Store) {
    let members = keys_in(partition(), "default", 7);
    let ended = Session { ended: Some((Timestamp(5), EndReason::GatewayStopped)), ..session(3, 1) };
    let sessions = [
        Some(session(1, 1)),
        Some(session(2, 2)),
        Some(ended),
        None,
        Some(session(4, 3)),
        Some(session(5, 1)),
        // Nobody's loss ends a session of polls.
        Some(Session { transport: Transport::Http, ..session(6, 1) }),
    ];
    let agents = members.iter().zip(sessions).map(|(key, session)| Agent { session, ..agent(key) });
    store_all(store, agents).await;
    let orphans = async |live: &[u128], limit| {
        let live: Vec<_> = live.iter().copied().map(incarnation).collect();
        let found = store.orphans(&cell(), partition(), &live, limit).await.unwrap();
        let mut found = keys(&found);
        found.sort();
        let place = |key: &AgentKey| members.iter().position(|member| member == key).unwrap();
        found.iter().map(place).collect::<Vec<_>>()
    };
    assert_eq!(orphans(&[], 10).await, [0, 1, 4, 5]);
    assert_eq!(orphans(&[1], 10).await, [1, 4]);
    assert_eq!(orphans(&[2, 3, 77], 10).await, [0, 5]);
    assert_eq!(orphans(&[1, 2, 3], 10).await, [0; 0]);
    assert_eq!(orphans(&(100..1100).collect::<Vec<_>>(), 10).await, [0, 1, 4, 5]);
    assert_eq!(orphans(&[], 3).await.len(), 3);
    // Marked as ended, they are orphans no longer, so that chunk after chunk comes to an end.
    let marked = store.orphans(&cell(), partition(), &[incarnation(2)], 2).await.unwrap();
    let marked = marked.into_iter().map(|stored| {
        let ended = Some((Timestamp(9), EndReason::GatewayLost));
        let session = stored.agent.session.map(|session| Session { ended, ..session });
        AgentWrite { state: false, ..write(Agent { session, ..stored.agent }) }
    });
    store_in(store, &cell(), marked.collect()).await;
    assert_eq!(orphans(&[2], 10).await.len(), 1);
}
