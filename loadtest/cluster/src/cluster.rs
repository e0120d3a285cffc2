//! The cluster: engines and roles as processes, and how to break them.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use muster_testkit::Metrics;
use muster_testkit::engines::{Nats, NatsCluster, Postgres, Redis};
use serde_json::Value;
use tempfile::TempDir;

use crate::check::Apis;
use crate::process::{Process, Role};
use crate::tcp::{Balancer, Line};

/// What a cluster consists of.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The `muster` program.
    pub program: PathBuf,
    /// Gateways.
    pub gateways: usize,
    /// Controls.
    pub controls: usize,
    /// Apis.
    pub apis: usize,
    /// NATS servers: 1, or 3 that keep three copies.
    pub nats: usize,
    /// Whether Postgres waits for the disk.
    pub fsync: bool,
    /// Where the logs go; a directory that goes away with the cluster if there is none.
    pub logs: Option<PathBuf>,
}

impl ClusterOptions {
    /// The topology of docker-compose.yml.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), gateways: 3, controls: 2, apis: 2, nats: 3, fsync: true, logs: None }
    }
}

/// The NATS servers of a cluster.
#[derive(Debug)]
pub enum NatsServers {
    /// One, in no cluster.
    One(Box<Nats>),
    /// Several, that keep copies of what the others have.
    Many(NatsCluster),
}

impl NatsServers {
    /// Their addresses, separated by commas.
    pub fn url(&self) -> String {
        match self {
            Self::One(nats) => nats.url(),
            Self::Many(cluster) => cluster.url(),
        }
    }

    /// Every server.
    pub fn servers(&self) -> &[Nats] {
        match self {
            Self::One(nats) => std::slice::from_ref(nats.as_ref()),
            Self::Many(cluster) => cluster.servers(),
        }
    }

    /// Sum over the servers of a number that `/varz` has, such as `in_msgs`.
    ///
    /// # Errors
    /// If one does not answer.
    pub async fn sum(&self, key: &str) -> Result<f64> {
        let mut sum = 0.0;
        for server in self.servers() {
            let values: Value = server.monitor("/varz").await.map_err(anyhow::Error::msg)?;
            sum += values[key].as_f64().with_context(|| format!("/varz has no number {key}"))?;
        }
        Ok(sum)
    }
}

/// Engines and roles as processes of this machine. They end with this value; those of Muster first.
#[derive(Debug)]
pub struct Cluster {
    processes: Vec<Process>,
    balancer: Balancer,
    /// From the first gateway to Redis; the others have ways of their own.
    pub redis_line: Line,
    program: PathBuf,
    config: PathBuf,
    /// NATS.
    pub nats: NatsServers,
    /// Redis, which keeps nothing over restarts.
    pub redis: Redis,
    /// Postgres.
    pub postgres: Postgres,
    logs: PathBuf,
    temporary: Option<TempDir>,
}

impl Cluster {
    /// Starts everything and waits until it is ready. The roles start all at once, as they do
    /// everywhere else. Panics if an engine is not installed.
    ///
    /// # Errors
    /// If a process of Muster does not become ready.
    pub async fn start(options: &ClusterOptions) -> Result<Self> {
        let counts = [options.gateways, options.controls, options.apis];
        ensure!(counts.iter().all(|count| (1..=20).contains(count)), "each role needs 1 to 20 processes");
        let (logs, temporary) = match &options.logs {
            Some(logs) => (logs.clone(), None),
            None => {
                let directory = TempDir::new()?;
                (directory.path().to_owned(), Some(directory))
            }
        };
        std::fs::create_dir_all(&logs).with_context(|| format!("{} cannot be made", logs.display()))?;
        let nats = match options.nats {
            1 => NatsServers::One(Box::new(Nats::start().await)),
            3 | 5 => NatsServers::Many(NatsCluster::start(options.nats).await),
            other => bail!("NATS runs with 1, 3 or 5 servers, not {other}"),
        };
        let redis = Redis::start().await;
        let postgres = Postgres::builder();
        let postgres = if options.fsync { postgres } else { postgres.without_fsync() };
        let postgres = postgres.start().await;

        let redis_line = Line::start((Ipv4Addr::LOCALHOST, redis.port()).into()).await?;
        let line = format!("redis://{}", redis_line.address());
        let config_with = |redis: &str| config(&nats.url(), options.nats.min(3), redis, &postgres.url());
        let (config, config_of_first) = (config_with(&redis.url()), config_with(&line));
        let config_file = logs.join("muster.yaml");
        std::fs::write(&config_file, &config)?;
        let of = |role, count| (1..=count).map(move |number| (role, number));
        let all = of(Role::Control, options.controls)
            .chain(of(Role::Gateway, options.gateways))
            .chain(of(Role::Api, options.apis));
        let starting = all.map(|(role, number)| {
            let is_first = (role, number) == (Role::Gateway, 1);
            let config = if is_first { &config_of_first } else { &config };
            Process::start(&options.program, role, number, config, &logs)
        });
        let processes = try_join_all(starting).await?;
        let gateways = processes.iter().filter(|process| process.role == Role::Gateway);
        let balancer = Balancer::start(gateways.map(Process::agents).collect::<Result<_>>()?).await?;
        let (program, config) = (options.program.clone(), config_file);
        Ok(Self { processes, balancer, redis_line, program, config, nats, redis, postgres, logs, temporary })
    }

