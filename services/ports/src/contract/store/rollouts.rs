//! Rollouts: they begin with intent, move one step at a time, and are counted with the agents.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use muster_domain::ids::{InstanceUid, IntentRevision, Partition, RolloutId};
use muster_domain::intent::IntentChange;
use muster_domain::rollout::strategy::{Criteria, Share, Size, Stage};
use muster_domain::rollout::{
    Counts, Layer, Release, Rollout, SoakClock, Standing, State, Step, StoredStrategy, Strategy, Transition,
    Who,
};
use uuid::Uuid;

use super::build::{NOW, TEXT, agent, cell, commit, key, tenant, write};
use super::intent::{change, revision_of};
use crate::rollouts::StepError;
use crate::store::{Commit, CommitError, IntentError, Store};

fn id(number: u128) -> RolloutId {
    RolloutId(Uuid::from_u128(number))
}

fn uids(numbers: &[u128]) -> Vec<InstanceUid> {
    numbers.iter().map(|number| InstanceUid(Uuid::from_u128(*number))).collect()
}

fn strategy() -> Strategy {
    Strategy {
        stages: vec![Stage {
            name: TEXT.to_owned(),
            size: Size::Share(Share::ALL),
            soak: Duration::from_millis(1500),
            criteria: Criteria {
                error_rate: Share::of_fraction(0.01),
                min_reports: 3,
                ..Criteria::default()
            },
            promotion: Default::default(),
            deadline: Some(Duration::from_secs(9)),
        }],
        on_failure: Default::default(),
        notify: vec!["slack".to_owned()],
        target: Some(Default::default()),
        max_in_flight: Some(5),
        apply_deadline: Duration::from_secs(7),
        windows: Vec::new(),
    }
}

fn rollout(number: u128, assignment: &str, base: Vec<Layer>) -> Rollout {
    Rollout {
        id: id(number),
        assignment: assignment.to_owned(),
        strategy_name: "canary".to_owned(),
        strategy: strategy(),
        candidate: Release {
            template: "t".to_owned(),
            version: "1".to_owned(),
            values: BTreeMap::new(),
            file: None,
        },
        base,
        state: State::Running,
        stage: 0,
        everyone: false,
        exposed: 0,
        target: None,
        opened_at: NOW,
        soak: SoakClock { counted: Duration::from_micros(1), running_since: Some(NOW) },
        revision: IntentRevision(0),
        created_at: NOW,
        author: "someone".to_owned(),
        failure: None,
        history: vec![Transition {
            at: NOW,
            state: State::Running,
            stage: 0,
            actor: "someone".to_owned(),
            reason: TEXT.to_owned(),
        }],
        version: 1,
    }
}

/// A step from this rollout.
fn step(from: &Rollout, state: State, admitted: &[u128]) -> Step {
    let exposed = from.exposed + admitted.len() as u64;
    let after = Rollout { version: from.version + 1, state, exposed, ..from.clone() };
    Step { after, admitted: uids(admitted), moves_intent: false, raises_floor: false, audit: None }
}

/// Begins a rollout with the change from revision `planned_on`.
async fn begin(store: &dyn Store, planned_on: u64, rollout: &Rollout) -> Rollout {
    let change =
        IntentChange { new_rollouts: vec![rollout.clone()], ..change(planned_on, &rollout.assignment) };
    let revision = store.change(&tenant("default"), &change).await.unwrap();
    Rollout { revision, ..rollout.clone() }
}

pub(super) async fn a_rollout_begins_with_its_change(store: &dyn Store) {
    let mine = tenant("default");
    let stored =
        StoredStrategy { name: "canary".to_owned(), strategy: strategy(), created_at: NOW, updated_at: NOW };
    let with_strategy = IntentChange {
        planned_on: IntentRevision(0),
        strategies: vec![stored.clone()],
        ..IntentChange::default()
    };
    assert!(!with_strategy.is_empty());
    store.change(&mine, &with_strategy).await.unwrap();
    let expected = begin(store, 1, &rollout(1, "a", Vec::new())).await;
    assert_eq!(expected.revision, IntentRevision(2), "it has the revision of its change");
    let intent = store.intent(&mine).await.unwrap();
    assert_eq!(intent.strategies, [("canary".to_owned(), stored)].into());
    assert_eq!(intent.rollouts["a"].rollout, expected);
    assert_eq!(store.rollout(&mine, id(1)).await.unwrap(), Some(expected.clone()));
    assert_eq!(store.active_rollouts().await.unwrap(), [(mine.clone(), expected.clone())]);
    assert_eq!(store.rollouts(&mine, None, 9).await.unwrap(), [expected]);
    assert_eq!(store.rollout(&tenant("other"), id(1)).await.unwrap(), None);
    assert_eq!(store.rollouts(&tenant("other"), None, 9).await.unwrap(), []);
    assert!(store.intent(&tenant("other")).await.unwrap().rollouts.is_empty());
}

