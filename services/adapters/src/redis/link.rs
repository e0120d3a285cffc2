//! The connection: made at the first call, shared by all, replaced when it breaks.
//!
//! It does what the driver's `ConnectionManager` is for, and three things that it does not: while Redis is
//! away calls fail at once instead of waiting or connecting each for itself, a server that refuses the
//! handshake (still loading, wrong password) is asked again, and a silent connection is replaced.

use std::fmt::{self, Debug, Formatter};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use muster_ports::EngineError;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind,
    IntoConnectionInfo as _, Pipeline, RedisError, RedisResult, ServerErrorKind, TlsCertificates, Value,
};
use tokio::sync::watch;
use tracing::{info, warn};

use super::record::Answer;
use super::{ENGINE, InvalidRedisUrl, RedisOptions, RedisTls, masked};

/// Wait after the first attempt to connect that failed; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Longest wait between attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Commands that wait to be written to the connection before their callers wait.
const BUFFER: usize = 1_024;

/// How often failures are logged.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// How often scripts are loaded for one call before it fails: another client may remove them again.
const LOADS: usize = 3;

/// A connection to Redis that mends itself.
pub(super) struct Link(Arc<Shared>);

struct Shared {
    addresses: Vec<ConnectionInfo>,
    tls: RedisTls,
    config: AsyncConnectionConfig,
    connect_timeout: Duration,
    /// Sent after connecting, and when a script is missing.
    loading: Vec<Cmd>,
    state: watch::Sender<State>,
    complaints: Mutex<Complaints>,
}

#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    /// Failures that were not logged.
    kept: u64,
    /// Whether something was logged since Redis last came back.
    open: bool,
}

enum State {
    /// Nobody has called yet.
    Unused,
    /// It is being connected, and how that goes is not known yet.
    Connecting,
    Up(Up),
    /// The last attempt to connect failed so; others follow.
    Away(Arc<str>),
}

#[derive(Clone)]
struct Up {
    connection: MultiplexedConnection,
    /// Which connection it is: its failure is no failure of a later one.
    generation: u64,
    /// Index of its address.
    address: usize,
}

impl Debug for Link {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> = self.0.addresses.iter().map(|info| info.addr().to_string()).collect();
        f.debug_struct("Link").field("addresses", &addresses).finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(options: &RedisOptions, loading: Vec<Cmd>) -> Result<Self, InvalidRedisUrl> {
        let parse = |url: &String| {
            let info = url.as_str().into_connection_info();
            let info = info.map_err(|error| InvalidRedisUrl::new(url, error))?;
            let tcp = TcpSettings::default().set_nodelay(true);
            Ok(info.set_tcp_settings(tcp))
        };
        let addresses = options.urls.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err(InvalidRedisUrl::new("", "there is none"));
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(options.connect_timeout))
            .set_response_timeout(Some(options.response_timeout))
            .set_pipeline_buffer_size(BUFFER);
        Ok(Self(Arc::new(Shared {
            addresses,
            tls: options.tls.clone(),
            config,
            connect_timeout: options.connect_timeout,
            loading,
            state: watch::Sender::new(State::Unused),
            complaints: Mutex::default(),
        })))
    }

    /// Sends one command, in one round trip with those of other callers.
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Answer, EngineError> {
        let mut answers = self.ask_all(std::slice::from_ref(command)).await?;
        match answers.pop() {
            Some(answer) => Ok(answer),
            None => Err(self.0.failed("no answer".to_owned())),
        }
    }

    /// Logs what is wrong with an answer, as failures are logged.
    pub(super) fn complain(&self, error: &EngineError) {
        self.0.complain(&error.to_string());
    }

    /// Sends commands that may be repeated, in one round trip, and returns the answers in their order.
    pub(super) async fn ask_all(&self, commands: &[Cmd]) -> Result<Vec<Answer>, EngineError> {
        let mut repeated = false;
        loop {
            let up = self.0.up().await?;
            let error = match self.0.ask_over(&up, commands).await {
                Ok(answers) => return Ok(answers),
                Err(error) => error,
            };
            let reason = self.0.said(up.address, &error);
            let dropped = error.is_connection_dropped();
            if dropped || error.is_timeout() || error.is_unrecoverable_error() || is_elsewhere(&error) {
                let next = up.address + usize::from(is_elsewhere(&error));
                self.0.replace(&up, next);
            }
            // A connection may have been idle for long and be gone since.
            if !dropped || repeated {
                return Err(self.0.failed(reason));
            }
            repeated = true;
        }
    }
}

