//! What operators want of a tenant's fleet: templates, assignments, labels; and what a set of
//! manifests would change of it.

mod apply;
mod clash;
mod removal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::audit::Entry;
use crate::ids::{Digest, InstanceUid, IntentRevision, Timestamp};
use crate::manifest::{
    AssignmentManifest, Document, Manifest, ManifestError, StrategyManifest, TemplateManifest,
};
use crate::rollout::{Rollout, Staged, Step, StoredStrategy};
use crate::selector::AgentSelector;
use crate::template::{CompiledTemplate, TypedValue, Variable, check_typed_values, check_values};

pub use clash::Clash;
pub use removal::{Removal, RemovalError, RemoveTarget, plan_removal, users_of_template};

/// Everything that operators declared for one tenant, but for labels.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Intent {
    /// Number of this state.
    pub revision: IntentRevision,
    /// Revisions of templates by name, oldest first; never empty.
    pub templates: BTreeMap<String, Vec<TemplateRevision>>,
    /// Assignments by name.
    pub assignments: BTreeMap<String, Assignment>,
    /// The revision below which nothing that an assignment gave may be offered any more, by its name.
    /// A floor outlives its assignment.
    pub floors: BTreeMap<String, IntentRevision>,
    /// The revision at which another try of a failed config was last asked for, by agent. The oldest ones
    /// are forgotten: agents have been decided on since.
    pub retries: BTreeMap<InstanceUid, IntentRevision>,
    /// Rollout strategies by name.
    pub strategies: BTreeMap<String, StoredStrategy>,
    /// The latest rollout of each assignment that had one, by the assignment's name.
    pub rollouts: BTreeMap<String, Staged>,
    /// Who owns an object: the source that may prune it. Objects that nobody owns are not here.
    pub owners: BTreeMap<ObjectRef, String>,
}

/// An object of an intent: its kind and its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectRef {
    /// The kind of its manifests.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// Agents of a tenant whose [retries](Intent::retries) are kept at least.
pub const MAX_RETRIES: usize = 10_000;

/// An immutable version of a config template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TemplateRevision {
    /// Identifier of this revision, a UUIDv7.
    pub id: Uuid,
    /// The template's name.
    pub name: String,
    /// Its version, unique for the name.
    pub version: String,
    /// Digest of what was declared: the same version can have no other content.
    pub digest: Digest,
    /// The manifest as it was applied.
    pub source: String,
    /// The compiled form.
    pub compiled: CompiledTemplate,
    /// When it was applied.
    pub created_at: Timestamp,
    /// Who applied it; empty where nobody was asked.
    pub author: String,
    /// Why, in the author's words; may be empty.
    pub message: String,
}

/// Gives a template's files to the agents that a selector matches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// Its name.
    pub name: String,
    /// Name of the template.
    pub template: String,
    /// Version of the template; `None` follows the latest.
    pub version: Option<String>,
    /// Values of the template's variables.
    pub values: BTreeMap<String, TypedValue>,
    /// Which agents.
    pub selector: AgentSelector,
    /// Of two assignments with one file, the higher priority gives it.
    pub priority: i32,
    /// Name of the file made from the template's `config`; the template's name where absent.
    pub file: Option<String>,
    /// Name of the strategy by which changes of template, values and file reach agents; none: all at once.
    #[serde(default)]
    pub strategy: Option<String>,
    /// What its agents run once it is deleted.
    pub on_removal: OnRemoval,
    /// When it was deleted so that its agents keep what it gave. It is for nobody else from then on: not
    /// for agents that were first seen later.
    pub retired_at: Option<Timestamp>,
    /// When it was first applied.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// What agents run once the assignment is deleted that gave them a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnRemoval {
    /// What the other assignments give. An agent to which none gives anything keeps what it runs: nobody
    /// is sent an empty config.
    #[default]
    FallBack,
    /// What the assignment gave last.
    Keep,
}

impl OnRemoval {
    /// Both.
    pub const ALL: [Self; 2] = [Self::FallBack, Self::Keep];

    /// Its name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::FallBack => "fall_back",
            Self::Keep => "keep",
        }
    }

    /// Whether it is the default, which manifests leave out.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Intent {
    /// The revision of a template with this version, or the latest.
    pub fn template(&self, name: &str, version: Option<&str>) -> Option<&TemplateRevision> {
        let revisions = self.templates.get(name)?;
        match version {
            Some(version) => revisions.iter().find(|revision| revision.version == version),
            None => revisions.last(),
        }
    }
}

