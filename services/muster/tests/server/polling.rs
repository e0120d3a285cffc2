//! Agents over plain HTTP: they are managed as those on a WebSocket are, one request at a time.

use std::time::Duration;

use muster_proto::opamp::{
    AgentRemoteConfig, AgentToServer, RemoteConfigStatuses, ServerErrorResponseType, ServerToAgent,
};
use muster_testkit::messages::{
    CAPABILITIES, config_status, effective_config, full_state, goodbye, health, heartbeat, new_uid,
};
use muster_testkit::{Muster, Poller, RawAgent, eventually};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{SOON, agent, agent_has, apply, assignment, body, server, template};

/// Polls with heartbeats from this number on until something is offered. Returns the next number too.
pub(crate) async fn offer_from(poller: &Poller, uid: Uuid, first: u64) -> (AgentRemoteConfig, u64) {
    let mut sequence = first;
    let offer = eventually(SOON, async || {
        let answer = poller.exchange(&heartbeat(uid, sequence)).await;
        assert_eq!(answer.flags, 0, "nothing was lost");
        sequence += 1;
        answer.remote_config.ok_or_else(|| "nothing is offered".to_owned())
    })
    .await;
    (offer, sequence)
}

/// Sends a first report until something is offered: at once, if the machine is not too busy. Returns the
/// next number too.
async fn first_offer(poller: &Poller, uid: Uuid, report: &AgentToServer) -> (AgentRemoteConfig, u64) {
    match poller.exchange(report).await.remote_config {
        Some(offer) => (offer, report.sequence_num + 1),
        None => offer_from(poller, uid, report.sequence_num + 1).await,
    }
}

/// Reports APPLYING, the effective config and APPLIED, as a supervisor does; three messages.
async fn run(poller: &Poller, uid: Uuid, sequence: u64, offer: &AgentRemoteConfig) {
    let hash = &offer.config_hash;
    let messages: [AgentToServer; 3] = [
        config_status(uid, sequence, hash, RemoteConfigStatuses::Applying, ""),
        effective_config(uid, sequence + 1, &[("base", &body(offer))]),
        config_status(uid, sequence + 2, hash, RemoteConfigStatuses::Applied, ""),
    ];
    for message in messages {
        let answer = poller.exchange(&message).await;
        assert_eq!((answer.flags, answer.remote_config), (0, None));
    }
}

async fn metric(muster: &Muster, series: &str) -> f64 {
    muster.api().metrics().await.unwrap().get(series).unwrap_or_default()
}

async fn with(variable: &str, value: &str) -> Muster {
    Muster::builder(env!("CARGO_BIN_EXE_muster")).env(variable, value).start().await
}

/// As the answers to heartbeats are: nothing but the uid.
fn plain(uid: Uuid) -> ServerToAgent {
    ServerToAgent { instance_uid: uid.as_bytes().to_vec(), ..ServerToAgent::default() }
}

