//! The session machine, driven by hand and by random input.

use muster_proto::Message;
use muster_proto::opamp::{AgentDescription, AgentDisconnect, AgentToServer, CustomCapabilities};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const NOW: Timestamp = Timestamp(1_000_000_000);

fn uid(number: u8) -> InstanceUid {
    InstanceUid(Uuid::from_bytes([number; 16]))
}

fn claimed(number: u128, known: Known) -> Claimed {
    Claimed { session: SessionId(Uuid::from_u128(number)), claim: Claim(5), known, previous: None }
}

fn heartbeat(agent: u8, sequence_num: u64) -> AgentToServer {
    AgentToServer {
        instance_uid: uid(agent).as_bytes().to_vec(),
        sequence_num,
        capabilities: 1,
        ..AgentToServer::default()
    }
}

fn full(agent: u8, sequence_num: u64) -> AgentToServer {
    AgentToServer { agent_description: Some(AgentDescription::default()), ..heartbeat(agent, sequence_num) }
}

fn frame(message: &AgentToServer) -> Bytes {
    let mut bytes = vec![0];
    message.encode(&mut bytes).unwrap();
    bytes.into()
}

fn outputs(connection: &mut Connection) -> Vec<Output> {
    std::iter::from_fn(|| connection.poll()).collect()
}

/// What an output is, in a word, for whole-value comparison.
fn words(connection: &mut Connection) -> Vec<String> {
    let word = |output: Output| match output {
        Output::Claim(_) => "claim".to_owned(),
        Output::Issue(_) => "issue".to_owned(),
        Output::Publish(publish) => {
            let flag = |set: bool, word: &str| if set { format!(" {word}") } else { String::new() };
            let mut text = "publish".to_owned();
            text += &publish.message.map(|(head, _)| format!(" #{}", head.sequence_num)).unwrap_or_default();
            text += &flag(publish.started.is_some(), "started");
            text += &flag(publish.ended.is_some(), "ended");
            text += &flag(publish.dirty, "dirty");
            text
        }
        Output::Send(Reply::Answer { first, full_state, new_uid, .. }) => {
            let flag = |set: bool, word: &str| if set { format!(" {word}") } else { String::new() };
            let words = [flag(first, "first"), flag(full_state, "ask"), flag(new_uid.is_some(), "new_uid")];
            format!("answer{}", words.concat())
        }
        Output::Send(Reply::AskComponents { .. }) => "ask components".to_owned(),
        Output::Send(Reply::CustomCapabilities { capabilities, .. }) => {
            format!("custom {}", capabilities.join(","))
        }
        Output::Send(Reply::BadRequest { reason, .. } | Reply::Unavailable { reason, .. }) => {
            format!("error: {reason}")
        }
        Output::Settled { sequence_num, .. } => format!("settled {sequence_num:?}"),
        Output::Ended { .. } => "ended".to_owned(),
        Output::Taken { .. } => "taken".to_owned(),
        Output::NotTaken(_) => "not taken".to_owned(),
    };
    outputs(connection).into_iter().map(word).collect()
}

/// A connection with one agent in sync, its message 0 published and answered.
fn in_sync() -> Connection {
    let mut connection = Connection::new(Limits::default());
    connection.frame(&frame(&full(1, 0)), NOW);
    assert_eq!(words(&mut connection), ["claim"]);
    connection.claimed(uid(1), claimed(1, Known::Nothing), NOW);
    assert_eq!(words(&mut connection), ["publish #0 started"]);
    published(&mut connection);
    assert_eq!(words(&mut connection), ["settled Some(0)", "answer first"]);
    connection
}

fn published(connection: &mut Connection) {
    connection.published(uid(1), SessionId(Uuid::from_u128(1)), Ok(()), NOW);
}

fn not_now() -> NotNow {
    NotNow { reason: "the log is away".to_owned(), retry_after: Duration::from_secs(30) }
}

