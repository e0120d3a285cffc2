//! The contract of [`crate::polls`].

use muster_domain::ids::{
    AgentKey, Claim, ConfigHash, Incarnation, InstanceUid, IntentRevision, PollId, SessionId, Timestamp,
};
use muster_domain::poll::vectors::{Call, LEASE, NOW, Player, VECTORS};
use muster_domain::poll::{Begun, Letter, Mail, Poll, PollEnd, Silence, Taken};
use muster_domain::sequence::{Known, Numbered, TrackerParts};
use uuid::Uuid;

use super::poll::join;
use crate::ownership::{ClaimOutcome, ClaimRequest, Holder, Owned, Ownership, Settled};
use crate::polls::{PollOutcome, Polls};

/// Runs every case, each on an empty engine that `make` gives.
pub async fn all<E: Ownership + Polls>(make: impl AsyncFn() -> E) {
    the_vectors_hold(&make().await).await;
    nobody_holds_an_agent_that_polls(&make().await).await;
    a_websocket_contests_a_poll(&make().await).await;
    a_dead_websocket_is_displaced(&make().await).await;
    a_websocket_takes_over_from_polls(&make().await).await;
    sequences_go_on_over_both_transports(&make().await).await;
    one_of_many_at_once_is_taken(&make().await).await;
    each_request_has_its_own_lease(&make().await).await;
    letters_reach_their_sessions(&make().await).await;
    silence_is_judged_for_each(&make().await).await;
    an_outclaimed_session_is_followed_by_one_above(&make().await).await;
    tenants_are_apart(&make().await).await;
}

fn at(seconds: u64) -> Timestamp {
    NOW.plus(std::time::Duration::from_secs(seconds))
}

fn key(number: u128) -> AgentKey {
    key_of("default", number)
}

fn key_of(tenant: &str, number: u128) -> AgentKey {
    AgentKey { tenant: tenant.parse().unwrap(), uid: InstanceUid(Uuid::from_u128(number)) }
}

fn session(number: u128) -> SessionId {
    SessionId(Uuid::from_u128(0x5e55 << 64 | number))
}

fn claim_request(number: u128, seconds: u64) -> ClaimRequest {
    ClaimRequest {
        key: key(1),
        session: session(number),
        gateway: "gateway-1".parse().unwrap(),
        incarnation: Incarnation(Uuid::from_u128(number)),
        now: at(seconds),
        displace: None,
        epoch: 0,
    }
}

/// A report with this number, by which its session would be called.
fn poll(number: u128, sequence_num: u64, seconds: u64) -> Poll {
    Poll {
        id: PollId(Uuid::from_u128(0x9011 << 64 | number)),
        session: session(number),
        message: Some(Numbered { sequence_num, digest: 7, has_description: false, is_full: false }),
        plain: false,
        capabilities: muster_domain::capabilities::AgentCapabilities(1),
        now: at(seconds),
        lease: LEASE,
        displace: None,
        epoch: 0,
    }
}

async fn begun(engine: &dyn Polls, key: &AgentKey, poll: Poll) -> Begun {
    match engine.begin(key, poll).await.unwrap() {
        PollOutcome::Begun(begun) => begun,
        PollOutcome::Contested { holder } => panic!("contested by {holder:?}"),
    }
}

async fn taken(engine: &dyn Polls, key: &AgentKey, poll: Poll) -> Taken {
    match begun(engine, key, poll).await {
        Begun::Taken(taken) => *taken,
        other => panic!("{other:?}"),
    }
}

/// The end of a report that the log has.
fn ended(poll: &Poll, taken: &Taken, seconds: u64) -> PollEnd {
    let last = poll.message.map(|message| (message.sequence_num, message.digest));
    let mut kept = taken.kept;
    kept.tracker = TrackerParts { last, ..kept.tracker };
    kept.announced = true;
    kept.capabilities = poll.capabilities;
    PollEnd {
        session: taken.session,
        poll: poll.id,
        kept,
        settled: last.map(|(number, _)| number),
        delivered: Mail::default(),
        over: false,
        now: at(seconds),
    }
}

fn letter(agent: u128, session: SessionId, mail: Mail) -> Letter {
    Letter { key: key(agent), session, mail, above: Claim::default() }
}

