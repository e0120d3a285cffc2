//! What operators want of a tenant's fleet: templates, assignments, labels; and what a set of
//! manifests would change of it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::audit::Entry;
use crate::ids::{Digest, InstanceUid, IntentRevision, Timestamp};
use crate::manifest::{AssignmentManifest, Document, Manifest, ManifestError, TemplateManifest};
use crate::selector::AgentSelector;
use crate::template::{CompiledTemplate, TypedValue, Variable, check_typed_values, check_values};

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
    /// When it was first applied.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
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
}

/// What is to be written so that manifests take effect. Written as one, or not at all.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct IntentChange {
    /// The revision that the change was planned on.
    pub planned_on: IntentRevision,
    /// New template revisions, in the order of the manifests.
    pub templates: Vec<TemplateRevision>,
    /// New and changed assignments.
    pub assignments: Vec<Assignment>,
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
        self.templates.is_empty() && self.assignments.is_empty() && self.retries.is_empty()
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
    let assignment = Assignment {
        name: manifest.name.clone(),
        template: reference.name.clone(),
        version: reference.version.clone(),
        values,
        selector: manifest.selector.clone(),
        priority: manifest.priority,
        file: manifest.file.clone(),
        created_at: now,
        updated_at: now,
    };
    let outcome = |action| Outcome {
        kind: "ConfigAssignment".to_owned(),
        name: manifest.name.clone(),
        version: None,
        action,
    };
    let known = after.assignments.get(&manifest.name);
    let assignment = match known {
        Some(known) => {
            let assignment = Assignment { created_at: known.created_at, ..assignment };
            if (Assignment { updated_at: known.updated_at, ..assignment.clone() }) == *known {
                return Ok((outcome(Action::Unchanged), None));
            }
            assignment
        }
        None => assignment,
    };
    let action = if known.is_some() { Action::Configured } else { Action::Created };
    after.assignments.insert(manifest.name.clone(), assignment.clone());
    Ok((outcome(action), Some(assignment)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    const TEMPLATE: &str = "
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: base, version: v1}
spec:
  variables: [{name: size, type: int, required: true}]
  config: {size: '{{.size}}'}
---
";
    const ASSIGNMENT: &str = "
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {name: all}
spec: {template: {name: base}, values: {size: 3}, selector: {}}
---
";

    fn try_apply(intent: &mut Intent, text: &str, at: u64) -> Result<Vec<Action>, Vec<String>> {
        let told = |errors: Vec<ManifestError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        let documents = manifest::parse(text).map_err(told)?;
        let change = plan(intent, &documents, Timestamp(at), Uuid::nil).map_err(told)?;
        for template in change.templates {
            intent.templates.entry(template.name.clone()).or_default().push(template);
        }
        intent.assignments.extend(change.assignments.into_iter().map(|found| (found.name.clone(), found)));
        Ok(change.outcomes.iter().map(|outcome| outcome.action).collect())
    }

    #[test]
    fn an_assignment_may_stand_before_its_template() {
        let mut intent = Intent::default();
        let both = format!("{ASSIGNMENT}{TEMPLATE}");
        assert_eq!(try_apply(&mut intent, &both, 1), Ok(vec![Action::Created, Action::Created]));
        assert_eq!(try_apply(&mut intent, &both, 2), Ok(vec![Action::Unchanged, Action::Unchanged]));
        let changed = ASSIGNMENT.replace("size: 3", "size: 4");
        assert_eq!(try_apply(&mut intent, &changed, 3), Ok(vec![Action::Configured]));
        let all = &intent.assignments["all"];
        assert_eq!((all.created_at, all.updated_at), (Timestamp(1), Timestamp(3)));
    }

    #[test]
    fn what_an_assignment_gave_before_is_superseded() {
        let mut intent = Intent::default();
        let mut floors = |text: &str| {
            let documents = manifest::parse(text).unwrap();
            let change = plan(&intent, &documents, Timestamp(1), Uuid::nil).unwrap();
            let floors = change.floors.iter().cloned().collect::<Vec<_>>();
            try_apply(&mut intent, text, 1).unwrap();
            floors
        };
        let pinned = ASSIGNMENT.replace("{name: base}", "{name: base, version: v1}").replace("all", "pinned");
        assert_eq!(floors(&format!("{TEMPLATE}{ASSIGNMENT}{pinned}")), [""; 0], "nothing was there before");
        assert_eq!(floors(ASSIGNMENT), [""; 0], "nothing changes");
        assert_eq!(floors(&pinned.replace("size: 3", "size: 4")), ["pinned"]);
        let newer = TEMPLATE.replace("version: v1", "version: v2").replace("{size:", "{width:");
        assert_eq!(floors(&newer), ["all"], "it follows the template");
    }

    #[test]
    fn a_template_without_version_gets_the_next_number() {
        let mut intent = Intent::default();
        let unversioned = TEMPLATE.replace(", version: v1", "");
        assert_eq!(try_apply(&mut intent, &unversioned, 1), Ok(vec![Action::Created]));
        assert_eq!(try_apply(&mut intent, &unversioned, 2), Ok(vec![Action::Unchanged]));
        let changed = unversioned.replace("size:", "sizes:");
        assert_eq!(try_apply(&mut intent, &changed, 3), Ok(vec![Action::Configured]));
        let versions: Vec<_> = intent.templates["base"].iter().map(|found| found.version.as_str()).collect();
        assert_eq!(versions, ["1", "2"]);
    }

    #[test]
    fn a_version_never_changes() {
        let mut intent = Intent::default();
        try_apply(&mut intent, TEMPLATE, 1).unwrap();
        let errors = try_apply(&mut intent, &TEMPLATE.replace("size:", "sizes:"), 2).unwrap_err();
        assert!(
            errors[0].contains("metadata.version: version \"v1\" of template \"base\" exists"),
            "{errors:?}"
        );
    }

    #[test]
    fn a_new_version_must_fit_the_assignments_that_follow_it() {
        let mut intent = Intent::default();
        try_apply(&mut intent, &format!("{TEMPLATE}{ASSIGNMENT}"), 1).unwrap();
        let text = TEMPLATE.replace("version: v1", "version: v2").replace("type: int", "type: string");
        let errors = try_apply(&mut intent, &text, 2).unwrap_err();
        assert!(errors[0].contains("assignment \"all\" follows this template"), "{errors:?}");
        // Together with the assignment it goes; pinned to v1 the assignment does not care.
        let both = format!("{text}{}", ASSIGNMENT.replace("size: 3", "size: three"));
        try_apply(&mut intent.clone(), &both, 2).unwrap();
        let pinned = ASSIGNMENT.replace("{name: base}", "{name: base, version: v1}");
        try_apply(&mut intent, &pinned, 3).unwrap();
        try_apply(&mut intent, &text, 4).unwrap();
    }

    #[test]
    fn every_problem_is_told() {
        let text = format!("{}{}", ASSIGNMENT.replace("base", "none"), ASSIGNMENT.replace("all", "b"));
        let errors = try_apply(&mut Intent::default(), &text, 1).unwrap_err();
        assert_eq!(errors.len(), 2, "{errors:?}");
    }
}