#[test]
fn a_heartbeat_is_answered_without_the_log() {
    let mut connection = in_sync();
    connection.frame(&frame(&heartbeat(1, 1)), NOW);
    assert_eq!(words(&mut connection), ["settled Some(1)", "answer"]);
    let only_uid = AgentToServer { instance_uid: uid(1).as_bytes().to_vec(), ..AgentToServer::default() };
    connection.frame(&frame(&only_uid), NOW);
    assert_eq!(words(&mut connection), ["settled None", "answer"], "an unnumbered heartbeat is no gap");
    connection.frame(&frame(&heartbeat(1, 2)), NOW);
    assert_eq!(words(&mut connection), ["settled Some(2)", "answer"]);
}

#[test]
fn the_list_of_components_is_asked_of_the_session_that_is_there() {
    let mut connection = in_sync();
    connection.request_components(uid(1), SessionId(Uuid::from_u128(1)));
    assert_eq!(words(&mut connection), ["ask components"]);
    connection.request_components(uid(1), SessionId(Uuid::from_u128(2)));
    connection.request_components(uid(2), SessionId(Uuid::from_u128(1)));
    assert_eq!(words(&mut connection), [""; 0]);
}

#[test]
fn a_report_over_a_limit_is_refused_and_mended_by_full_state() {
    let mut connection = in_sync();
    let name = "x".repeat(crate::bounds::MAX_NAME + 1);
    let custom = CustomCapabilities { capabilities: vec![name] };
    let large = AgentToServer { custom_capabilities: Some(custom), ..heartbeat(1, 1) };
    connection.frame(&frame(&large), NOW);
    let refused = outputs(&mut connection);
    let reason = "custom_capabilities.capabilities: has 513 bytes, at most 512 are taken".to_owned();
    assert_eq!(refused, [Output::Send(Reply::BadRequest { uid: Some(uid(1)), reason })]);
    connection.frame(&frame(&heartbeat(1, 2)), NOW);
    assert_eq!(words(&mut connection), ["settled None", "answer ask"]);
}

#[test]
fn custom_capabilities_are_answered_when_the_log_has_them() {
    let mut connection = in_sync();
    let naming = |sequence_num, names: Vec<String>| AgentToServer {
        custom_capabilities: Some(CustomCapabilities { capabilities: names }),
        ..heartbeat(1, sequence_num)
    };
    let names = vec!["a".to_owned(), "x".repeat(257), "b".to_owned()];
    connection.frame(&frame(&naming(1, names)), NOW);
    assert_eq!(words(&mut connection), ["publish #1"]);
    published(&mut connection);
    assert_eq!(words(&mut connection), ["settled Some(1)", "answer", "custom a,b"]);
    connection.frame(&frame(&naming(2, Vec::new())), NOW);
    words(&mut connection);
    published(&mut connection);
    assert_eq!(words(&mut connection), ["settled Some(2)", "answer", "custom "]);
    connection.frame(&frame(&naming(3, vec!["n".to_owned(); 1000])), NOW);
    words(&mut connection);
    connection.published(uid(1), SessionId(Uuid::from_u128(1)), Err(not_now()), NOW);
    assert_eq!(words(&mut connection), ["error: the log is away"], "nothing is answered that is not stored");
    connection.frame(&frame(&naming(4, vec!["n".to_owned(); 1000])), NOW);
    words(&mut connection);
    published(&mut connection);
    let answer = words(&mut connection).pop().unwrap();
    assert_eq!(answer.matches('n').count(), 64, "{answer}");
}

#[test]
fn changed_capabilities_are_no_heartbeat() {
    let mut connection = in_sync();
    connection.frame(&frame(&AgentToServer { capabilities: 3, ..heartbeat(1, 1) }), NOW);
    assert_eq!(words(&mut connection), ["publish #1"]);
}

#[test]
fn nothing_is_answered_before_the_log_has_it_and_order_is_kept() {
    let mut connection = in_sync();
    connection.frame(&frame(&full(1, 1)), NOW);
    connection.frame(&frame(&heartbeat(1, 2)), NOW);
    connection.frame(&frame(&full(1, 3)), NOW);
    assert_eq!(words(&mut connection), ["publish #1"]);
    published(&mut connection);
    assert_eq!(
        words(&mut connection),
        ["settled Some(1)", "answer", "settled Some(2)", "answer", "publish #3"]
    );
}