/// One whole request.
async fn polled(engine: &dyn Polls, key: &AgentKey, poll: Poll, seconds: u64) -> Taken {
    let taken = taken(engine, key, poll.clone()).await;
    assert!(engine.end(key, ended(&poll, &taken, seconds)).await.unwrap());
    taken
}

async fn owned(engine: &dyn Ownership, key: &AgentKey) -> Option<Owned> {
    engine.look_up(std::slice::from_ref(key)).await.unwrap().remove(0)
}

async fn the_vectors_hold(engine: &dyn Polls) {
    for (number, (name, steps)) in (1..).zip(VECTORS) {
        let key = key(number);
        let mut player = Player::default();
        for (step_number, (step, expected)) in steps.iter().enumerate() {
            let Some(call) = player.call(*step) else {
                assert_eq!(*expected, "", "{name}: {step:?}");
                continue;
            };
            let words = match call {
                Call::Begin(poll) => {
                    let begun = begun(engine, &key, poll.clone()).await;
                    player.begun(&poll, &begun)
                }
                Call::End(end) => Player::ended(engine.end(&key, end).await.unwrap()).to_owned(),
                Call::Post(session, mail, above) => {
                    let letter = Letter { key: key.clone(), session, mail, above };
                    Player::posted(engine.post(vec![letter]).await.unwrap()[0]).to_owned()
                }
                Call::Expire(session, before) => {
                    let silent = vec![(key.clone(), session, before)];
                    Player::silence(engine.expire(silent).await.unwrap()[0])
                }
            };
            assert_eq!(words, *expected, "{name}, step {step_number}: {step:?}");
        }
    }
}

async fn nobody_holds_an_agent_that_polls<E: Ownership + Polls>(engine: &E) {
    let first = polled(engine, &key(1), poll(1, 5, 0), 1).await;
    assert_eq!((first.session, first.previous), (session(1), None));
    assert!(first.claim.0 >= NOW.0);
    let expected = Owned { holder: None, settled: Some(5), seen: at(1) };
    assert_eq!(owned(engine, &key(1)).await, Some(expected));
    // What only a session on a WebSocket may do.
    let settled = Settled { key: key(1), session: session(1), sequence_num: Some(9), epoch: 0, seen: at(9) };
    assert_eq!(engine.settle(vec![settled]).await.unwrap(), [(key(1), session(1))]);
    engine.release(&key(1), session(1)).await.unwrap();
    let second = polled(engine, &key(1), poll(2, 6, 2), 2).await;
    assert_eq!(second.session, session(1), "the session goes on");
    assert_eq!(second.kept.tracker.last, Some((5, 7)));
}

async fn a_websocket_contests_a_poll<E: Ownership + Polls>(engine: &E) {
    let ClaimOutcome::Granted { claim } = engine.claim(claim_request(1, 0)).await.unwrap() else { panic!() };
    let before = owned(engine, &key(1)).await;
    let expected = Holder {
        session: session(1),
        claim,
        gateway: "gateway-1".parse().unwrap(),
        incarnation: Incarnation(Uuid::from_u128(1)),
    };
    for displace in [None, Some(session(7))] {
        let outcome = engine.begin(&key(1), Poll { displace, ..poll(2, 1, 5) }).await.unwrap();
        assert_eq!(outcome, PollOutcome::Contested { holder: expected.clone() });
    }
    assert_eq!(owned(engine, &key(1)).await, before, "a contested request changes nothing");
    engine.release(&key(1), session(1)).await.unwrap();
    assert_eq!(taken(engine, &key(1), poll(3, 1, 6)).await.previous, Some(session(1)));
}

async fn a_dead_websocket_is_displaced<E: Ownership + Polls>(engine: &E) {
    let ClaimOutcome::Granted { claim } = engine.claim(claim_request(1, 0)).await.unwrap() else { panic!() };
    let displacing = Poll { displace: Some(session(1)), ..poll(2, 1, 1) };
    let taken = polled(engine, &key(1), displacing, 1).await;
    assert_eq!((taken.session, taken.previous), (session(2), Some(session(1))));
    assert!(taken.claim > claim);
    assert_eq!(owned(engine, &key(1)).await.unwrap().holder, None);
    // The one that was displaced has nothing to say any more.
    let settled = Settled { key: key(1), session: session(1), sequence_num: Some(9), epoch: 0, seen: at(9) };
    assert_eq!(engine.settle(vec![settled]).await.unwrap(), [(key(1), session(1))]);
    engine.release(&key(1), session(1)).await.unwrap();
    assert_eq!(polled(engine, &key(1), poll(3, 2, 2), 2).await.session, session(2));
}

