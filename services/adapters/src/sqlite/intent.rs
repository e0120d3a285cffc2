//! Intent: revisions, templates, assignments, labels.

use std::collections::BTreeMap;

use async_trait::async_trait;
use muster_domain::audit::Entry;
use muster_domain::desired::Labels;
use muster_domain::ids::{AgentKey, Digest, IntentRevision, Tenant, Timestamp};
use muster_domain::intent::{
    Assignment, ChangeRecord, Intent, IntentChange, MAX_RETRIES, ObjectRef, OnRemoval, TemplateRevision,
};
use muster_domain::selector::AgentSelector;
use muster_domain::template::TypedValue;
use muster_ports::EngineError;
use muster_ports::store::{IntentError, IntentStore};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, query};

use super::audit::append;
use super::error::failed;
use super::rollouts::{read_rollouts, write_rollouts};
use super::rows::{Reading, limit, signed, to_json};
use super::{SqliteStore, changes};

/// What is stored of an assignment as JSON; the rest of it are columns.
#[derive(Serialize, Deserialize)]
struct AssignmentSpec {
    template: String,
    version: Option<String>,
    values: BTreeMap<String, TypedValue>,
    selector: AgentSelector,
    priority: i32,
    file: Option<String>,
    #[serde(default, skip_serializing_if = "OnRemoval::is_default")]
    on_removal: OnRemoval,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retired_at: Option<Timestamp>,
    #[serde(default)]
    strategy: Option<String>,
}

#[async_trait]
impl IntentStore for SqliteStore {
    async fn revisions(&self) -> Result<BTreeMap<Tenant, IntentRevision>, EngineError> {
        let found = query("SELECT tenant, revision FROM intents")
            .fetch_all(&mut *self.reader().await?)
            .await
            .map_err(failed("intents"))?;
        let revision = |row: &SqliteRow| {
            let reading = Reading::new(row, "intents");
            Ok((reading.parsed("tenant")?, IntentRevision(reading.unsigned("revision")?)))
        };
        found.iter().map(revision).collect()
    }

    async fn intent(&self, tenant: &Tenant) -> Result<Intent, EngineError> {
        let mut transaction = self.begin_read().await?;
        let mut intent =
            Intent { revision: present_revision(&mut transaction, tenant).await?, ..Intent::default() };
        let templates = query(
            "SELECT id, name, version, digest, source, compiled, created_at, author, message FROM templates \
             WHERE tenant = $1 ORDER BY ordinal",
        )
        .bind(tenant.as_str())
        .fetch_all(&mut *transaction)
        .await
        .map_err(failed("templates"))?;
        for row in &templates {
            let revision = template_revision(row, tenant)?;
            intent.templates.entry(revision.name.clone()).or_default().push(revision);
        }
        let assignments =
            query("SELECT name, spec, created_at, updated_at FROM assignments WHERE tenant = $1")
                .bind(tenant.as_str())
                .fetch_all(&mut *transaction)
                .await
                .map_err(failed("assignments"))?;
        for row in &assignments {
            let assignment = assignment(row, tenant)?;
            intent.assignments.insert(assignment.name.clone(), assignment);
        }
        let floors = query("SELECT assignment, revision FROM floors WHERE tenant = $1")
            .bind(tenant.as_str())
            .fetch_all(&mut *transaction)
            .await
            .map_err(failed("floors"))?;
        for row in &floors {
            let reading = Reading::new(row, "floors");
            intent.floors.insert(reading.get("assignment")?, IntentRevision(reading.unsigned("revision")?));
        }
        intent.owners = changes::owners(&mut transaction, tenant).await?;
        let retries = query("SELECT uid, revision FROM retries WHERE tenant = $1")
            .bind(tenant.as_str())
            .fetch_all(&mut *transaction)
            .await
            .map_err(failed("retries"))?;
        for row in &retries {
            let reading = Reading::new(row, "retries");
            intent.retries.insert(reading.id("uid")?, IntentRevision(reading.unsigned("revision")?));
        }
        read_rollouts(&mut transaction, tenant, &mut intent).await?;
        transaction.commit().await.map_err(failed("intents"))?;
        Ok(intent)
    }

    async fn change(&self, tenant: &Tenant, change: &IntentChange) -> Result<IntentRevision, IntentError> {
        if change.is_empty() {
            return Ok(present_revision(&mut *self.reader().await?, tenant).await?);
        }
        let mut transaction = self.begin_write().await?;
        if present_revision(&mut transaction, tenant).await? != change.planned_on {
            return Err(IntentError::Moved);
        }
        changes::remove(&mut transaction, tenant, change).await?;
        for revision in &change.templates {
            insert_template(&mut transaction, tenant, revision).await?;
        }
        for assignment in &change.assignments {
            write_assignment(&mut transaction, tenant, assignment).await?;
        }
        let revision = raise_revision(&mut transaction, tenant).await?;
        for assignment in &change.floors {
            raise_floor(&mut transaction, tenant, assignment, revision).await?;
        }
        ask_again(&mut transaction, tenant, change, revision).await?;
        append(&mut transaction, tenant, change.audit.as_ref()).await?;
        changes::own(&mut transaction, tenant, change).await?;
        changes::remember(&mut transaction, tenant, change.record(revision)).await?;
        write_rollouts(&mut transaction, tenant, change, revision).await?;
        transaction.commit().await.map_err(failed("intents"))?;
        Ok(revision)
    }