pub(super) async fn a_step_is_taken_once(store: &dyn Store) {
    let mine = tenant("default");
    let begun = begin(store, 0, &rollout(1, "a", Vec::new())).await;
    let first = step(&begun, State::Running, &[3, 1, 2]);
    let after = store.step(&mine, &first).await.unwrap();
    assert_eq!(after, first.after);
    assert_eq!(revision_of(store, "default").await, IntentRevision(1), "this one does not move the intent");
    let again = store.step(&mine, &step(&begun, State::Paused, &[4])).await;
    assert!(matches!(again, Err(StepError::Moved)), "{again:?}");
    let ledger: BTreeSet<_> = uids(&[1, 2, 3]).into_iter().collect();
    assert_eq!(store.ledger(&mine, id(1)).await.unwrap(), ledger, "what was refused left nothing");
    let staged = &store.intent(&mine).await.unwrap().rollouts["a"];
    assert_eq!((&staged.rollout, staged.ledgers[&id(1)].as_ref()), (&after, &ledger));
    let next = store.step(&mine, &step(&after, State::Soaking, &[3, 4])).await.unwrap();
    assert_eq!(store.ledger(&mine, id(1)).await.unwrap().len(), 4, "who is admitted twice is there once");
    let elsewhere = store.step(&tenant("other"), &step(&next, State::Paused, &[])).await;
    assert!(matches!(elsewhere, Err(StepError::Moved)), "{elsewhere:?}");
    let ended = store.step(&mine, &step(&next, State::Completed, &[])).await.unwrap();
    assert_eq!(store.active_rollouts().await.unwrap(), []);
    assert_eq!(
        store.intent(&mine).await.unwrap().rollouts["a"].rollout,
        ended,
        "agents have it all the same"
    );
}

pub(super) async fn one_of_two_steps_wins(store: &dyn Store) {
    let mine = tenant("default");
    let begun = begin(store, 0, &rollout(1, "a", Vec::new())).await;
    let (one, other) = (step(&begun, State::Running, &[1]), step(&begun, State::Running, &[2]));
    let (one, other) = futures_join(store.step(&mine, &one), store.step(&mine, &other)).await;
    assert_eq!(usize::from(one.is_ok()) + usize::from(other.is_ok()), 1, "{one:?} {other:?}");
    assert_eq!(store.ledger(&mine, id(1)).await.unwrap().len(), 1);
}

/// Both, one beside the other.
async fn futures_join<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> (A, B) {
    let (mut one, mut other) = (std::pin::pin!(one), std::pin::pin!(other));
    let (mut first, mut second) = (None, None);
    std::future::poll_fn(|context| {
        use std::task::Poll;
        if first.is_none()
            && let Poll::Ready(done) = one.as_mut().poll(context)
        {
            first = Some(done);
        }
        if second.is_none()
            && let Poll::Ready(done) = other.as_mut().poll(context)
        {
            second = Some(done);
        }
        match (first.take(), second.take()) {
            (Some(one), Some(other)) => Poll::Ready((one, other)),
            (one, other) => {
                (first, second) = (one, other);
                Poll::Pending
            }
        }
    })
    .await
}

