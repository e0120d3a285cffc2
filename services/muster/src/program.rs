//! The command line of the program: servers and client commands in one tree.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::cli::{ClientCommand, GlobalOptions};
use crate::config::Config;
use crate::{cli, demo, serve, telemetry};

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
    /// Run the server: every role in one process, on embedded parts.
    Serve(ServeArgs),
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
    /// Least level that is logged: error, warn, info, debug, trace, or a filter such as
    /// `info,muster_gateway=debug`. Overrides telemetry.logs.level.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
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
    let program = Program::parse();
    let result = match program.command {
        Command::Serve(args) => run_server(&args),
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
    telemetry::init(&config, args.log_level.as_deref())?;
    runtime()?.block_on(serve::until_signal(&config, &args.data_dir))
}

fn run_demo(args: &DemoArgs) -> anyhow::Result<()> {
    let config = load(args.config.as_deref())?;
    telemetry::init(&config, Some(&args.log_level))?;
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
