//! Turns on the state that ownership keeps, by hand and by random input.

use std::time::Duration;

use muster_domain::ids::Claim;
use muster_domain::poll::{Begun, State};
use muster_proto::opamp::{AgentDescription, AgentDisconnect, RemoteConfigStatus};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const NOW: u64 = 1_790_000_000_000_000;

/// Ownership and any gateway.
#[derive(Default)]
struct Server {
    state: Option<State>,
    /// The agent asks for this one.
    uid: Option<InstanceUid>,
    requests: u128,
    /// Sequence numbers that the log has, with a word for what they began or ended.
    log: Vec<String>,
}

fn beat(sequence_num: u64) -> AgentToServer {
    AgentToServer { instance_uid: vec![7; 16], sequence_num, capabilities: 3, ..AgentToServer::default() }
}

fn report(sequence_num: u64) -> AgentToServer {
    AgentToServer { remote_config_status: Some(RemoteConfigStatus::default()), ..beat(sequence_num) }
}

fn full(sequence_num: u64) -> AgentToServer {
    AgentToServer { agent_description: Some(AgentDescription::default()), ..report(sequence_num) }
}

impl Server {
    fn begin(&mut self, message: &AgentToServer, seconds: u64) -> Result<(Turn, Option<Publish>), Begun> {
        self.requests += 1;
        let message = Bytes::from(message.encode_to_vec());
        let head = head(&message).unwrap();
        let (id, session) =
            (PollId(Uuid::from_u128(self.requests)), SessionId(Uuid::from_u128(self.requests)));
        let now = Timestamp(NOW + seconds * 1_000_000);
        let poll = request(&head, (id, session), now, Duration::from_secs(10), 1);
        let begun = match &mut self.state {
            Some(state) => state.begin(&poll),
            None => {
                let (state, begun) = State::first(&poll);
                self.state = Some(state);
                begun
            }
        };
        match begun {
            Begun::Taken(taken) => Ok(Turn::new(id, self.uid.unwrap_or(head.uid), *taken, head, message)),
            other => Err(other),
        }
    }

    /// A whole request; the words for what became of it.
    fn poll(&mut self, message: &AgentToServer, seconds: u64, log_is_there: bool) -> String {
        let (turn, publish) = match self.begin(message, seconds) {
            Ok(begun) => begun,
            Err(Begun::Heartbeat) => return "heartbeat".to_owned(),
            Err(Begun::Repeat { introduces: true }) => return "repeat first".to_owned(),
            Err(Begun::Repeat { introduces: false }) => return "repeat".to_owned(),
            Err(other) => return format!("{other:?}"),
        };
        let mut words = String::new();
        let mut result = Ok(());
        if let Some(publish) = publish {
            let number = publish.message.as_ref().unwrap().0.sequence_num;
            words += "publish ";
            let flag = |set: bool, word: &str| if set { format!("{word} ") } else { String::new() };
            let marks = flag(publish.started.is_some(), "started")
                + &flag(publish.ended.is_some(), "ended")
                + &flag(publish.dirty, "dirty");
            words += &marks;
            if log_is_there {
                self.log.push(format!("{number} {marks}").trim_end().to_owned());
            } else {
                let retry_after = Duration::from_secs(30);
                result = Err(NotNow { reason: "the log is away".to_owned(), retry_after });
            }
        }
        let (end, said) =
            turn.end(result, OfferEnd::Waits, Orders::default(), Timestamp(NOW + seconds * 1_000_000));
        assert!(self.state.as_mut().unwrap().end(&end));
        words += &match said.reply {
            Reply::Answer { first, full_state, .. } => {
                format!("answer{}{}", if first { " first" } else { "" }, if full_state { " ask" } else { "" })
            }
            Reply::Unavailable { reason, .. } => reason,
            other => unreachable!("{other:?}"),
        };
        words
    }
}

#[test]
fn heartbeats_reach_no_log_and_reports_are_answered_when_the_log_has_them() {
    let mut server = Server::default();
    assert_eq!(server.poll(&full(1), 0, true), "publish started answer first");
    assert_eq!(server.poll(&beat(2), 30, true), "heartbeat");
    let only_uid = AgentToServer { instance_uid: vec![7; 16], ..AgentToServer::default() };
    assert_eq!(server.poll(&only_uid, 60, true), "heartbeat");
    assert_eq!(server.poll(&report(3), 90, true), "publish answer");
    assert_eq!(server.poll(&report(3), 91, true), "repeat");
    let changed = AgentToServer { capabilities: 1, ..beat(4) };
    assert_eq!(server.poll(&changed, 92, true), "publish answer", "changed capabilities are no heartbeat");
    assert_eq!(server.poll(&changed, 93, true), "repeat");
    assert_eq!(server.log, ["1 started", "3", "4"]);
}