#[test]
fn a_gap_is_asked_for_in_the_reply_to_that_message() {
    let mut connection = in_sync();
    connection.frame(&frame(&heartbeat(1, 5)), NOW);
    assert_eq!(words(&mut connection), ["settled None", "answer ask"], "a dirty session settles nothing");
    connection.frame(&frame(&heartbeat(1, 6)), NOW);
    assert_eq!(words(&mut connection), ["settled None", "answer"], "asked once");
    connection.frame(&frame(&full(1, 7)), NOW);
    assert_eq!(words(&mut connection), ["publish #7"]);
    published(&mut connection);
    assert_eq!(words(&mut connection), ["settled Some(7)", "answer"]);
}

#[test]
fn a_resumed_session_is_in_sync_when_the_sequence_goes_on() {
    for (sequence_num, answer) in [(8, "answer first"), (9, "answer first ask")] {
        let mut connection = Connection::new(Limits::default());
        connection.frame(&frame(&heartbeat(1, sequence_num)), NOW);
        connection.claimed(uid(1), claimed(1, Known::SettledTo(7)), NOW);
        outputs(&mut connection);
        published(&mut connection);
        assert_eq!(words(&mut connection).last().map(String::as_str), Some(answer));
    }
}

#[test]
fn after_a_failed_publish_the_session_is_dirty_and_the_message_may_come_again() {
    let mut connection = in_sync();
    connection.frame(&frame(&full(1, 1)), NOW);
    outputs(&mut connection);
    connection.published(uid(1), SessionId(Uuid::from_u128(1)), Err(not_now()), NOW);
    assert_eq!(words(&mut connection), ["error: the log is away"]);
    assert_eq!(connection.poll_timeout(), Some(Timestamp(0)), "an ask is due");
    connection.frame(&frame(&full(1, 1)), NOW);
    assert_eq!(words(&mut connection), ["publish #1 dirty"]);
}

#[test]
fn a_pending_ask_is_made_by_the_clock() {
    let mut connection = in_sync();
    connection.frame(&frame(&full(1, 1)), NOW);
    outputs(&mut connection);
    connection.published(uid(1), SessionId(Uuid::from_u128(1)), Err(not_now()), NOW);
    outputs(&mut connection);
    connection.timeout(NOW);
    assert_eq!(words(&mut connection), ["answer ask"]);
    connection.timeout(NOW);
    assert_eq!(words(&mut connection), Vec::<String>::new());
    assert!(connection.poll_timeout().is_some_and(|due| due > NOW));
}

#[test]
fn goodbye_ends_the_session_once() {
    let mut connection = in_sync();
    let goodbye = AgentToServer { agent_disconnect: Some(AgentDisconnect::default()), ..heartbeat(1, 1) };
    connection.frame(&frame(&goodbye), NOW);
    assert_eq!(words(&mut connection), ["publish #1 ended"]);
    published(&mut connection);
    assert_eq!(words(&mut connection), ["settled Some(1)", "answer", "ended"]);
    connection.close(EndReason::ConnectionLost);
    assert_eq!(words(&mut connection), Vec::<String>::new());
}

#[test]
fn a_lost_connection_ends_its_sessions_after_what_is_in_flight() {
    let mut connection = in_sync();
    connection.frame(&frame(&full(1, 1)), NOW);
    assert_eq!(words(&mut connection), ["publish #1"]);
    connection.close(EndReason::ConnectionLost);
    assert_eq!(words(&mut connection), Vec::<String>::new());
    published(&mut connection);
    assert_eq!(words(&mut connection), ["settled Some(1)", "answer", "publish ended", "ended"]);
    assert_eq!(connection.sessions(), 0);
}

