//! What happens next, and what is waited for.

use std::time::Duration;

use super::super::act::{Command, Refused, command};
use super::super::cohort::{Candidate, Population};
use super::super::planner::{APPROVAL_EXPIRES, Facts, Need, Plan, Waiting as Why, plan};
use super::super::strategy::{Criteria, OnFailure, Promotion, Share, Size, Strategy, Window};
use super::super::{Counts, Rollout, SYSTEM, SoakClock, Standing, State};
use super::{at, mk_counts, mk_rollout, mk_stage, mk_strategy, share, uid};
use crate::ids::IntentRevision;
use Standing::*;

fn decide(rollout: &Rollout, counts: &Counts, seconds: u64) -> Plan {
    let facts = Facts { counts, read_through: Some(at(seconds)), population: None, is_assigned: true };
    plan(rollout, &facts, at(seconds))
}

fn step(rollout: &Rollout, counts: &Counts, seconds: u64) -> Rollout {
    let plan = decide(rollout, counts, seconds);
    plan.step.unwrap_or_else(|| panic!("it waits on {:?}", plan.waiting_on)).after
}

fn waits(rollout: &Rollout, counts: &Counts, seconds: u64) -> Why {
    let plan = decide(rollout, counts, seconds);
    assert_eq!(plan.step, None);
    plan.waiting_on.into_iter().next().unwrap()
}

/// The canary stage since second 0, soaking since second 10.
fn soaking(strategy: Strategy) -> Rollout {
    let clock = SoakClock { counted: Duration::ZERO, running_since: Some(at(10)) };
    Rollout { state: State::Soaking, soak: clock, ..mk_rollout(strategy) }
}

/// The last stage, soaking since second 10.
fn last() -> Rollout {
    Rollout { stage: 1, everyone: true, ..soaking(mk_strategy()) }
}

#[test]
fn verdicts_of_the_first_stage() {
    // Allowed: 10 % errors; asked for: 90 % healthy, two reports. The soak is over.
    let passes = |by: &[(Standing, u64)]| {
        let after = step(&soaking(mk_strategy()), &mk_counts(by), 70);
        assert_eq!((after.state, after.stage, after.target), (State::Running, 1, None), "{by:?}");
    };
    let fails = |by: &[(Standing, u64)], why: &str| {
        let after = step(&soaking(mk_strategy()), &mk_counts(by), 70);
        assert_eq!((after.state, after.stage), (State::RollingBack, 0), "{by:?}");
        assert!(after.failure.as_ref().unwrap().contains(why), "{:?} should say {why}", after.failure);
        assert_eq!(after.history.last().unwrap().actor, SYSTEM);
    };
    let is_open = |by: &[(Standing, u64)], expected: Why| {
        assert_eq!(waits(&soaking(mk_strategy()), &mk_counts(by), 70), expected, "{by:?}");
    };
    passes(&[(Healthy, 10)]);
    passes(&[(Healthy, 9), (Failed, 1)]);
    passes(&[(Healthy, 9), (Late, 1)]);
    passes(&[(Healthy, 9), (Unhealthy, 1)]);
    passes(&[(Healthy, 9), (Gone, 1)]);
    passes(&[(Healthy, 2), (Offline, 8)]);
    passes(&[(Healthy, 5), (Silent, 3), (Unable, 2)]);
    passes(&[(Healthy, 5), (Unknown, 5)]);
    fails(&[(Healthy, 8), (Failed, 2)], "2 of 10 agents could not apply it");
    fails(&[(Healthy, 8), (Failed, 1), (Late, 1)], "1 failed, 1 late");
    fails(&[(Healthy, 8), (Failed, 1), (Lost, 1)], "1 lost");
    fails(
        &[(Healthy, 8), (Unhealthy, 2)],
        "8 of 10 agents that applied it are healthy, 90 % must be: 2 unhealthy",
    );
    fails(&[(Healthy, 8), (Unhealthy, 1), (Gone, 1)], "1 unhealthy, 1 gone");
    // Before the last stage others are there to compare with: who was unhealthy counts as unhealthy.
    fails(&[(Healthy, 8), (UnhealthyBefore, 2)], "2 unhealthy");
    // Who is offline is neither: one failure of two is a half.
    fails(&[(Healthy, 1), (Failed, 1), (Offline, 8)], "1 of 2 agents");
    // Inconclusive is not a pass.
    is_open(&[(Offline, 10)], Why::Reports { have: 0, need: 2, offline: 10 });
    is_open(&[(Healthy, 1), (Offline, 9)], Why::Reports { have: 1, need: 2, offline: 9 });
    is_open(&[(Silent, 10)], Why::Reports { have: 0, need: 2, offline: 0 });
    is_open(&[(Unknown, 10)], Why::NoHealth);
}

