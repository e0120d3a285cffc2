//! Which rollouts a change begins, and what agents get from them.

use std::collections::BTreeSet;
use std::sync::Arc;

use uuid::Uuid;

use super::super::act::{Command, command};
use super::super::create::{Origin, stage_change};
use super::super::follow::follow;
use super::super::planner::{Facts, plan};
use super::super::{Rollout, Staged, State, Step, Who};
use super::{at, mk_counts, uid};
use crate::agent::Agent;
use crate::desired::{Decided, Desired, Labels, Planner};
use crate::ids::{AgentKey, ConfigHash, IntentRevision, RolloutId};
use crate::intent::{self, Intent};
use crate::manifest;
use crate::report::{ConfigStatus, Description, RemoteConfigStatus};

/// Intent as a store has it.
#[derive(Default)]
struct World {
    intent: Intent,
    /// All rollouts and their ledgers.
    rollouts: Vec<Rollout>,
    ledgers: std::collections::BTreeMap<RolloutId, BTreeSet<crate::ids::InstanceUid>>,
    ids: u128,
}

const STRATEGY: &str = "
apiVersion: opamp.io/v1
kind: RolloutStrategy
metadata: {name: canary}
spec:
  stages: [{name: one, count: 2}, {name: all, percentage: 100}]
---
";
const ASSIGNMENT: &str = "
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {name: a}
spec: {template: {name: t}, selector: {}, rollout: {strategy: canary}}
---
";

fn template(version: &str) -> String {
    format!(
        "
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {{name: t, version: {version}}}
spec: {{config: {{says: {version}}}}}
---
"
    )
}

impl World {
    /// Applies manifests; the ids of rollouts that begin are 1, 2, ...
    fn apply(&mut self, text: &str) -> Vec<RolloutId> {
        let documents = manifest::parse(text).unwrap();
        let mut change = intent::plan(&self.intent, &documents, at(0), Uuid::nil).unwrap();
        let origin = Origin { actor: "author".to_owned(), approval_required: false };
        stage_change(&self.intent, &mut change, &origin, at(0), || {
            self.ids += 1;
            Uuid::from_u128(self.ids)
        });
        self.intent.revision.0 += 1;
        for template in change.templates {
            self.intent.templates.entry(template.name.clone()).or_default().push(template);
        }
        for assignment in change.assignments {
            self.intent.assignments.insert(assignment.name.clone(), assignment);
        }
        for strategy in change.strategies {
            self.intent.strategies.insert(strategy.name.clone(), strategy);
        }
        for step in change.rollouts {
            self.take(step);
        }
        let begun: Vec<_> = change.new_rollouts.iter().map(|rollout| rollout.id).collect();
        for rollout in change.new_rollouts {
            self.rollouts.push(Rollout { revision: self.intent.revision, ..rollout });
        }
        self.publish();
        begun
    }

    fn take(&mut self, step: Step) {
        let known = self.rollouts.iter_mut().find(|rollout| rollout.id == step.after.id).unwrap();
        assert_eq!(known.version + 1, step.after.version);
        *known = step.after;
        let ledger = self.ledgers.entry(known.id).or_default();
        ledger.extend(step.admitted);
        self.intent.revision.0 += 1;
        self.publish();
    }

    fn publish(&mut self) {
        for rollout in &self.rollouts {
            let ledgers = rollout.ledgers().into_iter();
            let ledgers =
                ledgers.map(|id| (id, Arc::new(self.ledgers.get(&id).cloned().unwrap_or_default())));
            let staged = Staged { rollout: rollout.clone(), ledgers: ledgers.collect() };
            self.intent.rollouts.insert(rollout.assignment.clone(), staged);
        }
    }

    fn latest(&self) -> Rollout {
        self.rollouts.last().unwrap().clone()
    }

