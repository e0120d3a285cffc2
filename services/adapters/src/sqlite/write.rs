//! Writing the agents of a commit.
//!
//! Rows go to SQLite as one JSON array a table: a statement for each row costs several times as much
//! as the row itself.

use std::collections::BTreeSet;

use muster_domain::agent::{Agent, Session};
use muster_domain::ids::{AgentKey, Cell, InstanceUid, Partition};
use muster_domain::report::ConfigMap;
use muster_ports::EngineError;
use muster_ports::store::AgentWrite;
use serde::Serialize;
use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, query};
use uuid::Uuid;

use super::error::failed;
use super::rows::{Reading, SessionNames, limit, signed, to_json};

/// The partition that a commit's agents are in.
pub(super) struct Home<'a> {
    pub(super) cell: &'a Cell,
    pub(super) partition: Partition,
}

/// Columns of `agents` but for the [`Home`]. An absent number of files is left as it is.
#[derive(Serialize)]
struct AgentRow<'a>(&'a str, InstanceUid, String, Option<bool>, Option<usize>);

/// Columns of `sessions` but for the [`Home`].
#[derive(Serialize)]
struct SessionRow<'a>(
    &'a str,
    InstanceUid,
    Uuid,
    i64,
    &'a str,
    Uuid,
    String,
    &'a str,
    i64,
    Option<i64>,
    Option<String>,
    Option<String>,
    Option<i64>,
);

/// Writes these agents' parts that are to be written, and every part of those that are new.
pub(super) async fn write_agents(
    connection: &mut SqliteConnection,
    home: &Home<'_>,
    writes: &[AgentWrite],
) -> Result<(), EngineError> {
    let partial = writes.iter().filter(|write| !write.state || !write.session);
    let known = stored_keys(connection, home.cell, partial.map(|write| &write.agent.key)).await?;
    let is_new = |write: &AgentWrite| !known.contains(&write.agent.key);

    let mut agents = Vec::new();
    let mut sessions = Vec::new();
    let mut configs = Vec::new();
    for write in writes {
        let files = write.effective_config.as_ref().map(ConfigMap::len);
        if write.state || is_new(write) {
            agents.push(agent_row(&write.agent, files)?);
        } else if files.is_some() {
            set_config_files(connection, home, &write.agent.key, files).await?;
        }
        if write.session || is_new(write) {
            match &write.agent.session {
                Some(session) => sessions.push(session_row(&write.agent.key, session)?),
                None => delete_session(connection, home, &write.agent.key).await?,
            }
        }
        configs.extend(write.effective_config.as_ref().map(|config| (&write.agent.key, config)));
    }
    upsert_agents(connection, home, &agents).await?;
    upsert_sessions(connection, home, &sessions).await?;
    replace_configs(connection, home, &configs).await
}

/// Those of the keys that the cell has agents for.
async fn stored_keys<'a>(
    connection: &mut SqliteConnection,
    cell: &Cell,
    keys: impl Iterator<Item = &'a AgentKey>,
) -> Result<BTreeSet<AgentKey>, EngineError> {
    let keys: Vec<_> = keys.map(|key| (key.tenant.as_str(), key.uid)).collect();
    if keys.is_empty() {
        return Ok(BTreeSet::new());
    }
    let found = query(
        "SELECT a.tenant, a.uid FROM json_each($1) AS k \
         CROSS JOIN agents AS a ON a.tenant = k.value ->> 0 AND a.uid = unhex(k.value ->> 1, '-') \
         AND a.cell = $2",
    )
    .bind(to_json("agents", &keys)?)
    .bind(cell.as_str())
    .fetch_all(connection)
    .await
    .map_err(failed("agents"))?;
    let key = |row: &SqliteRow| {
        let reading = Reading::new(row, "agents");
        Ok(AgentKey { tenant: reading.parsed("tenant")?, uid: reading.id("uid")? })
    };
    found.iter().map(key).collect()
}

fn agent_row(agent: &Agent, files: Option<usize>) -> Result<AgentRow<'_>, EngineError> {
    let healthy = agent.state.health.as_ref().map(|health| health.healthy);
    Ok(AgentRow(agent.key.tenant.as_str(), agent.key.uid, to_json("agents", &agent.state)?, healthy, files))
}

fn session_row<'a>(key: &'a AgentKey, session: &'a Session) -> Result<SessionRow<'a>, EngineError> {
    let SessionNames { transport, end_reason, end_detail } = SessionNames::of(session)?;
    Ok(SessionRow(
        key.tenant.as_str(),
        key.uid,
        session.id.0,
        signed(session.claim.0),
        session.gateway.as_str(),
        session.incarnation.0,
        transport,
        &session.remote_addr,
        signed(session.started_at.0),
        session.ended.map(|(at, _)| signed(at.0)),
        end_reason,
        end_detail,
        session.silent_since.map(|at| signed(at.0)),
    ))
}

