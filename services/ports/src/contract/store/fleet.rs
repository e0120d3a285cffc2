//! What the api reads.

use std::collections::BTreeMap;
use std::ops::Index;

use muster_domain::agent::{Agent, EndReason, Session};
use muster_domain::ids::{AgentKey, Cell, InstanceUid, Timestamp};
use muster_domain::liveness::{AgentFilter, Liveness};
use muster_domain::report::{Attributes, Description};
use muster_domain::selector::AgentSelector;

use super::build::{
    NOW, agent, cell, key, key_of, keys, rich_agent, rich_config, session, store_all, store_in, tenant, write,
};
use crate::contract::poll::join;
use crate::store::{AgentWrite, Store, StoredAgent};

pub(super) async fn an_agent_is_read_with_all_its_parts(store: &dyn Store) {
    store.ping().await.unwrap();
    assert_eq!(store.agent(&key(1)).await.unwrap(), None);
    let whole = AgentWrite { effective_config: Some(rich_config()), ..write(rich_agent(&key(1))) };
    store_in(store, &cell(), vec![whole, write(agent(&key(2)))]).await;
    let labels = BTreeMap::from([("zone".to_owned(), Some("eu".to_owned()))]);
    let labels = store.label(&key(1), &labels, Timestamp(1), None).await.unwrap().unwrap();
    let rich = StoredAgent { agent: rich_agent(&key(1)), labels };
    assert_eq!(store.agent(&key(1)).await.unwrap(), Some((rich.clone(), Some(rich_config()))));
    let bare = StoredAgent { agent: agent(&key(2)), labels: BTreeMap::new() };
    assert_eq!(store.agent(&key(2)).await.unwrap(), Some((bare.clone(), None)));
    assert_eq!(store.page(&tenant("default"), &everyone(), None, 10).await.unwrap(), [rich, bare]);
}

/// An attribute's value.
type Value = <Attributes as Index<&'static str>>::Output;

fn everyone() -> AgentSelector {
    AgentSelector::default()
}

async fn page_through(store: &dyn Store, name: &str, limit: usize) -> Vec<AgentKey> {
    select(store, name, &everyone(), limit).await
}

async fn select(store: &dyn Store, name: &str, selector: &AgentSelector, limit: usize) -> Vec<AgentKey> {
    let mut found = Vec::<AgentKey>::new();
    loop {
        let after = found.last().map(|key| key.uid);
        let page = store.page(&tenant(name), selector, after, limit).await.unwrap();
        assert!(page.len() <= limit);
        let is_last = page.len() < limit;
        let page = keys(&page);
        assert!(page.is_empty() || found.last() < page.first(), "a page does not begin after the one before");
        found.extend(page);
        if is_last {
            return found;
        }
    }
}