#[test]
fn errors_halt_before_the_soak() {
    let rollout = mk_rollout(mk_strategy());
    let halted = step(&rollout, &mk_counts(&[(Waiting, 8), (Failed, 2)]), 1);
    assert_eq!(halted.state, State::RollingBack);
    // One of ten is allowed, and nobody knows yet about the others.
    assert_eq!(waits(&rollout, &mk_counts(&[(Waiting, 9), (Failed, 1)]), 1), Why::Applying(9));
    // While not all partitions have looked, a failure of the first ones says little, but two of ten are certain.
    let partly = |failed| Counts { looked_at: IntentRevision(4), ..mk_counts(&[(Failed, failed)]) };
    assert_eq!(waits(&rollout, &partly(1), 1), Why::Looking);
    assert_eq!(step(&rollout, &partly(2), 1).state, State::RollingBack);
    // Two reports are asked for.
    let few = Rollout { exposed: 100, target: Some(100), ..rollout.clone() };
    assert_eq!(waits(&few, &mk_counts(&[(Failed, 1), (Waiting, 1), (Offline, 98)]), 1), Why::Applying(1));
    let paused = Strategy { on_failure: OnFailure::Pause, ..mk_strategy() };
    let after = step(&mk_rollout(paused), &mk_counts(&[(Failed, 10)]), 1);
    assert_eq!(after.state, State::Paused);
    assert!(matches!(waits(&after, &mk_counts(&[]), 2), Why::Person(why) if why.contains("10 of 10")));
}

#[test]
fn a_halt_moves_the_intent_and_raises_the_floor() {
    let plan = decide(&mk_rollout(mk_strategy()), &mk_counts(&[(Failed, 10)]), 1);
    let step = plan.step.unwrap();
    assert!(step.moves_intent && step.raises_floor);
    assert_eq!(step.after.version, 2);
}

#[test]
fn the_soak_begins_with_the_last_agent_and_is_watched_to_its_end() {
    let rollout = mk_rollout(mk_strategy());
    assert_eq!(waits(&rollout, &mk_counts(&[(Waiting, 1), (Healthy, 9)]), 5), Why::Applying(1));
    let soaking = step(&rollout, &mk_counts(&[(Healthy, 10)]), 10);
    assert_eq!((soaking.state, soaking.soak.running_since), (State::Soaking, Some(at(10))));
    assert_eq!(waits(&soaking, &mk_counts(&[(Healthy, 10)]), 69), Why::Soak(Duration::from_secs(1)));
    // What was reported until the end of the soak has to be read first.
    let counts = mk_counts(&[(Healthy, 10)]);
    for read_through in [None, Some(at(69))] {
        let facts = Facts { counts: &counts, read_through, population: None, is_assigned: true };
        let plan = plan(&soaking, &facts, at(70));
        assert_eq!((plan.step, plan.need), (None, Some(Need::ReadThrough(at(70)))));
    }
    // An agent that comes back during the soak is judged, and does not begin it anew.
    assert_eq!(
        waits(&soaking, &mk_counts(&[(Healthy, 9), (Waiting, 1)]), 20),
        Why::Soak(Duration::from_secs(50))
    );
}