#[test]
fn the_answer_that_introduces_the_server_may_be_lost() {
    let mut server = Server::default();
    assert_eq!(server.poll(&full(1), 0, false), "publish started the log is away");
    assert_eq!(server.poll(&full(1), 1, true), "publish started dirty answer first ask");
    assert_eq!(server.poll(&full(1), 2, true), "repeat first");
    assert_eq!(server.poll(&full(2), 3, true), "publish answer", "it has told everything after the ask");
    assert_eq!(server.poll(&full(2), 4, true), "repeat");
    assert_eq!(server.poll(&beat(3), 5, true), "heartbeat");
}

#[test]
fn a_gap_is_asked_for_once_and_rate_limited() {
    let mut server = Server::default();
    server.poll(&full(0), 0, true);
    assert_eq!(server.poll(&beat(2), 1, true), "answer ask", "in the reply to that very message");
    assert_eq!(server.poll(&beat(3), 2, true), "heartbeat");
    assert_eq!(server.poll(&beat(5), 3, true), "answer", "again, but too soon");
    assert_eq!(server.poll(&beat(6), 11, true), "answer ask");
    assert_eq!(server.state.as_ref().unwrap().settled, Some(0));
    assert_eq!(server.poll(&full(7), 12, true), "publish answer");
    assert_eq!(server.log, ["0 started", "7"]);
    assert_eq!(server.state.as_ref().unwrap().settled, Some(7));
}

#[test]
fn a_lost_report_is_asked_for() {
    let mut server = Server::default();
    server.poll(&full(0), 0, true);
    assert_eq!(server.poll(&report(1), 1, false), "publish the log is away");
    assert_eq!(server.poll(&beat(2), 2, true), "answer ask", "the client dropped it");
    assert_eq!(server.poll(&full(3), 3, true), "publish answer");
    assert_eq!(server.poll(&report(4), 4, true), "publish answer");
}

#[test]
fn an_old_message_is_not_folded() {
    let mut server = Server::default();
    server.poll(&full(1), 0, true);
    server.poll(&report(2), 0, true);
    server.poll(&report(3), 0, true);
    assert_eq!(server.poll(&report(2), 1, true), "answer ask");
    assert_eq!(server.poll(&beat(4), 2, true), "heartbeat");
    // A restarted agent is, in a session of its own.
    assert_eq!(server.poll(&full(1), 3, true), "publish started answer first");
    assert_eq!(server.poll(&beat(2), 4, true), "heartbeat");
    assert_eq!(server.log, ["1 started", "2", "3", "1 started"]);
}

#[test]
fn goodbye_ends_the_session() {
    let mut server = Server::default();
    server.poll(&full(0), 0, true);
    let goodbye = AgentToServer { agent_disconnect: Some(AgentDisconnect {}), ..beat(1) };
    assert_eq!(server.poll(&goodbye, 1, true), "publish ended answer");
    assert_eq!(server.poll(&beat(2), 2, true), "publish started answer first");
    let other = AgentToServer { sequence_num: 3, ..goodbye };
    assert_eq!(server.poll(&other, 3, false), "publish ended the log is away");
    assert_eq!(
        server.poll(&other, 4, true),
        "publish ended dirty answer ask",
        "not over before the log has it"
    );
}

#[test]
fn mail_is_taken_out_when_it_is_done_with() {
    let mut server = Server::default();
    server.poll(&full(0), 0, true);
    let session = server.state.as_ref().unwrap().last.0;
    let hash = ConfigHash::new(&[1, 2]).unwrap();
    let offer = Some((hash.clone(), IntentRevision(4)));
    server.state.as_mut().unwrap().post(
        session,
        &Mail { offer: offer.clone(), full_state: true, components: true, commands: Vec::new() },
        Claim::default(),
    );
    let (turn, publish) = server.begin(&beat(1), 1).unwrap();
    assert_eq!((turn.mail().offer.clone(), publish), (offer.clone(), None));
    let (end, said) =
        turn.end(Ok(()), OfferEnd::Sent(hash.clone(), IntentRevision(4)), Orders::default(), Timestamp(NOW));
    let asked =
        ServerToAgentFlags::ReportFullState as u64 | ServerToAgentFlags::ReportAvailableComponents as u64;
    assert_eq!(said.message().flags, asked);
    server.state.as_mut().unwrap().end(&end);
    assert_eq!(server.poll(&full(2), 2, true), "publish answer", "full state mends it");
    assert_eq!(server.poll(&beat(3), 3, true), "heartbeat", "nothing waits any more");
    let older = Mail { offer: Some((hash.clone(), IntentRevision(3))), ..Mail::default() };
    server.state.as_mut().unwrap().post(session, &older, Claim::default());
    assert_eq!(server.poll(&beat(4), 4, true), "heartbeat", "it is superseded");

    let status = RemoteConfigStatus { last_remote_config_hash: vec![1, 2], ..RemoteConfigStatus::default() };
    let message =
        Bytes::from(AgentToServer { remote_config_status: Some(status), ..beat(5) }.encode_to_vec());
    assert!(reports_on(&head(&message).unwrap(), &message, &hash));
    let other = Bytes::from(report(3).encode_to_vec());
    assert!(!reports_on(&head(&other).unwrap(), &other, &hash));
}