    /// Admits these agents.
    fn admit(&mut self, numbers: &[u128]) {
        let before = self.latest();
        let admitted: Vec<_> = numbers.iter().map(|number| uid(*number)).collect();
        let exposed = before.exposed + admitted.len() as u64;
        let after = Rollout { exposed, target: Some(exposed), version: before.version + 1, ..before };
        self.take(Step { after, admitted, moves_intent: true, raises_floor: false, audit: None });
    }

    fn ask(&mut self, asked: Command) {
        let step = command(&self.latest(), asked, "someone", "", true, at(0)).unwrap();
        self.take(step);
    }

    /// What an agent should run now, by the version that it says; its standing follows.
    fn looks(&self, agent: &mut Agent) -> Option<String> {
        let planner = Planner::new(&self.intent);
        let decided = planner.decide(agent, &Labels::new());
        let hash = match &decided.desired {
            Desired::Config(config) => Some(config.hash.clone()),
            _ => None,
        };
        agent.state.set_desired(hash, None);
        follow(agent, &decided, &planner, at(0));
        self.says(&decided)
    }

    fn says(&self, decided: &Decided) -> Option<String> {
        let Desired::Config(config) = &decided.desired else { return None };
        let revisions = self.intent.templates["t"].iter();
        let mut of_digest =
            revisions.filter(|revision| revision.compiled.files[0].digest == config.files[0].digest);
        of_digest.next().map(|revision| revision.version.clone())
    }

    /// The agent gets what it should run, and reports it as applied.
    fn runs(&self, agent: &mut Agent) -> String {
        let says = self.looks(agent).unwrap();
        reports(agent, agent.state.desired.clone(), ConfigStatus::Applied);
        self.looks(agent);
        says
    }
}

fn reports(agent: &mut Agent, hash: Option<ConfigHash>, status: ConfigStatus) {
    agent.state.remote_config = RemoteConfigStatus { hash, status, error_message: String::new() };
}

fn mk_agent(number: u128) -> Agent {
    Agent::new(AgentKey { tenant: "default".parse().unwrap(), uid: uid(number) }, at(0))
}

/// Version v1 for all, and a strategy from then on.
fn settled() -> World {
    let mut world = World::default();
    let at_once = ASSIGNMENT.replace(", rollout: {strategy: canary}", "");
    assert_eq!(world.apply(&format!("{}{at_once}", template("v1"))), []);
    assert_eq!(world.apply(&format!("{STRATEGY}{ASSIGNMENT}")), [], "a strategy alone changes nothing");
    world
}

#[test]
fn a_change_begins_a_rollout_and_nothing_else_does() {
    let mut world = settled();
    assert_eq!(world.apply(&template("v2")).len(), 1, "it follows the template");
    assert_eq!(world.apply(&template("v2")), [], "the same again");
    assert_eq!(world.apply(&STRATEGY.replace("count: 2", "count: 3")), [], "another strategy");
    assert_eq!(
        world.latest().strategy.stages[0].size,
        super::super::strategy::Size::Count(2),
        "it keeps its own copy"
    );
    assert_eq!(
        world.apply(&ASSIGNMENT.replace("selector: {}", "selector: {matchLabels: {x: y}}")),
        [],
        "other agents"
    );
    assert_eq!(
        world.apply(&ASSIGNMENT.replace("{name: t}", "{name: t, version: v1}")).len(),
        1,
        "back to v1"
    );
    assert_eq!(world.rollouts[0].state, State::Superseded);
    let mut new = World::default();
    assert_eq!(
        new.apply(&format!("{}{STRATEGY}{ASSIGNMENT}", template("v1"))).len(),
        1,
        "what is new rolls out, too"
    );
    assert_eq!(new.latest().base, [], "and has nothing under it");
}