#[test]
fn a_claim_granted_too_late_is_given_back() {
    let mut connection = Connection::new(Limits::default());
    connection.frame(&frame(&full(1, 0)), NOW);
    connection.close(EndReason::ConnectionLost);
    outputs(&mut connection);
    connection.claimed(uid(1), claimed(1, Known::Nothing), NOW);
    assert_eq!(words(&mut connection), ["ended"]);
}

#[test]
fn what_was_refused_before_a_claim_is_lost_whatever_numbers_fit() {
    let mut connection = Connection::new(Limits::default());
    // A new life of an agent whose last one was settled up to 1.
    for number in 0..2 {
        connection.frame(&frame(&full(1, number)), NOW);
    }
    connection.claim_failed(uid(1), &not_now());
    outputs(&mut connection);
    connection.frame(&frame(&heartbeat(1, 2)), NOW);
    connection.claimed(uid(1), claimed(1, Known::SettledTo(1)), NOW);
    assert_eq!(words(&mut connection), ["claim", "publish #2 started dirty"]);
    published(&mut connection);
    assert_eq!(words(&mut connection), ["settled None", "answer first ask"]);

    // So they are in another connection.
    let mut connection = Connection::new(Limits::default());
    connection.frame(&frame(&heartbeat(1, 2)), NOW);
    connection.claimed(uid(1), claimed(1, Known::SettledTo(1)), NOW);
    assert_eq!(words(&mut connection), ["claim", "publish #2 started dirty"]);

    // One that sends everything again is in sync.
    let mut connection = Connection::new(Limits::default());
    connection.frame(&frame(&full(1, 0)), NOW);
    connection.claim_failed(uid(1), &not_now());
    outputs(&mut connection);
    connection.frame(&frame(&full(1, 0)), NOW);
    connection.claimed(uid(1), claimed(1, Known::SettledTo(1)), NOW);
    outputs(&mut connection);
    published(&mut connection);
    assert_eq!(words(&mut connection), ["settled Some(0)", "answer first"]);
}

#[test]
fn a_session_claimed_anew_is_announced_and_goes_on() {
    let mut connection = in_sync();
    connection.reclaimed(uid(1), claimed(2, Known::Nothing));
    assert_eq!(words(&mut connection), ["settled Some(0)", "publish started"]);
    connection.frame(&frame(&heartbeat(1, 1)), NOW);
    assert_eq!(words(&mut connection), Vec::<String>::new(), "order is kept");
    connection.published(uid(1), SessionId(Uuid::from_u128(2)), Ok(()), NOW);
    assert_eq!(words(&mut connection), ["settled Some(1)", "answer"], "no gap, no ask");
    assert_eq!(connection.session(uid(1)), Some(SessionId(Uuid::from_u128(2))));
}

#[test]
fn a_message_on_its_way_when_the_session_changes_is_answered_and_the_next_announces() {
    let mut connection = in_sync();
    connection.frame(&frame(&full(1, 1)), NOW);
    assert_eq!(words(&mut connection), ["publish #1"]);
    connection.reclaimed(uid(1), claimed(2, Known::Nothing));
    assert_eq!(words(&mut connection), Vec::<String>::new());
    published(&mut connection);
    assert_eq!(words(&mut connection), ["settled Some(1)", "answer"]);
    connection.frame(&frame(&heartbeat(1, 2)), NOW);
    assert_eq!(words(&mut connection), ["publish #2 started"]);
}

#[test]
fn an_announcement_that_fails_is_made_with_the_next_message() {
    let mut connection = in_sync();
    connection.reclaimed(uid(1), claimed(2, Known::Nothing));
    outputs(&mut connection);
    connection.published(uid(1), SessionId(Uuid::from_u128(2)), Err(not_now()), NOW);
    connection.frame(&frame(&heartbeat(1, 1)), NOW);
    assert_eq!(words(&mut connection), ["publish #1 started"]);
}

#[test]
fn a_claim_anew_for_a_session_that_is_gone_is_given_back() {
    let mut connection = in_sync();
    connection.close(EndReason::ConnectionLost);
    outputs(&mut connection);
    connection.reclaimed(uid(1), claimed(2, Known::Nothing));
    assert_eq!(words(&mut connection), ["ended"]);
}

