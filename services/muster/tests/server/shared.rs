//! Many agents on one connection: each has a session and a state of its own.

use std::time::Duration;

use muster_proto::opamp::{AgentToServer, RemoteConfigStatuses, ServerErrorResponseType};
use muster_testkit::messages::{
    config_status, first_report, full_state, goodbye, health, heartbeat, new_uid,
};
use muster_testkit::{Muster, RawAgent, eventually};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{QUIET, SOON, agent, agent_has, apply, assignment, body, server, template};

fn is_for(uid: Uuid) -> impl Fn(&muster_proto::opamp::ServerToAgent) -> bool {
    move |message| message.instance_uid == uid.as_bytes()
}

#[tokio::test]
async fn one_failing_agent_does_not_end_the_others() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let (good, bad, leaving) = (new_uid(), new_uid(), new_uid());
    let mut shared = RawAgent::connect(&muster.opamp_url()).await;
    for uid in [good, bad, leaving] {
        shared.send(&first_report(uid, &[("team", "blue")])).await;
        let is_offer = is_for(uid);
        let offer = shared.recv_where(|message| is_offer(message) && message.remote_config.is_some()).await;
        let offer = offer.remote_config.unwrap();
        assert!(body(&offer).contains("one:4317"));
        // One of them cannot apply what the others can.
        let status = if uid == bad { RemoteConfigStatuses::Failed } else { RemoteConfigStatuses::Applied };
        shared.exchange(&config_status(uid, 1, &offer.config_hash, status, "no")).await;
    }
    for (uid, status) in [(good, "APPLIED"), (bad, "FAILED"), (leaving, "APPLIED")] {
        agent_has(&muster, uid, "/remote_config/status", status).await;
    }
    // What one says wrongly is answered to that one.
    let long = "x".repeat(70_000);
    let refused = shared.exchange(&full_state(bad, 2, &[("team", &long)])).await;
    assert_eq!(refused.instance_uid, bad.as_bytes());
    assert_eq!(refused.error_response.unwrap().r#type(), ServerErrorResponseType::BadRequest);
    shared.send_raw(vec![0, 0x1a, 0xff, 1]).await;
    assert!(shared.recv().await.error_response.is_some());
    // A gap of one is a question to that one.
    let asked = shared.exchange(&heartbeat(bad, 9)).await;
    assert_eq!((asked.instance_uid.as_slice(), asked.flags), (&bad.as_bytes()[..], 1));
    let answer = shared.exchange(&heartbeat(good, 2)).await;
    assert_eq!((answer.instance_uid.as_slice(), answer.flags), (&good.as_bytes()[..], 0));
    // One says goodbye, one is disconnected by an operator: the connection stays.
    shared.exchange(&goodbye(leaving, 2)).await;
    agent_has(&muster, leaving, "/liveness", "shut_down").await;
    muster.cli(&["agents", "disconnect", &bad.to_string(), "--wait"]).await.expect_success();
    agent_has(&muster, bad, "/liveness", "disconnected").await;
    shared.exchange(&health(good, 3, false, "queue is full")).await;
    let view = agent_has(&muster, good, "/healthy", false).await;
    assert_eq!(
        (&view["liveness"], &view["remote_config"]["status"]),
        (&json!("connected"), &json!("APPLIED"))
    );
    // Who left may come back on it.
    shared.exchange(&full_state(leaving, 0, &[("team", "red")])).await;
    let view = agent_has(&muster, leaving, "/liveness", "connected").await;
    assert_eq!(view["attributes"]["non_identifying"]["team"], "red");
    assert_eq!(agent(&muster, bad).await["attributes"]["non_identifying"]["team"], "blue");
    // The connection is lost for all that are on it, and for no other.
    let mut apart = RawAgent::connect(&muster.opamp_url()).await;
    let other = new_uid();
    apart.exchange(&first_report(other, &[])).await;
    drop(shared);
    for uid in [good, leaving] {
        agent_has(&muster, uid, "/liveness", "unreachable").await;
    }
    assert_eq!(agent(&muster, other).await["liveness"], "connected");
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_clone_on_a_shared_connection_gets_a_uid_of_its_own_and_the_others_go_on() {
    let muster = server().await;
    let (twice, other) = (new_uid(), new_uid());
    let mut first = RawAgent::connect(&muster.opamp_url()).await;
    let mut second = RawAgent::connect(&muster.opamp_url()).await;
    first.exchange(&first_report(twice, &[("host.name", "a")])).await;
    second.exchange(&first_report(other, &[])).await;
    agent_has(&muster, twice, "/connected", true).await;
    second.send(&first_report(twice, &[("host.name", "b")])).await;
    // Nobody waits for the contest but the newcomer.
    let answer = second.exchange(&heartbeat(other, 1)).await;
    assert_eq!(answer.instance_uid, other.as_bytes());
    // The first shows that it is there whenever it is looked for.
    let alive = async {
        for sequence_num in 1.. {
            first.exchange(&heartbeat(twice, sequence_num)).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let rekeyed = tokio::select! {
        () = alive => unreachable!("heartbeats have no end"),
        rekeyed = second.recv_where(|message| message.agent_identification.is_some()) => rekeyed,
    };
    assert_eq!(rekeyed.instance_uid, twice.as_bytes());
    let new = Uuid::from_slice(&rekeyed.agent_identification.unwrap().new_instance_uid).unwrap();
    second.send(&full_state(new, 1, &[("host.name", "b")])).await;
    agent_has(&muster, new, "/attributes/non_identifying/host.name", "b").await;
    assert_eq!(agent(&muster, twice).await["attributes"]["non_identifying"]["host.name"], "a");
    assert_eq!(agent(&muster, other).await["liveness"], "connected");
    muster.assert_no_errors();
}

#[tokio::test]
async fn thousands_share_a_connection_and_one_too_many_is_refused_alone() {
    const AGENTS: usize = 2_000;
    let muster = Muster::builder(env!("CARGO_BIN_EXE_muster"))
        .env("MUSTER_SERVER__WEBSOCKET__MAX_AGENTS_PER_CONNECTION", AGENTS.to_string())
        .start()
        .await;
    let uids: Vec<Uuid> = (0..AGENTS).map(|_| new_uid()).collect();
    let mut shared = RawAgent::connect(&muster.opamp_url()).await;
    // Some at a time, as one who carries many does: what is not answered yet waits in the server.
    for some in uids.chunks(100) {
        for uid in some {
            shared.send(&first_report(*uid, &[("team", "red")])).await;
        }
        for _ in some {
            assert_eq!(shared.recv().await.error_response, None);
        }
    }
    let refused = shared.exchange(&first_report(new_uid(), &[])).await.error_response.unwrap();
    assert_eq!(refused.r#type(), ServerErrorResponseType::BadRequest);
    assert!(refused.error_message.contains("already carries 2000 agents"), "{refused:?}");
    // Each of them is heard and answered.
    for some in uids.chunks(500) {
        for uid in some {
            shared.send(&heartbeat(*uid, 1)).await;
        }
        for _ in some {
            let answer = shared.recv().await;
            assert_eq!((answer.error_response, answer.flags), (None, 0));
        }
    }
    let connected = eventually(SOON, async || {
        let found = connected(&muster).await;
        if found.len() == AGENTS { Ok(found) } else { Err(format!("{} are connected", found.len())) }
    })
    .await;
    assert!(uids.iter().all(|uid| connected.contains(&uid.to_string())));
    // One of them leaves room for another.
    shared.exchange(&goodbye(uids[0], 2)).await;
    let last = new_uid();
    let answer = shared.exchange(&AgentToServer { sequence_num: 0, ..first_report(last, &[]) }).await;
    assert_eq!((answer.instance_uid.as_slice(), answer.error_response), (&last.as_bytes()[..], None));
    assert_eq!(shared.next_within(QUIET).await, None);
    muster.assert_no_errors();
}

/// The uids of all agents that are connected, page by page.
async fn connected(muster: &Muster) -> Vec<String> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/v1/agents?liveness=connected&limit=1000{cursor}");
        let page = muster.api().get(&path).await.unwrap();
        let items = page["items"].as_array().unwrap();
        found.extend(items.iter().map(|item| item["instance_uid"].as_str().unwrap().to_owned()));
        match &page["next_cursor"] {
            Value::String(next) => cursor = format!("&cursor={next}"),
            _ => return found,
        }
    }
}
