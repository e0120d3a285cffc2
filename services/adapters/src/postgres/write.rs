//! Writing what is in a commit: a statement for each table, with its rows as arrays.

use muster_domain::agent::{Agent, Session};
use muster_domain::ids::{AgentKey, Digest};
use muster_domain::report::{ConfigFile, ConfigMap};
use muster_ports::store::{AgentWrite, Commit, CommitError};
use sqlx::{PgConnection, query};
use uuid::Uuid;

use super::error::refused;
use super::rows::{SessionNames, signed, to_json};
use super::selector::selectable;

/// Bytes of files past which another statement is begun: a message to the server has a limit.
const FILE_BYTES: usize = 64 * 1024 * 1024;

/// Keys of agents, as two arrays.
#[derive(Default)]
pub(super) struct Keys<'a> {
    pub(super) tenants: Vec<&'a str>,
    pub(super) uids: Vec<Uuid>,
}

impl<'a> Keys<'a> {
    fn push(&mut self, key: &'a AgentKey) {
        self.tenants.push(key.tenant.as_str());
        self.uids.push(key.uid.0);
    }
}

impl<'a> FromIterator<&'a AgentKey> for Keys<'a> {
    fn from_iter<I: IntoIterator<Item = &'a AgentKey>>(keys: I) -> Self {
        let mut all = Self::default();
        keys.into_iter().for_each(|key| all.push(key));
        all
    }
}

/// Columns of `agents` and `agent_states`.
#[derive(Default)]
struct AgentColumns<'a> {
    keys: Keys<'a>,
    states: Vec<String>,
    healthy: Vec<Option<bool>>,
    config_files: Vec<Option<i32>>,
    attributes: Vec<String>,
    digests: Vec<Uuid>,
    drifted: Vec<bool>,
}

/// What attributes are known by, in the one type of 16 bytes that the server has.
fn digest(attributes: &str) -> Uuid {
    let Digest(bytes) = Digest::of_parts([attributes.as_bytes()]);
    Uuid::from_bytes(bytes.first_chunk().copied().unwrap_or_default())
}

fn count(config: &ConfigMap) -> i32 {
    i32::try_from(config.len()).unwrap_or(i32::MAX)
}

impl<'a> AgentColumns<'a> {
    fn push(&mut self, agent: &'a Agent, config: Option<&ConfigMap>) -> Result<(), CommitError> {
        self.keys.push(&agent.key);
        self.states.push(to_json("agent_states", &agent.state)?);
        self.healthy.push(agent.state.health.as_ref().map(|health| health.healthy));
        self.config_files.push(config.map(count));
        self.drifted.push(agent.state.drift.is_some());
        let attributes = to_json("agents", &selectable(agent.state.description.as_ref()))?;
        self.digests.push(digest(&attributes));
        self.attributes.push(attributes);
        Ok(())
    }
}

/// Writes the states that are to be written; `true` beside a write says that all of it is.
pub(super) async fn write_agents(
    connection: &mut PgConnection,
    commit: &Commit,
    writes: &[(&AgentWrite, bool)],
) -> Result<(), CommitError> {
    let mut columns = AgentColumns::default();
    for (write, _) in writes.iter().filter(|(write, is_whole)| write.state || *is_whole) {
        columns.push(&write.agent, write.effective_config.as_ref())?;
    }
    if columns.states.is_empty() {
        return Ok(());
    }
    // An agent whose attributes are as they were is not touched, not even by a lock.
    query(
        "WITH r AS MATERIALIZED (SELECT * FROM unnest($3::text[], $4::uuid[], $5::text[], $6::bool[], $7::int4[], \
         $8::text[], $9::uuid[], $10::bool[]) AS r (tenant, uid, state, healthy, config_files, attributes, digest, drifted)), \
         seen AS (INSERT INTO agents (tenant, uid, cell, partition, attributes, digest, labels) \
         SELECT r.tenant, r.uid, $1, $2, r.attributes::jsonb, r.digest, coalesce((SELECT jsonb_object_agg(l.key, l.value) \
         FROM labels AS l WHERE l.tenant = r.tenant AND l.uid = r.uid), '{}') FROM r \
         WHERE NOT EXISTS (SELECT 1 FROM agents AS a WHERE a.tenant = r.tenant AND a.uid = r.uid AND a.cell = $1 \
         AND a.partition = $2 AND a.digest = r.digest) \
         ON CONFLICT (tenant, uid, cell) DO UPDATE SET partition = excluded.partition, \
         attributes = excluded.attributes, digest = excluded.digest) \
         INSERT INTO agent_states AS st (tenant, uid, cell, state, healthy, config_files, drifted) \
         SELECT tenant, uid, $1, state, healthy, config_files, drifted FROM r \
         ON CONFLICT (tenant, uid, cell) DO UPDATE SET state = excluded.state, healthy = excluded.healthy, \
         config_files = coalesce(excluded.config_files, st.config_files), drifted = excluded.drifted",
    )
    .bind(commit.cell.as_str())
    .bind(i32::from(commit.partition.number()))
    .bind(columns.keys.tenants)
    .bind(columns.keys.uids)
    .bind(columns.states)
    .bind(columns.healthy)
    .bind(columns.config_files)
    .bind(columns.attributes)
    .bind(columns.digests)
    .bind(columns.drifted)
    .execute(connection)
    .await
    .map_err(refused("agents"))?;
    Ok(())
}

