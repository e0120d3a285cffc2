//! `kind: ConfigAssignment`.

use super::reader::{Errors, Fields, join, text};
use super::{AssignmentManifest, TemplateRef, name, version};
use crate::intent::OnRemoval;
use crate::selector::{AgentSelector, Condition, MAX_AGENT_IDS, Requirement, Selector, agent_id};
use crate::template::{GivenValue, GivenValues, check_file_name};
use crate::yaml::{Located, Node, brief, did_you_mean};

/// Reads the spec of an assignment of this name; without a name only errors are found.
pub(super) fn read(node: &Node, own_name: Option<String>, errors: &mut Errors) -> Option<AssignmentManifest> {
    let known = ["template", "values", "selector", "priority", "file", "on_removal", "rollout"];
    let fields = errors.fields(node, "spec", &known)?;
    let template = fields.required("template", errors).and_then(|node| template(node, errors));
    let values = fields.get("values").map(|node| values(node, errors));
    let values = values.unwrap_or(GivenValues { entries: Vec::new(), span: node.span });
    let selector = match fields.get("selector") {
        Some(node) => {
            let known = ["matchLabels", "matchExpressions", "agent_ids"];
            selector(node, "spec.selector", &known, errors)
        }
        None => {
            errors.push(node.span, "spec.selector", "is missing: add it; `selector: {}` matches every agent");
            None
        }
    };
    let priority = priority(&fields, errors);
    let file = file(&fields, errors);
    let on_removal = on_removal(&fields, errors);
    let strategy = fields.get("rollout").and_then(|node| rollout(node, errors));
    Some(AssignmentManifest {
        name: own_name?,
        template: template?,
        values,
        selector: selector?,
        priority,
        file,
        on_removal,
        strategy,
    })
}

fn template(node: &Node, errors: &mut Errors) -> Option<TemplateRef> {
    let fields = errors.fields(node, "spec.template", &["name", "version"])?;
    let version = version(&fields, errors);
    Some(TemplateRef { name: name(&fields, "name", errors)?, version })
}

fn values(node: &Node, errors: &mut Errors) -> GivenValues {
    let entries = errors.mapping(node, "spec.values").unwrap_or_default().iter().map(|(key, value)| {
        GivenValue { name: Located { value: text(key).to_owned(), span: key.span }, value: value.clone() }
    });
    GivenValues { entries: entries.collect(), span: node.span }
}

fn priority(fields: &Fields<'_>, errors: &mut Errors) -> i32 {
    let Some(node) = fields.get("priority") else { return 0 };
    let priority = node.as_i64().and_then(|number| i32::try_from(number).ok());
    if priority.is_none() {
        let message = format!("must be a whole number from {} to {}", i32::MIN, i32::MAX);
        errors.push(node.span, "spec.priority", message);
    }
    priority.unwrap_or_default()
}

fn file(fields: &Fields<'_>, errors: &mut Errors) -> Option<String> {
    let node = fields.get("file")?;
    let name = errors.string(node, "spec.file")?;
    if let Err(message) = check_file_name(name) {
        errors.push(node.span, "spec.file", message);
    }
    Some(name.to_owned())
}

fn on_removal(fields: &Fields<'_>, errors: &mut Errors) -> OnRemoval {
    let Some(node) = fields.get("on_removal") else { return OnRemoval::default() };
    let found = errors.string(node, "spec.on_removal").map(|text| {
        let known = OnRemoval::ALL.into_iter().find(|known| known.name() == text);
        if known.is_none() {
            let names = OnRemoval::ALL.map(OnRemoval::name);
            let hint = did_you_mean(text, names);
            let message = format!("{} is not known: write one of {}{hint}", brief(text), names.join(", "));
            errors.push(node.span, "spec.on_removal", message);
        }
        known.unwrap_or_default()
    });
    found.unwrap_or_default()
}

/// The name of the strategy by which changes roll out.
fn rollout(node: &Node, errors: &mut Errors) -> Option<String> {
    let fields = errors.fields(node, "spec.rollout", &["strategy"])?;
    fields.get("strategy")?;
    name(&fields, "strategy", errors)
}

