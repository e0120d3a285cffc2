//! Agents with one instance_uid on two gateways of a small cluster of real processes, and agents that come
//! back on another gateway while their old sockets look alive.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test ends with its panics")]

mod program;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use muster_cluster::{Cluster, ClusterOptions, Role};
use muster_proto::opamp::{AgentToServer, RemoteConfigStatuses, ServerToAgent};
use muster_testkit::engines::{Engine, engines_or_skip};
use muster_testkit::messages::{config_status, first_report, full_state, heartbeat, new_uid};
use muster_testkit::{RawAgent, eventually};
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(20);
/// Agents that come back at once.
const CROWD: usize = 500;
const BLUE: &[(&str, &str)] = &[("service.name", "otelcol"), ("team", "blue")];
const MANIFESTS: &str = "
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: base}
spec: {config: {a: 1}}
---
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {name: blue}
spec: {template: {name: base}, selector: {matchLabels: {team: blue}}}
";

struct Rig {
    cluster: Cluster,
    /// Of each gateway.
    urls: [String; 2],
}

/// The uid that an answer gives the agent.
fn given(answer: &ServerToAgent) -> Option<Uuid> {
    let identification = answer.agent_identification.as_ref()?;
    Some(Uuid::from_slice(&identification.new_instance_uid).unwrap())
}

async fn connect(url: &str, message: &AgentToServer) -> (RawAgent, ServerToAgent) {
    let mut agent = RawAgent::connect(url).await;
    let answer = agent.exchange(message).await;
    (agent, answer)
}

impl Rig {
    async fn start() -> Self {
        let options = ClusterOptions {
            gateways: 2,
            controls: 2,
            apis: 1,
            nats: 1,
            fsync: false,
            ..ClusterOptions::new(program::muster())
        };
        let cluster = Cluster::start(&options).await.expect("the cluster starts");
        cluster.apis().apply(MANIFESTS, SOON).await.expect("the manifests are applied");
        let urls = [0, 1].map(|number| cluster.process(Role::Gateway, number).opamp_url());
        Self { cluster, urls }
    }

    /// Takes the config that is offered, says so, and waits until the API does too.
    async fn run(&self, agent: &mut RawAgent, uid: Uuid, sequence: u64) {
        let offer = agent.recv_where(|message| message.remote_config.is_some()).await.remote_config.unwrap();
        let applied = RemoteConfigStatuses::Applied;
        agent.exchange(&config_status(uid, sequence, &offer.config_hash, applied, "")).await;
        self.has(uid, "/remote_config/status", "APPLIED").await;
    }

    async fn has(&self, uid: Uuid, pointer: &str, value: &str) {
        eventually(SOON, async || {
            let view = self.cluster.apis().agent(uid).await.map_err(|error| error.to_string())?;
            let found = view.pointer(pointer).map(|found| found.to_string()).unwrap_or_default();
            if found.trim_matches('"') == value {
                Ok(())
            } else {
                Err(format!("{pointer} is {found}: {view:#}"))
            }
        })
        .await;
    }

    async fn decided(&self, verdict: &str) -> f64 {
        let series = format!("muster_duplicate_instance_uids_total{{verdict=\"{verdict}\"}}");
        let metrics = self.cluster.metrics(Role::Control).await;
        metrics.iter().flatten().filter_map(|metrics| metrics.get(&series)).sum()
    }

    async fn two_clones(&self) {
        let uid = new_uid();
        let mut first = RawAgent::connect(&self.urls[0]).await;
        first.send(&first_report(uid, BLUE)).await;
        self.run(&mut first, uid, 1).await;
        let mut second = RawAgent::connect(&self.urls[1]).await;
        second.send(&first_report(uid, BLUE)).await;
        let answer = tokio::select! {
            answer = second.recv() => answer,
            unexpected = first.next_within(SOON) => panic!("the first one got {unexpected:?}"),
        };
        let new = given(&answer).expect("a new uid");
        second.send(&full_state(new, 1, BLUE)).await;
        self.run(&mut second, new, 2).await;
        for (uid, gateway) in [(uid, "gateway-1"), (new, "gateway-2")] {
            self.has(uid, "/session/gateway", gateway).await;
            self.has(uid, "/connected", "true").await;
        }
        let answer = first.exchange(&heartbeat(uid, 2)).await;
        assert_eq!((answer.flags, given(&answer)), (0, None), "the first one goes on");
    }

    /// A crowd that is connected to the first gateway, and one that comes back on the second while this
    /// happens to the first; how long that takes.
    async fn crowd(&mut self, act: impl AsyncFnOnce(&mut Cluster)) -> Duration {
        let uids: Vec<Uuid> = (0..CROWD).map(|_| new_uid()).collect();
        let first = uids.iter().map(|uid| first_report(*uid, &[("team", "red")]));
        let old = join_all(first.map(async |message| connect(&self.urls[0], &message).await)).await;
        let before = self.decided("takeover").await;
        act(&mut self.cluster).await;
        let begin = Instant::now();
        let again = uids.iter().map(|uid| heartbeat(*uid, 1));
        let new = join_all(again.map(async |message| connect(&self.urls[1], &message).await)).await;
        let took = begin.elapsed();
        for (_, answer) in &new {
            assert_eq!((answer.error_response.as_ref(), given(answer)), (None, None));
        }
        assert_eq!(self.decided("takeover").await - before, CROWD as f64);
        for uid in uids.iter().step_by(50) {
            self.has(*uid, "/session/gateway", "gateway-2").await;
            self.has(*uid, "/connected", "true").await;
        }
        drop(old);
        took
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_on_two_gateways_are_told_apart_and_crowds_that_come_back_are_not() {
    if !engines_or_skip(&[Engine::Nats, Engine::Redis, Engine::Postgres]) {
        return;
    }
    let mut rig = Rig::start().await;
    rig.two_clones().await;
    assert_eq!((rig.decided("duplicate").await, rig.decided("takeover").await), (1.0, 0.0));

    // Nobody reads from the old sockets, and they are open: each is probed.
    let took = rig.crowd(async |_| {}).await;
    println!("{CROWD} agents whose old sockets are half-open came back within {took:?}");
    assert!(took < Duration::from_secs(15), "one after the other: {took:?}");

    let took = rig.crowd(async |cluster| cluster.kill9(Role::Gateway, 0).await).await;
    println!("{CROWD} agents of a gateway that crashed came back within {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!((rig.decided("duplicate").await, rig.decided("undecided").await), (1.0, 0.0));
    rig.cluster.terminate().await;
}