#[test]
fn a_refused_claim_refuses_what_waits_and_the_next_message_claims_again() {
    let mut connection = Connection::new(Limits::default());
    connection.frame(&frame(&full(1, 0)), NOW);
    outputs(&mut connection);
    connection.claim_failed(uid(1), &not_now());
    assert_eq!(words(&mut connection), ["error: the log is away"]);
    connection.frame(&frame(&full(1, 1)), NOW);
    assert_eq!(words(&mut connection), ["claim"]);
}

#[test]
fn a_second_live_agent_gets_a_new_uid_under_the_one_it_used_and_begins_anew_with_it() {
    let mut connection = Connection::new(Limits::default());
    connection.frame(&frame(&full(1, 0)), NOW);
    assert_eq!(words(&mut connection), ["claim"]);
    connection.duplicate(uid(1), Some(uid(2)), NOW);
    let reply = Reply::Answer { uid: uid(1), first: true, full_state: true, new_uid: Some(uid(2)) };
    assert_eq!(outputs(&mut connection), [Output::Send(reply.clone())], "nothing is published");
    let message = reply.message();
    assert_eq!(message.instance_uid, uid(1).as_bytes());
    assert_eq!(message.agent_identification.unwrap().new_instance_uid, uid(2).as_bytes());
    // A client that takes it over goes on with its sequence and says nothing of itself.
    connection.frame(&frame(&heartbeat(2, 1)), NOW);
    assert_eq!(words(&mut connection), ["taken", "claim"]);
    connection.claimed(uid(2), claimed(1, Known::Nothing), NOW);
    assert_eq!(words(&mut connection), ["publish #1 started dirty"]);
    connection.close(EndReason::ConnectionLost);
    assert!(!words(&mut connection).contains(&"not taken".to_owned()));
}

/// The same message, with the wish for another uid.
fn requesting(message: AgentToServer) -> AgentToServer {
    AgentToServer { flags: 1, ..message }
}

#[test]
fn messages_under_way_get_the_same_uid_and_a_client_that_takes_none_is_refused() {
    let mut connection = Connection::new(Limits::default());
    let mut now = NOW;
    for sequence_num in [0, 10, 20] {
        connection.frame(&frame(&full(1, sequence_num)), now);
        connection.frame(&frame(&heartbeat(1, sequence_num + 1)), now);
        assert_eq!(words(&mut connection), ["claim"]);
        connection.duplicate(uid(1), Some(uid(u8::try_from(sequence_num).unwrap() + 2)), now);
        assert_eq!(words(&mut connection), ["answer first ask new_uid", "answer new_uid"]);
        connection.frame(&frame(&heartbeat(1, sequence_num + 2)), now);
        let same = Reply::Answer { uid: uid(1), first: false, full_state: false, new_uid: Some(uid(2)) };
        assert_eq!(outputs(&mut connection), [Output::Send(same)]);
        now = now.plus(Duration::from_secs(30));
    }
    let refused = format!(
        "error: instance_uid {} is refused: this agent was given another one and does not take it; configure one that no other agent uses",
        uid(1)
    );
    connection.frame(&frame(&heartbeat(1, 30)), now);
    assert_eq!(words(&mut connection), ["claim"]);
    connection.duplicate(uid(1), Some(uid(9)), now);
    assert_eq!(words(&mut connection), std::slice::from_ref(&refused));
    connection.frame(&frame(&heartbeat(1, 31)), now);
    assert_eq!(words(&mut connection), [refused], "without another claim");
    // In time it is looked into again: the other agent may be dead by now.
    now = now.plus(Duration::from_secs(30));
    connection.frame(&frame(&full(1, 32)), now);
    connection.claimed(uid(1), claimed(1, Known::Nothing), now);
    assert_eq!(words(&mut connection), ["claim", "publish #32 started dirty"]);
    connection.close(EndReason::ConnectionLost);
    assert!(!words(&mut connection).contains(&"not taken".to_owned()), "the uid is its own after all");
}