#[test]
fn only_exposed_agents_get_the_change() {
    let mut world = settled();
    let (mut one, mut two) = (mk_agent(1), mk_agent(2));
    assert_eq!(world.runs(&mut one), "v1");
    world.apply(&template("v2"));
    assert_eq!(world.runs(&mut one), "v1", "no stage has begun");
    world.admit(&[1]);
    assert_eq!((world.runs(&mut one), world.runs(&mut two)), ("v2".to_owned(), "v1".to_owned()));
    let mut newcomer = mk_agent(3);
    assert_eq!(world.runs(&mut newcomer), "v1", "a late joiner");
    world.ask(Command::Promote);
    world.ask(Command::Promote);
    assert_eq!(world.latest().state, State::Completed);
    assert_eq!((world.runs(&mut two), world.runs(&mut mk_agent(4))), ("v2".to_owned(), "v2".to_owned()));
    world.ask(Command::Rollback);
    assert_eq!((world.runs(&mut one), world.runs(&mut two)), ("v1".to_owned(), "v1".to_owned()));
}

#[test]
fn a_halt_sends_nothing_and_takes_nothing_back() {
    let mut world = settled();
    let mut agents: Vec<_> = (0..4).map(mk_agent).collect();
    agents.iter_mut().for_each(|agent| drop(world.runs(agent)));
    world.apply(&template("v2"));
    world.admit(&[0, 1, 2]);
    // The first has it, the second is applying it, to the third it is on its way.
    assert_eq!(world.runs(&mut agents[0]), "v2");
    for agent in &mut agents[1..3] {
        assert_eq!(world.looks(agent).as_deref(), Some("v2"));
    }
    let new = agents[0].state.desired.clone();
    reports(&mut agents[1], new.clone(), ConfigStatus::Applying);
    world.ask(Command::Pause);
    let now: Vec<_> = agents.iter_mut().map(|agent| world.looks(agent).unwrap()).collect();
    assert_eq!(now, ["v2", "v2", "v1", "v1"]);
    for agent in &agents {
        assert_eq!(agent.state.desired, agent.state.remote_config.hash, "nobody is sent anything");
    }
    // What was on its way arrives: it stays.
    reports(&mut agents[2], new, ConfigStatus::Applying);
    assert_eq!(world.looks(&mut agents[2]).as_deref(), Some("v2"));
    world.ask(Command::Abort);
    let now: Vec<_> = agents.iter_mut().map(|agent| world.looks(agent).unwrap()).collect();
    assert_eq!(now, ["v2", "v2", "v2", "v1"]);
    world.ask(Command::Rollback);
    let now: Vec<_> = agents.iter_mut().map(|agent| world.looks(agent).unwrap()).collect();
    assert_eq!(now, ["v1", "v1", "v1", "v1"]);
}

#[test]
fn a_newer_change_supersedes_and_goes_back_to_what_each_agent_had() {
    let mut world = settled();
    let mut agents: Vec<_> = (0..4).map(mk_agent).collect();
    agents.iter_mut().for_each(|agent| drop(world.runs(agent)));
    world.apply(&template("v2"));
    world.admit(&[0, 1, 2]);
    world.runs(&mut agents[0]);
    world.runs(&mut agents[1]);
    world.apply(&template("v3"));
    assert_eq!(
        world.latest().base.iter().map(|layer| layer.who.clone()).collect::<Vec<_>>(),
        [Who::Ledger(world.rollouts[0].id), Who::Everyone]
    );
    let now: Vec<_> = agents.iter_mut().map(|agent| world.looks(agent).unwrap()).collect();
    assert_eq!(now, ["v2", "v2", "v1", "v1"], "who has v2 keeps it, and nobody else is sent it any more");
    world.admit(&[0, 3]);
    let now: Vec<_> = agents.iter_mut().map(|agent| world.runs(agent)).collect();
    assert_eq!(now, ["v3", "v2", "v1", "v3"]);
    world.ask(Command::Rollback);
    let now: Vec<_> = agents.iter_mut().map(|agent| world.runs(agent)).collect();
    assert_eq!(now, ["v2", "v2", "v1", "v1"], "each what it had before");
}

