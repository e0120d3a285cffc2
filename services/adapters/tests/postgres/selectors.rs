//! Selectors in SQL select what `matches` does.

use std::collections::{BTreeMap, BTreeSet};

use muster_domain::agent::Agent;
use muster_domain::desired::{Labels, matches};
use muster_domain::ids::{AgentKey, Partition, Timestamp};
use muster_domain::report::{Attributes, Description};
use muster_domain::selector::{AgentSelector, Condition, Requirement, Selector};
use muster_ports::store::{AgentWrite, FleetStore as _, FoldStore as _, IntentStore as _, StoredAgent};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use super::{cell, commit, key, server, store, write};

const AGENTS: u128 = 250;
const SELECTORS: usize = 300;

/// Keys that selectors ask for.
fn asked_key() -> impl Strategy<Value = String> {
    select(vec!["a", "b", "c", "host.name", "größe", "name", "a/b:c"]).prop_map(str::to_owned)
}

/// Values that selectors ask for, among them what looks like something else.
fn asked_value() -> impl Strategy<Value = String> {
    let words = [
        "",
        "x",
        "y",
        "1",
        "1.0",
        "true",
        "null",
        "[1,\"x\"]",
        "{\"b\":1,\"a\":2}",
        "é",
        "\"x\"",
        "\\",
        "%",
        "\u{fffd}",
    ];
    select(words.to_vec()).prop_map(str::to_owned)
}

fn attribute() -> impl Strategy<Value = (String, Value)> {
    let odd_keys = ["", "with space", "x=y", "nul\u{0}", "\u{1}"];
    let odd_key = select(odd_keys.to_vec()).prop_map(str::to_owned);
    let long = "x".repeat(2000);
    let other = vec![
        json!(null),
        json!(true),
        json!(1),
        json!(1.0),
        json!([1, "x"]),
        json!({"b": 1, "a": 2}),
        json!("nul\u{0}"),
        json!("\u{0}"),
        json!("\u{1}"),
        json!("two\nlines"),
        json!(long),
    ];
    let value = prop_oneof![2 => asked_value().prop_map(Value::String), 1 => select(other)];
    (prop_oneof![5 => asked_key(), 1 => odd_key], value)
}

fn attributes() -> impl Strategy<Value = Attributes> {
    prop::collection::vec(attribute(), 0..6).prop_map(|pairs| pairs.into_iter().collect())
}

fn description() -> impl Strategy<Value = Option<Description>> {
    let both = (attributes(), attributes());
    let described =
        both.prop_map(|(identifying, non_identifying)| Description { identifying, non_identifying });
    prop::option::weighted(0.95, described)
}

/// Labels to set, and to remove.
fn label_changes() -> impl Strategy<Value = BTreeMap<String, Option<String>>> {
    prop::collection::btree_map(asked_key(), prop::option::weighted(0.7, asked_value()), 0..4)
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let values = || prop::collection::vec(asked_value(), 1..4);
    let condition = prop_oneof![
        4 => values().prop_map(Condition::In),
        2 => values().prop_map(Condition::NotIn),
        1 => Just(Condition::Exists),
        1 => Just(Condition::DoesNotExist),
    ];
    (asked_key(), condition).prop_map(|(key, condition)| Requirement::new(key, condition).unwrap())
}

fn selector() -> impl Strategy<Value = AgentSelector> {
    let name = asked_value().prop_filter("an agent id is not empty", |value| !value.is_empty());
    let uid = (0..AGENTS + 3).prop_map(|number| key(number).uid.to_string());
    let ids = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(prop_oneof![name, uid], 0..4)];
    (prop::collection::vec(requirement(), 0..4), ids).prop_map(|(requirements, ids)| {
        AgentSelector::new(Selector::new(requirements).unwrap(), ids).unwrap()
    })
}

fn sample<S: Strategy>(runner: &mut TestRunner, strategy: &S) -> S::Value {
    strategy.new_tree(runner).unwrap().current()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn selectors_in_sql_select_what_matches_does() {
    let Some(server) = server().await else { return };
    let store = store(server.database().await).await;
    let mut runner = TestRunner::deterministic();
    let (descriptions, changes, selectors) = (description(), label_changes(), selector());
    let mut expected = BTreeMap::<AgentKey, (Agent, Labels)>::new();
    let mut selected = 0;
    for round in 0..3 {
        // New descriptions for some agents, and new labels for some.
        let mut writes = BTreeMap::<Partition, Vec<AgentWrite>>::new();
        for key in (0..AGENTS).map(key).filter(|key| round == 0 || key.uid.0.as_u128() % 3 == round) {
            let mut agent = Agent::new(key.clone(), Timestamp(1));
            agent.state.description = sample(&mut runner, &descriptions);
            expected.entry(key.clone()).or_insert_with(|| (agent.clone(), Labels::new())).0 = agent.clone();
            writes.entry(Partition::of(&key)).or_default().push(write(agent));
        }
        for (partition, writes) in writes {
            let row = store.partition(&cell(), partition).await.unwrap();
            store.commit(commit(partition, row, writes)).await.unwrap();
        }
        for key in (0..AGENTS).map(key).filter(|key| key.uid.0.as_u128() % 2 == round % 2) {
            let changes = sample(&mut runner, &changes);
            let labels = store.label(&key, &changes, Timestamp(1), None).await.unwrap().unwrap();
            expected.get_mut(&key).unwrap().1 = labels;
        }
        for number in 0..SELECTORS {
            let selector = sample(&mut runner, &selectors);
            let matching = |(_, (agent, labels)): &(_, &(Agent, Labels))| matches(&selector, agent, labels);
            let expected: Vec<_> = expected
                .iter()
                .filter(matching)
                .map(|(_, (agent, labels))| StoredAgent { agent: agent.clone(), labels: labels.clone() })
                .collect();
            let limit = [1000, 100, 7][number % 3];
            let mut found = Vec::<StoredAgent>::new();
            loop {
                let after = found.last().map(|stored| stored.agent.key.uid);
                let page = store.page(&key(0).tenant, &selector, after, limit).await.unwrap();
                let is_last = page.len() < limit;
                found.extend(page);
                if is_last {
                    break;
                }
            }
            assert!(
                found == expected,
                "{selector:?} selects {:?}, not {:?}",
                names(&found),
                names(&expected)
            );
            selected += found.len();
        }
    }
    let all = usize::try_from(AGENTS).unwrap() * SELECTORS * 3;
    println!("{selected} of {all} pairs match");
    assert!(selected > all / 20 && selected < all * 19 / 20, "the selectors say little: {selected} of {all}");
}

fn names(agents: &[StoredAgent]) -> BTreeSet<String> {
    agents.iter().map(|stored| format!("{}", stored.agent.key.uid.0.as_u128())).collect()
}
