//! Commands: from the API and the command line to agents, and what agents say back.

use std::process::Stdio;

use muster_proto::opamp::{AgentToServer, CommandType, CustomCapabilities, CustomMessage, ServerToAgent};
use muster_testkit::messages::{CAPABILITIES, first_report, heartbeat, new_uid};
use muster_testkit::{Muster, Poller, RawAgent, eventually, go_or_skip};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use uuid::Uuid;

use crate::{QUIET, SOON, agent_has, server};

const RESTART: u64 = 0x400;
const PAUSE: &str = "io.opentelemetry.pause";

/// Connects an agent that can restart and pause, and waits until that is stored.
async fn connect(muster: &Muster, uid: Uuid, attributes: &[(&str, &str)]) -> RawAgent {
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    let report = AgentToServer {
        capabilities: CAPABILITIES | RESTART,
        custom_capabilities: Some(CustomCapabilities { capabilities: vec![PAUSE.to_owned()] }),
        ..first_report(uid, attributes)
    };
    agent.exchange(&report).await;
    let custom = agent.recv().await.custom_capabilities.unwrap();
    assert_eq!(custom.capabilities, [PAUSE], "the server answers what it takes part in");
    agent_has(muster, uid, "/connected", true).await;
    agent
}

async fn give(muster: &Muster, uid: Uuid, command: Value) -> String {
    let given = muster.api().post(&format!("/api/v1/agents/{uid}/commands"), &command).await.unwrap();
    assert_eq!((&given["status"], &given["instance_uid"]), (&json!("queued"), &json!(uid.to_string())));
    given["id"].as_str().unwrap().to_owned()
}

/// Waits until the command has this status.
async fn has(muster: &Muster, id: &str, status: &str) -> Value {
    eventually(SOON, async || {
        let path = format!("/api/v1/commands/{id}");
        let command = muster.api().get(&path).await.map_err(|error| error.to_string())?;
        if command["status"] == status { Ok(command) } else { Err(format!("{command:#} is not {status}")) }
    })
    .await
}

