//! Fleets against a small server, over real sockets.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use muster_fleet::{Fleet, FleetError, FleetOptions, Kind, Mix, Rejects};
use muster_proto::opamp::{
    AgentIdentification, RemoteConfigStatuses, RetryInfo, ServerErrorResponse, ServerErrorResponseType,
    ServerToAgent, ServerToAgentFlags, server_error_response::Details,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use support::{DEADLINE, Server, What, is_bare, offer, reports};

/// A fast fleet without heartbeats.
fn options(server: &Server, count: usize) -> FleetOptions {
    let mut options = FleetOptions::new(&server.url);
    options.count = count;
    options.heartbeat = Duration::ZERO;
    options.apply_delay = Duration::from_millis(1)..=Duration::from_millis(20);
    options.connect_rate = 10_000.0;
    options
}

fn start(options: FleetOptions) -> Fleet {
    Fleet::start(options, CancellationToken::new()).unwrap()
}

fn silence() -> ServerToAgent {
    ServerToAgent::default()
}

#[tokio::test]
async fn agents_report_everything_first() {
    let server = Server::start(|_, _| silence()).await;
    let fleet = start(options(&server, 5));
    let stats = fleet.wait(|stats| stats.connected == 5 && stats.received == 5, DEADLINE).await.unwrap();
    assert_eq!((stats.full_states, stats.sent, stats.errors), (5, 5, 0));

    let messages = server.messages(5, |_| true).await;
    let uids: Vec<Uuid> = fleet.agents().iter().map(|agent| agent.uid).collect();
    for (_, message) in &messages {
        assert_eq!(message.sequence_num, 0);
        assert!(uids.contains(&Uuid::from_slice(&message.instance_uid).unwrap()));
        assert!(message.agent_description.is_some() && message.health.is_some());
        assert!(message.effective_config.is_some());
    }
    fleet.stop().await;
}

#[tokio::test]
async fn a_reconnect_goes_on_counting_and_says_nothing_new() {
    let server = Server::start(|_, _| silence()).await;
    let fleet = start(options(&server, 3));
    fleet.wait(|stats| stats.received == 3, DEADLINE).await.unwrap();
    server.cut();
    let again = server.messages(3, |message| message.sequence_num == 1).await;
    assert!(again.iter().all(|(connection, message)| *connection >= 3 && is_bare(message)));
    let stats = fleet.wait(|stats| stats.connected == 3 && stats.received == 6, DEADLINE).await.unwrap();
    assert_eq!((stats.full_states, stats.drops, stats.connections), (3, 3, 6));
    fleet.stop().await;
}

#[tokio::test]
async fn full_state_comes_again_when_the_server_asks() {
    let server = Server::start(|_, message| ServerToAgent {
        flags: if is_bare(message) { ServerToAgentFlags::ReportFullState as u64 } else { 0 },
        ..Default::default()
    })
    .await;
    let fleet = start(options(&server, 2));
    fleet.wait(|stats| stats.received == 2, DEADLINE).await.unwrap();
    server.cut();
    let full = server.messages(2, |message| message.sequence_num == 2).await;
    assert!(full.iter().all(|(_, message)| message.agent_description.is_some()));
    let stats = fleet.wait(|stats| stats.received == 6, DEADLINE).await.unwrap();
    assert_eq!((stats.full_states, stats.full_states_asked), (4, 2));
    fleet.stop().await;
}

#[tokio::test]
async fn a_configuration_is_applied_or_refused_by_kind() {
    let server = Server::start(|_, message| match message.sequence_num {
        0 if message.remote_config_status.is_some() => offer(&[0xab, 0x01], "a: 1"),
        _ => silence(),
    })
    .await;
    let fleet = start(options(&server, 25));
    let stats = fleet
        .wait(|stats| stats.applied == 21 && stats.failed == 1 && stats.received == 25 + 2 * 22, DEADLINE)
        .await
        .unwrap();
    assert_eq!(stats.configs_received, BTreeMap::from([("ab01".to_owned(), 22)]));
    assert_eq!(stats.running_of("ab01"), 21);
    assert_eq!(stats.errors, 0);

    for agent in fleet.agents() {
        let took = agent.effective_config.get("edge").map(|file| &file.body[..]);
        let expected = match agent.kind {
            Kind::Custom => (RemoteConfigStatuses::Unset, None),
            Kind::Rejecting => (RemoteConfigStatuses::Failed, None),
            _ => (RemoteConfigStatuses::Applied, Some(&b"a: 1"[..])),
        };
        assert_eq!((agent.status, took), expected, "{}", agent.kind);
        assert_eq!(agent.config_hash.is_some(), took.is_some());
        assert_eq!(agent.error_message.is_empty(), agent.kind != Kind::Rejecting);
    }
    let applied = server.messages(21, |message| reports(message, RemoteConfigStatuses::Applied)).await;
    assert!(applied.iter().all(|(_, message)| message.effective_config.is_some()));
    server.messages(22, |message| reports(message, RemoteConfigStatuses::Applying)).await;
    fleet.stop().await;
}

#[tokio::test]
async fn a_bad_configuration_is_refused_and_the_old_one_stays() {
    let server = Server::start(|_, message| match message.sequence_num {
        0 => offer(b"good", "a: 1"),
        _ if reports(message, RemoteConfigStatuses::Applied) => offer(b"bad", "a: poison"),
        _ => silence(),
    })
    .await;
    let mut options = options(&server, 1);
    options.mix = Mix::only(Kind::Collector);
    options.rejects = Rejects::containing("poison");
    let fleet = start(options);
    fleet.wait(|stats| stats.failed == 1, DEADLINE).await.unwrap();
    let failed = server.messages(1, |message| reports(message, RemoteConfigStatuses::Failed)).await;
    let status = failed[0].1.remote_config_status.as_ref().unwrap();
    assert_eq!(status.last_remote_config_hash, b"bad");
    assert_eq!(status.error_message, "edge: \"poison\" is not accepted");
    assert!(failed[0].1.effective_config.is_none());
    assert_eq!(fleet.agents()[0].effective_config["edge"].body, "a: 1");
    fleet.stop().await;
}

#[tokio::test]
async fn large_configurations_go_both_ways() {
    let body = "k: v # large\n".repeat(20_000);
    let sent = body.clone();
    let server = Server::start(move |_, message| match message.sequence_num {
        0 => offer(b"large", &sent),
        _ => silence(),
    })
    .await;
    let mut options = options(&server, 3);
    options.mix = Mix::only(Kind::FluentBit);
    let fleet = start(options);
    let applied = server.messages(3, |message| reports(message, RemoteConfigStatuses::Applied)).await;
    for (_, message) in applied {
        let files = message.effective_config.unwrap().config_map.unwrap().config_map;
        assert_eq!(files["edge"].body, body);
    }
    fleet.stop().await;
}

#[tokio::test]
async fn heartbeats_come_by_themselves() {
    let server = Server::start(|_, _| silence()).await;
    let mut options = options(&server, 2);
    options.heartbeat = Duration::from_millis(20);
    let fleet = start(options);
    let stats = fleet.wait(|stats| stats.heartbeats >= 10, DEADLINE).await.unwrap();
    assert_eq!(stats.full_states, 2);
    let messages = server.messages(10, is_bare).await;
    assert!(messages.iter().all(|(_, message)| message.capabilities != 0));
    fleet.stop().await;
}

#[tokio::test]
async fn agents_say_goodbye_and_close() {
    let server = Server::start(|_, _| silence()).await;
    let fleet = start(options(&server, 2));
    fleet.wait(|stats| stats.received == 2, DEADLINE).await.unwrap();
    let stats = fleet.stop().await;
    assert_eq!((stats.connected, stats.drops, stats.errors), (0, 0, 0));
    let records = server.wait(|records| records.len() == 6).await;
    for connection in 0..2 {
        let mine: Vec<_> = records.iter().filter(|record| record.connection == connection).collect();
        assert!(mine[1].message().unwrap().agent_disconnect.is_some());
        assert!(matches!(mine[2].what, What::Close(1000)));
    }
}

#[tokio::test]
async fn the_token_stops_a_fleet_too() {
    let server = Server::start(|_, _| silence()).await;
    let cancel = CancellationToken::new();
    let fleet = Fleet::start(options(&server, 2), cancel.clone()).unwrap();
    fleet.wait(|stats| stats.connected == 2, DEADLINE).await.unwrap();
    cancel.cancel();
    fleet.wait(|stats| stats.connected == 0, DEADLINE).await.unwrap();
    server.messages(2, |message| message.agent_disconnect.is_some()).await;
}

#[tokio::test]
async fn killed_agents_say_nothing() {
    let server = Server::start(|_, _| silence()).await;
    let fleet = start(options(&server, 2));
    fleet.wait(|stats| stats.received == 2, DEADLINE).await.unwrap();
    let stats = fleet.kill().await;
    assert_eq!((stats.connected, stats.sent, stats.errors), (0, 2, 0));
}

#[tokio::test]
async fn a_server_that_sheds_load_is_tried_again() {
    let server = Server::shedding(2, |_, _| silence()).await;
    let fleet = start(options(&server, 1));
    let stats = fleet.wait(|stats| stats.connected == 1, DEADLINE).await.unwrap();
    assert_eq!((stats.connect_failures, stats.connections), (2, 1));
    assert_eq!(stats.last_error.as_deref(), Some("the server answered 503 Service Unavailable"));
    fleet.stop().await;
}

#[tokio::test]
async fn an_unavailable_server_is_told_again_later() {
    let unavailable = ServerToAgent {
        error_response: Some(ServerErrorResponse {
            r#type: ServerErrorResponseType::Unavailable as i32,
            error_message: "later".to_owned(),
            details: Some(Details::RetryInfo(RetryInfo { retry_after_nanoseconds: 1_000_000 })),
        }),
        ..Default::default()
    };
    let server = Server::start(move |connection, _| match connection {
        0 => unavailable.clone(),
        _ => silence(),
    })
    .await;
    let fleet = start(options(&server, 1));
    let messages = server.messages(2, |message| message.agent_description.is_some()).await;
    assert_eq!((messages[1].0, messages[1].1.sequence_num), (1, 1));
    let stats = fleet.wait(|stats| stats.received == 2, DEADLINE).await.unwrap();
    assert_eq!((stats.error_responses, stats.drops, stats.errors), (1, 0, 0));
    fleet.stop().await;
}

#[tokio::test]
async fn a_new_uid_is_used_from_the_next_message() {
    let uid = Uuid::now_v7();
    let server = Server::start(move |_, message| match message.sequence_num {
        0 => ServerToAgent {
            agent_identification: Some(AgentIdentification { new_instance_uid: uid.as_bytes().to_vec() }),
            ..Default::default()
        },
        _ => silence(),
    })
    .await;
    let mut options = options(&server, 1);
    options.heartbeat = Duration::from_millis(50);
    let fleet = start(options);
    let messages = server.messages(1, |message| message.instance_uid == uid.as_bytes()).await;
    assert!(is_bare(&messages[0].1));
    assert_eq!(fleet.agents()[0].uid, uid);
    let stats = fleet.stop().await;
    assert_eq!((stats.new_uids, stats.errors), (1, 0));
}

#[tokio::test]
async fn the_same_seed_shows_the_same_agents() {
    let server = Server::start(|_, _| silence()).await;
    let mut whole = options(&server, 10);
    whole.stable_uids = true;
    let part = FleetOptions { first_index: 4, count: 3, ..whole.clone() };
    let facts = |fleet: &Fleet| -> Vec<(usize, Uuid, Kind)> {
        fleet.agents().iter().map(|agent| (agent.index, agent.uid, agent.kind)).collect()
    };
    let (first, second, part) = (start(whole.clone()), start(whole), start(part));
    assert_eq!(facts(&first), facts(&second));
    assert_eq!(facts(&first)[4..7], facts(&part));
}

#[tokio::test]
async fn a_condition_that_never_holds_shows_how_far_it_came() {
    let server = Server::start(|_, _| silence()).await;
    let fleet = start(options(&server, 1));
    fleet.wait(|stats| stats.connected == 1, DEADLINE).await.unwrap();
    let error = fleet.wait(|stats| stats.connected == 2, Duration::from_millis(10)).await.unwrap_err();
    assert_eq!(error.stats.connected, 1);
    assert!(error.to_string().contains("connected: 1"), "{error}");
    fleet.stop().await;
}

#[test]
fn a_fleet_without_a_runtime_or_address_does_not_start() {
    let fleet = Fleet::start(FleetOptions::new("ws://127.0.0.1:1/"), CancellationToken::new());
    assert!(matches!(fleet, Err(FleetError::NoRuntime)));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let fleet = Fleet::start(FleetOptions::new("127.0.0.1:1"), CancellationToken::new());
    assert!(matches!(fleet, Err(FleetError::Url { .. })));
}
