//! The store in Postgres, for a cluster.
//!
//! Commits of one partition are one after the other by the partition's row, which each moves first.
//! Between commits and changes of intent stands an advisory lock for each tenant, shared among commits
//! and exclusive to a change: it is granted in the order in which it was asked for, so that a stream of
//! commits does not hold a change up, and it writes nothing, as a lock on the row of the tenant would.

mod access;
mod audit;
mod changes;
mod commands;
mod components;
mod credentials;
mod error;
mod fleet;
mod fold;
mod intent;
mod migrate;
mod recovery;
mod rollouts;
mod rows;
mod selector;
mod write;

use std::fmt;
use std::str::FromStr as _;
use std::time::Duration;

use muster_domain::ids::{Digest, Tenant};
use muster_ports::EngineError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres, query};
use tokio::time::error::Elapsed;

use error::{corrupt, failed, unavailable};
use rows::Reading;

/// Oldest major version of the server that is taken.
const OLDEST_SERVER: i32 = 13;
/// A connection that was idle for this long is tried before it is used, so that calls do not fail for
/// a server that was restarted meanwhile.
const TRY_AFTER: Duration = Duration::from_secs(1);
/// First half of the keys of advisory locks on tenants' intents.
const INTENT_LOCKS: i32 = i32::from_be_bytes(*b"mstr");

/// Which database, and how it is used.
#[derive(Clone)]
pub struct PostgresOptions {
    /// Address of the database, `postgres://USER:PASSWORD@HOST:PORT/DATABASE`. Never printed.
    pub url: String,
    /// Most connections of this process; 20 by default.
    pub max_connections: u32,
    /// Longest wait of a call for a connection; 5 s by default.
    pub acquire_timeout: Duration,
    /// Longest that the server works on one statement; 10 s by default. A call takes twice as long at
    /// most, and then fails.
    pub statement_timeout: Duration,
    /// What the server shows of this process in `pg_stat_activity`; `muster` by default.
    pub application_name: String,
}

impl PostgresOptions {
    /// The database with this address, used as by default.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            max_connections: 20,
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(10),
            application_name: "muster".to_owned(),
        }
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("max_connections", &self.max_connections)
            .field("acquire_timeout", &self.acquire_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("application_name", &self.application_name)
            .finish_non_exhaustive()
    }
}