#[test]
fn a_connection_that_ends_says_whose_uid_was_not_taken() {
    let mut connection = Connection::new(Limits::default());
    connection.frame(&frame(&full(1, 0)), NOW);
    connection.duplicate(uid(1), Some(uid(2)), NOW);
    outputs(&mut connection);
    connection.close(EndReason::ConnectionLost);
    assert_eq!(outputs(&mut connection), [Output::NotTaken(uid(1))]);
}

#[test]
fn a_uid_that_was_asked_for_is_published_under_and_given_in_the_answer() {
    let mut connection = Connection::new(Limits::default());
    connection.frame(&frame(&requesting(full(1, 0))), NOW);
    connection.frame(&frame(&full(1, 1)), NOW);
    assert_eq!(words(&mut connection), ["issue"]);
    connection.issued(uid(1), uid(2), claimed(1, Known::Nothing), NOW);
    let published = outputs(&mut connection);
    assert!(
        matches!(&published[..], [Output::Publish(publish)] if publish.uid == uid(2) && !publish.dirty),
        "{published:?}"
    );
    connection.published(uid(2), SessionId(Uuid::from_u128(1)), Ok(()), NOW);
    let first = Reply::Answer { uid: uid(1), first: true, full_state: false, new_uid: Some(uid(2)) };
    let next = outputs(&mut connection);
    assert_eq!(next[1], Output::Send(first));
    assert!(matches!(&next[2], Output::Publish(publish) if publish.uid == uid(2)), "what waited follows");
    connection.published(uid(2), SessionId(Uuid::from_u128(1)), Ok(()), NOW);
    assert_eq!(words(&mut connection), ["settled Some(1)", "answer new_uid"]);
    // One under way when the agent learns its uid, then those under the new one, first with the wish again.
    connection.frame(&frame(&heartbeat(1, 2)), NOW);
    assert_eq!(words(&mut connection), ["settled Some(2)", "answer new_uid"]);
    connection.frame(&frame(&requesting(heartbeat(2, 3))), NOW);
    assert_eq!(words(&mut connection), ["taken", "publish #3"]);
    connection.published(uid(2), SessionId(Uuid::from_u128(1)), Ok(()), NOW);
    assert_eq!(words(&mut connection), ["settled Some(3)", "answer"]);
    assert_eq!((connection.sessions(), connection.waiting_bytes()), (1, 0));
}

#[test]
fn an_incomplete_agent_is_not_asked_in_the_answer_that_gives_it_its_uid() {
    let mut connection = Connection::new(Limits::default());
    connection.frame(&frame(&requesting(heartbeat(1, 5))), NOW);
    connection.issued(uid(1), uid(2), claimed(1, Known::Nothing), NOW);
    assert_eq!(words(&mut connection), ["issue", "publish #5 started dirty"]);
    connection.published(uid(2), SessionId(Uuid::from_u128(1)), Ok(()), NOW);
    assert_eq!(words(&mut connection), ["settled None", "answer first new_uid"]);
    assert_eq!(connection.poll_timeout(), Some(Timestamp(0)), "an ask is due");
    connection.timeout(NOW);
    assert_eq!(words(&mut connection), ["answer ask"]);
}

#[test]
fn who_asks_for_a_uid_and_never_takes_it_is_refused() {
    let mut connection = Connection::new(Limits::default());
    connection.frame(&frame(&requesting(full(1, 0))), NOW);
    connection.issued(uid(1), uid(2), claimed(1, Known::Nothing), NOW);
    outputs(&mut connection);
    connection.published(uid(2), SessionId(Uuid::from_u128(1)), Ok(()), NOW);
    let mut now = NOW;
    for sequence_num in 1..3 {
        now = now.plus(Duration::from_secs(30));
        outputs(&mut connection);
        connection.frame(&frame(&heartbeat(1, sequence_num)), now);
        assert_eq!(words(&mut connection), [&format!("settled Some({sequence_num})"), "answer new_uid"]);
    }
    now = now.plus(Duration::from_secs(30));
    connection.frame(&frame(&requesting(full(1, 3))), now);
    assert!(words(&mut connection)[0].contains("is refused"));
}

