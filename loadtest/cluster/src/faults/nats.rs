//! Faults of NATS.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use async_nats::jetstream;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use super::{CASE, Case, Rig, three_nats};
use crate::cluster::NatsServers;
use crate::process::Role;

/// How long servers are away.
const AWAY: Duration = Duration::from_secs(5);
/// How long the log has no quorum, or no stream.
const LONG: Duration = Duration::from_secs(10);
/// The stream of the log.
const STREAM: &str = "muster-default";
/// Who is told to wait waits for a minute, and half of that more.
const BOUND: Duration = Duration::from_secs(150);
/// The driver's own words.
const LOST: &[&str] = &["connection closed unexpectedly"];

/// One of three NATS servers is gone: the one that leads.
pub(super) const ONE_DOWN: Case = Case {
    name: "nats-one-down",
    what: "kill -9 of the leading NATS server of three; it stays away",
    bound: BOUND,
    explains: LOST,
    needs: three_nats,
    act: kill_leader,
    mend: start_ended,
    ..CASE
};

fn kill_leader(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        let NatsServers::Many(nats) = &mut rig.cluster.nats else { bail!("there is one server") };
        let leader = nats.leader().await.unwrap_or(0);
        nats.servers_mut()[leader].kill9().await;
        Ok(())
    }
    .boxed_local()
}

fn start_ended(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        let NatsServers::Many(nats) = &mut rig.cluster.nats else { return Ok(()) };
        for server in nats.servers_mut() {
            if server.monitor("/varz").await.is_err() {
                server.restart().await;
            }
        }
        nats.ready().await;
        Ok(())
    }
    .boxed_local()
}

/// No majority is left: nothing can be written.
pub(super) const QUORUM: Case = Case {
    name: "nats-quorum-lost",
    what: "kill -9 of two NATS servers of three, and their start 10 s later",
    bound: BOUND,
    explains: LOST,
    needs: three_nats,
    act: lose_quorum,
    mend: start_ended,
    ..CASE
};

fn lose_quorum(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        let NatsServers::Many(nats) = &mut rig.cluster.nats else { bail!("there is one server") };
        for server in &mut nats.servers_mut()[..2] {
            server.kill9().await;
        }
        tokio::time::sleep(LONG).await;
        start_ended(rig).await
    }
    .boxed_local()
}

/// All servers lose power at once.
pub(super) const ALL: Case = Case {
    name: "nats-all-kill9",
    what: "kill -9 of every NATS server at once, and their start 5 s later; they sync before they acknowledge",
    bound: BOUND,
    explains: LOST,
    act: kill_all,
    mend: start_ended,
    ..CASE
};

fn kill_all(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        // A killed process leaves what it wrote to the system; losing power would not. So the setting
        // is looked at, too.
        for server in rig.cluster.nats.servers() {
            let state = server.monitor("/jsz").await.map_err(anyhow::Error::msg)?;
            let config = &state["config"];
            ensure!(
                config["sync_always"] == true,
                "P1: a server does not sync before it acknowledges: {config}"
            );
        }
        match &mut rig.cluster.nats {
            NatsServers::One(nats) => {
                nats.kill9().await;
                tokio::time::sleep(AWAY).await;
                nats.restart().await;
            }
            NatsServers::Many(nats) => {
                for server in nats.servers_mut() {
                    server.kill9().await;
                }
                tokio::time::sleep(AWAY).await;
                for server in nats.servers_mut() {
                    server.restart().await;
                }
                nats.ready().await;
            }
        }
        Ok(())
    }
    .boxed_local()
}

/// The stream is gone with all that was not folded, and is made anew.
pub(super) const STREAM_LOST: Case = Case {
    name: "stream-recreated",
    what: "the stream of the log is deleted; 10 s later a control is restarted, which makes it anew",
    bound: BOUND,
    explains: LOST,
    act: delete_stream,
    ..CASE
};

fn delete_stream(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        let addresses = rig.cluster.nats.url();
        let servers: Vec<&str> = addresses.split(',').collect();
        let client = async_nats::connect(servers).await.context("NATS")?;
        let context = jetstream::new(client);
        let before = context.get_stream(STREAM).await.context(STREAM)?.cached_info().state.last_sequence;
        let deleted = context.delete_stream(STREAM).await.context(STREAM)?;
        ensure!(deleted.success, "the stream {STREAM} was not deleted");
        tokio::time::sleep(LONG).await;
        rig.cluster.process_mut(Role::Control, 0).terminate().await;
        rig.cluster.restart_ended().await;
        let stream = context.get_stream(STREAM).await.context(STREAM)?;
        let now = stream.cached_info().state.last_sequence;
        ensure!(now < before, "the stream {STREAM} goes on at {now} after {before}: it was not deleted");
        rig.notes.push(format!("the stream had {before} entries"));
        Ok(())
    }
    .boxed_local()
}