async fn a_websocket_takes_over_from_polls<E: Ownership + Polls>(engine: &E) {
    let polls = polled(engine, &key(1), poll(1, 5, 0), 0).await;
    let late = poll(2, 6, 1);
    let in_flight = taken(engine, &key(1), late.clone()).await;
    let ClaimOutcome::Resumed { claim, settled, previous } = engine.claim(claim_request(3, 2)).await.unwrap()
    else {
        panic!("polls cannot stand in the way")
    };
    assert_eq!((settled, previous), (Some(5), polls.session));
    assert!(claim > polls.claim);
    assert!(!engine.end(&key(1), ended(&late, &in_flight, 3)).await.unwrap());
    let letter = letter(1, polls.session, Mail { full_state: true, ..Mail::default() });
    assert_eq!(engine.post(vec![letter]).await.unwrap(), [false]);
    let outcome = engine.begin(&key(1), poll(4, 7, 4)).await.unwrap();
    assert!(
        matches!(&outcome, PollOutcome::Contested { holder } if holder.session == session(3)),
        "{outcome:?}"
    );
    let silent = vec![(key(1), polls.session, at(100))];
    assert_eq!(engine.expire(silent).await.unwrap(), [Silence::Over]);
    assert_eq!(owned(engine, &key(1)).await.unwrap().holder.unwrap().session, session(3));
}

async fn sequences_go_on_over_both_transports<E: Ownership + Polls>(engine: &E) {
    engine.claim(claim_request(1, 0)).await.unwrap();
    let settle = async |number, sequence_num| {
        let sequence_num = Some(sequence_num);
        let settled = Settled { key: key(1), session: session(number), sequence_num, epoch: 0, seen: at(1) };
        assert_eq!(engine.settle(vec![settled]).await.unwrap(), []);
    };
    settle(1, 41).await;
    engine.release(&key(1), session(1)).await.unwrap();
    let first = polled(engine, &key(1), poll(2, 42, 2), 2).await;
    assert_eq!(first.kept.tracker, TrackerParts::new(Known::SettledTo(41)));
    let ClaimOutcome::Resumed { settled, claim, .. } = engine.claim(claim_request(3, 3)).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(settled, Some(42));
    settle(3, 42).await;
    engine.release(&key(1), session(3)).await.unwrap();
    let second = taken(engine, &key(1), poll(4, 43, 0)).await;
    assert_eq!(second.kept.tracker.known, Known::SettledTo(42));
    assert!(second.claim > claim && claim > first.claim, "also where the clock goes back");
}

async fn one_of_many_at_once_is_taken(engine: &dyn Polls) {
    for round in 0..20 {
        let key = key(round);
        let two =
            |number| join(engine.begin(&key, poll(number, 1, 0)), engine.begin(&key, poll(number + 1, 1, 0)));
        let ((a, b), (c, d)) = join(two(1), two(3)).await;
        let outcomes = [a, b, c, d].map(Result::unwrap);
        let count = |wanted: fn(&PollOutcome) -> bool| outcomes.iter().filter(|one| wanted(one)).count();
        assert_eq!(count(|one| matches!(one, PollOutcome::Begun(Begun::Taken(_)))), 1, "{outcomes:?}");
        assert_eq!(count(|one| *one == PollOutcome::Begun(Begun::Overlapping)), 3, "{outcomes:?}");
    }
}

async fn each_request_has_its_own_lease(engine: &dyn Polls) {
    let long = Poll { lease: LEASE * 6, ..poll(1, 1, 0) };
    let in_flight = taken(engine, &key(1), long.clone()).await;
    assert_eq!(begun(engine, &key(1), poll(2, 1, 59)).await, Begun::Overlapping);
    assert!(engine.end(&key(1), ended(&long, &in_flight, 59)).await.unwrap());
    assert_eq!(taken(engine, &key(1), poll(3, 2, 60)).await.session, session(1));
    assert_eq!(taken(engine, &key(1), poll(4, 2, 70)).await.session, session(4), "that one is lost");
}

