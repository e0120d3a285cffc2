//! Faults of Redis and Postgres.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use tokio::time::sleep;

use super::{Breaks, CASE, Case, Rig};
use crate::process::Role;

/// How long an engine is away.
const AWAY: Duration = Duration::from_secs(5);
/// How long it halts.
const HALT: Duration = Duration::from_secs(20);
/// How long Redis is cut off from a gateway.
const CUT: Duration = Duration::from_secs(15);
const BOUND: Duration = Duration::from_secs(90);
/// Who is told to wait waits for a minute, and half of that more.
const BOUND_AFTER_WAIT: Duration = Duration::from_secs(150);
/// How long agents may take to settle in the middle of a case.
const MEANWHILE: Duration = Duration::from_secs(90);
/// Reporters that come in the time that a backup does not know of.
const NEWCOMERS: usize = 5;
/// The file that Redis starts from.
const SNAPSHOT: &str = "dump.rdb";

/// Postgres crashes and comes back.
pub(super) const POSTGRES_RESTART: Case = Case {
    name: "postgres-restart",
    what: "kill -9 of Postgres, and its start 5 s later; reports wait in the log",
    bound: BOUND,
    explains: &["Postgres is not available"],
    act: restart_postgres,
    ..CASE
};

fn restart_postgres(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        rig.cluster.postgres.kill9().await;
        sleep(AWAY).await;
        rig.cluster.postgres.restart().await;
        Ok(())
    }
    .boxed_local()
}

/// Postgres takes connections and answers nothing.
pub(super) const POSTGRES_STALL: Case = Case {
    name: "postgres-stall",
    what: "SIGSTOP of every process of Postgres, and SIGCONT 20 s later",
    bound: BOUND,
    explains: &["Postgres is not available"],
    act: halt_postgres,
    ..CASE
};

fn halt_postgres(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        rig.cluster.postgres.stop().await;
        sleep(HALT).await;
        rig.cluster.postgres.cont().await;
        Ok(())
    }
    .boxed_local()
}

/// The database is set back to a backup.
pub(super) const POSTGRES_BACKUP: Case = Case {
    name: "postgres-backup",
    promises: "P1 P2 P3 P5 P6 P7",
    what: "the database is restored from a backup made before agents came and a config was applied; `muster resync`",
    bound: BOUND,
    explains: &[],
    act: restore_backup,
    ..CASE
};

fn restore_backup(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        // Control shall have no offer of the time before in its hands.
        rig.settle(MEANWHILE).await.map_err(anyhow::Error::msg).context("before the backup")?;
        let (kept, kept_desired) = (rig.wanted, rig.desired.clone());
        let dump = rig.cluster.postgres.dump().await;
        // What the backup does not know of: newcomers, configs, reports.
        let running = rig.fleet.stats().running;
        rig.desired.old.extend(running.into_keys().filter(|hash| Some(hash) != rig.desired.steady.as_ref()));
        rig.apply_next().await?;
        rig.reporters.add(NEWCOMERS);
        rig.settle(MEANWHILE).await.map_err(anyhow::Error::msg).context("after the backup")?;
        let lost: Vec<_> = rig.fleet.stats().running.into_keys().collect();

        for role in [Role::Api, Role::Control] {
            for number in 0..rig.cluster.role(role).count() {
                rig.cluster.kill9(role, number).await;
            }
        }
        rig.cluster.postgres.restore(&dump).await;
        let said = rig.cluster.command("resync").await?;
        ensure!(said.contains("tenant default"), "resync lifted no intent: {said}");
        rig.forget_shown();
        // Agents are claimed anew with the epoch: ownership does not hold on to what it had settled.
        rig.forget_heartbeats();
        rig.offers.forget();
        rig.wanted = kept;
        rig.desired = kept_desired;
        rig.desired.old.extend(lost.into_iter().filter(|hash| Some(hash) != rig.desired.steady.as_ref()));
        rig.cluster.restart_ended().await;
        Ok(())
    }
    .boxed_local()
}

/// Redis comes back and knows nobody.
pub(super) const REDIS_RESTART: Case = Case {
    name: "redis-restart",
    what: "kill -9 of Redis, and its start 5 s later with nothing in it",
    bound: BOUND,
    act: restart_redis,
    ..CASE
};

fn restart_redis(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        rig.forget_heartbeats();
        rig.cluster.redis.kill9().await;
        sleep(AWAY).await;
        rig.cluster.redis.restart().await;
        Ok(())
    }
    .boxed_local()
}

/// Redis forgets everybody while it runs.
pub(super) const REDIS_FLUSH: Case = Case {
    name: "redis-flushall",
    what: "FLUSHALL; then a gateway is lost, whose agents nobody knows any more",
    bound: BOUND,
    breaks: Breaks::FirstGateway,
    act: flush_redis,
    ..CASE
};

fn flush_redis(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        rig.forget_heartbeats();
        rig.cluster.redis.flush().await;
        rig.cluster.kill9(Role::Gateway, 0).await;
        Ok(())
    }
    .boxed_local()
}

/// Redis comes back with who held which agent some time ago.
pub(super) const REDIS_OLD: Case = Case {
    name: "redis-old-copy",
    what: "Redis is saved; a gateway is restarted, its agents move; kill -9 of Redis, and its start from the old copy",
    bound: BOUND_AFTER_WAIT,
    breaks: Breaks::FirstGateway,
    act: set_redis_back,
    mend: forget_snapshot,
    ..CASE
};

fn set_redis_back(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        rig.forget_heartbeats();
        rig.cluster.redis.snapshot().await;
        let everybody = rig.everybody();
        rig.cluster.kill9(Role::Gateway, 0).await;
        rig.connected(true, everybody, MEANWHILE).await?;
        rig.cluster.restart_ended().await;
        rig.cluster.redis.kill9().await;
        rig.cluster.redis.restart().await;
        Ok(())
    }
    .boxed_local()
}

fn forget_snapshot(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async { std::fs::remove_file(rig.cluster.redis.directory().join(SNAPSHOT)).context(SNAPSHOT) }
        .boxed_local()
}

/// One gateway cannot reach Redis, and nobody tells it so.
pub(super) const REDIS_CUT: Case = Case {
    name: "redis-cut-off",
    what: "nothing comes through between Redis and one gateway for 15 s; nobody's connection is closed",
    bound: BOUND_AFTER_WAIT,
    act: cut_redis,
    ..CASE
};

fn cut_redis(rig: &mut Rig) -> LocalBoxFuture<'_, Result<()>> {
    async {
        rig.cluster.redis_line.cut();
        sleep(CUT).await;
        rig.cluster.redis_line.mend();
        Ok(())
    }
    .boxed_local()
}
