//! How entries of the log change an agent.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::report::ConfigFile;

fn key() -> AgentKey {
    AgentKey { tenant: "default".parse().unwrap(), uid: crate::ids::InstanceUid(Uuid::from_u128(1)) }
}

fn entry(session: u128, claim: u64, at: u64) -> Entry {
    Entry {
        session: SessionId(Uuid::from_u128(session)),
        claim: Claim(claim),
        gateway: "gw-1".parse().unwrap(),
        incarnation: Incarnation(Uuid::from_u128(9)),
        received_at: Timestamp(at),
        sequence_num: at,
        started: None,
        report: None,
        sent: None,
        ended: None,
        silent: false,
        unsent: None,
    }
}

fn hash(byte: u8) -> ConfigHash {
    ConfigHash::new(&[byte]).unwrap()
}

fn status(hash: Option<ConfigHash>, status: ConfigStatus) -> Report {
    let error_message = if status == ConfigStatus::Failed { "no such receiver" } else { "" }.to_owned();
    Report { remote_config: Some(RemoteConfigStatus { hash, status, error_message }), ..Report::default() }
}

fn report(agent: &mut Agent, at: u64, report: Report) -> Folded {
    agent.fold(Entry { report: Some(report), ..entry(1, 1, at) })
}

fn offer(agent: &mut Agent, byte: u8, at: u64) {
    agent.fold(entry(1, 1, at));
    agent.state.set_desired(Some(hash(byte)), None);
    agent.state.offered = Some(Offered {
        hash: hash(byte),
        session: SessionId(Uuid::from_u128(1)),
        first_at: Timestamp(at),
        attempts: 1,
        next_at: Timestamp(at + 10),
    });
}

#[test]
fn a_session_starts_is_taken_over_and_ends() {
    let mut agent = Agent::new(key(), Timestamp(1));
    let first = agent
        .fold(Entry { started: Some((Transport::WebSocket, "10.0.0.1:5".to_owned())), ..entry(1, 10, 1) });
    assert_eq!(first.events, [AgentEvent::Connected]);
    assert_eq!(first.superseded, None);

    let second = agent.fold(entry(2, 11, 2));
    assert_eq!(second.superseded.map(|old| old.remote_addr), Some("10.0.0.1:5".to_owned()));

    let late = agent.fold(Entry { ended: Some(EndReason::ConnectionLost), ..entry(1, 10, 3) });
    assert_eq!(
        late,
        Folded { outclaimed: Some(Claim(11)), ..Folded::default() },
        "the end of the old session is not the end of the new one"
    );
    assert!(agent.live_session().is_some());

    let end = agent.fold(Entry { ended: Some(EndReason::AgentDisconnect), ..entry(2, 11, 4) });
    assert_eq!(end.events, [AgentEvent::Disconnected(EndReason::AgentDisconnect)]);
    assert!(agent.live_session().is_none());
}

#[test]
fn absent_parts_are_unchanged() {
    let mut agent = Agent::new(key(), Timestamp(1));
    let mut description = Description::default();
    description.identifying.insert("service.name".to_owned(), "otelcol".into());
    let full = Report {
        description: Some(description.clone()),
        capabilities: AgentCapabilities(7),
        health: Some(Health { healthy: true, ..Health::default() }),
        ..Report::default()
    };
    report(&mut agent, 1, full);
    let nothing = report(&mut agent, 2, Report::default());
    assert_eq!(nothing.events, []);
    assert_eq!(agent.state.description, Some(description));
    assert_eq!(agent.state.capabilities, AgentCapabilities(7));
    assert_eq!(agent.state.sequence_num, 2);
}

#[test]
fn an_effective_config_is_stored_when_it_changes() {
    let mut agent = Agent::new(key(), Timestamp(1));
    let file = ConfigFile { content_type: String::new(), body: b"a: 1".to_vec() };
    let map = ConfigMap::from([(String::new(), file)]);
    let effective = |map: &ConfigMap| Report { effective_config: Some(map.clone()), ..Report::default() };
    assert_eq!(report(&mut agent, 1, effective(&map)).effective_config, Some(map.clone()));
    assert_eq!(report(&mut agent, 2, effective(&map)).effective_config, None);
}

