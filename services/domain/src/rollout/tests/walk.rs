//! A fleet that does what it likes, and rollouts that keep their promises all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::Strategy as _;

use super::super::act::{Command, command};
use super::super::cohort::{Candidate, Population};
use super::super::planner::{Facts, plan};
use super::super::strategy::{OnFailure, Strategy};
use super::super::{Counts, Rollout, Standing, State};
use super::{at, mk_rollout, mk_strategy, uid};
use crate::ids::{InstanceUid, IntentRevision};
use Standing::*;

/// What an agent does with the change.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Nature {
    Good,
    Refuses,
    GetsSick,
    IsOffline,
}

#[derive(Debug, Clone)]
enum Event {
    /// So many seconds pass, and controls look.
    Time(u64),
    /// Agents that were sent the change say how it went.
    Reports,
    /// Offline agents come.
    Come,
    /// Our own parts take connections away, and give them back.
    Outage(bool),
    /// A person asks.
    Asks(Command),
}

fn events() -> impl proptest::strategy::Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (1_u64..90).prop_map(Event::Time),
        6 => Just(Event::Reports),
        1 => Just(Event::Come),
        1 => any::<bool>().prop_map(Event::Outage),
        1 => proptest::sample::select(vec![Command::Pause, Command::Resume, Command::Abort, Command::Rollback]).prop_map(Event::Asks),
    ];
    proptest::collection::vec(event, 1..60)
}

struct World {
    rollout: Rollout,
    natures: BTreeMap<InstanceUid, Nature>,
    ledger: BTreeSet<InstanceUid>,
    standings: BTreeMap<InstanceUid, Standing>,
    revision: IntentRevision,
    now: u64,
}

