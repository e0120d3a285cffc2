//! Faults of agents, and of those who are none.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, join_all};
use muster_fleet::wire;
use muster_proto::opamp::{AgentToServer, ServerToAgent, ServerToAgentFlags};
use muster_testkit::{RawAgent, messages, try_eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::{CASE, Case, Rig};
use crate::check::Apis;
use crate::cluster::ClusterOptions;
use crate::process::Role;
use crate::reporter::Number;
use crate::usage::Usage;

/// The beginning of a WebSocket, but for the empty line at its end.
const UPGRADE: &str = "GET /v1/opamp HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";

/// Asks for so many WebSockets at once; those that are there in time.
pub(super) async fn upgrade_all(to: SocketAddr, count: usize, limit: Duration) -> Vec<Option<TcpStream>> {
    join_all((0..count).map(|_| async move { timeout(limit, upgrade(to)).await.ok()?.ok() })).await
}

/// A WebSocket, as the bare stream.
async fn upgrade(to: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(format!("{UPGRADE}\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "no upgrade: {}", String::from_utf8_lossy(&head));
    Ok(stream)
}

/// Agents of another process.
const OTHERS: usize = 300;
/// How long the others' answers are measured with and without them.
const MEASURED: Duration = Duration::from_secs(15);
/// Dead after 60 s without a frame, and some time more.
const DROPPED: Duration = Duration::from_secs(90);

/// Many agents read and say nothing any more, and their connections stay open.
pub(super) const STALLED: Case = Case {
    name: "agents-stalled",
    what: "SIGSTOP of a process with 300 agents, and a new config; they are dropped after a minute, the others notice nothing",
    needs: swarm_beside,
    act: stall_agents,
    ..CASE
};

fn swarm() -> Option<PathBuf> {
    std::env::current_exe().ok()?.parent().map(|directory| directory.join("muster-swarm"))
}

fn swarm_beside(_: &ClusterOptions) -> Option<String> {
    let is_there = swarm().is_some_and(|program| program.is_file());
    (!is_there).then(|| "it needs the program muster-swarm beside this one".to_owned())
}

fn stall_agents(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        let everybody = rig.everybody();
        let mut others = tokio::process::Command::new(swarm().context("muster-swarm")?)
            .args(["--url", &rig.cluster.opamp_url(), "--agents", &OTHERS.to_string()])
            .args(["--heartbeat", "5", "--collectors"])
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("muster-swarm")?;
        rig.strangers += OTHERS;
        rig.connected(false, everybody + OTHERS, DROPPED).await?;
        rig.settle(DROPPED).await.map_err(anyhow::Error::msg)?;
        rig.reporters.take_waits();
        sleep(MEASURED).await;
        let before = p99(rig)?;
        let halt = format!("kill -STOP {}", others.id().context("muster-swarm has ended")?);
        let halted = tokio::process::Command::new("sh").args(["-c", &halt]).status().await?;
        ensure!(halted.success(), "{halt}: {halted}");
        let began = Instant::now();
        rig.apply_next().await?;
        rig.settle(DROPPED).await.map_err(|reason| anyhow!("P5: the healthy do not settle: {reason}"))?;
        let settled = began.elapsed();
        sleep(MEASURED.saturating_sub(settled)).await;
        let during = p99(rig)?;
        // Generous: the machine has other work. What is blocked waits for seconds.
        let most = before * 3 + Duration::from_millis(250);
        ensure!(during < most, "P5: answers take {during:?} (p99) beside stalled agents, {before:?} without");
        rig.connected(false, everybody, DROPPED).await.context("P6: the stalled are not dropped")?;
        let dropped = began.elapsed();
        rig.notes.push(format!(
            "answers to the healthy, p99: {before:.1?} before, {during:.1?} beside {OTHERS} stalled; settled in \
             {settled:.1?}; the stalled were dropped after {dropped:.0?}"
        ));
        others.kill().await.context("muster-swarm")
    }
    .boxed_local()
}

fn p99(rig: &Rig) -> Result<Duration> {
    let waits = rig.reporters.take_waits();
    waits.get(waits.len() * 99 / 100).copied().context("no report was answered")
}

/// Agents that repeat what they said, also long after, and that mix up the order.
pub(super) const TWICE: Case = Case {
    name: "reports-twice",
    promises: "P1 P2 P3 P5 P6 P7",
    what: "20 agents send every report twice, others out of order, and on another connection once more what they said",
    act: say_twice,
    ..CASE
};

/// Agents that repeat themselves.
const ECHOES: usize = 20;
const ECHO: &str = "echo";

fn say_twice(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        let url = rig.cluster.opamp_url();
        let said = join_all((0..ECHOES).map(|_| echo(url.clone()))).await;
        rig.strangers += ECHOES;
        let said = said.into_iter().collect::<Result<Vec<_>>>()?;
        shown(&rig.apis, &said).await
    }
    .boxed_local()
}

/// One agent; the number that it reported last.
async fn echo(url: String) -> Result<(Uuid, Number)> {
    let uid = messages::new_uid();
    let report = |sequence: u64| messages::health(uid, sequence, true, &format!("report: {sequence}"));
    let whole = |sequence: u64, number: u64| {
        let mut message = messages::full_state(uid, sequence, &[("service.name", ECHO)]);
        message.health = messages::health(uid, sequence, true, &format!("report: {number}")).health;
        message
    };
    let mut agent = RawAgent::connect(&url).await;
    answered(&mut agent, &whole(0, 0), 1).await?;
    // Each twice: the second has no effect, and no second answer asks for anything.
    for sequence in 1..=10 {
        let message = report(sequence);
        agent.send(&message).await;
        let asked = answered(&mut agent, &message, 2).await?;
        ensure!(!asked, "P2: a repeated report of {uid} was taken for a gap");
    }
    // Out of order: something is missing, so all of it is asked for.
    agent.send(&report(12)).await;
    let asked = answered(&mut agent, &report(11), 2).await?;
    ensure!(asked, "P1: a gap of {uid} was not noticed");
    answered(&mut agent, &whole(13, 12), 1).await?;
    // What had no answer, as it seems, is said once more on another connection.
    agent.close(1000).await;
    let mut agent = RawAgent::connect(&url).await;
    agent.send(&report(12)).await;
    let mut asked = answered(&mut agent, &whole(13, 12), 2).await?;
    for sequence in 14..=16 {
        asked |= answered(&mut agent, &report(sequence), 1).await?;
    }
    ensure!(
        asked,
        "P1: a session of {uid} that does not go on where the one before ended was taken for whole"
    );
    answered(&mut agent, &whole(17, 16), 1).await?;
    agent.close(1000).await;
    Ok((uid, Number(16)))
}

/// Sends a message and waits for so many answers; whether one of them asks for full state.
async fn answered(agent: &mut RawAgent, message: &AgentToServer, answers: usize) -> Result<bool> {
    agent.send(message).await;
    let mut asked = false;
    for _ in 0..answers {
        let answer: ServerToAgent =
            agent.next_within(Duration::from_secs(20)).await.context("P6: a report has no answer")?;
        ensure!(answer.error_response.is_none(), "a report is refused: {:?}", answer.error_response);
        asked |= answer.flags & ServerToAgentFlags::ReportFullState as u64 != 0;
    }
    Ok(asked)
}

/// Waits until the API shows these numbers.
async fn shown(apis: &Apis, said: &[(Uuid, Number)]) -> Result<()> {
    let outcome = try_eventually(Duration::from_secs(20), async || {
        let listed =
            apis.list(&format!("service.name={ECHO}")).await.map_err(|error| format!("{error:#}"))?;
        if listed.len() != said.len() {
            return Err(format!("P7: the API lists {} agents of {}", listed.len(), said.len()));
        }
        for (uid, number) in said {
            let shown = listed.get(uid).map(|agent| Number::read(&agent.last_error));
            if shown != Some(*number) {
                return Err(format!("P1 P2: the API shows {shown:?} of {uid}, which said {number:?} last"));
            }
        }
        Ok(())
    });
    outcome.await.map_err(anyhow::Error::msg)
}

/// Clients that are no agents.
pub(super) const HOSTILE: Case = Case {
    name: "clients-hostile",
    what: "frames too large, malformed, deeply nested; 200 requests a byte at a time, while agents work",
    act: be_hostile,
    ..CASE
};

/// Requests that never end.
const SLOW: usize = 200;
/// A gateway may take so much more memory meanwhile.
const MOST_GROWTH: u64 = 96 << 20;
/// The first request's head has to be there after 10 s.
const SLOW_END: Duration = Duration::from_secs(20);

fn be_hostile(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        let gateway = rig.cluster.process(Role::Gateway, 0);
        let (to, process) = (gateway.agents()?, gateway.id().context("the gateway runs")?);
        let before = Usage::of(process)?.rss;
        let slow = join_all((0..SLOW).map(|_| slow(to)));
        let frames = async {
            let mut closed = 0;
            for (what, bytes) in frames() {
                for _ in 0..20 {
                    let mut stream = upgrade(to).await?;
                    // The gateway may close before all is written.
                    let _ = stream.write_all(&bytes).await;
                    let mut said = Vec::new();
                    let ended = timeout(Duration::from_secs(5), stream.read_to_end(&mut said)).await;
                    ensure!(ended.is_ok(), "P6: {what}: the gateway does not close the connection");
                    closed += 1;
                }
            }
            for (what, payload) in payloads() {
                let mut stream = upgrade(to).await?;
                stream.write_all(&frame(&payload)).await?;
                // Refused with a reason, or closed: never silence.
                let answer = timeout(Duration::from_secs(5), stream.read(&mut [0; 64])).await;
                ensure!(answer.is_ok(), "P6: {what}: the gateway says nothing");
            }
            Ok(closed)
        };
        let (slow, closed) = tokio::join!(slow, frames);
        let closed = closed?;
        let held = slow.iter().filter(|ended| !**ended).count();
        ensure!(held == 0, "P6: {held} of {SLOW} requests that never end are still open after {SLOW_END:?}");
        let growth = Usage::of(process)?.rss.saturating_sub(before);
        ensure!(growth < MOST_GROWTH, "P6: the gateway has grown by {} MB", growth >> 20);
        let p99 = p99(rig)?;
        rig.notes.push(format!(
            "{closed} malformed and {SLOW} slow connections were closed; the gateway grew by {} MB; answers \
             meanwhile, p99: {p99:.1?}",
            growth >> 20
        ));
        Ok(())
    }
    .boxed_local()
}

