//! Tenants and tokens.

use async_trait::async_trait;
use muster_domain::access::Role;
use muster_domain::audit::Entry;
use muster_domain::ids::{Digest, Tenant, Timestamp, TokenId};
use muster_domain::tenant::{Quotas, TenantRecord};
use muster_domain::token::Token;
use muster_ports::EngineError;
use muster_ports::access::{TenantError, TenantStore, TokenChoice, TokenError, TokenStore};
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, PgConnection, query};

use super::audit::append;
use super::error::{corrupt, failed};
use super::rows::{Reading, limit, signed, to_json};
use super::{PostgresStore, call, call_as_system, intent_lock};

/// Columns of a token, and of its tenant.
macro_rules! select_tokens {
    ($rest:literal) => {
        concat!(
            "SELECT t.id, t.tenant, t.account, t.role, t.digest, t.created_by, t.created_at, t.expires_at, \
             t.revoked_at FROM tokens AS t ",
            $rest
        )
    };
}

#[async_trait]
impl TokenStore for PostgresStore {
    async fn token(&self, digest: &Digest) -> Result<Option<(Token, TenantRecord)>, EngineError> {
        call_as_system!(self, |connection| find(connection, digest))
    }

    async fn tokens(
        &self,
        tenant: &Tenant,
        before: Option<TokenId>,
        rows: usize,
    ) -> Result<Vec<Token>, EngineError> {
        let found = query(select_tokens!(
            "WHERE t.tenant = $1 AND ($2::uuid IS NULL OR t.id < $2) ORDER BY t.id DESC LIMIT $3"
        ))
        .bind(tenant.as_str())
        .bind(before.map(|id| id.0))
        .bind(limit(rows));
        let found = call!(self, tenant, |connection| async {
            found.fetch_all(connection).await.map_err(failed("tokens"))
        })?;
        found.iter().map(token).collect()
    }

    async fn create_token(&self, token: &Token, audit: &Entry, most: usize) -> Result<(), TokenError> {
        call!(self, &token.tenant, |connection| create(connection, token, audit, most))
    }

    async fn create_first_token(&self, token: &Token, audit: &Entry) -> Result<bool, EngineError> {
        call_as_system!(self, |connection| create_first(connection, token, audit))
    }

    async fn revoke_tokens(
        &self,
        tenant: &Tenant,
        choice: &TokenChoice,
        roles: &[Role],
        at: Timestamp,
        audit: &Entry,
    ) -> Result<Vec<Token>, EngineError> {
        call!(self, tenant, |connection| revoke(connection, tenant, choice, roles, at, audit))
    }
}

async fn find(
    connection: &mut PgConnection,
    digest: &Digest,
) -> Result<Option<(Token, TenantRecord)>, EngineError> {
    let found = query(select_tokens!("WHERE t.digest = $1"))
        .bind(&digest.0[..])
        .fetch_optional(&mut *connection)
        .await
        .map_err(failed("tokens"))?;
    let Some(row) = found else { return Ok(None) };
    let token = token(&row)?;
    let tenant = read_tenant(connection, &token.tenant).await?;
    Ok(tenant.map(|tenant| (token, tenant)))
}

async fn create(
    connection: &mut PgConnection,
    token: &Token,
    audit: &Entry,
    most: usize,
) -> Result<(), TokenError> {
    let mut transaction = connection.begin().await.map_err(failed("a new transaction"))?;
    // The row of the tenant stands for its tokens: two that are made at once are counted one after the other.
    let locked = query("SELECT removed_at FROM tenants WHERE tenant = $1 FOR UPDATE")
        .bind(token.tenant.as_str())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed("tenants"))?;
    let is_live = match &locked {
        Some(row) => Reading::new(row, "tenants").get::<Option<i64>>("removed_at")?.is_none(),
        None => false,
    };
    if !is_live {
        return Err(TokenError::NoTenant(token.tenant.clone()));
    }
    let row = query(
        "SELECT count(*) AS live FROM tokens WHERE tenant = $1 AND revoked_at IS NULL AND expires_at > $2",
    )
    .bind(token.tenant.as_str())
    .bind(signed(token.created_at.0))
    .fetch_one(&mut *transaction)
    .await
    .map_err(failed("tokens"))?;
    let live = usize::try_from(Reading::new(&row, "tokens").unsigned("live")?).unwrap_or(usize::MAX);
    if live >= most {
        return Err(TokenError::Full(live));
    }
    insert(&mut transaction, token).await?;
    append(&mut transaction, &token.tenant, Some(audit)).await?;
    transaction.commit().await.map_err(failed("tokens"))?;
    Ok(())
}

