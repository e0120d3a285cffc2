//! From what is stored back to manifests.

use crate::intent::Assignment;
use crate::selector::{AgentSelector, Condition, Requirement};
use crate::template::{TypedValue, is_safe_plain};
use crate::yaml::{Piece, Tree, emit};

use super::API_VERSION;

/// A tree without slots.
type Plain = Tree<std::convert::Infallible>;

impl Assignment {
    /// Its manifest: applied, it gives this assignment again.
    pub fn manifest(&self) -> String {
        let mut template = vec![("name", string(&self.template))];
        template.extend(self.version.as_ref().map(|version| ("version", string(version))));
        let mut spec = vec![("template", mapping(template))];
        if !self.values.is_empty() {
            let values = self.values.iter().map(|(name, value)| (string(name), scalar(value)));
            spec.push(("values", Tree::Mapping(values.collect())));
        }
        spec.push(("selector", selector(&self.selector)));
        if self.priority != 0 {
            spec.push(("priority", Tree::Plain(self.priority.to_string())));
        }
        spec.extend(self.file.as_ref().map(|file| ("file", string(file))));
        if !self.on_removal.is_default() {
            spec.push(("on_removal", string(self.on_removal.name())));
        }
        if let Some(strategy) = &self.strategy {
            spec.push(("rollout", mapping(vec![("strategy", string(strategy))])));
        }
        text(mapping(vec![
            ("apiVersion", string(API_VERSION)),
            ("kind", string("ConfigAssignment")),
            ("metadata", mapping(vec![("name", string(&self.name))])),
            ("spec", mapping(spec)),
        ]))
    }
}

fn selector(selector: &AgentSelector) -> Plain {
    let mut fields = Vec::new();
    let requirements = selector.requirements.requirements();
    let one = |requirement: &Requirement| match requirement.condition() {
        Condition::In(values) if values.len() == 1 => Some((string(requirement.key()), string(&values[0]))),
        _ => None,
    };
    // A mapping has a key once.
    let mut seen = std::collections::BTreeSet::new();
    let (labels, expressions): (Vec<_>, Vec<_>) =
        requirements.iter().partition(|found| one(found).is_some() && seen.insert(found.key()));
    if !labels.is_empty() {
        fields.push(("matchLabels", Tree::Mapping(labels.into_iter().filter_map(one).collect())));
    }
    if !expressions.is_empty() {
        fields.push(("matchExpressions", Tree::Sequence(expressions.into_iter().map(expression).collect())));
    }
    if !selector.agent_ids.is_empty() {
        let ids = selector.agent_ids.iter().map(|id| string(id));
        fields.push(("agent_ids", Tree::Sequence(ids.collect())));
    }
    mapping(fields)
}

fn expression(requirement: &Requirement) -> Plain {
    let (operator, values) = match requirement.condition() {
        Condition::In(values) => ("In", values.as_slice()),
        Condition::NotIn(values) => ("NotIn", values.as_slice()),
        Condition::Exists => ("Exists", [].as_slice()),
        Condition::DoesNotExist => ("DoesNotExist", [].as_slice()),
    };
    let mut fields = vec![("key", string(requirement.key())), ("operator", string(operator))];
    if !values.is_empty() {
        fields.push(("values", Tree::Sequence(values.iter().map(|value| string(value)).collect())));
    }
    mapping(fields)
}

fn scalar(value: &TypedValue) -> Plain {
    match value {
        TypedValue::String(text) => string(text),
        other => Tree::Plain(other.text()),
    }
}

fn string(text: &str) -> Plain {
    if is_safe_plain(text) {
        Tree::Plain(text.to_owned())
    } else {
        Tree::String(vec![Piece::Text(text.to_owned())])
    }
}

fn mapping(fields: Vec<(&str, Plain)>) -> Plain {
    Tree::Mapping(fields.into_iter().map(|(name, value)| (string(name), value)).collect())
}

fn text(tree: Plain) -> String {
    let text = |piece| match piece {
        Piece::Text(text) => text,
        Piece::Slot(never) => match never {},
    };
    emit(tree).into_iter().map(text).collect()
}