/// The store in a database.
pub struct PostgresStore {
    pool: PgPool,
    /// For connections beside the pool.
    database: PgConnectOptions,
    /// Longest that a call takes once it has a connection.
    patience: Duration,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("database", &place(&self.database)).finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Connects to the database. Its schema is left as it is: see [`migrate`](Self::migrate). A pooler in
    /// between must leave each connection its session: not PgBouncer's modes `transaction` and `statement`.
    ///
    /// # Errors
    /// The address is not well formed, the server does not let this process in within the time to wait
    /// for a connection, or it is too old or its database is not in UTF-8.
    pub async fn connect(options: PostgresOptions) -> Result<Self, EngineError> {
        let database = PgConnectOptions::from_str(&options.url)
            .map_err(|error| unavailable(format_args!("the address of the database is wrong: {error}")))?
            .application_name(&options.application_name)
            .disable_statement_logging();
        let millis = options.statement_timeout.as_millis().max(1).to_string();
        let limits = [
            ("statement_timeout", millis.as_str()),
            // A process that stops in the middle of a commit does not hold its partition for ever.
            ("idle_in_transaction_session_timeout", millis.as_str()),
        ];
        check(&database, options.acquire_timeout).await?;
        let pool = PgPoolOptions::new()
            .max_connections(options.max_connections)
            .acquire_timeout(options.acquire_timeout)
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    if meta.idle_for > TRY_AFTER {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(database.clone().options(limits));
        Ok(Self { pool, database, patience: options.statement_timeout * 2 })
    }

    /// Closes the connections, after what they are doing.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A connection for one call.
    async fn lease(&self) -> Result<Lease, EngineError> {
        let connection = self.pool.acquire().await.map_err(failed("a connection"))?;
        Ok(Lease { connection, patience: self.patience, is_ended: false })
    }
}

/// A connection for one call. It is closed, and not used again, if the call is broken off: it may be
/// the connection that does not answer.
struct Lease {
    connection: PoolConnection<Postgres>,
    patience: Duration,
    is_ended: bool,
}

impl Lease {
    /// What the call on this connection came to.
    fn end<T, E: From<EngineError>>(mut self, outcome: Result<Result<T, E>, Elapsed>) -> Result<T, E> {
        self.is_ended = outcome.is_ok();
        outcome.unwrap_or_else(|_| {
            Err(unavailable(format_args!("it did not answer within {:?}", self.patience)).into())
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.is_ended {
            self.connection.close_on_drop();
        }
    }
}

/// Runs a call, written as `work(&mut PgConnection, ..)`, on a connection of the store; with a tenant where it
/// is about one alone.
macro_rules! call {
    ($store:expr, $tenant:expr, |$connection:ident| $work:expr) => {{
        let _: &Tenant = $tenant;
        call!($store, |$connection| $work)
    }};
    ($store:expr, |$connection:ident| $work:expr) => {{
        let mut lease = $store.lease().await?;
        let patience = lease.patience;
        let $connection: &mut sqlx::PgConnection = &mut lease.connection;
        let outcome = tokio::time::timeout(patience, $work).await;
        lease.end(outcome)
    }};
}
use call;

/// Runs a call that is about tenants, or whose tenant is not known yet.
macro_rules! call_as_system {
    ($store:expr, |$connection:ident| $work:expr) => {
        call!($store, |$connection| $work)
    };
}
use call_as_system;

/// Which database this is, for people.
fn place(database: &PgConnectOptions) -> String {
    let name = database.get_database().unwrap_or_else(|| database.get_username());
    format!("{}:{}/{name}", database.get_host(), database.get_port())
}

/// A connection beside the pool.
async fn connect(database: &PgConnectOptions, patience: Duration) -> Result<PgConnection, EngineError> {
    let place = place(database);
    match tokio::time::timeout(patience, database.connect()).await {
        Ok(connected) => connected.map_err(failed(&place)),
        Err(_) => Err(unavailable(format_args!("{place}: it did not answer within {patience:?}"))),
    }
}

/// Checks that the server is one that this program can work with.
async fn check(database: &PgConnectOptions, patience: Duration) -> Result<(), EngineError> {
    let place = place(database);
    let mut connection = connect(database, patience).await?;
    let (version, encoding) = tokio::time::timeout(patience, facts(&mut connection, &place))
        .await
        .map_err(|_| unavailable(format_args!("{place}: it did not answer within {patience:?}")))??;
    drop(connection);
    if version / 10_000 < OLDEST_SERVER {
        return Err(corrupt(
            &place,
            format_args!("its version is {}: use {OLDEST_SERVER} or later", version / 10_000),
        ));
    }
    if encoding != "UTF8" {
        return Err(corrupt(
            &place,
            format_args!("its encoding is {encoding}: make the database with ENCODING 'UTF8'"),
        ));
    }
    Ok(())
}

async fn facts(connection: &mut PgConnection, place: &str) -> Result<(i32, String), EngineError> {
    let facts = "SELECT current_setting('server_version_num')::int4 AS version, \
                 current_setting('server_encoding') AS encoding";
    let row = query(facts).fetch_one(connection).await.map_err(failed(place))?;
    let reading = Reading::new(&row, place);
    Ok((reading.get("version")?, reading.get("encoding")?))
}

/// Second half of the key of the advisory lock on a tenant's intent. Two tenants may share one: then
/// they wait for each other, and that is all.
fn intent_lock(tenant: &Tenant) -> i32 {
    let Digest(bytes) = Digest::of_parts([tenant.as_str().as_bytes()]);
    i32::from_be_bytes(bytes.first_chunk().copied().unwrap_or_default())
}