#[test]
fn our_own_disconnects_stop_the_clock() {
    let rollout = soaking(mk_strategy());
    let stopped = step(&rollout, &mk_counts(&[(Healthy, 7), (Away, 3)]), 40);
    assert_eq!((stopped.state, stopped.soak.running_since), (State::Soaking, None));
    assert_eq!(stopped.soak.counted, Duration::from_secs(30));
    assert_eq!(waits(&stopped, &mk_counts(&[(Healthy, 7), (Away, 3)]), 500), Why::Away(3));
    let again = step(&stopped, &mk_counts(&[(Healthy, 10)]), 500);
    assert_eq!(waits(&again, &mk_counts(&[(Healthy, 10)]), 529), Why::Soak(Duration::from_secs(1)));
    assert_eq!(step(&again, &mk_counts(&[(Healthy, 10)]), 530).stage, 1);
}

#[test]
fn the_last_stage_compares_each_agent_with_itself() {
    let passes = mk_counts(&[(Healthy, 50), (UnhealthyBefore, 50)]);
    assert_eq!(step(&last(), &passes, 70).state, State::Completed);
    let fails = mk_counts(&[(Healthy, 50), (UnhealthyBefore, 30), (Unhealthy, 20)]);
    assert_eq!(step(&last(), &fails, 70).state, State::RollingBack);
    // Nobody is there: there is nothing to wait for.
    assert_eq!(step(&last(), &mk_counts(&[]), 70).state, State::Completed);
}

#[test]
fn exposed_agents_are_compared_with_the_others() {
    let mut strategy = mk_strategy();
    strategy.stages[0].criteria.margin = Some(share(0.05));
    let rollout = soaking(strategy);
    let others = [(UnexposedHealthy, 80), (UnexposedUnhealthy, 20)];
    let with = |by: &[(Standing, u64)]| mk_counts(&[by, &others].concat());
    // 90 % must be healthy; of the others 80 % are.
    let all_bad = waits(&rollout, &with(&[(Healthy, 78), (Unhealthy, 22)]), 70);
    let expected = Why::AllUnhealthy { exposed: share(0.78), others: share(0.8) };
    assert_eq!(all_bad, expected);
    assert_eq!(step(&rollout, &with(&[(Healthy, 70), (Unhealthy, 30)]), 70).state, State::RollingBack);
    assert_eq!(step(&rollout, &with(&[(Healthy, 95), (Unhealthy, 5)]), 70).stage, 1);
    assert_eq!(waits(&rollout, &mk_counts(&[(Healthy, 10)]), 70), Why::NothingToCompare);
    // Good enough by itself, and worse than the others all the same.
    let far = mk_counts(&[(Healthy, 91), (Unhealthy, 9), (UnexposedHealthy, 100)]);
    assert_eq!(step(&rollout, &far, 70).state, State::RollingBack);
}

#[test]
fn stages_are_filled_from_the_population() {
    let fresh = Rollout { exposed: 0, target: None, ..mk_rollout(mk_strategy()) };
    let none = mk_counts(&[]);
    assert_eq!(decide(&fresh, &none, 0).need, Some(Need::Population));
    let population = |count: u128| Population {
        candidates: (0..count).map(|n| Candidate { uid: uid(n), is_of_stage: true }).collect(),
        exposed: Default::default(),
    };
    let with = |rollout: &Rollout, population: &Population, counts: &Counts| {
        let facts = Facts { counts, read_through: None, population: Some(population), is_assigned: true };
        plan(rollout, &facts, at(0))
    };
    let step = with(&fresh, &population(50), &none).step.unwrap();
    assert_eq!((step.admitted.len(), step.after.exposed, step.after.target), (10, 10, Some(10)));
    assert!(step.moves_intent && !step.raises_floor);
    // Fewer agents than the stage would take.
    let step = with(&fresh, &population(4), &none).step.unwrap();
    assert_eq!((step.admitted.len(), step.after.target), (4, Some(10)));
    assert_eq!(with(&fresh, &population(0), &none).waiting_on, [Why::NoAgents]);
    // At most three at once.
    let limited = Rollout { strategy: Strategy { max_in_flight: Some(3), ..mk_strategy() }, ..fresh.clone() };
    let step = with(&limited, &population(50), &none).step.unwrap();
    assert_eq!((step.admitted.len(), step.after.exposed, step.after.target), (3, 3, Some(10)));
    let mut filling = step.after;
    filling.revision = IntentRevision(5);
    let mut known = population(50);
    known.exposed = step.admitted.into_iter().collect();
    let busy = mk_counts(&[(Waiting, 3)]);
    assert_eq!(with(&filling, &known, &busy).waiting_on, [Why::InFlight(3)]);
    let unseen = Counts { looked_at: IntentRevision(4), ..mk_counts(&[]) };
    assert_eq!(with(&filling, &known, &unseen).step, None, "those on their way count");
    let step = with(&filling, &known, &mk_counts(&[(Waiting, 1), (Healthy, 2)])).step.unwrap();
    assert_eq!(step.admitted.len(), 2);
}

