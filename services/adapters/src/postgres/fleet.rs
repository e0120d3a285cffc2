//! What the api reads of the fleet.

use async_trait::async_trait;
use muster_domain::ids::{AgentKey, InstanceUid, Tenant};
use muster_domain::liveness::AgentFilter;
use muster_domain::report::{ConfigFile, ConfigMap};
use muster_domain::selector::AgentSelector;
use muster_ports::EngineError;
use muster_ports::store::{FleetStore, StoredAgent};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{AssertSqlSafe, PgConnection, query, query_with};
use uuid::Uuid;

use super::error::failed;
use super::rows::{Reading, limit, select_agents, stored_agent, stored_agents};
use super::selector::Filter;
use super::{PostgresStore, call};

#[async_trait]
impl FleetStore for PostgresStore {
    async fn agent(&self, key: &AgentKey) -> Result<Option<(StoredAgent, Option<ConfigMap>)>, EngineError> {
        // One statement, so that all parts are of one moment.
        let found = query(select_agents!(
            ", st.config_files, \
             ARRAY(SELECT e.file FROM effective_configs AS e WHERE e.tenant = a.tenant AND e.uid = a.uid \
             AND e.cell = a.cell ORDER BY e.file) AS files, \
             ARRAY(SELECT e.content_type FROM effective_configs AS e WHERE e.tenant = a.tenant AND e.uid = a.uid \
             AND e.cell = a.cell ORDER BY e.file) AS content_types, \
             ARRAY(SELECT e.body FROM effective_configs AS e WHERE e.tenant = a.tenant AND e.uid = a.uid \
             AND e.cell = a.cell ORDER BY e.file) AS bodies",
            "agents AS a",
            "WHERE a.tenant = $1 AND a.uid = $2 ORDER BY coalesce(s.started_at, -1) DESC, a.cell DESC LIMIT 1"
        ))
        .bind(key.tenant.as_str())
        .bind(key.uid.0);
        let found = call!(self, |connection| async {
            found.fetch_optional(connection).await.map_err(failed("agents"))
        })?;
        let Some(row) = found else { return Ok(None) };
        Ok(Some((stored_agent(&row)?, effective_config(&row, key)?)))
    }

    async fn find(
        &self,
        tenant: &Tenant,
        selector: &AgentSelector,
        filter: &AgentFilter,
        after: Option<InstanceUid>,
        rows: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        let (sql, arguments) = page(tenant, (selector, filter), after, rows).map_err(failed("agents"))?;
        // Planned anew each time: how many agents a value selects is what a good plan depends on.
        let found = query_with(AssertSqlSafe(sql), arguments).persistent(false);
        call!(self, |connection| async { stored_agents(found.fetch_all(connection).await) })
    }

    async fn cluster(&self) -> Result<Uuid, EngineError> {
        call!(self, |connection| cluster(connection))
    }

    async fn ping(&self) -> Result<(), EngineError> {
        call!(self, |connection| async {
            query("SELECT 1").execute(connection).await.map(|_| ()).map_err(failed("a connection"))
        })
    }
}

/// The statement that reads a page. It looks for the agents first, and for their states when it has
/// them.
fn page(
    tenant: &Tenant,
    (selector, wanted): (&AgentSelector, &AgentFilter),
    after: Option<InstanceUid>,
    rows: usize,
) -> Result<(String, PgArguments), sqlx::Error> {
    let mut filter = Filter::default();
    let tenant = filter.bind(tenant.as_str())?;
    let first = filter.bind(after.map_or(Uuid::nil(), |uid| uid.0))?;
    let not = filter.bind(after.map(|uid| uid.0))?;
    let limit = filter.bind(limit(rows))?;
    filter.and(selector, &tenant)?;
    filter.and_also(wanted)?;
    // An agent that another cell has with a later session is shown as that cell has it.
    let sql = format!(
        "WITH found AS MATERIALIZED (SELECT a.tenant, a.uid, a.cell, a.labels FROM agents AS a \
         WHERE a.tenant = {tenant} AND a.uid >= {first} AND a.uid IS DISTINCT FROM {not} \
         AND NOT EXISTS (SELECT 1 FROM agents AS b WHERE b.tenant = a.tenant AND b.uid = a.uid AND b.cell <> a.cell \
         AND (coalesce((SELECT t.started_at FROM sessions AS t WHERE t.tenant = b.tenant AND t.uid = b.uid \
         AND t.cell = b.cell), -1), b.cell) > \
         (coalesce((SELECT s.started_at FROM sessions AS s WHERE s.tenant = a.tenant AND s.uid = a.uid \
         AND s.cell = a.cell), -1), a.cell)){} ORDER BY a.uid LIMIT {limit}) {}",
        filter.sql,
        select_agents!("found AS a", "ORDER BY a.uid")
    );
    Ok((sql, filter.arguments))
}

async fn cluster(connection: &mut PgConnection) -> Result<Uuid, EngineError> {
    query("INSERT INTO cluster (one, id) VALUES (1, $1) ON CONFLICT DO NOTHING")
        .bind(Uuid::now_v7())
        .execute(&mut *connection)
        .await
        .map_err(failed("cluster"))?;
    let row = query("SELECT id FROM cluster").fetch_one(connection).await.map_err(failed("cluster"))?;
    Reading::new(&row, "cluster").get("id")
}

fn effective_config(row: &PgRow, key: &AgentKey) -> Result<Option<ConfigMap>, EngineError> {
    let reading = Reading::new(row, &format!("effective_configs, {key}"));
    if reading.get::<Option<i32>>("config_files")?.is_none() {
        return Ok(None);
    }
    let names: Vec<String> = reading.get("files")?;
    let content_types: Vec<String> = reading.get("content_types")?;
    let bodies: Vec<Vec<u8>> = reading.get("bodies")?;
    let files = content_types.into_iter().zip(bodies);
    let files = files.map(|(content_type, body)| ConfigFile { content_type, body });
    Ok(Some(names.into_iter().zip(files).collect()))
}
