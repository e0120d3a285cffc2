//! What the api reads of the fleet.

use async_trait::async_trait;
use muster_domain::ids::{AgentKey, InstanceUid, Tenant};
use muster_domain::report::{ConfigFile, ConfigMap};
use muster_ports::EngineError;
use muster_ports::store::{FleetStore, StoredAgent};
use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, query};

use super::SqliteStore;
use super::error::failed;
use super::rows::{Reading, limit, select_agents, stored_agent};

#[async_trait]
impl FleetStore for SqliteStore {
    async fn agent(&self, key: &AgentKey) -> Result<Option<(StoredAgent, Option<ConfigMap>)>, EngineError> {
        let mut transaction = self.begin_read().await?;
        let found = query(select_agents!(
            ", a.config_files FROM agents AS a LEFT JOIN sessions AS s ON s.tenant = a.tenant AND s.uid = a.uid \
             WHERE a.tenant = $1 AND a.uid = $2"
        ))
        .bind(key.tenant.as_str())
        .bind(key.uid.0)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed("agents"))?;
        let Some(row) = found else { return Ok(None) };
        let config = match Reading::new(&row, "agents").get::<Option<i64>>("config_files")? {
            Some(_) => Some(effective_config(&mut transaction, key).await?),
            None => None,
        };
        transaction.commit().await.map_err(failed("agents"))?;
        Ok(Some((stored_agent(&row)?, config)))
    }

    async fn page(
        &self,
        tenant: &Tenant,
        after: Option<InstanceUid>,
        rows: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        // Every uid comes after no bytes at all.
        let after = after.as_ref().map_or(&[][..], |uid| &uid.as_bytes()[..]);
        let found = query(select_agents!(
            "FROM agents AS a LEFT JOIN sessions AS s ON s.tenant = a.tenant AND s.uid = a.uid \
             WHERE a.tenant = $1 AND a.uid > $2 ORDER BY a.uid LIMIT $3"
        ))
        .bind(tenant.as_str())
        .bind(after)
        .bind(limit(rows))
        .fetch_all(&mut *self.reader().await?)
        .await
        .map_err(failed("agents"))?;
        found.iter().map(stored_agent).collect()
    }

    async fn ping(&self) -> Result<(), EngineError> {
        query("SELECT 1").execute(&mut *self.reader().await?).await.map_err(failed("a connection"))?;
        Ok(())
    }
}

async fn effective_config(
    connection: &mut SqliteConnection,
    key: &AgentKey,
) -> Result<ConfigMap, EngineError> {
    let found =
        query("SELECT file, content_type, body FROM effective_configs WHERE tenant = $1 AND uid = $2")
            .bind(key.tenant.as_str())
            .bind(key.uid.0)
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
