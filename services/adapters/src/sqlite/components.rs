//! Lists of components that agents can be configured with.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use muster_domain::ids::{Tenant, Timestamp};
use muster_domain::report::{Components, ComponentsKey};
use muster_ports::EngineError;
use muster_ports::store::{ComponentStore, MAX_COMPONENT_LISTS};
use sqlx::{SqliteConnection, query};

use super::SqliteStore;
use super::error::failed;
use super::rows::{Reading, limit, signed, to_json};

#[async_trait]
impl ComponentStore for SqliteStore {
    async fn missing_components(
        &self,
        keys: &BTreeSet<ComponentsKey>,
    ) -> Result<BTreeSet<ComponentsKey>, EngineError> {
        let mut missing = BTreeSet::new();
        let mut reader = self.reader().await?;
        for key in keys {
            let found = query("SELECT 1 FROM components WHERE tenant = $1 AND agent_type = $2 AND hash = $3")
                .bind(key.tenant.as_str())
                .bind(&key.agent_type)
                .bind(&key.hash)
                .fetch_optional(&mut *reader)
                .await
                .map_err(failed("components"))?;
            if found.is_none() {
                missing.insert(key.clone());
            }
        }
        Ok(missing)
    }

    async fn put_components(
        &self,
        lists: &BTreeMap<ComponentsKey, Components>,
        now: Timestamp,
    ) -> Result<(), EngineError> {
        if lists.is_empty() {
            return Ok(());
        }
        let mut transaction = self.begin_write().await?;
        for (key, list) in lists {
            query(
                "INSERT INTO components (tenant, agent_type, hash, list, changed_at) VALUES ($1, $2, $3, $4, $5) \
                 ON CONFLICT (tenant, agent_type, hash) DO UPDATE SET list = excluded.list, \
                 changed_at = excluded.changed_at WHERE list <> excluded.list",
            )
            .bind(key.tenant.as_str())
            .bind(&key.agent_type)
            .bind(&key.hash)
            .bind(to_json("components", list)?)
            .bind(signed(now.0))
            .execute(&mut *transaction)
            .await
            .map_err(failed("components"))?;
        }
        for tenant in lists.keys().map(|key| &key.tenant).collect::<BTreeSet<_>>() {
            forget_oldest(&mut transaction, tenant).await?;
        }
        transaction.commit().await.map_err(failed("components"))
    }

    async fn components(&self, key: &ComponentsKey) -> Result<Option<Components>, EngineError> {
        let found = query("SELECT list FROM components WHERE tenant = $1 AND agent_type = $2 AND hash = $3")
            .bind(key.tenant.as_str())
            .bind(&key.agent_type)
            .bind(&key.hash)
            .fetch_optional(&mut *self.reader().await?)
            .await
            .map_err(failed("components"))?;
        found.map(|row| Reading::new(&row, "components").json("list")).transpose()
    }
}

async fn forget_oldest(connection: &mut SqliteConnection, tenant: &Tenant) -> Result<(), EngineError> {
    query(
        "DELETE FROM components WHERE rowid IN (SELECT rowid FROM components WHERE tenant = $1 \
         ORDER BY changed_at DESC, agent_type, hash LIMIT -1 OFFSET $2)",
    )
    .bind(tenant.as_str())
    .bind(limit(MAX_COMPONENT_LISTS))
    .execute(connection)
    .await
    .map_err(failed("components"))?;
    Ok(())
}
