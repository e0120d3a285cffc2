//! Agents that poll, in Redis: the contract, and that it decides as the engine in memory does.
#![expect(clippy::unwrap_used, reason = "tests, of which clippy knows only the functions marked so")]

use std::time::Duration;

use muster_adapters::redis::{RedisOptions, RedisOwnership};
use muster_adapters_memory::MemoryOwnership;
use muster_domain::capabilities::AgentCapabilities;
use muster_domain::ids::{
    AgentKey, Claim, CommandId, ConfigHash, Incarnation, InstanceUid, IntentRevision, PollId, SessionId,
    Timestamp,
};
use muster_domain::poll::vectors::NOW;
use muster_domain::poll::{Begun, Kept, Letter, Mail, Poll, PollEnd, Taken};
use muster_domain::sequence::{Numbered, Tracker};
use muster_ports::ownership::{ClaimOutcome, ClaimRequest, Ownership, Settled};
use muster_ports::polls::{PollOutcome, Polls};
use muster_ports::{EngineError, contract};
use muster_testkit::engines::{Engine, Redis, engines_or_skip};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

fn connect(redis: &Redis) -> RedisOwnership {
    RedisOwnership::connect(RedisOptions::new([redis.url()])).unwrap()
}

fn key(number: u128) -> AgentKey {
    AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(number)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polls() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let redis = Redis::start().await;
    let make = async || {
        redis.flush().await;
        connect(&redis)
    };
    contract::polls::all(make).await;
}

/// One agent's random life, called for on both engines.
struct Life {
    random: StdRng,
    now: u64,
    epoch: u64,
    calls: u128,
    numbers: [u64; 2],
    sessions: Vec<SessionId>,
    /// The last one that was taken or granted.
    current: SessionId,
    taken: Vec<(Poll, Taken)>,
}

impl Life {
    fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            now: NOW.0,
            epoch: 0,
            calls: 0,
            numbers: [1, 1],
            sessions: vec![SessionId(Uuid::nil())],
            current: SessionId(Uuid::nil()),
            taken: Vec::new(),
        }
    }

    fn some_session(&mut self) -> SessionId {
        // Mostly one that matters.
        if self.random.random_bool(0.5) {
            return self.current;
        }
        let back = self.random.random_range(0..self.sessions.len().min(3));
        self.sessions[self.sessions.len() - 1 - back]
    }

    fn new_session(&mut self) -> SessionId {
        self.calls += 1;
        let session = SessionId(Uuid::from_u128(0x5e55 << 64 | self.calls));
        self.sessions.push(session);
        session
    }

    fn poll(&mut self) -> Poll {
        let session = self.new_session();
        let which = usize::from(self.random.random_bool(0.4));
        let number = &mut self.numbers[which];
        let described = self.random.random_bool(0.1);
        *number = match self.random.random_range(0..20) {
            0 => number.saturating_add(self.random.random_range(2..20)),
            1 => number.saturating_sub(self.random.random_range(1..12)),
            2 => *number,
            3 if described => self.random.random_range(0..2),
            4 if self.random.random_bool(0.1) => u64::MAX - self.random.random_range(0..3),
            _ => number.saturating_add(1),
        };
        let plain = !described && self.random.random_bool(0.6);
        self.epoch += u64::from(self.random.random_bool(0.02));
        let unnumbered = self.random.random_bool(0.05);
        Poll {
            id: PollId(Uuid::from_u128(self.calls)),
            session,
            message: (!unnumbered).then_some(Numbered {
                sequence_num: *number,
                digest: if plain { 1 } else { self.random.random_range(2..5) },
                has_description: described,
                is_full: described,
            }),
            plain: plain || unnumbered,
            capabilities: AgentCapabilities(if self.random.random_bool(0.9) {
                1
            } else {
                self.random.random_range(0..4)
            }),
            now: Timestamp(self.now),
            lease: Duration::from_secs(self.random.random_range(5..15)),
            displace: self.random.random_bool(0.3).then(|| self.some_session()),
            epoch: if self.random.random_bool(0.9) {
                self.epoch
            } else {
                self.random.random_range(0..=self.epoch)
            },
        }
    }

    fn end(&mut self) -> Option<PollEnd> {
        let at = usize::from(self.random.random_bool(0.1));
        let (poll, taken) = self.taken.iter().rev().nth(at)?;
        let mut tracker = Tracker::from(taken.kept.tracker);
        if let Some(message) = poll.message {
            tracker.step(message);
        }
        if self.random.random_bool(0.1) {
            tracker.lost();
        }
        if self.random.random_bool(0.5) && tracker.is_dirty() {
            tracker.asked(Timestamp(self.now));
        }
        Some(PollEnd {
            session: taken.session,
            poll: poll.id,
            kept: Kept {
                tracker: tracker.parts(),
                ask_due: tracker.ask_due(),
                capabilities: poll.capabilities,
                announced: self.random.random_bool(0.9),
                introduced: taken.kept.introduced.or(poll.message.map(|message| message.sequence_num)),
                sent: IntentRevision(self.random.random_range(0..5)),
                issued: self.random.random_bool(0.5),
            },
            settled: poll.message.map(|message| message.sequence_num).filter(|_| !tracker.is_dirty()),
            delivered: if self.random.random_bool(0.8) { taken.mail.clone() } else { Mail::default() },
            over: self.random.random_bool(0.05),
            now: Timestamp(self.now),
        })
    }

    fn letter(&mut self) -> Letter {
        let hash = ConfigHash::new(&[self.random.random_range(0..3); 4]).unwrap();
        let offer = (hash, IntentRevision(self.random.random_range(1..6)));
        let mail = Mail {
            offer: self.random.random_bool(0.8).then_some(offer),
            full_state: self.random.random_bool(0.3),
            components: self.random.random_bool(0.3),
            commands: (0..self.random.random_range(0..4_u32))
                .map(|_| CommandId(Uuid::from_u128(self.random.random_range(0..40))))
                .collect(),
        };
        let above = Claim(if self.random.random_bool(0.1) { self.now } else { 0 });
        Letter { key: key(1), session: self.some_session(), mail, above }
    }

    fn claim(&mut self) -> ClaimRequest {
        ClaimRequest {
            key: key(1),
            session: self.new_session(),
            gateway: "gateway".parse().unwrap(),
            incarnation: Incarnation(Uuid::from_u128(1)),
            now: Timestamp(self.now),
            displace: self.random.random_bool(0.5).then(|| self.some_session()),
            epoch: self.random.random_range(0..=self.epoch),
        }
    }
}

