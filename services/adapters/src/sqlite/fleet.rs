//! What the api reads of the fleet.

use async_trait::async_trait;
use muster_domain::desired::matches;
use muster_domain::ids::{AgentKey, InstanceUid, Tenant};
use muster_domain::liveness::AgentFilter;
use muster_domain::report::{ConfigFile, ConfigMap};
use muster_domain::selector::AgentSelector;
use muster_ports::EngineError;
use muster_ports::store::{FleetStore, StoredAgent};
use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, query};
use uuid::Uuid;

use super::SqliteStore;
use super::error::failed;
use super::rows::{Reading, limit, select_agents, stored_agent};

/// Agents that are read at a time to look for those that a selector matches.
const SCAN: usize = 500;

#[async_trait]
impl FleetStore for SqliteStore {
    async fn agent(&self, key: &AgentKey) -> Result<Option<(StoredAgent, Option<ConfigMap>)>, EngineError> {
        let mut transaction = self.begin_read().await?;
        let found = query(select_agents!(
            ", a.cell, a.config_files FROM agents AS a LEFT JOIN sessions AS s USING (tenant, uid, cell) \
             WHERE a.tenant = $1 AND a.uid = $2 ORDER BY coalesce(s.started_at, -1) DESC, a.cell DESC LIMIT 1"
        ))
        .bind(key.tenant.as_str())
        .bind(key.uid.0)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed("agents"))?;
        let Some(row) = found else { return Ok(None) };
        let reading = Reading::new(&row, "agents");
        let config = match reading.get::<Option<i64>>("config_files")? {
            Some(_) => Some(effective_config(&mut transaction, key, reading.get("cell")?).await?),
            None => None,
        };
        transaction.commit().await.map_err(failed("agents"))?;
        Ok(Some((stored_agent(&row)?, config)))
    }

    async fn find(
        &self,
        tenant: &Tenant,
        selector: &AgentSelector,
        filter: &AgentFilter,
        mut after: Option<InstanceUid>,
        rows: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        let all = *selector == AgentSelector::default() && *filter == AgentFilter::default();
        let scan = if all { rows } else { SCAN };
        let mut page = Vec::new();
        while page.len() < rows {
            let scanned = self.scan(tenant, after, scan).await?;
            let is_last = scanned.len() < scan;
            after = scanned.last().map(|stored| stored.agent.key.uid);
            let found = scanned.into_iter().filter(|stored| {
                matches(selector, &stored.agent, &stored.labels) && filter.matches(&stored.agent)
            });
            page.extend(found.take(rows - page.len()));
            if is_last {
                break;
            }
        }
        Ok(page)
    }

    async fn cluster(&self) -> Result<Uuid, EngineError> {
        let mut transaction = self.begin_write().await?;
        query("INSERT INTO cluster (one, id) VALUES (1, $1) ON CONFLICT DO NOTHING")
            .bind(Uuid::now_v7())
            .execute(&mut *transaction)
            .await
            .map_err(failed("cluster"))?;
        let row = query("SELECT id FROM cluster").fetch_one(&mut *transaction).await;
        let id = Reading::new(&row.map_err(failed("cluster"))?, "cluster").get("id")?;
        transaction.commit().await.map_err(failed("cluster"))?;
        Ok(id)
    }

    async fn ping(&self) -> Result<(), EngineError> {
        query("SELECT 1").execute(&mut *self.reader().await?).await.map_err(failed("a connection"))?;
        Ok(())
    }
}

impl SqliteStore {
    /// A page of a tenant's agents, each as the cell has it in which its session started last.
    async fn scan(
        &self,
        tenant: &Tenant,
        after: Option<InstanceUid>,
        rows: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        // Every uid comes after no bytes at all.
        let after = after.as_ref().map_or(&[][..], |uid| &uid.as_bytes()[..]);
        let found = query(select_agents!(
            "FROM agents AS a LEFT JOIN sessions AS s USING (tenant, uid, cell) \
             WHERE a.tenant = $1 AND a.uid > $2 AND NOT EXISTS ( \
             SELECT 1 FROM agents AS b LEFT JOIN sessions AS t USING (tenant, uid, cell) \
             WHERE b.tenant = a.tenant AND b.uid = a.uid AND b.cell <> a.cell \
             AND (coalesce(t.started_at, -1), b.cell) > (coalesce(s.started_at, -1), a.cell)) \
             ORDER BY a.uid LIMIT $3"
        ))
        .bind(tenant.as_str())
        .bind(after)
        .bind(limit(rows))
        .fetch_all(&mut *self.reader().await?)
        .await
        .map_err(failed("agents"))?;
        found.iter().map(stored_agent).collect()
    }
}

async fn effective_config(
    connection: &mut SqliteConnection,
    key: &AgentKey,
    cell: &str,
) -> Result<ConfigMap, EngineError> {
    let found = query(
        "SELECT file, content_type, body FROM effective_configs WHERE tenant = $1 AND uid = $2 AND cell = $3",
    )
    .bind(key.tenant.as_str())
    .bind(key.uid.0)
    .bind(cell)
    .fetch_all(connection)
    .await
    .map_err(failed("effective_configs"))?;
    let file = |row: &SqliteRow| {
        let reading = Reading::new(row, "effective_configs");
        let file = ConfigFile { content_type: reading.get("content_type")?, body: reading.get("body")? };
        Ok((reading.get("file")?, file))
    };
    found.iter().map(file).collect()
}