/// A request of which a byte comes now and then; whether the gateway ends it.
async fn slow(to: SocketAddr) -> bool {
    let talk = async {
        let mut stream = TcpStream::connect(to).await?;
        for byte in UPGRADE.bytes().cycle() {
            stream.write_all(&[byte]).await?;
            match timeout(Duration::from_millis(500), stream.read_u8()).await {
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(error)) => return Err(error),
            }
        }
        Ok::<(), std::io::Error>(())
    };
    timeout(SLOW_END, talk).await.is_ok()
}

/// What no agent sends after the upgrade.
fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let large = |length: u64| [&[0x82, 0xff][..], &length.to_be_bytes(), &[0; 4], &[7; 1000]].concat();
    vec![
        ("a frame of a tebibyte", large(1 << 40)),
        ("a frame of 65 MiB", large(65 << 20)),
        ("a length with its highest bit set", large(u64::MAX)),
        ("an unknown opcode", vec![0x83, 0x80, 0, 0, 0, 0]),
        ("a reserved bit", vec![0xc2, 0x80, 0, 0, 0, 0]),
        ("a frame that is not masked", vec![0x82, 1, 7]),
        ("text", vec![0x81, 0x81, 0, 0, 0, 0, b'x']),
        ("a continuation of nothing", vec![0x80, 0x80, 0, 0, 0, 0]),
        ("a long ping", [&[0x89, 0xfe, 1, 0, 0, 0, 0, 0][..], &[7; 256]].concat()),
        ("HTTP", UPGRADE.as_bytes().to_vec()),
    ]
}

