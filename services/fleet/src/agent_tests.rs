//! An agent's reports and what messages of the server do to them.

use bytes::Bytes;
use muster_proto::opamp::{AgentConfigFile, AgentIdentification, AnyValue, RetryInfo, any_value};

use super::*;
use crate::identity;

const STARTED: u64 = 1_000;
const DELAY: Duration = Duration::from_millis(300);

struct Fixture {
    agent: Agent,
    configs: Configs,
    rejects: Rejects,
    now: Instant,
}

impl Fixture {
    fn new(kind: Kind) -> Self {
        let configs = Configs::new();
        let identity = Identity::draw(&mut identity::random(7, 0), 0, kind, true);
        let agent = Agent::new(identity, &configs, STARTED);
        Self { agent, configs, rejects: Rejects::containing("poison"), now: Instant::now() }
    }

    /// An agent whose first report is sent.
    fn settled(kind: Kind) -> Self {
        let mut fixture = Self::new(kind);
        fixture.agent.next_message(STARTED);
        fixture
    }

    fn receive(&mut self, message: ServerToAgent) -> Received {
        let uid = self.agent.identity().uid.as_bytes().to_vec();
        let message = ServerToAgent { instance_uid: uid, ..message };
        self.agent.receive(message, &self.configs, &self.rejects, self.now, DELAY)
    }

    fn next(&mut self) -> AgentToServer {
        self.agent.next_message(STARTED + 1)
    }
}

fn offer(hash: &[u8], body: &'static str) -> ServerToAgent {
    let file = AgentConfigFile { body: Bytes::from(body), content_type: "text/yaml".to_owned() };
    let config = AgentConfigMap { config_map: ConfigFiles::from([("edge".to_owned(), file)]) };
    let remote_config = AgentRemoteConfig { config: Some(config), config_hash: hash.to_vec() };
    ServerToAgent { remote_config: Some(remote_config), ..Default::default() }
}

fn unset(message: &AgentToServer) -> bool {
    message.agent_description.is_none()
        && message.health.is_none()
        && message.effective_config.is_none()
        && message.remote_config_status.is_none()
}

