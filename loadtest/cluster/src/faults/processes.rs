//! Muster's own processes end.

use std::time::Duration;

use anyhow::Result;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use super::{Breaks, CASE, Case, Rig};
use crate::process::Role;

/// A gateway ends without a word.
pub(super) const GATEWAY_KILL: Case = Case {
    name: "gateway-kill9",
    what: "kill -9 of one gateway; its agents reconnect to the others",
    breaks: Breaks::FirstGateway,
    act: kill_gateway,
    ..CASE
};

fn kill_gateway(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    rig.cluster.kill9(Role::Gateway, 0).map(Ok).boxed_local()
}

/// A control ends without a word.
pub(super) const CONTROL_KILL: Case = Case {
    name: "control-kill9",
    what: "kill -9 of one control; its partitions move to the others when its lease lapses",
    act: kill_control,
    ..CASE
};

fn kill_control(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    rig.cluster.kill9(Role::Control, 0).map(Ok).boxed_local()
}

/// An api ends without a word, perhaps within the request that applies.
pub(super) const API_KILL: Case = Case {
    name: "api-kill9",
    what: "kill -9 of one api within an apply, which is repeated on another",
    act: kill_api,
    ..CASE
};

fn kill_api(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    rig.cluster.kill9(Role::Api, 0).map(Ok).boxed_local()
}

/// Every gateway is replaced, as in an upgrade.
pub(super) const GATEWAY_ROLLING: Case = Case {
    name: "gateway-rolling",
    promises: "P1 P2 P3 P6 P7",
    what: "SIGTERM and start of each gateway, one after another",
    // Who comes to a gateway that stops is told to wait for up to a minute, and waits half of that more.
    bound: Duration::from_secs(150),
    breaks: Breaks::Everybody,
    act: roll_gateways,
    ..CASE
};

fn roll_gateways(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    rig.cluster.rolling_restart(Role::Gateway).map(Ok).boxed_local()
}

/// A gateway has no descriptor left.
pub(super) const DESCRIPTORS: Case = Case {
    name: "gateway-descriptors",
    what: "a gateway may open 5 descriptors more; 60 connections come to it; 15 s later the limit is lifted",
    act: use_up_descriptors,
    ..CASE
};

/// Connections that come.
const CROWD: usize = 60;
/// Descriptors that are left for them.
const FEW: usize = 5;

fn use_up_descriptors(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        let gateway = rig.cluster.process(Role::Gateway, 0);
        let agents = gateway.agents()?;
        gateway.limit_descriptors(Some(FEW))?;
        let crowd = super::agents::upgrade_all(agents, CROWD, Duration::from_secs(5)).await;
        let answered = crowd.iter().flatten().count();
        // Some descriptors may have become free meanwhile.
        anyhow::ensure!(answered <= 2 * FEW, "{answered} connections were taken on {FEW} descriptors");
        tokio::time::sleep(Duration::from_secs(10)).await;
        let gateway = rig.cluster.process(Role::Gateway, 0);
        gateway.limit_descriptors(None)?;
        drop(crowd);
        let more = super::agents::upgrade_all(agents, CROWD, Duration::from_secs(10)).await;
        let now = more.iter().flatten().count();
        anyhow::ensure!(
            now == CROWD,
            "P6: {now} of {CROWD} connections were taken after the limit was lifted"
        );
        rig.notes.push(format!("{answered} of {CROWD} connections taken under the limit, {now} after"));
        Ok(())
    }
    .boxed_local()
}