    async fn advance(
        &self,
        tenant: &Tenant,
        at_least: IntentRevision,
    ) -> Result<IntentRevision, EngineError> {
        let mut transaction = self.begin_write().await?;
        let row = query(
            "INSERT INTO intents (tenant, revision) VALUES ($1, $2) \
             ON CONFLICT (tenant) DO UPDATE SET revision = max(revision, excluded.revision) RETURNING revision",
        )
        .bind(tenant.as_str())
        .bind(signed(at_least.0))
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed("intents"))?;
        let revision = Reading::new(&row, "intents").unsigned("revision")?;
        transaction.commit().await.map_err(failed("intents"))?;
        Ok(IntentRevision(revision))
    }

    async fn history(
        &self,
        tenant: &Tenant,
        object: Option<&ObjectRef>,
        before: Option<IntentRevision>,
        limit: usize,
    ) -> Result<Vec<ChangeRecord>, EngineError> {
        changes::read(&mut *self.reader().await?, tenant, object, before, limit).await
    }

    async fn label(
        &self,
        key: &AgentKey,
        changes: &BTreeMap<String, Option<String>>,
        now: Timestamp,
        audit: Option<&Entry>,
    ) -> Result<Option<Labels>, EngineError> {
        let mut transaction = self.begin_write().await?;
        let known = query("SELECT 1 FROM agents WHERE tenant = $1 AND uid = $2")
            .bind(key.tenant.as_str())
            .bind(key.uid.0)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(failed("agents"))?;
        if known.is_none() {
            return Ok(None);
        }
        let before = labels(&mut transaction, key).await?;
        let mut changed = 0;
        for (name, value) in changes {
            changed += match value {
                Some(value) => set_label(&mut transaction, key, name, value, now).await?,
                None => remove_label(&mut transaction, key, name).await?,
            };
        }
        if changed > 0 {
            raise_revision(&mut transaction, &key.tenant).await?;
        }
        let after = labels(&mut transaction, key).await?;
        if let Some(audit) = audit {
            let states = (to_json("labels", &before)?, to_json("labels", &after)?);
            let audit = audit.clone().with_states(states.0, states.1);
            append(&mut transaction, &key.tenant, Some(&audit)).await?;
        }
        transaction.commit().await.map_err(failed("labels"))?;
        Ok(Some(after))
    }
}

async fn labels(connection: &mut SqliteConnection, key: &AgentKey) -> Result<Labels, EngineError> {
    let found = query("SELECT key, value FROM labels WHERE tenant = $1 AND uid = $2")
        .bind(key.tenant.as_str())
        .bind(key.uid.0)
        .fetch_all(connection)
        .await
        .map_err(failed("labels"))?;
    let label = |row: &SqliteRow| {
        let reading = Reading::new(row, "labels");
        Ok((reading.get("key")?, reading.get("value")?))
    };
    found.iter().map(label).collect()
}

/// Notes which agents are to try again, and forgets the oldest of such notes where there are too many;
/// those of one revision go together.
async fn ask_again(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    change: &IntentChange,
    revision: IntentRevision,
) -> Result<(), EngineError> {
    if change.retries.is_empty() {
        return Ok(());
    }
    query(
        "INSERT OR REPLACE INTO retries (tenant, uid, revision) SELECT $1, unhex(value, '-'), $3 FROM json_each($2)",
    )
    .bind(tenant.as_str())
    .bind(to_json("retries", &change.retries)?)
    .bind(signed(revision.0))
    .execute(&mut *connection)
    .await
    .map_err(failed("retries"))?;
    query(
        "DELETE FROM retries WHERE tenant = $1 AND revision <= (SELECT revision FROM retries \
         WHERE tenant = $1 ORDER BY revision DESC LIMIT 1 OFFSET $2)",
    )
    .bind(tenant.as_str())
    .bind(limit(MAX_RETRIES))
    .execute(connection)
    .await
    .map_err(failed("retries"))?;
    Ok(())
}

/// Present revision of a tenant's intent; zero where there is none.
pub(super) async fn present_revision(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
) -> Result<IntentRevision, EngineError> {
    let found = query("SELECT revision FROM intents WHERE tenant = $1")
        .bind(tenant.as_str())
        .fetch_optional(connection)
        .await
        .map_err(failed("intents"))?;
    let revision = found.map(|row| Reading::new(&row, "intents").unsigned("revision")).transpose()?;
    Ok(IntentRevision(revision.unwrap_or(0)))
}