async fn upsert_agents(
    connection: &mut SqliteConnection,
    home: &Home<'_>,
    rows: &[AgentRow<'_>],
) -> Result<(), EngineError> {
    if rows.is_empty() {
        return Ok(());
    }
    // `WHERE true`: without it the parser takes `ON` for that of a join.
    query(
        "INSERT INTO agents (tenant, uid, cell, partition, state, healthy, config_files) \
         SELECT value ->> 0, unhex(value ->> 1, '-'), $2, $3, value ->> 2, value ->> 3, value ->> 4 \
         FROM json_each($1) WHERE true \
         ON CONFLICT (tenant, uid, cell) DO UPDATE SET partition = excluded.partition, state = excluded.state, \
         healthy = excluded.healthy, config_files = coalesce(excluded.config_files, config_files)",
    )
    .bind(to_json("agents", &rows)?)
    .bind(home.cell.as_str())
    .bind(home.partition.number())
    .execute(connection)
    .await
    .map_err(failed("agents"))?;
    Ok(())
}

async fn upsert_sessions(
    connection: &mut SqliteConnection,
    home: &Home<'_>,
    rows: &[SessionRow<'_>],
) -> Result<(), EngineError> {
    if rows.is_empty() {
        return Ok(());
    }
    query(
        "INSERT OR REPLACE INTO sessions (tenant, uid, cell, partition, session_id, claim, gateway, \
         incarnation, transport, remote_addr, started_at, ended_at, end_reason, end_detail, silent_since) \
         SELECT value ->> 0, unhex(value ->> 1, '-'), $2, $3, unhex(value ->> 2, '-'), value ->> 3, value ->> 4, \
         unhex(value ->> 5, '-'), value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, \
         value ->> 11, value ->> 12 \
         FROM json_each($1)",
    )
    .bind(to_json("sessions", &rows)?)
    .bind(home.cell.as_str())
    .bind(home.partition.number())
    .execute(connection)
    .await
    .map_err(failed("sessions"))?;
    Ok(())
}

async fn delete_session(
    connection: &mut SqliteConnection,
    home: &Home<'_>,
    key: &AgentKey,
) -> Result<(), EngineError> {
    query("DELETE FROM sessions WHERE tenant = $1 AND uid = $2 AND cell = $3")
        .bind(key.tenant.as_str())
        .bind(key.uid.0)
        .bind(home.cell.as_str())
        .execute(connection)
        .await
        .map_err(failed("sessions"))?;
    Ok(())
}

async fn set_config_files(
    connection: &mut SqliteConnection,
    home: &Home<'_>,
    key: &AgentKey,
    files: Option<usize>,
) -> Result<(), EngineError> {
    query("UPDATE agents SET config_files = $1 WHERE tenant = $2 AND uid = $3 AND cell = $4")
        .bind(files.map(limit))
        .bind(key.tenant.as_str())
        .bind(key.uid.0)
        .bind(home.cell.as_str())
        .execute(connection)
        .await
        .map_err(failed("agents"))?;
    Ok(())
}

/// Replaces the files of these agents. Bodies are large and not text: a statement for each.
async fn replace_configs(
    connection: &mut SqliteConnection,
    home: &Home<'_>,
    configs: &[(&AgentKey, &ConfigMap)],
) -> Result<(), EngineError> {
    if configs.is_empty() {
        return Ok(());
    }
    let keys: Vec<_> = configs.iter().map(|(key, _)| (key.tenant.as_str(), key.uid)).collect();
    query(
        "DELETE FROM effective_configs WHERE rowid IN (SELECT e.rowid FROM json_each($1) AS k \
         CROSS JOIN effective_configs AS e ON e.tenant = k.value ->> 0 AND e.uid = unhex(k.value ->> 1, '-') \
         AND e.cell = $2)",
    )
    .bind(to_json("effective_configs", &keys)?)
    .bind(home.cell.as_str())
    .execute(&mut *connection)
    .await
    .map_err(failed("effective_configs"))?;
    for (key, config) in configs {
        for (name, file) in *config {
            query(
                "INSERT INTO effective_configs (tenant, uid, cell, file, content_type, body) \
                 VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(key.tenant.as_str())
            .bind(key.uid.0)
            .bind(home.cell.as_str())
            .bind(name)
            .bind(&file.content_type)
            .bind(&file.body)
            .execute(&mut *connection)
            .await
            .map_err(failed("effective_configs"))?;
        }
    }
    Ok(())
}
