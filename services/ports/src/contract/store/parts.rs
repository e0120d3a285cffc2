//! What an agent is made of, and writing some of it.

use muster_domain::agent::{Agent, EndReason, Session, Transport};
use muster_domain::ids::{Claim, Timestamp};
use muster_domain::report::{ConfigFile, ConfigMap};

use super::build::{
    NOW, agent, cell, key, rich_agent, rich_config, session, store_all, store_in, stored, write,
};
use crate::store::{AgentWrite, Store, StoredAgent};

async fn effective_config(store: &dyn Store, number: u128) -> Option<ConfigMap> {
    store.agent(&key(number)).await.unwrap().and_then(|(_, config)| config)
}

pub(super) async fn every_part_is_read_back(store: &dyn Store) {
    let rich = rich_agent(&key(1));
    let whole = AgentWrite { effective_config: Some(rich_config()), ..write(rich.clone()) };
    store_in(store, &cell(), vec![whole]).await;
    let expected = StoredAgent { agent: rich, labels: Default::default() };
    assert_eq!(store.agents(&cell(), &[key(1)]).await.unwrap(), std::slice::from_ref(&expected));
    assert_eq!(store.agent(&key(1)).await.unwrap(), Some((expected, Some(rich_config()))));
    let bare = Agent::new(key(2), Timestamp(0));
    store_all(store, [bare.clone()]).await;
    assert_eq!(stored(store, &key(2)).await, Some(bare));
}

pub(super) async fn every_kind_of_session_is_read_back(store: &dyn Store) {
    let reasons = [
        None,
        Some(EndReason::AgentDisconnect),
        Some(EndReason::ConnectionLost),
        Some(EndReason::Closed),
        Some(EndReason::Operator),
        Some(EndReason::GatewayStopped),
        Some(EndReason::GatewayLost),
        Some(EndReason::Superseded),
        Some(EndReason::Silent),
        Some(EndReason::ProtocolError),
    ];
    for transport in [Transport::WebSocket, Transport::Http] {
        for (number, reason) in (1..).zip(reasons) {
            let session = Session {
                claim: Claim(i64::MAX as u64 - number),
                gateway: format!("gateway-{number}.example").parse().unwrap(),
                transport,
                remote_addr: if number > 1 { format!("10.0.0.{number}:1") } else { String::new() },
                started_at: Timestamp(number),
                ended: reason.map(|reason| (Timestamp(i64::MAX as u64), reason)),
                ..session(number.into(), number.into())
            };
            let agent = Agent { session: Some(session), ..agent(&key(1)) };
            store_all(store, [agent.clone()]).await;
            assert_eq!(stored(store, &key(1)).await, Some(agent));
        }
    }
    let silent = Session { silent_since: Some(Timestamp(NOW.0 + 1)), ..session(1, 1) };
    let silent = Agent { session: Some(silent), ..agent(&key(1)) };
    store_all(store, [silent.clone()]).await;
    assert_eq!(stored(store, &key(1)).await, Some(silent));
}

pub(super) async fn a_part_that_is_not_written_stays(store: &dyn Store) {
    let (first, other) = (rich_agent(&key(1)), agent(&key(1)));
    let config = ConfigMap::from([("other".to_owned(), ConfigFile::default())]);
    let whole = AgentWrite { effective_config: Some(rich_config()), ..write(first.clone()) };
    for session in [false, true] {
        for state in [false, true] {
            for effective_config in [None, Some(config.clone())] {
                store_in(store, &cell(), vec![whole.clone()]).await;
                let partial = AgentWrite {
                    agent: other.clone(),
                    session,
                    state,
                    effective_config: effective_config.clone(),
                };
                store_in(store, &cell(), vec![partial]).await;
                let expected = Agent {
                    key: key(1),
                    session: if session { &other } else { &first }.session.clone(),
                    state: if state { &other } else { &first }.state.clone(),
                };
                assert_eq!(stored(store, &key(1)).await, Some(expected));
                let expected = effective_config.unwrap_or_else(rich_config);
                assert_eq!(self::effective_config(store, 1).await, Some(expected));
            }
        }
    }
    let without = AgentWrite { state: false, ..write(Agent { session: None, ..first.clone() }) };
    store_in(store, &cell(), vec![without]).await;
    let left = stored(store, &key(1)).await.unwrap();
    assert_eq!(left.session, None, "a session that is none is written like any other");
}

pub(super) async fn a_new_agent_is_written_whole(store: &dyn Store) {
    let nothing = |number: u128, effective_config| AgentWrite {
        agent: rich_agent(&key(number)),
        session: false,
        state: false,
        effective_config,
    };
    let writes = vec![
        nothing(1, None),
        nothing(2, Some(rich_config())),
        AgentWrite { session: true, ..nothing(3, None) },
        AgentWrite { state: true, ..nothing(4, None) },
    ];
    store_in(store, &cell(), writes).await;
    for number in 1..=4 {
        assert_eq!(stored(store, &key(number)).await, Some(rich_agent(&key(number))), "agent {number}");
        let config = (number == 2).then(rich_config);
        assert_eq!(effective_config(store, number).await, config, "agent {number}");
    }
}

pub(super) async fn an_effective_config_is_replaced_whole(store: &dyn Store) {
    let file = |text: &str| ConfigFile { content_type: "text/yaml".to_owned(), body: text.into() };
    let map = |files: &[(&str, &str)]| {
        files.iter().map(|(name, text)| ((*name).to_owned(), file(text))).collect::<ConfigMap>()
    };
    let steps = [
        map(&[("a", "1"), ("b", "1")]),
        map(&[("b", "2"), ("c", "2")]),
        // Reported, and without files: not the same as never reported.
        map(&[]),
        map(&[("a", "3")]),
    ];
    store_all(store, [agent(&key(1)), agent(&key(2))]).await;
    assert_eq!(effective_config(store, 1).await, None);
    for config in steps {
        let only = AgentWrite {
            agent: agent(&key(1)),
            session: false,
            state: false,
            effective_config: Some(config.clone()),
        };
        store_in(store, &cell(), vec![only]).await;
        assert_eq!(effective_config(store, 1).await, Some(config));
    }
    assert_eq!(effective_config(store, 2).await, None, "another agent's is another");
}
