//! The client commands: what people and scripts do through the HTTP API.

mod access;
mod agents;
mod apply;
mod audit;
mod catalog;
mod client;
mod commands;
mod contexts;
mod explain;
mod help;
mod keys;
mod output;
mod revisions;
mod rollouts;
mod sources;
mod watch;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::config::{Secret, parse_duration};

pub use access::{NewToken, QuotaArgs, TenantsCommand, TokensCommand};
pub use agents::AgentsCommand;
pub use apply::{ApplyArgs, DiffArgs};
pub use audit::{AuditCommand, FilterArgs};
pub use catalog::{AssignmentsCommand, ConfigsCommand};
pub use client::{CliError, PlacedError, Refusal};
pub use commands::{MessageArgs, Order};
pub use contexts::{ContextsCommand, LoginArgs};
pub use help::with_roles;
pub use keys::KeysCommand;
pub use output::Format;
pub use revisions::{DeleteArgs, PreviewArgs};
pub use rollouts::{Asked, RolloutsCommand};
pub use watch::WatchArgs;

use client::Client;
use output::Printer;

/// The server where nothing names one.
pub(crate) const DEFAULT_SERVER: &str = "http://127.0.0.1:4321";

/// Options of every client command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Client options")]
pub struct GlobalOptions {
    /// Address of the HTTP API; http://127.0.0.1:4321 without a context.
    #[arg(long, global = true, env = "MUSTER_SERVER_URL", value_name = "URL")]
    pub server: Option<String>,
    /// Name of a context of `muster login`, in place of the one in use.
    #[arg(long, global = true, env = "MUSTER_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// File of contexts.
    #[arg(long, global = true, env = "MUSTER_CONTEXTS", value_name = "FILE", hide = true)]
    pub contexts: Option<PathBuf>,
    /// Tenant that requests are about, for role system.
    #[arg(long, global = true, env = "MUSTER_TENANT", value_name = "NAME")]
    pub tenant: Option<String>,
    /// How results are printed: table, json or yaml.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t = Format::Table,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    pub output: Format,
    /// Longest time to wait for an answer, such as 30s.
    #[arg(long, global = true, default_value = "10s", value_name = "DURATION", value_parser = parse_timeout)]
    pub timeout: Duration,
    /// File of the authorities (PEM) that the server's certificate may come from, in place of the
    /// system's.
    #[arg(long, global = true, env = "MUSTER_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// File of a certificate to show (PEM), with --key-file.
    #[arg(long, global = true, env = "MUSTER_CERT_FILE", value_name = "FILE", requires = "key_file")]
    pub cert_file: Option<PathBuf>,
    /// File of the certificate's private key (PEM).
    #[arg(long, global = true, env = "MUSTER_KEY_FILE", value_name = "FILE", requires = "cert_file")]
    pub key_file: Option<PathBuf>,
    /// API token. Prefer the variable: other users can see arguments.
    #[arg(
        long,
        global = true,
        env = "MUSTER_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        value_parser = parse_token
    )]
    pub token: Option<Secret>,
}

/// What a client can do.
#[derive(Debug, Clone, Subcommand)]
pub enum ClientCommand {
    /// List, show, label and command agents.
    #[command(subcommand)]
    Agents(AgentsCommand),
    /// Apply manifests: all of them, or none if one is wrong.
    Apply(ApplyArgs),
    /// Show what applying manifests would change, of the configuration and of agents. Exits with 0 if nothing,
    /// and with 2 if something.
    Diff(DiffArgs),
    /// List changes of the configuration: who changed what, when and why.
    Changes,
    /// Show what happens to agents, as it happens.
    Watch(WatchArgs),
    /// List, show, compare, preview and delete configuration templates.
    #[command(subcommand)]
    Configs(ConfigsCommand),
    /// Watch and steer changes that reach agents in stages.
    #[command(subcommand)]
    Rollouts(RolloutsCommand),
    /// List, show and delete assignments: which agents get which template.
    #[command(subcommand)]
    Assignments(AssignmentsCommand),
    /// Keep a server and a token as a context, and use it from now on.
    Login(LoginArgs),
    /// List, use and forget contexts.
    #[command(subcommand)]
    Contexts(ContextsCommand),
    /// Show who the server takes you for.
    Whoami,
    /// Make, list and revoke tokens of the API.
    #[command(subcommand)]
    Tokens(TokensCommand),
    /// Make, list, limit and remove tenants.
    #[command(subcommand)]
    Tenants(TenantsCommand),
    /// Show, export and verify the audit log.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Make, list, revoke and replace the keys of agents.
    #[command(subcommand)]
    Keys(KeysCommand),
}

/// Exit code of a comparison that found differences.
const DIFFERS: u8 = 2;

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let timeout = parse_duration(text).filter(|timeout| !timeout.is_zero());
    timeout.ok_or_else(|| "must be a duration such as 250ms, 30s or 5m, more than 0".to_owned())
}

fn parse_token(text: &str) -> Result<Secret, String> {
    Ok(text.to_owned().into())
}

/// Runs a command: its result goes to standard output, the reason of a failure to standard error.
///
/// A reader that goes away (`| head`) ends the command quietly, as an interrupt does.
pub async fn run(command: ClientCommand, options: &GlobalOptions) -> ExitCode {
    let mut out = std::io::stdout();
    let result =
        execute(command, options, &mut out).await.and_then(|()| out.flush().map_err(CliError::Output));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(CliError::Differs) => match out.flush() {
            Ok(()) => ExitCode::from(DIFFERS),
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = writeln!(std::io::stderr(), "{}", output::clean_lines(&error.report()));
            ExitCode::FAILURE
        }
    }
}

/// Runs a command and writes its result.
///
/// # Errors
/// If the command is not well formed, the server cannot be reached or refuses it, or the result
/// cannot be written.
pub async fn execute(
    command: ClientCommand,
    options: &GlobalOptions,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut printer = Printer::new(options.output, out);
    let command = match command {
        ClientCommand::Login(args) => return contexts::login(args, options, &mut printer).await,
        ClientCommand::Contexts(command) => return command.run(options, &mut printer),
        other => other,
    };
    let client = Client::new(&contexts::complete(options)?)?;
    match command {
        // Done above.
        ClientCommand::Login(_) | ClientCommand::Contexts(_) => Ok(()),
        ClientCommand::Whoami => access::who_am_i(&client, &mut printer).await,
        ClientCommand::Tokens(command) => command.run(&client, &mut printer).await,
        ClientCommand::Tenants(command) => command.run(&client, &mut printer).await,
        ClientCommand::Audit(command) => command.run(&client, &mut printer).await,
        ClientCommand::Agents(command) => command.run(&client, &mut printer).await,
        ClientCommand::Apply(args) => args.run(&client, &mut printer).await,
        ClientCommand::Diff(args) => args.run(&client, &mut printer).await,
        ClientCommand::Changes => revisions::changes(None, &client, &mut printer).await,
        ClientCommand::Watch(args) => args.run(&client, &mut printer).await,
        ClientCommand::Configs(command) => command.run(&client, &mut printer).await,
        ClientCommand::Rollouts(command) => command.run(&client, &mut printer).await,
        ClientCommand::Assignments(command) => command.run(&client, &mut printer).await,
        ClientCommand::Keys(command) => command.run(&client, &mut printer).await,
    }
}
