//! The engines of a process: in memory and SQLite, or NATS, Redis and Postgres, as configured.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use muster_adapters::nats::{Nats, NatsOptions};
use muster_adapters::postgres::{PostgresOptions, PostgresStore};
use muster_adapters::redis::{RedisOptions, RedisOwnership, RedisTls};
use muster_adapters::sqlite::SqliteStore;
use muster_adapters_memory::{
    MemoryBlobs, MemoryBus, MemoryKeyValue, MemoryLog, MemoryOwnership, log::Limits,
};
use muster_api::Readiness;
use muster_domain::ids::Cell;
use muster_ports::blobs::{Blobs, MAX_BLOB};
use muster_ports::bus::Bus;
use muster_ports::credentials::CredentialStore;
use muster_ports::kv::KeyValue;
use muster_ports::log::Log;
use muster_ports::ownership::Ownership;
use muster_ports::polls::Polls;
use muster_ports::store::Store;
use muster_ports::{EngineError, LEASE_TTL};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::{BusType, Config, DatabaseType, OwnershipType, Secret};

/// How long a process waits at its start for an engine before it gives up.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Time between two attempts meanwhile.
const START_RETRY: Duration = Duration::from_secs(1);
/// The embedded store, in the data directory.
const STORE_FILE: &str = "muster.db";
/// Bytes of reports that may wait to be folded in the embedded log.
const LOG_CAPACITY: usize = 512 << 20;
/// Room for what surrounds an agent's message in the log.
const ENVELOPE_ROOM: usize = 4 << 10;

/// A part of the server that a process can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Role {
    /// Terminates agent connections.
    Gateway,
    /// Folds reports, decides, sends offers.
    Control,
    /// REST for people and services.
    Api,
}

impl Role {
    /// Its name, as `--roles` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Control => "control",
            Self::Api => "api",
        }
    }
}

/// A store with all that the server keeps.
pub trait ServerStore: Store + CredentialStore {}

impl<T: Store + CredentialStore> ServerStore for T {}

/// What the roles of a process work on.
pub struct Engines {
    /// Reports.
    pub log: Arc<dyn Log>,
    /// Reports and compiled bodies that are too large for the log and the bus.
    pub blobs: Arc<dyn Blobs>,
    /// Deliveries, requests, wake-ups.
    pub bus: Arc<dyn Bus>,
    /// Leases of gateways and controls.
    pub leases: Arc<dyn KeyValue>,
    /// Floors.
    pub values: Arc<dyn KeyValue>,
    /// Agents' credentials, as gateways read them.
    pub credentials: Arc<dyn KeyValue>,
    /// Who holds which agent.
    pub ownership: Arc<dyn Ownership>,
    /// The sessions of agents that poll, which nobody holds.
    pub polls: Arc<dyn Polls>,
    /// The truth; a process with only gateways has none.
    pub store: Option<Arc<dyn ServerStore>>,
    /// Whether the log ends with the process.
    pub log_is_embedded: bool,
    /// Whether the engines answer.
    pub readiness: Readiness,
}

/// What carries messages, with leases and floors.
type Transport =
    (Arc<dyn Log>, Arc<dyn Blobs>, Arc<dyn Bus>, Arc<dyn KeyValue>, Arc<dyn KeyValue>, Arc<dyn KeyValue>);

