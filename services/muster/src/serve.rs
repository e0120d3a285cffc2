//! `muster serve`: the roles of a process, started and stopped in order.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use futures_util::future::select_all;
use muster_api::{KeySettings, Readiness};
use muster_domain::budget::{Budget, Rate};
use muster_domain::ids::{Cell, Timestamp};
use muster_gateway::{Access, Ways};
use muster_ports::{Clock, Random, Spawner};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::{Auth, AuthType, Budgets, Config};
use crate::engines::{self, Role, ServerStore};
use crate::tls::Listeners;
use crate::{first_token, people};

/// Tenant of agents and requests without a credential.
const TENANT: &str = "default";
/// How long each role may take to stop, the gateway's drain apart.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// What a process is.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its name, unique in the cell: its gateway's and its control's.
    pub name: String,
    /// What it runs.
    pub roles: BTreeSet<Role>,
}

impl Process {
    /// A process that runs every role.
    pub fn embedded() -> Self {
        Self { name: "embedded".to_owned(), roles: BTreeSet::from([Role::Gateway, Role::Control, Role::Api]) }
    }
}

/// The server while it runs.
pub struct Server {
    /// Where agents connect, if the process has a gateway.
    pub agents: Option<SocketAddr>,
    /// Where the API, or health and readiness, are.
    pub http: SocketAddr,
    /// Where metrics are.
    pub metrics: SocketAddr,
    readiness: Readiness,
    /// In the order in which they stop.
    running: Vec<Running>,
}

/// One role's task.
struct Running {
    name: &'static str,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
    deadline: Duration,
}

impl Running {
    fn spawn<F>(name: &'static str, deadline: Duration, role: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = tokio::spawn(role(stop.clone()));
        Self { name, stop, task, deadline }
    }

