//! Templates, assignments, labels, and the revision that they share.

use std::collections::BTreeMap;

use muster_domain::desired::Labels;
use muster_domain::ids::{AgentKey, Digest, IntentRevision, Partition, Timestamp};
use muster_domain::intent::{Assignment, Intent, IntentChange, MAX_RETRIES, OnRemoval, TemplateRevision};
use muster_domain::selector::AgentSelector;
use muster_domain::template::{
    CompiledBody, CompiledFile, CompiledTemplate, Segment, Slot, SlotEncoding, SlotSource, TypedValue,
    Variable, VariableType,
};
use uuid::Uuid;

use super::build::{NOW, TEXT, agent, cell, commit, key, key_of, store_all, tenant};
use crate::contract::poll::join;
use crate::store::{Commit, CommitError, IntentError, Store};

/// The revision of a tenant, that is told in two ways.
pub(super) async fn revision_of(store: &dyn Store, name: &str) -> IntentRevision {
    let told = store.revisions().await.unwrap().get(&tenant(name)).copied().unwrap_or_default();
    assert_eq!(store.intent(&tenant(name)).await.unwrap().revision, told);
    told
}

/// A revision of a template in which nothing is left out.
pub(super) fn template(name: &str, version: &str) -> TemplateRevision {
    let variable = Variable {
        name: "ratio".to_owned(),
        kind: VariableType::Float,
        required: true,
        one_of: vec![TypedValue::Float(0.1), TypedValue::Float(1.0)],
        default: Some(TypedValue::Float(481_837.925_201_105_24)),
        min: Some(TypedValue::Int(i64::MIN)),
        max: Some(TypedValue::Float(f64::MAX)),
        used: true,
    };
    let body = CompiledBody {
        segments: vec![
            Segment::Literal(format!("{TEXT}\nversion: ")),
            Segment::Slot(0),
            Segment::Slot(u32::MAX),
        ],
    };
    let slot = |source, encoding| Slot { source, encoding };
    let slots = vec![
        slot(SlotSource::Variable("ratio".to_owned()), SlotEncoding::YamlScalar),
        slot(SlotSource::AgentAttribute("service.name".to_owned()), SlotEncoding::YamlQuoted),
        slot(SlotSource::AgentLabel(TEXT.to_owned()), SlotEncoding::Text),
    ];
    let file = |name: Option<&str>| CompiledFile {
        name: name.map(str::to_owned),
        content_type: "text/yaml".to_owned(),
        digest: CompiledFile::digest_of("text/yaml", &body, &slots),
        body: body.clone(),
        slots: slots.clone(),
    };
    let number = name.bytes().chain(version.bytes()).fold(0, |sum, byte| sum << 8 | u128::from(byte));
    TemplateRevision {
        id: Uuid::from_u128(number),
        name: name.to_owned(),
        version: version.to_owned(),
        digest: Digest::of_parts([name.as_bytes(), version.as_bytes()]),
        source: format!("# {TEXT}\r\nkind: ConfigTemplate\n"),
        compiled: CompiledTemplate {
            variables: vec![variable],
            files: vec![file(None), file(Some("größe"))],
        },
        created_at: NOW,
        author: "jane@example.com".to_owned(),
        message: "why: 'größe'\n".to_owned(),
    }
}

/// An assignment in which nothing is left out.
fn assignment(name: &str, template: &str) -> Assignment {
    let values = [
        ("bool", TypedValue::Bool(true)),
        ("float", TypedValue::Float(0.1)),
        ("int", TypedValue::Int(i64::MAX)),
        ("string", TypedValue::String(TEXT.to_owned())),
        ("whole", TypedValue::Float(1.0)),
    ];
    Assignment {
        name: name.to_owned(),
        template: template.to_owned(),
        version: Some("1.0.0-größe".to_owned()),
        values: values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        selector: AgentSelector {
            requirements: "zone in (eu, us),!old,name!=\"a b\"".parse().unwrap(),
            agent_ids: ["edge-1".to_owned(), Uuid::from_u128(1).to_string()].into(),
        },
        priority: i32::MIN,
        file: Some("collector.yaml".to_owned()),
        on_removal: OnRemoval::Keep,
        retired_at: Some(Timestamp(NOW.0 + 2)),
        strategy: Some("canary".to_owned()),
        created_at: NOW,
        updated_at: Timestamp(NOW.0 + 1),
    }
}

