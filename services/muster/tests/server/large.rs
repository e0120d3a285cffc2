//! Payloads that are too large for one message between the roles, and agents that send too many.

use std::time::Duration;

use muster_proto::opamp::{AgentToServer, ServerErrorResponseType, ServerToAgent};
use muster_testkit::engines::{Engine, Nats, Postgres, Redis, engines_or_skip};
use muster_testkit::messages::{effective_config, first_report, health, heartbeat, new_uid};
use muster_testkit::{Muster, RawAgent, eventually};
use serde_json::Value;
use uuid::Uuid;

use crate::{SOON, agent, agent_has, apply, assignment, offer, run, server, template};

/// Longest wait for what takes its time with many MiB.
const LONG: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

/// A server with every role in one process, on a NATS server.
async fn on_nats(nats: &Nats, blobs: &str) -> Muster {
    let muster = Muster::builder(env!("CARGO_BIN_EXE_muster"));
    with_nats(muster, nats, blobs).start().await
}

fn with_nats(
    muster: muster_testkit::MusterBuilder,
    nats: &Nats,
    blobs: &str,
) -> muster_testkit::MusterBuilder {
    muster
        .env("MUSTER_BUS__TYPE", "nats")
        .env("MUSTER_BUS__URL", nats.url())
        .env("MUSTER_BUS__REPLICAS", "1")
        .env("MUSTER_BUS__MAX_BYTES", "64MiB")
        .env("MUSTER_BUS__MAX_BLOB_BYTES", blobs)
}

/// A text of this many bytes, other than that of another seed.
fn text(seed: usize, bytes: usize) -> String {
    let line = |at: usize| {
        format!("line {at} of {seed}: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n")
    };
    let mut text: String = (0..=bytes / 64).map(line).collect();
    text.truncate(bytes);
    text
}

/// The answer to a message, which may take long.
async fn exchange(agent: &mut RawAgent, message: &AgentToServer) -> ServerToAgent {
    agent.send(message).await;
    agent.next_within(LONG).await.unwrap()
}

/// Waits until this effective config is shown.
async fn shows(muster: &Muster, uid: Uuid, file: &str, body: &str) {
    eventually(LONG, async || {
        let path = format!("/api/v1/agents/{uid}");
        let view = muster.api().get(&path).await.map_err(|error| error.to_string())?;
        let shown = view["effective_config"][file]["body"].as_str().unwrap_or_default();
        // Too long to be printed.
        if shown == body { Ok(()) } else { Err(format!("{} bytes of another one", shown.len())) }
    })
    .await;
}

/// An agent, and the server that shows what it reports.
struct Reporter<'a> {
    muster: &'a Muster,
    agent: RawAgent,
    uid: Uuid,
    sequence: u64,
}

impl<'a> Reporter<'a> {
    async fn connect(url: &str, muster: &'a Muster) -> Self {
        let uid = new_uid();
        let mut agent = RawAgent::connect(url).await;
        agent.exchange(&first_report(uid, &[("team", "blue")])).await;
        Self { muster, agent, uid, sequence: 0 }
    }