/// Makes one random call on both engines, and compares the answers.
async fn step(life: &mut Life, redis: &RedisOwnership, memory: &MemoryOwnership) -> String {
    /// Both answers, and the call for people.
    async fn both<T, F: Future<Output = Result<T, EngineError>>>(one: F, other: F) -> (T, T) {
        (one.await.unwrap(), other.await.unwrap())
    }
    let key = key(1);
    match life.random.random_range(0..100) {
        0..50 => {
            let poll = life.poll();
            let (one, other) = both(redis.begin(&key, poll.clone()), memory.begin(&key, poll.clone())).await;
            assert_eq!(one, other, "{poll:?}");
            if let PollOutcome::Begun(Begun::Taken(taken)) = &one {
                life.current = taken.session;
                life.taken.push((poll.clone(), (**taken).clone()));
            }
            let text = format!("{one:?}");
            return text.split(['{', '(']).take(2).collect::<Vec<_>>().join(" ");
        }
        50..85 => {
            if let Some(end) = life.end() {
                let (one, other) = both(redis.end(&key, end.clone()), memory.end(&key, end.clone())).await;
                assert_eq!(one, other, "{end:?}");
            }
        }
        85..91 => {
            let letters = vec![life.letter(), life.letter()];
            let (one, other) = both(redis.post(letters.clone()), memory.post(letters.clone())).await;
            assert_eq!(one, other, "{letters:?}");
        }
        91..92 => {
            let claim = life.claim();
            let (one, other) = both(redis.claim(claim.clone()), memory.claim(claim.clone())).await;
            assert_eq!(one, other, "{claim:?}");
            if !matches!(one, ClaimOutcome::Contested { .. }) {
                life.current = claim.session;
            }
        }
        92..96 => {
            let session = life.some_session();
            both(redis.release(&key, session), memory.release(&key, session)).await;
        }
        96..97 => {
            let settled = Settled {
                key: key.clone(),
                session: life.some_session(),
                sequence_num: life.random.random_bool(0.5).then_some(life.numbers[0]),
                epoch: life.random.random_range(0..=life.epoch),
                seen: Timestamp(life.now),
            };
            let (one, other) = both(redis.settle(vec![settled.clone()]), memory.settle(vec![settled])).await;
            assert_eq!(one, other);
        }
        97..98 => {
            let before = Timestamp(life.now - life.random.random_range(0..60_000_000));
            let silent = vec![(key.clone(), life.some_session(), before)];
            let (one, other) = both(redis.expire(silent.clone()), memory.expire(silent)).await;
            assert_eq!(one, other);
        }
        _ => {}
    }
    let keys = [key];
    let (one, other) = both(redis.look_up(&keys), memory.look_up(&keys)).await;
    assert_eq!(one, other);
    let seconds = life.random.random_range(0..6_000_000);
    life.now = if life.random.random_bool(0.05) { life.now - seconds } else { life.now + seconds };
    String::new()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_decides_as_memory_does() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let redis = Redis::start().await;
    let engine = connect(&redis);
    let mut outcomes = std::collections::BTreeMap::<String, u32>::new();
    for seed in 0..30 {
        redis.flush().await;
        let memory = MemoryOwnership::new();
        let mut life = Life::new(seed);
        for _ in 0..300 {
            *outcomes.entry(step(&mut life, &engine, &memory).await).or_default() += 1;
        }
    }
    // The lives had something of everything.
    for wanted in ["Heartbeat", "Repeat", "Overlapping", "Newcomer", "Taken", "Contested"] {
        let times: u32 =
            outcomes.iter().filter(|(name, _)| name.contains(wanted)).map(|(_, times)| *times).sum();
        assert!(times > 10, "{wanted}: {outcomes:?}");
    }
}

#[tokio::test]
async fn what_is_not_ours_is_named() {
    if !engines_or_skip(&[Engine::Redis]) {
        return;
    }
    let redis = Redis::start().await;
    let engine = connect(&redis);
    let mut life = Life::new(1);
    for field in [
        "session",
        "claim",
        "seen",
        "settled",
        "flight_at",
        "flight_for",
        "last",
        "due",
        "here",
        "turns",
        "run",
        "epoch",
    ] {
        redis.flush().await;
        engine.begin(&key(1), life.poll()).await.unwrap();
        let name = format!("muster:{{{}}}", key(1));
        redis.command(&format!("HSET {name} {field} X_x")).await;
        let error = engine.begin(&key(1), life.poll()).await.unwrap_err();
        assert!(matches!(&error, EngineError::Corrupt { place, .. } if *place == name), "{field}: {error}");
    }
}
