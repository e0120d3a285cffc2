//! Muster's own processes halt for a while, or have another time, and others take over.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::future::LocalBoxFuture;
use futures_util::{FutureExt, StreamExt};
use muster_fleet::wire;
use muster_proto::opamp::ServerToAgent;
use muster_testkit::try_eventually;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role as Side;

use super::{Breaks, CASE, Case, Rig};
use crate::cluster::ClusterOptions;
use crate::process::Role;

/// Offers that a control has sent.
const OFFERS: &str = "muster_control_offers_total";
/// Partitions of the log.
const PARTITIONS: f64 = 64.0;
/// How long others may take to take over.
const TAKE_OVER: Duration = Duration::from_secs(60);
/// Longer than a lease.
const PAST_LEASE: Duration = Duration::from_secs(20);
const BOUND: Duration = Duration::from_secs(90);
/// A gateway that asks a halted control for a config has no answer, and gets the offer again later.
const DROPPED: &[&str] = &["a delivery from control was dropped; control sends it again"];

/// A control halts for longer than its lease and goes on: for a moment two work on one partition.
pub(super) const CONTROL_PAUSE: Case = Case {
    name: "control-pause",
    what: "SIGSTOP of one control until another has its partitions, then SIGCONT: two on one partition",
    explains: DROPPED,
    act: pause_control,
    ..CASE
};

fn pause_control(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        rig.cluster.process(Role::Control, 0).stop().await;
        let taken = partitions_taken(rig).await;
        rig.cluster.process(Role::Control, 0).cont().await;
        taken
    }
    .boxed_local()
}

/// Waits until one control has all partitions.
async fn partitions_taken(rig: &Rig) -> Result<()> {
    let taken = try_eventually(TAKE_OVER, async || {
        let mut most = 0.0_f64;
        for metrics in rig.cluster.metrics(Role::Control).await.into_iter().flatten() {
            most = most.max(metrics.sum("muster_control_partitions"));
        }
        if most >= PARTITIONS { Ok(()) } else { Err(format!("a control has {most} partitions")) }
    });
    taken.await.map_err(|reason| anyhow!("nobody took the partitions of the halted control: {reason}"))
}

/// Each control in turn halts, is replaced, and comes back into the work of the other, which then halts.
pub(super) const CONTROL_ALTERNATING: Case = Case {
    name: "control-alternating",
    what: "four times: SIGSTOP of a control, a new config, SIGCONT when the other has its partitions and halts next",
    bound: BOUND,
    explains: DROPPED,
    needs: two_controls,
    act: alternate_controls,
    ..CASE
};

fn alternate_controls(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        for turn in 0..4 {
            rig.cluster.process(Role::Control, turn % 2).stop().await;
            rig.apply_next().await?;
            let taken = partitions_taken(rig).await;
            rig.cluster.process(Role::Control, turn % 2).cont().await;
            taken?;
        }
        Ok(())
    }
    .boxed_local()
}

const SUPERSEDED: &[&str] = &["superseded", "below_floor"];

/// A control halts with offers in its hands, and goes on when they are superseded.
pub(super) const CONTROL_STALE: Case = Case {
    name: "control-stale-offers",
    what: "three times: a new config, SIGSTOP of a control amid its offers, another config, SIGCONT when all have that",
    bound: BOUND,
    explains: DROPPED,
    needs: two_controls,
    act: hold_offers_back,
    ..CASE
};

fn hold_offers_back(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        let before = refusals(rig, SUPERSEDED).await;
        for _ in 0..3 {
            let offered = offered(rig).await;
            rig.apply_next().await?;
            let begun = try_eventually(BOUND, async || {
                let now = self::offered(rig).await;
                if now > offered { Ok(()) } else { Err("control makes no offers".to_owned()) }
            });
            begun.await.map_err(anyhow::Error::msg)?;
            rig.cluster.process(Role::Control, 0).stop().await;
            rig.apply_next().await?;
            let settled = match partitions_taken(rig).await {
                Ok(()) => rig.settle(BOUND).await.map_err(anyhow::Error::msg),
                Err(error) => Err(error),
            };
            rig.cluster.process(Role::Control, 0).cont().await;
            settled.context("while a control halts")?;
        }
        // What the control held it sends now.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let refused = refusals(rig, SUPERSEDED).await - before;
        rig.notes.push(format!("{refused} offers were refused by gateways"));
        Ok(())
    }
    .boxed_local()
}

/// Offers that the first control has sent.
async fn offered(rig: &Rig) -> f64 {
    let metrics = rig.cluster.process(Role::Control, 0).metrics().await;
    metrics.map_or(0.0, |metrics| metrics.sum(OFFERS))
}

/// Offers that gateways did not send for these reasons.
async fn refusals(rig: &Rig, reasons: &[&str]) -> f64 {
    let all = rig.cluster.metrics(Role::Gateway).await;
    let of = |reason: &&str| -> f64 {
        let series = format!("muster_gateway_offers_total{{result=\"{reason}\"}}");
        all.iter().flatten().filter_map(|metrics| metrics.get(&series)).sum()
    };
    reasons.iter().map(of).fold(0.0, |sum, count| sum + count)
}

fn two_controls(options: &ClusterOptions) -> Option<String> {
    (options.controls != 2).then(|| "it needs two controls".to_owned())
}

/// A gateway halts past its lease while its agents go elsewhere, and then goes on as if nothing had been.
pub(super) const GATEWAY_ZOMBIE: Case = Case {
    name: "gateway-zombie",
    what: "SIGSTOP of a gateway past its lease; its agents go elsewhere, its connections stay open to it; SIGCONT",
    bound: BOUND,
    breaks: Breaks::FirstGateway,
    act: halt_gateway,
    ..CASE
};

