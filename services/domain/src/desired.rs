//! What config an agent should run, and the hash that names it.

mod explain;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::agent::Agent;
use crate::ids::{ConfigHash, Digest, InstanceUid, IntentRevision, RolloutId, Timestamp};
use crate::intent::{Assignment, Intent, TemplateRevision};
use crate::rollout::standing::Part;
use crate::rollout::{Mode, Release, Staged, Who};
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
    follows: bool,
    selector: AgentSelector,
    retired_at: Option<Timestamp>,
    /// What agents get: the first that is for an agent.
    layers: Vec<PlannedLayer>,
    rollout: Option<PlannedRollout>,
    is_staged: bool,
}

#[derive(Debug)]
struct PlannedLayer {
    who: PlannedWho,
    template: String,
    version: String,
    files: Vec<PlannedFile>,
    of: Option<RolloutId>,
    frozen: bool,
}

#[derive(Debug)]
enum PlannedWho {
    Everyone,
    Matching(AgentSelector),
    Among(Arc<BTreeSet<InstanceUid>>),
}

/// A rollout that is under way.
#[derive(Debug)]
struct PlannedRollout {
    id: RolloutId,
    mode: Mode,
    /// The exposed ones.
    who: PlannedWho,
    /// Whom it may reach.
    target: Option<AgentSelector>,
    compares: bool,
    apply_deadline: Duration,
}

/// What an agent should run, and its part in rollouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// What it should run.
    pub desired: Desired,
    /// Rollouts that it is watched for.
    pub parts: Vec<Part>,
    /// Rollouts whose change is in the desired config.
    pub given: BTreeSet<RolloutId>,
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
            .filter_map(|assignment| plan_assignment(intent, assignment, &mut bodies))
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

    /// Whether there is an assignment with this name whose changes roll out by a strategy.
    pub fn is_staged(&self, assignment: &str) -> bool {
        self.assignments.iter().any(|of| of.name == assignment && of.is_staged)
    }

    /// Whether a rollout is under way.
    pub fn is_under_way(&self, id: RolloutId) -> bool {
        self.assignments.iter().any(|assignment| assignment.rollout.as_ref().is_some_and(|of| of.id == id))
    }

    /// The rollouts that are under way.
    pub fn under_way(&self) -> impl Iterator<Item = RolloutId> {
        self.assignments.iter().filter_map(|assignment| assignment.rollout.as_ref()).map(|of| of.id)
    }

    /// Whether agents may have the change of a rollout.
    pub fn is_layer(&self, id: RolloutId) -> bool {
        let mut layers = self.assignments.iter().flat_map(|assignment| &assignment.layers);
        layers.any(|layer| layer.of == Some(id))
    }

    /// What this agent should run: the files of all assignments that match, the higher priority
    /// first where two give one file.
    pub fn desired(&self, agent: &Agent, labels: &Labels) -> Desired {
        self.decide(agent, labels).desired
    }

    /// What this agent should run, and its part in rollouts.
    ///
    /// Of a rollout that was halted, an agent is given nothing, and keeps what it has of it: also where it
    /// reports it only now.
    pub fn decide(&self, agent: &Agent, labels: &Labels) -> Decided {
        self.decide_thawed(agent, labels).0
    }

    /// The same, and whether what is frozen was given as if it were not.
    fn decide_thawed(&self, agent: &Agent, labels: &Labels) -> (Decided, bool) {
        let mut thawed = false;
        let decided = self.decide_with(agent, labels, true, &mut thawed);
        let is_reported = match &decided.desired {
            Desired::Config(config) => agent.state.remote_config.hash.as_ref() == Some(&config.hash),
            _ => false,
        };
        match thawed && !is_reported {
            true => (self.decide_with(agent, labels, false, &mut thawed), false),
            false => (decided, true),
        }
    }

    fn decide_with(&self, agent: &Agent, labels: &Labels, thaw: bool, thawed: &mut bool) -> Decided {
        let mut files: BTreeMap<&str, (&PlannedFile, &PlannedAssignment)> = BTreeMap::new();
        let (mut parts, mut given) = (Vec::new(), BTreeSet::new());
        for assignment in self.assignments.iter().filter(|assignment| assignment.is_for(agent, labels)) {
            let layer = assignment.layer(agent, labels, thaw, thawed);
            let of = layer.and_then(|layer| layer.of);
            parts.extend(assignment.rollout.as_ref().and_then(|rollout| rollout.part(agent, labels, of)));
            given.extend(of);
            for file in layer.map_or(&[][..], |layer| &layer.files) {
                files.entry(&file.name).or_insert((file, assignment));
            }
        }
        Decided { desired: compose(files, agent, labels), parts, given }
    }
}

