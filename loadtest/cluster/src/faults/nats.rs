//! Faults of the engines.

use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use super::{Breaks, Case, nothing};
use crate::cluster::{Cluster, NatsServers};

/// How long an engine is away.
const AWAY: Duration = Duration::from_secs(5);

/// One of three NATS servers is gone: the one that leads.
pub(super) const NATS_ONE_DOWN: Case = Case {
    name: "nats-one-down",
    promises: "P1 P2 P3 P5 P6 P7",
    what: "kill -9 of the leading NATS server of three; it stays away",
    // Who is told to wait waits for a minute, and half of that more.
    bound: Duration::from_secs(150),
    breaks: Breaks::Nobody,
    explains: &[],
    act: kill_nats,
    mend: start_nats,
};

fn kill_nats(cluster: &mut Cluster) -> LocalBoxFuture<'_, Result<()>> {
    async {
        let NatsServers::Many(nats) = &mut cluster.nats else { bail!("this case needs three NATS servers") };
        let leader = nats.leader().await.unwrap_or(0);
        nats.servers_mut()[leader].kill9().await;
        Ok(())
    }
    .boxed_local()
}

fn start_nats(cluster: &mut Cluster) -> LocalBoxFuture<'_, Result<()>> {
    async {
        let NatsServers::Many(nats) = &mut cluster.nats else { return Ok(()) };
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

/// Postgres crashes and comes back.
pub(super) const POSTGRES_RESTART: Case = Case {
    name: "postgres-restart",
    promises: "P1 P2 P3 P5 P6 P7",
    what: "kill -9 of Postgres, and its start 5 s later; reports wait in the log",
    bound: Duration::from_secs(90),
    breaks: Breaks::Nobody,
    explains: &["Postgres is not available"],
    act: restart_postgres,
    mend: nothing,
};

fn restart_postgres(cluster: &mut Cluster) -> LocalBoxFuture<'_, Result<()>> {
    async {
        cluster.postgres.kill9().await;
        tokio::time::sleep(AWAY).await;
        cluster.postgres.restart().await;
        Ok(())
    }
    .boxed_local()
}

/// Redis comes back and knows nobody.
pub(super) const REDIS_EMPTY: Case = Case {
    name: "redis-restart",
    promises: "P1 P2 P3 P5 P6 P7",
    what: "kill -9 of Redis, and its start 5 s later with nothing in it",
    bound: Duration::from_secs(90),
    breaks: Breaks::Nobody,
    explains: &[],
    act: restart_redis,
    mend: nothing,
};

fn restart_redis(cluster: &mut Cluster) -> LocalBoxFuture<'_, Result<()>> {
    async {
        cluster.redis.kill9().await;
        tokio::time::sleep(AWAY).await;
        cluster.redis.restart().await;
        Ok(())
    }
    .boxed_local()
}
