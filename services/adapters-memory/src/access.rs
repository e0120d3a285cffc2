//! Tenants, tokens and the audit log of [`MemoryStore`].

use std::collections::BTreeMap;

use async_trait::async_trait;
use muster_domain::access::Role;
use muster_domain::audit::{self, Entry, Head, Record};
use muster_domain::ids::{Digest, Tenant, Timestamp, TokenId};
use muster_domain::tenant::{DEFAULT, Quotas, TenantRecord};
use muster_domain::token::{State, Token};
use muster_ports::EngineError;
use muster_ports::access::{
    AuditFilter, AuditPage, AuditStore, TenantError, TenantStore, TokenChoice, TokenError, TokenStore,
};

use crate::{MemoryStore, lock};

/// The tables of who may do what.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    tenants: BTreeMap<Tenant, TenantRecord>,
    tokens: BTreeMap<TokenId, Token>,
    audit: BTreeMap<Tenant, Vec<Record>>,
}

impl Default for Access {
    fn default() -> Self {
        let at = Timestamp(0);
        let record = |tenant| TenantRecord {
            tenant,
            quotas: Quotas::default(),
            revision: 1,
            created_at: at,
            updated_at: at,
            removed_at: None,
        };
        let tenants = DEFAULT.parse().ok().map(|tenant: Tenant| (tenant.clone(), record(tenant)));
        Self { tenants: tenants.into_iter().collect(), tokens: BTreeMap::new(), audit: BTreeMap::new() }
    }
}

impl Access {
    fn head(&self, tenant: &Tenant) -> Head {
        let last = self.audit.get(tenant).and_then(|records| records.last());
        last.map_or(Head::EMPTY, |last| Head { number: last.number, digest: last.digest })
    }

    /// Writes the next record of a tenant's chain.
    pub(crate) fn append(&mut self, tenant: &Tenant, entry: &Entry) {
        let record = audit::next(tenant, self.head(tenant), entry.clone());
        self.audit.entry(tenant.clone()).or_default().push(record);
    }

    fn live(&mut self, tenant: &Tenant) -> Result<&mut TenantRecord, TenantError> {
        let found = self.tenants.get_mut(tenant).filter(|record| record.is_live());
        found.ok_or_else(|| TenantError::None(tenant.clone()))
    }
}

fn json(quotas: &Quotas) -> String {
    serde_json::to_string(quotas).unwrap_or_default()
}

#[async_trait]
impl TokenStore for MemoryStore {
    async fn token(&self, digest: &Digest) -> Result<Option<(Token, TenantRecord)>, EngineError> {
        let access = &lock(&self.tables).access;
        let token = access.tokens.values().find(|token| token.digest == *digest);
        Ok(token.and_then(|token| Some((token.clone(), access.tenants.get(&token.tenant)?.clone()))))
    }

    async fn tokens(
        &self,
        tenant: &Tenant,
        before: Option<TokenId>,
        limit: usize,
    ) -> Result<Vec<Token>, EngineError> {
        let access = &lock(&self.tables).access;
        let of_tenant = access.tokens.values().rev().filter(|token| token.tenant == *tenant);
        let earlier = of_tenant.filter(|token| before.is_none_or(|before| token.id < before));
        Ok(earlier.take(limit).cloned().collect())
    }

    async fn create_token(&self, token: &Token, audit: &Entry, most: usize) -> Result<(), TokenError> {
        let access = &mut lock(&self.tables).access;
        if access.live(&token.tenant).is_err() {
            return Err(TokenError::NoTenant(token.tenant.clone()));
        }
        let is_live =
            |other: &&Token| other.tenant == token.tenant && other.state(token.created_at) == State::Live;
        let live = access.tokens.values().filter(is_live).count();
        if live >= most {
            return Err(TokenError::Full(live));
        }
        access.tokens.insert(token.id, token.clone());
        access.append(&token.tenant, audit);
        Ok(())
    }

    async fn create_first_token(&self, token: &Token, audit: &Entry) -> Result<bool, EngineError> {
        let access = &mut lock(&self.tables).access;
        if !access.tokens.is_empty() {
            return Ok(false);
        }
        access.tokens.insert(token.id, token.clone());
        access.append(&token.tenant, audit);
        Ok(true)
    }

