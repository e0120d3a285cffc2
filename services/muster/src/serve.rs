//! `muster serve`: every role in one process, on embedded parts.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use muster_adapters::sqlite::SqliteStore;
use muster_adapters_memory::{MemoryBus, MemoryKeyValue, MemoryLog, MemoryOwnership};
use muster_domain::ids::{Cell, GatewayId, Timestamp};
use muster_ports::bus::Bus;
use muster_ports::kv::KeyValue;
use muster_ports::log::Log;
use muster_ports::ownership::Ownership;
use muster_ports::{Clock, LEASE_TTL};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::Config;

/// Name of the one gateway and the one control of an embedded server.
const NAME: &str = "embedded";
/// Tenant of agents and requests without a credential.
const TENANT: &str = "default";
/// The embedded store, in the data directory.
const STORE_FILE: &str = "muster.db";
/// Bytes of reports that may wait to be folded.
const LOG_CAPACITY: usize = 512 << 20;
/// Room for what surrounds an agent's message in the log.
const ENVELOPE_ROOM: usize = 4 << 10;
/// How long each role may take to stop, the gateway's drain apart.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// The server while it runs.
pub struct Server {
    /// Where agents connect.
    pub agents: SocketAddr,
    /// Where the API is.
    pub http: SocketAddr,
    /// Where metrics are.
    pub metrics: SocketAddr,
    drain: Duration,
    gateway: Role,
    control: Role,
    api: Role,
    metrics_server: Role,
}

/// One role's task.
struct Role {
    name: &'static str,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Role {
    fn spawn<F>(name: &'static str, role: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = tokio::spawn(role(stop.clone()));
        Self { name, stop, task }
    }

    /// Stops the role and waits for it.
    async fn end(self, deadline: Duration) {
        self.stop.cancel();
        match tokio::time::timeout(deadline, self.task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => error!(role = self.name, error = format!("{error:#}"), "a role failed"),
            Ok(Err(error)) => error!(role = self.name, %error, "a role's task was lost"),
            Err(_) => warn!(role = self.name, "a role did not stop in time"),
        }
    }
}

/// The time of the system.
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    })
}

/// Serves until SIGINT or SIGTERM, then stops in order.
///
/// # Errors
/// If the server cannot start, or a role ends by itself.
pub async fn until_signal(config: &Config, data_dir: &Path) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be received")?;
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be received")?;
    let mut server = Server::start(config, data_dir).await?;
    let failed = tokio::select! {
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
        error = server.failed() => Some(error),
    };
    info!("stopping");
    server.stop().await;
    failed.map_or(Ok(()), Err)
}