/// What applying manifests did, or would do, to one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The manifest's kind.
    pub kind: String,
    /// The object's name.
    pub name: String,
    /// The version, of a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What happened.
    pub action: Action,
    /// The object's manifest, for the history; not of a template, whose revision has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
}

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Created,
    /// It was changed.
    Configured,
    /// It was so already.
    Unchanged,
    /// It is gone.
    Deleted,
    /// It is for nobody new; its agents keep what it gave.
    Retired,
}

impl Action {
    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
            Self::Retired => "retired",
        }
    }
}

/// Who made a change, when, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Made {
    /// When.
    pub at: Timestamp,
    /// Who: a person, a service account, or `anonymous`.
    pub author: String,
    /// Why, in the author's words; may be empty.
    pub message: String,
}

/// A change of the intent, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeRecord {
    /// The revision that it made.
    pub revision: IntentRevision,
    /// Who made it, when, and why.
    pub made: Made,
    /// What it did, without the objects that it left as they were.
    pub outcomes: Vec<Outcome>,
}

/// Longest message of a change, in bytes.
pub const MAX_MESSAGE: usize = 1000;

/// What is to be written so that manifests take effect. Written as one, or not at all.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct IntentChange {
    /// The revision that the change was planned on.
    pub planned_on: IntentRevision,
    /// New template revisions, in the order of the manifests.
    pub templates: Vec<TemplateRevision>,
    /// New and changed assignments.
    pub assignments: Vec<Assignment>,
    /// New and changed strategies.
    pub strategies: Vec<StoredStrategy>,
    /// Rollouts that begin. The store gives each the revision of the change.
    pub new_rollouts: Vec<Rollout>,
    /// Rollouts that this supersedes; refused if one has moved.
    pub rollouts: Vec<Step>,
    /// Assignments that are deleted.
    pub removed_assignments: BTreeSet<String>,
    /// Templates that are deleted, with all their versions.
    pub removed_templates: BTreeSet<String>,
    /// Owners that change; `None` for nobody any more.
    pub owners: BTreeMap<ObjectRef, Option<String>>,
    /// Who makes the change: with it, the change is remembered.
    pub made: Option<Made>,
    /// Assignments whose floor rises to the new revision: what they gave before is superseded.
    pub floors: BTreeSet<String>,
    /// Agents that are to try again what they could not apply.
    pub retries: BTreeSet<InstanceUid>,
    /// What happens to each manifest's object, in the order of the manifests.
    pub outcomes: Vec<Outcome>,
    /// What is written of it in the audit log.
    pub audit: Option<Entry>,
}

impl IntentChange {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.templates.is_empty()
            && self.assignments.is_empty()
            && self.removed_assignments.is_empty()
            && self.removed_templates.is_empty()
            && self.owners.is_empty()
            && self.retries.is_empty()
            && self.strategies.is_empty()
            && self.new_rollouts.is_empty()
            && self.rollouts.is_empty()
    }

    /// The change as this author makes it.
    pub fn signed(mut self, made: Made) -> Self {
        for template in &mut self.templates {
            template.author.clone_from(&made.author);
            template.message.clone_from(&made.message);
        }
        self.made = Some(made);
        self
    }

    /// Says in what is remembered that the change was made although this is proven wrong.
    pub fn force(&mut self, wrong: &str) {
        if let Some(made) = &mut self.made {
            let before = if made.message.is_empty() { "" } else { "\n" };
            made.message.push_str(&format!("{before}forced: {wrong}"));
            made.message.truncate(made.message.floor_char_boundary(2 * MAX_MESSAGE));
        }
    }

    /// What is remembered of the change once it has made this revision.
    pub fn record(&self, revision: IntentRevision) -> Option<ChangeRecord> {
        let outcomes = self.outcomes.iter().filter(|outcome| outcome.action != Action::Unchanged);
        Some(ChangeRecord { revision, made: self.made.clone()?, outcomes: outcomes.cloned().collect() })
    }
}

