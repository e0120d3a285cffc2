//! What the api reads.

use std::collections::BTreeMap;

use muster_domain::ids::{AgentKey, Cell, InstanceUid, Timestamp};

use super::build::{
    agent, cell, key, key_of, keys, rich_agent, rich_config, store_all, store_in, tenant, write,
};
use crate::store::{AgentWrite, Store, StoredAgent};

pub(super) async fn an_agent_is_read_with_all_its_parts(store: &dyn Store) {
    store.ping().await.unwrap();
    assert_eq!(store.agent(&key(1)).await.unwrap(), None);
    let whole = AgentWrite { effective_config: Some(rich_config()), ..write(rich_agent(&key(1))) };
    store_in(store, &cell(), vec![whole, write(agent(&key(2)))]).await;
    let labels = BTreeMap::from([("zone".to_owned(), Some("eu".to_owned()))]);
    let labels = store.label(&key(1), &labels, Timestamp(1)).await.unwrap().unwrap();
    let rich = StoredAgent { agent: rich_agent(&key(1)), labels };
    assert_eq!(store.agent(&key(1)).await.unwrap(), Some((rich.clone(), Some(rich_config()))));
    let bare = StoredAgent { agent: agent(&key(2)), labels: BTreeMap::new() };
    assert_eq!(store.agent(&key(2)).await.unwrap(), Some((bare.clone(), None)));
    assert_eq!(store.page(&tenant("default"), None, 10).await.unwrap(), [rich, bare]);
}

async fn page_through(store: &dyn Store, name: &str, limit: usize) -> Vec<AgentKey> {
    let mut found = Vec::<AgentKey>::new();
    loop {
        let after = found.last().map(|key| key.uid);
        let page = store.page(&tenant(name), after, limit).await.unwrap();
        assert!(page.len() <= limit);
        let page = keys(&page);
        if page.is_empty() {
            return found;
        }
        assert!(found.last() < page.first(), "a page does not begin after the one before");
        found.extend(page);
    }
}

pub(super) async fn a_tenant_is_paged_in_order_of_uids(store: &dyn Store) {
    assert_eq!(store.page(&tenant("default"), None, 10).await.unwrap(), []);
    let numbers = [0, 1, 2, 0xff, 0x100, 1 << 64, 1 << 120, 1 << 127, u128::MAX - 1, u128::MAX];
    let expected = numbers.map(key);
    let there: Cell = "there".parse().unwrap();
    let (near, far) = expected.split_at(6);
    store_in(store, &there, near.iter().map(|key| write(agent(key))).collect()).await;
    store_in(store, &cell(), far.iter().rev().map(|key| write(agent(key))).collect()).await;
    for limit in [1, 3, 10, 100] {
        assert_eq!(page_through(store, "default", limit).await, expected, "{limit} a page");
    }
    let after: InstanceUid = key(3).uid;
    let page = store.page(&tenant("default"), Some(after), 2).await.unwrap();
    assert_eq!(keys(&page), [key(0xff), key(0x100)], "after a uid that is not stored");
}

pub(super) async fn tenants_are_apart(store: &dyn Store) {
    let ours = [1, 2, 3].map(|number| key_of("ours", number));
    let theirs = [2, 3, 4].map(|number| key_of("theirs", number));
    let rich =
        |key: &AgentKey| AgentWrite { effective_config: Some(rich_config()), ..write(rich_agent(key)) };
    store_all(store, ours.iter().map(agent)).await;
    store_in(store, &cell(), theirs.iter().map(rich).collect()).await;
    assert_eq!(page_through(store, "ours", 2).await, ours);
    assert_eq!(page_through(store, "theirs", 2).await, theirs);
    assert_eq!(page_through(store, "nobody", 2).await, []);
    let of = |stored: AgentKey| StoredAgent { agent: agent(&stored), labels: BTreeMap::new() };
    assert_eq!(store.agent(&key_of("ours", 2)).await.unwrap(), Some((of(key_of("ours", 2)), None)));
    assert_eq!(store.agent(&key_of("ours", 4)).await.unwrap(), None);
    assert_eq!(store.agent(&key_of("theirs", 1)).await.unwrap(), None);
    let (stored, config) = store.agent(&key_of("theirs", 2)).await.unwrap().unwrap();
    assert_eq!((stored.agent, config), (rich_agent(&key_of("theirs", 2)), Some(rich_config())));
}
