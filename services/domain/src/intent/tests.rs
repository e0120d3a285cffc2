//! Tests of planning.

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
    assert!(errors[0].contains("metadata.version: version \"v1\" of template \"base\" exists"), "{errors:?}");
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

fn removal(target: RemoveTarget, name: &str, then: Option<OnRemoval>) -> BTreeSet<Removal> {
    BTreeSet::from([Removal { target, name: name.to_owned(), then }])
}

#[test]
fn what_is_in_use_is_not_deleted() {
    let mut intent = Intent::default();
    try_apply(&mut intent, &format!("{TEMPLATE}{ASSIGNMENT}"), 1).unwrap();
    let template = removal(RemoveTarget::Template, "base", None);
    let error = plan_removal(&intent, &template, Timestamp(2)).unwrap_err().to_string();
    assert_eq!(
        error,
        "ConfigTemplate \"base\" is in use by ConfigAssignment \"all\": change or delete them first"
    );
    let absent = plan_removal(&intent, &removal(RemoveTarget::Assignment, "a", None), Timestamp(2));
    assert_eq!(absent.unwrap_err().to_string(), "there is no ConfigAssignment \"a\"");
    let both = template.into_iter().chain(removal(RemoveTarget::Assignment, "all", None)).collect();
    let change = plan_removal(&intent, &both, Timestamp(2)).unwrap();
    assert!(change.floors.contains("all"), "what it gave is superseded");
    let after = intent.with(&change);
    assert_eq!((after.templates.len(), after.assignments.len(), after.revision.0), (0, 0, 1));
}

#[test]
fn a_retired_assignment_goes_on_at_its_last_version() {
    let mut intent = Intent::default();
    let keeping = ASSIGNMENT.replace("selector: {}", "selector: {}, on_removal: keep");
    try_apply(&mut intent, &format!("{TEMPLATE}{keeping}"), 1).unwrap();
    let change =
        plan_removal(&intent, &removal(RemoveTarget::Assignment, "all", None), Timestamp(5)).unwrap();
    assert_eq!(change.outcomes[0].action, Action::Retired);
    let mut retired = intent.with(&change);
    let all = &retired.assignments["all"];
    assert_eq!((all.retired_at, all.version.as_deref()), (Some(Timestamp(5)), Some("v1")));
    let template = removal(RemoveTarget::Template, "base", None);
    let error = plan_removal(&retired, &template, Timestamp(6)).unwrap_err().to_string();
    assert!(error.contains("\"all\" (deleted, its agents keep it)"), "{error}");
    // Deleted once more it is gone; applied again it lives.
    let again =
        plan_removal(&retired, &removal(RemoveTarget::Assignment, "all", None), Timestamp(7)).unwrap();
    assert!(retired.with(&again).assignments.is_empty());
    try_apply(&mut retired, &keeping, 8).unwrap();
    assert_eq!(retired.assignments["all"].retired_at, None);
    // The operator may say otherwise.
    let now = removal(RemoveTarget::Assignment, "all", Some(OnRemoval::FallBack));
    assert!(intent.with(&plan_removal(&intent, &now, Timestamp(5)).unwrap()).assignments.is_empty());
}

#[test]
fn an_owner_prunes_what_is_no_longer_declared() {
    let mut intent = Intent::default();
    let mut apply = |text: &str, owner: &str, prune| {
        let documents = manifest::parse(text).unwrap();
        let change = plan(&intent, &documents, Timestamp(1), Uuid::nil).unwrap();
        let change = change.owned(&intent, &documents, owner, prune, Timestamp(1))?;
        intent = intent.with(&change);
        Ok::<_, String>(
            change.outcomes.iter().map(|found| (found.name.clone(), found.action)).collect::<Vec<_>>(),
        )
    };
    apply(&format!("{TEMPLATE}{ASSIGNMENT}"), "git", true).unwrap();
    let other = ASSIGNMENT.replace("all", "theirs");
    apply(&other, "people", true).unwrap();
    let refused = apply(&other, "git", false).unwrap_err();
    assert!(refused.starts_with("ConfigAssignment \"theirs\" is owned by \"people\""), "{refused}");
    let pruned = apply(TEMPLATE, "git", true).unwrap();
    assert_eq!(pruned[1], ("all".to_owned(), Action::Deleted));
    let refused = apply(&TEMPLATE.replace("base", "new"), "git", true).unwrap_err();
    assert!(refused.contains("\"base\" is in use by ConfigAssignment \"theirs\""), "{refused}");
}

#[test]
fn clashes_are_found_before_any_agent_is_looked_at() {
    let clashes = |one: &str, other: &str| {
        let mut intent = Intent::default();
        let with = |name: &str, selector: &str| {
            ASSIGNMENT.replace("selector: {}", &format!("selector: {selector}")).replace("all", name)
        };
        try_apply(&mut intent, &format!("{TEMPLATE}{}{}", with("a", one), with("b", other)), 1).unwrap();
        let both = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let found = intent.clashes(&both);
        assert_eq!(found.len(), intent.clashes(&BTreeSet::from(["b".to_owned()])).len());
        found.first().map(|clash| clash.certain)
    };
    let label = |text: &str| format!("{{matchLabels: {{{text}}}}}");
    assert_eq!(clashes("{}", &label("a: x")), Some(true));
    assert_eq!(clashes(&label("a: x"), &label("a: x")), Some(true));
    assert_eq!(clashes(&label("a: x"), &label("b: x")), Some(false));
    assert_eq!(clashes(&label("a: x"), &label("a: y")), None);
    let absent = "{matchExpressions: [{key: a, operator: DoesNotExist}]}";
    assert_eq!(clashes(&label("a: x"), absent), None);
    assert_eq!(clashes("{agent_ids: [n]}", &label("a: x")), Some(false));
    assert_eq!(clashes("{agent_ids: [n]}", "{agent_ids: [n, m]}"), Some(true));
}

#[test]
fn a_manifest_gives_the_assignment_again() {
    let text = "
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {name: all}
spec:
  template: {name: base, version: v1}
  values: {size: 3}
  priority: -7
  file: 'a: b'
  on_removal: keep
  selector:
    matchLabels: {team: 'on', zone: eu}
    matchExpressions:
      - {key: zone, operator: In, values: [eu, '1']}
      - {key: old, operator: DoesNotExist}
      - {key: tier, operator: NotIn, values: [x]}
    agent_ids: [edge-1]
";
    let mut intent = Intent::default();
    try_apply(&mut intent, &format!("{TEMPLATE}{text}"), 1).unwrap();
    let written = intent.assignments["all"].manifest();
    assert_eq!(try_apply(&mut intent, &written, 2), Ok(vec![Action::Unchanged]), "{written}");
    try_apply(&mut intent, ASSIGNMENT, 3).unwrap();
    let written = intent.assignments["all"].manifest();
    assert_eq!(try_apply(&mut intent, &written, 4), Ok(vec![Action::Unchanged]), "{written}");
}