/// Messages that are no OpAMP.
fn payloads() -> Vec<(&'static str, Vec<u8>)> {
    let uid = messages::new_uid();
    let good = wire::encode(&messages::first_report(uid, &[("service.name", ECHO)])).to_vec();
    let random: Vec<u8> = (0..4096_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    // AgentDescription.identifying_attributes.value.kvlist_value..., each within the one before.
    let mut nested = Vec::new();
    for _ in 0..20_000 {
        let length = nested.len();
        if length > 1 << 16 {
            break;
        }
        nested = [prefix(0x32, length), nested].concat();
        nested = [prefix(0x0a, nested.len()), nested].concat();
        nested = [prefix(0x12, nested.len()), nested].concat();
    }
    let head = [&[0, 0x0a, 16][..], uid.as_bytes()].concat();
    let deep = [head.clone(), prefix(0x1a, nested.len()), nested].concat();
    vec![
        ("nothing", Vec::new()),
        ("an unknown header", [&[9][..], &good[1..]].concat()),
        ("a message cut off", good[..good.len() - 3].to_vec()),
        ("noise", [vec![0], random].concat()),
        ("an instance_uid of 3 bytes", vec![0, 0x0a, 3, 1, 2, 3]),
        ("a length beyond the end", [head, vec![0x1a, 0xff, 0xff, 0xff, 0x7f]].concat()),
        ("attributes within attributes", deep),
    ]
}

/// A tag and a length of protobuf.
fn prefix(tag: u8, length: usize) -> Vec<u8> {
    let (mut bytes, mut rest) = (vec![tag], length);
    while rest >= 0x80 {
        bytes.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

/// A binary message as a client's frame.
fn frame(payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u64;
    [&[0x82, 0xff][..], &length.to_be_bytes(), &[0; 4], payload].concat()
}