    /// Where agents connect: the balancer.
    pub fn opamp_url(&self) -> String {
        format!("ws://{}/v1/opamp", self.balancer.address())
    }

    /// The balancer.
    pub fn balancer(&self) -> &Balancer {
        &self.balancer
    }

    /// Runs a command of the program with the cluster's configuration, such as `resync`; what it prints.
    ///
    /// # Errors
    /// If it fails; the text has what it said.
    pub async fn command(&self, command: &str) -> Result<String> {
        let mut run = tokio::process::Command::new(&self.program);
        run.arg(command).arg("--config").arg(&self.config).kill_on_drop(true);
        let output =
            run.output().await.with_context(|| format!("{} does not run", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "muster {command}: {}\n{said}{errors}", output.status);
        Ok(said)
    }

    /// Every process of Muster.
    pub fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// The processes of one role.
    pub fn role(&self, role: Role) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(move |process| process.role == role)
    }

    /// One process, counted from 0; panics if there are fewer.
    pub fn process(&self, role: Role, number: usize) -> &Process {
        match self.role(role).nth(number) {
            Some(process) => process,
            None => panic!("there is no {} {number}", role.name()),
        }
    }

    /// One process, to break it; counted from 0; panics if there are fewer.
    pub fn process_mut(&mut self, role: Role, number: usize) -> &mut Process {
        match self.processes.iter_mut().filter(|process| process.role == role).nth(number) {
            Some(process) => process,
            None => panic!("there is no {} {number}", role.name()),
        }
    }

    /// The apis, of which any may answer.
    pub fn apis(&self) -> Apis {
        Apis::new(self.role(Role::Api).map(|process| process.api().clone()).collect())
    }

    /// Ends a process as a crash does.
    pub async fn kill9(&mut self, role: Role, number: usize) {
        self.process_mut(role, number).kill9().await;
    }

    /// Ends the processes of a role in order and starts them again, one after another.
    pub async fn rolling_restart(&mut self, role: Role) {
        for process in self.processes.iter_mut().filter(|process| process.role == role) {
            process.terminate().await;
            process.restart().await;
        }
    }

    /// The sum of a metric over the processes of a role that answer.
    pub async fn sum(&self, role: Role, name: &str) -> f64 {
        let all = self.metrics(role).await;
        all.iter().flatten().map(|metrics| metrics.sum(name)).sum()
    }

    /// The metrics of each process of a role; none where it does not answer.
    pub async fn metrics(&self, role: Role) -> Vec<Option<Metrics>> {
        futures_util::future::join_all(self.role(role).map(Process::metrics)).await
    }

    /// Starts again what was ended.
    pub async fn restart_ended(&mut self) {
        for process in self.processes.iter_mut().filter(|process| !process.is_running()) {
            process.restart().await;
        }
    }

    /// Ends everything at once, and leaves the logs where they are.
    pub fn keep_logs(mut self) -> Option<PathBuf> {
        let temporary = self.temporary.take().map(TempDir::keep);
        Some(temporary.unwrap_or_else(|| self.logs.clone()))
    }

    /// Where the logs are.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Ends every process of Muster in order: gateways, controls, apis. The engines end after that.
    pub async fn terminate(mut self) {
        for role in [Role::Gateway, Role::Control, Role::Api] {
            let running =
                self.processes.iter_mut().filter(|process| process.role == role && process.is_running());
            futures_util::future::join_all(running.map(Process::terminate)).await;
        }
    }
}

fn config(nats: &str, replicas: usize, redis: &str, postgres: &str) -> String {
    format!(
        "bus: {{type: nats, url: \"{nats}\", replicas: {replicas}, max_bytes: 1GiB}}
ownership: {{type: redis, url: \"{redis}\"}}
database: {{type: postgres, connection_string: \"{postgres}\", max_open_conns: 20}}
server: {{drain: 10s}}
telemetry: {{logs: {{level: info, format: json}}}}
"
    )
}

/// The `muster` program: the one given, or `MUSTER_BIN`, or the one beside this program.
///
/// # Errors
/// If there is none.
pub fn muster_program(given: Option<PathBuf>) -> Result<PathBuf> {
    let beside = || {
        let own = std::env::current_exe().ok()?;
        // Tests are in a directory below the programs.
        own.ancestors().skip(1).take(2).map(|directory| directory.join("muster")).find(|file| file.is_file())
    };
    let program = given.or_else(|| std::env::var_os("MUSTER_BIN").map(PathBuf::from)).or_else(beside);
    let program = program.context("there is no muster program: build it with `cargo build -p muster`")?;
    ensure!(program.is_file(), "{} is not there: build it with `cargo build -p muster`", program.display());
    Ok(program)
}
