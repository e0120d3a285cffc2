//! What config an agent should run, and the hash that names it.

mod explain;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::agent::Agent;
use crate::ids::{ConfigHash, Digest, InstanceUid, IntentRevision, Timestamp};
use crate::intent::{Assignment, Intent, TemplateRevision};
use crate::selector::AgentSelector;
use crate::template::{CompiledBody, CompiledFile, Slot, SlotSource, TypedValue};

pub use explain::{ExplainedAssignment, ExplainedFile, ExplainedValue, Explanation, Origin};

/// Labels that operators gave an agent.
pub type Labels = BTreeMap<String, String>;

/// Most bytes that the slots of all files of one agent may hold together; more of them hold the agent
/// back. They travel in one message, with room for what stands around them.
pub const MAX_SLOT_BYTES: usize = 768 << 10;
/// What a slot counts beside its text.
const SLOT_ROOM: usize = 4;

/// Label that holds an agent's operator-set name, by which lists of agent ids may call it.
pub const NAME_LABEL: &str = "name";

/// A config for one agent: names of compiled bodies and what goes into their slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredConfig {
    /// AgentRemoteConfig.config_hash: a digest over the inputs, not over the rendered text, so that
    /// it is known without rendering and two versions of the program agree on it.
    pub hash: ConfigHash,
    /// Its files, by name.
    pub files: Vec<DesiredFile>,
    /// Names of the assignments that gave the files.
    pub assignments: BTreeSet<String>,
}

/// One file of a [`DesiredConfig`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredFile {
    /// Key in the config map.
    pub name: String,
    /// MIME type.
    pub content_type: String,
    /// Digest of the compiled body.
    pub digest: Digest,
    /// Text for each slot, ready to be written.
    pub slots: Vec<String>,
}

/// What an agent should run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Desired {
    /// No assignment matches: the agent keeps what it has.
    Nothing,
    /// An assignment matches, but something that the template needs of this agent is missing.
    Held {
        /// What is missing, for people.
        reason: String,
    },
    /// This config.
    Config(DesiredConfig),
}

/// A tenant's intent, made ready to be asked for many agents.
#[derive(Debug)]
pub struct Planner {
    revision: IntentRevision,
    /// Highest priority first.
    assignments: Vec<PlannedAssignment>,
    bodies: BTreeMap<Digest, CompiledBody>,
    retries: BTreeMap<InstanceUid, IntentRevision>,
}

#[derive(Debug)]
struct PlannedAssignment {
    name: String,
    priority: i32,
    template: String,
    version: String,
    follows: bool,
    selector: AgentSelector,
    retired_at: Option<Timestamp>,
    files: Vec<PlannedFile>,
}

#[derive(Debug)]
struct PlannedFile {
    name: String,
    content_type: String,
    digest: Digest,
    slots: Vec<PlannedSlot>,
    /// Where the slots' values come from.
    origins: Vec<Origin>,
}

#[derive(Debug)]
enum PlannedSlot {
    /// The same for all agents: canonical form and text.
    Fixed { canonical: String, text: String },
    /// The agent's own.
    OfAgent(Slot),
    /// A variable without a value: refused when the manifest was applied.
    Missing(String),
}

impl Planner {
    /// Prepares an intent.
    pub fn new(intent: &Intent) -> Self {
        let mut assignments: Vec<&Assignment> = intent.assignments.values().collect();
        assignments.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
        let mut bodies = BTreeMap::new();
        let assignments = assignments
            .into_iter()
            .filter_map(|assignment| {
                let revision = intent.template(&assignment.template, assignment.version.as_deref())?;
                for file in &revision.compiled.files {
                    bodies.insert(file.digest, file.body.clone());
                }
                Some(plan_assignment(assignment, revision))
            })
            .collect();
        Self { revision: intent.revision, assignments, bodies, retries: intent.retries.clone() }
    }

    /// The intent's revision.
    pub fn revision(&self) -> IntentRevision {
        self.revision
    }

    /// The revision at which an operator last asked that this agent try again; zero if none did.
    pub fn retry(&self, uid: InstanceUid) -> IntentRevision {
        self.retries.get(&uid).copied().unwrap_or_default()
    }

    /// A compiled body that some assignment uses.
    pub fn body(&self, digest: &Digest) -> Option<&CompiledBody> {
        self.bodies.get(digest)
    }

    /// What this agent should run: the files of all assignments that match, the higher priority
    /// first where two give one file.
    pub fn desired(&self, agent: &Agent, labels: &Labels) -> Desired {
        let mut files: BTreeMap<&str, (&PlannedFile, &PlannedAssignment)> = BTreeMap::new();
        for assignment in self.assignments.iter().filter(|assignment| assignment.is_for(agent, labels)) {
            for file in &assignment.files {
                files.entry(&file.name).or_insert((file, assignment));
            }
        }
        if files.is_empty() {
            return Desired::Nothing;
        }
        let mut parts = vec![Cow::Borrowed(b"muster-config-v1".as_slice())];
        let mut desired = Vec::with_capacity(files.len());
        let assignments = files.values().map(|(_, assignment)| assignment.name.clone()).collect();
        let mut slot_bytes = 0;
        for (file, assignment) in files.into_values() {
            parts.push(Cow::Borrowed(file.name.as_bytes()));
            parts.push(Cow::Borrowed(file.content_type.as_bytes()));
            parts.push(Cow::Borrowed(&file.digest.0));
            parts.push(Cow::Owned((file.slots.len() as u64).to_be_bytes().to_vec()));
            let held = |why: &str| Desired::Held {
                reason: format!("assignment {:?}, file {:?}: {why}", assignment.name, file.name),
            };
            let mut slots = Vec::with_capacity(file.slots.len());
            for slot in &file.slots {
                match slot.value(agent, labels) {
                    Ok((canonical, text)) => {
                        parts.push(Cow::Owned(canonical.into_bytes()));
                        slots.push(text);
                    }
                    Err(missing) => return held(&missing),
                }
            }
            slot_bytes += slots.iter().map(|text| text.len() + SLOT_ROOM).sum::<usize>();
            if slot_bytes > MAX_SLOT_BYTES {
                return held(&format!(
                    "with its values, those of the agent's files are longer than {MAX_SLOT_BYTES} bytes together: make them shorter, or move what is the same for all agents into the template's text"
                ));
            }
            desired.push(DesiredFile {
                name: file.name.clone(),
                content_type: file.content_type.clone(),
                digest: file.digest,
                slots,
            });
        }
        let hash = Digest::of_parts(parts.iter().map(AsRef::as_ref)).into();
        Desired::Config(DesiredConfig { hash, files: desired, assignments })
    }
}