impl Shared {
    /// The connection; if it is being made, waits for that.
    async fn up(self: &Arc<Self>) -> Result<Up, EngineError> {
        if let State::Up(up) = &*self.state.borrow() {
            return Ok(up.clone());
        }
        let first = self.state.send_if_modified(|state| {
            let first = matches!(state, State::Unused);
            if first {
                *state = State::Connecting;
            }
            first
        });
        if first {
            tokio::spawn(connect(Arc::downgrade(self), 0, 1));
        }
        let mut states = self.state.subscribe();
        let settled = states.wait_for(|state| matches!(state, State::Up(_) | State::Away(_)));
        // A little longer than an attempt, of which the reason is then known.
        let limit = self.connect_timeout + self.connect_timeout / 8;
        let found = match tokio::time::timeout(limit, settled).await {
            Ok(Ok(state)) => match &*state {
                State::Up(up) => Ok(up.clone()),
                State::Away(reason) => Err(reason.to_string()),
                State::Unused | State::Connecting => Err("not connected".to_owned()),
            },
            Ok(Err(_)) | Err(_) => Err(format!("no connection within {limit:?}")),
        };
        found.map_err(|reason| self.failed(reason))
    }

    async fn ask_over(&self, up: &Up, commands: &[Cmd]) -> RedisResult<Vec<Answer>> {
        let mut connection = up.connection.clone();
        let mut answers: Vec<Answer> = Vec::with_capacity(commands.len());
        let mut missing = false;
        for _ in 0..=LOADS {
            // From the first command on that found no script, so that those for one agent stay in order.
            let rest = &commands[answers.len()..];
            let loading: &[Cmd] = if missing { &self.loading } else { &[] };
            missing = false;
            for answer in send(&mut connection, loading, rest).await? {
                match answer {
                    Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                        missing = true;
                        break;
                    }
                    Err(error) if !is_of_key(&error) => return Err(error),
                    answer => answers.push(answer),
                }
            }
            if !missing {
                return Ok(answers);
            }
        }
        Err(RedisError::from((ErrorKind::Client, "it forgets scripts as soon as they are loaded")))
    }

    /// Connects to one address; the scripts are loaded then.
    async fn open(&self, info: &ConnectionInfo) -> RedisResult<MultiplexedConnection> {
        let client = match info.addr() {
            ConnectionAddr::TcpTls { .. } => {
                Client::build_with_tls(info.clone(), self.certificates().await?)?
            }
            _ => Client::open(info.clone())?,
        };
        let mut connection = client.get_multiplexed_async_connection_with_config(&self.config).await?;
        // A replica refuses commands that write, also those without an effect.
        let mut probe = redis::cmd("DEL");
        probe.arg("muster:{}");
        let commands = [&self.loading[..], &[probe]].concat();
        for answer in send(&mut connection, &[], &commands).await? {
            // Others, such as a permission that is lacking, are told to the callers whom they concern.
            if let Err(error) = answer
                && is_elsewhere(&error)
            {
                return Err(error);
            }
        }
        Ok(connection)
    }

    /// What the files of TLS hold now.
    async fn certificates(&self) -> RedisResult<TlsCertificates> {
        let read = async |path: &PathBuf| {
            tokio::fs::read(path).await.map_err(|error| {
                let what = format!("{}: {error}", path.display());
                RedisError::from((ErrorKind::InvalidClientConfig, "a file of TLS cannot be read", what))
            })
        };
        let root_cert = match &self.tls.ca_file {
            Some(path) => Some(read(path).await?),
            None => None,
        };
        let client_tls = match &self.tls.client_certificate {
            Some((cert, key)) => {
                Some(ClientTlsConfig { client_cert: read(cert).await?, client_key: read(key).await? })
            }
            None => None,
        };
        Ok(TlsCertificates { client_tls, root_cert })
    }

    /// This connection is of no use any more: connects anew, beginning with this address.
    fn replace(self: &Arc<Self>, broken: &Up, address: usize) {
        let replaced = self.state.send_if_modified(|state| {
            let current = matches!(state, State::Up(up) if up.generation == broken.generation);
            if current {
                *state = State::Connecting;
            }
            current
        });
        if replaced {
            tokio::spawn(connect(Arc::downgrade(self), address, broken.generation + 1));
        }
    }

    /// What an address said, without its password.
    fn said(&self, address: usize, error: &RedisError) -> String {
        match self.addresses.get(address) {
            Some(info) => format!("{}: {}", info.addr(), masked::text(&error.to_string(), info)),
            None => error.to_string(),
        }
    }

    /// The error of a call.
    fn failed(&self, reason: String) -> EngineError {
        self.complain(&reason);
        EngineError::Unavailable { engine: ENGINE, reason }
    }

    /// Logs a failure if none was logged for a while, and counts it otherwise.
    fn complain(&self, reason: &str) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.last.is_none_or(|last| last.elapsed() >= COMPLAIN_EVERY) {
            let unlogged = std::mem::take(&mut complaints.kept);
            warn!(reason, unlogged, "ownership in Redis fails");
            complaints.last = Some(Instant::now());
            complaints.open = true;
        } else {
            complaints.kept += 1;
        }
    }

    /// It is connected.
    fn works(&self, address: usize) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut complaints.open) {
            let address = self.addresses.get(address).map(|info| info.addr().to_string());
            info!(address, "Redis is connected again");
        }
    }
}

