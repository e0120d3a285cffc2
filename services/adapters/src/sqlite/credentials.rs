//! Agents' credentials.

use std::collections::BTreeSet;

use async_trait::async_trait;
use muster_domain::audit::Entry;
use muster_domain::credential::{Credential, Kind};
use muster_domain::ids::{Digest, InstanceUid, Tenant, Timestamp};
use muster_ports::EngineError;
use muster_ports::credentials::{AddError, CredentialStore, Progress};
use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, query};
use uuid::Uuid;

use super::SqliteStore;
use super::audit::append;
use super::error::{corrupt, failed};
use super::rows::{Reading, limit, signed, to_json};

const TABLE: &str = "agent_credentials";

/// Reads whole credentials, with the rest of the statement saying which.
macro_rules! select_credentials {
    ($rest:literal) => {
        concat!(
            "SELECT id, tenant, kind, digest, name, hint, uids, created_at, created_by, expires_at, revoked_at, \
             revision FROM agent_credentials ",
            $rest
        )
    };
}

#[async_trait]
impl CredentialStore for SqliteStore {
    async fn add_credential(&self, new: &Credential, most: usize, audit: &Entry) -> Result<u64, AddError> {
        let mut transaction = self.begin_write().await?;
        let revision = next_revision(&mut transaction).await?;
        let row = query("SELECT count(*) AS number FROM agent_credentials WHERE tenant = $1")
            .bind(new.tenant.as_str())
            .fetch_one(&mut *transaction)
            .await
            .map_err(failed(TABLE))?;
        let there = usize::try_from(Reading::new(&row, TABLE).unsigned("number")?).unwrap_or(usize::MAX);
        if there >= most {
            return Err(AddError::Full(there));
        }
        let done = query(
            "INSERT INTO agent_credentials (id, tenant, kind, digest, name, hint, uids, created_at, created_by, \
             expires_at, revoked_at, revision) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
             ON CONFLICT DO NOTHING",
        )
        .bind(new.id)
        .bind(new.tenant.as_str())
        .bind(new.kind.name())
        .bind(new.digest.0.to_vec())
        .bind(&new.name)
        .bind(&new.hint)
        .bind(new.uids.as_ref().map(|uids| to_json(TABLE, uids)).transpose()?)
        .bind(signed(new.created_at.0))
        .bind(&new.created_by)
        .bind(new.expires_at.map(|at| signed(at.0)))
        .bind(new.revoked_at.map(|at| signed(at.0)))
        .bind(signed(revision))
        .execute(&mut *transaction)
        .await
        .map_err(failed(TABLE))?;
        if done.rows_affected() == 0 {
            return Err(AddError::Exists);
        }
        append(&mut transaction, &new.tenant, Some(audit)).await?;
        transaction.commit().await.map_err(failed(TABLE))?;
        Ok(revision)
    }

    async fn change_credential(
        &self,
        changed: &Credential,
        audit: Option<&Entry>,
    ) -> Result<Option<u64>, EngineError> {
        let mut transaction = self.begin_write().await?;
        let revision = next_revision(&mut transaction).await?;
        let done = query(
            "UPDATE agent_credentials SET name = $4, uids = $5, expires_at = $6, revoked_at = $7, revision = $8 \
             WHERE tenant = $1 AND id = $2 AND revision = $3",
        )
        .bind(changed.tenant.as_str())
        .bind(changed.id)
        .bind(signed(changed.revision))
        .bind(&changed.name)
        .bind(changed.uids.as_ref().map(|uids| to_json(TABLE, uids)).transpose()?)
        .bind(changed.expires_at.map(|at| signed(at.0)))
        .bind(changed.revoked_at.map(|at| signed(at.0)))
        .bind(signed(revision))
        .execute(&mut *transaction)
        .await
        .map_err(failed(TABLE))?;
        if done.rows_affected() == 0 {
            return Ok(None);
        }
        append(&mut transaction, &changed.tenant, audit).await?;
        transaction.commit().await.map_err(failed(TABLE))?;
        Ok(Some(revision))
    }

