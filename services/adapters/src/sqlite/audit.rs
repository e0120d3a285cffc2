//! The audit log: records are written by the transaction of what they are about.

use async_trait::async_trait;
use muster_domain::audit::{self, Entry, Head, Outcome, Record};
use muster_domain::ids::{Digest, Tenant, Timestamp};
use muster_ports::EngineError;
use muster_ports::access::{AuditFilter, AuditPage, AuditStore};
use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, query};

use super::SqliteStore;
use super::error::{corrupt, failed};
use super::rows::{Reading, limit, signed};

#[async_trait]
impl AuditStore for SqliteStore {
    async fn audit(
        &self,
        tenant: &Tenant,
        filter: &AuditFilter,
        page: AuditPage,
        rows: usize,
    ) -> Result<Vec<Record>, EngineError> {
        let (statement, number) = match page {
            AuditPage::After(number) => (select_audit!("number > $2", "ASC"), number),
            AuditPage::Before(number) => (select_audit!("number < $2", "DESC"), number),
        };
        let found = query(statement)
            .bind(tenant.as_str())
            .bind(i64::try_from(number).unwrap_or(i64::MAX))
            .bind(limit(rows))
            .bind(filter.actor.as_deref())
            .bind(filter.operation.as_deref())
            .bind(filter.outcome.map(Outcome::name))
            .bind(filter.since.map(|at| signed(at.0)))
            .bind(filter.until.map(|at| signed(at.0)));
        let found = found.fetch_all(&mut *self.reader().await?).await.map_err(failed("audit"))?;
        found.iter().map(record).collect()
    }

    async fn audit_head(&self, tenant: &Tenant) -> Result<Head, EngineError> {
        let found = query("SELECT number, digest FROM audit_heads WHERE tenant = $1").bind(tenant.as_str());
        let found = found.fetch_optional(&mut *self.reader().await?).await.map_err(failed("audit_heads"))?;
        found.as_ref().map_or(Ok(Head::EMPTY), head)
    }

    async fn append_audit(&self, tenant: &Tenant, entry: &Entry) -> Result<(), EngineError> {
        let mut transaction = self.begin_write().await?;
        append(&mut transaction, tenant, Some(entry)).await?;
        transaction.commit().await.map_err(failed("audit"))
    }
}

/// A page of records; where a filter is not given it takes all.
macro_rules! select_audit {
    ($from:literal, $order:literal) => {
        concat!(
            "SELECT number, at, actor, role, remote, operation, target, state_before, state_after, outcome, \
             previous, digest FROM audit WHERE tenant = $1 AND ",
            $from,
            " AND ($4 IS NULL OR actor = $4) AND ($5 IS NULL OR operation = $5) \
             AND ($6 IS NULL OR outcome = $6) AND ($7 IS NULL OR at >= $7) \
             AND ($8 IS NULL OR at < $8) ORDER BY number ",
            $order,
            " LIMIT $3"
        )
    };
}
use select_audit;

/// Writes a record as the next of the tenant's chain, within the transaction of what it is about. Only
/// one transaction writes at a time.
pub(super) async fn append(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    entry: Option<&Entry>,
) -> Result<(), EngineError> {
    let Some(entry) = entry else { return Ok(()) };
    let row = query(
        "INSERT INTO audit_heads (tenant, number, digest) VALUES ($1, 0, $2) \
         ON CONFLICT (tenant) DO UPDATE SET number = number RETURNING number, digest",
    )
    .bind(tenant.as_str())
    .bind(&Head::EMPTY.digest.0[..])
    .fetch_one(&mut *connection)
    .await
    .map_err(failed("audit_heads"))?;
    let Record { number, entry, previous, digest } = audit::next(tenant, head(&row)?, entry.clone());
    query(
        "INSERT INTO audit (tenant, number, at, actor, role, remote, operation, target, state_before, \
         state_after, outcome, previous, digest) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(tenant.as_str())
    .bind(signed(number))
    .bind(signed(entry.at.0))
    .bind(&entry.actor)
    .bind(entry.role.name())
    .bind(&entry.remote)
    .bind(&entry.operation)
    .bind(&entry.target)
    .bind(&entry.before)
    .bind(&entry.after)
    .bind(entry.outcome.name())
    .bind(&previous.0[..])
    .bind(&digest.0[..])
    .execute(&mut *connection)
    .await
    .map_err(failed("audit"))?;
    query("UPDATE audit_heads SET number = $2, digest = $3 WHERE tenant = $1")
        .bind(tenant.as_str())
        .bind(signed(number))
        .bind(&digest.0[..])
        .execute(connection)
        .await
        .map_err(failed("audit_heads"))?;
    Ok(())
}

fn digest(reading: &Reading<'_>, column: &'static str) -> Result<Digest, EngineError> {
    Digest::try_from(reading.get::<&[u8]>(column)?).map_err(|error| corrupt("audit", error))
}

fn head(row: &SqliteRow) -> Result<Head, EngineError> {
    let reading = Reading::new(row, "audit_heads");
    Ok(Head { number: reading.unsigned("number")?, digest: digest(&reading, "digest")? })
}

fn record(row: &SqliteRow) -> Result<Record, EngineError> {
    let reading = Reading::new(row, "audit");
    let (role, outcome): (String, String) = (reading.get("role")?, reading.get("outcome")?);
    let unknown = |name: &str| corrupt("audit", format_args!("{name:?} is not known to this version"));
    Ok(Record {
        number: reading.unsigned("number")?,
        entry: Entry {
            at: Timestamp(reading.unsigned("at")?),
            actor: reading.get("actor")?,
            role: role.parse().map_err(|_| unknown(&role))?,
            remote: reading.get("remote")?,
            operation: reading.get("operation")?,
            target: reading.get("target")?,
            before: reading.get("state_before")?,
            after: reading.get("state_after")?,
            outcome: Outcome::named(&outcome).ok_or_else(|| unknown(&outcome))?,
        },
        previous: digest(&reading, "previous")?,
        digest: digest(&reading, "digest")?,
    })
}
