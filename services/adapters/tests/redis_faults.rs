//! Ownership in Redis while Redis is away, silent, emptied, or not the one that takes writes.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests, of which clippy knows only the functions marked so"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use muster_adapters::redis::{RedisOptions, RedisOwnership};
use muster_domain::ids::{AgentKey, Claim, Incarnation, InstanceUid, SessionId, Timestamp};
use muster_ports::EngineError;
use muster_ports::ownership::{ClaimOutcome, ClaimRequest, Ownership as _, Settled};
use muster_testkit::engines::{Engine, Redis, engines_or_skip};
use muster_testkit::eventually;
use uuid::Uuid;

const NOW: u64 = 1_790_000_000_000_000;

/// The timeouts of a call and what a busy machine adds.
const LIMIT: Duration = Duration::from_millis(2_500);

/// A call that waits for nothing.
const AT_ONCE: Duration = Duration::from_millis(300);

const SOON: Duration = Duration::from_secs(10);

fn connect(urls: &[String]) -> RedisOwnership {
    RedisOwnership::connect(RedisOptions::new(urls)).unwrap()
}

fn key() -> AgentKey {
    AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(1)) }
}

fn session(number: u128) -> SessionId {
    SessionId(Uuid::from_u128(number))
}

fn request(by: u128, now: u64) -> ClaimRequest {
    ClaimRequest {
        key: key(),
        session: session(by),
        gateway: "gateway".parse().unwrap(),
        incarnation: Incarnation(Uuid::from_u128(by)),
        now: Timestamp(now),
        displace: None,
        epoch: 1,
    }
}

fn settled(by: u128, sequence_num: u64) -> Settled {
    Settled {
        key: key(),
        session: session(by),
        sequence_num: Some(sequence_num),
        epoch: 1,
        seen: Timestamp(NOW),
    }
}

/// How long it took to fail, and the reason.
async fn fails(engine: &RedisOwnership) -> (Duration, String) {
    let started = Instant::now();
    match engine.settle(vec![settled(1, 1)]).await {
        Err(EngineError::Unavailable { engine: "Redis", reason }) => (started.elapsed(), reason),
        other => panic!("{other:?}"),
    }
}

async fn works(engine: &RedisOwnership) -> Duration {
    let started = Instant::now();
    eventually(SOON, async || engine.ping().await.map_err(|error| error.to_string())).await;
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_empty() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let mut redis = Redis::start().await;
    let engine = connect(&[redis.url()]);
    let ClaimOutcome::Granted { claim: before } = engine.claim(request(1, NOW)).await.unwrap() else {
        panic!("known in an empty Redis");
    };
    assert_eq!(engine.settle(vec![settled(1, 7)]).await.unwrap(), []);
    // In use by many while it dies: each call answers or fails in time.
    let mut failed = 0;
    for round in 0..3 {
        let calls = async {
            let calls = (0..200).map(|number| {
                let engine = &engine;
                async move {
                    tokio::time::sleep(Duration::from_millis(number)).await;
                    let started = Instant::now();
                    let outcome = engine.settle(vec![settled(1, number)]).await;
                    (started.elapsed(), outcome)
                }
            });
            futures_util::future::join_all(calls).await
        };
        let killing = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            redis.kill9().await;
        };
        let (calls, ()) = tokio::join!(calls, killing);
        for (took, outcome) in calls {
            assert!(took < LIMIT, "{took:?} for {outcome:?}");
            match outcome {
                Ok(_) => {}
                Err(EngineError::Unavailable { .. }) => failed += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
        assert!(failed > 0);
        let (took, reason) = fails(&engine).await;
        assert!(took < AT_ONCE, "{took:?}");
        assert!(reason.contains(&format!("127.0.0.1:{}", redis.port())), "{reason}");
        redis.restart().await;
        eprintln!("round {round}: works {:.0?} after the restart", works(&engine).await);
        assert_eq!(engine.settle(vec![settled(1, 8)]).await.unwrap(), [(key(), session(1))]);
        assert_eq!(engine.look_up(&[key()]).await.unwrap(), [None]);
        engine.release(&key(), session(1)).await.unwrap();
        let later = NOW + 1 + round;
        let ClaimOutcome::Granted { claim } = engine.claim(request(1, later)).await.unwrap() else {
            panic!("known in an empty Redis");
        };
        assert!(claim > before && claim >= Claim(later));
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_is_replaced_unseen() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let redis = Redis::start().await;
    let engine = connect(&[redis.url()]);
    for round in 0..20 {
        engine.claim(request(1, NOW + round)).await.unwrap();
        redis.command("CLIENT KILL TYPE normal SKIPME yes").await;
        assert_eq!(engine.settle(vec![settled(1, round)]).await.unwrap(), []);
        redis.command("CLIENT KILL TYPE normal SKIPME yes").await;
        assert!(engine.look_up(&[key()]).await.unwrap().remove(0).is_some());
    }
}

#[tokio::test]
async fn a_silent_server() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let redis = Redis::start().await;
    let engine = connect(&[redis.url()]);
    engine.ping().await.unwrap();
    redis.stop().await;
    let (took, reason) = fails(&engine).await;
    assert!(took < LIMIT, "{took:?}: {reason}");
    // Once connecting has failed too, nobody waits any more.
    let at_once = async || match fails(&engine).await {
        (took, _) if took < AT_ONCE => Ok(()),
        (took, reason) => Err(format!("{took:?}: {reason}")),
    };
    eventually(SOON, at_once).await;
    redis.cont().await;
    eprintln!("works {:.0?} after it goes on", works(&engine).await);
    engine.claim(request(1, NOW)).await.unwrap();
}

#[tokio::test]
async fn starting_before_redis() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let mut redis = Redis::start().await;
    redis.kill9().await;
    let logged = Logged::default();
    let _guard = tracing::subscriber::set_default(logged.clone());
    let started = Instant::now();
    let engine = connect(&[redis.url()]);
    assert!(started.elapsed() < AT_ONCE);
    for _ in 0..100 {
        let (took, reason) = fails(&engine).await;
        assert!(took < AT_ONCE && reason.contains("refused"), "{took:?}: {reason}");
    }
    assert_eq!(logged.0.load(Ordering::Relaxed), 1, "logged once, not for each call");
    redis.restart().await;
    works(&engine).await;
    engine.claim(request(1, NOW)).await.unwrap();
    assert_eq!(logged.0.load(Ordering::Relaxed), 2, "that it is back");
}

