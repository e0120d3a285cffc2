//! Intent: revisions, templates, assignments, labels.

use std::collections::BTreeMap;

use async_trait::async_trait;
use muster_domain::audit::Entry;
use muster_domain::desired::Labels;
use muster_domain::ids::{AgentKey, Digest, InstanceUid, IntentRevision, Tenant, Timestamp};
use muster_domain::intent::{
    Assignment, ChangeRecord, Intent, IntentChange, MAX_RETRIES, ObjectRef, OnRemoval, TemplateRevision,
};
use muster_domain::selector::AgentSelector;
use muster_domain::template::TypedValue;
use muster_ports::EngineError;
use muster_ports::store::{IntentError, IntentStore};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, PgConnection, query};

use super::audit::append;
use super::error::failed;
use super::rollouts::{read_rollouts, write_rollouts};
use super::rows::{Reading, limit, signed, to_json};
use super::{INTENT_LOCKS, PostgresStore, call, changes, intent_lock};

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
impl IntentStore for PostgresStore {
    async fn revisions(&self) -> Result<BTreeMap<Tenant, IntentRevision>, EngineError> {
        let found = query("SELECT tenant, revision FROM intents");
        let found =
            call!(self, |connection| async { found.fetch_all(connection).await.map_err(failed("intents")) })?;
        let revision = |row: &PgRow| {
            let reading = Reading::new(row, "intents");
            Ok((reading.parsed("tenant")?, IntentRevision(reading.unsigned("revision")?)))
        };
        found.iter().map(revision).collect()
    }

    async fn intent(&self, tenant: &Tenant) -> Result<Intent, EngineError> {
        call!(self, |connection| read(connection, tenant))
    }

    async fn change(&self, tenant: &Tenant, change: &IntentChange) -> Result<IntentRevision, IntentError> {
        if change.is_empty() {
            let present = call!(self, |connection| present_revision(connection, tenant));
            return present.map_err(IntentError::Engine);
        }
        call!(self, |connection| write(connection, tenant, change))
    }

    async fn advance(
        &self,
        tenant: &Tenant,
        at_least: IntentRevision,
    ) -> Result<IntentRevision, EngineError> {
        call!(self, |connection| raise_to(connection, tenant, at_least))
    }

    async fn history(
        &self,
        tenant: &Tenant,
        object: Option<&ObjectRef>,
        before: Option<IntentRevision>,
        limit: usize,
    ) -> Result<Vec<ChangeRecord>, EngineError> {
        call!(self, |connection| changes::read(connection, tenant, object, before, limit))
    }

    async fn label(
        &self,
        key: &AgentKey,
        changes: &BTreeMap<String, Option<String>>,
        now: Timestamp,
        audit: Option<&Entry>,
    ) -> Result<Option<Labels>, EngineError> {
        call!(self, |connection| relabel(connection, key, changes, now, audit))
    }
}

async fn read(connection: &mut PgConnection, tenant: &Tenant) -> Result<Intent, EngineError> {
    let one_moment = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";
    let mut transaction = connection.begin_with(one_moment).await.map_err(failed("a new transaction"))?;
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
    let assignments = query("SELECT name, spec, created_at, updated_at FROM assignments WHERE tenant = $1")
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
        let uid = InstanceUid(reading.get("uid")?);
        intent.retries.insert(uid, IntentRevision(reading.unsigned("revision")?));
    }
    read_rollouts(&mut transaction, tenant, &mut intent).await?;
    transaction.commit().await.map_err(failed("intents"))?;
    Ok(intent)
}

