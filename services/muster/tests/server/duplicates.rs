//! Several agents with one instance_uid.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use muster_fleet::{Fleet, FleetOptions};
use muster_proto::opamp::{AgentToServer, ServerErrorResponseType, ServerToAgent};
use muster_testkit::messages::{first_report, full_state, goodbye, heartbeat, new_uid};
use muster_testkit::{Muster, RawAgent, eventually, go_or_skip};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{SOON, agent, agent_has, apply, assignment, offer, run, server, template};

const BLUE: &[(&str, &str)] = &[("service.name", "otelcol"), ("team", "blue")];

/// The uid that an answer gives the agent.
fn given(answer: &ServerToAgent) -> Option<Uuid> {
    let identification = answer.agent_identification.as_ref()?;
    Some(Uuid::from_slice(&identification.new_instance_uid).unwrap())
}

/// Sends a message while another agent is read from, so that it answers pings; returns the answer.
async fn exchange_beside(
    agent: &mut RawAgent,
    message: &AgentToServer,
    other: &mut RawAgent,
) -> ServerToAgent {
    agent.send(message).await;
    tokio::select! {
        answer = agent.recv() => answer,
        unexpected = other.next_within(SOON) => panic!("the other agent got {unexpected:?}"),
    }
}

async fn count(muster: &Muster, series: &str) -> f64 {
    muster.api().metrics().await.unwrap().get(series).unwrap_or_default()
}