#[test]
fn an_applied_offer_is_settled_and_timed() {
    let mut agent = Agent::new(key(), Timestamp(1));
    offer(&mut agent, 1, 100);
    assert_eq!(report(&mut agent, 110, status(Some(hash(1)), ConfigStatus::Applying)).events, []);
    let applied = report(&mut agent, 150, status(Some(hash(1)), ConfigStatus::Applied));
    let took = Some(Duration::from_micros(50));
    assert_eq!(applied.events, [AgentEvent::ConfigApplied { hash: hash(1), took }]);
    assert_eq!(agent.state.offered, None);
}

#[test]
fn a_failed_hash_is_remembered_until_the_desired_one_changes() {
    let mut agent = Agent::new(key(), Timestamp(1));
    offer(&mut agent, 2, 100);
    report(&mut agent, 110, status(Some(hash(2)), ConfigStatus::Failed));
    report(&mut agent, 120, status(Some(hash(1)), ConfigStatus::Applied));
    let failed = FailedConfig { hash: hash(2), error_message: "no such receiver".into(), at: Timestamp(110) };
    assert_eq!(agent.state.failed, Some(failed));
    assert!(!agent.state.set_desired(Some(hash(2)), None));
    assert!(agent.state.failed.is_some());
    assert!(agent.state.set_desired(Some(hash(3)), None));
    assert_eq!(agent.state.failed, None);
}

#[test]
fn another_try_forgets_a_failure_once_for_each_asking() {
    let mut agent = Agent::new(key(), Timestamp(1));
    offer(&mut agent, 2, 100);
    report(&mut agent, 110, status(Some(hash(2)), ConfigStatus::Failed));
    assert!(agent.state.set_retried(IntentRevision(5)));
    assert_eq!((&agent.state.failed, &agent.state.offered), (&None, &None));
    assert_eq!(agent.state.remote_config, RemoteConfigStatus::default());
    let again = report(&mut agent, 120, status(Some(hash(2)), ConfigStatus::Failed));
    assert_eq!(again.events.len(), 1, "the same report is news again");
    assert!(!agent.state.set_retried(IntentRevision(5)));
    assert!(agent.state.failed.is_some());
    report(&mut agent, 130, status(Some(hash(1)), ConfigStatus::Applied));
    assert!(agent.state.set_retried(IntentRevision(6)));
    assert_eq!(agent.state.remote_config.hash, Some(hash(1)), "what it runs stays known");
}

#[test]
fn the_last_changes_of_the_status_are_kept() {
    let mut agent = Agent::new(key(), Timestamp(1));
    for at in 0..30 {
        let of = if at % 2 == 0 { ConfigStatus::Applying } else { ConfigStatus::Failed };
        report(&mut agent, at, status(Some(hash(1)), of));
        report(&mut agent, at, status(Some(hash(1)), of));
    }
    let history = &agent.state.remote_config_history;
    assert_eq!(history.len(), HISTORY);
    assert_eq!(history.first().map(|change| change.at), Some(Timestamp(20)));
    assert_eq!(history.last().map(|change| change.status.status), Some(ConfigStatus::Failed));
}

#[test]
fn components_are_known_by_tenant_type_and_hash() {
    let mut agent = Agent::new(key(), Timestamp(1));
    let available = AvailableComponents { hash: "0a".to_owned(), components: None };
    let folded =
        report(&mut agent, 1, Report { available_components: Some(available.clone()), ..Report::default() });
    assert_eq!(folded.components, Some(available));
    let id = agent.state.components_key(&agent.key.tenant).unwrap();
    assert_eq!((id.agent_type.as_str(), id.hash.as_str()), ("", "0a"));
    let mut description = Description::default();
    description.identifying.insert("service.name".to_owned(), "ö".repeat(200).into());
    report(&mut agent, 2, Report { description: Some(description), ..Report::default() });
    let id = agent.state.components_key(&agent.key.tenant).unwrap();
    assert_eq!(id.agent_type, "ö".repeat(128));
}