impl Server {
    /// Starts every role. When this returns, agents can connect.
    ///
    /// # Errors
    /// If an address is taken or the store cannot be opened; the text names which and what to do.
    pub async fn start(config: &Config, data_dir: &Path) -> anyhow::Result<Self> {
        for warning in &config.warnings {
            warn!("{warning}");
        }
        let cell: Cell = config.region.parse().context("region")?;
        let agents = bind("server.websocket.endpoint", config.server.websocket.endpoint).await?;
        let http = bind("server.http.endpoint", config.server.http.endpoint).await?;
        let metrics = bind("telemetry.metrics.endpoint", config.telemetry.metrics.endpoint).await?;
        let store = SqliteStore::open(data_dir.join(STORE_FILE))
            .await
            .with_context(|| format!("the store in {} cannot be opened", data_dir.display()))?;
        let store = Arc::new(store);
        info!(data_dir = %data_dir.display(), "opened the embedded store");
        if config.server.allow_insecure {
            warn!("server.allow_insecure is set: whoever reaches the listeners may do everything");
        } else {
            info!(
                "no authentication: serving on loopback only; whoever is on this machine is admin of tenant {TENANT}"
            );
        }

        let registry = Registry::new();
        let clock = system_clock();
        let max_message_size = config.server.websocket.max_message_size;
        let log: Arc<dyn Log> = Arc::new(MemoryLog::new(muster_adapters_memory::log::Limits {
            payload_bytes: max_message_size + ENVELOPE_ROOM,
            total_bytes: LOG_CAPACITY,
        }));
        let ownership: Arc<dyn Ownership> = Arc::new(MemoryOwnership::default());
        let bus: Arc<dyn Bus> = Arc::new(MemoryBus::default());
        let leases: Arc<dyn KeyValue> = Arc::new(MemoryKeyValue::new(Some(LEASE_TTL)));

        let (agents_at, http_at, metrics_at) =
            (agents.local_addr()?, http.local_addr()?, metrics.local_addr()?);
        let control = {
            let settings = muster_control::Settings {
                fold_last_words: true,
                ..muster_control::Settings::new(cell.clone(), NAME)
            };
            let engines = muster_control::Engines {
                log: Arc::clone(&log),
                bus: Arc::clone(&bus),
                leases: Arc::clone(&leases),
                fold: store.clone(),
                intent: store.clone(),
                clock: clock.clone(),
            };
            let metrics = muster_control::Metrics::register(&registry)?;
            Role::spawn("control", async |stop| {
                Ok(muster_control::run(settings, engines, metrics, stop).await?)
            })
        };
        let gateway = {
            let name: GatewayId = NAME.parse().context("gateway")?;
            let settings = muster_gateway::Settings {
                max_connections: config.server.websocket.max_connections,
                max_message_size,
                drain: config.server.drain,
                ..muster_gateway::Settings::new(cell.clone(), name)
            };
            let engines = muster_gateway::Engines {
                log: Arc::clone(&log),
                ownership: Arc::clone(&ownership),
                bus: Arc::clone(&bus),
                leases: Arc::clone(&leases),
                clock: clock.clone(),
            };
            let metrics = muster_gateway::Metrics::register(&registry, cell.as_str())?;
            Role::spawn("gateway", async |stop| {
                Ok(muster_gateway::run(settings, engines, metrics, agents, stop).await?)
            })
        };
        let api = {
            let settings = muster_api::Settings { cell, tenant: TENANT.parse().context("tenant")? };
            let engines = muster_api::Engines {
                intent: store.clone(),
                fleet: store,
                ownership,
                bus,
                clock,
                metrics: registry.clone(),
            };
            let router = muster_api::router(settings, engines);
            Role::spawn("api", async |stop| Ok(muster_api::serve("API", router, http, stop).await?))
        };
        let metrics_server = Role::spawn("metrics", async |stop| {
            Ok(muster_api::serve("metrics", muster_api::metrics_router(registry), metrics, stop).await?)
        });
        let drain = config.server.drain;
        let (agents, http, metrics) = (agents_at, http_at, metrics_at);
        Ok(Self { agents, http, metrics, drain, gateway, control, api, metrics_server })
    }

    /// Waits until a role ends by itself, which none should.
    pub async fn failed(&mut self) -> anyhow::Error {
        let roles = [&mut self.gateway, &mut self.control, &mut self.api, &mut self.metrics_server];
        let [gateway, control, api, metrics] = roles.map(|role| (role.name, &mut role.task));
        let (name, result) = tokio::select! {
            result = gateway.1 => (gateway.0, result),
            result = control.1 => (control.0, result),
            result = api.1 => (api.0, result),
            result = metrics.1 => (metrics.0, result),
        };
        match result {
            Ok(Ok(())) => anyhow!("role {name} stopped by itself"),
            Ok(Err(error)) => error.context(format!("role {name} failed")),
            Err(error) => anyhow!(error).context(format!("role {name} was lost")),
        }
    }

    /// Closes connections, folds what they left, then stops the rest.
    pub async fn stop(self) {
        self.gateway.end(self.drain + STOP_DEADLINE).await;
        self.control.end(STOP_DEADLINE).await;
        self.api.end(STOP_DEADLINE).await;
        self.metrics_server.end(STOP_DEADLINE).await;
        info!("stopped");
    }
}

async fn bind(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: is another server running there? ({key})"))
}