/// A change, planned on revision `planned_on`, that makes the assignment `name`.
pub(super) fn change(planned_on: u64, name: &str) -> IntentChange {
    IntentChange {
        planned_on: IntentRevision(planned_on),
        assignments: vec![assignment(name, "t")],
        ..IntentChange::default()
    }
}

fn labels(of: &[(&str, &str)]) -> Labels {
    of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Labels to set, and to remove where the value is `None`.
type Changes<'a> = &'a [(&'a str, Option<&'a str>)];

/// Changes labels of an agent that is stored.
async fn relabel(store: &dyn Store, key: &AgentKey, changes: Changes<'_>) -> Labels {
    let changes = changes.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned)));
    store.label(key, &changes.collect(), NOW, None).await.unwrap().unwrap()
}

pub(super) async fn there_is_none_at_first(store: &dyn Store) {
    assert_eq!(store.revisions().await.unwrap(), BTreeMap::new());
    assert_eq!(store.intent(&tenant("default")).await.unwrap(), Intent::default());
    store_all(store, [agent(&key(1))]).await;
    assert_eq!(store.revisions().await.unwrap(), BTreeMap::new(), "agents are no intent");
}

pub(super) async fn a_change_raises_the_revision_by_one(store: &dyn Store) {
    let first = IntentChange {
        templates: vec![template("base", "1"), template("other", "1")],
        ..change(0, "everyone")
    };
    assert_eq!(store.change(&tenant("default"), &first).await.unwrap(), IntentRevision(1));
    let mut expected = Intent {
        revision: IntentRevision(1),
        templates: BTreeMap::from([
            ("base".to_owned(), vec![template("base", "1")]),
            ("other".to_owned(), vec![template("other", "1")]),
        ]),
        assignments: BTreeMap::from([("everyone".to_owned(), assignment("everyone", "t"))]),
        ..Intent::default()
    };
    assert_eq!(store.intent(&tenant("default")).await.unwrap(), expected);
    let template_only = IntentChange {
        planned_on: IntentRevision(1),
        templates: vec![template("base", "2")],
        ..IntentChange::default()
    };
    assert_eq!(store.change(&tenant("default"), &template_only).await.unwrap(), IntentRevision(2));
    expected.revision = IntentRevision(2);
    expected.templates.entry("base".to_owned()).or_default().push(template("base", "2"));
    assert_eq!(store.intent(&tenant("default")).await.unwrap(), expected);
    assert_eq!(revision_of(store, "default").await, IntentRevision(2));
}

pub(super) async fn a_floor_rises_to_the_revision_of_its_change(store: &dyn Store) {
    let raising = |planned_on, floors: &[&str]| IntentChange {
        floors: floors.iter().map(|name| (*name).to_owned()).collect(),
        ..change(planned_on, "a")
    };
    let floors = async || store.intent(&tenant("default")).await.unwrap().floors;
    store.change(&tenant("default"), &raising(0, &[])).await.unwrap();
    assert_eq!(floors().await, BTreeMap::new());
    store.change(&tenant("default"), &raising(1, &["a", "größe"])).await.unwrap();
    store.change(&tenant("default"), &raising(2, &["a"])).await.unwrap();
    store.change(&tenant("default"), &raising(2, &["a", "größe"])).await.unwrap_err();
    let expected = [("a".to_owned(), IntentRevision(3)), ("größe".to_owned(), IntentRevision(2))];
    assert_eq!(floors().await, BTreeMap::from(expected));
    assert_eq!(store.intent(&tenant("other")).await.unwrap().floors, BTreeMap::new());
}

