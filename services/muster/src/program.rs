//! The command line of the program: servers and client commands in one tree.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use muster_domain::ids::{Cell, check_name};

use crate::cli::{ClientCommand, GlobalOptions};
use crate::config::Config;
use crate::engines::Role;
use crate::serve::Process;
use crate::{cli, demo, engines, first_token, serve, telemetry};

/// Control plane for fleets of telemetry agents that speak OpAMP.
#[derive(Debug, Parser)]
#[command(name = "muster", version, propagate_version = true)]
struct Program {
    #[command(flatten)]
    global: GlobalOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server: every role in one process on embedded parts, or some roles of a cluster.
    Serve(ServeArgs),
    /// Bring the store's schema up to date, and end.
    Migrate(MigrateArgs),
    /// Put the store in front of what was decided before, after it was restored from a backup, and end.
    Resync(MigrateArgs),
    /// Make another token of role system in the store itself, for who has lost theirs, and end.
    RecoverToken(MigrateArgs),
    /// Run the server with a simulated fleet and an example configuration, to look around.
    Demo(DemoArgs),
    #[command(flatten)]
    Client(ClientCommand),
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Configuration file (YAML). Every key can be overridden by an environment variable.
    #[arg(long, env = "MUSTER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the embedded store.
    #[arg(long, env = "MUSTER_DATA_DIR", value_name = "DIR", default_value = "./muster-data")]
    data_dir: PathBuf,
    /// What this process runs: gateway, control, api. By default all of them.
    #[arg(long, env = "MUSTER_ROLES", value_name = "ROLE", value_delimiter = ',')]
    roles: Vec<Role>,
    /// Name of this process, unique in its region; the host's name by default.
    #[arg(long, env = "MUSTER_NAME", value_name = "NAME")]
    name: Option<String>,
    /// Least level that is logged: error, warn, info, debug, trace, or a filter such as
    /// `info,muster_gateway=debug`. Overrides telemetry.logs.level.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Debug, Args)]
struct MigrateArgs {
    /// Configuration file (YAML).
    #[arg(long, env = "MUSTER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the embedded store.
    #[arg(long, env = "MUSTER_DATA_DIR", value_name = "DIR", default_value = "./muster-data")]
    data_dir: PathBuf,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Configuration file (YAML).
    #[arg(long, env = "MUSTER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the embedded store.
    #[arg(long, env = "MUSTER_DATA_DIR", value_name = "DIR", default_value = "./muster-data/demo")]
    data_dir: PathBuf,
    /// Simulated agents.
    #[arg(long, value_name = "N", default_value_t = 25)]
    agents: usize,
    /// Least level that is logged.
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log_level: String,
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let program = match Program::from_arg_matches(&cli::with_roles(Program::command()).get_matches()) {
        Ok(program) => program,
        Err(error) => error.exit(),
    };
    let result = match program.command {
        Command::Serve(args) => run_server(&args),
        Command::Migrate(args) => run_migrate(&args),
        Command::Resync(args) => run_resync(&args),
        Command::RecoverToken(args) => run_recover_token(&args),
        Command::Demo(args) => run_demo(&args),
        Command::Client(command) => return run_client(command, &program.global),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("muster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_server(args: &ServeArgs) -> anyhow::Result<()> {
    let config = load(args.config.as_deref())?;
    let process = process(args)?;
    let roles: Vec<_> = process.roles.iter().map(|role| role.name()).collect();
    let _telemetry = telemetry::init_as(&roles.join(","), &config, args.log_level.as_deref())?;
    runtime()?.block_on(serve::until_signal(&config, &args.data_dir, &process))
}

/// The process's name and roles. A process of every role needs no name.
fn process(args: &ServeArgs) -> anyhow::Result<Process> {
    let mut process = Process::embedded();
    if !args.roles.is_empty() {
        process.roles = args.roles.iter().copied().collect();
        let host = hostname::get().context("the host has no name: give one with --name")?;
        process.name = host.to_string_lossy().to_lowercase();
    }
    if let Some(name) = &args.name {
        process.name = name.clone();
    }
    check_name("--name", &process.name)?;
    Ok(process)
}

fn run_migrate(args: &MigrateArgs) -> anyhow::Result<()> {
    let config = load(args.config.as_deref())?;
    let _telemetry = telemetry::init(&config, None)?;
    runtime()?.block_on(engines::open_store(&config, &args.data_dir))?;
    println!("the schema is up to date");
    Ok(())
}

fn run_resync(args: &MigrateArgs) -> anyhow::Result<()> {
    let config = load(args.config.as_deref())?;
    let _telemetry = telemetry::init(&config, None)?;
    let cell: Cell = config.region.parse().context("region")?;
    let lifted = runtime()?.block_on(async {
        let store = engines::open_store(&config, &args.data_dir).await?;
        store.resync(&cell).await.context("the store was not changed")
    })?;
    for (tenant, revision) in lifted {
        println!("tenant {tenant}: the intent is at revision {}", revision.0);
    }
    println!("region {cell}: every partition begins a new epoch; agents are asked for full state");
    Ok(())
}

fn run_recover_token(args: &MigrateArgs) -> anyhow::Result<()> {
    let config = load(args.config.as_deref())?;
    let _telemetry = telemetry::init(&config, None)?;
    runtime()?.block_on(async {
        let store = engines::open_store(&config, &args.data_dir).await?;
        first_token::another(store.as_ref(), serve::system_clock()()).await
    })
}

fn run_demo(args: &DemoArgs) -> anyhow::Result<()> {
    let config = load(args.config.as_deref())?;
    let _telemetry = telemetry::init(&config, Some(&args.log_level))?;
    runtime()?.block_on(demo::run(&config, &args.data_dir, args.agents))
}

/// Reads the configuration and refuses what would not do what it says.
fn load(file: Option<&std::path::Path>) -> anyhow::Result<Config> {
    let config = Config::load(file)?;
    config.check_supported()?;
    config.check_exposure()?;
    Ok(config)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime cannot be started")
}

fn run_client(command: ClientCommand, global: &GlobalOptions) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("muster: the runtime cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(cli::run(command, global))
}