pub(super) async fn a_step_that_moves_the_intent_fences_commits(store: &dyn Store) {
    let mine = tenant("default");
    let begun = begin(store, 0, &rollout(1, "a", Vec::new())).await;
    let halt = Step { moves_intent: true, raises_floor: true, ..step(&begun, State::Paused, &[]) };
    let after = store.step(&mine, &halt).await.unwrap();
    assert_eq!(after.revision, IntentRevision(2));
    let intent = store.intent(&mine).await.unwrap();
    assert_eq!((intent.revision, intent.floors["a"]), (IntentRevision(2), IntentRevision(2)));
    assert_eq!(intent.rollouts["a"].rollout, after);
    let partition = Partition::of(&key(1));
    let row = store.partition(&cell(), partition).await.unwrap();
    let decided_on = BTreeMap::from([(mine.clone(), IntentRevision(1))]);
    let late = store
        .commit(Commit { decided_on, ..commit(&cell(), partition, row, vec![write(agent(&key(1)))]) })
        .await;
    assert!(matches!(late, Err(CommitError::IntentMoved(_))), "{late:?}");
    let refused = store.step(&mine, &halt).await;
    assert!(matches!(refused, Err(StepError::Moved)), "{refused:?}");
    assert_eq!(revision_of(store, "default").await, IntentRevision(2), "what was refused moves nothing");
}

pub(super) async fn a_change_supersedes_what_has_not_moved(store: &dyn Store) {
    let mine = tenant("default");
    let begun = begin(store, 0, &rollout(1, "a", Vec::new())).await;
    let moved = store.step(&mine, &step(&begun, State::Running, &[1, 2])).await.unwrap();
    let layer =
        Layer { who: Who::Ledger(id(1)), release: begun.candidate.clone(), of: Some(id(1)), frozen: true };
    let superseding = |from: &Rollout| IntentChange {
        rollouts: vec![Step { moves_intent: true, raises_floor: true, ..step(from, State::Superseded, &[]) }],
        new_rollouts: vec![rollout(2, "a", vec![layer.clone()])],
        ..change(1, "a")
    };
    let stale = store.change(&mine, &superseding(&begun)).await;
    assert!(matches!(stale, Err(IntentError::Moved)), "{stale:?}");
    assert_eq!(revision_of(store, "default").await, IntentRevision(1));
    store.change(&mine, &superseding(&moved)).await.unwrap();
    let staged = &store.intent(&mine).await.unwrap().rollouts["a"];
    assert_eq!(staged.rollout.id, id(2), "the latest one");
    assert_eq!(staged.ledgers[&id(1)].len(), 2, "with the ledgers of its layers");
    let listed: Vec<_> = store.rollouts(&mine, None, 9).await.unwrap().iter().map(|found| found.id).collect();
    assert_eq!(listed, [id(2), id(1)]);
    assert_eq!(store.rollouts(&mine, Some(id(2)), 9).await.unwrap()[0].state, State::Superseded);
    assert_eq!(store.rollouts(&mine, None, 1).await.unwrap().len(), 1);
}

pub(super) async fn counts_are_written_with_the_commit(store: &dyn Store) {
    let mine = tenant("default");
    let begun = begin(store, 0, &rollout(1, "a", Vec::new())).await;
    let partition = Partition::of(&key(1));
    let row = store.partition(&cell(), partition).await.unwrap();
    let counts = |healthy, looked_at| Counts {
        by: [(Standing::Healthy, healthy), (Standing::UnhealthyBefore, 2)].into(),
        looked_at: IntentRevision(looked_at),
    };
    let of = (mine.clone(), id(1));
    let counting = |row, healthy| Commit {
        counts: [(of.clone(), counts(healthy, 1))].into(),
        ..commit(&cell(), partition, row, Vec::new())
    };
    let moved = store.commit(counting(row, 3)).await.unwrap();
    assert!(matches!(store.commit(counting(row, 9)).await, Err(CommitError::RowMoved)));
    let expected = BTreeMap::from([(of.clone(), counts(3, 1))]);
    assert_eq!(store.partition_counts(&cell(), partition).await.unwrap(), expected);
    store.commit(counting(moved, 4)).await.unwrap();
    let all = store.rollout_counts(&mine, id(1)).await.unwrap();
    assert_eq!(all, BTreeMap::from([((cell(), partition), counts(4, 1))]));
    let elsewhere = Partition::all().find(|other| *other != partition).unwrap();
    assert_eq!(store.partition_counts(&cell(), elsewhere).await.unwrap(), BTreeMap::new());
    assert_eq!(store.rollout_counts(&tenant("other"), id(1)).await.unwrap(), BTreeMap::new());
    store.step(&mine, &step(&begun, State::Completed, &[])).await.unwrap();
    assert_eq!(store.partition_counts(&cell(), partition).await.unwrap(), BTreeMap::new(), "it has ended");
    assert_eq!(store.rollout_counts(&mine, id(1)).await.unwrap().len(), 1, "and can be looked at");
}