/// Columns of `sessions`.
#[derive(Default)]
struct SessionColumns<'a> {
    keys: Keys<'a>,
    ids: Vec<Uuid>,
    claims: Vec<i64>,
    gateways: Vec<&'a str>,
    incarnations: Vec<Uuid>,
    transports: Vec<String>,
    remote_addrs: Vec<&'a str>,
    started_at: Vec<i64>,
    ended_at: Vec<Option<i64>>,
    end_reasons: Vec<Option<String>>,
    end_details: Vec<Option<String>>,
    silent_since: Vec<Option<i64>>,
}

impl<'a> SessionColumns<'a> {
    fn push(&mut self, key: &'a AgentKey, session: &'a Session) -> Result<(), CommitError> {
        let SessionNames { transport, end_reason, end_detail } = SessionNames::of(session)?;
        self.keys.push(key);
        self.ids.push(session.id.0);
        self.claims.push(signed(session.claim.0));
        self.gateways.push(session.gateway.as_str());
        self.incarnations.push(session.incarnation.0);
        self.transports.push(transport);
        self.remote_addrs.push(&session.remote_addr);
        self.started_at.push(signed(session.started_at.0));
        self.ended_at.push(session.ended.map(|(at, _)| signed(at.0)));
        self.end_reasons.push(end_reason);
        self.end_details.push(end_detail);
        self.silent_since.push(session.silent_since.map(|at| signed(at.0)));
        Ok(())
    }
}

/// Writes the sessions that are to be written; `true` beside a write says that all of it is.
pub(super) async fn write_sessions(
    connection: &mut PgConnection,
    commit: &Commit,
    writes: &[(&AgentWrite, bool)],
) -> Result<(), CommitError> {
    let mut columns = SessionColumns::default();
    let mut gone = Keys::default();
    for (write, _) in writes.iter().filter(|(write, is_whole)| write.session || *is_whole) {
        match &write.agent.session {
            Some(session) => columns.push(&write.agent.key, session)?,
            None => gone.push(&write.agent.key),
        }
    }
    if columns.ids.is_empty() && gone.uids.is_empty() {
        return Ok(());
    }
    query(
        "WITH gone AS (DELETE FROM sessions AS s USING unnest($16::text[], $17::uuid[]) AS k (tenant, uid) \
         WHERE s.tenant = k.tenant AND s.uid = k.uid AND s.cell = $1) \
         INSERT INTO sessions (cell, partition, tenant, uid, session_id, claim, gateway, incarnation, transport, \
         remote_addr, started_at, ended_at, end_reason, end_detail, silent_since) \
         SELECT $1, $2, r.* FROM unnest($3::text[], $4::uuid[], $5::uuid[], $6::int8[], $7::text[], $8::uuid[], \
         $9::text[], $10::text[], $11::int8[], $12::int8[], $13::text[], $14::text[], $15::int8[]) AS r \
         ON CONFLICT (tenant, uid, cell) DO UPDATE SET partition = excluded.partition, \
         session_id = excluded.session_id, claim = excluded.claim, gateway = excluded.gateway, \
         incarnation = excluded.incarnation, transport = excluded.transport, remote_addr = excluded.remote_addr, \
         started_at = excluded.started_at, ended_at = excluded.ended_at, end_reason = excluded.end_reason, \
         end_detail = excluded.end_detail, silent_since = excluded.silent_since",
    )
    .bind(commit.cell.as_str())
    .bind(i32::from(commit.partition.number()))
    .bind(columns.keys.tenants)
    .bind(columns.keys.uids)
    .bind(columns.ids)
    .bind(columns.claims)
    .bind(columns.gateways)
    .bind(columns.incarnations)
    .bind(columns.transports)
    .bind(columns.remote_addrs)
    .bind(columns.started_at)
    .bind(columns.ended_at)
    .bind(columns.end_reasons)
    .bind(columns.end_details)
    .bind(columns.silent_since)
    .bind(gone.tenants)
    .bind(gone.uids)
    .execute(connection)
    .await
    .map_err(refused("sessions"))?;
    Ok(())
}