    async fn credential(&self, tenant: &Tenant, id: Uuid) -> Result<Option<Credential>, EngineError> {
        let found = query(select_credentials!("WHERE tenant = $1 AND id = $2"))
            .bind(tenant.as_str())
            .bind(id)
            .fetch_optional(&mut *self.reader().await?)
            .await
            .map_err(failed(TABLE))?;
        found.as_ref().map(credential).transpose()
    }

    async fn credential_of(&self, digest: &Digest) -> Result<Option<Credential>, EngineError> {
        let found = query(select_credentials!("WHERE digest = $1"))
            .bind(digest.0.to_vec())
            .fetch_optional(&mut *self.reader().await?)
            .await
            .map_err(failed(TABLE))?;
        found.as_ref().map(credential).transpose()
    }

    async fn credentials(
        &self,
        tenant: &Tenant,
        after: Option<Uuid>,
        rows: usize,
    ) -> Result<Vec<Credential>, EngineError> {
        let found = query(select_credentials!("WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3"))
            .bind(tenant.as_str())
            .bind(after.unwrap_or_default())
            .bind(limit(rows))
            .fetch_all(&mut *self.reader().await?)
            .await
            .map_err(failed(TABLE))?;
        found.iter().map(credential).collect()
    }

    async fn credentials_since(&self, revision: u64, rows: usize) -> Result<Vec<Credential>, EngineError> {
        let found = query(select_credentials!("WHERE revision > $1 ORDER BY revision LIMIT $2"))
            .bind(signed(revision))
            .bind(limit(rows))
            .fetch_all(&mut *self.reader().await?)
            .await
            .map_err(failed(TABLE))?;
        found.iter().map(credential).collect()
    }

    async fn credential_progress(&self) -> Result<Progress, EngineError> {
        let row = query("SELECT generation, revision FROM credential_progress")
            .fetch_one(&mut *self.reader().await?)
            .await
            .map_err(failed(TABLE))?;
        let reading = Reading::new(&row, "credential_progress");
        Ok(Progress { generation: reading.unsigned("generation")?, revision: reading.unsigned("revision")? })
    }

    async fn lift_credentials(&self, to: Progress) -> Result<(), EngineError> {
        let mut transaction = self.begin_write().await?;
        query(
            "UPDATE credential_progress SET generation = max(generation, $1), revision = max(revision, $2)",
        )
        .bind(signed(to.generation))
        .bind(signed(to.revision))
        .execute(&mut *transaction)
        .await
        .map_err(failed(TABLE))?;
        transaction.commit().await.map_err(failed(TABLE))?;
        Ok(())
    }
}

/// Moves the row that all changes move.
async fn next_revision(connection: &mut SqliteConnection) -> Result<u64, EngineError> {
    let row = query("UPDATE credential_progress SET revision = revision + 1 RETURNING revision")
        .fetch_one(connection)
        .await
        .map_err(failed(TABLE))?;
    Reading::new(&row, "credential_progress").unsigned("revision")
}

fn credential(row: &SqliteRow) -> Result<Credential, EngineError> {
    let reading = Reading::new(row, TABLE);
    let kind: String = reading.get("kind")?;
    let digest: Vec<u8> = reading.get("digest")?;
    let uids = reading.get::<Option<String>>("uids")?;
    let uids: Option<BTreeSet<InstanceUid>> =
        uids.map(|uids| serde_json::from_str(&uids)).transpose().map_err(|error| corrupt(TABLE, error))?;
    let time = |column| Ok(reading.get::<Option<i64>>(column)?.map(|at| Timestamp(at.cast_unsigned())));
    Ok(Credential {
        tenant: reading.parsed("tenant")?,
        id: reading.get("id")?,
        kind: Kind::named(&kind)
            .ok_or_else(|| corrupt(TABLE, format_args!("{kind:?} is no kind that this version knows")))?,
        digest: Digest::try_from(digest.as_slice()).map_err(|error| corrupt(TABLE, error))?,
        name: reading.get("name")?,
        hint: reading.get("hint")?,
        uids,
        created_at: Timestamp(reading.unsigned("created_at")?),
        created_by: reading.get("created_by")?,
        expires_at: time("expires_at")?,
        revoked_at: time("revoked_at")?,
        revision: reading.unsigned("revision")?,
    })
}
