//! Changing intent: planned on what is there, and planned again when another change came between.

use std::collections::BTreeSet;

use muster_domain::audit::Entry;
use muster_domain::ids::{IntentRevision, Timestamp};
use muster_domain::intent::{Intent, IntentChange, MAX_MESSAGE, Made, ObjectRef, TemplateRevision};
use muster_domain::rollout::create::{Origin, stage_change};
use muster_ports::store::IntentError;
use serde_json::json;
use tracing::info;
use uuid::Uuid;

use crate::Shared;
use crate::caller::Caller;
use crate::problem::ApiError;

/// How often a change is planned again when another one came between.
pub(crate) const ATTEMPTS: usize = 5;
/// Changes that are looked through for one that came after the author looked.
const LOOKED_THROUGH: usize = 1000;

/// Who makes a change now, and why.
pub(crate) fn made(shared: &Shared, caller: &Caller, message: Option<&str>) -> Result<Made, ApiError> {
    let message = message.unwrap_or_default().trim();
    let is_bad = |c: char| c.is_control() && c != '\n' && c != '\t';
    if message.len() > MAX_MESSAGE || message.contains(is_bad) {
        return Err(ApiError::BadRequest(format!(
            "message: has at most {MAX_MESSAGE} bytes and no control characters"
        )));
    }
    Ok(Made { at: (shared.engines.clock)(), author: caller.actor.clone(), message: message.to_owned() })
}

/// Writes a change that was planned on the present intent; `None` if another one came between: it is to be
/// planned again.
///
/// # Errors
/// If the store is away.
pub(crate) async fn write(
    shared: &Shared,
    caller: &Caller,
    operation: &str,
    intent: &Intent,
    change: &mut IntentChange,
) -> Result<Option<IntentRevision>, ApiError> {
    let tenant = &caller.tenant;
    let now = (shared.engines.clock)();
    let origin = Origin { actor: caller.actor.clone(), approval_required: shared.settings.approval_required };
    (change.rollouts, change.new_rollouts) = Default::default();
    stage_change(intent, change, &origin, now, Uuid::now_v7);
    change.audit = Some(entry(caller, operation, intent, change, (shared.engines.clock)()));
    match shared.engines.intent.change(tenant, change).await {
        Ok(revision) => {
            if !change.is_empty() {
                let author = change.made.as_ref().map(|made| made.author.as_str()).unwrap_or_default();
                info!(event = "intent_changed", %tenant, revision = revision.0, author, templates = change.templates.len(), assignments = change.assignments.len(), deleted = change.removed_assignments.len() + change.removed_templates.len(), "the configuration was changed");
                shared.wake().await;
            }
            Ok(Some(revision))
        }
        Err(IntentError::Moved) => Ok(None),
        Err(IntentError::Engine(error)) => Err(error.into()),
    }
}

/// What is written in the audit log: the assignments as they were and are, the new versions of templates, and
/// what is deleted.
fn entry(caller: &Caller, operation: &str, intent: &Intent, change: &IntentChange, now: Timestamp) -> Entry {
    let changed = change.assignments.iter().map(|assignment| &assignment.name);
    let assignments: Vec<_> = changed.chain(&change.removed_assignments).collect();
    let before: Vec<_> = assignments.iter().filter_map(|name| intent.assignments.get(*name)).collect();
    let template = |template: &TemplateRevision| json!({"name": template.name, "version": template.version, "digest": template.digest.to_string()});
    let templates: Vec<_> = change.templates.iter().map(template).collect();
    let targets = assignments.iter().map(|name| format!("assignments/{name}"));
    let templated = change.templates.iter().map(|template| &template.name).chain(&change.removed_templates);
    let strategies = change.strategies.iter().map(|strategy| format!("strategies/{}", strategy.name));
    let targets = targets.chain(strategies);
    let target: Vec<_> = templated.map(|name| format!("configs/{name}")).chain(targets).collect();
    let deleted: Vec<_> = change.removed_assignments.iter().chain(&change.removed_templates).collect();
    caller.entry(operation, target.join(" "), now).with_states(
        json!({"revision": intent.revision.0, "assignments": before}).to_string(),
        json!({"templates": templates, "assignments": change.assignments, "strategies": change.strategies, "deleted": deleted})
            .to_string(),
    )
}

/// Another change came between every time.
pub(crate) fn moved() -> ApiError {
    ApiError::Conflict("others change the configuration at the same time: try again".to_owned())
}

/// Refuses a change of objects that were changed after the revision that its author looked at.
///
/// # Errors
/// Who changed which of them at which revision.
pub(crate) async fn unchanged_since(
    shared: &Shared,
    caller: &Caller,
    intent: &Intent,
    objects: &BTreeSet<ObjectRef>,
    revision: u64,
) -> Result<(), ApiError> {
    if intent.revision.0 < revision {
        return Err(ApiError::BadRequest(format!(
            "if_revision: the configuration is at revision {}, there is no {revision} yet",
            intent.revision
        )));
    }
    let tenant = &caller.tenant;
    let changes = shared.engines.intent.history(tenant, None, None, LOOKED_THROUGH).await?;
    let is_complete = changes.len() < LOOKED_THROUGH;
    let mut later = changes.iter().take_while(|change| change.revision.0 > revision);
    let found = later.find_map(|change| {
        let touched = change.outcomes.iter().find(|outcome| {
            objects.contains(&ObjectRef { kind: outcome.kind.clone(), name: outcome.name.clone() })
        });
        touched.map(|outcome| (change, outcome))
    });
    match found {
        Some((change, outcome)) => Err(ApiError::Conflict(format!(
            "{} {:?} was {} at revision {} by {}, after revision {revision}: look at it, then name the newer revision",
            outcome.kind,
            outcome.name,
            outcome.action.name(),
            change.revision,
            change.made.author
        ))),
        None if !is_complete && changes.iter().all(|change| change.revision.0 > revision) => {
            Err(ApiError::Conflict(format!(
                "more than {LOOKED_THROUGH} changes came after revision {revision}: look again, then name the newer revision"
            )))
        }
        None => Ok(()),
    }
}
