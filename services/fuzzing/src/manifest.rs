//! Manifests: they are refused with a place, or what they make can be planned for agents.

use std::collections::BTreeMap;

use muster_domain::agent::Agent;
use muster_domain::desired::{Desired, Planner};
use muster_domain::ids::{AgentKey, InstanceUid, Tenant, Timestamp};
use muster_domain::intent::{Intent, IntentChange, plan};
use muster_domain::manifest::{ManifestError, parse};
use muster_domain::report::Description;
use muster_domain::template::render;
use uuid::Uuid;

/// Applies manifests to nothing, twice, and plans for an agent.
pub fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let documents = match parse(text) {
        Ok(documents) => documents,
        Err(errors) => return check_errors(&errors),
    };
    let mut ids = 0;
    let mut new_id = || {
        ids += 1;
        Uuid::from_u128(ids)
    };
    let mut intent = Intent::default();
    let change = match plan(&intent, &documents, Timestamp(1), &mut new_id) {
        Ok(change) => change,
        Err(errors) => return check_errors(&errors),
    };
    take_over(&mut intent, change);
    match plan(&intent, &documents, Timestamp(2), &mut new_id) {
        Ok(again) => assert!(again.is_empty(), "applied again it changes something: {again:?}"),
        Err(errors) => panic!("applied again it is refused: {errors:?}"),
    }
    let Ok(tenant) = "default".parse::<Tenant>() else { return };
    let mut agent = Agent::new(AgentKey { tenant, uid: InstanceUid(Uuid::from_u128(7)) }, Timestamp(1));
    let mut description = Description::default();
    description.identifying.insert("service.name".to_owned(), "otelcol".into());
    description.non_identifying.insert("team".to_owned(), "blue".into());
    agent.state.description = Some(description);
    let labels = BTreeMap::from([("env".to_owned(), "a: b\n".to_owned())]);
    let planner = Planner::new(&intent);
    if let Desired::Config(config) = planner.desired(&agent, &labels) {
        assert!(!config.files.is_empty(), "an empty config map stops some agents");
        assert_eq!(planner.desired(&agent, &labels), Desired::Config(config.clone()));
        for file in &config.files {
            let Some(body) = planner.body(&file.digest) else { panic!("no body for {file:?}") };
            let _ = render(body, &file.slots);
        }
    }
}

fn check_errors(errors: &[ManifestError]) {
    assert!(!errors.is_empty());
    for error in errors {
        assert!(error.line >= 1 && error.column >= 1 && !error.message.is_empty(), "{error:?}");
    }
}

fn take_over(intent: &mut Intent, change: IntentChange) {
    for revision in change.templates {
        intent.templates.entry(revision.name.clone()).or_default().push(revision);
    }
    for assignment in change.assignments {
        intent.assignments.insert(assignment.name.clone(), assignment);
    }
    intent.revision.0 += 1;
}
