//! Agents' keys: who gets in, for whom, for how long, and what becomes of connections whose key is revoked.

use std::time::{Duration, Instant};

use muster_fleet::{Fleet, FleetOptions};
use muster_proto::opamp::{AgentToServerFlags, ServerErrorResponseType};
use muster_testkit::engines::{Engine, Nats, Postgres, Redis, engines_or_skip};
use muster_testkit::messages::{first_report, heartbeat, new_uid};
use muster_testkit::{Muster, MusterBuilder, Poller, RawAgent, Refusal, eventually, go_or_skip};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{SOON, agent_has};

fn builder(kind: &str) -> MusterBuilder {
    // People are not asked here.
    let builder = Muster::builder(env!("CARGO_BIN_EXE_muster")).env("MUSTER_AUTH__TYPE", kind);
    builder.env("MUSTER_AUTH__API__REQUIRED", "false")
}

/// Makes a key through the API.
async fn create(muster: &Muster, body: Value) -> (String, String) {
    let made = muster.api().post("/api/v1/keys", &body).await.unwrap();
    (made["id"].as_str().unwrap().to_owned(), made["key"].as_str().unwrap().to_owned())
}

async fn connect(muster: &Muster, authorization: &str) -> Result<RawAgent, Refusal> {
    RawAgent::try_connect(&muster.opamp_url(), &[("authorization", authorization)]).await
}

/// Connects with a key as soon as the gateway knows it.
async fn connect_with(muster: &Muster, key: &str) -> RawAgent {
    let authorization = format!("Bearer {key}");
    eventually(SOON, async || connect(muster, &authorization).await.map_err(|refusal| format!("{refusal:?}")))
        .await
}

