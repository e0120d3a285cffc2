//! Two assignments that give one file at one priority: nothing but their names would decide.

use std::collections::BTreeSet;

use super::{Assignment, Intent};
use crate::selector::{AgentSelector, Condition, Requirement};

/// Two assignments that give one file at one priority, to agents that may be the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clash {
    /// The one that a change makes or touches.
    pub changed: String,
    /// The other one.
    pub other: String,
    /// The file.
    pub file: String,
    /// Their priority.
    pub priority: i32,
    /// Whether every agent that one of them selects is selected by the other: no need to look at agents.
    pub certain: bool,
}

/// How two selectors are to each other, as far as it can be told without agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overlap {
    /// No agent is selected by both.
    None,
    /// An agent may be.
    Possible,
    /// All that one of them selects are.
    Whole,
}

impl Intent {
    /// The clashes of these assignments with others, each pair once.
    pub fn clashes(&self, changed: &BTreeSet<String>) -> Vec<Clash> {
        let mut clashes = Vec::new();
        for one in changed.iter().filter_map(|name| self.assignments.get(name)) {
            let files = self.files(one);
            for other in self.assignments.values() {
                let told_before = changed.contains(&other.name) && other.name <= one.name;
                if told_before || other.name == one.name || other.priority != one.priority {
                    continue;
                }
                let overlap = overlap(&one.selector, &other.selector);
                let shared = self.files(other).intersection(&files).next().cloned();
                if let Some(file) = shared.filter(|_| overlap != Overlap::None) {
                    clashes.push(Clash {
                        changed: one.name.clone(),
                        other: other.name.clone(),
                        file,
                        priority: one.priority,
                        certain: overlap == Overlap::Whole,
                    });
                }
            }
        }
        clashes
    }

    /// Names of the files that an assignment gives.
    pub fn files(&self, assignment: &Assignment) -> BTreeSet<String> {
        let own_name = assignment.file.as_ref().unwrap_or(&assignment.template);
        let revision = self.template(&assignment.template, assignment.version.as_deref());
        let files = revision.into_iter().flat_map(|revision| &revision.compiled.files);
        files.map(|file| file.name.as_ref().unwrap_or(own_name).clone()).collect()
    }
}

fn overlap(one: &AgentSelector, other: &AgentSelector) -> Overlap {
    let is_all = |selector: &AgentSelector| selector.requirements.is_empty() && selector.agent_ids.is_empty();
    if one == other || is_all(one) || is_all(other) || !one.agent_ids.is_disjoint(&other.agent_ids) {
        return Overlap::Whole;
    }
    // Who is listed by id may match the other's requirements.
    if one.agent_ids.is_empty() && other.agent_ids.is_empty() {
        let exclude = |a: &Requirement| other.requirements.requirements().iter().any(|b| exclude(a, b));
        if one.requirements.requirements().iter().any(exclude) {
            return Overlap::None;
        }
    }
    Overlap::Possible
}

/// Whether no value of a key meets both.
fn exclude(a: &Requirement, b: &Requirement) -> bool {
    use Condition::{DoesNotExist, Exists, In, NotIn};
    if a.key() != b.key() {
        return false;
    }
    match (a.condition(), b.condition()) {
        (In(some), In(others)) => !some.iter().any(|value| others.contains(value)),
        (In(some), NotIn(others)) | (NotIn(others), In(some)) => {
            some.iter().all(|value| others.contains(value))
        }
        (Exists | In(_), DoesNotExist) | (DoesNotExist, Exists | In(_)) => true,
        _ => false,
    }
}
