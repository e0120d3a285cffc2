//! Several agents with one instance_uid.

use muster_testkit::RawAgent;
use muster_testkit::messages::{first_report, heartbeat, new_uid};
use serde_json::json;
use uuid::Uuid;

use crate::{QUIET, SOON, agent, agent_has, server};

#[tokio::test]
async fn a_second_live_agent_gets_a_new_uid_and_a_dead_ones_uid_is_taken_over() {
    let muster = server().await;
    let uid = new_uid();
    let mut first = RawAgent::connect(&muster.opamp_url()).await;
    first.exchange(&first_report(uid, &[("team", "blue")])).await;
    let mut second = RawAgent::connect(&muster.opamp_url()).await;
    second.send(&first_report(uid, &[("team", "red")])).await;
    // The first agent answers the probe's ping while it is read from.
    let (answer, _) = tokio::join!(second.recv(), first.next_within(QUIET));
    assert_eq!(answer.instance_uid, uid.as_bytes(), "the reply is to the uid that the agent used");
    let new = Uuid::from_slice(&answer.agent_identification.unwrap().new_instance_uid).unwrap();
    assert_eq!(new.get_version_num(), 7);
    let answer = second.exchange(&heartbeat(new, 1)).await;
    assert_eq!(answer.flags, 1, "ReportFullState");
    agent_has(&muster, new, "/connected", true).await;
    assert_eq!(agent(&muster, uid).await["attributes"]["non_identifying"], json!({"team": "blue"}));
    // Nobody reads from the first one any more: it does not answer the probe.
    let mut third = RawAgent::connect(&muster.opamp_url()).await;
    third.send(&first_report(uid, &[("team", "red")])).await;
    let taken = tokio::time::timeout(SOON, third.recv()).await.unwrap();
    assert_eq!((taken.error_response, taken.agent_identification), (None, None));
    agent_has(&muster, uid, "/attributes/non_identifying/team", "red").await;
    assert_eq!(first.recv_close().await, 1008);
    muster.assert_no_errors();
}
