//! Which connections a gateway takes, and how it gives them up.

use std::io::ErrorKind;
use std::time::Duration;

use muster_domain::budget::Rate;
use muster_gateway::Settings;
use muster_testkit::{RawAgent, eventually, messages};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::{Gateway, SOON, cell};

#[tokio::test]
async fn known_agents_are_taken_before_new_ones() {
    let connection_rate = Rate { per_second: 1, burst: 10 };
    let settings = Settings { connection_rate, ..Settings::new(cell(), "g1".parse().unwrap()) };
    let gateway = Gateway::start_with(settings).await;
    let (known, _) = gateway.connect().await;
    let storm: Vec<_> = (0..20)
        .map(|_| {
            let url = gateway.url.clone();
            tokio::spawn(async move { RawAgent::try_connect(&url, &[]).await })
        })
        .collect();
    let (mut connected, mut refused) = (Vec::new(), Vec::new());
    for newcomer in storm {
        match newcomer.await.unwrap() {
            Ok(agent) => connected.push(agent),
            Err(refusal) => refused.push(refusal),
        }
    }
    assert!((4..10).contains(&connected.len()), "{} new agents were taken", connected.len());
    let refusal = &refused[0];
    assert_eq!(refusal.status, 503);
    let retry_after: u64 = refusal.header("retry-after").unwrap().parse().unwrap();
    assert!((30..=60).contains(&retry_after), "{retry_after}");
    let uid = Uuid::from_u128(crate::AGENT).to_string();
    RawAgent::try_connect(&gateway.url, &[("OpAMP-Instance-UID", &uid)]).await.unwrap();
    drop(known);
    gateway.stop().await;
}

#[tokio::test]
async fn a_tenants_connections_are_limited() {
    let settings = Settings { max_connections_per_tenant: 1, ..Settings::new(cell(), "g1".parse().unwrap()) };
    let gateway = Gateway::start_with(settings).await;
    let mut agent = RawAgent::connect(&gateway.url).await;
    let refusal = RawAgent::try_connect(&gateway.url, &[]).await.unwrap_err();
    assert_eq!(refusal.status, 429);
    assert!(refusal.header("retry-after").is_some());
    agent.close(1000).await;
    eventually(SOON, async || {
        RawAgent::try_connect(&gateway.url, &[]).await.map(drop).map_err(|refusal| format!("{refusal:?}"))
    })
    .await;
    gateway.stop().await;
}

#[tokio::test]
async fn who_comes_while_the_gateway_stops_is_sent_elsewhere() {
    let gateway = Gateway::start().await;
    // It never answers the Close, so that the gateway waits for it.
    let mut silent = RawAgent::connect(&gateway.url).await;
    silent.exchange(&messages::first_report(Uuid::from_u128(9), &[])).await;
    gateway.stop.cancel();
    let refusal = eventually(SOON, async || match RawAgent::try_connect(&gateway.url, &[]).await {
        Ok(_) => Err("it is taken".to_owned()),
        Err(refusal) => Ok(refusal),
    })
    .await;
    assert_eq!(refusal.status, 503);
    assert!(refusal.header("retry-after").is_some());
    assert_eq!(silent.recv_close().await, 1012);
    gateway.stop().await;
}

#[tokio::test]
async fn a_client_that_never_finishes_its_request_is_dropped() {
    let gateway = Gateway::start().await;
    let address = gateway.url.trim_start_matches("ws://").trim_end_matches("/v1/opamp").to_owned();
    let hangs = async |sent: &[u8]| {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer).await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    };
    let all =
        async { tokio::join!(hangs(b""), hangs(b"P"), hangs(b"GET /v1/opamp HTTP/1.1\r\nHost: a\r\n")) };
    tokio::time::timeout(Duration::from_secs(30), all).await.unwrap();
    gateway.stop().await;
}