    async fn revoke_tokens(
        &self,
        tenant: &Tenant,
        choice: &TokenChoice,
        roles: &[Role],
        at: Timestamp,
        audit: &Entry,
    ) -> Result<Vec<Token>, EngineError> {
        let access = &mut lock(&self.tables).access;
        let is_chosen = |token: &&mut Token| {
            let is_meant = match choice {
                TokenChoice::Id(id) => token.id == *id,
                TokenChoice::Account(account) => token.account == *account,
            };
            is_meant && roles.contains(&token.role) && token.tenant == *tenant && token.revoked_at.is_none()
        };
        let mut revoked = Vec::new();
        for token in access.tokens.values_mut().filter(is_chosen) {
            token.revoked_at = Some(at);
            revoked.push(token.clone());
        }
        if !revoked.is_empty() {
            access.append(tenant, audit);
        }
        Ok(revoked)
    }
}

#[async_trait]
impl AuditStore for MemoryStore {
    async fn audit(
        &self,
        tenant: &Tenant,
        filter: &AuditFilter,
        page: AuditPage,
        limit: usize,
    ) -> Result<Vec<Record>, EngineError> {
        let access = &lock(&self.tables).access;
        let records = access.audit.get(tenant).map(Vec::as_slice).unwrap_or_default();
        let taken = records.iter().filter(|record| filter.takes(&record.entry));
        Ok(match page {
            AuditPage::After(number) => {
                taken.filter(|record| record.number > number).take(limit).cloned().collect()
            }
            AuditPage::Before(number) => {
                taken.rev().filter(|record| record.number < number).take(limit).cloned().collect()
            }
        })
    }

    async fn audit_head(&self, tenant: &Tenant) -> Result<Head, EngineError> {
        Ok(lock(&self.tables).access.head(tenant))
    }

    async fn append_audit(&self, tenant: &Tenant, entry: &Entry) -> Result<(), EngineError> {
        lock(&self.tables).access.append(tenant, entry);
        Ok(())
    }
}

#[async_trait]
impl TenantStore for MemoryStore {
    async fn tenants(&self, after: Option<&Tenant>, limit: usize) -> Result<Vec<TenantRecord>, EngineError> {
        let access = &lock(&self.tables).access;
        let later = access.tenants.values().filter(|record| after.is_none_or(|after| record.tenant > *after));
        Ok(later.take(limit).cloned().collect())
    }

    async fn tenant(&self, tenant: &Tenant) -> Result<Option<TenantRecord>, EngineError> {
        Ok(lock(&self.tables).access.tenants.get(tenant).cloned())
    }

    async fn create_tenant(
        &self,
        tenant: &Tenant,
        quotas: &Quotas,
        now: Timestamp,
        audit: &Entry,
    ) -> Result<TenantRecord, TenantError> {
        let access = &mut lock(&self.tables).access;
        if access.tenants.contains_key(tenant) {
            return Err(TenantError::Taken(tenant.clone()));
        }
        let record = TenantRecord {
            tenant: tenant.clone(),
            quotas: *quotas,
            revision: 1,
            created_at: now,
            updated_at: now,
            removed_at: None,
        };
        access.tenants.insert(tenant.clone(), record.clone());
        access.append(tenant, &audit.clone().with_states(String::new(), json(quotas)));
        Ok(record)
    }

    async fn limit_tenant(
        &self,
        tenant: &Tenant,
        quotas: &Quotas,
        at_revision: Option<u64>,
        now: Timestamp,
        audit: &Entry,
    ) -> Result<TenantRecord, TenantError> {
        let access = &mut lock(&self.tables).access;
        let record = access.live(tenant)?;
        if at_revision.is_some_and(|revision| revision != record.revision) {
            return Err(TenantError::Moved(record.revision));
        }
        let before = std::mem::replace(&mut record.quotas, *quotas);
        record.revision += 1;
        record.updated_at = now;
        let record = record.clone();
        access.append(tenant, &audit.clone().with_states(json(&before), json(quotas)));
        Ok(record)
    }

    async fn remove_tenant(
        &self,
        tenant: &Tenant,
        now: Timestamp,
        audit: &Entry,
    ) -> Result<TenantRecord, TenantError> {
        let mut tables = lock(&self.tables);
        tables.access.live(tenant)?;
        match tables.connected(tenant) {
            0 => tables.forget(tenant),
            connected => return Err(TenantError::Connected(connected as u64)),
        }
        tables.access.tokens.retain(|_, token| token.tenant != *tenant);
        let record = tables.access.live(tenant)?;
        record.revision += 1;
        record.updated_at = now;
        record.removed_at = Some(now);
        let record = record.clone();
        tables.access.append(tenant, audit);
        Ok(record)
    }

    async fn count_agents(&self, tenant: &Tenant) -> Result<u64, EngineError> {
        Ok(lock(&self.tables).count(tenant) as u64)
    }
}
