//! The two agents for tests against a small server: the one driven by hand, and opamp-go.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use muster_fleet::wire;
use muster_proto::opamp::{
    AgentConfigFile, AgentConfigMap, AgentRemoteConfig, AgentToServer, RemoteConfigStatuses, ServerToAgent,
};
use muster_testkit::{DEADLINE, RawAgent, go_or_skip, messages};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;

/// A server of connections, one after the other: passes on what agents send, answers a message
/// with its own uid, and a first report with an offer. Closes with 1003 after a text.
async fn server(offer: Option<AgentRemoteConfig>) -> (String, mpsc::UnboundedReceiver<AgentToServer>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/v1/opamp", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let mut socket =
                tokio_tungstenite::accept_async(listener.accept().await.unwrap().0).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                match message {
                    Message::Binary(payload) => {
                        let message: AgentToServer = wire::decode(payload).unwrap();
                        let first = message.agent_description.is_some();
                        let answer = ServerToAgent {
                            instance_uid: message.instance_uid.clone(),
                            remote_config: offer.clone().filter(|_| first),
                            ..Default::default()
                        };
                        if sender.send(message).is_err() {
                            return;
                        }
                        socket.send(Message::Binary(wire::encode(&answer))).await.unwrap();
                    }
                    Message::Text(_) => {
                        let frame = CloseFrame { code: 1003.into(), reason: "no text".into() };
                        socket.close(Some(frame)).await.unwrap();
                    }
                    _ => {}
                }
            }
        }
    });
    (url, receiver)
}

fn offer(hash: &[u8], body: &'static str) -> AgentRemoteConfig {
    let file = AgentConfigFile { body: body.into(), content_type: "text/yaml".to_owned() };
    let config = AgentConfigMap { config_map: [("edge".to_owned(), file)].into() };
    AgentRemoteConfig { config: Some(config), config_hash: hash.to_vec() }
}

#[tokio::test]
async fn an_agent_by_hand_says_what_the_test_says() {
    let (url, mut received) = server(None).await;
    let mut agent = RawAgent::connect(&url).await;
    let uid = messages::new_uid();
    let first = messages::first_report(uid, &[("service.name", "checkout"), ("env", "prod")]);
    assert_eq!(agent.exchange(&first).await.instance_uid, uid.as_bytes());
    let arrived = received.recv().await.unwrap();
    assert_eq!(arrived, first);
    let description = arrived.agent_description.unwrap();
    assert_eq!(description.identifying_attributes.len(), 1);
    assert_eq!(description.non_identifying_attributes.len(), 1);

    agent.send(&messages::heartbeat(uid, 1)).await;
    agent.recv_where(|message| message.error_response.is_none()).await;
    assert_eq!(agent.next_within(Duration::from_millis(20)).await, None);
    assert_eq!(agent.close(1000).await, 1000);
}

#[tokio::test]
async fn the_servers_close_has_its_code() {
    let (url, _received) = server(None).await;
    let mut agent = RawAgent::connect(&url).await;
    agent.send_text("no").await;
    assert_eq!(agent.recv_close().await, 1003);
}

#[tokio::test]
async fn a_refused_upgrade_tells_its_status() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let answer = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 9\r\nContent-Length: 4\r\n\r\nbusy";
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let refusal = RawAgent::try_connect(&url, &[("Authorization", "Bearer x")]).await.unwrap_err();
    assert_eq!((refusal.status, refusal.header("retry-after")), (429, Some("9")));
}

#[tokio::test]
async fn opamp_go_applies_a_configuration() {
    let Some(go) = go_or_skip() else { return };
    let (url, mut received) = server(Some(offer(&[0xab, 1], "a: 1"))).await;
    let builder = go.agent().await;
    let builder = builder.attr("service.name", "checkout").apply_delay(Duration::from_millis(100));
    let mut agent = builder.start(&url);

    agent.wait("connected").await;
    let event = agent.wait("remote_config").await;
    assert_eq!(
        (event["hash"].as_str(), event["files"]["edge"]["body"].as_str()),
        (Some("ab01"), Some("a: 1"))
    );
    agent.wait("applied").await;
    assert_eq!(received.recv().await.unwrap().instance_uid, agent.uid().as_bytes());
    until(&mut received, |message| reports(message, RemoteConfigStatuses::Applied)).await;

    agent.command("health false the disk is full").await;
    let report =
        until(&mut received, |message| message.health.as_ref().is_some_and(|health| !health.healthy));
    assert_eq!(report.await.health.unwrap().last_error, "the disk is full");
    assert_eq!(agent.wait_within("failed", Duration::from_millis(20)).await, None);
    agent.disconnect().await;
    until(&mut received, |message| message.agent_disconnect.is_some()).await;
}

#[tokio::test]
async fn opamp_go_refuses_a_configuration() {
    let Some(go) = go_or_skip() else { return };
    let (url, mut received) = server(Some(offer(&[0xab, 2], "a: poison"))).await;
    let mut agent = go.agent().await.reject("poison").healthy(false).start(&url);
    assert!(agent.wait("failed").await["error"].as_str().unwrap().contains("poison"));
    until(&mut received, |message| reports(message, RemoteConfigStatuses::Failed)).await;
    assert!(agent.events().len() >= 3);
    agent.kill().await;
}

fn reports(message: &AgentToServer, status: RemoteConfigStatuses) -> bool {
    message.remote_config_status.as_ref().is_some_and(|reported| reported.status() == status)
}

async fn until(
    received: &mut mpsc::UnboundedReceiver<AgentToServer>,
    fits: impl Fn(&AgentToServer) -> bool,
) -> AgentToServer {
    let find = async {
        loop {
            let message = received.recv().await.unwrap();
            if fits(&message) {
                return message;
            }
        }
    };
    tokio::time::timeout(DEADLINE, find).await.unwrap()
}