fn halt_gateway(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        let began = Instant::now();
        rig.cluster.process(Role::Gateway, 0).stop().await;
        // The offers of one more config wait for it.
        let sent = rig.cluster.sum(Role::Control, OFFERS).await;
        rig.apply_next().await?;
        let offered = try_eventually(TAKE_OVER, async || {
            let now = rig.cluster.sum(Role::Control, OFFERS).await;
            if now > sent { Ok(()) } else { Err("control makes no offers".to_owned()) }
        });
        offered.await.map_err(anyhow::Error::msg)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let gateway = rig.cluster.process(Role::Gateway, 0);
        let mut left = rig.cluster.balancer().abandon(gateway.agents()?);
        let elsewhere = rig.connected(true, rig.everybody(), TAKE_OVER).await;
        tokio::time::sleep(PAST_LEASE.saturating_sub(began.elapsed())).await;
        let (mut streams, mut readers) = (0, JoinSet::new());
        while let Ok(stream) = left.try_recv() {
            streams += 1;
            readers.spawn(offers_on(stream));
        }
        rig.cluster.process(Role::Gateway, 0).cont().await;
        elsewhere?;
        ensure!(streams > 0, "no connection of the halted gateway was left");
        // It gives up everybody, by itself.
        let all = tokio::time::timeout(BOUND, readers.join_all()).await;
        let all = all.map_err(|_| anyhow!("P7: the gateway still holds agents that are elsewhere"))?;
        let offers: u64 = all.into_iter().sum();
        ensure!(offers == 0, "P3: the gateway sent {offers} offers after it was halted");
        rig.connected(true, rig.everybody(), TAKE_OVER).await.context("P7: agents were taken back")?;
        rig.cluster.balancer().restore();
        let held = refusals(rig, &["lease_lapsed", "session_gone", "superseded", "below_floor"]).await;
        rig.notes.push(format!(
            "the gateway gave up {streams} connections and sent no offer on them; {held} offers were refused"
        ));
        Ok(())
    }
    .boxed_local()
}

/// Reads a connection that its agent has left, until the gateway ends it; how many offers came.
async fn offers_on(stream: TcpStream) -> u64 {
    let mut socket = WebSocketStream::from_raw_socket(stream, Side::Client, None).await;
    let mut offers = 0;
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(payload) = message
            && let Ok(message) = wire::decode::<ServerToAgent>(payload)
        {
            offers += u64::from(message.remote_config.is_some());
        }
    }
    offers
}

/// A gateway's clock is an hour ahead.
pub(super) const CLOCK_GATEWAY: Case = Case {
    name: "clock-gateway",
    promises: "P1 P2 P3 P6 P7",
    what: "a gateway's clock is an hour ahead: agents come to it, a new config, kill -9 of it",
    bound: BOUND,
    breaks: Breaks::Everybody,
    needs: faketime,
    act: gateway_ahead,
    ..CASE
};

fn gateway_ahead(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        restart_ahead(rig, Role::Gateway).await?;
        // Agents of another one come to it.
        rig.cluster.kill9(Role::Gateway, 1).await;
        rig.cluster.restart_ended().await;
        rig.apply_next().await?;
        rig.settle(BOUND).await.map_err(|reason| anyhow!("P6: with the clock ahead: {reason}"))?;
        rig.cluster.kill9(Role::Gateway, 0).await;
        set_clock(rig, Role::Gateway, None);
        Ok(())
    }
    .boxed_local()
}

/// A control's clock is an hour ahead.
pub(super) const CLOCK_CONTROL: Case = Case {
    name: "clock-control",
    what: "a control's clock is an hour ahead: a new config, kill -9 of it amid its offers",
    bound: BOUND,
    needs: faketime,
    act: control_ahead,
    ..CASE
};

fn control_ahead(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        restart_ahead(rig, Role::Control).await?;
        rig.apply_next().await?;
        rig.settle(BOUND).await.map_err(|reason| anyhow!("P6: with the clock ahead: {reason}"))?;
        rig.apply_next().await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
        rig.cluster.kill9(Role::Control, 0).await;
        set_clock(rig, Role::Control, None);
        Ok(())
    }
    .boxed_local()
}

async fn restart_ahead(rig: &mut Rig, role: Role) -> Result<()> {
    let library = library().context("libfaketime")?;
    rig.cluster.process_mut(role, 0).terminate().await;
    set_clock(rig, role, Some(&library.to_string_lossy()));
    rig.cluster.restart_ended().await;
    Ok(())
}

fn set_clock(rig: &mut Rig, role: Role, library: Option<&str>) {
    let process = rig.cluster.process_mut(role, 0);
    process.set_env("LD_PRELOAD", library);
    process.set_env("FAKETIME", library.map(|_| "+1h"));
    process.set_env("FAKETIME_DONT_FAKE_MONOTONIC", library.map(|_| "1"));
    process.set_env("DONT_FAKE_MONOTONIC", library.map(|_| "1"));
}

/// The library that gives a process another time, from the Debian package libfaketime.
fn library() -> Option<PathBuf> {
    let machines = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let files = machines.map(|machine| machine.path().join("faketime/libfaketimeMT.so.1"));
    files.into_iter().find(|file| file.is_file())
}

fn faketime(_: &ClusterOptions) -> Option<String> {
    library().is_none().then(|| "it needs libfaketime: `apt-get install libfaketime`".to_owned())
}