#[tokio::test]
async fn an_agent_that_polls_gets_its_config_and_shows_it() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let poller = Poller::new(muster.opamp_http_url());
    let uid = new_uid();
    // As the Node client: the first number is 1, no OpAMP-Instance-UID.
    let first = poller.send(&full_state(uid, 1, &[("service.name", "shop"), ("team", "blue")])).await;
    assert_eq!((first.status, first.header("content-type")), (200, Some("application/x-protobuf")));
    assert_eq!(first.header("content-encoding"), None, "it was not asked for");
    let first = first.message();
    assert_eq!((first.instance_uid.as_slice(), first.capabilities), (uid.as_bytes().as_slice(), 0x7));
    assert_eq!(first.flags, 0, "a first report with full state is a whole");
    let (offered, next) = match first.remote_config {
        Some(offered) => (offered, 2),
        None => offer_from(&poller, uid, 2).await,
    };
    assert!(body(&offered).contains("one:4317"));
    run(&poller, uid, next, &offered).await;
    let next = next + 3;
    let view = agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;
    assert_eq!(view["remote_config"]["reported_hash"], view["remote_config"]["desired_hash"]);
    assert_eq!(view["effective_config"]["base"]["body"], json!(body(&offered)));
    assert_eq!((&view["connected"], &view["session"]["transport"]), (&json!(true), &json!("http")));
    assert_eq!(view["attributes"]["identifying"], json!({"service.name": "shop"}));

    // Heartbeats reach neither the log nor the store, and are answered with nothing.
    let stored = "muster_gateway_publishes_total{result=\"stored\"}";
    let (published, claims) =
        (metric(&muster, stored).await, metric(&muster, "muster_control_folded_entries_total").await);
    for sequence in next..next + 20 {
        assert_eq!(poller.exchange(&heartbeat(uid, sequence)).await, plain(uid));
    }
    let only_uid = AgentToServer { instance_uid: uid.as_bytes().to_vec(), ..AgentToServer::default() };
    assert_eq!(poller.exchange(&only_uid).await, plain(uid));
    assert_eq!(metric(&muster, stored).await, published);
    assert_eq!(metric(&muster, "muster_control_folded_entries_total").await, claims);
    let heartbeats = metric(&muster, "muster_gateway_http_requests_total{result=\"heartbeat\"}").await;
    assert!(heartbeats >= 21.0, "{heartbeats}");

    // A change finds the agent at its next request, once.
    apply(&muster, &[&assignment("two:4317")]).await;
    let (second, sequence) = offer_from(&poller, uid, next + 20).await;
    assert!(body(&second).contains("two:4317"));
    assert_eq!(poller.exchange(&heartbeat(uid, sequence)).await, plain(uid), "it is sent once");
    run(&poller, uid, sequence + 1, &second).await;
    agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;
    assert_eq!(agent(&muster, uid).await["session"]["id"], view["session"]["id"], "it is one session");

    poller.exchange(&goodbye(uid, sequence + 4)).await;
    let view = agent_has(&muster, uid, "/connected", false).await;
    assert_eq!(view["session"]["end_reason"], "agent_disconnect");
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_new_agent_gets_its_config_in_its_first_reply() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let poller = Poller::new(muster.opamp_http_url());
    // On a busy machine 400 ms may be too short for one of them.
    eventually(SOON, async || {
        let uid = new_uid();
        let answer = poller.exchange(&full_state(uid, 1, &[("team", "blue")])).await;
        let offered = answer.remote_config.ok_or("nothing is offered")?;
        assert!(body(&offered).contains("one:4317"));
        // Its mailbox is empty again.
        assert_eq!(poller.exchange(&heartbeat(uid, 2)).await, plain(uid));
        Ok(())
    })
    .await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_first_report_without_anything_to_offer_does_not_wait_long() {
    let muster = server().await;
    let poller = Poller::new(muster.opamp_http_url());
    // Control says that it has decided: nobody waits for the whole 400 ms, unless the machine is busy.
    eventually(SOON, async || {
        let began = std::time::Instant::now();
        let answer = poller.exchange(&full_state(new_uid(), 1, &[])).await;
        assert_eq!(answer.remote_config, None);
        let took = began.elapsed();
        if took < Duration::from_millis(390) { Ok(()) } else { Err(format!("{took:?}")) }
    })
    .await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn an_agent_that_reports_no_status_gets_one_send() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let poller = Poller::new(muster.opamp_http_url());
    let uid = new_uid();
    let silent = |message: AgentToServer| AgentToServer {
        capabilities: CAPABILITIES & !0x1000,
        remote_config_status: None,
        ..message
    };
    let (mut offers, mut sequence) = (0, 1);
    eventually(SOON, async || {
        let message = silent(full_state(uid, sequence, &[("team", "blue")]));
        offers += u32::from(poller.exchange(&message).await.remote_config.is_some());
        sequence += 1;
        if offers > 0 { Ok(()) } else { Err("nothing is offered".to_owned()) }
    })
    .await;
    for sequence in sequence..sequence + 30 {
        assert_eq!(poller.exchange(&silent(heartbeat(uid, sequence))).await, plain(uid));
    }
    muster.assert_no_errors();
}