#[test]
fn a_status_without_a_hash_is_about_the_offer() {
    let mut agent = Agent::new(key(), Timestamp(1));
    offer(&mut agent, 2, 100);
    report(&mut agent, 110, status(None, ConfigStatus::Failed));
    assert_eq!(agent.state.failed.as_ref().map(|failed| &failed.hash), Some(&hash(2)));
    assert_eq!(agent.state.remote_config.hash, Some(hash(2)));
}

#[test]
fn a_status_without_a_hash_is_not_about_an_offer_that_may_not_have_arrived() {
    let mut agent = Agent::new(key(), Timestamp(1));
    offer(&mut agent, 2, 100);
    report(&mut agent, 110, status(None, ConfigStatus::Applied));
    offer(&mut agent, 3, 200);
    let full = |effective: Option<&str>| Report {
        description: Some(crate::report::Description::default()),
        effective_config: effective.map(|body| {
            let file = ConfigFile { body: body.into(), ..ConfigFile::default() };
            [("a".to_owned(), file)].into()
        }),
        ..status(None, ConfigStatus::Applied)
    };
    // What it reports in full is as before.
    report(&mut agent, 210, full(None));
    assert_eq!(agent.state.remote_config.hash, Some(hash(2)));
    assert!(agent.state.offered.is_some());
    // Another session was not offered anything yet.
    let news = status(None, ConfigStatus::Failed);
    agent.fold(Entry { report: Some(news), ..entry(2, 2, 220) });
    assert_eq!((&agent.state.remote_config.hash, &agent.state.failed), (&None, &None));
    // It runs something else than was known.
    report(&mut agent, 230, status(Some(hash(2)), ConfigStatus::Applied));
    agent.fold(Entry { report: Some(full(Some("x"))), ..entry(2, 2, 240) });
    assert_eq!(agent.state.remote_config.hash, None);
}

#[test]
fn a_status_without_a_hash_is_about_what_was_sent_and_not_about_what_was_offered() {
    let mut agent = Agent::new(key(), Timestamp(1));
    offer(&mut agent, 2, 100);
    let news = |sent| Entry { report: Some(status(None, ConfigStatus::Applied)), sent, ..entry(1, 1, 110) };
    // The offer was lost on its way, and the agent is at the one before.
    agent.fold(news(Some(None)));
    assert_eq!(agent.state.remote_config.hash, None);
    agent.fold(news(Some(Some(hash(1)))));
    assert_eq!(agent.state.remote_config.hash, Some(hash(1)));
    assert!(agent.state.offered.is_some());
}

proptest! {
    /// Invariant 2 in part: whatever the order of arrival, the highest claim speaks for the agent.
    #[test]
    fn the_highest_claim_wins(claims in proptest::collection::vec(1_u64..6, 1..12)) {
        let mut agent = Agent::new(key(), Timestamp(0));
        for claim in &claims {
            agent.fold(entry(u128::from(*claim), *claim, 1));
        }
        let highest = claims.iter().max().copied().map(Claim);
        prop_assert_eq!(agent.session.map(|session| session.claim), highest);
    }

    /// The state survives being stored.
    #[test]
    fn state_survives_storage(sequence_num in any::<u64>(), bits in any::<u64>(), failed in any::<bool>()) {
        let mut agent = Agent::new(key(), Timestamp(3));
        offer(&mut agent, 4, 5);
        agent.state.sequence_num = sequence_num;
        agent.state.capabilities = AgentCapabilities(bits);
        if failed {
            report(&mut agent, 7, status(Some(hash(4)), ConfigStatus::Failed));
        }
        let text = serde_json::to_string(&agent.state).unwrap();
        prop_assert_eq!(serde_json::from_str::<AgentState>(&text).unwrap(), agent.state);
    }
}

#[test]
fn a_custom_message_is_an_event_and_is_not_kept() {
    let mut agent = Agent::new(key(), Timestamp(1));
    agent.fold(entry(1, 1, 1));
    let before = agent.state.clone();
    let message = CustomMessage { capability: "c".to_owned(), kind: "t".to_owned(), data: vec![1] };
    let folded = report(&mut agent, 2, Report { custom_message: Some(message.clone()), ..Report::default() });
    assert_eq!(folded.events, [AgentEvent::CustomMessage(message)]);
    assert_eq!(agent.state, AgentState { last_report: Timestamp(2), sequence_num: 2, ..before });
}