pub(super) async fn another_try_is_asked_for_at_the_revision_of_its_change(store: &dyn Store) {
    let uid = |number: u128| key(number).uid;
    let asking = |planned_on, uids: &[u128]| IntentChange {
        planned_on: IntentRevision(planned_on),
        retries: uids.iter().map(|number| uid(*number)).collect(),
        ..IntentChange::default()
    };
    let retries = async || store.intent(&tenant("default")).await.unwrap().retries;
    assert_eq!(store.change(&tenant("default"), &asking(0, &[1, 2])).await.unwrap(), IntentRevision(1));
    store.change(&tenant("default"), &asking(1, &[2])).await.unwrap();
    store.change(&tenant("default"), &asking(1, &[1])).await.unwrap_err();
    let expected = BTreeMap::from([(uid(1), IntentRevision(1)), (uid(2), IntentRevision(2))]);
    assert_eq!(retries().await, expected);
    assert_eq!(store.intent(&tenant("other")).await.unwrap().retries, BTreeMap::new());
    // Where there are too many, the oldest are forgotten, those of one revision together.
    let many: Vec<_> = (100..100 + MAX_RETRIES as u128).collect();
    store.change(&tenant("default"), &asking(2, &many)).await.unwrap();
    let left = retries().await;
    assert_eq!((left.len(), left.contains_key(&uid(2))), (MAX_RETRIES, false));
    store.change(&tenant("default"), &asking(3, &[3])).await.unwrap();
    assert_eq!(retries().await, BTreeMap::from([(uid(3), IntentRevision(4))]));
}

pub(super) async fn a_stale_plan_writes_nothing(store: &dyn Store) {
    let planned =
        |planned_on| IntentChange { templates: vec![template("x", "1")], ..change(planned_on, "x") };
    for early in [1, 7] {
        let refused = store.change(&tenant("default"), &planned(early)).await;
        assert!(matches!(refused, Err(IntentError::Moved)), "{refused:?}");
    }
    assert_eq!(store.revisions().await.unwrap(), BTreeMap::new());
    store.change(&tenant("default"), &change(0, "a")).await.unwrap();
    store.change(&tenant("default"), &change(1, "b")).await.unwrap();
    let before = store.intent(&tenant("default")).await.unwrap();
    for stale in [0, 1, 3] {
        let refused = store.change(&tenant("default"), &planned(stale)).await;
        assert!(matches!(refused, Err(IntentError::Moved)), "{refused:?}");
        assert_eq!(store.intent(&tenant("default")).await.unwrap(), before, "something was written");
    }
    store.change(&tenant("default"), &planned(2)).await.unwrap();
}

pub(super) async fn one_of_two_changes_wins(store: &dyn Store) {
    let default = tenant("default");
    for round in 0..5 {
        let (one, other) = (change(round, "one"), change(round, "other"));
        let outcomes = join(store.change(&default, &one), store.change(&default, &other)).await;
        match outcomes {
            (Ok(revision), Err(IntentError::Moved)) | (Err(IntentError::Moved), Ok(revision)) => {
                assert_eq!(revision, IntentRevision(round + 1));
            }
            outcomes => panic!("{outcomes:?} of two changes planned on one revision"),
        }
    }
}

pub(super) async fn an_empty_change_raises_nothing(store: &dyn Store) {
    let empty = |revision| IntentChange { planned_on: IntentRevision(revision), ..IntentChange::default() };
    assert_eq!(store.change(&tenant("default"), &empty(0)).await.unwrap(), IntentRevision(0));
    assert_eq!(store.revisions().await.unwrap(), BTreeMap::new());
    store.change(&tenant("default"), &change(0, "a")).await.unwrap();
    assert_eq!(store.change(&tenant("default"), &empty(1)).await.unwrap(), IntentRevision(1));
    assert_eq!(revision_of(store, "default").await, IntentRevision(1));
}