async fn write(
    connection: &mut PgConnection,
    tenant: &Tenant,
    change: &IntentChange,
) -> Result<IntentRevision, IntentError> {
    let mut transaction = connection.begin().await.map_err(failed("a new transaction"))?;
    lock(&mut transaction, tenant).await?;
    if present_revision(&mut transaction, tenant).await? != change.planned_on {
        return Err(IntentError::Moved);
    }
    changes::remove(&mut transaction, tenant, change).await?;
    insert_templates(&mut transaction, tenant, &change.templates).await?;
    write_assignments(&mut transaction, tenant, &change.assignments).await?;
    let revision = raise_revision(&mut transaction, tenant).await?;
    raise_floors(&mut transaction, tenant, change, revision).await?;
    ask_again(&mut transaction, tenant, change, revision).await?;
    append(&mut transaction, tenant, change.audit.as_ref()).await?;
    changes::own(&mut transaction, tenant, change).await?;
    changes::remember(&mut transaction, tenant, change.record(revision)).await?;
    write_rollouts(&mut transaction, tenant, change, revision).await?;
    transaction.commit().await.map_err(failed("intents"))?;
    Ok(revision)
}

/// Waits until no commit and no other change is about this tenant, and keeps it so until the
/// transaction ends. A statement of its own: only the ones after it see what those have written.
pub(super) async fn lock(connection: &mut PgConnection, tenant: &Tenant) -> Result<(), EngineError> {
    query("SELECT pg_advisory_xact_lock($1, $2)")
        .bind(INTENT_LOCKS)
        .bind(intent_lock(tenant))
        .execute(connection)
        .await
        .map_err(failed("intents"))?;
    Ok(())
}

/// Present revision of a tenant's intent; zero where there is none.
async fn present_revision(
    connection: &mut PgConnection,
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
    connection: &mut PgConnection,
    tenant: &Tenant,
) -> Result<IntentRevision, EngineError> {
    let raised = query(
        "INSERT INTO intents AS i (tenant, revision) VALUES ($1, 1) \
         ON CONFLICT (tenant) DO UPDATE SET revision = i.revision + 1 RETURNING revision",
    )
    .bind(tenant.as_str())
    .fetch_one(connection)
    .await
    .map_err(failed("intents"))?;
    Ok(IntentRevision(Reading::new(&raised, "intents").unsigned("revision")?))
}

async fn raise_to(
    connection: &mut PgConnection,
    tenant: &Tenant,
    at_least: IntentRevision,
) -> Result<IntentRevision, EngineError> {
    let raised = query(
        "INSERT INTO intents AS i (tenant, revision) VALUES ($1, $2) \
         ON CONFLICT (tenant) DO UPDATE SET revision = greatest(i.revision, excluded.revision) \
         RETURNING revision",
    )
    .bind(tenant.as_str())
    .bind(signed(at_least.0))
    .fetch_one(connection)
    .await
    .map_err(failed("intents"))?;
    Ok(IntentRevision(Reading::new(&raised, "intents").unsigned("revision")?))
}

async fn raise_floors(
    connection: &mut PgConnection,
    tenant: &Tenant,
    change: &IntentChange,
    revision: IntentRevision,
) -> Result<(), EngineError> {
    if change.floors.is_empty() {
        return Ok(());
    }
    query(
        "INSERT INTO floors (tenant, assignment, revision) SELECT $1, name, $3 FROM unnest($2::text[]) AS name \
         ON CONFLICT (tenant, assignment) DO UPDATE SET revision = excluded.revision",
    )
    .bind(tenant.as_str())
    .bind(change.floors.iter().map(String::as_str).collect::<Vec<_>>())
    .bind(signed(revision.0))
    .execute(connection)
    .await
    .map_err(failed("floors"))?;
    Ok(())
}

