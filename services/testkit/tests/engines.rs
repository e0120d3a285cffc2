//! The engines start, answer, keep what they are to keep over a crash, and are gone afterwards.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_testkit::engines::{Engine, Nats, NatsCluster, Postgres, Redis, Server, engines_or_skip};
use muster_testkit::eventually;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(20);

/// What must not be there after the server.
struct Traces {
    port: u16,
    pid: u32,
    directory: PathBuf,
}

impl Traces {
    fn of(server: &Server, port: u16) -> Self {
        Self { port, pid: server.pid(), directory: server.directory().to_owned() }
    }

    async fn assert_gone(&self) {
        assert!(TcpStream::connect(("127.0.0.1", self.port)).await.is_err(), "it listens");
        assert!(!Path::new(&format!("/proc/{}", self.pid)).exists(), "it runs");
        assert!(!self.directory.exists(), "its directory is there");
    }
}

/// Sends one request of NATS and returns the JSON of the reply, asking again while nobody replies.
async fn request(port: u16, subject: &str, payload: &str) -> Value {
    let ask = async || -> Result<Value, String> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| e.to_string())?;
        let mut stream = BufReader::new(stream);
        // Of its own: a server that starts again acknowledges once more what it had stored.
        let inbox = format!("inbox.{}", uuid::Uuid::now_v7());
        let request = format!(
            "CONNECT {{\"verbose\":false,\"headers\":true,\"no_responders\":true}}\r\nSUB {inbox} 1\r\n\
             PUB {subject} {inbox} {}\r\n{payload}\r\n",
            payload.len()
        );
        stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.map_err(|e| e.to_string())? == 0 {
                return Err("the connection ended".to_owned());
            }
            if let Some(message) = line.strip_prefix("MSG ") {
                let length = message.trim().rsplit(' ').next().unwrap().parse().unwrap();
                let mut reply = vec![0; length];
                stream.read_exact(&mut reply).await.map_err(|e| e.to_string())?;
                let reply: Value = serde_json::from_slice(&reply).unwrap();
                let error = reply.get("error").map(Value::to_string);
                return error.map_or(Ok(reply), Err);
            } else if line.starts_with("HMSG ") || line.starts_with("-ERR") {
                return Err(line);
            }
        }
    };
    eventually(LIMIT, async || timeout(Duration::from_secs(2), ask()).await.map_err(|e| e.to_string())?).await
}

async fn make_stream(port: u16, replicas: u32) {
    let stream = json!({ "name": "S", "subjects": ["s.>"], "num_replicas": replicas, "storage": "file" });
    request(port, "$JS.API.STREAM.CREATE.S", &stream.to_string()).await;
}

async fn messages(port: u16) -> Value {
    request(port, "$JS.API.STREAM.INFO.S", "").await["state"]["messages"].clone()
}

#[tokio::test]
async fn nats_keeps_its_streams_over_a_crash() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let mut nats = Nats::start().await;
    assert_eq!(nats.url(), format!("nats://127.0.0.1:{}", nats.port()));
    assert_eq!(nats.monitor("/jsz").await.unwrap()["config"]["sync_always"], true);

    make_stream(nats.port(), 1).await;
    request(nats.port(), "s.a", "1").await;
    nats.kill9().await;
    assert!(nats.monitor("/healthz").await.is_err());
    nats.restart().await;
    assert_eq!(messages(nats.port()).await, 1);

    request(nats.port(), "s.a", "2").await;
    nats.terminate().await;
    nats.restart().await;
    assert_eq!(messages(nats.port()).await, 2);
    assert_eq!(nats.logs().iter().filter(|line| line.contains("Server is ready")).count(), 3);

    let traces = Traces::of(&nats, nats.port());
    drop(nats);
    traces.assert_gone().await;
}

#[tokio::test]
async fn a_halted_server_does_not_answer_until_it_goes_on() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let redis = Redis::start().await;
    redis.stop().await;
    let answer = timeout(Duration::from_millis(300), redis.command("PING"));
    assert!(answer.await.is_err());
    redis.cont().await;
    assert_eq!(redis.command("PING").await, "+PONG\r\n");

    redis.stop().await;
    let traces = Traces::of(&redis, redis.port());
    drop(redis);
    traces.assert_gone().await;
}