#[tokio::test]
async fn a_restart_reaches_the_agent_alone_in_its_message() {
    let muster = server().await;
    let uid = new_uid();
    let mut agent = connect(&muster, uid, &[]).await;
    let id = give(&muster, uid, json!({"action": "restart"})).await;
    let message = agent.recv().await;
    let only = ServerToAgent {
        instance_uid: uid.as_bytes().to_vec(),
        capabilities: message.capabilities,
        command: message.command,
        ..ServerToAgent::default()
    };
    assert_eq!(message, only);
    assert_eq!(message.command.map(|command| command.r#type()), Some(CommandType::Restart));
    assert_eq!(message.capabilities, 0x7);
    let sent = has(&muster, &id, "sent").await;
    assert_eq!((&sent["action"], &sent["reason"]), (&json!("restart"), &Value::Null));
    let listed = muster.api().get(&format!("/api/v1/agents/{uid}/commands")).await.unwrap();
    assert_eq!(listed["items"], json!([sent]));
    let shown = muster.cli(&["agents", "commands", &uid.to_string()]).await.expect_success();
    assert!(shown.contains(&id) && shown.contains("sent"), "{shown}");
    assert_eq!(agent.next_within(QUIET).await, None, "it is sent once");
    muster.assert_no_errors();
}

#[tokio::test]
async fn an_agent_that_polls_gets_commands_with_its_next_requests() {
    let muster = server().await;
    let (uid, agent) = (new_uid(), Poller::new(muster.opamp_http_url()));
    let report = AgentToServer {
        capabilities: CAPABILITIES | RESTART,
        custom_capabilities: Some(CustomCapabilities { capabilities: vec![PAUSE.to_owned()] }),
        ..first_report(uid, &[])
    };
    let first = agent.exchange(&report).await;
    assert_eq!(first.custom_capabilities.unwrap().capabilities, [PAUSE]);
    agent_has(&muster, uid, "/connected", true).await;
    let pause = give(&muster, uid, json!({"action": "pause"})).await;
    let restart = give(&muster, uid, json!({"action": "restart"})).await;
    let disconnect = give(&muster, uid, json!({"action": "disconnect"})).await;
    for id in [&pause, &restart] {
        has(&muster, id, "sent").await;
    }
    let refused = has(&muster, &disconnect, "refused").await;
    assert_eq!(refused["reason"], "the agent polls by plain HTTP: it has no connection to end");
    let mut sequence = 0;
    let mut next = async || {
        loop {
            sequence += 1;
            let message = AgentToServer { capabilities: CAPABILITIES | RESTART, ..heartbeat(uid, sequence) };
            let answer = agent.exchange(&message).await;
            if answer.command.is_some() || answer.custom_message.is_some() {
                return answer;
            }
        }
    };
    let message = next().await.custom_message.unwrap();
    assert_eq!((message.capability.as_str(), message.r#type.as_str()), (PAUSE, "pause"));
    let command = next().await.command.unwrap();
    assert_eq!(command.r#type(), CommandType::Restart);
    let nothing = ServerToAgent { instance_uid: uid.as_bytes().to_vec(), ..ServerToAgent::default() };
    let message = AgentToServer { capabilities: CAPABILITIES | RESTART, ..heartbeat(uid, sequence + 1) };
    assert_eq!(agent.exchange(&message).await, nothing, "each is sent once");
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_command_that_the_agent_cannot_do_is_refused_with_the_reason() {
    let muster = server().await;
    let uid = new_uid();
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.exchange(&first_report(uid, &[])).await;
    agent_has(&muster, uid, "/connected", true).await;
    let id = give(&muster, uid, json!({"action": "restart"})).await;
    let refused = has(&muster, &id, "refused").await;
    assert_eq!(refused["reason"], "the agent does not have the capability AcceptsRestartCommand");
    let output = muster.cli(&["agents", "pause", &uid.to_string(), "--wait"]).await;
    assert!(output.stdout.contains("the agent does not have the custom capability"), "{output:#?}");
    assert_eq!(output.expect_failure(), "muster: 1 of 1 commands were not sent\n");
    assert_eq!(agent.next_within(QUIET).await, None);
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_command_waits_until_the_agent_connects_or_it_expires() {
    let muster = server().await;
    let uid = new_uid();
    let mut agent = connect(&muster, uid, &[]).await;
    agent.close(1000).await;
    agent_has(&muster, uid, "/connected", false).await;
    let lasting = give(&muster, uid, json!({"action": "restart", "ttl_seconds": 600})).await;
    let short = give(&muster, uid, json!({"action": "pause", "ttl_seconds": 1})).await;
    let expired = has(&muster, &short, "expired").await;
    assert_eq!(expired["reason"], "the agent was not connected");
    has(&muster, &lasting, "queued").await;
    // It comes back without full state, as opamp-go does.
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.send(&AgentToServer { capabilities: CAPABILITIES | RESTART, ..heartbeat(uid, 1) }).await;
    agent.recv_where(|message| message.command.is_some()).await;
    has(&muster, &lasting, "sent").await;
    assert_eq!(agent.next_within(QUIET).await, None);
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_selector_is_counted_and_confirmed_first() {
    let muster = server().await;
    let (one, two, red) = (new_uid(), new_uid(), new_uid());
    let mut blue = connect(&muster, one, &[("team", "blue"), ("service.name", "collector")]).await;
    let mut other = connect(&muster, two, &[("team", "blue")]).await;
    let mut apart = connect(&muster, red, &[("team", "red")]).await;
    let body = |more: Value| {
        let mut body = json!({"selector": "team=blue", "command": {"action": "report"}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let counted = muster.api().post("/api/v1/commands", &body(json!({"dry_run": true}))).await.unwrap();
    assert_eq!((&counted["count"], &counted["connected"]), (&json!(2), &json!(2)));
    assert_eq!(counted["agents"][0], json!({"instance_uid": one.to_string(), "name": "collector"}));
    assert_eq!(counted["commands"], json!([]));
    let refused = muster.api().post("/api/v1/commands", &body(json!({}))).await.unwrap_err();
    assert_eq!(refused.status, 400);
    let refused = muster.api().post("/api/v1/commands", &body(json!({"expect": 3}))).await.unwrap_err();
    assert_eq!(
        (refused.status, refused.detail().contains("matches 2 agents, not 3")),
        (409, true),
        "{refused}"
    );
    assert_eq!(blue.next_within(QUIET).await, None, "nothing was sent yet");

    let command = ["agents", "report", "--selector", "team=blue"];
    let refused = muster.cli(&command).await.expect_failure();
    assert!(refused.contains("matches 2 agents") && refused.contains("--yes"), "{refused}");
    let given = muster.cli(&[&command[..], &["--yes", "--wait", "-o", "json"]].concat()).await.expect_json();
    let statuses: Vec<_> = given["items"].as_array().unwrap().iter().map(|item| &item["status"]).collect();
    assert_eq!(statuses, ["sent", "sent"]);
    for agent in [&mut blue, &mut other] {
        assert_eq!(agent.recv().await.flags, 1, "ReportFullState");
    }
    assert_eq!(apart.next_within(QUIET).await, None);
    let none = muster.cli(&["agents", "restart", "-l", "team=green", "--yes"]).await.expect_failure();
    assert_eq!(none, "muster: the selector matches no agent\n");
    muster.assert_no_errors();
}

#[tokio::test]
async fn custom_messages_go_both_ways() {
    let muster = server().await;
    let uid = new_uid();
    let mut agent = connect(&muster, uid, &[]).await;
    let mut watch = Command::new(env!("CARGO_BIN_EXE_muster"));
    watch.args(["watch", "--kinds", "custom_message", "-o", "json", "--server", &muster.http_url()]);
    let mut watch = watch.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut told = BufReader::new(watch.stdout.take().unwrap()).lines();

    muster.cli(&["agents", "pause", &uid.to_string(), "--wait"]).await.expect_success();
    let custom = agent.recv().await.custom_message.unwrap();
    assert_eq!((custom.capability.as_str(), custom.r#type.as_str(), custom.data.len()), (PAUSE, "pause", 0));
    let id = give(
        &muster,
        uid,
        json!({"action": "message", "capability": PAUSE, "type": "x", "data_base64": "AP8="}),
    )
    .await;
    assert_eq!(agent.recv().await.custom_message.unwrap().data, [0, 0xff]);
    let sent = has(&muster, &id, "sent").await;
    assert_eq!((&sent["type"], &sent["data_bytes"]), (&json!("x"), &json!(2)));

    // Nobody says when the watcher listens: the agent says it until it is heard.
    let mut sequence = 1;
    let heard = loop {
        let status = CustomMessage {
            capability: PAUSE.to_owned(),
            r#type: "status".to_owned(),
            data: br#"{"paused": true}"#.to_vec(),
        };
        agent.exchange(&AgentToServer { custom_message: Some(status), ..heartbeat(uid, sequence) }).await;
        sequence += 1;
        if let Ok(line) = tokio::time::timeout(QUIET, told.next_line()).await {
            break line.unwrap().unwrap();
        }
        assert!(sequence < 100, "the watcher hears nothing");
    };
    let mut heard: Value = serde_json::from_str(&heard).unwrap();
    heard["at"] = Value::Null;
    let expected = json!({
        "kind": "custom_message", "instance_uid": uid.to_string(), "at": null, "capability": PAUSE,
        "type": "status", "data": "{\"paused\": true}",
    });
    assert_eq!(heard, expected);
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_disconnect_closes_the_connection_and_the_agent_may_come_back() {
    let muster = server().await;
    let uid = new_uid();
    let mut agent = connect(&muster, uid, &[]).await;
    muster.cli(&["agents", "disconnect", &uid.to_string(), "--wait"]).await.expect_success();
    assert_eq!(agent.recv_close().await, 1000);
    agent_has(&muster, uid, "/connected", false).await;
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.exchange(&heartbeat(uid, 1)).await;
    agent_has(&muster, uid, "/connected", true).await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_stop_of_the_server_ends_streams_of_events() {
    let mut muster = server().await;
    let url = format!("{}/api/v1/events", muster.http_url());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut stream = client.get(&url).send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let refused = client.get(format!("{url}?kinds=nonsense")).send().await.unwrap();
    assert_eq!(refused.status(), 400);
    muster.terminate().await;
    let ended = tokio::time::timeout(SOON, async { while let Ok(Some(_)) = stream.chunk().await {} });
    assert!(ended.await.is_ok(), "the stream goes on");
    muster.assert_no_errors();
}

#[tokio::test]
async fn what_is_wrong_with_a_command_is_said() {
    let muster = server().await;
    let uid = new_uid();
    let _agent = connect(&muster, uid, &[]).await;
    let path = format!("/api/v1/agents/{uid}/commands");
    let cases = [
        (path.as_str(), json!({"action": "reboot"}), 400, "action: "),
        (&path, json!({"action": "restart", "ttl_seconds": 0}), 400, "ttl_seconds: "),
        (&path, json!({"action": "restart", "later": true}), 400, "unknown field `later`"),
        (
            &path,
            json!({"action": "message", "capability": "c", "type": "t", "data": "x".repeat(65_537)}),
            400,
            "data: is 65537 bytes",
        ),
        ("/api/v1/agents/nobody/commands", json!({"action": "restart"}), 400, "instance_uid"),
        (
            "/api/v1/agents/01890a5d-ac96-774b-bcce-b302099a8057/commands",
            json!({"action": "restart"}),
            404,
            "there is no agent",
        ),
        (
            "/api/v1/commands",
            json!({"selector": "a in", "command": {"action": "restart"}}),
            400,
            "selector: ",
        ),
    ];
    for (path, body, status, expected) in cases {
        let refused = muster.api().post(path, &body).await.unwrap_err();
        assert_eq!(refused.status, status, "{refused}");
        assert!(refused.detail().contains(expected), "{refused}");
    }
    for path in ["/api/v1/commands/x", "/api/v1/commands?ids=x", &format!("{path}?limit=0")] {
        assert_eq!(muster.api().get(path).await.unwrap_err().status, 400, "{path}");
    }
    let gone = muster.api().get("/api/v1/commands/01890a5d-ac96-774b-bcce-b302099a8057").await.unwrap_err();
    assert_eq!(gone.status, 404);
    muster.assert_no_errors();
}

#[tokio::test]
async fn an_opamp_go_agent_obeys() {
    let Some(go) = go_or_skip() else { return };
    let muster = server().await;
    let builder = go.agent().await.capability("AcceptsRestartCommand");
    let mut agent = builder.arg(format!("--custom-capability={PAUSE}")).start(&muster.opamp_url());
    agent.wait("connected").await;
    assert_eq!(agent.wait("custom_capabilities").await["capabilities"], json!([PAUSE]));
    let uid = agent.uid().to_string();
    agent_has(&muster, agent.uid(), "/custom_capabilities/0", PAUSE).await;
    muster.cli(&["agents", "pause", &uid, "--wait"]).await.expect_success();
    let event = agent.wait("custom_message").await;
    assert_eq!((&event["capability"], &event["type"]), (&json!(PAUSE), &json!("pause")));
    muster.cli(&["agents", "restart", &uid, "--wait"]).await.expect_success();
    assert!(agent.wait("command").await["command"].as_str().unwrap().contains("Restart"));
    let before = agent.events().len();
    muster.cli(&["agents", "disconnect", &uid, "--wait"]).await.expect_success();
    agent.wait("connected").await;
    assert!(agent.events().len() > before);
    agent.disconnect().await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_custom_message_reaches_every_agent_that_a_selector_matches_and_can_take_it() {
    let muster = server().await;
    let (one, two, red, unable) = (new_uid(), new_uid(), new_uid(), new_uid());
    let mut first = connect(&muster, one, &[("team", "blue")]).await;
    let mut second = connect(&muster, two, &[("team", "blue")]).await;
    let mut apart = connect(&muster, red, &[("team", "red")]).await;
    let mut without = RawAgent::connect(&muster.opamp_url()).await;
    without.exchange(&first_report(unable, &[("team", "blue")])).await;
    agent_has(&muster, unable, "/connected", true).await;
    let message = ["agents", "message", "-l", "team=blue", "--capability", PAUSE, "--type", "flush"];
    let given = muster.cli(&[&message[..], &["--data", "{\"all\":true}", "--yes", "--wait"]].concat()).await;
    assert!(given.stdout.contains("the agent does not have the custom capability"), "{given:#?}");
    assert_eq!(given.expect_failure(), "muster: 1 of 3 commands were not sent\n");
    for agent in [&mut first, &mut second] {
        let custom = agent.recv().await.custom_message.unwrap();
        let expected = CustomMessage {
            capability: PAUSE.to_owned(),
            r#type: "flush".to_owned(),
            data: b"{\"all\":true}".to_vec(),
        };
        assert_eq!(custom, expected);
    }
    assert_eq!((apart.next_within(QUIET).await, without.next_within(QUIET).await), (None, None));
    muster.assert_no_errors();
}

#[tokio::test]
async fn custom_capabilities_that_change_are_those_that_count() {
    let muster = server().await;
    let uid = new_uid();
    let mut agent = connect(&muster, uid, &[]).await;
    let announce = |sequence, names: &[&str]| AgentToServer {
        custom_capabilities: Some(CustomCapabilities {
            capabilities: names.iter().map(|name| (*name).to_owned()).collect(),
        }),
        ..heartbeat(uid, sequence)
    };
    agent.exchange(&announce(1, &["com.example.other"])).await;
    assert_eq!(agent.recv().await.custom_capabilities.unwrap().capabilities, ["com.example.other"]);
    agent_has(&muster, uid, "/custom_capabilities", json!(["com.example.other"])).await;
    let id = give(&muster, uid, json!({"action": "pause"})).await;
    has(&muster, &id, "refused").await;
    let message = json!({"action": "message", "capability": "com.example.other", "type": "t"});
    give(&muster, uid, message.clone()).await;
    assert_eq!(agent.recv().await.custom_message.unwrap().capability, "com.example.other");
    // Left out they are unchanged; an empty list takes all of them back.
    agent.exchange(&heartbeat(uid, 2)).await;
    let id = give(&muster, uid, message.clone()).await;
    agent.recv_where(|message| message.custom_message.is_some()).await;
    has(&muster, &id, "sent").await;
    agent.exchange(&announce(3, &[])).await;
    agent_has(&muster, uid, "/custom_capabilities", json!([])).await;
    let id = give(&muster, uid, message).await;
    has(&muster, &id, "refused").await;
    let last = agent.next_within(QUIET).await;
    assert!(last.is_none_or(|message| message.custom_message.is_none()), "it is not sent");
    muster.assert_no_errors();
}