/// Plans the effect of manifests on an intent. `new_id` gives an identifier for each new revision.
///
/// # Errors
/// Every problem found, with its place in the manifests; then nothing is to be written. Also an
/// assignment already stored that a new template version would break is a problem.
pub fn plan(
    intent: &Intent,
    documents: &[Document],
    now: Timestamp,
    mut new_id: impl FnMut() -> Uuid,
) -> Result<IntentChange, Vec<ManifestError>> {
    let mut after = intent.clone();
    let mut change = IntentChange { planned_on: intent.revision, ..IntentChange::default() };
    let mut errors = Vec::new();
    // Templates first: an assignment may stand before its template.
    for document in documents {
        if let Manifest::ConfigTemplate(manifest) = &document.manifest {
            match plan_template(&mut after, manifest, document, now, &mut new_id) {
                Ok((outcome, revision)) => {
                    change.outcomes.push(outcome);
                    change.templates.extend(revision);
                }
                Err(problems) => errors.extend(problems),
            }
        }
    }
    for document in documents {
        if let Manifest::RolloutStrategy(manifest) = &document.manifest {
            let (outcome, stored) = plan_strategy(&mut after, manifest, now);
            change.outcomes.push(outcome);
            change.strategies.extend(stored);
        }
    }
    for document in documents {
        if let Manifest::ConfigAssignment(manifest) = &document.manifest {
            match plan_assignment(&mut after, manifest, document, now) {
                Ok((outcome, assignment)) => {
                    change.outcomes.push(outcome);
                    change.assignments.extend(assignment);
                }
                Err(problems) => errors.extend(problems),
            }
        }
    }
    change.floors = superseded(intent, &change);
    if errors.is_empty() {
        errors.extend(broken_followers(&after, &change, documents));
    }
    if errors.is_empty() { Ok(change) } else { Err(errors) }
}

/// The stored assignments that give something else after a change.
fn superseded(before: &Intent, change: &IntentChange) -> BTreeSet<String> {
    let is_changed = |assignment: &&Assignment| {
        let follows = assignment.version.is_none()
            && change.templates.iter().any(|template| template.name == assignment.template);
        follows || change.assignments.iter().any(|changed| changed.name == assignment.name)
    };
    before.assignments.values().filter(is_changed).map(|assignment| assignment.name.clone()).collect()
}

fn plan_template(
    after: &mut Intent,
    manifest: &TemplateManifest,
    document: &Document,
    now: Timestamp,
    new_id: &mut impl FnMut() -> Uuid,
) -> Result<(Outcome, Option<TemplateRevision>), Vec<ManifestError>> {
    let compiled = manifest.compile()?;
    let digest = template_digest(&compiled);
    let revisions = after.templates.entry(manifest.name.clone()).or_default();
    let known = match &manifest.version {
        Some(version) => revisions.iter().find(|revision| revision.version == *version),
        None => revisions
            .last()
            .filter(|revision| revision.source == manifest.source || revision.digest == digest),
    };
    let outcome = |version: &str, action| Outcome {
        kind: "ConfigTemplate".to_owned(),
        name: manifest.name.clone(),
        version: Some(version.to_owned()),
        action,
        manifest: None,
    };
    if let Some(known) = known {
        // The text first: what an older program compiled from it may differ.
        if known.source == manifest.source || known.digest == digest {
            return Ok((outcome(&known.version, Action::Unchanged), None));
        }
        return Err(vec![ManifestError {
            line: document.span.line,
            column: document.span.column,
            field: "metadata.version".to_owned(),
            message: format!(
                "version {:?} of template {:?} exists with other content: versions never change, give this one another version",
                known.version, manifest.name
            ),
        }]);
    }
    let version = manifest.version.clone().unwrap_or_else(|| next_version(revisions));
    let action = if revisions.is_empty() { Action::Created } else { Action::Configured };
    let revision = TemplateRevision {
        id: new_id(),
        name: manifest.name.clone(),
        version: version.clone(),
        digest,
        source: manifest.source.clone(),
        compiled,
        created_at: now,
        author: String::new(),
        message: String::new(),
    };
    revisions.push(revision.clone());
    Ok((outcome(&version, action), Some(revision)))
}

/// The version of a template that is applied without one: the next whole number.
fn next_version(revisions: &[TemplateRevision]) -> String {
    let highest = revisions.iter().filter_map(|revision| revision.version.parse::<u32>().ok()).max();
    highest.unwrap_or(0).saturating_add(1).to_string()
}

/// Digest of all that a template declares: variables and files.
fn template_digest(compiled: &CompiledTemplate) -> Digest {
    // Serde writes a struct's fields in their order and there is no map of unstable order in it.
    let text = serde_json::to_vec(compiled).unwrap_or_default();
    Digest::of_parts([b"muster-template-v1".as_slice(), &text])
}

/// What a strategy manifest changes. Rollouts that have begun keep the strategy of before.
fn plan_strategy(
    after: &mut Intent,
    manifest: &StrategyManifest,
    now: Timestamp,
) -> (Outcome, Option<StoredStrategy>) {
    let outcome = |action| Outcome {
        kind: "RolloutStrategy".to_owned(),
        name: manifest.name.clone(),
        version: None,
        action,
        manifest: Some(manifest.source.clone()),
    };
    let known = after.strategies.get(&manifest.name);
    if known.is_some_and(|known| known.strategy == manifest.strategy) {
        return (outcome(Action::Unchanged), None);
    }
    let action = if known.is_some() { Action::Configured } else { Action::Created };
    let stored = StoredStrategy {
        name: manifest.name.clone(),
        strategy: manifest.strategy.clone(),
        created_at: known.map_or(now, |known| known.created_at),
        updated_at: now,
    };
    after.strategies.insert(manifest.name.clone(), stored.clone());
    (outcome(action), Some(stored))
}

