//! The contract of [`crate::ownership`].

use muster_domain::ids::{AgentKey, Claim, GatewayId, Incarnation, InstanceUid, SessionId, Timestamp};
use uuid::Uuid;

use crate::ownership::{ClaimOutcome, ClaimRequest, Holder, Owned, Ownership, Settled};

/// Runs every case, each on an empty engine that `make` gives.
pub async fn all<O: Ownership>(make: impl AsyncFn() -> O) {
    an_unknown_agent_is_granted(&make().await).await;
    a_held_agent_is_contested(&make().await).await;
    a_released_agent_is_resumed(&make().await).await;
    the_same_session_claims_again(&make().await).await;
    only_the_named_holder_is_displaced(&make().await).await;
    claims_rise(&make().await).await;
    settling_goes_with_the_holder(&make().await).await;
    what_was_settled_in_another_epoch_is_not_known(&make().await).await;
    only_the_holder_settles(&make().await).await;
    last_seen_rises(&make().await).await;
    only_the_holder_releases(&make().await).await;
    look_up_keeps_the_order(&make().await).await;
    tenants_are_apart(&make().await).await;
}

/// A time in this century, so that claim numbers have their real size.
const NOW: Timestamp = Timestamp(1_790_000_000_000_000);

fn at(micros: u64) -> Timestamp {
    Timestamp(NOW.0 + micros)
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

fn gateway(number: u128) -> GatewayId {
    format!("gateway-{number}").parse().unwrap()
}

fn incarnation(number: u128) -> Incarnation {
    Incarnation(Uuid::from_u128(0x11fe << 64 | number))
}

/// A wish of session `number`, that is on the gateway with the same number.
fn request(key: AgentKey, number: u128, now: Timestamp) -> ClaimRequest {
    ClaimRequest {
        key,
        session: session(number),
        gateway: gateway(number),
        incarnation: incarnation(number),
        now,
        displace: None,
        epoch: 1,
    }
}

fn holder(number: u128, claim: Claim) -> Holder {
    Holder { session: session(number), claim, gateway: gateway(number), incarnation: incarnation(number) }
}

fn settled(number: u128, sequence_num: Option<u64>, seen: Timestamp) -> Settled {
    Settled { key: key(1), session: session(number), sequence_num, epoch: 1, seen }
}

/// Claims for a session that nothing stands in the way of.
async fn granted(engine: &dyn Ownership, request: ClaimRequest) -> Claim {
    match engine.claim(request).await.unwrap() {
        ClaimOutcome::Granted { claim } => claim,
        other => panic!("{other:?} for an unknown agent"),
    }
}

async fn resumed(engine: &dyn Ownership, request: ClaimRequest) -> (Claim, Option<u64>, SessionId) {
    match engine.claim(request).await.unwrap() {
        ClaimOutcome::Resumed { claim, settled, previous } => (claim, settled, previous),
        other => panic!("{other:?} for a known agent that nobody else holds"),
    }
}

async fn contested(engine: &dyn Ownership, request: ClaimRequest) -> Holder {
    match engine.claim(request).await.unwrap() {
        ClaimOutcome::Contested { holder } => holder,
        other => panic!("{other:?} for an agent that another session holds"),
    }
}

async fn owned(engine: &dyn Ownership, key: &AgentKey) -> Option<Owned> {
    let mut found = engine.look_up(std::slice::from_ref(key)).await.unwrap();
    assert_eq!(found.len(), 1, "one answer for one key");
    found.remove(0)
}

async fn an_unknown_agent_is_granted(engine: &dyn Ownership) {
    assert_eq!(owned(engine, &key(1)).await, None);
    let claim = granted(engine, request(key(1), 1, NOW)).await;
    assert!(claim.0 >= NOW.0, "claim {claim:?} is below the time {NOW:?}");
    let expected = Owned { holder: Some(holder(1, claim)), settled: None, seen: NOW };
    assert_eq!(owned(engine, &key(1)).await, Some(expected));
    granted(engine, request(key(2), 2, NOW)).await;
}

async fn a_held_agent_is_contested(engine: &dyn Ownership) {
    let claim = granted(engine, request(key(1), 1, NOW)).await;
    assert!(engine.settle(vec![settled(1, Some(3), at(5))]).await.unwrap().is_empty());
    let before = owned(engine, &key(1)).await;
    for _ in 0..2 {
        assert_eq!(contested(engine, request(key(1), 2, at(10))).await, holder(1, claim));
        assert_eq!(owned(engine, &key(1)).await, before, "a contested claim changes nothing");
    }
    let refused = engine.settle(vec![settled(2, Some(4), at(20))]).await.unwrap();
    assert_eq!(refused, [(key(1), session(2))]);
}

async fn a_released_agent_is_resumed(engine: &dyn Ownership) {
    let first = granted(engine, request(key(1), 1, NOW)).await;
    engine.release(&key(1), session(1)).await.unwrap();
    let (second, settled_to, previous) = resumed(engine, request(key(1), 2, at(10))).await;
    assert_eq!((settled_to, previous), (None, session(1)), "known, but not how far it is settled");
    assert!(second > first);
    assert!(engine.settle(vec![settled(2, Some(41), at(20))]).await.unwrap().is_empty());
    engine.release(&key(1), session(2)).await.unwrap();
    let released = Owned { holder: None, settled: Some(41), seen: at(20) };
    assert_eq!(owned(engine, &key(1)).await, Some(released));
    let (third, settled_to, previous) = resumed(engine, request(key(1), 3, at(30))).await;
    assert_eq!((settled_to, previous), (Some(41), session(2)));
    let expected = Owned { holder: Some(holder(3, third)), settled: None, seen: at(30) };
    assert_eq!(owned(engine, &key(1)).await, Some(expected));
    engine.release(&key(1), session(3)).await.unwrap();
    let (_, settled_to, _) = resumed(engine, request(key(1), 4, at(40))).await;
    assert_eq!(settled_to, None, "the session before settled nothing itself");
}

async fn the_same_session_claims_again(engine: &dyn Ownership) {
    let first = granted(engine, request(key(1), 1, NOW)).await;
    assert!(engine.settle(vec![settled(1, Some(7), at(5))]).await.unwrap().is_empty());
    let again = ClaimRequest { incarnation: incarnation(9), ..request(key(1), 1, at(10)) };
    let (second, settled_to, previous) = resumed(engine, again).await;
    assert_eq!((settled_to, previous), (Some(7), session(1)));
    assert!(second > first);
    let expected = Owned {
        holder: Some(Holder { incarnation: incarnation(9), ..holder(1, second) }),
        settled: Some(7),
        seen: at(10),
    };
    assert_eq!(owned(engine, &key(1)).await, Some(expected));
}

async fn only_the_named_holder_is_displaced(engine: &dyn Ownership) {
    let first = granted(engine, request(key(1), 1, NOW)).await;
    assert!(engine.settle(vec![settled(1, Some(7), at(5))]).await.unwrap().is_empty());
    let displacing = |number, dead| ClaimRequest {
        displace: Some(session(dead)),
        ..request(key(1), number, at(10 * number as u64))
    };
    assert_eq!(contested(engine, displacing(2, 9)).await, holder(1, first), "9 does not hold it");
    let (second, settled_to, previous) = resumed(engine, displacing(2, 1)).await;
    assert_eq!((settled_to, previous), (Some(7), session(1)));
    assert!(second > first);
    // Two newcomers judged the same holder dead: the second one meets the first.
    assert_eq!(contested(engine, displacing(3, 1)).await, holder(2, second));
    // The displaced session does not come back by claiming again.
    assert_eq!(contested(engine, request(key(1), 1, at(40))).await, holder(2, second));
    let refused = engine.settle(vec![settled(1, Some(8), at(50))]).await.unwrap();
    assert_eq!(refused, [(key(1), session(1))]);
    engine.release(&key(1), session(2)).await.unwrap();
    let (_, _, previous) = resumed(engine, displacing(3, 1)).await;
    assert_eq!(previous, session(2), "a wish to displace does not hinder where nobody holds");
}

async fn claims_rise(engine: &dyn Ownership) {
    let mut last = granted(engine, request(key(1), 1, NOW)).await;
    // Clocks of gateways differ: also an earlier time gets a higher claim.
    for (number, now) in [(2, at(1)), (3, at(1)), (4, NOW), (5, Timestamp(1)), (6, at(5_000_000))] {
        engine.release(&key(1), session(number - 1)).await.unwrap();
        let (claim, _, _) = resumed(engine, request(key(1), number, now)).await;
        assert!(claim > last, "{claim:?} after {last:?}");
        assert!(claim.0 >= now.0, "{claim:?} at {now:?}");
        last = claim;
    }
}

async fn settling_goes_with_the_holder(engine: &dyn Ownership) {
    granted(engine, request(key(1), 1, NOW)).await;
    let steps = [
        (Some(0), Some(0)),
        (Some(1), Some(1)),
        (None, Some(1)),
        (Some(9), Some(9)),
        // The agent has restarted and counts from the beginning.
        (Some(1), Some(1)),
        (Some(u64::MAX), Some(u64::MAX)),
    ];
    for (number, (sequence_num, expected)) in (1..).zip(steps) {
        let refused = engine.settle(vec![settled(1, sequence_num, at(number))]).await.unwrap();
        assert_eq!(refused, []);
        let now = owned(engine, &key(1)).await.unwrap();
        assert_eq!((now.settled, now.seen), (expected, at(number)), "after {sequence_num:?}");
    }
    let batch = vec![settled(1, Some(4), at(20)), settled(1, Some(5), at(21)), settled(1, None, at(22))];
    assert_eq!(engine.settle(batch).await.unwrap(), [], "one agent several times in one call, in order");
    let now = owned(engine, &key(1)).await.unwrap();
    assert_eq!((now.settled, now.seen), (Some(5), at(22)));
    assert_eq!(engine.settle(Vec::new()).await.unwrap(), []);
}

async fn only_the_holder_settles(engine: &dyn Ownership) {
    granted(engine, request(key(1), 1, NOW)).await;
    granted(engine, request(key(2), 2, NOW)).await;
    granted(engine, request(key(3), 3, NOW)).await;
    engine.release(&key(3), session(3)).await.unwrap();
    let of = |number, session_of| Settled {
        key: key(number),
        session: session(session_of),
        sequence_num: Some(5),
        epoch: 1,
        seen: at(10),
    };
    // Not the holder, the holder, released, unknown: each is judged for itself.
    let mut refused = engine.settle(vec![of(1, 2), of(2, 2), of(3, 3), of(4, 4)]).await.unwrap();
    refused.sort();
    assert_eq!(refused, [(key(1), session(2)), (key(3), session(3)), (key(4), session(4))]);
    let found = engine.look_up(&[key(1), key(2), key(3), key(4)]).await.unwrap();
    let found: Vec<_> =
        found.into_iter().map(|owned| owned.map(|owned| (owned.settled, owned.seen))).collect();
    let untouched = Some((None, NOW));
    assert_eq!(found, [untouched, Some((Some(5), at(10))), untouched, None]);
}

async fn last_seen_rises(engine: &dyn Ownership) {
    granted(engine, request(key(1), 1, at(100))).await;
    let seen = async || owned(engine, &key(1)).await.unwrap().seen;
    engine.settle(vec![settled(1, None, at(50))]).await.unwrap();
    assert_eq!(seen().await, at(100), "an earlier time does not set it back");
    engine.settle(vec![settled(1, None, at(150))]).await.unwrap();
    assert_eq!(seen().await, at(150));
    engine.release(&key(1), session(1)).await.unwrap();
    assert_eq!(seen().await, at(150));
    resumed(engine, request(key(1), 2, at(120))).await;
    assert_eq!(seen().await, at(150));
    resumed(engine, request(key(1), 2, at(200))).await;
    assert_eq!(seen().await, at(200), "the first message of a session is heard too");
}

async fn only_the_holder_releases(engine: &dyn Ownership) {
    engine.release(&key(1), session(1)).await.unwrap();
    assert_eq!(owned(engine, &key(1)).await, None, "releasing an unknown agent does not make it known");
    let claim = granted(engine, request(key(1), 1, NOW)).await;
    engine.release(&key(1), session(2)).await.unwrap();
    assert_eq!(owned(engine, &key(1)).await.unwrap().holder, Some(holder(1, claim)));
    engine.release(&key(1), session(1)).await.unwrap();
    engine.release(&key(1), session(1)).await.unwrap();
    assert_eq!(owned(engine, &key(1)).await.unwrap().holder, None);
}

async fn look_up_keeps_the_order(engine: &dyn Ownership) {
    assert_eq!(engine.look_up(&[]).await.unwrap(), []);
    for number in [5, 3, 8] {
        granted(engine, request(key(number), number, at(number as u64))).await;
    }
    let keys = [key(8), key(1), key(3), key(8), key(5)];
    let found = engine.look_up(&keys).await.unwrap();
    let seen: Vec<_> = found.into_iter().map(|owned| owned.map(|owned| owned.seen)).collect();
    assert_eq!(seen, [Some(at(8)), None, Some(at(3)), Some(at(8)), Some(at(5))]);
}

async fn tenants_are_apart(engine: &dyn Ownership) {
    let (ours, theirs) = (key_of("ours", 1), key_of("theirs", 1));
    let claim = granted(engine, request(ours.clone(), 1, NOW)).await;
    assert_eq!(owned(engine, &theirs).await, None);
    let other = granted(engine, request(theirs.clone(), 2, NOW)).await;
    engine.release(&theirs, session(1)).await.unwrap();
    assert_eq!(owned(engine, &theirs).await.unwrap().holder, Some(holder(2, other)));
    engine.release(&theirs, session(2)).await.unwrap();
    assert_eq!(owned(engine, &ours).await.unwrap().holder, Some(holder(1, claim)));
}

async fn what_was_settled_in_another_epoch_is_not_known(engine: &dyn Ownership) {
    granted(engine, request(key(1), 1, NOW)).await;
    let settle = async |epoch, sequence_num| {
        let settled = Settled { epoch, ..settled(1, sequence_num, at(1)) };
        assert_eq!(engine.settle(vec![settled]).await.unwrap(), []);
    };
    let known = async |epoch| {
        let wish = ClaimRequest { epoch, ..request(key(1), 1, at(2)) };
        resumed(engine, wish).await.1
    };
    settle(u64::MAX, Some(7)).await;
    assert_eq!([known(u64::MAX).await, known(1).await, known(0).await], [Some(7), None, Some(7)]);
    // An agent that is only heard settles nothing.
    settle(2, None).await;
    assert_eq!([known(u64::MAX).await, known(2).await], [Some(7), None]);
    settle(2, Some(8)).await;
    assert_eq!([known(u64::MAX).await, known(2).await], [None, Some(8)]);
    settle(0, Some(9)).await;
    assert_eq!([known(3).await, known(2).await], [Some(9), Some(9)]);
}