/// Tries the addresses in turn, the given one first, until one can be used or nobody needs it any more.
async fn connect(shared: Weak<Shared>, first: usize, generation: u64) {
    let mut pause = FIRST_PAUSE;
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let count = shared.addresses.len();
        let mut reasons = Vec::with_capacity(count);
        for address in (first..first + count).map(|address| address % count) {
            let open = shared.open(&shared.addresses[address]);
            // The driver's own timeouts are for each of several steps.
            reasons.push(match tokio::time::timeout(shared.connect_timeout, open).await {
                Ok(Ok(connection)) => {
                    shared.works(address);
                    shared.state.send_replace(State::Up(Up { connection, generation, address }));
                    return;
                }
                Ok(Err(error)) => shared.said(address, &error),
                Err(_) => {
                    let address = shared.addresses[address].addr();
                    format!("{address}: no connection within {:?}", shared.connect_timeout)
                }
            });
        }
        shared.state.send_replace(State::Away(reasons.join("; ").into()));
        drop(shared);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Sends commands in one round trip and returns the answers to the second ones.
async fn send(
    connection: &mut MultiplexedConnection,
    before: &[Cmd],
    commands: &[Cmd],
) -> RedisResult<Vec<Answer>> {
    if let ([], [command]) = (before, commands) {
        return match connection.send_packed_command(command).await {
            Err(error) if error.code().is_none() => Err(error),
            Ok(Value::ServerError(error)) => Ok(vec![Err(error.into())]),
            answer => Ok(vec![answer]),
        };
    }
    let mut pipeline = Pipeline::with_capacity(before.len() + commands.len());
    for command in before.iter().chain(commands) {
        pipeline.add_command(command.clone());
    }
    let values = connection.send_packed_commands(&pipeline, before.len(), commands.len()).await?;
    if values.len() != commands.len() {
        return Err(RedisError::from((ErrorKind::UnexpectedReturnType, "not one answer for each command")));
    }
    let answer = |value| match value {
        Value::ServerError(error) => Err(error.into()),
        value => Ok(value),
    };
    Ok(values.into_iter().map(answer).collect())
}

/// Whether it is a matter of the key that the command was for, and not of Redis.
fn is_of_key(error: &RedisError) -> bool {
    error.to_string().contains("WRONGTYPE")
}

/// Whether another server, or this one later, does what this one does not.
fn is_elsewhere(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly};
    // A script's error quotes that of its command.
    matches!(error.kind(), ErrorKind::Server(BusyLoading | ClusterDown | MasterDown | ReadOnly))
        || error.to_string().contains("READONLY")
}
