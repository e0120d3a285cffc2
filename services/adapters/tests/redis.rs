//! Ownership in Redis: its contract, and what only Redis can get wrong.
#![expect(clippy::unwrap_used, reason = "tests, of which clippy knows only the functions marked so")]

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use muster_adapters::redis::{RedisOptions, RedisOwnership};
use muster_domain::ids::{AgentKey, Claim, Incarnation, InstanceUid, SessionId, Timestamp};
use muster_ports::ownership::{ClaimOutcome, ClaimRequest, Ownership as _, Settled};
use muster_ports::{EngineError, contract};
use muster_testkit::engines::{Engine, Redis, engines_or_skip};
use uuid::Uuid;

const NOW: u64 = 1_790_000_000_000_000;

fn connect(redis: &Redis) -> RedisOwnership {
    RedisOwnership::connect(RedisOptions::new([redis.url()])).unwrap()
}

fn key(number: u128) -> AgentKey {
    AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(number)) }
}

/// The key as Redis has it.
fn name(number: u128) -> String {
    format!("muster:{{default:{}}}", Uuid::from_u128(number))
}

fn session(number: u128) -> SessionId {
    SessionId(Uuid::from_u128(0x5e55 << 64 | number))
}

fn request(agent: u128, by: u128, now: u64) -> ClaimRequest {
    ClaimRequest {
        key: key(agent),
        session: session(by),
        gateway: format!("gateway-{by}").parse().unwrap(),
        incarnation: Incarnation(Uuid::from_u128(by)),
        now: Timestamp(now),
        displace: None,
        epoch: 1,
    }
}

fn settled(agent: u128, by: u128, sequence_num: Option<u64>, seen: u64) -> Settled {
    Settled { key: key(agent), session: session(by), sequence_num, epoch: 1, seen: Timestamp(seen) }
}

/// The number of a claim that was not contested.
fn number(outcome: &ClaimOutcome) -> Option<Claim> {
    match outcome {
        ClaimOutcome::Granted { claim } | ClaimOutcome::Resumed { claim, .. } => Some(*claim),
        ClaimOutcome::Contested { .. } => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ownership() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let redis = Redis::start().await;
    let make = async || {
        redis.flush().await;
        connect(&redis)
    };
    contract::ownership::all(make).await;
}

#[tokio::test]
async fn numbers_beyond_a_double_are_exact() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let redis = Redis::start().await;
    let engine = connect(&redis);
    assert!(matches!(engine.claim(request(1, 1, 0)).await, Ok(ClaimOutcome::Granted { claim: Claim(0) })));
    let double = 1 << 53;
    let sequence_nums = [double - 1, double, double + 1, double + 3, u64::MAX / 2, u64::MAX - 1, u64::MAX];
    for sequence_num in sequence_nums {
        let refused = engine.settle(vec![settled(1, 1, Some(sequence_num), sequence_num)]).await.unwrap();
        assert_eq!(refused, []);
        let owned = engine.look_up(&[key(1)]).await.unwrap().remove(0).unwrap();
        assert_eq!((owned.settled, owned.seen), (Some(sequence_num), Timestamp(sequence_num)));
    }
    let mut times = [9, 99_999_999, 999_999_999, 1_999_999_999, 999_999_999_999_999_999, NOW].to_vec();
    times.extend([double - 1, double, double + 1, 10_000_000_000_000_000_000, u64::MAX - 2]);
    times.sort_unstable();
    let mut last = 0_u64;
    for now in times {
        for now in [now, now, 5, now + 1, 5, 5] {
            let claim = number(&engine.claim(request(1, 1, now)).await.unwrap()).unwrap();
            last = now.max(last.saturating_add(1));
            assert_eq!(claim, Claim(last), "at {now}");
        }
    }
    assert_eq!(last, u64::MAX);
}