/// Whether a selector matches an agent. A label hides an attribute with the same key.
pub fn matches(selector: &AgentSelector, agent: &Agent, labels: &Labels) -> bool {
    let name = labels.get(NAME_LABEL).map(String::as_str);
    selector.matches(&agent.key.uid.to_string(), name, |key| match labels.get(key) {
        Some(label) => Some(Cow::Borrowed(label.as_str())),
        None => agent.state.description.as_ref()?.attribute(key).map(attribute_text),
    })
}

/// An attribute's value as selectors compare it: text as it is, anything else as JSON.
fn attribute_text(value: &serde_json::Value) -> Cow<'_, str> {
    match value {
        serde_json::Value::String(text) => Cow::Borrowed(text),
        other => Cow::Owned(other.to_string()),
    }
}

fn plan_assignment(assignment: &Assignment, revision: &TemplateRevision) -> PlannedAssignment {
    let own_name = assignment.file.as_ref().unwrap_or(&assignment.template);
    let files = revision.compiled.files.iter().map(|file| PlannedFile {
        name: file.name.as_ref().unwrap_or(own_name).clone(),
        content_type: file.content_type.clone(),
        digest: file.digest,
        slots: plan_slots(file, revision, assignment),
        origins: file.slots.iter().map(|slot| Origin::of(&slot.source, assignment)).collect(),
    });
    PlannedAssignment {
        name: assignment.name.clone(),
        priority: assignment.priority,
        template: assignment.template.clone(),
        version: revision.version.clone(),
        follows: assignment.version.is_none(),
        selector: assignment.selector.clone(),
        retired_at: assignment.retired_at,
        files: files.collect(),
    }
}

fn plan_slots(file: &CompiledFile, revision: &TemplateRevision, assignment: &Assignment) -> Vec<PlannedSlot> {
    let value_of = |name: &str| {
        let declared = revision.compiled.variables.iter().find(|variable| variable.name == name);
        assignment.values.get(name).or_else(|| declared.and_then(|variable| variable.default.as_ref()))
    };
    let plan = |slot: &Slot| match &slot.source {
        SlotSource::Variable(name) => match value_of(name) {
            Some(value) => {
                PlannedSlot::Fixed { canonical: value.canonical(), text: slot.encoding.encode(value) }
            }
            None => PlannedSlot::Missing(name.clone()),
        },
        SlotSource::AgentAttribute(_) | SlotSource::AgentLabel(_) => PlannedSlot::OfAgent(slot.clone()),
    };
    file.slots.iter().map(plan).collect()
}

impl PlannedAssignment {
    fn is_for(&self, agent: &Agent, labels: &Labels) -> bool {
        let is_known = |retired_at: Timestamp| agent.state.first_seen < retired_at;
        self.retired_at.is_none_or(is_known) && matches(&self.selector, agent, labels)
    }
}

impl PlannedSlot {
    /// Canonical form and text of this slot for one agent, or what is missing.
    fn value(&self, agent: &Agent, labels: &Labels) -> Result<(String, String), String> {
        let of_agent = |slot: &Slot, value: TypedValue| (value.canonical(), slot.encoding.encode(&value));
        match self {
            Self::Fixed { canonical, text } => Ok((canonical.clone(), text.clone())),
            Self::Missing(name) => Err(format!("variable {name:?} has no value")),
            Self::OfAgent(slot) => match &slot.source {
                SlotSource::Variable(name) => Err(format!("variable {name:?} has no value")),
                SlotSource::AgentLabel(key) => labels
                    .get(key)
                    .map(|value| of_agent(slot, TypedValue::String(value.clone())))
                    .ok_or_else(|| format!("the agent has no label {key:?}")),
                SlotSource::AgentAttribute(key) => agent
                    .state
                    .description
                    .as_ref()
                    .and_then(|description| description.attribute(key))
                    .map(|value| of_agent(slot, typed(value)))
                    .ok_or_else(|| format!("the agent has no attribute {key:?}")),
            },
        }
    }
}

/// An attribute's value as a template's value: scalars keep their kind, the rest is JSON text.
fn typed(value: &serde_json::Value) -> TypedValue {
    match value {
        serde_json::Value::String(text) => TypedValue::String(text.clone()),
        serde_json::Value::Bool(flag) => TypedValue::Bool(*flag),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => TypedValue::Int(whole),
            (None, Some(float)) => TypedValue::Float(float),
            (None, None) => TypedValue::String(number.to_string()),
        },
        other => TypedValue::String(other.to_string()),
    }
}
