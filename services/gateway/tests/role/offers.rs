//! Which offers a gateway sends.

use std::sync::atomic::Ordering;

use muster_domain::ids::{AgentKey, Incarnation, InstanceUid, SessionId, Timestamp};
use muster_ports::ownership::{ClaimRequest, Ownership};
use muster_testkit::{RawAgent, eventually};
use uuid::Uuid;

use crate::{AGENT, Gateway, SOON};

/// The revision of the next offer that the agent receives.
async fn received(agent: &mut RawAgent) -> u64 {
    let message = agent.recv_where(|message| message.remote_config.is_some()).await;
    u64::from_be_bytes(message.remote_config.unwrap().config_hash.try_into().unwrap())
}

#[tokio::test]
async fn an_offer_below_the_floor_of_its_assignment_is_not_sent() {
    let gateway = Gateway::start().await;
    gateway.raise_floor("another", 1).await;
    let (mut agent, session) = gateway.connect().await;
    gateway.offer(&session, 4).await;
    assert_eq!(received(&mut agent).await, 4);
    gateway.raise_floor("all", 6).await;
    gateway.offer(&session, 5).await;
    gateway.has("below_floor").await;
    gateway.offer(&session, 6).await;
    assert_eq!(received(&mut agent).await, 6, "the one before was not sent");
    gateway.stop().await;
}

#[tokio::test]
async fn no_offer_is_sent_while_the_floors_are_unknown() {
    let gateway = Gateway::start().await;
    let (mut agent, session) = gateway.connect().await;
    gateway.offer(&session, 1).await;
    gateway.has("floors_unknown").await;
    gateway.raise_floor("all", 1).await;
    gateway.offer(&session, 2).await;
    assert_eq!(received(&mut agent).await, 2);
    gateway.stop().await;
}

#[tokio::test]
async fn an_offer_that_is_older_than_the_last_one_is_not_sent() {
    let gateway = Gateway::start().await;
    gateway.raise_floor("another", 1).await;
    let (mut agent, session) = gateway.connect().await;
    gateway.offer(&session, 9).await;
    assert_eq!(received(&mut agent).await, 9);
    gateway.offer(&session, 8).await;
    gateway.has("superseded").await;
    gateway.offer(&session, 9).await;
    assert_eq!(received(&mut agent).await, 9);
    gateway.stop().await;
}

#[tokio::test]
async fn a_gateway_that_cannot_renew_its_lease_sends_no_offers() {
    let gateway = Gateway::start().await;
    gateway.raise_floor("another", 1).await;
    let (mut agent, session) = gateway.connect().await;
    gateway.leases.is_down.store(true, Ordering::SeqCst);
    eventually(SOON, async || {
        gateway.offer(&session, 1).await;
        if gateway.had("lease_lapsed") { Ok(()) } else { Err("every offer is sent".to_owned()) }
    })
    .await;
    gateway.leases.is_down.store(false, Ordering::SeqCst);
    // Another life begins, in which the agent is claimed anew for another session.
    let renewed = eventually(SOON, async || {
        let now = gateway.session().await;
        if now == session { Err("the session is the one before".to_owned()) } else { Ok(now) }
    })
    .await;
    gateway.offer(&renewed, 2).await;
    while received(&mut agent).await != 2 {}
    gateway.stop().await;
}

#[tokio::test]
async fn an_agent_that_is_not_claimed_anew_is_sent_no_offer_of_the_life_before() {
    let mut gateway = Gateway::start().await;
    gateway.raise_floor("another", 1).await;
    let (mut agent, session) = gateway.connect().await;
    gateway.offer(&session, 1).await;
    assert_eq!(received(&mut agent).await, 1);
    let key = AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(AGENT)) };
    // Its progress is known: nothing but the new life has it claimed anew.
    eventually(SOON, async || {
        let owned = gateway.ownership.look_up(std::slice::from_ref(&key)).await.unwrap();
        let settled = owned[0].as_ref().and_then(|owned| owned.settled);
        settled.ok_or_else(|| "nothing is settled".to_owned())
    })
    .await;
    // The agent goes elsewhere while this gateway is halted, and its connection stays open.
    let elsewhere = ClaimRequest {
        key,
        session: SessionId(Uuid::from_u128(2)),
        gateway: "g2".parse().unwrap(),
        incarnation: Incarnation(Uuid::from_u128(2)),
        now: Timestamp(2_000_000),
        displace: Some(SessionId::try_from(session.as_ref()).unwrap()),
        epoch: 0,
    };
    gateway.ownership.claim(elsewhere).await.unwrap();
    gateway.leases.is_down.store(true, Ordering::SeqCst);
    eventually(SOON, async || {
        gateway.offer(&session, 2).await;
        if gateway.had("lease_lapsed") { Ok(()) } else { Err("every offer is sent".to_owned()) }
    })
    .await;
    gateway.leases.is_down.store(false, Ordering::SeqCst);
    // In its new life it asks control about the agent. What has waited for it comes now.
    let contest = tokio::time::timeout(SOON, gateway.contests.recv()).await.unwrap().unwrap();
    let (before, sent) = (gateway.count("lease_lapsed"), gateway.count("sent"));
    gateway.offer(&session, 3).await;
    eventually(SOON, async || {
        if gateway.count("lease_lapsed") > before { Ok(()) } else { Err("it is not refused".to_owned()) }
    })
    .await;
    assert_eq!(gateway.count("sent"), sent);
    drop(contest);
    gateway.stop().await;
}