#[test]
fn an_agent_that_wants_another_uid_leaves_its_session() {
    let mut connection = in_sync();
    connection.frame(&frame(&full(1, 1)), NOW);
    connection.frame(&frame(&requesting(full(1, 2))), NOW);
    connection.frame(&frame(&heartbeat(1, 3)), NOW);
    assert_eq!(words(&mut connection), ["publish #1"]);
    published(&mut connection);
    assert_eq!(words(&mut connection), ["settled Some(1)", "answer", "publish ended", "ended", "issue"]);
    connection.issued(uid(1), uid(2), claimed(2, Known::Nothing), NOW);
    assert_eq!(words(&mut connection), ["publish #2 started dirty"]);
    connection.published(uid(2), SessionId(Uuid::from_u128(2)), Ok(()), NOW);
    assert_eq!(
        words(&mut connection),
        ["settled None", "answer first new_uid", "settled None", "answer new_uid"]
    );
}

#[test]
fn a_uid_issued_too_late_is_given_back() {
    let mut connection = Connection::new(Limits::default());
    connection.frame(&frame(&requesting(full(1, 0))), NOW);
    connection.close(EndReason::ConnectionLost);
    outputs(&mut connection);
    connection.issued(uid(1), uid(2), claimed(1, Known::Nothing), NOW);
    let ended = Output::Ended { uid: uid(2), session: SessionId(Uuid::from_u128(1)) };
    assert_eq!(outputs(&mut connection), [ended]);
}

#[test]
fn the_end_of_a_session_before_does_not_touch_a_claim() {
    let mut connection = Connection::new(Limits::default());
    connection.frame(&frame(&full(1, 0)), NOW);
    connection.close_session(uid(1), Some(SessionId(Uuid::from_u128(7))), EndReason::Silent);
    connection.claimed(uid(1), claimed(1, Known::Nothing), NOW);
    assert_eq!(words(&mut connection), ["claim", "publish #0 started"]);
}

#[test]
fn one_agent_of_a_connection_does_not_hold_up_another() {
    let mut connection = in_sync();
    connection.frame(&frame(&full(1, 1)), NOW);
    connection.frame(&frame(&full(2, 0)), NOW);
    assert_eq!(words(&mut connection), ["publish #1", "claim"]);
    connection.claimed(uid(2), claimed(2, Known::Nothing), NOW);
    assert_eq!(words(&mut connection), ["publish #0 started"]);
    connection.close_session(uid(2), None, EndReason::ProtocolError);
    assert_eq!(connection.session(uid(1)), Some(SessionId(Uuid::from_u128(1))));
}

#[test]
fn a_connection_carries_a_bounded_number_of_agents() {
    let mut connection = Connection::new(Limits { max_sessions: 1, ..Limits::default() });
    connection.frame(&frame(&full(1, 0)), NOW);
    connection.frame(&frame(&full(2, 0)), NOW);
    assert_eq!(words(&mut connection), ["claim", "error: this connection already carries 1 agents"]);
}

#[test]
fn waiting_messages_are_bounded() {
    let mut connection = Connection::new(Limits::default());
    for sequence_num in 0..100 {
        connection.frame(&frame(&full(1, sequence_num)), NOW);
    }
    let words = words(&mut connection);
    assert_eq!(words.len(), 1 + 100 - MAX_WAITING);
    assert_eq!(words[1], "error: too many messages are waiting to be stored");
}