async fn create_first(
    connection: &mut PgConnection,
    token: &Token,
    audit: &Entry,
) -> Result<bool, EngineError> {
    let mut transaction = connection.begin().await.map_err(failed("a new transaction"))?;
    // Whoever looks at the same time waits here, and then finds one.
    query("SELECT 1 FROM tenants WHERE tenant = $1 FOR UPDATE")
        .bind(token.tenant.as_str())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed("tenants"))?;
    let found = query("SELECT 1 FROM tokens LIMIT 1")
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed("tokens"))?;
    if found.is_some() {
        return Ok(false);
    }
    insert(&mut transaction, token).await?;
    append(&mut transaction, &token.tenant, Some(audit)).await?;
    transaction.commit().await.map_err(failed("tokens"))?;
    Ok(true)
}

async fn insert(connection: &mut PgConnection, token: &Token) -> Result<(), EngineError> {
    query(
        "INSERT INTO tokens (id, tenant, account, role, digest, created_by, created_at, expires_at, revoked_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(token.id.0)
    .bind(token.tenant.as_str())
    .bind(&token.account)
    .bind(token.role.name())
    .bind(&token.digest.0[..])
    .bind(&token.created_by)
    .bind(signed(token.created_at.0))
    .bind(signed(token.expires_at.0))
    .bind(token.revoked_at.map(|at| signed(at.0)))
    .execute(connection)
    .await
    .map_err(failed("tokens"))?;
    Ok(())
}

async fn revoke(
    connection: &mut PgConnection,
    tenant: &Tenant,
    choice: &TokenChoice,
    roles: &[Role],
    at: Timestamp,
    audit: &Entry,
) -> Result<Vec<Token>, EngineError> {
    let mut transaction = connection.begin().await.map_err(failed("a new transaction"))?;
    let (id, account) = match choice {
        TokenChoice::Id(id) => (Some(id.0), None),
        TokenChoice::Account(account) => (None, Some(account.as_str())),
    };
    let revoked = query(
        "UPDATE tokens AS t SET revoked_at = $4 WHERE t.tenant = $1 AND t.revoked_at IS NULL \
         AND (t.id = $2 OR t.account = $3) AND t.role = ANY($5) RETURNING t.id, t.tenant, t.account, t.role, t.digest, \
         t.created_by, t.created_at, t.expires_at, t.revoked_at",
    )
    .bind(tenant.as_str())
    .bind(id)
    .bind(account)
    .bind(signed(at.0))
    .bind(roles.iter().map(|role| role.name()).collect::<Vec<_>>())
    .fetch_all(&mut *transaction)
    .await
    .map_err(failed("tokens"))?;
    let mut revoked = revoked.iter().map(token).collect::<Result<Vec<_>, _>>()?;
    revoked.sort_by_key(|token| token.id);
    if !revoked.is_empty() {
        append(&mut transaction, tenant, Some(audit)).await?;
    }
    transaction.commit().await.map_err(failed("tokens"))?;
    Ok(revoked)
}

fn token(row: &PgRow) -> Result<Token, EngineError> {
    let reading = Reading::new(row, "tokens");
    let role: String = reading.get("role")?;
    Ok(Token {
        id: TokenId(reading.get("id")?),
        tenant: reading.parsed("tenant")?,
        account: reading.get("account")?,
        role: role.parse().map_err(|error| corrupt("tokens", error))?,
        digest: Digest::try_from(reading.get::<&[u8]>("digest")?)
            .map_err(|error| corrupt("tokens", error))?,
        created_by: reading.get("created_by")?,
        created_at: Timestamp(reading.unsigned("created_at")?),
        expires_at: Timestamp(reading.unsigned("expires_at")?),
        revoked_at: reading.get::<Option<i64>>("revoked_at")?.map(|at| Timestamp(at.cast_unsigned())),
    })
}

/// Columns of a tenant.
macro_rules! select_tenants {
    ($rest:literal) => {
        concat!("SELECT tenant, quotas, revision, created_at, updated_at, removed_at FROM tenants ", $rest)
    };
}

#[async_trait]
impl TenantStore for PostgresStore {
    async fn tenants(&self, after: Option<&Tenant>, rows: usize) -> Result<Vec<TenantRecord>, EngineError> {
        let found = query(select_tenants!("WHERE $1::text IS NULL OR tenant > $1 ORDER BY tenant LIMIT $2"))
            .bind(after.map(Tenant::as_str))
            .bind(limit(rows));
        let found = call_as_system!(self, |connection| async {
            found.fetch_all(connection).await.map_err(failed("tenants"))
        })?;
        found.iter().map(tenant_record).collect()
    }

    async fn tenant(&self, tenant: &Tenant) -> Result<Option<TenantRecord>, EngineError> {
        call_as_system!(self, |connection| read_tenant(connection, tenant))
    }

    async fn create_tenant(
        &self,
        tenant: &Tenant,
        quotas: &Quotas,
        now: Timestamp,
        audit: &Entry,
    ) -> Result<TenantRecord, TenantError> {
        call_as_system!(self, |connection| create_tenant(connection, tenant, quotas, now, audit))
    }

    async fn limit_tenant(
        &self,
        tenant: &Tenant,
        quotas: &Quotas,
        at_revision: Option<u64>,
        now: Timestamp,
        audit: &Entry,
    ) -> Result<TenantRecord, TenantError> {
        call_as_system!(self, |connection| limit_tenant(connection, tenant, quotas, at_revision, now, audit))
    }

    async fn remove_tenant(
        &self,
        tenant: &Tenant,
        now: Timestamp,
        audit: &Entry,
    ) -> Result<TenantRecord, TenantError> {
        call_as_system!(self, |connection| remove_tenant(connection, tenant, now, audit))
    }

    async fn count_agents(&self, tenant: &Tenant) -> Result<u64, EngineError> {
        let found =
            query("SELECT count(DISTINCT uid) AS agents FROM agents WHERE tenant = $1").bind(tenant.as_str());
        let row = call!(self, tenant, |connection| async {
            found.fetch_one(connection).await.map_err(failed("agents"))
        })?;
        Reading::new(&row, "agents").unsigned("agents")
    }
}

async fn read_tenant(
    connection: &mut PgConnection,
    tenant: &Tenant,
) -> Result<Option<TenantRecord>, EngineError> {
    let found = query(select_tenants!("WHERE tenant = $1"))
        .bind(tenant.as_str())
        .fetch_optional(connection)
        .await
        .map_err(failed("tenants"))?;
    found.as_ref().map(tenant_record).transpose()
}

/// The tenant, its row locked until the transaction ends.
async fn lock_tenant(connection: &mut PgConnection, tenant: &Tenant) -> Result<TenantRecord, TenantError> {
    let found = query(select_tenants!("WHERE tenant = $1 FOR UPDATE"))
        .bind(tenant.as_str())
        .fetch_optional(connection)
        .await
        .map_err(failed("tenants"))?;
    let record = found.as_ref().map(tenant_record).transpose()?;
    record.filter(TenantRecord::is_live).ok_or_else(|| TenantError::None(tenant.clone()))
}

async fn create_tenant(
    connection: &mut PgConnection,
    tenant: &Tenant,
    quotas: &Quotas,
    now: Timestamp,
    audit: &Entry,
) -> Result<TenantRecord, TenantError> {
    let mut transaction = connection.begin().await.map_err(failed("a new transaction"))?;
    let made = query(
        "INSERT INTO tenants (tenant, quotas, revision, created_at, updated_at) VALUES ($1, $2, 1, $3, $3) \
         ON CONFLICT DO NOTHING",
    )
    .bind(tenant.as_str())
    .bind(to_json("tenants", quotas)?)
    .bind(signed(now.0))
    .execute(&mut *transaction)
    .await
    .map_err(failed("tenants"))?;
    if made.rows_affected() == 0 {
        return Err(TenantError::Taken(tenant.clone()));
    }
    let audit = audit.clone().with_states(String::new(), to_json("tenants", quotas)?);
    append(&mut transaction, tenant, Some(&audit)).await?;
    transaction.commit().await.map_err(failed("tenants"))?;
    Ok(TenantRecord {
        tenant: tenant.clone(),
        quotas: *quotas,
        revision: 1,
        created_at: now,
        updated_at: now,
        removed_at: None,
    })
}

async fn limit_tenant(
    connection: &mut PgConnection,
    tenant: &Tenant,
    quotas: &Quotas,
    at_revision: Option<u64>,
    now: Timestamp,
    audit: &Entry,
) -> Result<TenantRecord, TenantError> {
    let mut transaction = connection.begin().await.map_err(failed("a new transaction"))?;
    let before = lock_tenant(&mut transaction, tenant).await?;
    if at_revision.is_some_and(|revision| revision != before.revision) {
        return Err(TenantError::Moved(before.revision));
    }
    let after =
        TenantRecord { quotas: *quotas, revision: before.revision + 1, updated_at: now, ..before.clone() };
    query("UPDATE tenants SET quotas = $2, revision = $3, updated_at = $4 WHERE tenant = $1")
        .bind(tenant.as_str())
        .bind(to_json("tenants", quotas)?)
        .bind(signed(after.revision))
        .bind(signed(now.0))
        .execute(&mut *transaction)
        .await
        .map_err(failed("tenants"))?;
    let (was, is) = (to_json("tenants", &before.quotas)?, to_json("tenants", quotas)?);
    append(&mut transaction, tenant, Some(&audit.clone().with_states(was, is))).await?;
    transaction.commit().await.map_err(failed("tenants"))?;
    Ok(after)
}

/// Everything of a tenant that goes with it. Its audit log stays, and the number of its intent and its floors:
/// what was decided before must not be taken for something newer.
const OF_A_TENANT: [&str; 17] = [
    "DELETE FROM agents WHERE tenant = $1",
    "DELETE FROM agent_states WHERE tenant = $1",
    "DELETE FROM sessions WHERE tenant = $1",
    "DELETE FROM effective_configs WHERE tenant = $1",
    "DELETE FROM components WHERE tenant = $1",
    "DELETE FROM labels WHERE tenant = $1",
    "DELETE FROM retries WHERE tenant = $1",
    "DELETE FROM commands WHERE tenant = $1",
    "DELETE FROM assignments WHERE tenant = $1",
    "DELETE FROM templates WHERE tenant = $1",
    "DELETE FROM tokens WHERE tenant = $1",
    "DELETE FROM changes WHERE tenant = $1",
    "DELETE FROM changed_objects WHERE tenant = $1",
    "DELETE FROM owners WHERE tenant = $1",
    // Gateways learn of what is revoked, not of what is not there any more.
    "UPDATE credential_progress SET revision = revision + (SELECT count(*) FROM agent_credentials WHERE tenant = $1)",
    "UPDATE agent_credentials AS c SET revoked_at = coalesce(c.revoked_at, c.created_at), revision = p.revision - r.n \
     FROM credential_progress AS p, (SELECT id, row_number() OVER (ORDER BY id DESC) - 1 AS n \
     FROM agent_credentials WHERE tenant = $1) AS r WHERE c.id = r.id",
    "DELETE FROM quarantine WHERE tenant = $1",
];

async fn remove_tenant(
    connection: &mut PgConnection,
    tenant: &Tenant,
    now: Timestamp,
    audit: &Entry,
) -> Result<TenantRecord, TenantError> {
    let mut transaction = connection.begin().await.map_err(failed("a new transaction"))?;
    // The rows of the partitions first, as every commit does: workers wait, and then begin anew.
    query("UPDATE partitions SET generation = generation + 1")
        .execute(&mut *transaction)
        .await
        .map_err(failed("partitions"))?;
    query("SELECT pg_advisory_xact_lock($1, $2)")
        .bind(super::INTENT_LOCKS)
        .bind(intent_lock(tenant))
        .execute(&mut *transaction)
        .await
        .map_err(failed("intents"))?;
    let before = lock_tenant(&mut transaction, tenant).await?;
    let row = query("SELECT count(*) AS live FROM sessions WHERE tenant = $1 AND ended_at IS NULL")
        .bind(tenant.as_str())
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed("sessions"))?;
    let connected = Reading::new(&row, "sessions").unsigned("live")?;
    if connected > 0 {
        return Err(TenantError::Connected(connected));
    }
    // What assignments gave may not be offered any more, whoever still holds it.
    query(
        "INSERT INTO floors (tenant, assignment, revision) SELECT a.tenant, a.name, i.revision + 1 \
         FROM assignments AS a JOIN intents AS i ON i.tenant = a.tenant WHERE a.tenant = $1 \
         ON CONFLICT (tenant, assignment) DO UPDATE SET revision = excluded.revision",
    )
    .bind(tenant.as_str())
    .execute(&mut *transaction)
    .await
    .map_err(failed("floors"))?;
    query("UPDATE intents SET revision = revision + 1 WHERE tenant = $1")
        .bind(tenant.as_str())
        .execute(&mut *transaction)
        .await
        .map_err(failed("intents"))?;
    for statement in OF_A_TENANT {
        query(statement).bind(tenant.as_str()).execute(&mut *transaction).await.map_err(failed("tenants"))?;
    }
    let after =
        TenantRecord { revision: before.revision + 1, updated_at: now, removed_at: Some(now), ..before };
    query("UPDATE tenants SET revision = $2, updated_at = $3, removed_at = $3 WHERE tenant = $1")
        .bind(tenant.as_str())
        .bind(signed(after.revision))
        .bind(signed(now.0))
        .execute(&mut *transaction)
        .await
        .map_err(failed("tenants"))?;
    append(&mut transaction, tenant, Some(audit)).await?;
    transaction.commit().await.map_err(failed("tenants"))?;
    Ok(after)
}

fn tenant_record(row: &PgRow) -> Result<TenantRecord, EngineError> {
    let reading = Reading::new(row, "tenants");
    Ok(TenantRecord {
        tenant: reading.parsed("tenant")?,
        quotas: reading.json("quotas")?,
        revision: reading.unsigned("revision")?,
        created_at: Timestamp(reading.unsigned("created_at")?),
        updated_at: Timestamp(reading.unsigned("updated_at")?),
        removed_at: reading.get::<Option<i64>>("removed_at")?.map(|at| Timestamp(at.cast_unsigned())),
    })
}