fn plan_assignment(
    after: &mut Intent,
    manifest: &AssignmentManifest,
    document: &Document,
    now: Timestamp,
) -> Result<(Outcome, Option<Assignment>), Vec<ManifestError>> {
    let problem = |field: &str, message: String| {
        vec![ManifestError {
            line: document.span.line,
            column: document.span.column,
            field: field.to_owned(),
            message,
        }]
    };
    let reference = &manifest.template;
    if !after.templates.contains_key(&reference.name) {
        return Err(problem(
            "spec.template.name",
            format!("there is no template {:?}: apply it first, or in the same file", reference.name),
        ));
    }
    let Some(revision) = after.template(&reference.name, reference.version.as_deref()) else {
        return Err(problem(
            "spec.template.version",
            format!(
                "template {:?} has no version {:?}: it has {}",
                reference.name,
                reference.version.as_deref().unwrap_or_default(),
                versions(after, &reference.name)
            ),
        ));
    };
    let values = check_values(&revision.compiled.variables, &manifest.values).map_err(|problems| {
        problems.into_iter().map(|problem| problem.at(document.span)).collect::<Vec<_>>()
    })?;
    if let Some(name) = &manifest.strategy
        && !after.strategies.contains_key(name)
    {
        return Err(problem(
            "spec.rollout.strategy",
            format!("there is no strategy {name:?}: apply it first, or in the same file"),
        ));
    }
    let assignment = Assignment {
        name: manifest.name.clone(),
        template: reference.name.clone(),
        version: reference.version.clone(),
        values,
        selector: manifest.selector.clone(),
        priority: manifest.priority,
        file: manifest.file.clone(),
        on_removal: manifest.on_removal,
        retired_at: None,
        strategy: manifest.strategy.clone(),
        created_at: now,
        updated_at: now,
    };
    let outcome = |action, assignment: Option<&Assignment>| Outcome {
        kind: "ConfigAssignment".to_owned(),
        name: manifest.name.clone(),
        version: None,
        action,
        manifest: assignment.map(Assignment::manifest),
    };
    let known = after.assignments.get(&manifest.name);
    let assignment = match known {
        Some(known) => {
            let assignment = Assignment { created_at: known.created_at, ..assignment };
            if (Assignment { updated_at: known.updated_at, ..assignment.clone() }) == *known {
                return Ok((outcome(Action::Unchanged, None), None));
            }
            assignment
        }
        None => assignment,
    };
    let action = if known.is_some() { Action::Configured } else { Action::Created };
    after.assignments.insert(manifest.name.clone(), assignment.clone());
    Ok((outcome(action, Some(&assignment)), Some(assignment)))
}

fn versions(intent: &Intent, template: &str) -> String {
    let revisions = intent.templates.get(template).into_iter().flatten();
    revisions.map(|revision| format!("{:?}", revision.version)).collect::<Vec<_>>().join(", ")
}

/// Stored assignments that follow the latest version of a template and do not fit the new one.
fn broken_followers(after: &Intent, change: &IntentChange, documents: &[Document]) -> Vec<ManifestError> {
    let mut errors = Vec::new();
    for template in &change.templates {
        let followers = after.assignments.values().filter(|assignment| {
            assignment.template == template.name
                && assignment.version.is_none()
                && !change.assignments.iter().any(|changed| changed.name == assignment.name)
        });
        let span = documents
            .iter()
            .find(|document| {
                matches!(&document.manifest, Manifest::ConfigTemplate(manifest) if manifest.name == template.name)
            })
            .map(|document| document.span);
        for assignment in followers {
            for problem in follower_problems(&template.compiled.variables, assignment) {
                errors.push(ManifestError {
                    line: span.map_or(1, |span| span.line),
                    column: span.map_or(1, |span| span.column),
                    field: "spec.variables".to_owned(),
                    message: format!(
                        "assignment {:?} follows this template and would break: {problem}; change the assignment in the same file",
                        assignment.name
                    ),
                });
            }
        }
    }
    errors
}

fn follower_problems(variables: &[Variable], assignment: &Assignment) -> Vec<String> {
    match check_typed_values(variables, &assignment.values) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.into_iter().map(|problem| problem.to_string()).collect(),
    }
}