/// Notes which agents are to try again, and forgets the oldest of such notes where there are too many;
/// those of one revision go together.
async fn ask_again(
    connection: &mut PgConnection,
    tenant: &Tenant,
    change: &IntentChange,
    revision: IntentRevision,
) -> Result<(), EngineError> {
    if change.retries.is_empty() {
        return Ok(());
    }
    query(
        "INSERT INTO retries (tenant, uid, revision) SELECT $1, uid, $3 FROM unnest($2::uuid[]) AS uid \
         ON CONFLICT (tenant, uid) DO UPDATE SET revision = excluded.revision",
    )
    .bind(tenant.as_str())
    .bind(change.retries.iter().map(|uid| uid.0).collect::<Vec<_>>())
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

async fn insert_templates(
    connection: &mut PgConnection,
    tenant: &Tenant,
    revisions: &[TemplateRevision],
) -> Result<(), EngineError> {
    if revisions.is_empty() {
        return Ok(());
    }
    let compiled = revisions.iter().map(|revision| to_json("templates", &revision.compiled));
    query(
        "INSERT INTO templates (tenant, name, version, id, digest, source, compiled, created_at, author, message) \
         SELECT $1, r.name, r.version, r.id, r.digest, r.source, r.compiled, r.created_at, r.author, r.message \
         FROM unnest($2::text[], $3::text[], $4::uuid[], $5::bytea[], $6::bytea[], $7::text[], $8::int8[], \
         $9::text[], $10::text[]) WITH ORDINALITY \
         AS r (name, version, id, digest, source, compiled, created_at, author, message, number) \
         ORDER BY r.number",
    )
    .bind(tenant.as_str())
    .bind(revisions.iter().map(|revision| revision.name.as_str()).collect::<Vec<_>>())
    .bind(revisions.iter().map(|revision| revision.version.as_str()).collect::<Vec<_>>())
    .bind(revisions.iter().map(|revision| revision.id).collect::<Vec<_>>())
    .bind(revisions.iter().map(|revision| &revision.digest.0[..]).collect::<Vec<_>>())
    .bind(revisions.iter().map(|revision| revision.source.as_bytes()).collect::<Vec<_>>())
    .bind(compiled.collect::<Result<Vec<_>, _>>()?)
    .bind(revisions.iter().map(|revision| signed(revision.created_at.0)).collect::<Vec<_>>())
    .bind(revisions.iter().map(|revision| revision.author.as_str()).collect::<Vec<_>>())
    .bind(revisions.iter().map(|revision| revision.message.as_str()).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map_err(failed("templates"))?;
    Ok(())
}

fn template_revision(row: &PgRow, tenant: &Tenant) -> Result<TemplateRevision, EngineError> {
    let mut reading = Reading::new(row, "templates");
    let (name, version): (String, String) = (reading.get("name")?, reading.get("version")?);
    reading = Reading::new(row, &format!("templates, {tenant}:{name} version {version}"));
    let digest = Digest::try_from(reading.get::<&[u8]>("digest")?);
    let source = String::from_utf8(reading.get("source")?);
    Ok(TemplateRevision {
        id: reading.get("id")?,
        name,
        version,
        digest: digest.map_err(|error| reading.wrong("digest", error))?,
        source: source.map_err(|error| reading.wrong("source", error))?,
        compiled: reading.json("compiled")?,
        created_at: Timestamp(reading.unsigned("created_at")?),
        author: reading.get("author")?,
        message: reading.get("message")?,
    })
}

async fn write_assignments(
    connection: &mut PgConnection,
    tenant: &Tenant,
    assignments: &[Assignment],
) -> Result<(), EngineError> {
    if assignments.is_empty() {
        return Ok(());
    }
    let spec = |assignment: &Assignment| {
        let Assignment {
            template,
            version,
            values,
            selector,
            priority,
            file,
            on_removal,
            retired_at,
            strategy,
            ..
        } = assignment.clone();
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
        to_json("assignments", &spec)
    };
    query(
        "INSERT INTO assignments (tenant, name, spec, created_at, updated_at) SELECT $1, r.* \
         FROM unnest($2::text[], $3::text[], $4::int8[], $5::int8[]) AS r \
         ON CONFLICT (tenant, name) DO UPDATE SET spec = excluded.spec, created_at = excluded.created_at, \
         updated_at = excluded.updated_at",
    )
    .bind(tenant.as_str())
    .bind(assignments.iter().map(|assignment| assignment.name.as_str()).collect::<Vec<_>>())
    .bind(assignments.iter().map(spec).collect::<Result<Vec<_>, _>>()?)
    .bind(assignments.iter().map(|assignment| signed(assignment.created_at.0)).collect::<Vec<_>>())
    .bind(assignments.iter().map(|assignment| signed(assignment.updated_at.0)).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map_err(failed("assignments"))?;
    Ok(())
}

fn assignment(row: &PgRow, tenant: &Tenant) -> Result<Assignment, EngineError> {
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

async fn relabel(
    connection: &mut PgConnection,
    key: &AgentKey,
    changes: &BTreeMap<String, Option<String>>,
    now: Timestamp,
    audit: Option<&Entry>,
) -> Result<Option<Labels>, EngineError> {
    let mut transaction = connection.begin().await.map_err(failed("a new transaction"))?;
    lock(&mut transaction, &key.tenant).await?;
    let known = query("SELECT 1 FROM agents WHERE tenant = $1 AND uid = $2 LIMIT 1")
        .bind(key.tenant.as_str())
        .bind(key.uid.0)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed("agents"))?;
    if known.is_none() {
        return Ok(None);
    }
    let before = labels(&mut transaction, key).await?;
    let mut after = before.clone();
    if write_labels(&mut transaction, key, changes, now).await? > 0 {
        copy_labels(&mut transaction, key).await?;
        raise_revision(&mut transaction, &key.tenant).await?;
        after = labels(&mut transaction, key).await?;
    }
    if let Some(audit) = audit {
        let states = (to_json("labels", &before)?, to_json("labels", &after)?);
        let audit = audit.clone().with_states(states.0, states.1);
        append(&mut transaction, &key.tenant, Some(&audit)).await?;
    }
    transaction.commit().await.map_err(failed("labels"))?;
    Ok(Some(after))
}

async fn labels(connection: &mut PgConnection, key: &AgentKey) -> Result<Labels, EngineError> {
    let found = query("SELECT key, value FROM labels WHERE tenant = $1 AND uid = $2")
        .bind(key.tenant.as_str())
        .bind(key.uid.0)
        .fetch_all(connection)
        .await
        .map_err(failed("labels"))?;
    let label = |row: &PgRow| {
        let reading = Reading::new(row, "labels");
        Ok((reading.get("key")?, reading.get("value")?))
    };
    found.iter().map(label).collect()
}

/// Sets and removes labels; returns how many rows that changed.
async fn write_labels(
    connection: &mut PgConnection,
    key: &AgentKey,
    changes: &BTreeMap<String, Option<String>>,
    now: Timestamp,
) -> Result<u64, EngineError> {
    let set = changes.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?)));
    let (names, values): (Vec<&str>, Vec<&str>) = set.unzip();
    let removed: Vec<&str> =
        changes.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| name.as_str()).collect();
    let set = query(
        "INSERT INTO labels AS l (tenant, uid, key, value, updated_at) \
         SELECT $1, $2, r.key, r.value, $5 FROM unnest($3::text[], $4::text[]) AS r (key, value) \
         ON CONFLICT (tenant, uid, key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at \
         WHERE l.value <> excluded.value",
    )
    .bind(key.tenant.as_str())
    .bind(key.uid.0)
    .bind(names)
    .bind(values)
    .bind(signed(now.0))
    .execute(&mut *connection)
    .await
    .map_err(failed("labels"))?;
    let removed = query("DELETE FROM labels WHERE tenant = $1 AND uid = $2 AND key = ANY($3)")
        .bind(key.tenant.as_str())
        .bind(key.uid.0)
        .bind(removed)
        .execute(connection)
        .await
        .map_err(failed("labels"))?;
    Ok(set.rows_affected() + removed.rows_affected())
}

/// Brings the copies of an agent's labels, one in each cell, up to date.
async fn copy_labels(connection: &mut PgConnection, key: &AgentKey) -> Result<(), EngineError> {
    query(
        "UPDATE agents SET labels = coalesce((SELECT jsonb_object_agg(l.key, l.value) FROM labels AS l \
         WHERE l.tenant = $1 AND l.uid = $2), '{}') WHERE tenant = $1 AND uid = $2",
    )
    .bind(key.tenant.as_str())
    .bind(key.uid.0)
    .execute(connection)
    .await
    .map_err(failed("agents"))?;
    Ok(())
}
