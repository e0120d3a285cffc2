//! `muster login` and `muster contexts`: servers that the command line knows, and how to show who one is there.
//!
//! They are in a file of their owner's alone, `muster/contexts.yaml` in the directory of configurations
//! (`XDG_CONFIG_HOME`, else `~/.config`), or where `MUSTER_CONTEXTS` says.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::access::Who;
use super::client::{CliError, Client};
use super::output::{Printer, or_dash, table};
use super::{DEFAULT_SERVER, GlobalOptions};
use crate::config::Secret;

/// Largest file of contexts.
const LARGEST: u64 = 1 << 20;

/// What the file of contexts holds.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Contexts {
    /// Name of the one in use.
    current: Option<String>,
    /// All of them by name.
    contexts: BTreeMap<String, Context>,
}

/// A server, and how to show who one is there.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Context {
    server: String,
    token: Option<Hidden>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
}

/// A token in the file, and nowhere else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Hidden(String);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

/// Arguments of `muster login`.
#[derive(Debug, Clone, Args)]
pub struct LoginArgs {
    /// Name of the context; the server's host by default.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

/// Commands on contexts.
#[derive(Debug, Clone, Subcommand)]
pub enum ContextsCommand {
    /// List contexts; the one in use has a star.
    List,
    /// Use a context from now on.
    Use {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Forget a context and its token. The token itself still counts until it is revoked.
    Remove {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// Fills in what the arguments leave to the context in use. The token of a context goes to its server alone.
pub(super) fn complete(options: &GlobalOptions) -> Result<GlobalOptions, CliError> {
    let mut options = options.clone();
    let is_complete = options.server.is_some() && options.token.is_some();
    if is_complete && options.context.is_none() {
        return Ok(options);
    }
    let Some(path) = path(&options) else { return Ok(options) };
    let contexts = read(&path)?;
    let Some(name) = options.context.clone().or_else(|| contexts.current.clone()) else { return Ok(options) };
    let context = contexts.contexts.get(&name).ok_or_else(|| {
        CliError::Usage(format!(
            "there is no context {name:?} in {}: see `muster contexts list`",
            path.display()
        ))
    })?;
    match &options.server {
        Some(server) if *server != context.server => return Ok(options),
        _ => options.server = Some(context.server.clone()),
    }
    let own = context.token.clone().map(|Hidden(token)| Secret::from(token));
    options.token = options.token.filter(|token| !token.expose().is_empty()).or(own);
    options.tenant = options.tenant.or_else(|| context.tenant.clone());
    options.ca_file = options.ca_file.or_else(|| context.ca_file.clone());
    Ok(options)
}

fn path(options: &GlobalOptions) -> Option<PathBuf> {
    if let Some(path) = &options.contexts {
        return Some(path.clone());
    }
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))?;
    Some(directory.join("muster").join("contexts.yaml"))
}

fn own_path(options: &GlobalOptions) -> Result<PathBuf, CliError> {
    path(options).ok_or_else(|| {
        CliError::Usage("there is no place for contexts: set MUSTER_CONTEXTS to a file".to_owned())
    })
}

fn read(path: &Path) -> Result<Contexts, CliError> {
    let cannot =
        |what: &dyn std::fmt::Display| CliError::Usage(format!("cannot read {}: {what}", path.display()));
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contexts::default()),
        Err(error) => return Err(cannot(&error)),
    };
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text).map_err(|error| cannot(&error))?;
    if text.trim().is_empty() {
        return Ok(Contexts::default());
    }
    // What the parser says may quote the file, which holds tokens.
    serde_saphyr::from_str(&text).map_err(|_| cannot(&"it is no file of contexts; mend it, or remove it"))
}

/// Replaces the file at once, so that it is whole whenever it is read.
fn write(path: &Path, contexts: &Contexts) -> Result<(), CliError> {
    let cannot =
        |error: &dyn std::fmt::Display| CliError::Usage(format!("cannot write {}: {error}", path.display()));
    let text = serde_saphyr::to_string(contexts).map_err(|error| cannot(&error))?;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(|error| cannot(&error))?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let mut options = std::fs::OpenOptions::new();
    let written = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|error| cannot(&error))
}