async fn letters_reach_their_sessions(engine: &dyn Polls) {
    let offer = |byte: u8, revision| Mail {
        offer: Some((ConfigHash::new(&[byte; 32]).unwrap(), IntentRevision(revision))),
        ..Mail::default()
    };
    for number in [1, 2] {
        polled(engine, &key(number), poll(number, 1, 0), 0).await;
    }
    let letter = |agent, to: u128, mail: &Mail| letter(agent, session(to), mail.clone());
    let letters = vec![
        letter(1, 1, &offer(1, 1)),
        letter(2, 1, &offer(2, 1)),
        letter(3, 3, &offer(3, 1)),
        letter(2, 2, &offer(4, u64::MAX)),
        letter(2, 2, &offer(5, 9_007_199_254_740_993)),
    ];
    assert_eq!(engine.post(letters).await.unwrap(), [true, false, false, true, true]);
    assert_eq!(engine.post(Vec::new()).await.unwrap(), [true; 0]);
    assert_eq!(taken(engine, &key(1), poll(5, 2, 1)).await.mail, offer(1, 1));
    let second = poll(6, 2, 1);
    let found = taken(engine, &key(2), second.clone()).await;
    assert_eq!(found.mail, offer(4, u64::MAX), "the higher revision stays");
    // Of another hash nothing is taken away.
    let other = PollEnd { delivered: offer(9, u64::MAX), ..ended(&second, &found, 1) };
    assert!(engine.end(&key(2), other).await.unwrap());
    assert_eq!(taken(engine, &key(2), poll(7, 3, 2)).await.mail, offer(4, u64::MAX));
}

async fn an_outclaimed_session_is_followed_by_one_above(engine: &dyn Polls) {
    let first = polled(engine, &key(1), poll(1, 1, 0), 0).await;
    let above = Claim(NOW.0 * 2);
    let outclaimed = Letter { above, ..letter(1, first.session, Mail::default()) };
    assert_eq!(engine.post(vec![outclaimed.clone()]).await.unwrap(), [false]);
    let next = polled(engine, &key(1), poll(2, 2, 1), 1).await;
    assert_eq!((next.session, next.previous), (session(2), Some(first.session)));
    assert!(next.claim > above);
    assert_eq!(next.kept.tracker.known, Known::SettledTo(1));
    assert_eq!(engine.post(vec![outclaimed]).await.unwrap(), [false], "it is over already");
    let again = Letter { above, ..letter(1, next.session, Mail::default()) };
    assert_eq!(engine.post(vec![again]).await.unwrap(), [true]);
}

async fn silence_is_judged_for_each(engine: &dyn Polls) {
    for number in [1, 2, 3] {
        polled(engine, &key(number), poll(number, 1, number as u64 * 10), 0).await;
    }
    let silent = |number, to: u128, seconds| (key(number), session(to), at(seconds));
    let asked = vec![silent(3, 3, 29), silent(1, 1, 10), silent(4, 4, 99), silent(2, 9, 20)];
    let expected = [Silence::Heard(at(30)), Silence::Over, Silence::Unknown, Silence::Over];
    assert_eq!(engine.expire(asked).await.unwrap(), expected);
    assert_eq!(engine.expire(Vec::new()).await.unwrap(), []);
    let next = async |number: u128| taken(engine, &key(number), poll(number + 10, 2, 40)).await.session;
    assert_eq!(next(1).await, session(11), "it is over");
    assert_eq!(next(2).await, session(2), "another session was asked about");
    assert_eq!(next(3).await, session(3));
}

async fn tenants_are_apart<E: Ownership + Polls>(engine: &E) {
    let (ours, theirs) = (key_of("ours", 1), key_of("theirs", 1));
    let first = polled(engine, &ours, poll(1, 1, 0), 0).await;
    assert_eq!(owned(engine, &theirs).await, None);
    let other = taken(engine, &theirs, poll(2, 1, 0)).await;
    assert_eq!((first.session, other.session, other.previous), (session(1), session(2), None));
    assert!(other.claim > Claim(0));
}