#[test]
fn an_agent_that_asks_for_a_uid_is_told_once_and_then_uses_it() {
    let new = InstanceUid(Uuid::from_u128(9));
    let mut server = Server { uid: Some(new), ..Server::default() };
    let (turn, publish) = server.begin(&full(0), 0).unwrap();
    assert_eq!(publish.unwrap().uid, new);
    let (end, said) = turn.end(Ok(()), OfferEnd::Waits, Orders::default(), Timestamp(NOW));
    let old = InstanceUid(Uuid::from_bytes([7; 16]));
    let expected = Reply::Answer { uid: old, first: true, full_state: false, new_uid: Some(new) };
    assert_eq!((said.reply, end.kept.issued), (expected, true));
    server.state.as_mut().unwrap().end(&end);
    // The test's messages all have the old uid: that the session was issued stays known.
    let (turn, _) = server.begin(&report(1), 1).unwrap();
    assert!(turn.taken.kept.issued);
    let back = give_back(turn.poll, &turn.taken, Timestamp(NOW));
    assert!(!back.over && server.state.as_mut().unwrap().end(&back));
    assert_eq!(server.poll(&report(1), 2, true), "publish answer", "it had no effect");
}

#[test]
fn only_a_first_report_of_an_agent_that_takes_config_may_wait() {
    let mut server = Server::default();
    let first = |message: &AgentToServer| Server::default().begin(message, 0).unwrap().0.is_first_report();
    assert!(first(&full(0)));
    assert!(!first(&beat(0)));
    assert!(!first(&AgentToServer { capabilities: 1, ..full(0) }));
    server.poll(&full(0), 0, true);
    assert!(!server.begin(&report(1), 1).unwrap().0.is_first_report());
}

proptest! {
    /// Whatever comes: what is answered with yes is in the log or a repeat or says nothing, and a session
    /// that lost something asks.
    #[test]
    fn nothing_that_is_answered_is_lost(
        steps in proptest::collection::vec((0_u64..6, 0_u8..4, any::<bool>(), 0_u64..15), 1..60),
    ) {
        let mut server = Server::default();
        let (mut number, mut seconds) = (0, 0);
        for (forward, kind, log_is_there, later) in steps {
            number = (number + forward).saturating_sub(u64::from(forward == 5) * 8);
            seconds += later;
            let message = match kind {
                0 => beat(number),
                1 | 2 => report(number),
                _ => full(number),
            };
            let before = server.state.clone().map(|state| state.open.is_some());
            let stored = server.log.len();
            let words = server.poll(&message, seconds, log_is_there);
            let published = words.starts_with("publish");
            prop_assert_eq!(server.log.len() - stored, usize::from(published && log_is_there));
            if published && !log_is_there {
                let next = server.poll(&beat(number + 1), seconds + 3700, true);
                prop_assert!(next.contains("ask"), "{words}, then {next}");
                number += 1;
                seconds += 3700;
            }
            if kind == 0 && before == Some(true) && words == "heartbeat" {
                prop_assert!(!published);
            }
        }
    }
}

#[test]
fn custom_capabilities_are_answered_in_the_same_message() {
    let capabilities = vec!["a.b".to_owned()];
    let named = AgentToServer { custom_capabilities: Some(CustomCapabilities { capabilities }), ..full(0) };
    let mut server = Server::default();
    let (turn, _) = server.begin(&named, 0).unwrap();
    let not_now = NotNow { reason: "the log is away".to_owned(), retry_after: Duration::from_secs(30) };
    let (_, said) = turn.clone().end(Err(not_now), OfferEnd::Waits, Orders::default(), Timestamp(NOW));
    assert_eq!(said.message().custom_capabilities, None, "an error stands alone");
    let (_, said) = turn.end(Ok(()), OfferEnd::Waits, Orders::default(), Timestamp(NOW));
    assert_eq!(said.message().custom_capabilities, named.custom_capabilities);
}