#[tokio::test]
async fn clones_on_one_gateway_end_as_two_agents_with_a_config_each() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let uid = new_uid();
    let mut first = RawAgent::connect(&muster.opamp_url()).await;
    first.send(&first_report(uid, BLUE)).await;
    let offered = offer(&mut first).await;
    run(&mut first, uid, 1, &offered).await;
    let before = agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;

    // The clone says the very same of itself.
    let mut second = RawAgent::connect(&muster.opamp_url()).await;
    let answer = exchange_beside(&mut second, &first_report(uid, BLUE), &mut first).await;
    assert_eq!(answer.instance_uid, uid.as_bytes(), "the reply is to the uid that the agent used");
    assert_eq!(answer.flags, 1, "ReportFullState: an agent that takes a new uid says nothing by itself");
    let new = given(&answer).unwrap();
    assert_eq!(new.get_version_num(), 7);
    second.send(&full_state(new, 1, BLUE)).await;
    let offered = offer(&mut second).await;
    run(&mut second, new, 2, &offered).await;
    agent_has(&muster, new, "/remote_config/status", "APPLIED").await;

    // The first one is as it was, and goes on. (Ownership is told late when it was seen last.)
    let mut after = agent(&muster, uid).await;
    after["last_seen"] = before["last_seen"].clone();
    assert_eq!(after, before);
    let answer = first.exchange(&heartbeat(uid, 4)).await;
    assert_eq!((answer.flags, given(&answer)), (0, None));
    assert_eq!(count(&muster, r#"muster_duplicate_instance_uids_total{verdict="duplicate"}"#).await, 1.0);
    assert_eq!(count(&muster, r#"muster_gateway_new_instance_uids_total{result="taken"}"#).await, 1.0);
    let line = muster.wait_for_log("agent_rekeyed", SOON).await;
    assert!(line.contains(&uid.to_string()) && line.contains(&new.to_string()), "{line}");
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_new_uid_is_asked_for_its_state_if_the_client_reports_none() {
    let muster = server().await;
    let uid = new_uid();
    let mut first = RawAgent::connect(&muster.opamp_url()).await;
    first.exchange(&first_report(uid, &[("team", "blue")])).await;
    let mut second = RawAgent::connect(&muster.opamp_url()).await;
    let answer = exchange_beside(&mut second, &first_report(uid, &[("team", "red")]), &mut first).await;
    let new = given(&answer).unwrap();
    let answer = second.exchange(&heartbeat(new, 1)).await;
    assert_eq!(answer.flags, 1, "ReportFullState");
    second.exchange(&full_state(new, 2, &[("team", "red")])).await;
    agent_has(&muster, new, "/attributes/non_identifying/team", "red").await;
    assert_eq!(agent(&muster, uid).await["attributes"]["non_identifying"], json!({"team": "blue"}));
    muster.assert_no_errors();
}

#[tokio::test]
async fn an_agent_whose_old_connection_is_dead_keeps_its_uid() {
    let muster = server().await;
    let uid = new_uid();
    let mut old = RawAgent::connect(&muster.opamp_url()).await;
    old.exchange(&first_report(uid, &[("team", "blue")])).await;
    old.exchange(&heartbeat(uid, 1)).await;
    old.exchange(&heartbeat(uid, 2)).await;
    // Nobody reads from the old connection any more: it does not answer the probe.
    let mut new = RawAgent::connect(&muster.opamp_url()).await;
    let answer = new.exchange(&heartbeat(uid, 3)).await;
    assert_eq!((answer.error_response.as_ref(), given(&answer), answer.flags), (None, None, 0), "in sync");
    assert_eq!(old.recv_close().await, 1008);
    agent_has(&muster, uid, "/connected", true).await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn an_agent_that_closes_its_old_connection_after_it_opened_the_new_one_keeps_its_uid() {
    let muster = server().await;
    for says_goodbye in [false, true] {
        let uid = new_uid();
        let mut old = RawAgent::connect(&muster.opamp_url()).await;
        old.exchange(&first_report(uid, &[])).await;
        let mut new = RawAgent::connect(&muster.opamp_url()).await;
        new.send(&heartbeat(uid, 1)).await;
        // The old one still answers the ping, and closes then.
        assert_eq!(old.next_within(Duration::from_millis(200)).await, None);
        if says_goodbye {
            old.exchange(&goodbye(uid, 1)).await;
        } else {
            old.close(1000).await;
        }
        let answer = new.recv().await;
        assert_eq!((answer.error_response.as_ref(), given(&answer)), (None, None));
        agent_has(&muster, uid, "/connected", true).await;
    }
    muster.assert_no_errors();
}

/// Agents whose sockets are open and dead, as after the loss of a load balancer.
const CROWD: usize = 500;

#[tokio::test]
async fn a_crowd_of_half_open_connections_is_settled_in_seconds_and_nobody_is_rekeyed() {
    let muster = server().await;
    let uids: Vec<Uuid> = (0..CROWD).map(|_| new_uid()).collect();
    let connect = async |uid: &Uuid, first: bool| {
        let mut agent = RawAgent::connect(&muster.opamp_url()).await;
        if first {
            agent.exchange(&first_report(*uid, &[("team", "red")])).await;
            agent.exchange(&heartbeat(*uid, 1)).await;
        }
        let answer = agent.exchange(&heartbeat(*uid, if first { 2 } else { 3 })).await;
        (agent, answer)
    };
    let old = join_all(uids.iter().map(|uid| connect(uid, true))).await;
    let begin = Instant::now();
    let new = join_all(uids.iter().map(|uid| connect(uid, false))).await;
    let took = begin.elapsed();
    println!("{CROWD} agents came back within {took:?}");
    for (_, answer) in &new {
        assert_eq!((answer.error_response.as_ref(), given(answer), answer.flags), (None, None, 0));
    }
    assert!(took < Duration::from_secs(15), "one after the other: {took:?}");
    assert_eq!(
        count(&muster, r#"muster_duplicate_instance_uids_total{verdict="takeover"}"#).await,
        CROWD as f64
    );
    for uid in uids.iter().step_by(50) {
        agent_has(&muster, *uid, "/connected", true).await;
    }
    drop(old);
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_client_that_takes_no_new_uid_is_refused_in_the_end() {
    let muster = server().await;
    let uid = new_uid();
    let mut first = RawAgent::connect(&muster.opamp_url()).await;
    first.exchange(&first_report(uid, &[("team", "blue")])).await;
    // Each connection that ends without the new uid being taken counts.
    let mut given_to = 0;
    let refused = loop {
        let mut stubborn = RawAgent::connect(&muster.opamp_url()).await;
        let answer = exchange_beside(&mut stubborn, &first_report(uid, &[("team", "red")]), &mut first).await;
        match given(&answer) {
            Some(_) => given_to += 1,
            None => break (stubborn, answer),
        }
        assert!(given_to <= 20, "it is given new uids for ever");
        stubborn.close(1000).await;
    };
    let (mut stubborn, answer) = refused;
    assert_eq!(given_to, 10);
    let error = answer.error_response.unwrap();
    assert_eq!(error.r#type(), ServerErrorResponseType::BadRequest);
    assert!(error.error_message.contains("configure one that no other agent uses"), "{error:?}");
    // The connection stays, since a client would come back at once. What it says has no effect, and the
    // other agent is not asked each time whether it is there.
    let contests = count(&muster, r#"muster_duplicate_instance_uids_total{verdict="duplicate"}"#).await;
    assert_eq!(contests, 11.0);
    for sequence in 1..100 {
        let answer = stubborn.exchange(&heartbeat(uid, sequence)).await;
        assert!(answer.error_response.is_some(), "{answer:?}");
    }
    let after = count(&muster, r#"muster_duplicate_instance_uids_total{verdict="duplicate"}"#).await;
    assert_eq!(after, contests);
    assert_eq!(agent(&muster, uid).await["attributes"]["non_identifying"], json!({"team": "blue"}));
    muster.wait_for_log("agent_refused", SOON).await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn an_agent_that_asks_for_a_uid_gets_one_and_is_known_by_it() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let temporary = new_uid();
    let ask = AgentToServer { flags: 1, ..first_report(temporary, BLUE) };
    // The answer is lost, and the agent comes again: no agent is left behind that nobody is.
    let mut lost = RawAgent::connect(&muster.opamp_url()).await;
    let first = given(&lost.exchange(&ask).await).unwrap();
    agent_has(&muster, first, "/connected", true).await;
    lost.close(1000).await;
    agent_has(&muster, first, "/connected", false).await;
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    let answer = agent.exchange(&ask).await;
    assert_eq!(answer.instance_uid, temporary.as_bytes());
    assert_eq!((given(&answer), answer.flags), (Some(first), 0));
    let offered = offer(&mut agent).await;
    run(&mut agent, first, 1, &offered).await;
    let view = agent_has(&muster, first, "/remote_config/status", "APPLIED").await;
    assert_eq!(view["sequence_num"], 3);
    let listed = muster.api().get("/api/v1/agents").await.unwrap();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed:#}");
    // Another one with that temporary uid is another agent.
    let mut other = RawAgent::connect(&muster.opamp_url()).await;
    let second = given(&exchange_beside(&mut other, &ask, &mut agent).await).unwrap();
    assert_ne!(second, first);
    muster.assert_no_errors();
}

#[tokio::test]
async fn opamp_go_clones_end_as_two_agents_with_a_config_each() {
    let Some(go) = go_or_skip() else { return };
    let muster = server().await;
    let clone = go.agent().await.attr("service.name", "otelcol").attr("team", "blue").uid(new_uid());
    let mut first = clone.clone().start(&muster.opamp_url());
    agent_has(&muster, first.uid(), "/connected", true).await;
    let mut second = clone.start(&muster.opamp_url());
    let event = second.wait("new_uid").await;
    assert_eq!(event["old_uid"], first.uid().to_string());
    let new: Uuid = event["uid"].as_str().unwrap().parse().unwrap();
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    for agent in [&mut first, &mut second] {
        agent.wait("applied").await;
    }
    for uid in [first.uid(), new] {
        let view = agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;
        assert_eq!(view["attributes"]["non_identifying"], json!({"team": "blue"}));
    }
    let events = first.events();
    assert!(events.iter().all(|event| event["event"] != "new_uid"), "{events:?}");
    first.disconnect().await;
    second.disconnect().await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn an_opamp_go_agent_that_asks_for_a_uid_uses_the_one_it_gets() {
    let Some(go) = go_or_skip() else { return };
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let agent = go.agent().await.attr("team", "blue").arg("--request-uid");
    let mut agent = agent.heartbeat(Duration::from_millis(200)).start(&muster.opamp_url());
    let event = agent.wait("new_uid").await;
    assert_eq!(event["old_uid"], agent.uid().to_string());
    let new: Uuid = event["uid"].as_str().unwrap().parse().unwrap();
    agent.wait("applied").await;
    agent_has(&muster, new, "/remote_config/status", "APPLIED").await;
    agent.command("health false broken").await;
    agent_has(&muster, new, "/healthy", false).await;
    let events = agent.events();
    assert_eq!(events.iter().filter(|event| event["event"] == "new_uid").count(), 1, "{events:?}");
    let listed = muster.api().get("/api/v1/agents").await.unwrap();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed:#}");
    agent.disconnect().await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_fleet_of_clones_becomes_a_fleet_of_its_own() {
    const CLONES: usize = 50;
    let muster = server().await;
    let options = FleetOptions {
        count: CLONES,
        seed: 7,
        stable_uids: true,
        heartbeat: Duration::from_millis(250),
        ..FleetOptions::new(muster.opamp_url())
    };
    let first = Fleet::start(options.clone(), CancellationToken::new()).unwrap();
    let connected = async |expected: usize| {
        eventually(SOON, async || {
            let connected = muster.api().metrics().await.unwrap().sum("opamp_server_connected_agents");
            if connected == expected as f64 { Ok(()) } else { Err(format!("{connected} are connected")) }
        })
        .await;
    };
    connected(CLONES).await;
    let second = Fleet::start(options, CancellationToken::new()).unwrap();
    second.wait(|stats| stats.new_uids == CLONES as u64, SOON).await.unwrap();
    connected(2 * CLONES).await;
    let (first, second) = (first.stop().await, second.stop().await);
    assert_eq!((first.new_uids, first.drops, first.error_responses, first.errors), (0, 0, 0, 0), "{first:?}");
    assert_eq!((second.new_uids, second.error_responses, second.errors), (50, 0, 0), "{second:?}");
    eventually(SOON, async || {
        let listed = muster.api().get("/api/v1/agents?limit=1000").await.unwrap();
        let listed = listed["items"].as_array().unwrap().len();
        if listed == 2 * CLONES { Ok(()) } else { Err(format!("{listed} agents are listed")) }
    })
    .await;
    muster.assert_no_errors();
}
