//! A running fleet.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_proto::opamp::RemoteConfigStatuses;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::agent::Agent;
use crate::config::{ConfigFiles, Configs};
use crate::connect::{self, Target};
use crate::identity::{self, Identity};
use crate::kind::Kind;
use crate::options::{FleetError, FleetOptions};
use crate::polling;
use crate::runner::{Context, Runner, lock, unix_nanos};
use crate::stats::Stats;
use crate::wire;

/// Simulated agents at work. Dropped, they say goodbye in the background; [`stop`](Self::stop)
/// waits for that.
#[derive(Debug)]
pub struct Fleet {
    context: Arc<Context>,
    agents: Vec<Arc<Mutex<Agent>>>,
    tasks: JoinSet<()>,
}

/// One agent as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentView {
    /// The agent's place in the fleet.
    pub index: usize,
    /// The instance_uid it uses now.
    pub uid: Uuid,
    /// What it is.
    pub kind: Kind,
    /// Whether its WebSocket is open, or its last poll was answered.
    pub connected: bool,
    /// The hash of the offered configuration that it runs with, in hexadecimal digits.
    pub config_hash: Option<String>,
    /// What it says about the last offer.
    pub status: RemoteConfigStatuses,
    /// Why it refused the last offer.
    pub error_message: String,
    /// The files that it runs with.
    pub effective_config: Arc<ConfigFiles>,
}

/// A condition was not met in time; says how far the fleet came.
#[derive(Debug, thiserror::Error)]
pub struct WaitTimeout {
    /// How long the wait was.
    pub waited: Duration,
    /// The counts at its end.
    pub stats: Box<Stats>,
}

impl fmt::Display for WaitTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the fleet is not there after {:?}: {:?}", self.waited, self.stats)
    }
}

impl Fleet {
    /// Starts the agents and returns at once; they connect one after another. They stop, with a
    /// goodbye, when `cancel` is cancelled.
    pub fn start(options: FleetOptions, cancel: CancellationToken) -> Result<Self, FleetError> {
        let runtime = Handle::try_current().map_err(|_| FleetError::NoRuntime)?;
        options.check()?;
        let context = Arc::new(Context {
            target: Target::parse(&options.url.replacen("http://", "ws://", 1))?,
            pollers: polling::clients(&options)?,
            headers: connect::headers(&options.headers)?,
            configs: Configs::new(),
            stats: watch::Sender::default(),
            cancel: cancel.child_token(),
            started: Instant::now(),
            options,
        });
        let FleetOptions { first_index, count, seed, stable_uids, mix, .. } = context.options;
        let mut agents = Vec::with_capacity(count);
        let mut tasks = JoinSet::new();
        for (index, kind) in mix.kinds().enumerate().skip(first_index).take(count) {
            let mut random = identity::random(seed, index);
            let identity = Identity::draw(&mut random, index, kind, stable_uids);
            let agent = Arc::new(Mutex::new(Agent::new(identity, &context.configs, unix_nanos())));
            agents.push(Arc::clone(&agent));
            let runner = Runner { context: Arc::clone(&context), agent, random, order: index - first_index };
            tasks.spawn_on(runner.run(), &runtime);
        }
        Ok(Self { context, agents, tasks })
    }

    /// The counts as they are now.
    pub fn stats(&self) -> Stats {
        self.context.stats.borrow().clone()
    }

    /// Waits until `condition` holds for the counts; it is asked again after every change.
    pub async fn wait(
        &self,
        condition: impl FnMut(&Stats) -> bool,
        limit: Duration,
    ) -> Result<Stats, WaitTimeout> {
        let mut stats = self.context.stats.subscribe();
        match timeout(limit, stats.wait_for(condition)).await {
            Ok(Ok(met)) => Ok(met.clone()),
            // The sender lives in `self`: only time can have run out.
            Ok(Err(_)) | Err(_) => Err(WaitTimeout { waited: limit, stats: Box::new(self.stats()) }),
        }
    }

    /// Every agent as it is now, in the order of their indexes.
    pub fn agents(&self) -> Vec<AgentView> {
        self.agents.iter().map(|agent| view(&lock(agent))).collect()
    }

    /// Lets every agent say goodbye and waits for their ends. Agents that are not done within
    /// [`FleetOptions::stop_timeout`] vanish, which counts as an error.
    pub async fn stop(mut self) -> Stats {
        self.context.cancel.cancel();
        let limit = self.context.options.stop_timeout;
        if timeout(limit, join(&mut self.tasks, &self.context)).await.is_err() {
            let reason = format!("{} agents did not stop within {limit:?}", self.tasks.len());
            self.context.stats.send_modify(|stats| stats.error(reason));
            self.tasks.abort_all();
            join(&mut self.tasks, &self.context).await;
        }
        self.stats()
    }

    /// Ends every agent at once and without a goodbye, as a power cut does.
    pub async fn kill(mut self) -> Stats {
        self.tasks.abort_all();
        join(&mut self.tasks, &self.context).await;
        self.stats()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.context.cancel.cancel();
        self.tasks.detach_all();
    }
}

async fn join(tasks: &mut JoinSet<()>, context: &Context) {
    while let Some(end) = tasks.join_next().await {
        if let Err(error) = end
            && error.is_panic()
        {
            context.stats.send_modify(|stats| stats.error(format!("an agent's task broke down: {error}")));
        }
    }
}

fn view(agent: &Agent) -> AgentView {
    let status = agent.status();
    AgentView {
        index: agent.identity().index,
        uid: agent.identity().uid,
        kind: agent.kind(),
        connected: agent.connected,
        config_hash: agent.applied_hash().map(wire::hex),
        status: status.status(),
        error_message: status.error_message.clone(),
        effective_config: agent.effective(),
    }
}