#[test]
fn the_last_stage_is_for_everyone() {
    let opened = Rollout { stage: 1, target: None, ..mk_rollout(mk_strategy()) };
    let plan = decide(&opened, &mk_counts(&[(Healthy, 10)]), 0);
    let step = plan.step.unwrap();
    assert!(step.after.everyone && step.moves_intent && step.admitted.is_empty());
}

#[test]
fn outside_a_window_nobody_is_exposed() {
    // It is 12:30.
    let window = |from, to| Strategy { windows: vec![Window { days: 0x7f, from, to }], ..mk_strategy() };
    let fresh = |strategy| Rollout { exposed: 0, target: None, ..mk_rollout(strategy) };
    assert_eq!(waits(&fresh(window(780, 840)), &mk_counts(&[]), 0), Why::Window);
    assert_eq!(decide(&fresh(window(720, 840)), &mk_counts(&[]), 0).need, Some(Need::Population));
    // Who is exposed goes on being watched.
    assert_eq!(step(&soaking(window(780, 840)), &mk_counts(&[(Healthy, 10)]), 70).stage, 1);
}

#[test]
fn deadlines_and_people_are_waited_for() {
    let mut strategy = mk_strategy();
    strategy.stages[0].deadline = Some(Duration::from_secs(100));
    strategy.stages[0].promotion = Promotion::Manual;
    let rollout = soaking(strategy);
    assert_eq!(waits(&rollout, &mk_counts(&[(Healthy, 10)]), 99), Why::Promotion);
    let late = step(&rollout, &mk_counts(&[(Healthy, 10)]), 100);
    assert!(late.failure.unwrap().contains("has not passed within 100 s"));
    let pending =
        Rollout { state: State::PendingApproval, exposed: 0, target: None, ..mk_rollout(mk_strategy()) };
    assert!(matches!(waits(&pending, &mk_counts(&[]), 0), Why::Approval(_)));
    let expired = step(&pending, &mk_counts(&[]), APPROVAL_EXPIRES.as_secs());
    assert_eq!(
        (expired.state, expired.history.last().unwrap().reason.as_str()),
        (State::Aborted, "nobody approved it in time")
    );
}

#[test]
fn a_rollback_ends_when_all_that_can_be_reached_are_back() {
    let back = Rollout { state: State::RollingBack, ..mk_rollout(mk_strategy()) };
    assert_eq!(waits(&back, &mk_counts(&[(Restoring, 2), (Restored, 8)]), 0), Why::Restoring(2));
    let unseen = Counts { looked_at: IntentRevision(4), ..mk_counts(&[]) };
    assert_eq!(waits(&back, &unseen, 0), Why::Looking);
    let done =
        step(&back, &mk_counts(&[(Restored, 6), (RestoredLater, 1), (Kept, 2), (RestoreFailed, 1)]), 0);
    assert_eq!(done.state, State::RolledBack);
    let told = &done.history.last().unwrap().reason;
    assert_eq!(
        told,
        "6 agents have what they had before, 1 get it when they connect, 2 had nothing before and keep what they have, 1 could not apply what they had before"
    );
}