/// Checks a token with the server and keeps both as a context, which is used from now on.
pub(super) async fn login(
    args: LoginArgs,
    options: &GlobalOptions,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let path = own_path(options)?;
    let mut options = options.clone();
    let server = options.server.get_or_insert_with(|| DEFAULT_SERVER.to_owned()).clone();
    if options.token.as_ref().is_none_or(|token| token.expose().is_empty()) {
        options.token = Some(ask_for_token()?);
    }
    let client = Client::new(&options)?;
    if !client.is_secret() {
        let line = format!(
            "muster: warning: {} is not encrypted: others on the way can read the token\n",
            client.server()
        );
        // Nobody is left to tell if this fails.
        let _ = io::stderr().write_all(line.as_bytes());
    }
    let who: Who = client.read(client.get(&["whoami"], &[]).await?)?;
    let name = args.name.unwrap_or_else(|| client.host());
    let mut contexts = read(&path)?;
    let token = options.token.as_ref().map(|token| Hidden(token.expose().to_owned()));
    let context = Context { server, token, tenant: options.tenant.clone(), ca_file: options.ca_file.clone() };
    contexts.contexts.insert(name.clone(), context);
    contexts.current = Some(name.clone());
    write(&path, &contexts)?;
    printer.line(&format!("context {name}: {}, {} of tenant {}", who.account, who.role, who.tenant))
}

fn ask_for_token() -> Result<Secret, CliError> {
    if io::stdin().is_terminal() {
        // Nobody is left to ask if this fails.
        let _ = io::stderr().write_all(b"token: ");
    }
    let mut line = String::new();
    io::stdin()
        .take(8 << 10)
        .read_to_string_until_line(&mut line)
        .map_err(|error| CliError::Usage(format!("cannot read the token from standard input: {error}")))?;
    let token = line.trim().to_owned();
    if token.is_empty() {
        let what = "there is no token: set MUSTER_TOKEN, or write it to standard input";
        return Err(CliError::Usage(what.to_owned()));
    }
    Ok(token.into())
}

/// Reads a line of a stream that is bounded.
trait Line {
    fn read_to_string_until_line(self, line: &mut String) -> io::Result<usize>;
}

impl<R: io::Read> Line for R {
    fn read_to_string_until_line(self, line: &mut String) -> io::Result<usize> {
        io::BufRead::read_line(&mut io::BufReader::new(self), line)
    }
}

impl ContextsCommand {
    pub(super) fn run(self, options: &GlobalOptions, printer: &mut Printer<'_>) -> Result<(), CliError> {
        let path = own_path(options)?;
        let mut contexts = read(&path)?;
        let none =
            |name: &str| CliError::Usage(format!("there is no context {name:?} in {}", path.display()));
        match self {
            Self::List => {
                let row = |(name, context): (&String, &Context)| {
                    let star = if contexts.current.as_ref() == Some(name) { "*" } else { "" };
                    vec![
                        star.to_owned(),
                        name.clone(),
                        context.server.clone(),
                        or_dash(context.tenant.as_deref().unwrap_or_default()),
                    ]
                };
                let text = table(&["", "NAME", "SERVER", "TENANT"], contexts.contexts.iter().map(row));
                printer.line(text.trim_end())
            }
            Self::Use { name } => {
                if !contexts.contexts.contains_key(&name) {
                    return Err(none(&name));
                }
                contexts.current = Some(name.clone());
                write(&path, &contexts)?;
                printer.line(&format!("context {name} is in use"))
            }
            Self::Remove { name } => {
                contexts.contexts.remove(&name).ok_or_else(|| none(&name))?;
                contexts.current = contexts.current.filter(|current| *current != name);
                write(&path, &contexts)?;
                printer.line(&format!("context {name} is forgotten; its token counts until it is revoked"))
            }
        }
    }
}
