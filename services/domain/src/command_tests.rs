//! When a command may be sent.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::agent::EndReason;
use crate::ids::{Claim, Incarnation, InstanceUid, SessionId};
use crate::report::Description;

const RESTART: AgentCapabilities = AgentCapabilities::ACCEPTS_RESTART_COMMAND;

fn agent(transport: Transport, capabilities: AgentCapabilities, custom: &[&str]) -> Agent {
    let key = AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(1)) };
    let mut agent = Agent::new(key, Timestamp(1));
    agent.session = Some(Session {
        id: SessionId(Uuid::from_u128(7)),
        claim: Claim(1),
        gateway: "gw-1".parse().unwrap(),
        incarnation: Incarnation(Uuid::from_u128(9)),
        transport,
        remote_addr: String::new(),
        started_at: Timestamp(1),
        ended: None,
        silent_since: None,
    });
    agent.state.capabilities = capabilities;
    agent.state.description = Some(Description::default());
    agent.state.custom_capabilities = custom.iter().map(|&name| name.to_owned()).collect();
    agent
}

fn message(capability: &str) -> Action {
    let (capability, kind) = (capability.to_owned(), "hello".to_owned());
    Action::Message(CustomMessage { capability, kind, data: vec![0, 0xff] })
}

fn actions() -> Vec<Action> {
    vec![
        Action::Restart,
        Action::Pause,
        Action::Resume,
        Action::Disconnect,
        Action::ReportFullState,
        message("com.example.x"),
    ]
}

/// What is decided for the agent before the command expires.
fn decided(action: &Action, agent: &Agent) -> String {
    match decide(action, Timestamp(11), Some(agent), Timestamp(10)) {
        Decision::Send(session) => format!("send to {}", session.gateway),
        Decision::Wait(waiting) => format!("wait: {waiting}"),
        Decision::Refuse(refusal) => format!("refuse: {refusal}"),
        Decision::Expire(waiting) => format!("expire: {waiting}"),
    }
}

#[test]
fn a_command_needs_its_capability() {
    let able = agent(Transport::WebSocket, RESTART, &[PAUSE_CAPABILITY, "com.example.x"]);
    for action in actions() {
        assert_eq!(decided(&action, &able), "send to gw-1", "{action:?}");
    }
    let unable = agent(Transport::WebSocket, AgentCapabilities(1), &["com.example.y"]);
    let refused = |name: &str| format!("refuse: the agent does not have the {name}");
    let expected = [
        refused("capability AcceptsRestartCommand"),
        refused("custom capability \"io.opentelemetry.pause\""),
        refused("custom capability \"io.opentelemetry.pause\""),
        "send to gw-1".to_owned(),
        "send to gw-1".to_owned(),
        refused("custom capability \"com.example.x\""),
    ];
    for (action, expected) in actions().iter().zip(expected) {
        assert_eq!(decided(action, &unable), expected);
    }
}

#[test]
fn a_command_waits_for_the_agent_and_for_what_it_can_do() {
    let mut silent = agent(Transport::WebSocket, AgentCapabilities::default(), &[]);
    silent.state.description = None;
    for action in [Action::Restart, Action::Pause, message("com.example.x")] {
        assert_eq!(decided(&action, &silent), "wait: the agent has not said what it can do");
    }
    let mut gone = agent(Transport::WebSocket, RESTART, &[]);
    if let Some(session) = &mut gone.session {
        session.ended = Some((Timestamp(2), EndReason::ConnectionLost));
    }
    assert_eq!(decided(&Action::Restart, &gone), "wait: the agent was not connected");
    assert_eq!(
        decide(&Action::Restart, Timestamp(10), Some(&gone), Timestamp(10)),
        Decision::Expire(Waiting::Session)
    );
    assert_eq!(
        decide(&Action::Restart, Timestamp(11), None, Timestamp(10)),
        Decision::Wait(Waiting::Session),
        "an agent that this cell does not know"
    );
    let polling = agent(Transport::Http, RESTART, &[]);
    assert_eq!(decided(&Action::Restart, &polling), "send to gw-1");
    assert!(decided(&Action::Disconnect, &polling).starts_with("refuse: the agent polls"));
}