    /// Stops the role and waits for it.
    async fn end(self) {
        self.stop.cancel();
        match tokio::time::timeout(self.deadline, self.task).await {
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

/// Bits of the generator of the thread that asks, which the system seeds.
pub fn system_random() -> Random {
    Random::new(rand::random)
}

/// Runs tasks on the runtime of the thread that asks.
pub fn tokio_spawner() -> Spawner {
    Spawner::new(|task| drop(tokio::spawn(task)))
}

/// Serves until SIGINT or SIGTERM, then stops in order.
///
/// # Errors
/// If the server cannot start, or a role ends by itself.
pub async fn until_signal(config: &Config, data_dir: &Path, process: &Process) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be received")?;
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be received")?;
    let mut server = tokio::select! {
        server = Server::start(config, data_dir, process) => server?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
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
    /// Starts the process's roles. When this returns, they serve.
    ///
    /// # Errors
    /// If an address is taken or an engine cannot be had; the text names which and what to do.
    pub async fn start(config: &Config, data_dir: &Path, process: &Process) -> anyhow::Result<Self> {
        for warning in &config.warnings {
            warn!("{warning}");
        }
        let has = |role| process.roles.contains(&role);
        let cell: Cell = config.region.parse().context("region")?;
        let agents = match has(Role::Gateway) {
            true => Some(bind("server.websocket.endpoint", config.server.websocket.endpoint).await?),
            false => None,
        };
        let http = bind("server.http.endpoint", config.server.http.endpoint).await?;
        let metrics = bind("telemetry.metrics.endpoint", config.telemetry.metrics.endpoint).await?;
        let agents_at = agents.as_ref().map(TcpListener::local_addr).transpose()?;
        let (http_at, metrics_at) = (http.local_addr()?, metrics.local_addr()?);
        let registry = Registry::new();
        let tls = Listeners::load(config, &registry).await?;
        let agents = agents.map(|listener| tls.agents(listener)).transpose()?;
        let (http, metrics) = (tls.people(http)?, tls.metrics(metrics)?);
        let engines = engines::open(config, data_dir, &process.name, &process.roles).await?;
        if config.server.allow_insecure {
            warn!("server.allow_insecure is set: whoever reaches the listeners may do everything");
        } else {
            info!(
                "no authentication: serving on loopback only; whoever is on this machine is admin of tenant {TENANT}"
            );
        }

        let clock = system_clock();
        let mut running = Vec::new();
        if let Some(listener) = agents {
            let name = process.name.parse().context("--name")?;
            let settings = muster_gateway::Settings {
                max_connections: config.server.websocket.max_connections,
                max_connections_per_tenant: config.server.limits.max_connections_per_tenant,
                connection_rate: config.server.limits.connection_rate(),
                max_message_size: config.server.websocket.max_message_size,
                max_sent_message_size: config.server.websocket.max_sent_message_size,
                max_agents_per_connection: config.server.websocket.max_agents_per_connection,
                agent_silent_after: config.server.websocket.agent_silent_after,
                budgets: budgets(&config.server.budgets),
                path: config.server.websocket.path.clone(),
                max_answer_size: config.server.polling.max_answer_size,
                body_timeout: config.server.polling.body_timeout,
                access: access(config, &engines),
                drain: config.server.drain,
                ..muster_gateway::Settings::new(cell.clone(), name)
            };
            let engines = muster_gateway::Engines {
                log: Arc::clone(&engines.log),
                blobs: Arc::clone(&engines.blobs),
                ownership: Arc::clone(&engines.ownership),
                polls: Arc::clone(&engines.polls),
                bus: Arc::clone(&engines.bus),
                leases: Arc::clone(&engines.leases),
                values: Arc::clone(&engines.values),
                clock: clock.clone(),
                random: system_random(),
                spawner: tokio_spawner(),
            };
            let metrics = muster_gateway::Metrics::register(&registry, cell.as_str())?;
            running.push(Running::spawn("gateway", config.server.drain + STOP_DEADLINE, async |stop| {
                Ok(muster_gateway::run(settings, engines, metrics, listener, stop).await?)
            }));
        }
        if let Some(store) = engines.store.as_ref().filter(|_| has(Role::Control)) {
            let settings = muster_control::Settings {
                fold_last_words: engines.log_is_embedded,
                poll_deadline: config.server.polling.deadline,
                ..muster_control::Settings::new(cell.clone(), &process.name)
            };
            let engines = muster_control::Engines {
                log: Arc::clone(&engines.log),
                blobs: Arc::clone(&engines.blobs),
                bus: Arc::clone(&engines.bus),
                leases: Arc::clone(&engines.leases),
                values: Arc::clone(&engines.values),
                polls: Arc::clone(&engines.polls),
                fold: as_fold(store),
                components: as_components(store),
                intent: as_intent(store),
                rollouts: as_rollouts(store),
                fleet: as_fleet(store),
                commands: as_commands(store),
                clock: clock.clone(),
                random: system_random(),
                spawner: tokio_spawner(),
            };
            let metrics = muster_control::Metrics::register(&registry)?;
            running.push(Running::spawn("control", STOP_DEADLINE, async |stop| {
                Ok(muster_control::run(settings, engines, metrics, stop).await?)
            }));
        }
        if let Some(store) = engines.store.as_ref().filter(|_| has(Role::Control)) {
            let keeper = muster_control::Keeper {
                cell: cell.clone(),
                store: Arc::clone(store) as _,
                bucket: Arc::clone(&engines.credentials),
                bus: Arc::clone(&engines.bus),
                clock: clock.clone(),
            };
            running.push(Running::spawn("keeper", STOP_DEADLINE, async |stop| Ok(keeper.run(stop).await?)));
        }
        let readiness = engines.readiness.clone();
        let router = match engines.store.as_ref().filter(|_| has(Role::Api)) {
            Some(store) => {
                if config.auth.is_required_of_api() {
                    first_token::offer(store.as_ref(), clock()).await?;
                }
                let settings = muster_api::Settings {
                    cell,
                    tenant: TENANT.parse().context("tenant")?,
                    rules: rules(&config.auth),
                    keys: keys(config),
                    approval_required: config.policies.config_update.approval_required,
                    channels: BTreeSet::new(),
                };
                let engines = muster_api::Engines {
                    intent: as_intent(store),
                    fleet: as_fleet(store),
                    components: as_components(store),
                    commands: as_commands(store),
                    access: Arc::clone(store) as _,
                    people: people::of(&config.oidc)?.map(Arc::new),
                    rollouts: as_rollouts(store),
                    ownership: Arc::clone(&engines.ownership),
                    bus: Arc::clone(&engines.bus),
                    credentials: Arc::clone(store) as _,
                    clock,
                    random: system_random(),
                };
                muster_api::router(settings, engines, readiness.clone(), registry.clone())
            }
            None => muster_api::system_router(readiness.clone(), registry.clone()),
        };
        running.push(Running::spawn("api", STOP_DEADLINE, async |stop| {
            Ok(muster_api::serve("API", router, http, stop).await?)
        }));
        running.push(Running::spawn("metrics", STOP_DEADLINE, async |stop| {
            Ok(muster_api::serve("metrics", muster_api::metrics_router(registry), metrics, stop).await?)
        }));
        if let Some(tls) = tls.tls {
            running.push(Running::spawn("tls", STOP_DEADLINE, async |stop| {
                // A role that ends before it is told to has failed.
                tls.keep(stop).await;
                Ok(())
            }));
        }
        Ok(Self { agents: agents_at, http: http_at, metrics: metrics_at, readiness, running })
    }

    /// Waits until a role ends by itself, which none should.
    pub async fn failed(&mut self) -> anyhow::Error {
        let tasks = self.running.iter_mut().map(|running| &mut running.task);
        let (result, index, _) = select_all(tasks).await;
        let name = self.running[index].name;
        match result {
            Ok(Ok(())) => anyhow!("role {name} stopped by itself"),
            Ok(Err(error)) => error.context(format!("role {name} failed")),
            Err(error) => anyhow!(error).context(format!("role {name} was lost")),
        }
    }

    /// Is no longer ready, closes connections, folds what they left, then stops the rest.
    pub async fn stop(self) {
        self.readiness.stop();
        for running in self.running.into_iter().filter(|running| !running.task.is_finished()) {
            running.end().await;
        }
        info!("stopped");
    }
}

fn rules(auth: &Auth) -> muster_api::Rules {
    muster_api::Rules {
        is_required: auth.is_required_of_api(),
        agent_prefix: auth.api_key.prefix.clone(),
        allowed_networks: auth.api.allowed_networks.clone(),
        trusted_proxies: auth.api.trusted_proxies.clone(),
        cors_origins: auth.api.cors_origins.clone(),
        requests: auth.api.requests(),
        failures: auth.api.failures(),
    }
}

/// How agents show who they are.
fn access(config: &Config, engines: &engines::Engines) -> Access {
    let auth = &config.auth;
    if auth.kind == [AuthType::None] {
        return Access::default();
    }
    Access::checked(Ways {
        anonymous: auth.takes(AuthType::None),
        api_key: auth.takes(AuthType::ApiKey),
        basic: auth.takes(AuthType::Basic),
        key_prefix: auth.api_key.prefix.clone(),
        rotation_warning: auth.api_key.rotation_warning,
        failures: Rate { per_second: auth.failures_per_second, burst: auth.failures_per_second * 10 },
        credentials: Arc::clone(&engines.credentials),
    })
}

fn keys(config: &Config) -> KeySettings {
    let keys = &config.auth.api_key;
    KeySettings {
        prefix: keys.prefix.clone(),
        length: keys.length,
        expiration: keys.expiration,
        rotation_warning: keys.rotation_warning,
    }
}

fn budgets(config: &Budgets) -> muster_gateway::Budgets {
    let (agent, tenant) = (&config.agent, &config.tenant);
    let budget = |messages: (u64, u64), bytes: (usize, usize)| Budget {
        messages: Rate { per_second: messages.0, burst: messages.1 },
        bytes: Rate { per_second: bytes.0 as u64, burst: bytes.1 as u64 },
    };
    muster_gateway::Budgets {
        agent: budget(
            (agent.messages_per_second, agent.messages_burst),
            (agent.bytes_per_second, agent.bytes_burst),
        ),
        tenant: budget(
            (tenant.messages_per_second, tenant.messages_burst),
            (tenant.bytes_per_second, tenant.bytes_burst),
        ),
    }
}

fn as_fold(store: &Arc<dyn ServerStore>) -> Arc<dyn muster_ports::store::FoldStore> {
    Arc::clone(store) as _
}

fn as_intent(store: &Arc<dyn ServerStore>) -> Arc<dyn muster_ports::store::IntentStore> {
    Arc::clone(store) as _
}

fn as_fleet(store: &Arc<dyn ServerStore>) -> Arc<dyn muster_ports::store::FleetStore> {
    Arc::clone(store) as _
}

fn as_components(store: &Arc<dyn ServerStore>) -> Arc<dyn muster_ports::store::ComponentStore> {
    Arc::clone(store) as _
}

fn as_rollouts(store: &Arc<dyn ServerStore>) -> Arc<dyn muster_ports::rollouts::RolloutStore> {
    Arc::clone(store) as _
}

fn as_commands(store: &Arc<dyn ServerStore>) -> Arc<dyn muster_ports::store::CommandStore> {
    Arc::clone(store) as _
}

async fn bind(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: is another server running there? ({key})"))
}
