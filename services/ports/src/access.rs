//! Who may do what, as the store keeps it: tenants, tokens, the audit log.
//!
//! Every change of them writes its record of the audit log in its own transaction: both are there, or none.

use async_trait::async_trait;
use muster_domain::access::Role;
use muster_domain::audit::{Entry, Head, Outcome, Record};
use muster_domain::ids::{Digest, Tenant, Timestamp, TokenId};
use muster_domain::tenant::{Quotas, TenantRecord};
use muster_domain::token::Token;

use crate::EngineError;

/// Why a token was not written.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The tenant is not there, or was removed.
    #[error("there is no tenant {0}")]
    NoTenant(Tenant),
    /// The tenant has as many tokens as it may.
    #[error("the tenant has {0} tokens")]
    Full(usize),
    /// The engine did not do it; the token may have been written all the same.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Tokens of an account or of one id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenChoice {
    /// The token with this id.
    Id(TokenId),
    /// Every token of this account.
    Account(String),
}

/// API tokens, stored as digests.
#[async_trait]
pub trait TokenStore: Send + Sync {
    /// The token with this digest, in whatever state, and its tenant. A token that was made or revoked by a
    /// call that was answered is seen so.
    async fn token(&self, digest: &Digest) -> Result<Option<(Token, TenantRecord)>, EngineError>;

    /// Tokens of a tenant, the latest first, from before `before`.
    async fn tokens(
        &self,
        tenant: &Tenant,
        before: Option<TokenId>,
        limit: usize,
    ) -> Result<Vec<Token>, EngineError>;

    /// Stores a token. Refused if the tenant has `most` of them that are neither revoked nor expired.
    async fn create_token(&self, token: &Token, audit: &Entry, most: usize) -> Result<(), TokenError>;

    /// Stores a token if the store has never had any, of whatever tenant. Returns whether it did: of several
    /// callers at once, one does.
    async fn create_first_token(&self, token: &Token, audit: &Entry) -> Result<bool, EngineError>;

    /// Revokes those of a tenant's tokens that are chosen, have one of these roles and are not revoked yet;
    /// returns them. With none there is no record in the audit log.
    async fn revoke_tokens(
        &self,
        tenant: &Tenant,
        choice: &TokenChoice,
        roles: &[Role],
        at: Timestamp,
        audit: &Entry,
    ) -> Result<Vec<Token>, EngineError>;
}

/// Which records of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditFilter {
    /// Of this actor.
    pub actor: Option<String>,
    /// Of this operation.
    pub operation: Option<String>,
    /// With this outcome.
    pub outcome: Option<Outcome>,
    /// From this time on.
    pub since: Option<Timestamp>,
    /// Before this time.
    pub until: Option<Timestamp>,
}

impl AuditFilter {
    /// Whether it takes a record.
    pub fn takes(&self, entry: &Entry) -> bool {
        self.actor.as_ref().is_none_or(|actor| *actor == entry.actor)
            && self.operation.as_ref().is_none_or(|operation| *operation == entry.operation)
            && self.outcome.is_none_or(|outcome| outcome == entry.outcome)
            && self.since.is_none_or(|since| since <= entry.at)
            && self.until.is_none_or(|until| entry.at < until)
    }
}

/// In which order records are read, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditPage {
    /// Upwards from the record after this number; from the first with zero.
    After(u64),
    /// Downwards from the record before this number; from the last with `u64::MAX`.
    Before(u64),
}

/// The audit log. Nothing of it is ever changed or removed.
#[async_trait]
pub trait AuditStore: Send + Sync {
    /// A page of a tenant's records.
    async fn audit(
        &self,
        tenant: &Tenant,
        filter: &AuditFilter,
        page: AuditPage,
        limit: usize,
    ) -> Result<Vec<Record>, EngineError>;

    /// The last record of a tenant's chain.
    async fn audit_head(&self, tenant: &Tenant) -> Result<Head, EngineError>;

    /// Writes a record of something that changed nothing else, such as a denial.
    async fn append_audit(&self, tenant: &Tenant, entry: &Entry) -> Result<(), EngineError>;
}

/// Why a tenant was not changed.
#[derive(Debug, thiserror::Error)]
pub enum TenantError {
    /// It is not there, or was removed.
    #[error("there is no tenant {0}")]
    None(Tenant),
    /// One of that name is there already, or was and is removed.
    #[error("there is, or was, a tenant {0}")]
    Taken(Tenant),
    /// It is not at the revision that the change was made for.
    #[error("the tenant is at revision {0}")]
    Moved(u64),
    /// Agents of it are connected.
    #[error("{0} agents of it are connected")]
    Connected(u64),
    /// The engine did not do it; it may have been done all the same.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Tenants. The tenant `default` is always there.
#[async_trait]
pub trait TenantStore: Send + Sync {
    /// Tenants by name, from after `after`; those that were removed among them.
    async fn tenants(&self, after: Option<&Tenant>, limit: usize) -> Result<Vec<TenantRecord>, EngineError>;

    /// A tenant, also one that was removed.
    async fn tenant(&self, tenant: &Tenant) -> Result<Option<TenantRecord>, EngineError>;

    /// Makes a tenant.
    async fn create_tenant(
        &self,
        tenant: &Tenant,
        quotas: &Quotas,
        now: Timestamp,
        audit: &Entry,
    ) -> Result<TenantRecord, TenantError>;

    /// Changes what a tenant may use, if it is at this revision (any, where none is given).
    async fn limit_tenant(
        &self,
        tenant: &Tenant,
        quotas: &Quotas,
        at_revision: Option<u64>,
        now: Timestamp,
        audit: &Entry,
    ) -> Result<TenantRecord, TenantError>;

    /// Removes a tenant without connected agents, and everything of it but its audit log, the number of its
    /// intent and its floors. Workers that held anything of it in memory begin anew: every partition row
    /// moves.
    async fn remove_tenant(
        &self,
        tenant: &Tenant,
        now: Timestamp,
        audit: &Entry,
    ) -> Result<TenantRecord, TenantError>;

    /// How many agents of a tenant are stored.
    async fn count_agents(&self, tenant: &Tenant) -> Result<u64, EngineError>;
}

/// All that the store keeps of who may do what.
pub trait AccessStore: TokenStore + AuditStore + TenantStore {}

impl<T: TokenStore + AuditStore + TenantStore> AccessStore for T {}
