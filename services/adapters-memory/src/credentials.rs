//! Agents' credentials in one process.

use async_trait::async_trait;
use muster_domain::audit::Entry;
use muster_domain::credential::Credential;
use muster_domain::ids::{Digest, Tenant};
use muster_ports::EngineError;
use muster_ports::credentials::{AddError, CredentialStore, Progress};
use std::collections::BTreeMap;
use std::sync::Mutex;
use uuid::Uuid;

use crate::lock;

/// Credentials that are lost with the process. It keeps no audit log.
#[derive(Debug, Default)]
pub struct MemoryCredentials {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    progress: Progress,
    rows: BTreeMap<Uuid, Credential>,
}

#[async_trait]
impl CredentialStore for MemoryCredentials {
    async fn add_credential(&self, new: &Credential, most: usize, _audit: &Entry) -> Result<u64, AddError> {
        let mut table = lock(&self.table);
        let there = table.rows.values().filter(|row| row.tenant == new.tenant).count();
        if there >= most {
            return Err(AddError::Full(there));
        }
        if table.rows.values().any(|row| row.id == new.id || row.digest == new.digest) {
            return Err(AddError::Exists);
        }
        table.progress.revision += 1;
        let revision = table.progress.revision;
        table.rows.insert(new.id, Credential { revision, ..new.clone() });
        Ok(revision)
    }

    async fn change_credential(
        &self,
        changed: &Credential,
        _audit: Option<&Entry>,
    ) -> Result<Option<u64>, EngineError> {
        let mut table = lock(&self.table);
        let revision = table.progress.revision + 1;
        let Some(row) = table.rows.get_mut(&changed.id) else { return Ok(None) };
        if row.tenant != changed.tenant || row.revision != changed.revision {
            return Ok(None);
        }
        row.name.clone_from(&changed.name);
        row.uids.clone_from(&changed.uids);
        row.expires_at = changed.expires_at;
        row.revoked_at = changed.revoked_at;
        row.revision = revision;
        table.progress.revision = revision;
        Ok(Some(revision))
    }

    async fn credential(&self, tenant: &Tenant, id: Uuid) -> Result<Option<Credential>, EngineError> {
        Ok(lock(&self.table).rows.get(&id).filter(|row| row.tenant == *tenant).cloned())
    }

    async fn credential_of(&self, digest: &Digest) -> Result<Option<Credential>, EngineError> {
        Ok(lock(&self.table).rows.values().find(|row| row.digest == *digest).cloned())
    }

    async fn credentials(
        &self,
        tenant: &Tenant,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Credential>, EngineError> {
        let table = lock(&self.table);
        let rows = table.rows.values().filter(|row| row.tenant == *tenant);
        let rows = rows.filter(|row| after.is_none_or(|after| row.id > after));
        Ok(rows.take(limit).cloned().collect())
    }

    async fn credentials_since(&self, revision: u64, limit: usize) -> Result<Vec<Credential>, EngineError> {
        let table = lock(&self.table);
        let mut rows: Vec<_> = table.rows.values().filter(|row| row.revision > revision).cloned().collect();
        rows.sort_by_key(|row| row.revision);
        rows.truncate(limit);
        Ok(rows)
    }

    async fn credential_progress(&self) -> Result<Progress, EngineError> {
        Ok(lock(&self.table).progress)
    }

    async fn lift_credentials(&self, to: Progress) -> Result<(), EngineError> {
        let mut table = lock(&self.table);
        table.progress.generation = table.progress.generation.max(to.generation);
        table.progress.revision = table.progress.revision.max(to.revision);
        Ok(())
    }
}