#[tokio::test]
async fn every_write_sets_the_expiry_anew() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let redis = Redis::start().await;
    let engine = connect(&redis);
    let left = async || {
        let answer = redis.command(&format!("PTTL {}", name(1))).await;
        answer.trim_start_matches(':').trim_end().parse::<i64>().unwrap()
    };
    let day = 24 * 60 * 60 * 1_000;
    let shorten = async || {
        assert!((day - 30_000..=day).contains(&left().await), "{} ms left", left().await);
        redis.command(&format!("PEXPIRE {} 100000", name(1))).await;
    };
    engine.claim(request(1, 1, NOW)).await.unwrap();
    shorten().await;
    engine.claim(request(1, 1, NOW)).await.unwrap();
    shorten().await;
    engine.settle(vec![settled(1, 1, None, NOW)]).await.unwrap();
    shorten().await;
    engine.settle(vec![settled(1, 1, Some(5), NOW)]).await.unwrap();
    shorten().await;
    // What changes nothing does not prolong either.
    engine.settle(vec![settled(1, 2, Some(5), NOW)]).await.unwrap();
    engine.claim(request(1, 2, NOW)).await.unwrap();
    engine.release(&key(1), session(2)).await.unwrap();
    assert!(left().await <= 100_000);
    engine.release(&key(1), session(1)).await.unwrap();
    shorten().await;

    let ttl = Duration::from_millis(50);
    let options = RedisOptions { record_ttl: ttl, ..RedisOptions::new([redis.url()]) };
    let brief = RedisOwnership::connect(options).unwrap();
    brief.claim(request(1, 2, NOW)).await.unwrap();
    tokio::time::sleep(ttl * 2).await;
    assert_eq!(brief.look_up(&[key(1)]).await.unwrap(), [None]);
    let again = brief.claim(request(1, 3, NOW + 1)).await.unwrap();
    assert_eq!(again, ClaimOutcome::Granted { claim: Claim(NOW + 1) });
}

#[tokio::test]
async fn what_is_not_ours_is_named() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let redis = Redis::start().await;
    let engine = connect(&redis);
    let place = |result: Result<(), EngineError>| match result {
        Err(EngineError::Corrupt { engine: "Redis", place, .. }) => place,
        other => panic!("{other:?}"),
    };
    for field in ["session", "claim", "settled", "seen"] {
        for value in ["x", "-1", "1e3", "01", "99999999999999999999999"] {
            redis.flush().await;
            engine.claim(request(1, 1, NOW)).await.unwrap();
            engine.release(&key(1), session(1)).await.unwrap();
            redis.command(&format!("HSET {} {field} {value}", name(1))).await;
            assert_eq!(place(engine.claim(request(1, 2, NOW)).await.map(drop)), name(1), "{field} {value}");
        }
    }
    for field in ["session", "claim", "gateway", "incarnation", "settled", "seen"] {
        redis.flush().await;
        engine.claim(request(1, 1, NOW)).await.unwrap();
        redis.command(&format!("HSET {} {field} X_x", name(1))).await;
        assert_eq!(place(engine.look_up(&[key(2), key(1)]).await.map(drop)), name(1), "{field}");
    }
    redis.flush().await;
    engine.claim(request(2, 2, NOW)).await.unwrap();
    redis.command(&format!("SET {} text", name(1))).await;
    assert_eq!(place(engine.claim(request(1, 1, NOW)).await.map(drop)), name(1));
    assert_eq!(place(engine.release(&key(1), session(1)).await), name(1));
    assert_eq!(place(engine.look_up(&[key(1)]).await.map(drop)), name(1));
    // It does not hinder others, whose progress is in the same batch.
    let batch = vec![settled(1, 1, Some(1), NOW), settled(2, 2, Some(7), NOW)];
    assert_eq!(engine.settle(batch).await.unwrap(), [(key(1), session(1))]);
    assert_eq!(engine.look_up(&[key(2)]).await.unwrap().remove(0).unwrap().settled, Some(7));
}