#[test]
fn names_lead_back_to_what_they_name() {
    for action in actions() {
        let message = match &action {
            Action::Message(message) => Some(message.clone()),
            _ => None,
        };
        assert_eq!(Action::named(action.name(), message.clone()), Some(action.clone()));
        let other = message.is_none().then(CustomMessage::default);
        assert_eq!(Action::named(action.name(), other), None, "{action:?}");
    }
    for status in [Status::Queued, Status::Sent, Status::Expired, Status::Refused] {
        assert_eq!(Status::named(status.name()), Some(status));
    }
    assert_eq!((Action::named("reboot", None), Status::named("done")), (None, None));
}

#[test]
fn pause_and_resume_are_messages_without_content() {
    let wire =
        |action: Action| action.as_message().map(|message| (message.capability, message.kind, message.data));
    assert_eq!(wire(Action::Pause), Some((PAUSE_CAPABILITY.to_owned(), "pause".to_owned(), Vec::new())));
    assert_eq!(wire(Action::Resume), Some((PAUSE_CAPABILITY.to_owned(), "resume".to_owned(), Vec::new())));
    assert_eq!(wire(Action::Restart), None);
}

#[test]
fn what_an_operator_asks_for_is_bounded() {
    let problem = |capability: &str, kind: &str, length: usize| {
        let (capability, kind) = (capability.to_owned(), kind.to_owned());
        let problem = Action::Message(CustomMessage { capability, kind, data: vec![0; length] }).check();
        problem.err().map(|text| text.split(':').next().unwrap_or_default().to_owned())
    };
    let longest = "x".repeat(MAX_CUSTOM_NAME);
    assert_eq!(problem(&longest, &longest, MAX_CUSTOM_DATA), None);
    assert_eq!(problem("a", "b", MAX_CUSTOM_DATA + 1).as_deref(), Some("data"));
    for bad in ["", &(longest + "x"), "a\nb", "a\0"] {
        assert_eq!(problem(bad, "b", 0).as_deref(), Some("capability"));
        assert_eq!(problem("a", bad, 0).as_deref(), Some("type"));
    }
}

proptest! {
    #[test]
    fn nothing_is_sent_late_or_to_who_cannot_do_it(
        which in 0..6_usize,
        capabilities in prop_oneof![Just(0_u64), Just(0x400), Just(1), any::<u64>()],
        custom in proptest::collection::vec(prop_oneof![Just(PAUSE_CAPABILITY), Just("com.example.x")], 0..3),
        polls in any::<bool>(),
        ended in any::<bool>(),
        described in any::<bool>(),
        expires_at in 0..4_u64,
        now in 0..4_u64,
    ) {
        let action = &actions()[which];
        let transport = if polls { Transport::Http } else { Transport::WebSocket };
        let mut agent = agent(transport, AgentCapabilities(capabilities), &custom);
        if ended && let Some(session) = &mut agent.session {
            session.ended = Some((Timestamp(2), EndReason::Silent));
        }
        if !described {
            agent.state.description = None;
        }
        let (expires_at, now) = (Timestamp(expires_at), Timestamp(now));
        match decide(action, expires_at, Some(&agent), now) {
            Decision::Send(session) => {
                prop_assert!(now < expires_at && !(polls && *action == Action::Disconnect));
                prop_assert_eq!(Some(session), agent.live_session());
                prop_assert!(*action != Action::Restart || capabilities & 0x400 != 0);
                let needs = action.as_message().map(|message| message.capability);
                prop_assert!(needs.is_none_or(|name| custom.contains(&name.as_str())));
            }
            Decision::Wait(_) => prop_assert!(now < expires_at),
            Decision::Expire(_) => prop_assert!(now >= expires_at),
            // Only who is connected and has spoken is refused anything.
            Decision::Refuse(_) => prop_assert!(!ended),
        }
    }
}
