//! Faults of Muster's own processes.

use std::time::Duration;

use anyhow::{Result, anyhow};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use muster_testkit::try_eventually;

use super::{Breaks, Case, nothing};
use crate::cluster::Cluster;
use crate::process::Role;

/// Partitions of the log.
const PARTITIONS: f64 = 64.0;

/// A gateway ends without a word.
pub(super) const GATEWAY_KILL: Case = Case {
    name: "gateway-kill9",
    promises: "P1 P2 P3 P5 P6 P7",
    what: "kill -9 of one gateway; its agents reconnect to the others",
    bound: Duration::from_secs(60),
    breaks: Breaks::FirstGateway,
    explains: &[],
    act: kill_gateway,
    mend: nothing,
};

fn kill_gateway(cluster: &mut Cluster) -> LocalBoxFuture<'_, Result<()>> {
    async {
        cluster.kill9(Role::Gateway, 0).await;
        Ok(())
    }
    .boxed_local()
}

/// A control ends without a word.
pub(super) const CONTROL_KILL: Case = Case {
    name: "control-kill9",
    promises: "P1 P2 P3 P5 P6 P7",
    what: "kill -9 of one control; its partitions move to the others when its lease lapses",
    bound: Duration::from_secs(60),
    breaks: Breaks::Nobody,
    explains: &[],
    act: kill_control,
    mend: nothing,
};

fn kill_control(cluster: &mut Cluster) -> LocalBoxFuture<'_, Result<()>> {
    async {
        cluster.kill9(Role::Control, 0).await;
        Ok(())
    }
    .boxed_local()
}

/// An api ends without a word, perhaps within the request that applies.
pub(super) const API_KILL: Case = Case {
    name: "api-kill9",
    promises: "P1 P2 P3 P5 P6 P7",
    what: "kill -9 of one api within an apply, which is repeated on another",
    bound: Duration::from_secs(60),
    breaks: Breaks::Nobody,
    explains: &[],
    act: kill_api,
    mend: nothing,
};

fn kill_api(cluster: &mut Cluster) -> LocalBoxFuture<'_, Result<()>> {
    async {
        cluster.kill9(Role::Api, 0).await;
        Ok(())
    }
    .boxed_local()
}

/// Every gateway is replaced, as in an upgrade.
pub(super) const GATEWAY_ROLLING: Case = Case {
    name: "gateway-rolling",
    promises: "P1 P2 P3 P6 P7",
    what: "SIGTERM and start of each gateway, one after another",
    bound: Duration::from_secs(60),
    breaks: Breaks::Everybody,
    explains: &[],
    act: roll_gateways,
    mend: nothing,
};

fn roll_gateways(cluster: &mut Cluster) -> LocalBoxFuture<'_, Result<()>> {
    async {
        cluster.rolling_restart(Role::Gateway).await;
        Ok(())
    }
    .boxed_local()
}

/// A control halts for longer than its lease and goes on: for a moment two work on one partition.
pub(super) const CONTROL_PAUSE: Case = Case {
    name: "control-pause",
    promises: "P1 P2 P3 P5 P6 P7",
    what: "SIGSTOP of one control until another has its partitions, then SIGCONT: two on one partition",
    bound: Duration::from_secs(60),
    breaks: Breaks::Nobody,
    // A gateway that asks it for a config has no answer, and gets the offer again later.
    explains: &["a delivery from control was dropped; control sends it again"],
    act: pause_control,
    mend: nothing,
};

fn pause_control(cluster: &mut Cluster) -> LocalBoxFuture<'_, Result<()>> {
    async {
        cluster.process(Role::Control, 0).stop().await;
        let taken = try_eventually(Duration::from_secs(60), async || {
            let mut most = 0.0_f64;
            for metrics in cluster.metrics(Role::Control).await.into_iter().flatten() {
                most = most.max(metrics.sum("muster_control_partitions"));
            }
            if most >= PARTITIONS { Ok(()) } else { Err(format!("a control has {most} partitions")) }
        });
        let taken = taken.await;
        cluster.process(Role::Control, 0).cont().await;
        taken.map_err(|reason| anyhow!("nobody took the partitions of the halted control: {reason}"))
    }
    .boxed_local()
}
