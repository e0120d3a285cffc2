//! What the API says, and whether it is what the agents say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};
use muster_fleet::{AgentView, Fleet};
use muster_proto::opamp::RemoteConfigStatuses;
use muster_testkit::{Api, try_eventually};
use serde_json::Value;
use uuid::Uuid;

use crate::reporter::{Number, SERVICE, Said};

/// Agents on a page of a list.
const PAGE: usize = 1000;
/// How long one api may take before another is asked.
const ANSWER: Duration = Duration::from_secs(5);

/// The apis of a cluster; any of them answers, as behind a load balancer.
#[derive(Clone, Debug)]
pub struct Apis {
    all: Vec<Api>,
    turn: Arc<AtomicUsize>,
}

#[derive(Clone, Copy)]
enum Request<'a> {
    Get(&'a str),
    Apply(&'a str),
}

/// An agent as the API lists it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listed {
    /// Whether it has a live session.
    pub connected: bool,
    /// What it should run.
    pub desired: Option<String>,
    /// What it says it runs.
    pub reported: Option<String>,
    /// How far it is.
    pub status: String,
    /// What went wrong last, of its health.
    pub last_error: String,
    /// Its last message.
    pub sequence: u64,
}

impl Apis {
    pub(crate) fn new(all: Vec<Api>) -> Self {
        Self { all, turn: Arc::default() }
    }

    /// Asks the api whose turn it is, and others if it does not answer or says that it is unavailable.
    async fn ask(&self, request: Request<'_>) -> Result<Value> {
        let mut last = anyhow!("there is no api");
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for step in 0..self.all.len() {
            let api = &self.all[(first + step) % self.all.len()];
            let answer = async {
                match request {
                    Request::Get(path) => api.get(path).await,
                    Request::Apply(manifests) => {
                        api.post_text("/api/v1/apply", "application/yaml", manifests).await
                    }
                }
            };
            match tokio::time::timeout(ANSWER, answer).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) if error.status == 0 || error.status >= 500 => last = error.into(),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => last = anyhow!("{} does not answer within {ANSWER:?}", api.base()),
            }
        }
        Err(last)
    }

    /// Applies manifests, again and again until an api has done it.
    ///
    /// # Errors
    /// If none has by then; the text has the last reason.
    pub async fn apply(&self, manifests: &str, limit: Duration) -> Result<Value> {
        let attempt = async || self.ask(Request::Apply(manifests)).await.map_err(|error| error.to_string());
        try_eventually(limit, attempt).await.map_err(anyhow::Error::msg)
    }

    /// One agent with its effective config.
    ///
    /// # Errors
    /// If no api answers, or there is no such agent.
    pub async fn agent(&self, uid: Uuid) -> Result<Value> {
        self.ask(Request::Get(&format!("/api/v1/agents/{uid}"))).await
    }

    /// Every agent that a selector matches.
    ///
    /// # Errors
    /// If no api answers.
    pub async fn list(&self, selector: &str) -> Result<BTreeMap<Uuid, Listed>> {
        let mut agents = BTreeMap::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/api/v1/agents?limit={PAGE}&selector={selector}{cursor}");
            let page = self.ask(Request::Get(&path)).await?;
            for item in page["items"].as_array().into_iter().flatten() {
                agents.insert(item["instance_uid"].as_str().unwrap_or_default().parse()?, listed(item));
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(agents),
            }
        }
    }
}