impl World {
    fn new(natures: &[Nature], strategy: Strategy) -> Self {
        let natures: BTreeMap<_, _> =
            natures.iter().enumerate().map(|(n, nature)| (uid(n as u128), *nature)).collect();
        let rollout =
            Rollout { exposed: 0, target: None, revision: IntentRevision(1), ..mk_rollout(strategy) };
        Self {
            rollout,
            natures,
            ledger: BTreeSet::new(),
            standings: BTreeMap::new(),
            revision: IntentRevision(1),
            now: 0,
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts { looked_at: self.revision, ..Counts::default() };
        for standing in self.standings.values() {
            counts.step(None, Some(*standing));
        }
        counts
    }

    /// Every agent that is exposed stands somewhere; every one that is to go back goes.
    fn look(&mut self) {
        let exposed: Vec<_> = match self.rollout.everyone {
            true => self.natures.keys().copied().collect(),
            false => self.ledger.iter().copied().collect(),
        };
        for agent in exposed {
            let is_offline = self.natures[&agent] == Nature::IsOffline;
            match self.rollout.state {
                State::RollingBack => {
                    let restored = if is_offline { RestoredLater } else { Restored };
                    self.standings.insert(agent, restored);
                }
                _ => {
                    self.standings.entry(agent).or_insert(if is_offline { Offline } else { Waiting });
                }
            }
        }
    }

    /// Looks and takes steps for as long as there are any, and checks each.
    fn control(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..200 {
            let counts = self.counts();
            let population = Population {
                candidates: self
                    .natures
                    .keys()
                    .map(|uid| Candidate { uid: *uid, is_of_stage: true })
                    .collect(),
                exposed: self.ledger.clone(),
            };
            let facts = Facts {
                counts: &counts,
                read_through: Some(at(self.now)),
                population: Some(&population),
                is_assigned: true,
            };
            let found = plan(&self.rollout, &facts, at(self.now));
            let Some(step) = found.step else {
                // Never stuck without a reason.
                prop_assert!(!self.rollout.state.is_active() || !found.waiting_on.is_empty());
                return Ok(());
            };
            let before = self.rollout.clone();
            prop_assert_eq!(step.after.version, before.version + 1);
            let passed = step.after.stage > before.stage || step.after.state == State::Completed;
            if passed {
                let (bad, reached) = (counts.errors(), counts.reached());
                prop_assert!(bad * 10 <= reached, "no promotion past a failed criterion: {:?}", counts);
                let (good, whole) = (counts.of(Healthy), counts.sum(&[Healthy, Unhealthy, Gone]));
                prop_assert!(good * 10 >= whole * 9, "{:?}", counts);
                prop_assert!(counts.reported() >= 2 || before.everyone && counts.by.is_empty());
                prop_assert!(
                    before.soak.elapsed(at(self.now)) >= Duration::from_secs(60),
                    "watched to the end"
                );
                prop_assert_eq!(counts.of(Away), 0);
            }
            self.ledger.extend(&step.admitted);
            self.rollout = step.after;
            if step.moves_intent {
                self.revision.0 += 1;
                self.rollout.revision = self.revision;
            }
            prop_assert_eq!(self.rollout.exposed, self.ledger.len() as u64);
            if self.rollout.stage == 0 {
                prop_assert!(self.ledger.len() <= 10 && !self.rollout.everyone, "exposure within the stage");
            }
            self.look();
            let in_flight = self.standings.values().filter(|standing| **standing == Waiting).count() as u64;
            if let Some(most) = self.rollout.strategy.max_in_flight
                && !self.rollout.everyone
            {
                prop_assert!(
                    in_flight <= most.max(1)
                        || !matches!(self.rollout.state, State::Running | State::Soaking)
                );
            }
        }
        prop_assert!(false, "it goes round in circles: {:?}", self.rollout);
        Ok(())
    }

    fn happens(&mut self, event: &Event) {
        let has_ended = !self.rollout.state.is_active();
        match event {
            Event::Time(seconds) => self.now += seconds,
            Event::Asks(asked) => {
                if let Ok(step) = command(&self.rollout, *asked, "someone", "", true, at(self.now)) {
                    self.rollout = step.after;
                    if step.moves_intent {
                        self.revision.0 += 1;
                        self.rollout.revision = self.revision;
                    }
                    self.look();
                }
            }
            _ if has_ended => {}
            Event::Reports => {
                for (agent, standing) in &mut self.standings {
                    *standing = match (*standing, self.natures[agent]) {
                        (Waiting, Nature::Good) => Healthy,
                        (Waiting, Nature::Refuses) => Failed,
                        (Waiting, Nature::GetsSick) => Healthy,
                        (Healthy, Nature::GetsSick) => Unhealthy,
                        (standing, _) => standing,
                    };
                }
            }
            Event::Come => {
                for (agent, nature) in &mut self.natures {
                    if *nature == Nature::IsOffline {
                        *nature = Nature::Good;
                        self.standings.entry(*agent).and_modify(|standing| {
                            if *standing == Offline {
                                *standing = Waiting;
                            }
                        });
                    }
                }
            }
            Event::Outage(begins) => {
                let (from, to) = if *begins { (Healthy, Away) } else { (Away, Healthy) };
                self.standings
                    .values_mut()
                    .filter(|standing| **standing == from)
                    .for_each(|standing| *standing = to);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Exposure stays within the stage, no stage passes against its criteria or before its soak is over, every
    /// rollout that goes no further has a reason, and one that is rolled back leaves nobody behind.
    #[test]
    fn promises_are_kept(
        natures in proptest::collection::vec(
            prop_oneof![8 => Just(Nature::Good), 1 => Just(Nature::Refuses), 1 => Just(Nature::GetsSick), 1 => Just(Nature::IsOffline)],
            0..40,
        ),
        events in events(),
        pauses in any::<bool>(),
        max_in_flight in proptest::option::of(1_u64..8),
    ) {
        let on_failure = if pauses { OnFailure::Pause } else { OnFailure::Rollback };
        let mut world = World::new(&natures, Strategy { on_failure, max_in_flight, ..mk_strategy() });
        world.control()?;
        for event in &events {
            world.happens(event);
            world.control()?;
            if world.rollout.state == State::RolledBack {
                let left = world.standings.values().filter(|standing| !matches!(standing, Restored | RestoredLater)).count();
                prop_assert_eq!(left, 0);
            }
        }
    }

    /// A fleet that only does well gets the change, to the last agent, without a person.
    #[test]
    fn what_is_good_completes(count in 2_usize..40, max_in_flight in proptest::option::of(1_u64..8)) {
        let mut world = World::new(&vec![Nature::Good; count], Strategy { max_in_flight, ..mk_strategy() });
        for _ in 0..200 {
            world.control()?;
            world.happens(&Event::Reports);
            world.happens(&Event::Time(30));
        }
        prop_assert_eq!(world.rollout.state, State::Completed);
        prop_assert!(world.standings.len() == count && world.standings.values().all(|standing| *standing == Healthy));
    }
}
