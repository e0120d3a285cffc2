//! Every case of a contested uid, and the bounds of what is given.

use uuid::Uuid;

use super::*;

const NOW: Timestamp = Timestamp(1_000_000_000);

/// The verdict in a word, or what is asked for.
fn word(lease: Lease, answers: &[Answer]) -> &'static str {
    match judge(lease, answers) {
        Step::Ask { after } if after.is_zero() => "ask",
        Step::Ask { .. } => "ask again",
        Step::Decided(Verdict::Takeover(_)) => "takeover",
        Step::Decided(Verdict::Duplicate(_)) => "duplicate",
        Step::Decided(Verdict::Undecided(_)) => "undecided",
    }
}

#[test]
fn a_lapsed_lease_needs_no_question() {
    assert_eq!(word(Lease::Lapsed, &[]), "takeover");
    assert_eq!(word(Lease::Live, &[]), "ask");
    assert_eq!(word(Lease::Unknown, &[]), "ask");
}

#[test]
fn the_gateways_own_word_counts_whatever_its_lease() {
    for lease in [Lease::Live, Lease::Lapsed, Lease::Unknown] {
        assert_eq!(word(lease, &[Answer::Alive]), "duplicate");
        assert_eq!(word(lease, &[Answer::Silent]), "takeover");
        assert_eq!(word(lease, &[Answer::Absent]), "takeover");
        assert_eq!(word(lease, &[Answer::Failed]), "undecided");
    }
}

#[test]
fn nobody_listening_is_believed_at_the_second_time() {
    use Answer::NobodyListens;
    assert_eq!(word(Lease::Live, &[NobodyListens]), "ask again");
    assert_eq!(word(Lease::Live, &[NobodyListens, NobodyListens]), "takeover");
    assert_eq!(word(Lease::Live, &[NobodyListens, Answer::Alive]), "duplicate");
    assert_eq!(word(Lease::Lapsed, &[NobodyListens]), "takeover", "the lease lapsed meanwhile");
}

#[test]
fn silence_is_no_proof_while_the_leases_cannot_be_read() {
    for answers in [&[Answer::Unanswered][..], &[Answer::NobodyListens]] {
        assert_eq!(word(Lease::Unknown, answers), "undecided");
    }
    assert_eq!(word(Lease::Live, &[Answer::Unanswered]), "takeover");
}

fn client(host: u8) -> Client {
    let key = AgentKey { tenant: "default".parse().unwrap(), uid: uid(7) };
    (key, IpAddr::from([10, 0, 0, host]))
}

fn uid(number: u8) -> InstanceUid {
    InstanceUid(Uuid::from_bytes([number; 16]))
}

#[test]
fn who_takes_no_new_uid_is_refused_for_a_time() {
    let mut given = Given::default();
    for _ in 0..ATTEMPTS {
        assert_eq!(given.patience(&client(1), NOW), Patience::Left);
        given.not_taken(client(1), NOW);
    }
    assert_eq!(given.patience(&client(1), NOW), Patience::Over);
    assert_eq!(given.patience(&client(2), NOW), Patience::Left, "another host");
    given.refused(&client(1), NOW);
    assert_eq!(given.patience(&client(1), NOW), Patience::OverAndKnown);
    assert_eq!(given.patience(&client(1), NOW.plus(REFUSED_FOR)), Patience::Over);
    assert_eq!(given.patience(&client(1), NOW.plus(ATTEMPTS_WITHIN)), Patience::Left);
}

#[test]
fn a_repeated_request_is_issued_the_same_uid_until_it_is_taken() {
    let mut given = Given::default();
    assert_eq!(given.issue(client(1), uid(1), NOW), uid(1));
    assert_eq!(given.issue(client(1), uid(2), NOW), uid(1));
    assert_eq!(given.issue(client(2), uid(3), NOW), uid(3), "another host with the same temporary uid");
    given.taken(&client(1));
    assert_eq!(given.issue(client(1), uid(4), NOW), uid(4));
    assert_eq!(given.issue(client(1), uid(5), NOW.plus(ISSUED_FOR)), uid(5), "too late");
}

#[test]
fn a_client_without_a_connection_is_believed_when_it_comes_under_the_new_uid() {
    let mut given = Given::default();
    let came = |given: &mut Given, number| {
        given.came(&AgentKey { tenant: "default".parse().unwrap(), uid: uid(number) }, NOW)
    };
    for number in 0..ATTEMPTS as u8 {
        given.gave(client(1), uid(number), NOW);
        given.gave(client(1), uid(number), NOW);
    }
    assert_eq!(given.patience(&client(1), NOW), Patience::Over, "each counts once");
    assert!(came(&mut given, 3));
    assert_eq!(given.patience(&client(1), NOW), Patience::Left);
    assert!(!came(&mut given, 3), "it came before");
    assert!(!came(&mut given, 99), "nobody was given it");
}

#[test]
fn a_request_for_a_uid_that_is_repeated_is_answered_with_the_same_one() {
    let mut given = Given::default();
    assert_eq!(given.issue_to(client(1), 7, uid(1), NOW), uid(1));
    assert_eq!(given.issue_to(client(1), 7, uid(2), NOW), uid(1));
    assert_eq!(given.issue_to(client(1), 8, uid(3), NOW), uid(3), "another one behind the same address");
    assert_eq!(given.issue_to(client(1), 7, uid(4), NOW.plus(ISSUED_FOR)), uid(4), "too late");
}