#[tokio::test]
async fn an_offer_that_waits_is_not_sent_once_its_hash_is_reported() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let poller = Poller::new(muster.opamp_http_url());
    let uid = new_uid();
    let report = full_state(uid, 1, &[("team", "blue")]);
    let (offered, next) = first_offer(&poller, uid, &report).await;
    apply(&muster, &[&assignment("two:4317")]).await;
    let changed = agent_has(&muster, uid, "/connected", true).await;
    let desired = changed["remote_config"]["desired_hash"].clone();
    // Back again before the agent asks: what it has been sent and reports now is what it should have.
    apply(&muster, &[&assignment("one:4317")]).await;
    eventually(SOON, async || {
        let view = agent(&muster, uid).await;
        let hash = &view["remote_config"]["desired_hash"];
        if *hash == json!(hex(&offered.config_hash)) {
            Ok(())
        } else {
            Err(format!("{hash} after {desired}"))
        }
    })
    .await;
    let answer = poller
        .exchange(&config_status(uid, 2, &offered.config_hash, RemoteConfigStatuses::Applied, ""))
        .await;
    assert_eq!(answer, plain(uid));
    agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;
    assert_eq!(poller.exchange(&heartbeat(uid, next + 1)).await, plain(uid));
    muster.assert_no_errors();
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn repeats_gaps_and_disorder_are_routine() {
    let muster = server().await;
    let poller = Poller::new(muster.opamp_http_url());
    let uid = new_uid();
    let first = full_state(uid, 1, &[("team", "red")]);
    let answer = poller.exchange(&first).await;
    // As the Python client, which gave up waiting: the very same once more.
    assert_eq!(poller.exchange(&first).await, answer, "answered again");
    agent_has(&muster, uid, "/connected", true).await;
    let folded = metric(&muster, "muster_control_folded_entries_total").await;
    let changed = health(uid, 2, false, "queue is full");
    for _ in 0..3 {
        assert_eq!(poller.exchange(&changed).await, plain(uid));
    }
    agent_has(&muster, uid, "/healthy", false).await;
    assert_eq!(
        metric(&muster, "muster_control_folded_entries_total").await,
        folded + 1.0,
        "it takes effect once"
    );

    // Two messages that were queued at once have one number; then one is missing; one comes late.
    let other = effective_config(uid, 2, &[("base", "a: 1")]);
    assert_eq!(poller.exchange(&other).await.flags, 1, "a number twice with other content is a gap");
    let text = "/effective_config/base/body";
    agent_has(&muster, uid, text, "a: 1").await;
    assert_eq!(poller.exchange(&heartbeat(uid, 4)).await.flags, 0, "full state is asked for once a gap");
    let late = effective_config(uid, 3, &[("base", "a: 0")]);
    assert_eq!(poller.exchange(&late).await.flags, 0);
    assert_eq!(poller.exchange(&full_state(uid, 5, &[("team", "green")])).await.flags, 0);
    let view = agent_has(&muster, uid, "/attributes/non_identifying/team", "green").await;
    assert_eq!(view.pointer(text), None, "the late message is not folded after the full state: {view:#}");
    assert_eq!(metric(&muster, "muster_gateway_http_requests_total{result=\"duplicate\"}").await, 0.0);
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_client_that_gives_up_after_a_second_repeats_until_it_is_answered() {
    let muster = server().await;
    let poller = Poller::new(muster.opamp_http_url());
    let uid = new_uid();
    let message = full_state(uid, 1, &[("team", "blue")]);
    // It gives up at once, wherever the request is by then.
    for wait in [1, 2, 4, 8, 16] {
        let _ = poller.try_send(&message, Duration::from_millis(wait)).await;
    }
    let answer = eventually(SOON, async || {
        let answer = poller.try_send(&message, Duration::from_secs(1)).await?;
        // A request that was given up may be in flight for a moment: its repeats introduce nobody.
        let message = answer.message();
        if message.capabilities == 0x7 { Ok(message) } else { Err(format!("{message:?}")) }
    })
    .await;
    assert_eq!(answer.error_response, None);
    agent_has(&muster, uid, "/attributes/non_identifying/team", "blue").await;
    assert_eq!(poller.exchange(&heartbeat(uid, 2)).await, plain(uid));
    let session = |view: &Value| view["session"]["id"].clone();
    assert_eq!(session(&agent(&muster, uid).await), session(&agent(&muster, uid).await));
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_restarted_agent_begins_anew() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let poller = Poller::new(muster.opamp_http_url());
    let uid = new_uid();
    let offered = poller.exchange(&full_state(uid, 1, &[("team", "blue")])).await.remote_config.unwrap();
    run(&poller, uid, 2, &offered).await;
    let before = agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;
    // It has lost its config, and says so.
    let again = full_state(uid, 1, &[("team", "blue"), ("host.name", "new")]);
    let (again, next) = first_offer(&poller, uid, &again).await;
    assert_eq!(again.config_hash, offered.config_hash);
    let after = agent_has(&muster, uid, "/attributes/non_identifying/host.name", "new").await;
    assert_ne!(before["session"]["id"], after["session"]["id"]);
    assert_eq!(poller.exchange(&heartbeat(uid, next)).await, plain(uid));

    // Without a description it cannot be told from a late message: it is asked, and not folded.
    let unwell = health(uid, 0, false, "early");
    assert_eq!(poller.exchange(&unwell).await.flags, 1);
    assert_eq!(poller.exchange(&full_state(uid, 1, &[("team", "blue")])).await.flags, 0);
    agent_has(&muster, uid, "/healthy", true).await;
    assert_eq!(poller.exchange(&heartbeat(uid, 2)).await.flags, 0);
    muster.assert_no_errors();
}

#[tokio::test]
async fn an_agent_that_is_not_heard_any_more_is_disconnected() {
    let muster = with("MUSTER_SERVER__POLLING__DEADLINE", "2s").await;
    let poller = Poller::new(muster.opamp_http_url());
    let (silent, alive) = (new_uid(), new_uid());
    poller.exchange(&full_state(silent, 1, &[])).await;
    poller.exchange(&full_state(alive, 1, &[])).await;
    agent_has(&muster, alive, "/connected", true).await;
    let mut sequence = 2;
    let view = eventually(SOON, async || {
        poller.exchange(&heartbeat(alive, sequence)).await;
        sequence += 1;
        let view = agent(&muster, silent).await;
        if view["connected"] == json!(false) { Ok(view) } else { Err("it is still connected".to_owned()) }
    })
    .await;
    assert_eq!(view["session"]["end_reason"], "silent");
    assert_eq!(agent(&muster, alive).await["connected"], json!(true), "heartbeats are enough");
    // It was only away.
    assert_eq!(poller.exchange(&heartbeat(silent, 2)).await.flags, 0, "nothing was missed");
    agent_has(&muster, silent, "/connected", true).await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_websocket_takes_over_from_polls_and_is_not_taken_over() {
    let muster = server().await;
    let poller = Poller::new(muster.opamp_http_url());
    let uid = new_uid();
    poller.exchange(&full_state(uid, 1, &[("team", "blue")])).await;
    agent_has(&muster, uid, "/session/transport", "http").await;
    poller.exchange(&heartbeat(uid, 2)).await;
    let mut socket = RawAgent::connect(&muster.opamp_url()).await;
    assert_eq!(socket.exchange(&heartbeat(uid, 3)).await.flags, 0, "the sequence goes on");
    agent_has(&muster, uid, "/session/transport", "websocket").await;
    assert_eq!(agent(&muster, uid).await["connected"], json!(true));

    // The other one still polls: the socket is alive and stays, so this one is another agent.
    let late = health(uid, 9, false, "another");
    let (answer, _) = tokio::join!(poller.exchange(&late), socket.next_within(Duration::from_secs(2)));
    let new = new_uid_of(&answer, uid);
    assert_eq!(agent(&muster, uid).await["healthy"], json!(true));
    // Nothing is known of the new uid, and its numbers do not begin anew: full state is asked for.
    assert_eq!(poller.exchange(&full_state(new, 10, &[("team", "new")])).await.flags, 1);
    let view = agent_has(&muster, new, "/session/transport", "http").await;
    assert_eq!(view["attributes"]["non_identifying"], json!({"team": "new"}));
    let view = agent_has(&muster, uid, "/session/transport", "websocket").await;
    assert_eq!(view["attributes"]["non_identifying"], json!({"team": "blue"}));
    for result in ["given", "taken"] {
        let series = format!("muster_gateway_new_instance_uids_total{{result=\"{result}\"}}");
        assert_eq!(metric(&muster, &series).await, 1.0, "{result}");
    }

    // Closed in order, the agent may poll.
    socket.close(1000).await;
    agent_has(&muster, uid, "/connected", false).await;
    assert_eq!(poller.exchange(&health(uid, 4, false, "mine")).await.flags, 0);
    agent_has(&muster, uid, "/health/last_error", "mine").await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn two_agents_that_take_turns_are_told_apart() {
    let muster = server().await;
    let poller = Poller::new(muster.opamp_http_url());
    let uid = new_uid();
    poller.exchange(&full_state(uid, 1, &[("team", "old")])).await;
    for sequence in 2..20 {
        poller.exchange(&heartbeat(uid, sequence)).await;
    }
    // A clone starts.
    poller.exchange(&full_state(uid, 1, &[("team", "new")])).await;
    poller.exchange(&heartbeat(uid, 20)).await;
    poller.exchange(&heartbeat(uid, 2)).await;
    poller.exchange(&heartbeat(uid, 21)).await;
    let new = new_uid_of(&poller.exchange(&health(uid, 3, false, "the clone")).await, uid);
    poller.exchange(&heartbeat(uid, 22)).await;
    poller.exchange(&full_state(new, 4, &[("team", "new")])).await;
    agent_has(&muster, new, "/attributes/non_identifying/team", "new").await;
    // The first one is asked for what the clone has overwritten.
    poller.exchange(&full_state(uid, 23, &[("team", "old")])).await;
    let view = agent_has(&muster, uid, "/attributes/non_identifying/team", "old").await;
    assert_eq!(view["healthy"], json!(true));

    // Another clone takes no new uid, as the Python client: it is refused in the end, and hinders nobody.
    let mut sequence = 1;
    let refused = eventually(SOON, async || {
        sequence += 1;
        poller.exchange(&heartbeat(uid, 22 + sequence)).await;
        let answer = poller.send(&full_state(uid, sequence, &[("team", "stubborn")])).await;
        answer.message().error_response.ok_or_else(|| "it is not refused".to_owned())
    })
    .await;
    assert_eq!(refused.r#type, ServerErrorResponseType::BadRequest as i32);
    assert!(refused.error_message.contains("is refused"), "{}", refused.error_message);
    poller.exchange(&full_state(uid, 23 + sequence, &[("team", "old")])).await;
    agent_has(&muster, uid, "/attributes/non_identifying/team", "old").await;
    muster.assert_no_errors();
}

/// The uid that another agent is given in the place of the one it uses.
fn new_uid_of(answer: &ServerToAgent, uid: Uuid) -> Uuid {
    let new = &answer.agent_identification.as_ref().unwrap().new_instance_uid;
    let new = Uuid::from_slice(new).unwrap();
    assert_ne!(new, uid);
    // It says all of itself under the new one.
    assert_eq!((answer.instance_uid.as_slice(), answer.flags), (uid.as_bytes().as_slice(), 1));
    new
}

#[tokio::test]
async fn an_agent_that_asks_for_a_uid_is_given_one() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let poller = Poller::new(muster.opamp_http_url());
    let own = new_uid();
    let asks = AgentToServer { flags: 1, ..full_state(own, 1, &[("team", "blue")]) };
    let answer = poller.exchange(&asks).await;
    let new = answer.agent_identification.as_ref().unwrap().new_instance_uid.clone();
    let new = Uuid::from_slice(&new).unwrap();
    assert_eq!((answer.instance_uid.as_slice(), answer.flags), (own.as_bytes().as_slice(), 0));
    // The answer may be lost: the same request is given the same uid, and the agent is one.
    let again = poller.exchange(&asks).await;
    assert_eq!(again.agent_identification, answer.agent_identification);
    // Who asks as well is another one.
    let other = AgentToServer { flags: 1, ..full_state(own, 1, &[("team", "green")]) };
    let other = poller.exchange(&other).await.agent_identification.unwrap().new_instance_uid;
    assert_ne!(other, new.as_bytes());

    let offered = match answer.remote_config {
        Some(offered) => offered,
        None => offer_from(&poller, new, 2).await.0,
    };
    let sequence = 100;
    // Some clients ask on.
    let asks_on = AgentToServer { flags: 1, ..full_state(new, sequence, &[("team", "blue")]) };
    assert_eq!(poller.exchange(&asks_on).await.agent_identification, None);
    run(&poller, new, sequence + 1, &offered).await;
    agent_has(&muster, new, "/remote_config/status", "APPLIED").await;
    let listed = muster.api().get("/api/v1/agents").await.unwrap();
    assert_eq!(listed["items"].as_array().unwrap().len(), 2, "nobody is left under the old uid: {listed:#}");
    muster.assert_no_errors();
}
