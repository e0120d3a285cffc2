//! Connections that are open and dead, and agents on them that say nothing.

use std::time::Duration;

use muster_gateway::Settings;
use muster_proto::bus::EndReason;
use muster_testkit::{RawAgent, eventually, messages};
use uuid::Uuid;

use crate::{AGENT, Gateway, SOON, cell};

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_dead_and_one_that_does_stays() {
    let settings = Settings {
        ping_every: Duration::from_millis(50),
        silent_after: Duration::from_millis(500),
        ..Settings::new(cell(), "g1".parse().unwrap())
    };
    let gateway = Gateway::start_with(settings).await;
    let (live, dead) = (Uuid::from_u128(AGENT), Uuid::from_u128(9));
    let (mut answers, _) = gateway.connect().await;
    // Pings are answered while it is read from: this one is not.
    let mut hangs = RawAgent::connect(&gateway.url).await;
    hangs.exchange(&messages::first_report(dead, &[])).await;
    let ended = eventually(SOON, async || {
        assert_eq!(answers.next_within(Duration::from_millis(20)).await, None);
        let entries = gateway.published(dead).await;
        entries.iter().find_map(|entry| entry.ended).ok_or_else(|| "it is not ended".to_owned())
    })
    .await;
    assert_eq!(ended.reason(), EndReason::Silent);
    // Its connection ends; the Close may be lost to a peer that answers pings only now.
    hangs.recv_close().await;
    answers.exchange(&messages::heartbeat(live, 1)).await;
    assert!(gateway.published(live).await.iter().all(|entry| entry.ended.is_none()));
    gateway.stop().await;
}

#[tokio::test]
async fn an_agent_that_misses_its_heartbeats_is_told_of_and_keeps_its_session() {
    let settings = Settings {
        agent_silent_after: Duration::from_millis(200),
        ..Settings::new(cell(), "g1".parse().unwrap())
    };
    let gateway = Gateway::start_with(settings).await;
    let uid = Uuid::from_u128(AGENT);
    let (mut agent, session) = gateway.connect().await;
    // The gateway's clock goes on.
    gateway.time.fetch_add(300_000, std::sync::atomic::Ordering::SeqCst);
    eventually(SOON, async || match gateway.published(uid).await.last() {
        Some(entry) if entry.silent => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    agent.exchange(&messages::heartbeat(uid, 1)).await;
    eventually(SOON, async || match gateway.published(uid).await.last() {
        Some(entry) if !entry.silent => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let entries = gateway.published(uid).await;
    let silences: Vec<_> = entries.iter().map(|entry| entry.silent).collect();
    assert_eq!(silences, [false, true, false]);
    assert!(entries.iter().all(|entry| entry.session_id == session && entry.ended.is_none()));
    gateway.stop().await;
}
