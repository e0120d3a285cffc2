//! Agents that fall silent and come back, on a connection that stays open.

use bytes::Bytes;
use muster_domain::agent::EndReason;
use muster_domain::ids::{Claim, SessionId};
use muster_domain::sequence::Known;
use muster_proto::Message;
use muster_proto::opamp::{AgentDescription, AgentToServer};
use uuid::Uuid;

use super::*;
use crate::connection::{Claimed, Limits, NotNow};

const SECOND: u64 = 1_000_000;
const START: Timestamp = Timestamp(1_000 * SECOND);
/// ReportsStatus and ReportsHeartbeat.
const BEATS: u64 = 0x2001;

fn uid(number: u8) -> InstanceUid {
    InstanceUid(Uuid::from_bytes([number; 16]))
}

fn session(number: u8) -> SessionId {
    SessionId(Uuid::from_u128(number.into()))
}

struct Shared {
    connection: Connection,
    now: Timestamp,
}

/// What was published about agents: uid, whether silent, whether with a message.
type Published = Vec<(InstanceUid, bool, bool)>;

impl Shared {
    /// A connection with these agents, their first reports published and answered.
    fn with(agents: &[(u8, u64)]) -> Self {
        let limits = Limits { silent_after: Duration::from_secs(90), ..Limits::default() };
        let mut shared = Self { connection: Connection::new(limits), now: START };
        for (agent, capabilities) in agents {
            let first = AgentToServer {
                agent_description: Some(AgentDescription::default()),
                ..message(*agent, 0, *capabilities)
            };
            shared.say(&first);
            let (session, claim) = (session(*agent), Claim(u64::from(*agent)));
            let claimed = Claimed { session, claim, known: Known::Nothing, previous: None };
            shared.connection.claimed(uid(*agent), claimed, shared.now);
            assert_eq!(shared.published(true), [(uid(*agent), false, true)]);
        }
        shared
    }

    fn say(&mut self, message: &AgentToServer) {
        let mut frame = vec![0];
        message.encode(&mut frame).unwrap();
        self.connection.frame(&Bytes::from(frame), self.now);
    }

    /// Lets time pass, doing what is due on the way.
    fn wait(&mut self, seconds: u64) -> Published {
        let end = self.now.plus(Duration::from_secs(seconds));
        let mut all = Vec::new();
        while let Some(due) = self.connection.poll_timeout().filter(|due| *due <= end) {
            self.now = due.max(self.now);
            self.connection.timeout(self.now);
            all.extend(self.published(true));
        }
        self.now = end;
        all
    }

    /// What is to be published, which the log takes or does not.
    fn published(&mut self, taken: bool) -> Published {
        let mut all = Vec::new();
        while let Some(output) = self.connection.poll() {
            if let Output::Publish(publish) = output {
                all.push((publish.uid, publish.silent, publish.message.is_some()));
                let reason = "the log is away".to_owned();
                let retry_after = Duration::from_secs(30);
                let result = if taken { Ok(()) } else { Err(NotNow { reason, retry_after }) };
                self.connection.published(publish.uid, publish.session, result, self.now);
            }
        }
        all
    }
}

fn message(agent: u8, sequence_num: u64, capabilities: u64) -> AgentToServer {
    let instance_uid = uid(agent).as_bytes().to_vec();
    AgentToServer { instance_uid, sequence_num, capabilities, ..AgentToServer::default() }
}

#[test]
fn one_silent_agent_of_a_connection_is_told_of_once_and_the_others_are_not() {
    let mut shared = Shared::with(&[(1, BEATS), (2, BEATS), (3, 1)]);
    assert_eq!(shared.wait(60), []);
    shared.say(&message(2, 1, BEATS));
    assert_eq!(shared.published(true), []);
    // The third one never said that it reports heartbeats.
    assert_eq!(shared.wait(60), [(uid(1), true, false)]);
    assert_eq!(shared.wait(20), []);
    assert_eq!(shared.wait(3600), [(uid(2), true, false)], "once each");
    assert_eq!(shared.connection.poll_timeout(), None);
    assert_eq!(shared.connection.sessions(), 3, "their sessions go on");
}

