//! Changes that are remembered, owners, and what is deleted.

use std::collections::BTreeMap;

use muster_domain::ids::{IntentRevision, Tenant, Timestamp};
use muster_domain::intent::{ChangeRecord, IntentChange, Made, ObjectRef};
use muster_ports::EngineError;
use sqlx::{PgConnection, query};

use super::error::failed;
use super::rows::{Reading, limit, signed, to_json};

/// The owner of every object that has one.
pub(super) async fn owners(
    connection: &mut PgConnection,
    tenant: &Tenant,
) -> Result<BTreeMap<ObjectRef, String>, EngineError> {
    let found = query("SELECT kind, name, owner FROM owners WHERE tenant = $1")
        .bind(tenant.as_str())
        .fetch_all(connection)
        .await
        .map_err(failed("owners"))?;
    let mut owners = BTreeMap::new();
    for row in &found {
        let reading = Reading::new(row, "owners");
        let object = ObjectRef { kind: reading.get("kind")?, name: reading.get("name")? };
        owners.insert(object, reading.get("owner")?);
    }
    Ok(owners)
}

/// Writes the owners that a change gives and takes.
pub(super) async fn own(
    connection: &mut PgConnection,
    tenant: &Tenant,
    change: &IntentChange,
) -> Result<(), EngineError> {
    for (object, owner) in &change.owners {
        let statement = match owner {
            Some(owner) => query(
                "INSERT INTO owners (tenant, kind, name, owner) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (tenant, kind, name) DO UPDATE SET owner = excluded.owner",
            )
            .bind(tenant.as_str())
            .bind(&object.kind)
            .bind(&object.name)
            .bind(owner),
            None => query("DELETE FROM owners WHERE tenant = $1 AND kind = $2 AND name = $3")
                .bind(tenant.as_str())
                .bind(&object.kind)
                .bind(&object.name),
        };
        statement.execute(&mut *connection).await.map_err(failed("owners"))?;
    }
    Ok(())
}

/// Deletes the assignments and templates that a change deletes.
pub(super) async fn remove(
    connection: &mut PgConnection,
    tenant: &Tenant,
    change: &IntentChange,
) -> Result<(), EngineError> {
    for (statement, names) in [
        ("DELETE FROM assignments WHERE tenant = $1 AND name = ANY($2)", &change.removed_assignments),
        ("DELETE FROM templates WHERE tenant = $1 AND name = ANY($2)", &change.removed_templates),
    ] {
        if names.is_empty() {
            continue;
        }
        query(statement)
            .bind(tenant.as_str())
            .bind(names.iter().map(String::as_str).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await
            .map_err(failed("assignments and templates"))?;
    }
    Ok(())
}

/// Keeps what is remembered of a change.
pub(super) async fn remember(
    connection: &mut PgConnection,
    tenant: &Tenant,
    record: Option<ChangeRecord>,
) -> Result<(), EngineError> {
    let Some(ChangeRecord { revision, made, outcomes }) = record else { return Ok(()) };
    query("INSERT INTO changes (tenant, revision, at, author, message) VALUES ($1, $2, $3, $4, $5)")
        .bind(tenant.as_str())
        .bind(signed(revision.0))
        .bind(signed(made.at.0))
        .bind(made.author)
        .bind(made.message)
        .execute(&mut *connection)
        .await
        .map_err(failed("changes"))?;
    for (number, outcome) in (0_i32..).zip(&outcomes) {
        query(
            "INSERT INTO changed_objects (tenant, revision, number, kind, name, outcome) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(tenant.as_str())
        .bind(signed(revision.0))
        .bind(number)
        .bind(&outcome.kind)
        .bind(&outcome.name)
        .bind(to_json("changed_objects", outcome)?)
        .execute(&mut *connection)
        .await
        .map_err(failed("changed_objects"))?;
    }
    Ok(())
}

/// Changes, the last one first.
pub(super) async fn read(
    connection: &mut PgConnection,
    tenant: &Tenant,
    object: Option<&ObjectRef>,
    before: Option<IntentRevision>,
    most: usize,
) -> Result<Vec<ChangeRecord>, EngineError> {
    let found = query(
        "SELECT c.revision, c.at, c.author, c.message, o.outcome FROM (SELECT * FROM changes AS h \
         WHERE h.tenant = $1 AND ($2::int8 IS NULL OR h.revision < $2) AND ($3::text IS NULL OR EXISTS \
         (SELECT 1 FROM changed_objects AS p WHERE p.tenant = h.tenant AND p.revision = h.revision \
         AND p.kind = $3 AND p.name = $4)) ORDER BY h.revision DESC LIMIT $5) AS c \
         LEFT JOIN changed_objects AS o ON o.tenant = c.tenant AND o.revision = c.revision \
         ORDER BY c.revision DESC, o.number",
    )
    .bind(tenant.as_str())
    .bind(before.map(|before| signed(before.0)))
    .bind(object.map(|object| object.kind.as_str()))
    .bind(object.map(|object| object.name.as_str()))
    .bind(limit(most))
    .fetch_all(connection)
    .await
    .map_err(failed("changes"))?;
    let mut records: Vec<ChangeRecord> = Vec::new();
    for row in &found {
        let mut reading = Reading::new(row, "changes");
        let revision = IntentRevision(reading.unsigned("revision")?);
        if records.last().is_none_or(|last| last.revision != revision) {
            let made = Made {
                at: Timestamp(reading.unsigned("at")?),
                author: reading.get("author")?,
                message: reading.get("message")?,
            };
            records.push(ChangeRecord { revision, made, outcomes: Vec::new() });
        }
        reading = Reading::new(row, &format!("changed_objects, {tenant} revision {revision}"));
        let outcome = reading.get::<Option<&str>>("outcome")?;
        if let (Some(_), Some(last)) = (outcome, records.last_mut()) {
            last.outcomes.push(reading.json("outcome")?);
        }
    }
    Ok(records)
}