#[test]
fn a_rollout_without_its_assignment_ends() {
    let counts = mk_counts(&[]);
    let facts = Facts { counts: &counts, read_through: None, population: None, is_assigned: false };
    for state in [State::PendingApproval, State::Running, State::Soaking, State::Paused] {
        let rollout = Rollout { state, ..mk_rollout(mk_strategy()) };
        assert_eq!(plan(&rollout, &facts, at(0)).step.unwrap().after.state, State::Aborted);
    }
}

#[test]
fn commands_work_in_their_states_alone() {
    use State::*;
    let table = [
        (Command::Approve, vec![(PendingApproval, Running)]),
        (Command::Pause, vec![(Running, Paused), (Soaking, Paused)]),
        (Command::Resume, vec![(Paused, Running)]),
        (Command::Promote, vec![(Running, Running), (Soaking, Running), (Paused, Running)]),
        (
            Command::Abort,
            vec![(PendingApproval, Aborted), (Running, Aborted), (Soaking, Aborted), (Paused, Aborted)],
        ),
        (
            Command::Rollback,
            vec![
                (Running, RollingBack),
                (Soaking, RollingBack),
                (Paused, RollingBack),
                (Completed, RollingBack),
                (Aborted, RollingBack),
            ],
        ),
    ];
    let states =
        [PendingApproval, Running, Soaking, Paused, RollingBack, RolledBack, Completed, Aborted, Superseded];
    for (asked, allowed) in table {
        for state in states {
            let rollout = Rollout { state, ..mk_rollout(mk_strategy()) };
            let result = command(&rollout, asked, "someone", "because", true, at(1));
            match allowed.iter().find(|(from, _)| *from == state) {
                Some((_, to)) => {
                    let step = result.unwrap();
                    let last = step.after.history.last().unwrap();
                    assert_eq!(
                        (step.after.state, last.actor.as_str(), last.reason.as_str()),
                        (*to, "someone", "because")
                    );
                    assert_eq!((step.after.version, last.at), (rollout.version + 1, at(1)));
                    let halts = matches!(to, Paused | Aborted | RollingBack);
                    assert_eq!(step.raises_floor, halts, "{asked:?} of {state}");
                }
                None => {
                    let refused = result.unwrap_err();
                    assert!(matches!(refused, Refused::State { .. }), "{asked:?} of {state}: {refused}");
                }
            }
        }
    }
    let told =
        command(&mk_rollout(mk_strategy()), Command::Resume, "x", "", true, at(0)).unwrap_err().to_string();
    assert_eq!(told, "the rollout is running, and resume needs it to be paused");
}

#[test]
fn the_author_does_not_approve() {
    let pending = Rollout { state: State::PendingApproval, ..mk_rollout(mk_strategy()) };
    let own = command(&pending, Command::Approve, "author", "", true, at(0)).unwrap_err();
    assert_eq!(own, Refused::OwnChange("author".to_owned()));
    assert_eq!(
        command(&pending, Command::Approve, "other", "", true, at(0)).unwrap().after.state,
        State::Running
    );
    let old = command(&mk_rollout(mk_strategy()), Command::Rollback, "x", "", false, at(0)).unwrap_err();
    assert_eq!(old, Refused::NotLatest);
}

#[test]
fn the_last_promotion_completes() {
    let rollout = Rollout { stage: 1, state: State::Running, ..mk_rollout(mk_strategy()) };
    let step = command(&rollout, Command::Promote, "x", "", true, at(0)).unwrap();
    assert!(step.after.everyone && step.moves_intent);
    assert_eq!(step.after.state, State::Completed);
}

#[test]
fn criteria_that_are_not_there_ask_nothing() {
    let mut strategy = mk_strategy();
    strategy.stages[0] = super::super::strategy::Stage {
        criteria: Criteria::default(),
        ..mk_stage("a", Size::Share(Share::ALL))
    };
    let rollout = soaking(strategy);
    assert_eq!(step(&rollout, &mk_counts(&[(Failed, 9), (Unhealthy, 1)]), 70).stage, 1);
    assert!(matches!(waits(&rollout, &mk_counts(&[(Offline, 9)]), 70), Why::Reports { .. }));
}