#[test]
fn bad_frames_are_told_why_and_change_nothing() {
    let mut connection = in_sync();
    connection.frame(&Bytes::new(), NOW);
    connection.frame(&Bytes::from_static(&[9, 9]), NOW);
    connection.frame(&Bytes::from_static(&[0]), NOW);
    connection.frame(&Bytes::from_static(&[0, 0x1a, 0xff]), NOW);
    let words = words(&mut connection);
    assert_eq!(words[0], "error: the message is empty: a WebSocket message begins with the header byte 0");
    assert_eq!(words[1], "error: the header is 0x09: this server knows only 0");
    assert_eq!(words[2], "error: instance_uid must be 16 bytes, this one has 0");
    assert!(words[3].starts_with("error: the message is not an AgentToServer: "), "{}", words[3]);
    connection.frame(&frame(&heartbeat(1, 1)), NOW);
    assert_eq!(super::tests::words(&mut connection), ["settled Some(1)", "answer"]);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..20)) {
        let mut connection = in_sync();
        for bytes in frames {
            connection.frame(&bytes.into(), NOW);
        }
        outputs(&mut connection);
        connection.close(EndReason::ConnectionLost);
    }

    /// Whatever the order of messages and results: every message is answered exactly once, sessions
    /// publish one at a time, and a closed connection gives every agent back that it was given.
    #[test]
    fn every_message_is_answered_once(
        steps in proptest::collection::vec((0_u8..9, 1_u8..4, 0_u64..6), 1..60),
    ) {
        let mut connection = Connection::new(Limits::default());
        let (mut now, mut new) = (NOW, 100);
        let (mut sent, mut answered, mut granted, mut ended) = (0, 0, 0_u128, 0);
        let mut claims: VecDeque<(InstanceUid, bool)> = VecDeque::new();
        let mut flying: VecDeque<Publish> = VecDeque::new();
        let finish = steps.iter().copied().chain(std::iter::repeat_n((8, 1, 0), 400));
        for (step, agent, sequence_num) in finish {
            let message = match step {
                0 | 1 => Some(full(agent, sequence_num)),
                2 => Some(heartbeat(agent, sequence_num)),
                3 => Some(requesting(full(agent, sequence_num))),
                // Under an uid that may have been given.
                4 => Some(heartbeat(100 + agent, sequence_num)),
                _ => None,
            };
            if let Some(message) = message {
                sent += 1;
                connection.frame(&frame(&message), now);
            } else if let Some(publish) = flying.pop_front() {
                let result = if step == 5 { Err(not_now()) } else { Ok(()) };
                connection.published(publish.uid, publish.session, result, now);
            } else if let Some((uid, asked_for)) = claims.pop_front() {
                new += 1;
                match step {
                    5 => connection.claim_failed(uid, &not_now()),
                    6 => drop(connection.duplicate(uid, None, now)),
                    7 => drop(connection.duplicate(uid, Some(self::uid(new)), now)),
                    _ => {
                        granted += 1;
                        let claimed = claimed(granted, Known::Nothing);
                        match asked_for {
                            true => drop(connection.issued(uid, self::uid(new), claimed, now)),
                            false => connection.claimed(uid, claimed, now),
                        }
                    }
                }
            } else {
                now = now.plus(Duration::from_secs(3));
            }
            for output in outputs(&mut connection) {
                match output {
                    Output::Claim(uid) => claims.push_back((uid, false)),
                    Output::Issue(uid) => claims.push_back((uid, true)),
                    // A last word is not waited for.
                    Output::Publish(Publish { message: None, ended: Some(_), .. }) => {}
                    Output::Publish(publish) => {
                        prop_assert!(flying.iter().all(|other| other.uid != publish.uid), "two in flight");
                        flying.push_back(publish);
                    }
                    Output::Send(_) => answered += 1,
                    Output::Ended { .. } => ended += 1,
                    Output::Settled { .. } | Output::Taken { .. } | Output::NotTaken(_) => {}
                }
            }
        }
        prop_assert!(flying.is_empty() && claims.is_empty());
        prop_assert_eq!(answered, sent);
        prop_assert_eq!(connection.waiting_bytes(), 0);
        connection.close(EndReason::ConnectionLost);
        ended += outputs(&mut connection).iter().filter(|output| matches!(output, Output::Ended { .. })).count();
        prop_assert_eq!(ended as u128, granted);
    }
}
