//! Ownership in Redis.
//!
//! An agent is a hash at `muster:{tenant:uid}`. The braces keep an agent's keys together in a Redis
//! Cluster. Every write sets the expiry of its hash anew. Numbers are kept as decimal text, because the
//! numbers of Redis's scripts are exact only below 2^53.
//!
//! Nothing here relies on what Redis holds: it may be emptied, set back or lost at any time, and is then
//! filled again by the next claims.

mod link;
mod masked;
mod polls;
mod record;
mod scripts;

use std::fmt::{self, Debug, Formatter};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use muster_domain::ids::{AgentKey, SessionId};
use muster_ports::EngineError;
use muster_ports::ownership::{ClaimOutcome, ClaimRequest, Owned, Ownership, Settled};
use redis::Cmd;

use self::link::Link;
pub use self::masked::InvalidRedisUrl;
use self::polls::PollScripts;
use self::scripts::Scripts;

/// Name of the engine in errors.
const ENGINE: &str = "Redis";

/// Commands of one round trip.
const CHUNK: usize = 1_000;

/// Where Redis is and what is expected of it.
#[derive(Clone)]
pub struct RedisOptions {
    /// Addresses of one Redis, such as `redis://user:password@host:6379/0` or `rediss://..` for TLS: the
    /// first that answers and takes writes is used, so a primary and its replicas may be named. Never
    /// several that do not replicate each other.
    pub urls: Vec<String>,
    /// The TLS of addresses that begin with `rediss://`.
    pub tls: RedisTls,
    /// How long connecting may take, and how long a call waits for it.
    pub connect_timeout: Duration,
    /// How long one round trip may take.
    pub response_timeout: Duration,
    /// How long an agent is known after it was heard last: more than any agent is silent for while it is
    /// connected.
    pub record_ttl: Duration,
}

/// Files of the TLS to Redis, PEM. They are read anew at each connecting.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RedisTls {
    /// The authorities that the server's certificate may come from; those of the system if there are none.
    pub ca_file: Option<PathBuf>,
    /// The certificate that is shown, and its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

impl RedisOptions {
    /// Timeouts of a second, and a day for an agent.
    pub fn new<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Self {
        Self {
            urls: urls.into_iter().map(Into::into).collect(),
            tls: RedisTls::default(),
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_secs(1),
            record_ttl: Duration::from_secs(24 * 60 * 60),
        }
    }
}

impl Debug for RedisOptions {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("urls", &self.urls.iter().map(|url| masked::url(url)).collect::<Vec<_>>())
            .field("tls", &self.tls)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("record_ttl", &self.record_ttl)
            .finish()
    }
}

/// Ownership in Redis, over one connection that all callers share.
///
/// It connects at the first call and reconnects by itself. While Redis is away calls fail at once. A call
/// whose connection broke is made once more on a new one; so a claim may have been made twice, of which
/// the second resumes the first.
#[derive(Debug)]
pub struct RedisOwnership {
    link: Link,
    scripts: Scripts,
    polls: PollScripts,
}

impl RedisOwnership {
    /// Ownership in the Redis at these addresses. Does not wait for it.
    pub fn connect(options: RedisOptions) -> Result<Self, InvalidRedisUrl> {
        let scripts = Scripts::new(options.record_ttl);
        let polls = PollScripts::new(options.record_ttl);
        let link = Link::new(&options, [scripts.loading(), polls.loading()].concat())?;
        Ok(Self { link, scripts, polls })
    }

    /// Whether Redis answers now; connects if need be.
    pub async fn ping(&self) -> Result<(), EngineError> {
        self.link.ask(&redis::cmd("PING")).await.map(drop)
    }

    /// Logs what is kept and cannot be used.
    fn checked<T>(&self, read: Result<T, EngineError>) -> Result<T, EngineError> {
        read.inspect_err(|error| self.link.complain(error))
    }
}

#[async_trait]
impl Ownership for RedisOwnership {
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimOutcome, EngineError> {
        let answer = self.link.ask(&self.scripts.claim(&request)).await?;
        self.checked(record::claimed(&request.key, answer))
    }

    /// When it fails, some may have been recorded: it can be repeated as it is. What is kept of an agent
    /// that is unusable names no holder: such an agent does not hinder the others.
    async fn settle(&self, settled: Vec<Settled>) -> Result<Vec<(AgentKey, SessionId)>, EngineError> {
        let mut refused = Vec::new();
        for chunk in settled.chunks(CHUNK) {
            let commands: Vec<Cmd> = chunk.iter().map(|settled| self.scripts.settle(settled)).collect();
            for (settled, answer) in chunk.iter().zip(self.link.ask_all(&commands).await?) {
                if !self.checked(record::was_holder(&settled.key, answer)).unwrap_or(false) {
                    refused.push((settled.key.clone(), settled.session));
                }
            }
        }
        Ok(refused)
    }

    async fn release(&self, key: &AgentKey, session: SessionId) -> Result<(), EngineError> {
        let answer = self.link.ask(&self.scripts.release(key, session)).await?;
        self.checked(record::was_holder(key, answer)).map(drop)
    }

    async fn look_up(&self, keys: &[AgentKey]) -> Result<Vec<Option<Owned>>, EngineError> {
        let mut found = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(CHUNK) {
            let commands: Vec<Cmd> = chunk.iter().map(scripts::look_up).collect();
            for (key, answer) in chunk.iter().zip(self.link.ask_all(&commands).await?) {
                found.push(self.checked(record::owned(key, answer))?);
            }
        }
        Ok(found)
    }
}