#[test]
fn what_had_nothing_keeps_what_it_has() {
    let mut world = World::default();
    world.apply(&format!("{}{STRATEGY}{ASSIGNMENT}", template("v1")));
    let mut agent = mk_agent(1);
    assert_eq!(world.looks(&mut agent), None);
    world.admit(&[1]);
    assert_eq!(world.runs(&mut agent), "v1");
    world.ask(Command::Rollback);
    assert_eq!(world.looks(&mut agent), None, "never an empty map");
    assert_eq!(agent.state.rollouts[0].standing.name(), "kept");
    let counts = crate::rollout::Counts {
        looked_at: IntentRevision(99),
        ..mk_counts(&[(agent.state.rollouts[0].standing, 1)])
    };
    let facts = Facts { counts: &counts, read_through: None, population: None, is_assigned: true };
    let told = plan(&world.latest(), &facts, at(0)).step.unwrap().after.history.pop().unwrap().reason;
    assert!(told.contains("1 had nothing before and keep what they have"), "{told}");
}

#[test]
fn a_target_narrows_for_good() {
    let mut world = settled();
    world.apply(&STRATEGY.replace("spec:", "spec:\n  target_selector: {labels: {region: eu}}"));
    world.apply(&template("v2"));
    let mut eu = mk_agent(1);
    let region = [("region".to_owned(), "eu".into())].into();
    eu.state.description = Some(Description { non_identifying: region, ..Description::default() });
    let mut us = mk_agent(2);
    world.ask(Command::Promote);
    world.ask(Command::Promote);
    assert_eq!((world.runs(&mut eu), world.runs(&mut us)), ("v2".to_owned(), "v1".to_owned()));
    // The next one is for all again, and goes back to what each had.
    world.apply(&format!("{STRATEGY}{}", template("v3")));
    world.admit(&[1, 2]);
    assert_eq!((world.runs(&mut eu), world.runs(&mut us)), ("v3".to_owned(), "v3".to_owned()));
    world.ask(Command::Rollback);
    assert_eq!((world.runs(&mut eu), world.runs(&mut us)), ("v2".to_owned(), "v1".to_owned()));
    // An agent whose attributes change gets what agents like it have.
    eu.state.description = None;
    assert_eq!(world.runs(&mut eu), "v1");
}

#[test]
fn an_assignment_without_a_strategy_gives_to_all_at_once() {
    let mut world = settled();
    world.apply(&template("v2"));
    world.admit(&[1]);
    world.apply(&ASSIGNMENT.replace(", rollout: {strategy: canary}", ""));
    assert_eq!(world.latest().state, State::Superseded);
    assert_eq!(world.runs(&mut mk_agent(7)), "v2");
    // With the strategy again, the next change goes from there.
    world.apply(ASSIGNMENT);
    assert_eq!(world.apply(&template("v3")).len(), 1);
    assert_eq!(world.runs(&mut mk_agent(7)), "v2");
    let base: Vec<_> = world.latest().base.iter().map(|layer| layer.release.version.clone()).collect();
    assert_eq!(base, ["v2"]);
}

#[test]
fn an_agent_that_the_assignment_no_longer_matches_is_counted_no_more() {
    let mut world = settled();
    world.apply(&template("v2"));
    world.admit(&[1]);
    let mut agent = mk_agent(1);
    world.runs(&mut agent);
    assert_eq!(agent.state.rollouts.len(), 1);
    world.apply(&ASSIGNMENT.replace("selector: {}", "selector: {matchLabels: {x: y}}"));
    let planner = Planner::new(&world.intent);
    let decided = planner.decide(&agent, &Labels::new());
    let standing = agent.state.rollouts[0].standing;
    let followed = follow(&mut agent, &decided, &planner, at(1));
    assert_eq!(followed.moves, [(world.latest().id, Some(standing), None)]);
    assert!(agent.state.rollouts.is_empty());
}

#[test]
fn layers_are_bounded() {
    let mut world = settled();
    for n in 2..60_u128 {
        world.apply(&template(&format!("v{n}")));
        world.admit(&[n]);
    }
    assert_eq!(world.latest().base.len(), super::super::MAX_LAYERS);
    assert_eq!(world.runs(&mut mk_agent(1000)), "v1", "the lowest layer is never dropped");
}