    /// Reports an effective config of this size, and waits until it is shown.
    async fn report(&mut self, size: usize) {
        let body = text(size, size);
        self.sequence += 1;
        let message = effective_config(self.uid, self.sequence, &[("a.yaml", &body)]);
        let answer = exchange(&mut self.agent, &message).await;
        assert_eq!((answer.error_response, answer.flags), (None, 0), "{size} bytes");
        shows(self.muster, self.uid, "a.yaml", &body).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_reports_are_shown_whole_on_nats_and_larger_ones_close_with_1009() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let nats = Nats::start().await;
    let muster = on_nats(&nats, "256MiB").await;
    let mut reporter = Reporter::connect(&muster.opamp_url(), &muster).await;
    // Around what one message of NATS takes, too.
    for size in [MIB - 1000, MIB, 3 * MIB] {
        reporter.report(size).await;
    }
    // What is small goes on as before.
    reporter.sequence += 1;
    let small = health(reporter.uid, reporter.sequence, false, "queue is full");
    reporter.agent.exchange(&small).await;
    agent_has(&muster, reporter.uid, "/healthy", false).await;
    reporter.report(40 * MIB).await;
    let metrics = muster.api().metrics().await.unwrap();
    assert_eq!(metrics.sum("muster_gateway_blobs_total"), 3.0);
    assert_eq!(metrics.sum("muster_control_blobs_total"), 3.0);

    let mut greedy = RawAgent::connect(&muster.opamp_url()).await;
    // The server may close before it has read all of it.
    let _ = greedy.try_send_raw(vec![0; 64 * MIB + 1]).await;
    assert_eq!(greedy.recv_close().await, 1009);
    muster.assert_no_errors();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_reports_pass_between_roles_on_real_engines() {
    if !engines_or_skip(&[Engine::Nats, Engine::Redis, Engine::Postgres]) {
        return;
    }
    let (nats, redis) = (Nats::start().await, Redis::start().await);
    let postgres = Postgres::builder().without_fsync().start().await;
    let role = |role: &str, name: &str| {
        with_nats(Muster::builder(env!("CARGO_BIN_EXE_muster")), &nats, "256MiB")
            .env("MUSTER_OWNERSHIP__TYPE", "redis")
            .env("MUSTER_OWNERSHIP__URL", redis.url())
            .env("MUSTER_DATABASE__TYPE", "postgres")
            .arg(format!("--roles={role}"))
            .arg(format!("--name={name}"))
    };
    let database = postgres.database().await;
    let control = role("control,api", "c1").env("MUSTER_DATABASE__CONNECTION_STRING", database).start().await;
    let gateway = role("gateway", "g1").start().await;
    let mut reporter = Reporter::connect(&gateway.opamp_url(), &control).await;
    for size in [3 * MIB, 40 * MIB] {
        reporter.report(size).await;
    }
    control.assert_no_errors();
    gateway.assert_no_errors();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_report_passes_one_process() {
    let muster = server().await;
    Reporter::connect(&muster.opamp_url(), &muster).await.report(40 * MIB).await;
    let metrics = muster.api().metrics().await.unwrap();
    assert_eq!(metrics.sum("muster_gateway_blobs_total"), 0.0, "the log takes it as it is");
    muster.assert_no_errors();
}

/// A template with a text of 2 MiB beside its variables.
fn large_template() -> String {
    let note = text(1, 2 * MIB).replace('\n', " ");
    format!("{}    note: \"{note}\"\n", template("v1", "10s"))
}

async fn a_large_template_reaches_an_agent(muster: &Muster) {
    apply(muster, &[&large_template(), &assignment("one:4317")]).await;
    for _ in 0..3 {
        let uid = new_uid();
        let mut agent = RawAgent::connect(&muster.opamp_url()).await;
        agent.send(&first_report(uid, &[("team", "blue")])).await;
        let offered = offer(&mut agent).await;
        let body = crate::body(&offered);
        assert!(body.len() > 2 * MIB && body.contains("one:4317") && body.contains("line 20000 of 1"));
        run(&mut agent, uid, 1, &offered).await;
        agent_has(muster, uid, "/remote_config/status", "APPLIED").await;
        shows(muster, uid, "base", &body).await;
    }
    muster.assert_no_errors();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_template_reaches_an_agent_on_nats() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let nats = Nats::start().await;
    a_large_template_reaches_an_agent(&on_nats(&nats, "64MiB").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_template_reaches_an_agent_in_one_process() {
    a_large_template_reaches_an_agent(&server().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_for_which_there_is_no_room_is_told_to_come_later() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let nats = Nats::start().await;
    let muster = on_nats(&nats, "1MiB").await;
    let uid = new_uid();
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.exchange(&first_report(uid, &[])).await;
    let large = effective_config(uid, 1, &[("a.yaml", &text(1, 3 * MIB))]);
    assert_not_now(&exchange(&mut agent, &large).await, "the server cannot store the report now");
    // It goes on, and what the refused report said is asked for.
    let answer = agent.exchange(&health(uid, 2, false, "queue is full")).await;
    assert_eq!((answer.error_response, answer.flags), (None, 1));
    agent_has(&muster, uid, "/healthy", false).await;
    assert!(muster.logs().iter().any(|line| line.contains("BLOBS_muster-default is full")));
    muster.assert_no_errors();
}

#[tokio::test]
async fn messages_that_no_blob_can_hold_are_not_promised() {
    let muster = Muster::builder(env!("CARGO_BIN_EXE_muster"))
        .env("MUSTER_BUS__TYPE", "nats")
        .env("MUSTER_BUS__URL", "nats://127.0.0.1:1")
        .env("MUSTER_SERVER__WEBSOCKET__MAX_MESSAGE_SIZE", "129MiB");
    let error = muster.run(&["serve"]).await.expect_failure();
    assert!(error.contains("server.websocket.max_message_size") && error.contains("128MiB"), "{error}");
}

/// Checks that an answer is UNAVAILABLE for this reason, with a time to come again.
fn assert_not_now(answer: &ServerToAgent, reason: &str) {
    let error = answer.error_response.as_ref().unwrap();
    assert_eq!(error.r#type(), ServerErrorResponseType::Unavailable);
    assert!(error.error_message.contains(reason), "{}", error.error_message);
    assert!(error.details.is_some(), "retry_info");
}

#[tokio::test]
async fn an_agent_over_its_budget_is_told_so_and_costs_the_others_nothing() {
    let muster = Muster::builder(env!("CARGO_BIN_EXE_muster"))
        .env("MUSTER_SERVER__BUDGETS__AGENT", "{messages_per_second: 1, messages_burst: 3}")
        .start()
        .await;
    let (loud, quiet) = (new_uid(), new_uid());
    let mut agent_loud = RawAgent::connect(&muster.opamp_url()).await;
    agent_loud.exchange(&first_report(loud, &[])).await;
    let mut sequence = 0;
    let refused = loop {
        sequence += 1;
        let answer = agent_loud.exchange(&health(loud, sequence, false, &sequence.to_string())).await;
        if answer.error_response.is_some() {
            break answer;
        }
        assert!(sequence < 100, "nothing is refused");
    };
    assert_not_now(&refused, "server.budgets.agent");
    // Heartbeats are no reports, and the gap is asked for.
    let answer = agent_loud.exchange(&heartbeat(loud, sequence + 1)).await;
    assert_eq!((answer.error_response, answer.flags), (None, 1));
    let mut agent_quiet = RawAgent::connect(&muster.opamp_url()).await;
    assert_eq!(agent_quiet.exchange(&first_report(quiet, &[])).await.error_response, None);
    // Once there is budget again, it reports as before.
    eventually(SOON, async || {
        sequence += 2;
        let answer = agent_loud.exchange(&health(loud, sequence, true, "")).await;
        if answer.error_response.is_none() { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    agent_has(&muster, loud, "/healthy", true).await;
    // The end of a session is no report: it is known although nothing of the budget is left.
    for _ in 0..5 {
        sequence += 1;
        agent_loud.exchange(&health(loud, sequence, false, "")).await;
    }
    drop(agent_loud);
    agent_has(&muster, loud, "/connected", false).await;
    assert_eq!(agent(&muster, quiet).await["connected"], Value::Bool(true));
    let refused = muster.api().metrics().await.unwrap().sum("muster_gateway_over_budget_total");
    let told = muster.logs().iter().filter(|line| line.contains("over_budget")).count();
    assert!(told > 0 && (told as f64) < refused, "{told} lines for {refused} refusals");
    muster.assert_no_errors();
}