/// The config that these files make for an agent.
fn compose(
    files: BTreeMap<&str, (&PlannedFile, &PlannedAssignment)>,
    agent: &Agent,
    labels: &Labels,
) -> Desired {
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

impl PlannedWho {
    fn is_for(&self, agent: &Agent, labels: &Labels) -> bool {
        match self {
            Self::Everyone => true,
            Self::Matching(selector) => matches(selector, agent, labels),
            Self::Among(uids) => uids.contains(&agent.key.uid),
        }
    }

    fn new(who: &Who, staged: &Staged) -> Self {
        match who {
            Who::Everyone => Self::Everyone,
            Who::Matching(selector) => Self::Matching(selector.clone()),
            Who::Ledger(id) => Self::Among(staged.ledgers.get(id).cloned().unwrap_or_default()),
        }
    }
}

impl PlannedRollout {
    /// The part of an agent that the assignment matches and that gets what this rollout brought.
    fn part(&self, agent: &Agent, labels: &Labels, of: Option<RolloutId>) -> Option<Part> {
        let exposed = self.who.is_for(agent, labels);
        let is_reachable =
            || self.target.as_ref().is_none_or(|target| matches(target, agent, labels)) && self.compares;
        (exposed || is_reachable()).then_some(Part {
            rollout: self.id,
            mode: self.mode,
            exposed,
            given: of == Some(self.id),
            compares: self.compares,
            apply_deadline: self.apply_deadline,
        })
    }
}

fn plan_assignment(
    intent: &Intent,
    assignment: &Assignment,
    bodies: &mut BTreeMap<Digest, CompiledBody>,
) -> Option<PlannedAssignment> {
    // Without a strategy everyone gets what the assignment says, whatever was under way.
    let staged = intent.rollouts.get(&assignment.name);
    let staged = staged.filter(|of| assignment.strategy.is_some() && of.rollout.is_in_effect());
    let mut layers = Vec::new();
    for layer in staged.map(|staged| staged.rollout.layers()).unwrap_or_default() {
        let Some(files) = plan_release(intent, &layer.release, bodies) else { continue };
        let who = staged.map_or(PlannedWho::Everyone, |staged| PlannedWho::new(&layer.who, staged));
        let Release { template, version, .. } = layer.release;
        layers.push(PlannedLayer { who, template, version, files, of: layer.of, frozen: layer.frozen });
    }
    if staged.is_none() {
        let release = Release::of(intent, assignment)?;
        let files = plan_release(intent, &release, bodies)?;
        let (who, Release { template, version, .. }) = (PlannedWho::Everyone, release);
        layers.push(PlannedLayer { who, template, version, files, of: None, frozen: false });
    }
    let rollout = staged.and_then(|staged| {
        let rollout = &staged.rollout;
        Some(PlannedRollout {
            id: rollout.id,
            mode: rollout.mode()?,
            who: PlannedWho::new(&rollout.who(), staged),
            target: rollout.strategy.target.clone(),
            compares: rollout.strategy.compares(),
            apply_deadline: rollout.strategy.apply_deadline,
        })
    });
    let (name, selector) = (assignment.name.clone(), assignment.selector.clone());
    let is_staged = assignment.strategy.is_some();
    let (priority, retired_at) = (assignment.priority, assignment.retired_at);
    let follows = assignment.version.is_none();
    Some(PlannedAssignment { name, priority, follows, selector, retired_at, layers, rollout, is_staged })
}

/// The files of a release.
fn plan_release(
    intent: &Intent,
    release: &Release,
    bodies: &mut BTreeMap<Digest, CompiledBody>,
) -> Option<Vec<PlannedFile>> {
    let revision = intent.template(&release.template, Some(&release.version))?;
    let own_name = release.file.as_ref().unwrap_or(&release.template);
    let files = revision.compiled.files.iter().map(|file| {
        bodies.insert(file.digest, file.body.clone());
        PlannedFile {
            name: file.name.as_ref().unwrap_or(own_name).clone(),
            content_type: file.content_type.clone(),
            digest: file.digest,
            slots: plan_slots(file, revision, &release.values),
            origins: file.slots.iter().map(|slot| Origin::of(&slot.source, &release.values)).collect(),
        }
    });
    Some(files.collect())
}

fn plan_slots(
    file: &CompiledFile,
    revision: &TemplateRevision,
    values: &BTreeMap<String, TypedValue>,
) -> Vec<PlannedSlot> {
    let value_of = |name: &str| {
        let declared = revision.compiled.variables.iter().find(|variable| variable.name == name);
        values.get(name).or_else(|| declared.and_then(|variable| variable.default.as_ref()))
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
    /// What an agent gets that this is for. Of what is frozen it gets what it has, or with `thaw` all of it;
    /// `thawed` says that it got some that it is not known to have.
    fn layer(&self, agent: &Agent, labels: &Labels, thaw: bool, thawed: &mut bool) -> Option<&PlannedLayer> {
        self.layers.iter().find(|layer| {
            let is_held = !layer.frozen || layer.of.is_some_and(|of| agent.state.holding.contains(&of));
            let is_for = layer.who.is_for(agent, labels);
            *thawed |= is_for && !is_held && thaw;
            is_for && (is_held || thaw)
        })
    }

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