/// Counts what the adapter logs.
#[derive(Clone, Default)]
struct Logged(Arc<AtomicUsize>);

impl tracing::Subscriber for Logged {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("muster_adapters::redis")
    }

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn a_wrong_password_is_not_shown_and_may_become_right() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let redis = Redis::start().await;
    let say = async |words| assert_eq!(redis.command(words).await, "+OK\r\n");
    let makes_right = ["ACL SETUSER someone on >hunter2 ~* +@all", "CONFIG SET requirepass hunter2"];
    for (user, command) in ["someone", ""].into_iter().zip(makes_right) {
        let options = RedisOptions::new([format!("redis://{user}:hunter2@127.0.0.1:{}/3", redis.port())]);
        assert!(!format!("{options:?}").contains("hunter2"), "{options:?}");
        let engine = RedisOwnership::connect(options).unwrap();
        assert!(!format!("{engine:?}").contains("hunter2"), "{engine:?}");
        let (_, reason) = fails(&engine).await;
        assert!(!reason.contains("hunter2"), "{reason}");
        eprintln!("{reason}");
        say(command).await;
        works(&engine).await;
        engine.claim(request(1, NOW)).await.unwrap();
    }
    let (_, reason) = fails(&connect(&[redis.url()])).await;
    assert!(reason.contains("NOAUTH"), "{reason}");
    for url in [
        "",
        "127.0.0.1:6379",
        "redis://u:hunter2@host:port",
        "http://u:hunter2@host",
        "redis://u:hunter2@h/x",
    ] {
        let error = RedisOwnership::connect(RedisOptions::new([url])).unwrap_err();
        eprintln!("{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
    RedisOwnership::connect(RedisOptions::new(Vec::<String>::new())).unwrap_err();
}

#[tokio::test]
async fn tls_to_a_server_without_it_is_an_error() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let redis = Redis::start().await;
    let engine = connect(&[redis.url().replace("redis://", "rediss://")]);
    let (took, reason) = fails(&engine).await;
    assert!(took < LIMIT, "{took:?}: {reason}");
    eprintln!("{reason}");
}

#[tokio::test]
async fn the_address_that_takes_writes_is_used() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let (mut first, second) = (Redis::start().await, Redis::start().await);
    let follow = async |replica: &Redis, of: &Redis| {
        let said = replica.command(&format!("REPLICAOF 127.0.0.1 {}", of.port())).await;
        assert_eq!(said, "+OK\r\n");
    };
    follow(&second, &first).await;
    let engine = connect(&[second.url(), first.url()]);
    works(&engine).await;
    engine.claim(request(1, NOW)).await.unwrap();
    // A failover in order: they change places while connected.
    assert_eq!(second.command("REPLICAOF NO ONE").await, "+OK\r\n");
    follow(&first, &second).await;
    let claim = async || engine.claim(request(1, NOW)).await.map(drop).map_err(|error| error.to_string());
    eventually(SOON, claim).await;
    assert!(second.command("DBSIZE").await.starts_with(":1"));
    // One that dies without a successor, and one that is named.
    first.kill9().await;
    engine.claim(request(1, NOW)).await.unwrap();
}