#[test]
fn the_first_report_says_everything() {
    let mut fixture = Fixture::new(Kind::Collector);
    let message = fixture.next();
    assert_eq!(message.sequence_num, 0);
    assert_eq!(message.instance_uid.len(), 16);
    assert_eq!(message.capabilities, Kind::Collector.capabilities());
    assert_eq!(message.remote_config_status, Some(RemoteConfigStatus::default()));
    assert!(message.health.unwrap().healthy);
    assert!(message.effective_config.unwrap().config_map.unwrap().config_map.contains_key("supervisor.yaml"));
    let description = message.agent_description.unwrap();
    let keys = |attributes: &[muster_proto::opamp::KeyValue]| {
        attributes.iter().map(|attribute| attribute.key.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        keys(&description.identifying_attributes),
        ["service.name", "service.version", "service.instance.id"]
    );
    assert_eq!(
        keys(&description.non_identifying_attributes),
        ["os.type", "host.name", "cloud.region", "deployment.environment", "team"]
    );
    let name =
        AnyValue { value: Some(any_value::Value::StringValue("io.opentelemetry.collector".to_owned())) };
    assert_eq!(description.identifying_attributes[0].value, Some(name));
}

#[test]
fn later_messages_say_only_what_changed() {
    let mut fixture = Fixture::settled(Kind::Collector);
    assert!(!fixture.agent.has_news());
    let heartbeat = fixture.next();
    assert!(unset(&heartbeat));
    assert_eq!(heartbeat.sequence_num, 1);
    assert_eq!(heartbeat.capabilities, Kind::Collector.capabilities());
}

#[test]
fn full_state_is_reported_when_asked_for() {
    let mut fixture = Fixture::settled(Kind::FluentBit);
    let flags = ServerToAgentFlags::ReportFullState as u64;
    let received = fixture.receive(ServerToAgent { flags, ..Default::default() });
    assert!(received.full_state_asked && fixture.agent.has_news());
    let message = fixture.next();
    assert_eq!(message.sequence_num, 1);
    assert!(message.agent_description.is_some() && message.health.is_some());
    assert!(message.effective_config.is_some() && message.remote_config_status.is_some());
}

#[test]
fn an_offer_is_applied_after_a_while() {
    let mut fixture = Fixture::settled(Kind::Collector);
    assert_eq!(fixture.receive(offer(b"h1", "a: 1")).offer.as_deref(), Some(&b"h1"[..]));

    let applying = fixture.next();
    let status = applying.remote_config_status.as_ref().unwrap();
    assert_eq!(status.status(), RemoteConfigStatuses::Applying);
    assert_eq!(status.last_remote_config_hash, b"h1");
    assert!(applying.effective_config.is_none() && applying.agent_description.is_none());

    assert_eq!(fixture.agent.due(), Some(fixture.now + DELAY));
    assert_eq!(fixture.agent.finish(fixture.now), None);
    let finished = fixture.agent.finish(fixture.now + DELAY);
    assert_eq!(finished, Some(Finished::Applied { old: None, new: b"h1".to_vec() }));
    assert_eq!(fixture.agent.due(), None);

    let applied = fixture.next();
    assert_eq!(applied.remote_config_status.unwrap().status(), RemoteConfigStatuses::Applied);
    let files = applied.effective_config.unwrap().config_map.unwrap().config_map;
    assert_eq!(files["edge"].body, "a: 1");
    assert!(files.contains_key("supervisor.yaml"));
}

#[test]
fn a_refused_offer_leaves_the_old_configuration() {
    let mut fixture = Fixture::settled(Kind::Collector);
    fixture.receive(offer(b"h1", "a: 1"));
    fixture.agent.finish(fixture.now + DELAY);
    fixture.receive(offer(b"h2", "poison"));
    let finished = fixture.agent.finish(fixture.now + DELAY);
    assert!(matches!(finished, Some(Finished::Failed { .. })));
    let failed = fixture.next();
    let status = failed.remote_config_status.unwrap();
    assert_eq!(status.status(), RemoteConfigStatuses::Failed);
    assert_eq!(status.last_remote_config_hash, b"h2");
    assert_eq!(status.error_message, "edge: \"poison\" is not accepted");
    assert_eq!(fixture.agent.effective()["edge"].body, "a: 1");
    assert_eq!(fixture.agent.applied_hash(), Some(&b"h1"[..]));
}

#[test]
fn a_newer_offer_replaces_the_one_under_way() {
    let mut fixture = Fixture::settled(Kind::Collector);
    fixture.receive(offer(b"h1", "a: 1"));
    fixture.receive(offer(b"h2", "a: 2"));
    let finished = fixture.agent.finish(fixture.now + DELAY);
    assert_eq!(finished, Some(Finished::Applied { old: None, new: b"h2".to_vec() }));
    assert_eq!(fixture.agent.finish(fixture.now + DELAY), None);
}

#[test]
fn a_rejecting_agent_refuses_everything() {
    let mut fixture = Fixture::settled(Kind::Rejecting);
    fixture.receive(offer(b"h1", "a: 1"));
    assert!(matches!(fixture.agent.finish(fixture.now + DELAY), Some(Finished::Failed { .. })));
}

#[test]
fn an_agent_that_takes_no_configuration_keeps_its_own() {
    let mut fixture = Fixture::new(Kind::Custom);
    assert_eq!(fixture.next().remote_config_status, None);
    let received = fixture.receive(offer(b"h1", "a: 1"));
    assert_eq!(received.offer, None);
    assert!(received.wrong.is_some());
    assert!(!fixture.agent.has_news());
}

#[test]
fn a_new_uid_is_adopted_silently() {
    let mut fixture = Fixture::settled(Kind::Collector);
    let old = fixture.agent.identity().uid;
    let new = Uuid::from_bytes([9; 16]);
    let identification = AgentIdentification { new_instance_uid: new.as_bytes().to_vec() };
    let message = ServerToAgent { agent_identification: Some(identification), ..Default::default() };
    assert!(fixture.receive(message.clone()).new_uid);
    assert!(!fixture.agent.has_news());
    assert_eq!(fixture.next().instance_uid, new.as_bytes());

    // Answers to messages that were under way, with the uid once more and without.
    let late = |message| ServerToAgent { instance_uid: old.as_bytes().to_vec(), ..message };
    for late in [late(message.clone()), late(message), late(ServerToAgent::default())] {
        let received = fixture.agent.receive(late, &fixture.configs, &fixture.rejects, fixture.now, DELAY);
        assert_eq!(received, Received::default());
    }
}

#[test]
fn a_new_uid_of_another_length_is_wrong() {
    let mut fixture = Fixture::settled(Kind::Collector);
    let identification = AgentIdentification { new_instance_uid: vec![9; 26] };
    let message = ServerToAgent { agent_identification: Some(identification), ..Default::default() };
    assert!(fixture.receive(message).wrong.is_some());
    assert_ne!(fixture.next().instance_uid, [9; 16]);
}

#[test]
fn a_message_for_somebody_else_has_no_effect() {
    let mut fixture = Fixture::settled(Kind::Collector);
    let message = ServerToAgent { instance_uid: vec![9; 16], ..offer(b"h1", "a: 1") };
    let received = fixture.agent.receive(message, &fixture.configs, &fixture.rejects, fixture.now, DELAY);
    assert!(received.wrong.is_some() && received.offer.is_none());
    assert!(!fixture.agent.has_news());
}

#[test]
fn what_an_unavailable_server_missed_is_said_again() {
    let mut fixture = Fixture::settled(Kind::Collector);
    fixture.receive(offer(b"h1", "a: 1"));
    fixture.next();
    let retry = RetryInfo { retry_after_nanoseconds: 1_500_000_000 };
    let error = ServerErrorResponse {
        r#type: ServerErrorResponseType::Unavailable as i32,
        details: Some(Details::RetryInfo(retry)),
        ..Default::default()
    };
    let received = fixture.receive(ServerToAgent { error_response: Some(error), ..Default::default() });
    assert_eq!(received.unavailable, Some(Some(Duration::from_millis(1500))));
    let again = fixture.next();
    assert_eq!(again.remote_config_status.unwrap().status(), RemoteConfigStatuses::Applying);
    assert!(again.agent_description.is_none());
}

#[test]
fn a_refused_message_is_not_said_again() {
    let mut fixture = Fixture::settled(Kind::Collector);
    let error = ServerErrorResponse {
        r#type: ServerErrorResponseType::BadRequest as i32,
        error_message: "no".to_owned(),
        ..Default::default()
    };
    let received = fixture.receive(ServerToAgent { error_response: Some(error), ..Default::default() });
    assert_eq!(received.refused.as_deref(), Some("ServerErrorResponseType_BadRequest: no"));
    assert_eq!(received.unavailable, None);
    assert!(!fixture.agent.has_news());
}

#[test]
fn the_goodbye_is_numbered_like_the_rest() {
    let mut fixture = Fixture::settled(Kind::Collector);
    let goodbye = fixture.agent.goodbye();
    assert_eq!(goodbye.sequence_num, 1);
    assert!(goodbye.agent_disconnect.is_some() && unset(&goodbye));
}

#[test]
fn a_restart_begins_anew_where_it_is_obeyed() {
    let restart = || ServerToAgent { command: Some(Default::default()), ..Default::default() };
    let mut fixture = Fixture::settled(Kind::Collector);
    fixture.next();
    assert_eq!(fixture.receive(restart()), Received { restart: true, ..Received::default() });
    fixture.agent.restart(STARTED + 9);
    let message = fixture.next();
    assert_eq!(message.sequence_num, 0);
    assert!(message.agent_description.is_some());
    assert_eq!(message.health.unwrap().start_time_unix_nano, STARTED + 9);
    let received = Fixture::settled(Kind::Custom).receive(restart());
    assert!(received.wrong.is_some() && !received.restart, "{received:?}");
}

#[test]
fn a_pause_is_obeyed_and_answered() {
    let message = |kind: &str| {
        let custom_message =
            CustomMessage { capability: PAUSE.to_owned(), r#type: kind.to_owned(), data: Vec::new() };
        ServerToAgent { custom_message: Some(custom_message), ..Default::default() }
    };
    let mut fixture = Fixture::new(Kind::Custom);
    assert_eq!(fixture.next().custom_capabilities.unwrap().capabilities, [PAUSE]);
    for (kind, expected) in [("pause", r#"{"paused": true}"#), ("resume", r#"{"paused": false}"#)] {
        assert_eq!(fixture.receive(message(kind)), Received::default());
        let status = fixture.next().custom_message.unwrap();
        assert_eq!((status.r#type.as_str(), status.data.as_slice()), ("status", expected.as_bytes()));
    }
    fixture.receive(message("status"));
    assert!(!fixture.agent.has_news(), "what is not known is ignored");
    assert!(Fixture::settled(Kind::Collector).receive(message("pause")).wrong.is_some());
}
