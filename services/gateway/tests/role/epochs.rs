//! What a gateway does when the log or the store was lost or set back.

use std::time::Duration;

use bytes::Bytes;
use muster_domain::ids::{AgentKey, InstanceUid, Partition};
use muster_ports::bus::{Bus, Subject};
use muster_ports::epochs;
use muster_testkit::{Poller, RawAgent, eventually, messages};
use uuid::Uuid;

use crate::{AGENT, Gateway, SOON, cell};

fn partition() -> Partition {
    let uid = InstanceUid(Uuid::from_u128(AGENT));
    Partition::of(&AgentKey { tenant: "default".parse().unwrap(), uid })
}

async fn raise(gateway: &Gateway, partition: Partition, epoch: u64) {
    assert!(epochs::raise(gateway.values.as_ref(), &cell(), partition, epoch).await.unwrap());
}

#[tokio::test]
async fn agents_of_a_partition_that_begins_an_epoch_are_claimed_anew_and_asked() {
    let gateway = Gateway::start().await;
    let (mut agent, session) = gateway.connect().await;
    let reply = agent.exchange(&messages::heartbeat(Uuid::from_u128(AGENT), 1)).await;
    assert_eq!(reply.flags, 0, "nothing was lost yet");
    // The first epoch that it hears of may be any of these; the next one has risen.
    let rising = async {
        for epoch in 2.. {
            raise(&gateway, partition(), epoch).await;
            gateway.bus.publish(&Subject::Floors(cell()), Bytes::new()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let asked = tokio::select! {
        () = rising => return,
        asked = agent.recv_where(|message| message.flags == 1) => asked,
    };
    assert_eq!(asked.instance_uid, Uuid::from_u128(AGENT).as_bytes());
    let renewed = eventually(SOON, async || {
        let now = gateway.session().await;
        if now == session { Err("the session is the one before".to_owned()) } else { Ok(now) }
    })
    .await;
    assert_ne!(renewed, session);
    // Until it has answered, its progress is worth nothing: on another connection it is asked again.
    drop(agent);
    let mut agent = RawAgent::connect(&gateway.url).await;
    let reply = agent.exchange(&messages::heartbeat(Uuid::from_u128(AGENT), 2)).await;
    assert_eq!(reply.flags, 1);
    gateway.stop().await;
}

#[tokio::test]
async fn an_agent_that_polls_begins_anew_with_an_epoch() {
    let gateway = Gateway::start().await;
    let uid = Uuid::from_u128(AGENT);
    let agent = Poller::new(gateway.url.replace("ws://", "http://"));
    assert_eq!(agent.exchange(&messages::first_report(uid, &[])).await.flags, 0);
    let session = gateway.session().await;
    let mut sequence = 0;
    // As above: the second epoch that it hears of is a new one.
    let asked = eventually(SOON, async || {
        sequence += 1;
        raise(&gateway, partition(), sequence).await;
        gateway.bus.publish(&Subject::Floors(cell()), Bytes::new()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let answer = agent.exchange(&messages::heartbeat(uid, sequence)).await;
        if answer.flags == 1 { Ok(answer) } else { Err("it is not asked".to_owned()) }
    })
    .await;
    assert_eq!(asked.capabilities, 0x7, "another session");
    let entry = gateway.published(uid).await.pop().unwrap();
    assert_ne!(entry.session_id, session);
    assert!(entry.dirty && entry.started.is_some_and(|started| started.previous_session_id == session));
    // The clock of these tests stands still: another ask is not due.
    let full = messages::full_state(uid, sequence + 1, &[]);
    assert_eq!(agent.exchange(&full).await.flags, 0);
    assert!(!gateway.published(uid).await.pop().unwrap().dirty);
    gateway.stop().await;
}