/// Reads a selector with these fields: labels, under whichever name, expressions and ids.
pub(super) fn selector(
    node: &Node,
    path: &str,
    known: &[&str; 3],
    errors: &mut Errors,
) -> Option<AgentSelector> {
    let fields = errors.fields(node, path, known)?;
    let [labels, expressions, ids] = known.map(|field| (field, join(path, field)));
    let mut requirements = Vec::new();
    if let Some(node) = fields.get(labels.0) {
        let found = errors.strings(node, &labels.1);
        refuse_empty(node, &labels.1, errors);
        for (key, value) in found {
            match Requirement::new(key.value, Condition::In(vec![value.to_owned()])) {
                Ok(requirement) => requirements.push(requirement),
                Err(error) => errors.push(key.span, &labels.1, error.to_string()),
            }
        }
    }
    if let Some(node) = fields.get(expressions.0) {
        let items = errors.list(node, &expressions.1);
        refuse_empty(node, &expressions.1, errors);
        for (n, item) in items.iter().enumerate() {
            requirements.extend(expression(item, &format!("{}[{n}]", expressions.1), errors));
        }
    }
    let mut agent_ids = Vec::new();
    if let Some(node) = fields.get(ids.0) {
        let found = errors.string_list(node, &ids.1);
        refuse_empty(node, &ids.1, errors);
        if found.len() > MAX_AGENT_IDS {
            let message = format!("has more than {MAX_AGENT_IDS} agent ids: select by a label");
            errors.push(node.span, &ids.1, message);
            return None;
        }
        for id in found {
            match agent_id(id.value) {
                Ok(id) => agent_ids.push(id),
                Err(error) => errors.push(id.span, &ids.1, error.to_string()),
            }
        }
    }
    let selector = Selector::new(requirements).and_then(|selector| AgentSelector::new(selector, agent_ids));
    selector.map_err(|error| errors.push(node.span, path, error.to_string())).ok()
}

/// Refuses an empty list or mapping, which would look like no agents and mean every agent.
fn refuse_empty(node: &Node, path: &str, errors: &mut Errors) {
    if node.as_sequence().is_some_and(<[Node]>::is_empty)
        || node.as_mapping().is_some_and(<[(Node, Node)]>::is_empty)
    {
        errors.push(node.span, path, "is empty: remove it, or fill it; `selector: {}` matches every agent");
    }
}

fn expression(node: &Node, path: &str, errors: &mut Errors) -> Option<Requirement> {
    const OPERATORS: [&str; 4] = ["In", "NotIn", "Exists", "DoesNotExist"];
    let fields = errors.fields(node, path, &["key", "operator", "values"])?;
    let key = fields.string("key", errors);
    let operator = fields.string("operator", errors)?;
    let values = fields.get("values");
    let condition = match operator {
        "In" | "NotIn" => {
            let node = fields.required("values", errors)?;
            let strings = errors.string_list(node, &fields.path("values"));
            if strings.len() != node.as_sequence()?.len() {
                return None;
            }
            let values = strings.into_iter().map(|value| value.value).collect();
            if operator == "In" { Condition::In(values) } else { Condition::NotIn(values) }
        }
        "Exists" | "DoesNotExist" => {
            if let Some(node) = values {
                errors.push(
                    node.span,
                    &fields.path("values"),
                    format!("has no place with {operator}: remove it"),
                );
            }
            if operator == "Exists" { Condition::Exists } else { Condition::DoesNotExist }
        }
        other => {
            let hint = did_you_mean(other, OPERATORS);
            let message =
                format!("{} is not an operator: write one of {}{hint}", brief(other), OPERATORS.join(", "));
            errors.push(fields.place("operator"), &fields.path("operator"), message);
            return None;
        }
    };
    Requirement::new(key?, condition).map_err(|error| errors.push(node.span, path, error.to_string())).ok()
}
