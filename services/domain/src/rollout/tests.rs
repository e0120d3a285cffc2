//! Tests of rollouts.

mod cohort;
mod create;
mod planner;
mod standing;
mod strategy;
mod walk;

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::strategy::{Criteria, OnFailure, Promotion, Share, Size, Stage, Strategy};
use super::{Counts, Release, Rollout, SoakClock, Standing, State};
use crate::ids::{InstanceUid, IntentRevision, RolloutId, Timestamp};

/// A moment, so many seconds after the tests begin. A Friday, half past noon.
fn at(seconds: u64) -> Timestamp {
    Timestamp(1_795_177_800_000_000).plus(Duration::from_secs(seconds))
}

fn uid(number: u128) -> InstanceUid {
    InstanceUid(Uuid::from_u128(number))
}

fn share(fraction: f64) -> Share {
    Share::of_fraction(fraction).unwrap()
}

fn mk_stage(name: &str, size: Size) -> Stage {
    Stage {
        name: name.to_owned(),
        size,
        soak: Duration::from_secs(60),
        criteria: Criteria {
            error_rate: Some(share(0.1)),
            pass_rate: Some(share(0.9)),
            margin: None,
            min_reports: 2,
        },
        promotion: Promotion::Automatic,
        deadline: None,
    }
}

/// Ten agents, then all.
fn mk_strategy() -> Strategy {
    Strategy {
        stages: vec![mk_stage("canary", Size::Count(10)), mk_stage("all", Size::Share(Share::ALL))],
        on_failure: OnFailure::Rollback,
        notify: Vec::new(),
        target: None,
        max_in_flight: None,
        apply_deadline: Duration::from_secs(300),
        windows: Vec::new(),
    }
}

fn mk_release(version: &str) -> Release {
    Release { template: "t".to_owned(), version: version.to_owned(), values: BTreeMap::new(), file: None }
}

/// A rollout whose first stage has been filled: ten agents since intent revision 5.
fn mk_rollout(strategy: Strategy) -> Rollout {
    Rollout {
        id: RolloutId(Uuid::from_u128(1)),
        assignment: "a".to_owned(),
        strategy_name: "canary".to_owned(),
        strategy,
        candidate: mk_release("v2"),
        base: Vec::new(),
        state: State::Running,
        stage: 0,
        everyone: false,
        exposed: 10,
        target: Some(10),
        opened_at: at(0),
        soak: SoakClock::default(),
        revision: IntentRevision(5),
        created_at: at(0),
        author: "author".to_owned(),
        failure: None,
        history: Vec::new(),
        version: 1,
    }
}

/// The counts of all partitions, each of which has looked at its agents with revision 5.
fn mk_counts(by: &[(Standing, u64)]) -> Counts {
    Counts { by: by.iter().copied().collect(), looked_at: IntentRevision(5) }
}