#[test]
fn a_silent_agent_that_is_heard_again_is_told_of_with_the_answer_or_its_report() {
    let mut shared = Shared::with(&[(1, BEATS)]);
    assert_eq!(shared.wait(100), [(uid(1), true, false)]);
    shared.say(&message(1, 1, BEATS));
    assert_eq!(shared.published(true), [(uid(1), false, false)]);
    shared.say(&message(1, 2, 0));
    assert_eq!(shared.published(true), [], "a heartbeat is not published");
    assert_eq!(shared.wait(3600), [(uid(1), true, false)]);
    let report =
        AgentToServer { agent_description: Some(AgentDescription::default()), ..message(1, 3, BEATS) };
    shared.say(&report);
    assert_eq!(shared.published(true), [(uid(1), false, true)]);
}

#[test]
fn an_agent_with_an_interval_of_its_own_is_given_three_of_them() {
    let mut shared = Shared::with(&[(1, BEATS)]);
    // It beats every ten minutes: that is seen once.
    let mut told = 0;
    for beat in 1..50 {
        told += shared.wait(600).len();
        shared.say(&message(1, beat, BEATS));
        told += shared.published(true).len();
    }
    assert_eq!(told, 2);
    assert_eq!(shared.wait(1799), []);
    assert_eq!(shared.wait(1), [(uid(1), true, false)]);
}

#[test]
fn what_the_log_does_not_take_is_told_again() {
    let mut shared = Shared::with(&[(1, BEATS)]);
    shared.now = shared.now.plus(Duration::from_secs(90));
    shared.connection.timeout(shared.now);
    assert_eq!(shared.published(false), [(uid(1), true, false)]);
    assert_eq!(shared.wait(29), []);
    assert_eq!(shared.wait(1), [(uid(1), true, false)]);
    // That it is heard again is told with its next message, if not with this one.
    shared.say(&message(1, 1, BEATS));
    assert_eq!(shared.published(false), [(uid(1), false, false)]);
    shared.say(&message(1, 2, BEATS));
    assert_eq!(shared.published(true), [(uid(1), false, false)]);
}

#[test]
fn a_claim_anew_keeps_the_silence_and_an_end_forgets_it() {
    let mut shared = Shared::with(&[(1, BEATS), (2, BEATS)]);
    assert_eq!(shared.wait(100).len(), 2);
    let anew = Claimed { session: session(9), claim: Claim(9), known: Known::Unsettled, previous: None };
    shared.connection.reclaimed(uid(1), anew);
    assert_eq!(shared.published(true), [(uid(1), true, false)]);
    shared.connection.close_session(uid(2), None, EndReason::Superseded);
    assert_eq!(shared.published(true), [(uid(2), false, false)]);
    assert_eq!(shared.wait(3600), []);
}

#[test]
fn thousands_of_agents_are_watched_at_little_cost() {
    let mut shared = Shared::with(&[(1, BEATS)]);
    let limits = Limits { max_sessions: 5_000, ..Limits::default() };
    shared.connection = Connection::new(limits);
    let many = |number: u128| InstanceUid(Uuid::from_u128(number + 1));
    let say = |shared: &mut Shared, number: u128, sequence_num| {
        let instance_uid = many(number).as_bytes().to_vec();
        let description = (sequence_num == 0).then(AgentDescription::default);
        shared.say(&AgentToServer {
            instance_uid,
            agent_description: description,
            ..message(1, sequence_num, BEATS)
        });
    };
    for number in 0..5_000 {
        say(&mut shared, number, 0);
        let session = SessionId(Uuid::from_u128(number));
        let claimed = Claimed { session, claim: Claim(1), known: Known::Nothing, previous: None };
        shared.connection.claimed(many(number), claimed, shared.now);
        assert_eq!(shared.published(true).len(), 1);
    }
    // One more is refused, and harms nobody.
    say(&mut shared, 5_000, 0);
    let refused = std::iter::from_fn(|| shared.connection.poll()).collect::<Vec<_>>();
    assert!(format!("{refused:?}").contains("this connection already carries 5000 agents"), "{refused:?}");
    let mut told = Vec::new();
    for beat in 1..5 {
        shared.now = shared.now.plus(Duration::from_secs(60));
        for number in 0..4_999 {
            say(&mut shared, number, beat);
            assert_eq!(shared.published(true), []);
            assert!(shared.connection.poll_timeout().is_some());
        }
        shared.connection.timeout(shared.now);
        told.extend(shared.published(true));
    }
    assert_eq!(told, [(many(4_999), true, false)]);
}
