//! Tests of what ownership decides about polls.

use super::vectors::{Call, Player, VECTORS};
use super::*;

#[test]
fn the_vectors_hold() {
    for (name, steps) in VECTORS {
        let mut player = Player::default();
        let mut state: Option<State> = None;
        for (number, (step, expected)) in steps.iter().enumerate() {
            let Some(call) = player.call(*step) else {
                assert_eq!(*expected, "", "{name}, step {number}: {step:?}");
                continue;
            };
            let words = match call {
                Call::Begin(poll) => {
                    let begun = match &mut state {
                        Some(state) => state.begin(&poll),
                        None => {
                            let (first, begun) = State::first(&poll);
                            state = Some(first);
                            begun
                        }
                    };
                    player.begun(&poll, &begun)
                }
                Call::End(end) => Player::ended(state.as_mut().unwrap().end(&end)).to_owned(),
                Call::Post(session, mail, above) => {
                    Player::posted(state.as_mut().unwrap().post(session, &mail, above)).to_owned()
                }
                Call::Expire(session, before) => {
                    Player::silence(state.as_mut().unwrap().expire(session, before))
                }
            };
            assert_eq!(words, *expected, "{name}, step {number}: {step:?}");
        }
    }
}

fn begun(state: &mut Option<State>, poll: &Poll) -> Begun {
    match state {
        Some(state) => state.begin(poll),
        None => {
            let (first, begun) = State::first(poll);
            *state = Some(first);
            begun
        }
    }
}

#[test]
fn the_same_call_again_is_taken_again() {
    let mut player = Player::default();
    let mut state = None;
    let Some(Call::Begin(poll)) = player.call(vectors::VECTORS[0].1[0].0) else { panic!() };
    let first = begun(&mut state, &poll);
    assert_eq!(begun(&mut state, &poll), first, "its answer may have been lost");
    let other = Poll { id: PollId(uuid::Uuid::nil()), ..poll };
    assert_eq!(begun(&mut state, &other), Begun::Overlapping);
}

#[test]
fn claims_rise_with_every_session() {
    let mut player = Player::default();
    let mut state = None;
    let mut last = None;
    // Each request is lost, and the clock stands still or goes back now and then.
    for at in [0, 20, 40, 25, 60, 5, 80] {
        let step = vectors::Step::Poll { at, number: Some(1), holds: vectors::Holds::Report(0) };
        let Some(Call::Begin(poll)) = player.call(step) else { panic!() };
        let Begun::Taken(taken) = begun(&mut state, &poll) else { panic!("at {at}") };
        assert!(Some(taken.claim) > last.map(|(claim, _)| claim), "at {at}");
        assert_eq!(taken.previous, last.map(|(_, session)| session));
        last = Some((taken.claim, taken.session));
    }
}
