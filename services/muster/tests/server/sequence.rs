//! Messages that come twice, not at all, or in another order.

use muster_proto::opamp::{AgentToServer, CustomMessage, ServerToAgent};
use muster_testkit::RawAgent;
use muster_testkit::messages::{first_report, full_state, health, heartbeat, new_uid};
use serde_json::json;
use uuid::Uuid;

use crate::events::Events;
use crate::{agent, agent_has, server};

fn says(uid: Uuid, sequence: u64, text: &str) -> AgentToServer {
    let custom = CustomMessage {
        capability: "com.example.log".to_owned(),
        r#type: "line".to_owned(),
        data: text.as_bytes().to_vec(),
    };
    AgentToServer { custom_message: Some(custom), ..heartbeat(uid, sequence) }
}

fn plain(uid: Uuid) -> ServerToAgent {
    ServerToAgent { instance_uid: uid.as_bytes().to_vec(), ..ServerToAgent::default() }
}

#[tokio::test]
async fn a_repeated_message_is_answered_again_and_takes_effect_once() {
    let muster = server().await;
    let uid = new_uid();
    let mut socket = RawAgent::connect(&muster.opamp_url()).await;
    socket.exchange(&first_report(uid, &[])).await;
    agent_has(&muster, uid, "/connected", true).await;
    let mut events = Events::listen(&muster, "custom_message").await;
    for _ in 0..3 {
        assert_eq!(socket.exchange(&says(uid, 1, "one")).await, plain(uid));
    }
    assert_eq!(socket.exchange(&heartbeat(uid, 2)).await, plain(uid), "the numbers go on after it");
    // The same number with other content is another message, after which something may be missing.
    let answer = socket.exchange(&says(uid, 2, "two")).await;
    assert_eq!(answer.flags, 1, "ReportFullState");
    socket.exchange(&full_state(uid, 3, &[])).await;
    assert_eq!(socket.exchange(&says(uid, 4, "three")).await, plain(uid));
    for text in ["one", "two", "three"] {
        assert_eq!(events.next().await["data"], text);
    }
    muster.assert_no_errors();
}

#[tokio::test]
async fn every_message_is_answered_in_its_order_whatever_it_holds() {
    let muster = server().await;
    let (one, other) = (new_uid(), new_uid());
    let mut socket = RawAgent::connect(&muster.opamp_url()).await;
    let only_uid = AgentToServer { instance_uid: one.as_bytes().to_vec(), ..AgentToServer::default() };
    let messages = [
        first_report(one, &[]),
        heartbeat(one, 1),
        health(one, 2, true, ""),
        only_uid,
        health(one, 3, false, "late"),
        heartbeat(one, 4),
    ];
    // All of them before an answer is read; another agent's come between.
    socket.send(&first_report(other, &[])).await;
    for message in &messages {
        socket.send(message).await;
    }
    let mut answers = Vec::new();
    while answers.len() < messages.len() {
        let answer = socket.recv().await;
        if answer.instance_uid == one.as_bytes() {
            answers.push(answer);
        }
    }
    let first = ServerToAgent { capabilities: 0x7, ..plain(one) };
    assert_eq!(answers[0], first, "only the first one holds more than the uid");
    assert!(answers[1..].iter().all(|answer| *answer == plain(one)), "{answers:#?}");
    agent_has(&muster, one, "/health/last_error", "late").await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn gaps_ask_for_full_state_once_and_not_again_at_once() {
    let muster = server().await;
    let (noisy, uid) = (new_uid(), new_uid());
    let mut socket = RawAgent::connect(&muster.opamp_url()).await;
    socket.exchange(&first_report(noisy, &[])).await;
    let mut flags = Vec::new();
    for sequence in [5, 6, 9, 3, 20] {
        flags.push(socket.exchange(&heartbeat(noisy, sequence)).await.flags);
    }
    assert_eq!(flags, [1, 0, 0, 0, 0], "further gaps are asked about when some time has passed");
    // Full state after the question mends it: also after a reconnect nothing is asked.
    let mut socket = RawAgent::connect(&muster.opamp_url()).await;
    socket.exchange(&first_report(uid, &[("host.name", "a")])).await;
    let mut flags = Vec::new();
    for sequence in [19, 20] {
        flags.push(socket.exchange(&heartbeat(uid, sequence)).await.flags);
    }
    assert_eq!(flags, [1, 0]);
    assert_eq!(socket.exchange(&full_state(uid, 21, &[("host.name", "b")])).await.flags, 0);
    agent_has(&muster, uid, "/attributes/non_identifying/host.name", "b").await;
    socket.close(1000).await;
    agent_has(&muster, uid, "/connected", false).await;
    let mut socket = RawAgent::connect(&muster.opamp_url()).await;
    assert_eq!(socket.exchange(&heartbeat(uid, 22)).await.flags, 0);
    // What was lost while it was away is a gap as well.
    socket.close(1000).await;
    agent_has(&muster, uid, "/connected", false).await;
    let mut socket = RawAgent::connect(&muster.opamp_url()).await;
    assert_eq!(socket.exchange(&heartbeat(uid, 24)).await.flags, 1);
    assert_eq!(agent(&muster, uid).await["attributes"]["non_identifying"], json!({"host.name": "b"}));
    // An agent that begins anew with its description is a whole, whatever its numbers were.
    socket.close(1000).await;
    agent_has(&muster, uid, "/connected", false).await;
    let mut socket = RawAgent::connect(&muster.opamp_url()).await;
    assert_eq!(socket.exchange(&first_report(uid, &[("host.name", "c")])).await.flags, 0);
    agent_has(&muster, uid, "/attributes/non_identifying/host.name", "c").await;
    muster.assert_no_errors();
}
