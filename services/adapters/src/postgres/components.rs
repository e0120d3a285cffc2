//! Lists of components that agents can be configured with.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use muster_domain::ids::Timestamp;
use muster_domain::report::{Components, ComponentsKey};
use muster_ports::EngineError;
use muster_ports::store::{ComponentStore, MAX_COMPONENT_LISTS};
use sqlx::{Connection as _, PgConnection, query};

use super::error::failed;
use super::rows::{Reading, limit, signed, to_json};
use super::{PostgresStore, call};

#[async_trait]
impl ComponentStore for PostgresStore {
    async fn missing_components(
        &self,
        keys: &BTreeSet<ComponentsKey>,
    ) -> Result<BTreeSet<ComponentsKey>, EngineError> {
        if keys.is_empty() {
            return Ok(BTreeSet::new());
        }
        call!(self, |connection| missing(connection, keys))
    }

    async fn put_components(
        &self,
        lists: &BTreeMap<ComponentsKey, Components>,
        now: Timestamp,
    ) -> Result<(), EngineError> {
        if lists.is_empty() {
            return Ok(());
        }
        call!(self, |connection| put(connection, lists, now))
    }

    async fn components(&self, key: &ComponentsKey) -> Result<Option<Components>, EngineError> {
        let found = query("SELECT list FROM components WHERE tenant = $1 AND agent_type = $2 AND hash = $3")
            .bind(key.tenant.as_str())
            .bind(key.agent_type.as_bytes())
            .bind(&key.hash);
        let found = call!(self, |connection| async {
            found.fetch_optional(connection).await.map_err(failed("components"))
        })?;
        found.map(|row| Reading::new(&row, "components").json("list")).transpose()
    }
}

/// Keys as three arrays.
fn columns<'a>(keys: impl Iterator<Item = &'a ComponentsKey>) -> (Vec<&'a str>, Vec<&'a [u8]>, Vec<&'a str>) {
    let mut columns = (Vec::new(), Vec::new(), Vec::new());
    for key in keys {
        columns.0.push(key.tenant.as_str());
        columns.1.push(key.agent_type.as_bytes());
        columns.2.push(key.hash.as_str());
    }
    columns
}

async fn missing(
    connection: &mut PgConnection,
    keys: &BTreeSet<ComponentsKey>,
) -> Result<BTreeSet<ComponentsKey>, EngineError> {
    let (tenants, types, hashes) = columns(keys.iter());
    let found = query(
        "SELECT k.number FROM unnest($1::text[], $2::bytea[], $3::text[]) WITH ORDINALITY \
         AS k (tenant, agent_type, hash, number) JOIN components AS c USING (tenant, agent_type, hash)",
    )
    .bind(tenants)
    .bind(types)
    .bind(hashes)
    .fetch_all(connection)
    .await
    .map_err(failed("components"))?;
    let mut stored = BTreeSet::new();
    for row in &found {
        stored.insert(Reading::new(row, "components").get::<i64>("number")?);
    }
    Ok((1..).zip(keys).filter(|(number, _)| !stored.contains(number)).map(|(_, key)| key.clone()).collect())
}

async fn put(
    connection: &mut PgConnection,
    lists: &BTreeMap<ComponentsKey, Components>,
    now: Timestamp,
) -> Result<(), EngineError> {
    let (tenants, types, hashes) = columns(lists.keys());
    let of: Vec<_> = tenants.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    let texts = lists.values().map(|list| to_json("components", list)).collect::<Result<Vec<_>, _>>()?;
    let mut transaction = connection.begin().await.map_err(failed("a new transaction"))?;
    query(
        "INSERT INTO components AS c (tenant, agent_type, hash, list, changed_at) \
         SELECT r.*, $5 FROM unnest($1::text[], $2::bytea[], $3::text[], $4::text[]) AS r \
         ON CONFLICT (tenant, agent_type, hash) DO UPDATE SET list = excluded.list, \
         changed_at = excluded.changed_at WHERE c.list <> excluded.list",
    )
    .bind(&tenants)
    .bind(types)
    .bind(hashes)
    .bind(texts)
    .bind(signed(now.0))
    .execute(&mut *transaction)
    .await
    .map_err(failed("components"))?;
    query(
        "DELETE FROM components AS c USING (SELECT tenant, agent_type, hash, row_number() OVER \
         (PARTITION BY tenant ORDER BY changed_at DESC, agent_type, hash) AS rank FROM components \
         WHERE tenant = ANY($1)) AS r WHERE r.rank > $2 AND c.tenant = r.tenant AND c.agent_type = r.agent_type \
         AND c.hash = r.hash",
    )
    .bind(of)
    .bind(limit(MAX_COMPONENT_LISTS))
    .execute(&mut *transaction)
    .await
    .map_err(failed("components"))?;
    transaction.commit().await.map_err(failed("components"))
}