pub(super) async fn templates_stand_in_the_order_of_their_creation(store: &dyn Store) {
    let changes = [
        vec![template("b", "10"), template("a", "z"), template("b", "9")],
        vec![template("b", "1"), template("a", "A"), template("c", "1")],
        vec![template("a", "m")],
    ];
    for (planned_on, templates) in (0..).zip(changes) {
        let change =
            IntentChange { planned_on: IntentRevision(planned_on), templates, ..IntentChange::default() };
        store.change(&tenant("default"), &change).await.unwrap();
    }
    let intent = store.intent(&tenant("default")).await.unwrap();
    let versions = |name: &str| {
        intent.templates[name].iter().map(|revision| revision.version.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(
        (versions("a"), versions("b"), versions("c")),
        (vec!["z", "A", "m"], vec!["10", "9", "1"], vec!["1"])
    );
}

pub(super) async fn an_assignment_is_replaced(store: &dyn Store) {
    let first = assignment("a", "one");
    let second = Assignment {
        template: "two".to_owned(),
        version: None,
        values: BTreeMap::new(),
        selector: AgentSelector::default(),
        priority: i32::MAX,
        file: None,
        updated_at: Timestamp(NOW.0 + 5),
        ..first.clone()
    };
    for (planned_on, changed) in (0..).zip([first, second.clone()]) {
        let change = IntentChange {
            planned_on: IntentRevision(planned_on),
            assignments: vec![changed],
            ..IntentChange::default()
        };
        store.change(&tenant("default"), &change).await.unwrap();
    }
    store.change(&tenant("default"), &change(2, "b")).await.unwrap();
    let found = store.intent(&tenant("default")).await.unwrap().assignments;
    let expected = [("a".to_owned(), second), ("b".to_owned(), assignment("b", "t"))];
    assert_eq!(found, BTreeMap::from(expected));
}

pub(super) async fn labels_are_set_and_removed(store: &dyn Store) {
    store_all(store, [agent(&key(1)), agent(&key(2))]).await;
    let steps: [(Changes<'_>, &[(&str, &str)]); 6] = [
        (&[], &[]),
        (&[("zone", Some("eu")), ("name", Some("größe \"x\""))], &[("name", "größe \"x\""), ("zone", "eu")]),
        (&[("zone", None), ("empty", Some(""))], &[("empty", ""), ("name", "größe \"x\"")]),
        (&[("name", Some("other")), ("never", None)], &[("empty", ""), ("name", "other")]),
        (&[("Name", Some("case"))], &[("Name", "case"), ("empty", ""), ("name", "other")]),
        (&[("Name", None), ("empty", None), ("name", None)], &[]),
    ];
    for (changes, expected) in steps {
        let expected = labels(expected);
        assert_eq!(relabel(store, &key(1), changes).await, expected);
        let found = store.agents(&cell(), &[key(1)]).await.unwrap();
        assert_eq!(found[0].labels, expected);
        // What is written of the agent leaves them as they are.
        store_all(store, [agent(&key(1))]).await;
        assert_eq!(store.agent(&key(1)).await.unwrap().unwrap().0.labels, expected);
        assert_eq!(store.agents(&cell(), &[key(2)]).await.unwrap()[0].labels, Labels::new());
    }
}

pub(super) async fn labels_raise_the_revision_when_they_change(store: &dyn Store) {
    store_all(store, [agent(&key(1)), agent(&key(2))]).await;
    let steps: [(Changes<'_>, u64); 7] = [
        (&[], 0),
        (&[("never", None)], 0),
        (&[("a", Some("1")), ("b", Some("1")), ("c", Some("1"))], 1),
        (&[("a", Some("1")), ("b", Some("1"))], 1),
        (&[("a", Some("1")), ("b", Some("2")), ("c", None)], 2),
        (&[("c", None), ("a", None)], 3),
        (&[("b", Some("2"))], 3),
    ];
    for (changes, expected) in steps {
        relabel(store, &key(1), changes).await;
        assert_eq!(revision_of(store, "default").await, IntentRevision(expected), "after {changes:?}");
    }
    relabel(store, &key(2), &[("b", Some("2"))]).await;
    assert_eq!(revision_of(store, "default").await, IntentRevision(4), "another agent's label is another");
    let intent = store.intent(&tenant("default")).await.unwrap();
    assert_eq!(intent, Intent { revision: IntentRevision(4), ..Intent::default() });
}

pub(super) async fn an_unknown_agent_has_no_labels(store: &dyn Store) {
    store_all(store, [agent(&key(1))]).await;
    let changes = BTreeMap::from([("a".to_owned(), Some("1".to_owned()))]);
    for unknown in [key(2), key_of("other", 1)] {
        assert_eq!(store.label(&unknown, &changes, NOW, None).await.unwrap(), None);
        assert_eq!(store.label(&unknown, &BTreeMap::new(), NOW, None).await.unwrap(), None);
        store_all(store, [agent(&unknown)]).await;
        assert_eq!(
            store.agents(&cell(), &[unknown]).await.unwrap()[0].labels,
            Labels::new(),
            "nothing was kept"
        );
    }
    assert_eq!(store.revisions().await.unwrap(), BTreeMap::new());
}

pub(super) async fn a_label_moves_the_intent_under_plans_and_commits(store: &dyn Store) {
    store_all(store, [agent(&key(1))]).await;
    store.change(&tenant("default"), &change(0, "a")).await.unwrap();
    relabel(store, &key(1), &[("a", Some("1"))]).await;
    let refused = store.change(&tenant("default"), &change(1, "b")).await;
    assert!(matches!(refused, Err(IntentError::Moved)), "{refused:?}");
    let partition = Partition::of(&key(1));
    let decided_on = |revision| BTreeMap::from([(tenant("default"), IntentRevision(revision))]);
    let row = store.partition(&cell(), partition).await.unwrap();
    let tried = Commit { decided_on: decided_on(1), ..commit(&cell(), partition, row, Vec::new()) };
    let refused = store.commit(tried.clone()).await;
    assert!(matches!(refused, Err(CommitError::IntentMoved(_))), "{refused:?}");
    store.commit(Commit { decided_on: decided_on(2), ..tried }).await.unwrap();
    assert_eq!(store.change(&tenant("default"), &change(2, "b")).await.unwrap(), IntentRevision(3));
}

pub(super) async fn tenants_are_apart(store: &dyn Store) {
    let (ours, theirs) = (key_of("ours", 1), key_of("theirs", 1));
    store_all(store, [agent(&ours), agent(&theirs)]).await;
    let whole = IntentChange { templates: vec![template("t", "1")], ..change(0, "a") };
    store.change(&ours.tenant, &whole).await.unwrap();
    assert_eq!(store.intent(&theirs.tenant).await.unwrap(), Intent::default());
    // The same names mean other things in another tenant.
    let other_template = TemplateRevision { source: "other".to_owned(), ..template("t", "1") };
    let other = IntentChange { templates: vec![other_template], ..change(0, "a") };
    store.change(&theirs.tenant, &other).await.unwrap();
    relabel(store, &theirs, &[("a", Some("1"))]).await;
    assert_eq!((revision_of(store, "ours").await.0, revision_of(store, "theirs").await.0), (1, 2));
    let all = [(ours.tenant.clone(), IntentRevision(1)), (theirs.tenant.clone(), IntentRevision(2))];
    assert_eq!(store.revisions().await.unwrap(), BTreeMap::from(all));
    let found = store.intent(&ours.tenant).await.unwrap();
    assert_eq!(found.templates["t"], whole.templates);
    let found = store.intent(&theirs.tenant).await.unwrap();
    assert_eq!(found.templates["t"], other.templates);
    assert_eq!(store.agents(&cell(), &[ours]).await.unwrap()[0].labels, Labels::new());
    assert_eq!(store.agents(&cell(), &[theirs]).await.unwrap()[0].labels, labels(&[("a", "1")]));
}

pub(super) async fn a_revision_is_advanced_and_never_goes_back(store: &dyn Store) {
    let advance = async |name: &str, to| store.advance(&tenant(name), IntentRevision(to)).await.unwrap().0;
    assert_eq!(advance("default", 7).await, 7, "of a tenant without any intent");
    assert_eq!(advance("default", 5).await, 7);
    assert_eq!(revision_of(store, "default").await, IntentRevision(7));
    assert_eq!(revision_of(store, "other").await, IntentRevision(0));
    store.change(&tenant("default"), &change(7, "a")).await.unwrap();
    assert_eq!(advance("default", 9).await, 9);
    let stale = store.change(&tenant("default"), &change(8, "b")).await.unwrap_err();
    assert!(matches!(stale, IntentError::Moved), "{stale:?}");
    let intent = store.intent(&tenant("default")).await.unwrap();
    assert_eq!(intent.assignments.len(), 1, "what is wanted stays");
}
