//! Tests of desired configs.

use uuid::Uuid;

use super::*;
use crate::ids::{AgentKey, InstanceUid, Timestamp};
use crate::intent::plan;
use crate::manifest;
use crate::report::Description;

const TEMPLATE: &str = "
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: NAME, version: v1}
spec:
  variables:
    - {name: rate, type: float, default: 0.25}
  config: {rate: '{{.rate}}', host: '{{.agent.attributes[\"host.name\"]}}'}
---
";
const ASSIGNMENT: &str = "
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {name: NAME}
spec:
  template: {name: TEMPLATE}
  priority: PRIORITY
  file: FILE
  selector: {matchLabels: {team: blue}}
---
";

fn assignment(name: &str, template: &str, priority: &str, file: &str) -> String {
    let text = ASSIGNMENT.replace("TEMPLATE", template).replace("NAME", name);
    text.replace("PRIORITY", priority).replace("FILE", file)
}

fn planner(manifests: &[String]) -> Planner {
    let documents = manifest::parse(&manifests.concat()).unwrap();
    let mut intent = Intent::default();
    let change = plan(&intent, &documents, Timestamp(1), Uuid::nil).unwrap();
    for template in change.templates {
        intent.templates.entry(template.name.clone()).or_default().push(template);
    }
    intent.assignments.extend(change.assignments.into_iter().map(|found| (found.name.clone(), found)));
    Planner::new(&intent)
}

fn agent(attributes: &[(&str, &str)]) -> Agent {
    let key = AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(1)) };
    let mut agent = Agent::new(key, Timestamp(1));
    let pairs = attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).into()));
    agent.state.description =
        Some(Description { non_identifying: pairs.collect(), ..Description::default() });
    agent
}

fn config(planner: &Planner, agent: &Agent, labels: &Labels) -> DesiredConfig {
    match planner.desired(agent, labels) {
        Desired::Config(config) => config,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_hash_is_over_inputs_and_has_a_test_vector() {
    let one = planner(&[TEMPLATE.replace("NAME", "one"), assignment("a", "one", "0", "f")]);
    let blue = agent(&[("team", "blue"), ("host.name", "h1")]);
    let config = config(&one, &blue, &Labels::new());
    // Agents that run this would be sent it again if the hash moved.
    assert_eq!(config.hash.to_string(), "2387193b0d03f39e703753f2040bb01bd4831623e4e41d001fa40c6fbb347a81");
    let other = agent(&[("team", "blue"), ("host.name", "h2")]);
    assert_ne!(self::config(&one, &other, &Labels::new()).hash, config.hash);
}

#[test]
fn the_higher_priority_gives_a_file_and_others_compose() {
    let texts = [
        TEMPLATE.replace("NAME", "one"),
        TEMPLATE.replace("NAME", "two").replace("0.25", "0.5"),
        assignment("a", "one", "1", "f"),
        assignment("b", "two", "2", "f"),
        assignment("c", "one", "0", "g"),
    ];
    let blue = agent(&[("team", "blue"), ("host.name", "h1")]);
    let files = config(&planner(&texts), &blue, &Labels::new()).files;
    let slots: Vec<_> = files.iter().map(|file| (file.name.as_str(), file.slots[0].as_str())).collect();
    assert_eq!(slots, [("f", "0.5"), ("g", "0.25")]);
}

#[test]
fn a_missing_attribute_holds_back_that_agent_with_the_reason() {
    let one = planner(&[TEMPLATE.replace("NAME", "one"), assignment("a", "one", "0", "f")]);
    let reason = "assignment \"a\", file \"f\": the agent has no attribute \"host.name\"".to_owned();
    assert_eq!(one.desired(&agent(&[("team", "blue")]), &Labels::new()), Desired::Held { reason });
}

#[test]
fn values_that_are_too_large_for_a_message_hold_back_that_agent() {
    let texts =
        [TEMPLATE.replace("NAME", "one"), assignment("a", "one", "0", "f"), assignment("b", "one", "0", "g")];
    let both = planner(&texts);
    let with = |bytes: usize| {
        let host = "x".repeat(bytes);
        both.desired(&agent(&[("team", "blue"), ("host.name", &host)]), &Labels::new())
    };
    // Each in two files, quoted, beside two numbers.
    assert!(matches!(with(MAX_SLOT_BYTES / 2 - 40), Desired::Config(_)));
    let Desired::Held { reason } = with(MAX_SLOT_BYTES / 2) else { panic!("it is not held back") };
    assert!(reason.starts_with("assignment \"b\", file \"g\": with its values"), "{reason}");
}

#[test]
fn a_label_hides_an_attribute() {
    let one = planner(&[TEMPLATE.replace("NAME", "one"), assignment("a", "one", "0", "f")]);
    let blue = agent(&[("team", "blue"), ("host.name", "h1")]);
    let red = Labels::from([("team".to_owned(), "red".to_owned())]);
    assert_eq!(one.desired(&blue, &red), Desired::Nothing);
}

#[test]
fn a_retired_assignment_is_for_the_agents_that_it_had() {
    let texts = [TEMPLATE.replace("NAME", "one"), assignment("a", "one", "0", "f")];
    let documents = manifest::parse(&texts.concat()).unwrap();
    let mut intent = Intent::default();
    intent.apply(&plan(&intent, &documents, Timestamp(1), Uuid::nil).unwrap());
    let old = agent(&[("team", "blue"), ("host.name", "h1")]);
    let mut new = old.clone();
    new.state.first_seen = Timestamp(9);
    let before = config(&Planner::new(&intent), &old, &Labels::new());
    intent.assignments.get_mut("a").unwrap().retired_at = Some(Timestamp(5));
    let planner = Planner::new(&intent);
    assert_eq!(config(&planner, &old, &Labels::new()), before, "nothing is sent to it");
    assert_eq!(planner.desired(&new, &Labels::new()), Desired::Nothing);
    assert!(planner.explain(&old, &Labels::new()).assignments[0].retired);
}

#[test]
fn an_explanation_says_where_everything_comes_from() {
    let texts = [
        TEMPLATE.replace("NAME", "one"),
        assignment("a", "one", "1", "f"),
        assignment("b", "one", "1", "f"),
        assignment("c", "one", "0", "f"),
    ];
    let planner = planner(&texts);
    let blue = agent(&[("team", "blue"), ("host.name", "h1")]);
    let told = planner.explain(&blue, &Labels::new());
    let names: Vec<_> = told.assignments.iter().map(|found| (found.name.as_str(), found.follows)).collect();
    assert_eq!(names, [("a", true), ("b", true), ("c", true)]);
    let [file] = told.files.as_slice() else { panic!("{told:?}") };
    assert_eq!(
        (file.assignment.as_str(), file.hidden.as_slice()),
        ("a", ["b".to_owned(), "c".to_owned()].as_slice())
    );
    assert_eq!(file.clashes, ["b"]);
    assert_eq!(file.text.as_deref(), Some("rate: 0.25\nhost: h1\n"));
    let origins: Vec<_> =
        file.values.iter().map(|value| (value.origin.kind(), value.origin.name())).collect();
    assert_eq!(origins, [("default", "rate"), ("attribute", "host.name")]);
    let held = planner.explain(&agent(&[("team", "blue")]), &Labels::new());
    assert_eq!(held.files[0].text, None);
    assert!(held.files[0].values[1].value.is_err() && matches!(held.desired, Desired::Held { .. }));
}