pub(super) async fn raise_revision(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
) -> Result<IntentRevision, EngineError> {
    let raised = query(
        "INSERT INTO intents (tenant, revision) VALUES ($1, 1) \
         ON CONFLICT (tenant) DO UPDATE SET revision = revision + 1 RETURNING revision",
    )
    .bind(tenant.as_str())
    .fetch_one(connection)
    .await
    .map_err(failed("intents"))?;
    Ok(IntentRevision(Reading::new(&raised, "intents").unsigned("revision")?))
}

pub(super) async fn raise_floor(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    assignment: &str,
    revision: IntentRevision,
) -> Result<(), EngineError> {
    query(
        "INSERT INTO floors (tenant, assignment, revision) VALUES ($1, $2, $3) \
         ON CONFLICT (tenant, assignment) DO UPDATE SET revision = excluded.revision",
    )
    .bind(tenant.as_str())
    .bind(assignment)
    .bind(signed(revision.0))
    .execute(connection)
    .await
    .map_err(failed("floors"))?;
    Ok(())
}

async fn insert_template(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    revision: &TemplateRevision,
) -> Result<(), EngineError> {
    query(
        "INSERT INTO templates (tenant, name, version, id, digest, source, compiled, created_at, author, message) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(tenant.as_str())
    .bind(&revision.name)
    .bind(&revision.version)
    .bind(revision.id)
    .bind(&revision.digest.0[..])
    .bind(&revision.source)
    .bind(to_json("templates", &revision.compiled)?)
    .bind(signed(revision.created_at.0))
    .bind(&revision.author)
    .bind(&revision.message)
    .execute(connection)
    .await
    .map_err(failed("templates"))?;
    Ok(())
}

fn template_revision(row: &SqliteRow, tenant: &Tenant) -> Result<TemplateRevision, EngineError> {
    let mut reading = Reading::new(row, "templates");
    let (name, version): (String, String) = (reading.get("name")?, reading.get("version")?);
    reading = Reading::new(row, &format!("templates, {tenant}:{name} version {version}"));
    Ok(TemplateRevision {
        id: reading.get("id")?,
        name,
        version,
        digest: reading.id::<Digest>("digest")?,
        source: reading.get("source")?,
        compiled: reading.json("compiled")?,
        created_at: Timestamp(reading.unsigned("created_at")?),
        author: reading.get("author")?,
        message: reading.get("message")?,
    })
}

async fn write_assignment(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    assignment: &Assignment,
) -> Result<(), EngineError> {
    let Assignment { name, template, version, values, selector, priority, file, strategy, .. } =
        assignment.clone();
    let Assignment { on_removal, retired_at, created_at, updated_at, .. } = *assignment;
    let spec = AssignmentSpec {
        template,
        version,
        values,
        selector,
        priority,
        file,
        on_removal,
        retired_at,
        strategy,
    };
    query(
        "INSERT OR REPLACE INTO assignments (tenant, name, spec, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(tenant.as_str())
    .bind(name)
    .bind(to_json("assignments", &spec)?)
    .bind(signed(created_at.0))
    .bind(signed(updated_at.0))
    .execute(connection)
    .await
    .map_err(failed("assignments"))?;
    Ok(())
}

fn assignment(row: &SqliteRow, tenant: &Tenant) -> Result<Assignment, EngineError> {
    let name: String = Reading::new(row, "assignments").get("name")?;
    let reading = Reading::new(row, &format!("assignments, {tenant}:{name}"));
    let AssignmentSpec {
        template,
        version,
        values,
        selector,
        priority,
        file,
        on_removal,
        retired_at,
        strategy,
    } = reading.json("spec")?;
    Ok(Assignment {
        name,
        template,
        version,
        values,
        selector,
        priority,
        file,
        on_removal,
        retired_at,
        strategy,
        created_at: Timestamp(reading.unsigned("created_at")?),
        updated_at: Timestamp(reading.unsigned("updated_at")?),
    })
}

/// Sets a label; returns how many rows that changed.
async fn set_label(
    connection: &mut SqliteConnection,
    key: &AgentKey,
    name: &str,
    value: &str,
    now: Timestamp,
) -> Result<u64, EngineError> {
    let set = query(
        "INSERT INTO labels (tenant, uid, key, value, updated_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (tenant, uid, key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at \
         WHERE value <> excluded.value",
    )
    .bind(key.tenant.as_str())
    .bind(key.uid.0)
    .bind(name)
    .bind(value)
    .bind(signed(now.0))
    .execute(connection)
    .await
    .map_err(failed("labels"))?;
    Ok(set.rows_affected())
}

/// Removes a label; returns how many rows that changed.
async fn remove_label(
    connection: &mut SqliteConnection,
    key: &AgentKey,
    name: &str,
) -> Result<u64, EngineError> {
    let removed = query("DELETE FROM labels WHERE tenant = $1 AND uid = $2 AND key = $3")
        .bind(key.tenant.as_str())
        .bind(key.uid.0)
        .bind(name)
        .execute(connection)
        .await
        .map_err(failed("labels"))?;
    Ok(removed.rows_affected())
}