#[tokio::test]
async fn without_a_good_key_there_is_401_before_the_upgrade() {
    let muster = builder("api_key").start().await;
    let made = muster.cli(&["keys", "create", "first", "--output", "json"]).await.expect_success();
    let made: Value = serde_json::from_str(&made).unwrap();
    let key = made["key"].as_str().unwrap();
    assert!(key.starts_with("opamp_") && key.len() == 38, "{key}");
    let mut agent = connect_with(&muster, key).await;
    let uid = new_uid();
    agent.exchange(&first_report(uid, &[])).await;
    agent_has(&muster, uid, "/connected", true).await;

    let almost = format!("{}x", &key[..37]);
    let basic = base64(&format!("agent:{key}"));
    let none = RawAgent::try_connect(&muster.opamp_url(), &[]).await.unwrap_err();
    assert_eq!((none.status, none.header("www-authenticate")), (401, Some("Bearer realm=\"opamp\"")));
    let bad = [
        format!("Bearer {almost}"),
        "Bearer opamp_".to_owned(),
        "Bearer".to_owned(),
        format!("Bearer {}", "x".repeat(20_000)),
        format!("Digest {key}"),
        format!("Basic {basic}"),
        // A token of the API is none of an agent.
        "Bearer muster_0123456789".to_owned(),
    ];
    for authorization in &bad {
        let refused = connect(&muster, authorization).await.unwrap_err();
        assert_eq!(refused.status, 401, "{authorization:.60}: {refused:?}");
    }
    let twice = [("authorization", bad[0].as_str()), ("authorization", bad[1].as_str())];
    assert_eq!(RawAgent::try_connect(&muster.opamp_url(), &twice).await.unwrap_err().status, 401);
    // Lists show how it begins, and no more.
    let listed = muster.cli(&["keys", "list", "--output", "json"]).await.expect_success();
    assert!(listed.contains(&key[..10]) && !listed.contains(key), "{listed}");
    assert!(muster.api().metrics().await.unwrap().sum("muster_gateway_denied_total") >= 9.0);
    muster.assert_no_errors();
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test]
async fn a_revoked_key_s_connections_are_closed_and_others_stay() {
    let mut muster = builder("api_key").env("MUSTER_TELEMETRY__LOGS__LEVEL", "trace").start().await;
    let (bad, bad_key) = create(&muster, json!({"name": "stolen"})).await;
    let (_, good_key) = create(&muster, json!({"name": "good"})).await;
    let mut closed = connect_with(&muster, &bad_key).await;
    let mut open = connect_with(&muster, &good_key).await;
    let uid = new_uid();
    open.exchange(&first_report(uid, &[])).await;

    muster.cli(&["keys", "revoke", &bad]).await.expect_success();
    assert_eq!(closed.recv_close().await, 1008);
    let refused = connect(&muster, &format!("Bearer {bad_key}")).await.unwrap_err();
    assert_eq!((refused.status, refused.body.trim()), (401, "the credential is revoked"));
    open.exchange(&heartbeat(uid, 1)).await;

    // What is revoked stays so, and keys outlive the process: the bucket is filled from the store.
    muster.terminate().await;
    muster.restart().await;
    connect_with(&muster, &good_key).await;
    assert_eq!(connect(&muster, &format!("Bearer {bad_key}")).await.unwrap_err().status, 401);
    let logs = muster.logs().join("\n");
    assert!(!logs.contains(&bad_key) && !logs.contains(&good_key), "a key is in the log");
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_rotated_key_counts_for_as_long_as_it_is_said() {
    let muster = builder("api_key").start().await;
    let (old, old_key) = create(&muster, json!({"name": "fleet"})).await;
    connect_with(&muster, &old_key).await;
    let rotated =
        muster.cli(&["keys", "rotate", &old, "--overlap", "1h", "-o", "json"]).await.expect_success();
    let rotated: Value = serde_json::from_str(&rotated).unwrap();
    connect_with(&muster, rotated["key"].as_str().unwrap()).await;
    connect_with(&muster, &old_key).await;
    let shown = muster.api().get(&format!("/api/v1/keys/{old}")).await.unwrap();
    assert_eq!((&shown["status"], &shown["name"]), (&json!("expiring"), &json!("fleet")));
    let again = format!("/api/v1/keys/{old}/rotate");
    muster.api().post(&format!("/api/v1/keys/{old}/revoke"), &json!({})).await.unwrap();
    assert_eq!(muster.api().post(&again, &json!({})).await.unwrap_err().status, 409);

    // An overlap of nothing ends it at once, and its connections with it.
    let (next, next_key) = create(&muster, json!({"name": "next"})).await;
    let mut agent = connect_with(&muster, &next_key).await;
    muster.api().post(&format!("/api/v1/keys/{next}/rotate"), &json!({"overlap_seconds": 0})).await.unwrap();
    assert_eq!(agent.recv_close().await, 1008);
    let refused = connect(&muster, &format!("Bearer {next_key}")).await.unwrap_err();
    assert_eq!((refused.status, refused.body.trim()), (401, "the credential has expired"));
}

#[tokio::test]
async fn a_key_is_of_one_tenant_and_its_agents_are_seen_by_that_one_alone() {
    let muster = builder("api_key").start().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    muster.api().post("/api/v1/tenants", &json!({"name": "acme"})).await.unwrap();
    let made = client.post(format!("{}/api/v1/keys", muster.http_url())).header("muster-tenant", "acme");
    let made: Value = made.json(&json!({"name": "of acme"})).send().await.unwrap().json().await.unwrap();
    let (_, own) = create(&muster, json!({"name": "own"})).await;
    // Both use one instance_uid: they are two agents.
    let uid = new_uid();
    let mut other = connect_with(&muster, made["key"].as_str().unwrap()).await;
    other.exchange(&first_report(uid, &[("service.name", "theirs")])).await;
    let theirs = async |uid: Uuid| {
        let url = format!("{}/api/v1/agents/{uid}", muster.http_url());
        client.get(url).header("muster-tenant", "acme").send().await.unwrap().status().as_u16()
    };
    eventually(SOON, async || match theirs(uid).await {
        200 => Ok(()),
        status => Err(format!("{status}")),
    })
    .await;
    assert_eq!(muster.api().get(&format!("/api/v1/agents/{uid}")).await.unwrap_err().status, 404);
    let listed = muster.api().get("/api/v1/agents").await.unwrap();
    assert_eq!(listed["items"], json!([]));

    let mut ours = connect_with(&muster, &own).await;
    ours.exchange(&first_report(uid, &[("service.name", "ours")])).await;
    let view = agent_has(&muster, uid, "/connected", true).await;
    assert_eq!(view["attributes"]["identifying"]["service.name"], "ours");
    other.exchange(&heartbeat(uid, 1)).await;
    // Nor are keys of another tenant shown or revoked.
    let path = format!("/api/v1/keys/{}", made["id"].as_str().unwrap());
    assert_eq!(muster.api().get(&path).await.unwrap_err().status, 404);
    assert_eq!(muster.api().post(&format!("{path}/revoke"), &json!({})).await.unwrap_err().status, 404);
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_bound_key_is_for_its_uids_and_those_that_the_server_gives() {
    let muster = builder("api_key").start().await;
    let (own, foreign) = (new_uid(), new_uid());
    let (id, key) = create(&muster, json!({"name": "bound", "instance_uids": [own.to_string()]})).await;
    let mut agent = connect_with(&muster, &key).await;
    let refused = agent.exchange(&first_report(foreign, &[])).await.error_response.unwrap();
    assert_eq!(refused.r#type, i32::from(ServerErrorResponseType::BadRequest));
    assert!(refused.error_message.contains("may not be used"), "{}", refused.error_message);
    agent.exchange(&first_report(own, &[])).await;
    agent_has(&muster, own, "/connected", true).await;
    assert_eq!(muster.api().get(&format!("/api/v1/agents/{foreign}")).await.unwrap_err().status, 404);

    // An agent that asks for a uid gets one, which joins the key's.
    let mut asking = connect_with(&muster, &key).await;
    let mut first = first_report(new_uid(), &[]);
    first.flags = AgentToServerFlags::RequestInstanceUid as u64;
    let given = asking.exchange(&first).await.agent_identification.unwrap().new_instance_uid;
    let given = Uuid::from_slice(&given).unwrap();
    let shown = muster.api().get(&format!("/api/v1/keys/{id}")).await.unwrap();
    assert!(shown["instance_uids"].as_array().unwrap().contains(&json!(given.to_string())), "{shown}");
    drop(asking);
    let mut again = connect_with(&muster, &key).await;
    assert_eq!(again.exchange(&first_report(given, &[])).await.error_response, None);
    agent_has(&muster, given, "/connected", true).await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn agents_that_poll_show_their_key_with_every_request() {
    let muster = builder("api_key").start().await;
    let (id, key) = create(&muster, json!({"name": "polls"})).await;
    let own = new_uid();
    let (bound_id, bound) =
        create(&muster, json!({"name": "bound", "instance_uids": [own.to_string()]})).await;
    let nobody = Poller::new(muster.opamp_http_url());
    let poller = |key: &str| nobody.clone().header("authorization", &format!("Bearer {key}"));
    let uid = new_uid();
    let refused = nobody.send(&first_report(uid, &[])).await;
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer realm=\"opamp\"")));
    let polls = poller(&key);
    eventually(SOON, async || match polls.send(&first_report(uid, &[])).await.status {
        200 => Ok(()),
        status => Err(format!("{status}")),
    })
    .await;
    agent_has(&muster, uid, "/connected", true).await;
    // A bound key is for its uid, and for one that the server gives.
    let foreign = poller(&bound).send(&first_report(uid, &[])).await.message().error_response.unwrap();
    assert!(foreign.error_message.contains("may not be used"), "{}", foreign.error_message);
    assert_eq!(poller(&bound).send(&first_report(own, &[])).await.message().error_response, None);
    let mut first = first_report(new_uid(), &[]);
    first.flags = AgentToServerFlags::RequestInstanceUid as u64;
    let given = poller(&bound).send(&first).await.message().agent_identification.unwrap().new_instance_uid;
    let given = Uuid::from_slice(&given).unwrap();
    let shown = muster.api().get(&format!("/api/v1/keys/{bound_id}")).await.unwrap();
    assert!(shown["instance_uids"].as_array().unwrap().contains(&json!(given.to_string())), "{shown}");

    muster.cli(&["keys", "revoke", &id]).await.expect_success();
    eventually(SOON, async || match polls.send(&heartbeat(uid, 1)).await.status {
        401 => Ok(()),
        status => Err(format!("{status}")),
    })
    .await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn old_clients_send_a_key_as_a_password() {
    let muster = builder("[none, basic]").start().await;
    let (_, key) = create(&muster, json!({"name": "old"})).await;
    let basic = format!("Basic {}", base64(&format!("anything:{key}")));
    eventually(SOON, async || {
        connect(&muster, &basic).await.map(drop).map_err(|refusal| format!("{refusal:?}"))
    })
    .await;
    // Who shows nothing is let in here, who shows something wrong is not.
    RawAgent::connect(&muster.opamp_url()).await;
    let wrong = format!("Basic {}", base64("anything:opamp_no"));
    assert_eq!(connect(&muster, &wrong).await.unwrap_err().status, 401);
    assert_eq!(connect(&muster, &format!("Bearer {key}")).await.unwrap_err().status, 401);
    if let Some(go) = go_or_skip() {
        let mut agent = go.agent().await.header("Authorization", &basic).start(&muster.opamp_url());
        agent.wait("connected").await;
        agent.disconnect().await;
    }
}

#[tokio::test]
async fn who_fails_too_often_waits_and_known_agents_go_on() {
    let muster = builder("api_key").env("MUSTER_AUTH__FAILURES_PER_SECOND", "1").start().await;
    let (_, key) = create(&muster, json!({"name": "good"})).await;
    connect_with(&muster, &key).await;
    let guess = |number: usize| format!("Bearer opamp_{number:032}");
    let limited = async {
        for number in 0..200 {
            let refused = connect(&muster, &guess(number)).await.unwrap_err();
            if refused.status == 429 {
                return refused;
            }
            assert_eq!(refused.status, 401);
        }
        panic!("nobody was told to wait");
    };
    assert!(limited.await.header("retry-after").is_some());
    connect(&muster, &format!("Bearer {key}")).await.unwrap();
}

/// A cluster of a control with an API, and of so many gateways, whose agents show keys.
struct Cluster {
    postgres: Postgres,
    _nats: Nats,
    _redis: Redis,
    control: Muster,
    gateways: Vec<Muster>,
}

impl Cluster {
    async fn start(gateways: usize) -> Self {
        let (nats, redis) = (Nats::start().await, Redis::start().await);
        let postgres = Postgres::builder().without_fsync().start().await;
        let database = postgres.database().await;
        let process = |roles: &str, name: &str| {
            builder("api_key")
                // All agents are at one address.
                .env("MUSTER_AUTH__FAILURES_PER_SECOND", "10000")
                .env("MUSTER_BUS__TYPE", "nats")
                .env("MUSTER_BUS__URL", nats.url())
                .env("MUSTER_BUS__REPLICAS", "1")
                .env("MUSTER_BUS__MAX_BYTES", "256MiB")
                .env("MUSTER_BUS__MAX_BLOB_BYTES", "64MiB")
                .env("MUSTER_OWNERSHIP__TYPE", "redis")
                .env("MUSTER_OWNERSHIP__URL", redis.url())
                .env("MUSTER_DATABASE__TYPE", "postgres")
                .env("MUSTER_DATABASE__CONNECTION_STRING", &database)
                .env("MUSTER_DATABASE__MAX_OPEN_CONNS", "10")
                .arg("--roles")
                .arg(roles)
                .arg("--name")
                .arg(name)
        };
        let control = process("control,api", "control").start().await;
        let mut started = Vec::new();
        for number in 0..gateways {
            started.push(process("gateway", &format!("gateway-{number}")).start().await);
        }
        Self { postgres, _nats: nats, _redis: redis, control, gateways: started }
    }
}

fn fleet(gateway: &Muster, key: &str, count: usize, seed: u64) -> Fleet {
    let options = FleetOptions {
        count,
        seed,
        headers: vec![("Authorization".to_owned(), format!("Bearer {key}"))],
        ..FleetOptions::new(gateway.opamp_url())
    };
    Fleet::start(options, CancellationToken::new()).unwrap()
}

/// With `MUSTER_REVOCATION_AGENTS` more agents, to measure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_reaches_every_gateway_within_seconds_and_postgres_is_not_asked() {
    if !engines_or_skip(&[Engine::Nats, Engine::Redis, Engine::Postgres]) {
        return;
    }
    let mut cluster = Cluster::start(3).await;
    let count =
        std::env::var("MUSTER_REVOCATION_AGENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(90_usize);
    let (id, key) = create(&cluster.control, json!({"name": "all"})).await;
    let (_, spare) = create(&cluster.control, json!({"name": "spare"})).await;
    for gateway in &cluster.gateways {
        connect_with(gateway, &key).await;
    }
    let fleets: Vec<_> = cluster
        .gateways
        .iter()
        .zip(1..)
        .map(|(gateway, seed)| fleet(gateway, &key, count / 3, seed))
        .collect();
    for fleet in &fleets {
        fleet.wait(|stats| stats.connected == count / 3, 12 * SOON).await.unwrap();
    }

    let began = Instant::now();
    cluster.control.api().post(&format!("/api/v1/keys/{id}/revoke"), &json!({})).await.unwrap();
    let called = began.elapsed();
    for fleet in &fleets {
        fleet.wait(|stats| stats.connected == 0, 6 * SOON).await.unwrap();
    }
    println!(
        "{count} connections of a revoked key were closed {:?} after the call, which took {called:?}",
        began.elapsed()
    );
    assert!(count > 90 || began.elapsed() < Duration::from_secs(10));
    for (gateway, fleet) in cluster.gateways.iter().zip(fleets) {
        fleet.kill().await;
        assert_eq!(connect(gateway, &format!("Bearer {key}")).await.unwrap_err().status, 401);
    }

    // Without the store gateways let in whom they do not know yet, too.
    cluster.postgres.kill9().await;
    for gateway in &cluster.gateways {
        connect(gateway, &format!("Bearer {spare}")).await.unwrap();
        assert_eq!(connect(gateway, "Bearer opamp_nobody").await.unwrap_err().status, 401);
    }
}