#[tokio::test]
async fn a_nats_cluster_goes_on_without_one_server() {
    if !engines_or_skip(&[Engine::Nats]) {
        return;
    }
    let mut cluster = NatsCluster::start(3).await;
    assert_eq!(cluster.url().split(',').count(), 3);
    for server in cluster.servers() {
        assert_eq!(server.monitor("/jsz").await.unwrap()["meta_cluster"]["cluster_size"], 3);
    }
    let leader = cluster.leader().await.unwrap();
    let other = (leader + 1) % 3;
    let port = cluster.servers()[other].port();
    make_stream(port, 3).await;
    request(port, "s.a", "1").await;

    cluster.servers_mut()[leader].kill9().await;
    request(port, "s.a", "2").await;
    cluster.servers_mut()[leader].restart().await;
    cluster.ready().await;

    // The one that was down has what it missed: it and one other are a majority.
    cluster.servers_mut()[other].kill9().await;
    let port = cluster.servers()[leader].port();
    eventually(LIMIT, async || match messages(port).await {
        found if found == 2 => Ok(()),
        found => Err(found.to_string()),
    })
    .await;

    for server in cluster.servers_mut() {
        server.kill9().await;
    }
    for server in cluster.servers_mut() {
        server.restart().await;
    }
    cluster.ready().await;
    assert_eq!(messages(port).await, 2);

    let traces: Vec<Traces> =
        cluster.servers().iter().map(|server| Traces::of(server, server.port())).collect();
    drop(cluster);
    for server in traces {
        server.assert_gone().await;
    }
}

#[tokio::test]
async fn redis_forgets_everything_in_a_crash() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let mut redis = Redis::start().await;
    assert_eq!(redis.url(), format!("redis://127.0.0.1:{}", redis.port()));
    assert!(redis.command("INFO server").await.contains("redis_version:"));
    assert_eq!(redis.command("SET a 1").await, "+OK\r\n");
    redis.kill9().await;
    redis.restart().await;
    assert_eq!(redis.command("GET a").await, "$-1\r\n");

    assert_eq!(redis.command("SET a 1").await, "+OK\r\n");
    redis.flush().await;
    assert_eq!(redis.command("DBSIZE").await, ":0\r\n");
    assert_eq!(redis.command("SET a 1").await, "+OK\r\n");
    redis.terminate().await;
    redis.restart().await;
    assert_eq!(redis.command("DBSIZE").await, ":0\r\n");

    let traces = Traces::of(&redis, redis.port());
    drop(redis);
    traces.assert_gone().await;
}

#[tokio::test]
async fn redis_with_snapshots_keeps_the_last_one() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let mut redis = Redis::builder().snapshots().start().await;
    assert_eq!(redis.command("SET a 1").await, "+OK\r\n");
    redis.snapshot().await;
    assert_eq!(redis.command("SET b 1").await, "+OK\r\n");
    redis.kill9().await;
    redis.restart().await;
    assert_eq!(redis.command("EXISTS a").await, ":1\r\n");
    assert_eq!(redis.command("EXISTS b").await, ":0\r\n");

    assert_eq!(redis.command("SET b 1").await, "+OK\r\n");
    redis.terminate().await;
    redis.restart().await;
    assert_eq!(redis.command("EXISTS b").await, ":1\r\n");
}

#[tokio::test]
async fn postgres_keeps_its_tables_over_a_crash() {
    if !engines_or_skip(&[Engine::Postgres]) {
        return;
    }
    for builder in [Postgres::builder(), Postgres::builder().without_fsync()] {
        let mut postgres = builder.setting("max_connections=20").start().await;
        let (one, two) = (postgres.database().await, postgres.database().await);
        assert_ne!(one, two);
        Postgres::psql(&one, "CREATE TABLE t AS SELECT 7 AS a").await;
        let who = "SELECT current_user, usesuper FROM pg_user WHERE usename = current_user";
        assert_eq!(Postgres::psql(&postgres.url(), who).await, "muster|f");
        assert_eq!(Postgres::psql(&two, "SELECT to_regclass('t') IS NULL").await, "t");
        assert_eq!(Postgres::psql(&two, "SHOW max_connections").await, "20");

        // A statement under way, whose backend must end, too.
        let url = two.clone();
        let busy = tokio::spawn(async move { Postgres::psql(&url, "SELECT pg_sleep(100)").await });
        let active = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        eventually(LIMIT, async || match Postgres::psql(&two, active).await.as_str() {
            "1" => Ok(()),
            found => Err(found.to_owned()),
        })
        .await;
        postgres.kill9().await;
        assert!(busy.await.is_err());
        postgres.restart().await;
        assert_eq!(Postgres::psql(&one, "SELECT a FROM t").await, "7");
        postgres.terminate().await;
        postgres.restart().await;
        assert_eq!(Postgres::psql(&one, "SELECT a FROM t").await, "7");

        let traces = Traces::of(&postgres, postgres.port());
        drop(postgres);
        traces.assert_gone().await;
    }
}

#[test]
fn a_server_goes_on_when_the_runtime_that_started_it_has_ended() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut redis = runtime().block_on(Redis::start());
    runtime().block_on(async {
        assert_eq!(redis.command("PING").await, "+PONG\r\n");
        redis.terminate().await;
        redis.restart().await;
    });
    assert_eq!(runtime().block_on(redis.command("PING")), "+PONG\r\n");
}