/// Columns of `effective_configs`.
#[derive(Default)]
struct FileColumns<'a> {
    keys: Keys<'a>,
    names: Vec<&'a str>,
    content_types: Vec<&'a str>,
    bodies: Vec<&'a [u8]>,
    bytes: usize,
}

impl<'a> FileColumns<'a> {
    fn push(&mut self, key: &'a AgentKey, name: &'a str, file: &'a ConfigFile) {
        self.keys.push(key);
        self.names.push(name);
        self.content_types.push(&file.content_type);
        self.bodies.push(&file.body);
        self.bytes += file.body.len();
    }

    async fn insert(self, connection: &mut PgConnection, commit: &Commit) -> Result<(), CommitError> {
        query(
            "INSERT INTO effective_configs (cell, tenant, uid, file, content_type, body) SELECT $1, r.* \
             FROM unnest($2::text[], $3::uuid[], $4::text[], $5::text[], $6::bytea[]) AS r",
        )
        .bind(commit.cell.as_str())
        .bind(self.keys.tenants)
        .bind(self.keys.uids)
        .bind(self.names)
        .bind(self.content_types)
        .bind(self.bodies)
        .execute(connection)
        .await
        .map_err(refused("effective_configs"))?;
        Ok(())
    }
}

/// Replaces the effective configs that are to be written.
pub(super) async fn write_configs(connection: &mut PgConnection, commit: &Commit) -> Result<(), CommitError> {
    let configs: Vec<(&AgentKey, &ConfigMap)> = commit
        .agents
        .iter()
        .filter_map(|write| Some((&write.agent.key, write.effective_config.as_ref()?)))
        .collect();
    if configs.is_empty() {
        return Ok(());
    }
    let keys: Keys<'_> = configs.iter().map(|(key, _)| *key).collect();
    // The number of files is there already where the state was written with them.
    query(
        "WITH k AS MATERIALIZED (SELECT * FROM unnest($2::text[], $3::uuid[], $4::int4[]) AS k (tenant, uid, files)), \
         counted AS (UPDATE agent_states AS st SET config_files = k.files FROM k WHERE st.tenant = k.tenant \
         AND st.uid = k.uid AND st.cell = $1 AND st.config_files IS DISTINCT FROM k.files) \
         DELETE FROM effective_configs AS e USING k WHERE e.tenant = k.tenant AND e.uid = k.uid AND e.cell = $1",
    )
    .bind(commit.cell.as_str())
    .bind(keys.tenants)
    .bind(keys.uids)
    .bind(configs.iter().map(|(_, config)| count(config)).collect::<Vec<_>>())
    .execute(&mut *connection)
    .await
    .map_err(refused("effective_configs"))?;

    let mut columns = FileColumns::default();
    for (key, config) in configs {
        for (name, file) in config {
            if !columns.names.is_empty() && columns.bytes + file.body.len() > FILE_BYTES {
                std::mem::take(&mut columns).insert(connection, commit).await?;
            }
            columns.push(key, name, file);
        }
    }
    if columns.names.is_empty() { Ok(()) } else { columns.insert(connection, commit).await }
}

/// Keeps the entries that are passed over. What is said of them is made fit to be stored: they are not
/// the reason for another refusal.
pub(super) async fn quarantine(connection: &mut PgConnection, commit: &Commit) -> Result<(), CommitError> {
    let entries = &commit.quarantined;
    if entries.is_empty() {
        return Ok(());
    }
    let (epoch, ..) = commit.progress;
    query(
        "INSERT INTO quarantine (cell, partition, epoch, position, message_id, tenant, uid, payload, reason, at) \
         SELECT $1, $2, $3, r.* FROM unnest($4::int8[], $5::uuid[], $6::text[], $7::uuid[], $8::bytea[], \
         $9::text[], $10::int8[]) AS r ON CONFLICT DO NOTHING",
    )
    .bind(commit.cell.as_str())
    .bind(i32::from(commit.partition.number()))
    .bind(signed(epoch))
    .bind(entries.iter().map(|entry| signed(entry.position.0)).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| entry.message.0).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| Some(entry.key.as_ref()?.tenant.as_str())).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| Some(entry.key.as_ref()?.uid.0)).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| &entry.payload[..]).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| entry.reason.replace('\0', "\u{fffd}")).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| signed(entry.at.0)).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map_err(refused("quarantine"))?;
    Ok(())
}