fn listed(item: &Value) -> Listed {
    let config = &item["remote_config"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Listed {
        connected: item["connected"] == true,
        desired: text(&config["desired_hash"]),
        reported: text(&config["reported_hash"]),
        status: text(&config["status"]).unwrap_or_default(),
        last_error: text(&item["health"]["last_error"]).unwrap_or_default(),
        sequence: item["sequence_num"].as_u64().unwrap_or_default(),
    }
}

/// Whether every agent is connected and runs what it should, as it says itself and as the API says; if
/// not, what is amiss.
pub(crate) async fn converged(
    fleet: &Fleet,
    reporters: &[Said],
    strangers: usize,
    apis: &Apis,
    desired: &Desired,
) -> Result<(), String> {
    let agents = fleet.agents();
    let behind = |agent: &&AgentView| !agent.connected || agent.status != RemoteConfigStatuses::Applied;
    if let Some(agent) = agents.iter().find(behind) {
        let count = agents.iter().filter(behind).count();
        let (uid, status, connected) = (agent.uid, agent.status.as_str_name(), agent.connected);
        return Err(format!("{count} agents are behind, such as {uid}: {status}, connected: {connected}"));
    }
    let listed = apis.list("").await.map_err(|error| format!("the API: {error:#}"))?;
    let all = agents.len() + reporters.len() + strangers;
    if listed.len() != all {
        return Err(format!("the API lists {} agents of {all}", listed.len()));
    }
    let known = agents.iter().map(|agent| agent.uid).chain(reporters.iter().map(|said| said.uid));
    let away = known.filter(|uid| !listed.get(uid).is_some_and(|agent| agent.connected));
    let away: Vec<_> = away.collect();
    if let Some(uid) = away.first() {
        let (count, agent) = (away.len(), listed.get(uid));
        return Err(format!("the API shows {count} agents as not connected, such as {uid}: {agent:?}"));
    }
    let mut changed: Option<String> = None;
    for agent in &agents {
        let Some(stored) = listed.get(&agent.uid) else {
            return Err(format!("the API does not list {}", agent.uid));
        };
        let same = stored.desired.is_some()
            && stored.desired == stored.reported
            && stored.desired == agent.config_hash;
        if !same || stored.status != "APPLIED" {
            return Err(format!(
                "the agent {} runs {:?}, the API says {stored:?}",
                agent.uid, agent.config_hash
            ));
        }
        let hash = stored.desired.as_deref().unwrap_or_default();
        if desired.old.iter().any(|old| old == hash) {
            return Err(format!("the agent {} still runs the config before, {hash}", agent.uid));
        }
        let is_steady = desired.steady.as_deref() == Some(hash);
        if desired.steady.is_some() && !is_steady && *changed.get_or_insert_with(|| hash.to_owned()) != hash {
            return Err(format!("the agent {} runs {hash}, others {changed:?}", agent.uid));
        }
    }
    Ok(())
}

/// What agents shall run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Desired {
    /// Those whose config does not change; nothing while that is not known yet.
    pub(crate) steady: Option<String>,
    /// What the others ran before, and shall not any more.
    pub(crate) old: Vec<String>,
}

/// Compares what reporters have got an answer for with what the API shows; every difference is a line.
pub(crate) async fn lost(said: &[Said], apis: &Apis) -> Result<Vec<String>> {
    let listed = apis.list(&format!("service.name={SERVICE}")).await?;
    let mut lost = Vec::new();
    for said in said {
        let Some(agent) = listed.get(&said.uid) else {
            lost.push(format!("the API does not list {}", said.uid));
            continue;
        };
        let whole = apis.agent(said.uid).await?;
        let body = whole["effective_config"]["reporter.yaml"]["body"].as_str().unwrap_or_default();
        let parts = [
            ("health", Number::read(&agent.last_error), said.acknowledged.health, said.sent.health),
            ("effective config", Number::read(body), said.acknowledged.config, said.sent.config),
        ];
        for (part, shown, acknowledged, sent) in parts {
            if shown < acknowledged || shown > sent {
                let what = format!("shown {shown:?}, acknowledged {acknowledged:?}, sent {sent:?}");
                lost.push(format!("{part} of {}: {what}", said.uid));
            }
        }
        if agent.sequence < said.acknowledged_sequence {
            let (shown, answered) = (agent.sequence, said.acknowledged_sequence);
            lost.push(format!("sequence of {}: shown {shown}, acknowledged {answered}", said.uid));
        }
    }
    Ok(lost)
}