/// Opens the engines that these roles need, waiting for those that are not there yet.
///
/// # Errors
/// If an engine is not there after a minute, refuses, or cannot serve these roles; the text names it.
pub async fn open(
    config: &Config,
    data_dir: &Path,
    name: &str,
    roles: &BTreeSet<Role>,
) -> anyhow::Result<Engines> {
    check_roles(config, roles)?;
    if config.bus.kind == BusType::Nats && config.server.websocket.max_message_size > MAX_BLOB {
        bail!("server.websocket.max_message_size: bus.type nats carries {MAX_BLOB} bytes (128MiB) at most");
    }
    let cell: Cell = config.region.parse().context("region")?;
    let mut readiness = Readiness::default();

    let store = if roles.contains(&Role::Control) || roles.contains(&Role::Api) {
        let store = open_store(config, data_dir).await?;
        let asked = Arc::clone(&store);
        readiness = readiness.with("the store", move || {
            let store = Arc::clone(&asked);
            async move { store.ping().await }
        });
        Some(store)
    } else {
        None
    };

    let (ownership, polls): (Arc<dyn Ownership>, Arc<dyn Polls>) = match config.ownership.kind {
        OwnershipType::Memory => {
            let memory = Arc::new(MemoryOwnership::default());
            (Arc::clone(&memory) as _, memory)
        }
        OwnershipType::Redis => {
            let url = required(config.ownership.url.as_ref(), "ownership.url", "redis://redis:6379")?;
            let mut options = RedisOptions::new(url.split(','));
            let tls = &config.ownership.tls;
            options.tls = RedisTls { ca_file: tls.ca_file(), client_certificate: tls.client_certificate() };
            let redis = Arc::new(RedisOwnership::connect(options)?);
            wait_for("Redis", async || redis.ping().await).await?;
            let asked = Arc::clone(&redis);
            readiness = readiness.with("Redis", move || {
                let redis = Arc::clone(&asked);
                async move { redis.ping().await }
            });
            (Arc::clone(&redis) as _, redis)
        }
    };

    let log_is_embedded = config.bus.kind == BusType::Memory;
    let (log, blobs, bus, leases, values, credentials): Transport = match config.bus.kind {
        BusType::Memory => {
            // The log takes every message as it is, so that no report is ever a blob.
            let payload_bytes = config.server.websocket.max_message_size + ENVELOPE_ROOM;
            (
                Arc::new(MemoryLog::new(Limits { payload_bytes, total_bytes: LOG_CAPACITY })),
                Arc::new(MemoryBlobs::default()),
                Arc::new(MemoryBus::default()),
                Arc::new(MemoryKeyValue::new(Some(LEASE_TTL))),
                Arc::new(MemoryKeyValue::new(None)),
                Arc::new(MemoryKeyValue::new(None)),
            )
        }
        BusType::Nats => {
            let url = required(config.bus.url.as_ref(), "bus.url", "nats://nats:4222")?;
            // Only a role that folds may make the stream: it names the cluster whose it is.
            let cluster = match &store {
                Some(store) if roles.contains(&Role::Control) => Some(store.cluster().await?),
                _ => None,
            };
            let options = NatsOptions {
                replicas: config.bus.replicas,
                max_bytes: config.bus.max_bytes as u64,
                max_blob_bytes: config.bus.max_blob_bytes as u64,
                cluster,
                deadline: START_DEADLINE,
                name: name.to_owned(),
                root_certificates: config.bus.tls.ca_file(),
                client_certificate: config.bus.tls.client_certificate(),
                ..NatsOptions::new(url, cell)
            };
            let nats = Nats::connect(options).await.context("NATS (bus.url)")?;
            let asked = nats.clone();
            readiness = readiness.with("NATS", move || {
                let nats = asked.clone();
                async move { nats.flush().await }
            });
            (
                Arc::new(nats.log()),
                Arc::new(nats.blobs()),
                Arc::new(nats.bus()),
                Arc::new(nats.leases()),
                Arc::new(nats.kv()),
                Arc::new(nats.credentials()),
            )
        }
    };
    Ok(Engines {
        log,
        blobs,
        bus,
        leases,
        values,
        credentials,
        ownership,
        polls,
        store,
        log_is_embedded,
        readiness,
    })
}

/// Refuses roles apart from each other on engines that live in one process.
fn check_roles(config: &Config, roles: &BTreeSet<Role>) -> anyhow::Result<()> {
    if roles.len() == Role::value_variants().len() {
        return Ok(());
    }
    let embedded = [
        ("bus.type", "memory", "nats", config.bus.kind == BusType::Memory),
        ("ownership.type", "memory", "redis", config.ownership.kind == OwnershipType::Memory),
        ("database.type", "sqlite", "postgres", config.database.kind == DatabaseType::Sqlite),
    ];
    for (key, is, wanted, bad) in embedded {
        if bad && !(key == "database.type" && roles.iter().all(|role| *role == Role::Gateway)) {
            bail!("{key}: {is} serves one process with every role: set {wanted}, or leave --roles out");
        }
    }
    Ok(())
}

/// The store, its schema up to date.
///
/// # Errors
/// As [`open`].
pub async fn open_store(config: &Config, data_dir: &Path) -> anyhow::Result<Arc<dyn ServerStore>> {
    match config.database.kind {
        DatabaseType::Sqlite => {
            let store = SqliteStore::open(data_dir.join(STORE_FILE))
                .await
                .with_context(|| format!("the store in {} cannot be opened", data_dir.display()))?;
            info!(data_dir = %data_dir.display(), "opened the embedded store");
            Ok(Arc::new(store))
        }
        DatabaseType::Postgres => {
            let url = required(
                config.database.connection_string.as_ref(),
                "database.connection_string",
                "postgres://user:password@postgres:5432/muster",
            )?;
            let mut options = PostgresOptions::new(url);
            options.max_connections = config.database.max_open_conns;
            let store = wait_for("Postgres", async || {
                let store = PostgresStore::connect(options.clone()).await?;
                store.migrate().await?;
                Ok(store)
            });
            let store = store.await.context("database.connection_string")?;
            info!("opened the Postgres store");
            Ok(Arc::new(store))
        }
    }
}

fn required<'a>(value: Option<&'a Secret>, key: &str, example: &str) -> anyhow::Result<&'a str> {
    value.map(Secret::expose).with_context(|| format!("{key} is missing: for example {example}"))
}

/// Asks an engine until it answers; a refusal ends the wait.
async fn wait_for<T>(engine: &str, ask: impl AsyncFn() -> Result<T, EngineError>) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error @ EngineError::Corrupt { .. }) => return Err(error.into()),
            Err(error) if began.elapsed() >= START_DEADLINE => {
                let waited = began.elapsed().as_secs();
                return Err(error).with_context(|| format!("{engine} is not there after {waited} s"));
            }
            Err(error) => warn!(%error, "waiting for {engine}"),
        }
        tokio::time::sleep(START_RETRY).await;
    }
}