pub(super) async fn a_tenant_is_paged_in_order_of_uids(store: &dyn Store) {
    assert_eq!(store.page(&tenant("default"), &everyone(), None, 10).await.unwrap(), []);
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
    let page = store.page(&tenant("default"), &everyone(), Some(after), 2).await.unwrap();
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

pub(super) async fn an_agent_of_two_cells_is_shown_once(store: &dyn Store) {
    let there: Cell = "there".parse().unwrap();
    let at = |seconds: u64, number| {
        let started_at = Timestamp(NOW.0 + seconds * 1_000_000);
        Some(Session { started_at, ..session(number, 1) })
    };
    let kind = |name: &str, key: &AgentKey, session| {
        let mut agent = Agent { session, ..agent(key) };
        let identifying = [("kind".to_owned(), name.into())].into();
        agent.state.description = Some(Description { identifying, ..Description::default() });
        agent
    };
    // The later session, the only session, the only cell.
    let (old, new) = ("old", "new");
    let here = [kind(old, &key(1), at(1, 1)), kind(new, &key(2), at(1, 2)), kind(old, &key(3), None)];
    let moved = [kind(new, &key(1), at(2, 3)), kind(old, &key(2), None), kind(new, &key(4), None)];
    let whole = |agent: &Agent| AgentWrite {
        effective_config: (agent.key == key(1)).then(rich_config),
        ..write(agent.clone())
    };
    store_in(store, &there, moved.iter().map(whole).collect()).await;
    store_all(store, here.clone()).await;
    let shown = [&moved[0], &here[1], &here[2], &moved[2]];
    for agent in shown {
        let (stored, config) = store.agent(&agent.key).await.unwrap().unwrap();
        assert_eq!((&stored.agent, config), (agent, whole(agent).effective_config));
    }
    for limit in [1, 2, 10] {
        let all = page_through(store, "default", limit).await;
        assert_eq!(all, [key(1), key(2), key(3), key(4)]);
        let of_kind = async |text: &str| select(store, "default", &selector(text, &[]), limit).await;
        assert_eq!(of_kind("kind=new").await, [key(1), key(2), key(4)]);
        assert_eq!(of_kind("kind=old").await, [key(3)], "what is no longer shown is not found");
    }
    // Between sessions that began at once, any is shown, but always the same.
    let both = kind("both", &key(5), at(3, 4));
    store_in(store, &there, vec![write(both.clone())]).await;
    store_all(store, [both]).await;
    assert_eq!(select(store, "default", &selector("kind=both", &[]), 10).await, [key(5)]);
}

fn selector(requirements: &str, agent_ids: &[&str]) -> AgentSelector {
    let agent_ids = agent_ids.iter().map(|id| (*id).to_owned());
    AgentSelector::new(requirements.parse().unwrap(), agent_ids).unwrap()
}

pub(super) async fn a_selector_filters(store: &dyn Store) {
    let describe = |number: u128, identifying: &[(&str, Value)], other: &[(&str, &str)]| {
        let mut agent = agent(&key(number));
        agent.state.description = Some(Description {
            identifying: identifying.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
            non_identifying: other.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect(),
        });
        agent
    };
    let long = "x".repeat(2000);
    let agents = [
        describe(1, &[("zone", "eu".into()), ("n", 1.into())], &[("os", "linux"), ("zone", "hidden")]),
        describe(2, &[("zone", "us".into()), ("n", 1.0.into())], &[("os", "linux")]),
        describe(3, &[("flag", true.into()), ("list", vec!["a"].into())], &[("os", "mac os \"x\" \\")]),
        describe(4, &[("none", ().into()), ("nul", "a\u{0}b".into()), ("long", long.as_str().into())], &[]),
        agent(&key(5)),
        rich_agent(&key(6)),
    ];
    store_all(store, agents).await;
    store_all(store, [agent(&key_of("other", 7))]).await;
    for (number, labels) in [
        (2, vec![("zone", "eu"), ("name", "edge-2")]),
        (3, vec![("os", "linux"), ("team", "")]),
        (5, vec![("name", "edge-5"), ("zone", "us")]),
    ] {
        let labels = labels.into_iter().map(|(key, value)| (key.to_owned(), Some(value.to_owned())));
        store.label(&key(number), &labels.collect(), Timestamp(1), None).await.unwrap();
    }
    let uid = |number| key(number).uid.to_string();
    let cases: [(&str, &[&str], &[u128]); 29] = [
        ("", &[], &[1, 2, 3, 4, 5, 6]),
        ("zone=eu", &[], &[1, 2]),
        ("zone=hidden", &[], &[]),
        ("zone in (eu, us)", &[], &[1, 2, 5]),
        ("zone in (eu, us), os=linux", &[], &[1, 2]),
        ("zone!=eu", &[], &[3, 4, 5, 6]),
        ("zone notin (eu, us)", &[], &[3, 4, 6]),
        ("zone", &[], &[1, 2, 5]),
        ("!zone", &[], &[3, 4, 6]),
        ("os=linux", &[], &[1, 2, 3]),
        ("os='mac os \"x\" \\\\'", &[], &[]),
        ("team=''", &[], &[3]),
        ("team", &[], &[3]),
        ("n=1", &[], &[1]),
        ("n='1.0'", &[], &[2]),
        ("flag=true", &[], &[3, 6]),
        ("flag in (true, false), list='[\"a\"]'", &[], &[3]),
        ("none=null", &[], &[4]),
        ("nothing=null", &[], &[6]),
        ("nul", &[], &[4]),
        ("nul!=a", &[], &[1, 2, 3, 4, 5, 6]),
        ("long", &[], &[4]),
        ("zone=eu, zone!=eu", &[], &[]),
        ("name=edge-2", &[], &[2]),
        ("", &["edge-5"], &[5]),
        ("", &["edge-5", "edge-9", "EDGE-2"], &[5]),
        ("", &[&uid(4)], &[4]),
        ("zone=eu", &["edge-5", &uid(4), &uid(9), &uid(7)], &[1, 2, 4, 5]),
        ("largest=18446744073709551615, float='0.1'", &[], &[6]),
    ];
    for (requirements, agent_ids, expected) in cases {
        let expected: Vec<_> = expected.iter().copied().map(key).collect();
        for limit in [1, 2, 100] {
            let found = select(store, "default", &selector(requirements, agent_ids), limit).await;
            assert_eq!(found, expected, "{requirements:?} and {agent_ids:?}, {limit} a page");
        }
    }
    assert_eq!(select(store, "other", &selector("!zone", &[]), 10).await, [key_of("other", 7)]);
}

pub(super) async fn a_filter_finds_agents_by_liveness_and_drift(store: &dyn Store) {
    let ended = |number: u128, reason| {
        let session = Session { ended: Some((NOW, reason)), ..session(number, 1) };
        Agent { session: Some(session), ..agent(&key(number)) }
    };
    let drifted = |mut agent: Agent| {
        agent.state.drift = rich_agent(&agent.key).state.drift;
        agent
    };
    let silent = Session { silent_since: Some(NOW), ..session(2, 1) };
    let agents = [
        drifted(agent(&key(1))),
        Agent { session: Some(silent), ..agent(&key(2)) },
        ended(3, EndReason::ConnectionLost),
        ended(4, EndReason::Closed),
        drifted(ended(5, EndReason::AgentDisconnect)),
        ended(6, EndReason::GatewayLost),
        Agent { session: None, ..agent(&key(7)) },
    ];
    store_all(store, agents).await;
    let find = async |selector: &AgentSelector, kinds: &[Liveness], drifted, limit| {
        let filter = AgentFilter { liveness: kinds.iter().copied().collect(), drifted };
        let mut found = Vec::new();
        loop {
            let after = found.last().map(|key: &AgentKey| key.uid);
            let page = store.find(&tenant("default"), selector, &filter, after, limit).await.unwrap();
            found.extend(keys(&page));
            if page.len() < limit {
                return found;
            }
        }
    };
    use Liveness::{Connected, Disconnected, ShutDown, Unreachable};
    let cases: [(&[Liveness], Option<bool>, &[u128]); 8] = [
        (&[], None, &[1, 2, 3, 4, 5, 6, 7]),
        (&[Connected], None, &[1]),
        (&[Unreachable], None, &[2, 3]),
        (&[Disconnected], None, &[4, 6, 7]),
        (&[ShutDown, Connected], None, &[1, 5]),
        (&[], Some(true), &[1, 5]),
        (&[], Some(false), &[2, 3, 4, 6, 7]),
        (&[ShutDown], Some(true), &[5]),
    ];
    for (kinds, drifted, expected) in cases {
        let expected: Vec<_> = expected.iter().copied().map(key).collect();
        for limit in [1, 100] {
            assert_eq!(find(&everyone(), kinds, drifted, limit).await, expected, "{kinds:?}, {drifted:?}");
        }
    }
    let one = selector("", &[&key(5).uid.to_string()]);
    assert_eq!(find(&one, &[ShutDown], None, 10).await, [key(5)]);
    assert_eq!(find(&one, &[Connected], None, 10).await, []);
    // What is written later counts.
    store_all(store, [ended(1, EndReason::Silent)]).await;
    assert_eq!(find(&everyone(), &[Connected], None, 10).await, []);
    assert_eq!(find(&everyone(), &[], Some(true), 10).await, [key(5)]);
}

pub(super) async fn a_selector_sees_what_was_written_last(store: &dyn Store) {
    let described = |zone: &str| {
        let mut agent = agent(&key(1));
        let identifying = [("zone".to_owned(), zone.into())].into();
        agent.state.description = Some(Description { identifying, ..Description::default() });
        agent
    };
    let label = async |value: Option<&str>| {
        let changes = BTreeMap::from([("zone".to_owned(), value.map(str::to_owned))]);
        store.label(&key(1), &changes, Timestamp(1), None).await.unwrap();
    };
    let is_in = async |zone: &str| {
        let found = select(store, "default", &selector(&format!("zone={zone}"), &[]), 10).await;
        found == [key(1)]
    };
    store_all(store, [described("a")]).await;
    assert!(is_in("a").await);
    store_all(store, [described("b")]).await;
    assert!(is_in("b").await && !is_in("a").await);
    label(Some("c")).await;
    assert!(is_in("c").await && !is_in("b").await);
    store_all(store, [described("d")]).await;
    assert!(is_in("c").await && !is_in("d").await, "a report does not hide a label");
    // Known to another cell later, it has its labels there too.
    let mut moved = described("f");
    moved.session = moved.session.map(|session| Session { started_at: Timestamp(NOW.0 + 1), ..session });
    store_in(store, &"there".parse().unwrap(), vec![write(moved)]).await;
    assert!(is_in("c").await && !is_in("f").await);
    label(None).await;
    assert!(is_in("f").await && !is_in("c").await && !is_in("d").await);
}

pub(super) async fn a_cluster_has_one_id(store: &dyn Store) {
    let (one, other) = join(store.cluster(), store.cluster()).await;
    assert_eq!(one.unwrap(), other.unwrap());
    let id = store.cluster().await.unwrap();
    assert!(!id.is_nil());
    store_all(store, [agent(&key(1))]).await;
    assert_eq!(store.cluster().await.unwrap(), id);
}
