//! kill -9 and start again: nothing that was stored is lost, and agents converge by themselves.

use muster_testkit::RawAgent;
use muster_testkit::messages::{first_report, full_state, heartbeat, new_uid};
use serde_json::json;

use crate::{QUIET, agent_has, apply, assignment, offer, run, server, template};

#[tokio::test]
async fn after_kill_9_agents_converge_without_an_operator() {
    let mut muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let (blue, gone) = (new_uid(), new_uid());
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.send(&first_report(blue, &[("team", "blue")])).await;
    let offered = offer(&mut agent).await;
    run(&mut agent, blue, 1, &offered).await;
    let mut other = RawAgent::connect(&muster.opamp_url()).await;
    other.exchange(&first_report(gone, &[("team", "red")])).await;
    agent_has(&muster, blue, "/remote_config/status", "APPLIED").await;
    agent_has(&muster, gone, "/connected", true).await;

    muster.kill9().await;
    muster.restart().await;
    let configs = muster.api().get("/api/v1/configs").await.unwrap();
    assert_eq!(configs["items"][0]["name"], "base");
    let assignments = muster.api().get("/api/v1/assignments").await.unwrap();
    assert_eq!(assignments["items"][0]["template"]["resolved_version"], "v1");

    // The agent goes on as opamp-go does: sequence and capabilities alone. It is asked for the rest.
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    let answer = agent.exchange(&heartbeat(blue, 4)).await;
    assert_eq!(answer.flags, 1, "ReportFullState");
    agent.exchange(&full_state(blue, 5, &[("team", "blue"), ("host.name", "new")])).await;
    agent_has(&muster, blue, "/attributes/non_identifying/host.name", "new").await;
    let answer = agent.exchange(&heartbeat(blue, 6)).await;
    assert_eq!(answer.flags, 0, "asked once");

    // This full state reports no config, so the agent gets it again; then there is nothing to send.
    let offered = offer(&mut agent).await;
    run(&mut agent, blue, 7, &offered).await;
    assert_eq!(agent.next_within(QUIET).await, None);

    // An agent that does not come back is not shown as connected for ever.
    let view = tokio::time::timeout(std::time::Duration::from_secs(40), async {
        loop {
            let view = crate::agent(&muster, gone).await;
            if view["connected"] == json!(false) {
                return view;
            }
            tokio::time::sleep(QUIET).await;
        }
    });
    let view = view.await.unwrap();
    assert_eq!(view["session"]["end_reason"], "gateway_lost");
    assert_eq!(view["liveness"], "disconnected", "it is no fault of the agent");
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_stop_in_order_closes_connections_and_records_it() {
    let mut muster = server().await;
    let uid = new_uid();
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.exchange(&first_report(uid, &[])).await;
    agent_has(&muster, uid, "/connected", true).await;
    let (code, ()) = tokio::join!(agent.recv_close(), muster.terminate());
    assert_eq!(code, 1012);
    muster.restart().await;
    let view = agent_has(&muster, uid, "/connected", false).await;
    assert_eq!(view["session"]["end_reason"], "gateway_stopped");
    assert_eq!(view["liveness"], "disconnected");
    muster.assert_no_errors();
}
