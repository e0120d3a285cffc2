//! Lists of components.

use std::collections::{BTreeMap, BTreeSet};

use muster_domain::ids::Timestamp;
use muster_domain::report::{Component, Components, ComponentsKey};

use super::build::{TEXT, rich_attributes, tenant};
use crate::store::{MAX_COMPONENT_LISTS, Store};

fn key(tenant: &str, agent_type: &str, hash: &str) -> ComponentsKey {
    let (agent_type, hash) = (agent_type.to_owned(), hash.to_owned());
    ComponentsKey { tenant: self::tenant(tenant), agent_type, hash }
}

fn list(name: &str) -> Components {
    let inner = Component { metadata: rich_attributes(), ..Component::default() };
    let component = Component { components: [(TEXT.to_owned(), inner)].into(), ..Component::default() };
    [(name.to_owned(), component), (String::new(), Component::default())].into()
}

async fn put(store: &dyn Store, key: &ComponentsKey, list: &Components, at: u64) {
    store.put_components(&[(key.clone(), list.clone())].into(), Timestamp(at)).await.unwrap();
}

pub(super) async fn a_list_is_stored_once_a_hash(store: &dyn Store) {
    let (known, unknown) = (key("default", TEXT, "0a"), key("default", TEXT, "0b"));
    let both = BTreeSet::from([known.clone(), unknown.clone()]);
    assert_eq!(store.missing_components(&both).await.unwrap(), both);
    assert_eq!(store.missing_components(&BTreeSet::new()).await.unwrap(), BTreeSet::new());
    put(store, &known, &list("first"), 1).await;
    assert_eq!(store.missing_components(&both).await.unwrap(), BTreeSet::from([unknown.clone()]));
    assert_eq!(store.components(&known).await.unwrap(), Some(list("first")));
    assert_eq!(store.components(&unknown).await.unwrap(), None);
    put(store, &known, &list("second"), 2).await;
    assert_eq!(store.components(&known).await.unwrap(), Some(list("second")));
    put(store, &unknown, &Components::new(), 3).await;
    assert_eq!(store.components(&unknown).await.unwrap(), Some(Components::new()));
}

pub(super) async fn lists_of_other_tenants_and_types_are_others(store: &dyn Store) {
    let keys = [key("a", "", "01"), key("b", "", "01"), key("a", "otelcol", "01"), key("a", "", "02")];
    let lists: BTreeMap<_, _> =
        (0..).zip(&keys).map(|(at, key)| (key.clone(), list(&format!("{at}")))).collect();
    store.put_components(&lists, Timestamp(1)).await.unwrap();
    for (key, list) in &lists {
        assert_eq!(store.components(key).await.unwrap().as_ref(), Some(list), "{key:?}");
    }
    let others = BTreeSet::from([key("b", "", "02"), key("b", "otelcol", "01")]);
    assert_eq!(store.missing_components(&others).await.unwrap(), others);
}

pub(super) async fn the_lists_that_changed_last_are_kept(store: &dyn Store) {
    let hash = |at: usize| format!("{at:08x}");
    let other = key("other", "", "00");
    put(store, &other, &list("other"), 0).await;
    let lists: BTreeMap<_, _> =
        (0..MAX_COMPONENT_LISTS).map(|at| (key("default", "", &hash(at)), Components::new())).collect();
    store.put_components(&lists, Timestamp(5)).await.unwrap();
    let old = key("default", "z", "old");
    put(store, &old, &list("old"), 4).await;
    assert_eq!(store.components(&old).await.unwrap(), None, "others changed later");
    put(store, &old, &list("new"), 6).await;
    assert_eq!(store.components(&old).await.unwrap(), Some(list("new")));
    let gone = store.missing_components(&lists.into_keys().collect()).await.unwrap();
    assert_eq!(gone.len(), 1, "{gone:?}");
    assert_eq!(store.components(&other).await.unwrap(), Some(list("other")));
}
