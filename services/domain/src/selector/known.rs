//! What a selector that matches nothing may have meant.

use std::collections::{BTreeMap, BTreeSet};

use super::{AgentSelector, Condition};
use crate::agent::Agent;
use crate::desired::Labels;
use crate::yaml::{brief, did_you_mean};

/// Keys that are kept, and values of each.
const MOST: (usize, usize) = (1000, 200);
/// Values and keys that are named.
const NAMED: usize = 5;

/// Keys and values that agents have.
#[derive(Debug, Default)]
pub struct Known(BTreeMap<String, BTreeSet<String>>);

impl Known {
    /// Those of these agents.
    pub fn of<'a>(agents: impl IntoIterator<Item = (&'a Agent, &'a Labels)>) -> Self {
        let mut known = Self::default();
        for (agent, labels) in agents {
            let described = agent.state.description.iter();
            let attributes =
                described.flat_map(|found| found.identifying.iter().chain(&found.non_identifying));
            for (key, value) in attributes {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                known.add(key, text);
            }
            labels.iter().for_each(|(key, value)| known.add(key, value.clone()));
        }
        known
    }

    fn add(&mut self, key: &str, value: String) {
        if self.0.len() < MOST.0 || self.0.contains_key(key) {
            let values = self.0.entry(key.to_owned()).or_default();
            if values.len() < MOST.1 {
                values.insert(value);
            }
        }
    }

    /// What is nearest to what a selector asks for, in words.
    pub fn nearest(&self, selector: &AgentSelector) -> String {
        if self.0.is_empty() {
            return "there are no agents yet".to_owned();
        }
        for requirement in selector.requirements.requirements() {
            let key = requirement.key();
            let Some(values) = self.0.get(key) else {
                if matches!(requirement.condition(), Condition::NotIn(_) | Condition::DoesNotExist) {
                    continue;
                }
                let hint = did_you_mean(key, self.0.keys().map(String::as_str));
                let keys =
                    if hint.is_empty() { format!("; there are {}", list(self.0.keys())) } else { hint };
                return format!("no agent has {}{keys}", brief(key));
            };
            if let Condition::In(wanted) = requirement.condition()
                && !wanted.iter().any(|value| values.contains(value))
            {
                let hint = wanted
                    .iter()
                    .map(|value| did_you_mean(value, values.iter().map(String::as_str)))
                    .find(|hint| !hint.is_empty());
                let hint = hint.unwrap_or_else(|| format!("; there are {}", list(values)));
                return format!("no agent has {} {}{hint}", brief(key), list(wanted));
            }
        }
        match selector.agent_ids.is_empty() {
            true => "no agent meets all its requirements at once".to_owned(),
            false => "no agent has one of its ids as instance_uid or as label `name`".to_owned(),
        }
    }
}

fn list<'a>(values: impl IntoIterator<Item = &'a String>) -> String {
    let mut values = values.into_iter();
    let mut text = values.by_ref().take(NAMED).map(|value| brief(value)).collect::<Vec<_>>().join(", ");
    if values.next().is_some() {
        text.push_str(", ...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_or_value_is_named() {
        let mut known = Known::default();
        let selector =
            |text: &str| AgentSelector { requirements: text.parse().unwrap(), ..AgentSelector::default() };
        assert_eq!(known.nearest(&selector("a=b")), "there are no agents yet");
        known.add("region", "eu-west".to_owned());
        known.add("region", "us-east".to_owned());
        known.add("team", "blue".to_owned());
        assert_eq!(known.nearest(&selector("regoin=x")), "no agent has \"regoin\"; did you mean `region`?");
        assert_eq!(
            known.nearest(&selector("region=eu-wset")),
            "no agent has \"region\" \"eu-wset\"; did you mean `eu-west`?"
        );
        assert_eq!(known.nearest(&selector("team=x")), "no agent has \"team\" \"x\"; there are \"blue\"");
        assert_eq!(
            known.nearest(&selector("zzzzzz")),
            "no agent has \"zzzzzz\"; there are \"region\", \"team\""
        );
        assert_eq!(known.nearest(&selector("!old,team=blue")), "no agent meets all its requirements at once");
    }
}