#[tokio::test]
async fn scripts_that_are_gone_are_loaded_again() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let redis = Redis::start().await;
    let engine = connect(&redis);
    let forget = async || assert_eq!(redis.command("SCRIPT FLUSH").await, "+OK\r\n");
    engine.ping().await.unwrap();
    forget().await;
    let first = number(&engine.claim(request(1, 1, NOW)).await.unwrap()).unwrap();
    forget().await;
    // Several for one agent, in order, over several round trips.
    let batch: Vec<_> = (0..2_500).map(|number| settled(1, 1, Some(number), NOW + number)).collect();
    assert_eq!(engine.settle(batch).await.unwrap(), []);
    let owned = engine.look_up(&[key(1)]).await.unwrap().remove(0).unwrap();
    assert_eq!((owned.settled, owned.seen), (Some(2_499), Timestamp(NOW + 2_499)));
    forget().await;
    engine.release(&key(1), session(1)).await.unwrap();
    assert_eq!(engine.look_up(&[key(1)]).await.unwrap().remove(0).unwrap().holder, None);

    let forgetting = async {
        for _ in 0..20 {
            forget().await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let working = async {
        for round in 0..20 {
            let mine = 100 + round;
            let claim = number(&engine.claim(request(mine, 1, NOW)).await.unwrap()).unwrap();
            assert!(claim >= first);
            let batch = (0..300).map(|number| settled(mine, 1, Some(number), NOW)).collect();
            assert_eq!(engine.settle(batch).await.unwrap(), []);
            let owned = engine.look_up(&[key(mine)]).await.unwrap().remove(0).unwrap();
            assert_eq!(owned.settled, Some(299));
        }
    };
    tokio::join!(forgetting, working);
}

#[tokio::test]
async fn what_was_settled_in_no_known_epoch_is_taken() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let redis = Redis::start().await;
    let engine = connect(&redis);
    engine.claim(request(1, 1, NOW)).await.unwrap();
    // As a gateway writes it that knows of no epochs.
    redis.command(&format!("HSET {} settled 7", name(1))).await;
    engine.release(&key(1), session(1)).await.unwrap();
    let outcome = engine.claim(request(1, 2, NOW)).await.unwrap();
    assert!(matches!(outcome, ClaimOutcome::Resumed { settled: Some(7), .. }), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_race_one_holds() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let redis = Redis::start().await;
    let engines = [connect(&redis), connect(&redis)];
    let mut last = Claim(0);
    let mut wins = [0; 2];
    for round in 0..1_000_u64 {
        let by = [2 * u128::from(round), 2 * u128::from(round) + 1];
        let claims = [0, 1].map(|side| engines[side].claim(request(1, by[side], NOW + round)));
        let outcomes = futures_util::future::try_join_all(claims).await.unwrap();
        let numbers: Vec<_> = outcomes.iter().map(number).collect();
        let winner = match numbers[..] {
            [Some(_), None] => 0,
            [None, Some(_)] => 1,
            _ => panic!("{outcomes:?}"),
        };
        let loser = 1 - winner;
        let claim = numbers[winner].unwrap();
        assert!(claim > last, "{claim:?} after {last:?}");
        last = claim;
        wins[winner] += 1;
        let ClaimOutcome::Contested { holder } = &outcomes[loser] else { panic!("{outcomes:?}") };
        assert_eq!((holder.session, holder.claim), (session(by[winner]), claim));
        let settles = [0, 1].map(|side| engines[side].settle(vec![settled(1, by[side], Some(round), NOW)]));
        let refused = futures_util::future::try_join_all(settles).await.unwrap();
        assert_eq!(
            (&refused[winner][..], &refused[loser][..]),
            (&[][..], &[(key(1), session(by[loser]))][..])
        );
        // The one that does not hold it gives back nothing.
        engines[winner].release(&key(1), session(by[loser])).await.unwrap();
        let owned = engines[loser].look_up(&[key(1)]).await.unwrap().remove(0).unwrap();
        assert_eq!(owned.holder.as_ref(), Some(holder));
        engines[loser].release(&key(1), session(by[winner])).await.unwrap();
    }
    eprintln!("each won: {wins:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    const AGENTS: u128 = 10_000;
    let redis = Redis::start().await;
    let engine = connect(&redis);
    engine.ping().await.unwrap();
    let speed = |what: &str, started: Instant| {
        let took = started.elapsed();
        eprintln!("{AGENTS} {what} in {took:.1?}: {:.0}/s", AGENTS as f64 / took.as_secs_f64());
    };

    let started = Instant::now();
    let claims = stream::iter(0..AGENTS).map(|agent| engine.claim(request(agent, 1, NOW)));
    let granted = claims.buffer_unordered(64).filter(|outcome| {
        std::future::ready(matches!(outcome, Ok(ClaimOutcome::Granted { claim: Claim(NOW) })))
    });
    assert_eq!(granted.count().await, AGENTS as usize);
    speed("claims, 64 in flight", started);

    let batch: Vec<_> = (0..AGENTS).map(|agent| settled(agent, 1, Some(7), NOW + 1)).collect();
    let started = Instant::now();
    assert_eq!(engine.settle(batch.clone()).await.unwrap(), []);
    speed("settled in one call", started);

    let keys: Vec<_> = (0..AGENTS).map(key).collect();
    let started = Instant::now();
    let found = engine.look_up(&keys).await.unwrap();
    speed("looked up in one call", started);
    let right = found.iter().flatten().filter(|owned| owned.settled == Some(7));
    assert_eq!(right.count(), AGENTS as usize);

    // Empty: nobody is a holder, and new claims are above the old ones.
    redis.flush().await;
    let refused = engine.settle(batch).await.unwrap();
    assert_eq!(refused.len(), AGENTS as usize);
    let outcome = engine.claim(request(1, 1, NOW + 2)).await.unwrap();
    assert_eq!(outcome, ClaimOutcome::Granted { claim: Claim(NOW + 2) });
}
