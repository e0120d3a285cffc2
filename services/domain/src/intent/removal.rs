//! Deleting: assignments as their agents are to feel it, and nothing that is in use.

use std::collections::BTreeSet;

use super::{Action, Assignment, Intent, IntentChange, ObjectRef, OnRemoval, Outcome};
use crate::ids::Timestamp;
use crate::manifest::Document;

/// Something to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RemoveTarget {
    /// An assignment.
    Assignment,
    /// A template with all its versions.
    Template,
}

impl RemoveTarget {
    /// The kind of its manifests.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Assignment => "ConfigAssignment",
            Self::Template => "ConfigTemplate",
        }
    }
}

/// What is to be deleted, and what its agents run then.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Removal {
    /// What it is.
    pub target: RemoveTarget,
    /// Its name.
    pub name: String,
    /// What the agents of an assignment run then; `None` for what its manifest says.
    pub then: Option<OnRemoval>,
}

/// Why something is not deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemovalError {
    /// There is no such object.
    #[error("there is no {kind} {name:?}")]
    Absent {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Something needs it.
    #[error("{kind} {name:?} is in use by {users}: change or delete them first", users = quoted(.users))]
    InUse {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Kind and name of all that use it.
        users: Vec<String>,
    },
}

fn quoted(users: &[String]) -> String {
    const MOST: usize = 20;
    let mut text = users.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    if users.len() > MOST {
        text.push_str(&format!(" and {} more", users.len() - MOST));
    }
    text
}

/// Plans to delete objects, assignments before the templates that they use. An assignment whose agents
/// keep what it gave stays as [retired](Assignment::retired_at), at the version that it gave last; deleted
/// once more it is gone.
///
/// # Errors
/// If one of them is not there, or something that stays uses it.
pub fn plan_removal(
    intent: &Intent,
    removals: &BTreeSet<Removal>,
    now: Timestamp,
) -> Result<IntentChange, RemovalError> {
    let mut change = IntentChange { planned_on: intent.revision, ..IntentChange::default() };
    extend(intent, removals, now, &mut change)?;
    Ok(change)
}

/// Adds deletions to a change that was planned on this intent.
fn extend(
    intent: &Intent,
    removals: &BTreeSet<Removal>,
    now: Timestamp,
    change: &mut IntentChange,
) -> Result<(), RemovalError> {
    for removal in removals {
        let object = ObjectRef { kind: removal.target.kind().to_owned(), name: removal.name.clone() };
        let absent = || RemovalError::Absent { kind: removal.target.kind(), name: removal.name.clone() };
        let (action, manifest) = match removal.target {
            RemoveTarget::Assignment => {
                let assignment = intent.assignments.get(&removal.name).ok_or_else(absent)?;
                let then = match assignment.retired_at {
                    Some(_) => removal.then.unwrap_or_default(),
                    None => removal.then.unwrap_or(assignment.on_removal),
                };
                let retired = (then == OnRemoval::Keep).then(|| retired(intent, assignment, now));
                match retired {
                    Some(retired) => {
                        change.assignments.push(retired);
                        (Action::Retired, Some(assignment.manifest()))
                    }
                    None => {
                        change.removed_assignments.insert(removal.name.clone());
                        change.floors.insert(removal.name.clone());
                        (Action::Deleted, Some(assignment.manifest()))
                    }
                }
            }
            RemoveTarget::Template => {
                intent.templates.get(&removal.name).ok_or_else(absent)?;
                let users = users_of_template(&intent.with(change), &removal.name);
                if !users.is_empty() {
                    let kind = removal.target.kind();
                    return Err(RemovalError::InUse { kind, name: removal.name.clone(), users });
                }
                change.removed_templates.insert(removal.name.clone());
                (Action::Deleted, None)
            }
        };
        if intent.owners.contains_key(&object) {
            change.owners.insert(object, None);
        }
        change.outcomes.push(Outcome {
            kind: removal.target.kind().to_owned(),
            name: removal.name.clone(),
            version: None,
            action,
            manifest,
        });
    }
    Ok(())
}

/// The assignment as it goes on for the agents that it has.
fn retired(intent: &Intent, assignment: &Assignment, now: Timestamp) -> Assignment {
    let revision = intent.template(&assignment.template, assignment.version.as_deref());
    Assignment {
        version: revision.map(|revision| revision.version.clone()).or_else(|| assignment.version.clone()),
        retired_at: assignment.retired_at.or(Some(now)),
        updated_at: now,
        ..assignment.clone()
    }
}

/// Kind and name of all that use a template.
pub fn users_of_template(intent: &Intent, name: &str) -> Vec<String> {
    let users = intent.assignments.values().filter(|assignment| assignment.template == name);
    let shown = |assignment: &Assignment| match assignment.retired_at {
        None => format!("ConfigAssignment {:?}", assignment.name),
        Some(_) => format!("ConfigAssignment {:?} (deleted, its agents keep it)", assignment.name),
    };
    users.map(shown).collect()
}

impl IntentChange {
    /// Makes `owner` the owner of all that these documents declare. With `prune`, deletes what it owns and
    /// they do not declare.
    ///
    /// # Errors
    /// What others own, and what cannot be deleted.
    pub fn owned(
        mut self,
        intent: &Intent,
        documents: &[Document],
        owner: &str,
        prune: bool,
        now: Timestamp,
    ) -> Result<Self, String> {
        let declared: BTreeSet<ObjectRef> = documents
            .iter()
            .map(|Document { manifest, .. }| ObjectRef {
                kind: manifest.kind().to_owned(),
                name: manifest.name().to_owned(),
            })
            .collect();
        for object in &declared {
            match intent.owners.get(object) {
                Some(known) if known == owner => {}
                Some(other) => {
                    return Err(format!(
                        "{} {:?} is owned by {other:?}: apply it as {other:?}, or remove it there first",
                        object.kind, object.name
                    ));
                }
                None => {
                    self.owners.insert(object.clone(), Some(owner.to_owned()));
                }
            }
        }
        if prune {
            let gone =
                intent.owners.iter().filter(|(object, known)| *known == owner && !declared.contains(object));
            let removal = |object: &ObjectRef| {
                let target = [RemoveTarget::Assignment, RemoveTarget::Template]
                    .into_iter()
                    .find(|target| target.kind() == object.kind)?;
                Some(Removal { target, name: object.name.clone(), then: None })
            };
            let removals = gone.filter_map(|(object, _)| removal(object)).collect();
            extend(intent, &removals, now, &mut self).map_err(|error| error.to_string())?;
        }
        Ok(self)
    }
}
