//! What is remembered of changes, what is deleted, and who owns what.

use std::collections::BTreeMap;

use muster_domain::ids::{IntentRevision, Timestamp};
use muster_domain::intent::{Action, ChangeRecord, IntentChange, Made, ObjectRef, Outcome};

use super::build::{NOW, tenant};
use super::intent::{change, template};
use crate::store::Store;

fn object(kind: &str, name: &str) -> ObjectRef {
    ObjectRef { kind: kind.to_owned(), name: name.to_owned() }
}

fn outcome(kind: &str, name: &str, action: Action) -> Outcome {
    Outcome {
        kind: kind.to_owned(),
        name: name.to_owned(),
        version: None,
        action,
        manifest: Some("kind: größe\n".to_owned()),
    }
}

fn made(number: u64) -> Made {
    Made {
        at: Timestamp(NOW.0 + number),
        author: "jane@example.com".to_owned(),
        message: format!("{number}: größe\n'quoted'"),
    }
}

/// A change that makes an assignment, by somebody.
fn signed(planned_on: u64, name: &str, outcomes: Vec<Outcome>) -> IntentChange {
    IntentChange { outcomes, ..change(planned_on, name) }.signed(made(planned_on))
}

pub(super) async fn changes_are_remembered(store: &dyn Store) {
    let of = async |object: Option<&ObjectRef>, before: Option<u64>, limit| {
        store.history(&tenant("default"), object, before.map(IntentRevision), limit).await.unwrap()
    };
    assert_eq!(of(None, None, 10).await, []);
    let (a, b) =
        (outcome("ConfigAssignment", "a", Action::Created), outcome("ConfigTemplate", "a", Action::Created));
    let same = outcome("ConfigAssignment", "same", Action::Unchanged);
    let first = signed(0, "a", vec![a.clone(), same.clone()]);
    store.change(&tenant("default"), &first).await.unwrap();
    store.change(&tenant("default"), &change(1, "nobody")).await.unwrap();
    let third = signed(2, "a", vec![b.clone(), a.clone()]);
    store.change(&tenant("default"), &third).await.unwrap();
    store.change(&tenant("default"), &third).await.unwrap_err();
    store.change(&tenant("other"), &signed(0, "a", vec![a.clone()])).await.unwrap();
    let records = [
        ChangeRecord { revision: IntentRevision(3), made: made(2), outcomes: vec![b, a.clone()] },
        ChangeRecord { revision: IntentRevision(1), made: made(0), outcomes: vec![a] },
    ];
    assert_eq!(of(None, None, 10).await, records);
    assert_eq!(of(None, None, 1).await, records[..1]);
    assert_eq!(of(None, Some(3), 10).await, records[1..]);
    assert_eq!(of(Some(&object("ConfigAssignment", "a")), None, 10).await, records);
    assert_eq!(of(Some(&object("ConfigTemplate", "a")), None, 10).await, records[..1]);
    assert_eq!(of(Some(&object("ConfigAssignment", "same")), None, 10).await, []);
    // A change of nothing is none.
    let nothing = IntentChange { planned_on: IntentRevision(3), ..IntentChange::default() }.signed(made(9));
    assert_eq!(store.change(&tenant("default"), &nothing).await.unwrap(), IntentRevision(3));
    assert_eq!(of(None, None, 10).await.len(), 2);
}

pub(super) async fn what_is_deleted_is_gone(store: &dyn Store) {
    let all = IntentChange {
        templates: vec![template("base", "1"), template("base", "2"), template("other", "1")],
        ..change(0, "a")
    };
    store.change(&tenant("default"), &all).await.unwrap();
    store.change(&tenant("other"), &all).await.unwrap();
    let removing = IntentChange {
        planned_on: IntentRevision(1),
        removed_assignments: ["a".to_owned()].into(),
        removed_templates: ["base".to_owned()].into(),
        floors: ["a".to_owned()].into(),
        ..IntentChange::default()
    };
    assert_eq!(store.change(&tenant("default"), &removing).await.unwrap(), IntentRevision(2));
    let left = store.intent(&tenant("default")).await.unwrap();
    assert_eq!(left.assignments, BTreeMap::new());
    assert_eq!(left.templates.keys().collect::<Vec<_>>(), ["other"]);
    assert_eq!(left.floors, BTreeMap::from([("a".to_owned(), IntentRevision(2))]));
    let other = store.intent(&tenant("other")).await.unwrap();
    assert_eq!((other.assignments.len(), other.templates["base"].len()), (1, 2));
    // A version that is gone may be made again.
    let again = IntentChange { templates: vec![template("base", "2")], ..change(2, "a") };
    store.change(&tenant("default"), &again).await.unwrap();
    assert_eq!(store.intent(&tenant("default")).await.unwrap().templates["base"], [template("base", "2")]);
}

pub(super) async fn owners_come_and_go(store: &dyn Store) {
    let owning = |planned_on, owners: &[(&str, Option<&str>)]| IntentChange {
        planned_on: IntentRevision(planned_on),
        owners: owners
            .iter()
            .map(|(name, owner)| (object("ConfigAssignment", name), owner.map(str::to_owned)))
            .collect(),
        ..IntentChange::default()
    };
    let owners = async || store.intent(&tenant("default")).await.unwrap().owners;
    store.change(&tenant("default"), &owning(0, &[("a", Some("git")), ("b", Some("git"))])).await.unwrap();
    store.change(&tenant("other"), &owning(0, &[("a", Some("theirs"))])).await.unwrap();
    store
        .change(&tenant("default"), &owning(1, &[("a", None), ("b", Some("größe")), ("c", None)]))
        .await
        .unwrap();
    assert_eq!(owners().await, BTreeMap::from([(object("ConfigAssignment", "b"), "größe".to_owned())]));
}
