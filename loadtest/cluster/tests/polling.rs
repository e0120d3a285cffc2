//! An agent that polls through two gateways in turn: its session is nobody's, and goes on whatever happens to
//! them.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test ends with its panics")]

mod program;

use std::time::Duration;

use muster_cluster::{Cluster, ClusterOptions, Role};
use muster_proto::opamp::{AgentRemoteConfig, RemoteConfigStatuses, ServerToAgent};
use muster_testkit::engines::{Engine, engines_or_skip};
use muster_testkit::messages::{config_status, effective_config, full_state, health, heartbeat, new_uid};
use muster_testkit::{Api, Poller, RawAgent, eventually};
use serde_json::{Value, json};
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(60);

const MANIFESTS: &str = "
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: base}
spec:
  variables: [{name: endpoint, type: string, required: true}]
  config: {endpoint: \"{{.endpoint}}\"}
---
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {name: blue}
spec: {template: {name: base}, values: {endpoint: ONE}, selector: {matchLabels: {team: blue}}}
";

/// The agent, and the gateways that it goes through in turn.
struct Agent {
    uid: Uuid,
    gateways: Vec<Poller>,
    sequence: u64,
}

impl Agent {
    fn new(cluster: &Cluster) -> Self {
        let url = |url: String| Poller::new(url.replace("ws://", "http://"));
        let gateways = cluster.role(Role::Gateway).map(|process| url(process.opamp_url())).collect();
        Self { uid: new_uid(), gateways, sequence: 0 }
    }

    /// The next number, and the gateway that it goes through.
    fn next(&mut self) -> (u64, Poller) {
        self.sequence += 1;
        let at = usize::try_from(self.sequence).unwrap() % self.gateways.len();
        (self.sequence, self.gateways[at].clone())
    }

    async fn heartbeat(&mut self) -> ServerToAgent {
        let (sequence, gateway) = self.next();
        gateway.exchange(&heartbeat(self.uid, sequence)).await
    }

    async fn full_state(&mut self, team: &str) -> ServerToAgent {
        let (sequence, gateway) = self.next();
        gateway.exchange(&full_state(self.uid, sequence, &[("team", team)])).await
    }

    /// Polls until something is offered.
    async fn offer(&mut self) -> AgentRemoteConfig {
        eventually(SOON, async || {
            let answer = self.heartbeat().await;
            assert_eq!(answer.flags, 0, "nothing was lost");
            answer.remote_config.ok_or_else(|| "nothing is offered".to_owned())
        })
        .await
    }

    async fn run(&mut self, offer: &AgentRemoteConfig) {
        let file = &offer.config.as_ref().unwrap().config_map["base"];
        let text = String::from_utf8(file.body.to_vec()).unwrap();
        let (sequence, gateway) = self.next();
        let message =
            config_status(self.uid, sequence, &offer.config_hash, RemoteConfigStatuses::Applying, "");
        assert_eq!(gateway.exchange(&message).await.flags, 0);
        let (sequence, gateway) = self.next();
        assert_eq!(
            gateway.exchange(&effective_config(self.uid, sequence, &[("base", &text)])).await.flags,
            0
        );
        let (sequence, gateway) = self.next();
        let message =
            config_status(self.uid, sequence, &offer.config_hash, RemoteConfigStatuses::Applied, "");
        assert_eq!(gateway.exchange(&message).await.flags, 0);
    }

    /// As the answers to heartbeats are: nothing but the uid.
    fn plain(&self) -> ServerToAgent {
        ServerToAgent { instance_uid: self.uid.as_bytes().to_vec(), ..ServerToAgent::default() }
    }
}

async fn view(api: &Api, uid: Uuid) -> Result<Value, String> {
    api.get(&format!("/api/v1/agents/{uid}")).await.map_err(|error| error.to_string())
}

async fn has(api: &Api, uid: Uuid, pointer: &str, value: impl Into<Value>) -> Value {
    let value = value.into();
    eventually(SOON, async || {
        let view = view(api, uid).await?;
        if view.pointer(pointer) == Some(&value) {
            Ok(view)
        } else {
            Err(format!("{pointer} is not {value}: {view:#}"))
        }
    })
    .await
}

async fn apply(api: &Api, manifests: &str) {
    api.post_text("/api/v1/apply", "application/yaml", manifests).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_polls_through_any_gateway() {
    if !engines_or_skip(&[Engine::Nats, Engine::Redis, Engine::Postgres]) {
        return;
    }
    let options = ClusterOptions {
        gateways: 2,
        controls: 2,
        apis: 1,
        nats: 1,
        fsync: false,
        ..ClusterOptions::new(program::muster())
    };
    let mut cluster = Cluster::start(&options).await.unwrap();
    let api = cluster.process(Role::Api, 0).api().clone();
    apply(&api, MANIFESTS).await;

    // The config, through both gateways in turn.
    let mut agent = Agent::new(&cluster);
    let first = agent.full_state("blue").await;
    assert_eq!((first.capabilities, first.flags), (0x7, 0));
    let offered = match first.remote_config {
        Some(offered) => offered,
        None => agent.offer().await,
    };
    agent.run(&offered).await;
    let applied = has(&api, agent.uid, "/remote_config/status", "APPLIED").await;
    assert_eq!(applied["effective_config"]["base"]["body"], json!("endpoint: ONE\n"));
    let session = applied["session"]["id"].clone();

    // Heartbeats publish nothing, wherever they arrive.
    let published = cluster.sum(Role::Gateway, "muster_gateway_publishes_total").await;
    for _ in 0..20 {
        assert_eq!(agent.heartbeat().await, agent.plain());
    }
    assert_eq!(cluster.sum(Role::Gateway, "muster_gateway_publishes_total").await, published);

    // A repeat at the other gateway takes no effect.
    let (sequence, gateway) = agent.next();
    let message = health(agent.uid, sequence, false, "once");
    assert_eq!(gateway.exchange(&message).await, agent.plain());
    for gateway in agent.gateways.clone() {
        assert_eq!(gateway.exchange(&message).await, agent.plain());
    }
    assert_eq!(cluster.sum(Role::Gateway, "muster_gateway_publishes_total").await, published + 1.0);
    has(&api, agent.uid, "/health/last_error", "once").await;

    // A change of intent.
    apply(&api, &MANIFESTS.replace("ONE", "TWO")).await;
    let offered = agent.offer().await;
    agent.run(&offered).await;
    let applied = has(&api, agent.uid, "/effective_config/base/body", "endpoint: TWO\n").await;
    assert_eq!(applied["session"]["id"], session, "it is one session throughout");

    // A report that is too large for the log.
    let (sequence, gateway) = agent.next();
    let large = "a: 1\n".repeat(500_000);
    let message = effective_config(agent.uid, sequence, &[("large", &large)]);
    assert_eq!(gateway.compressing().exchange(&message).await, agent.plain());
    has(&api, agent.uid, "/effective_config/large/body", large).await;

    // While one gateway waits for the log, the other one is asked again: no effect, and none is lost.
    cluster.nats.servers()[0].stop().await;
    let (sequence, gateway) = agent.next();
    let message = health(agent.uid, sequence, true, "slow");
    gateway.try_send(&message, Duration::from_secs(1)).await.unwrap_err();
    let (_, other) = (sequence, agent.gateways[usize::try_from(sequence + 1).unwrap() % 2].clone());
    assert_eq!(other.exchange(&message).await, agent.plain(), "it is in flight");
    cluster.nats.servers()[0].cont().await;
    has(&api, agent.uid, "/health/last_error", "slow").await;
    eventually(SOON, async || {
        let answer = agent.heartbeat().await;
        if answer == agent.plain() { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;

    // Ownership is away: no new requests. It comes back empty: full state is asked once.
    cluster.redis.kill9().await;
    let (sequence, gateway) = agent.next();
    let refused = gateway.send(&heartbeat(agent.uid, sequence)).await;
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!(refused.status == 503 && (30..=60).contains(&seconds), "{refused:?}");
    cluster.redis.restart().await;
    let asked = eventually(SOON, async || {
        let answer = gateway.try_send(&heartbeat(agent.uid, sequence), Duration::from_secs(10)).await?;
        if answer.status == 200 { Ok(answer.message()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    assert_eq!(asked.flags, 1);
    eventually(SOON, async || {
        // The other gateway may not have seen that ownership is back.
        let (sequence, gateway) = agent.next();
        let answer = gateway.send(&full_state(agent.uid, sequence, &[("team", "blue")])).await;
        if answer.status == 200 { Ok(answer) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let before = session;
    let session = eventually(SOON, async || {
        let session = view(&api, agent.uid).await?["session"]["id"].clone();
        if session == before { Err("there is no other session".to_owned()) } else { Ok(session) }
    })
    .await;

    // A gateway is lost: sessions on its WebSockets end, those of polls do not.
    let mut connected = RawAgent::connect(&cluster.process(Role::Gateway, 0).opamp_url()).await;
    let lost = new_uid();
    connected.exchange(&full_state(lost, 0, &[])).await;
    has(&api, lost, "/connected", true).await;
    cluster.kill9(Role::Gateway, 0).await;
    agent.gateways.remove(0);
    let ended = has(&api, lost, "/connected", false).await;
    assert_eq!(ended["session"]["end_reason"], "gateway_lost");
    assert_eq!(has(&api, agent.uid, "/connected", true).await["session"]["id"], session);
    let (sequence, gateway) = agent.next();
    assert_eq!(gateway.exchange(&health(agent.uid, sequence, false, "still here")).await.flags, 0);
    let seen = has(&api, agent.uid, "/health/last_error", "still here").await;
    assert_eq!(seen["session"]["id"], session);
    cluster.terminate().await;
}
