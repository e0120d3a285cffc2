//! Where agents stand.

use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::super::standing::{Part, Standing, Track, look};
use super::super::{Counts, Mode};
use super::at;
use crate::agent::{Agent, EndReason, FailedConfig, Offered, Session, Transport};
use crate::capabilities::AgentCapabilities;
use crate::ids::{AgentKey, Claim, ConfigHash, Incarnation, InstanceUid, RolloutId, SessionId};
use crate::report::{ConfigStatus, Health, RemoteConfigStatus};
use Standing::*;

const PART: Part = Part {
    rollout: RolloutId(Uuid::from_u128(1)),
    mode: Mode::Forward,
    exposed: true,
    given: true,
    compares: false,
    apply_deadline: Duration::from_secs(300),
};

fn hash(byte: u8) -> ConfigHash {
    ConfigHash::new(&[byte]).unwrap()
}

/// A connected, healthy agent that can do everything and should run config 2.
fn agent() -> Agent {
    let key = AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(9)) };
    let mut agent = Agent::new(key, at(0));
    agent.session = Some(Session {
        id: SessionId(Uuid::from_u128(1)),
        claim: Claim(1),
        gateway: "gateway".parse().unwrap(),
        incarnation: Incarnation(Uuid::from_u128(1)),
        transport: Transport::WebSocket,
        remote_addr: String::new(),
        started_at: at(0),
        silent_since: None,
        ended: None,
    });
    agent.state.capabilities = AgentCapabilities(0x1802);
    agent.state.health = Some(Health { healthy: true, ..Health::default() });
    agent.state.desired = Some(hash(2));
    agent
}

fn reported(mut agent: Agent, byte: u8, status: ConfigStatus) -> Agent {
    agent.state.remote_config =
        RemoteConfigStatus { hash: Some(hash(byte)), status, error_message: String::new() };
    agent
}

fn applied() -> Agent {
    reported(agent(), 2, ConfigStatus::Applied)
}

fn left(mut agent: Agent, reason: EndReason) -> Agent {
    agent.session.as_mut().unwrap().ended = Some((at(1), reason));
    agent
}

fn sick(mut agent: Agent) -> Agent {
    agent.state.health = Some(Health::default());
    agent
}

fn offered(mut agent: Agent) -> Agent {
    let session = SessionId(Uuid::from_u128(1));
    agent.state.offered =
        Some(Offered { hash: hash(2), session, first_at: at(0), attempts: 1, next_at: at(10) });
    agent
}

/// Where these looks, one after the other, leave an agent.
fn after(part: Part, looks: &[(u64, &Agent)]) -> Option<Track> {
    looks.iter().fold(None, |track, (seconds, agent)| {
        look(track.as_ref(), &part, agent, at(*seconds)).map(|found| found.0)
    })
}

fn stands(looks: &[(u64, &Agent)]) -> Standing {
    after(PART, looks).unwrap().standing
}

#[test]
fn an_exposed_agent_stands_where_its_reports_say() {
    assert_eq!(stands(&[(0, &agent())]), Waiting);
    assert_eq!(stands(&[(0, &reported(agent(), 2, ConfigStatus::Applying))]), Waiting);
    assert_eq!(stands(&[(0, &reported(agent(), 1, ConfigStatus::Applied))]), Waiting);
    assert_eq!(stands(&[(0, &applied())]), Healthy);
    assert_eq!(stands(&[(0, &reported(agent(), 2, ConfigStatus::Failed))]), Failed);
    // The supervisor goes back by itself, and says that the old config is applied.
    let mut went_back = reported(agent(), 1, ConfigStatus::Applied);
    went_back.state.failed = Some(FailedConfig { hash: hash(2), error_message: String::new(), at: at(0) });
    assert_eq!(stands(&[(0, &went_back)]), Failed);
    let mut mute = applied();
    mute.state.health = None;
    assert_eq!(stands(&[(0, &mute)]), Unknown);
    let mut deaf = agent();
    deaf.state.capabilities = AgentCapabilities(0x1800);
    assert_eq!(stands(&[(0, &deaf)]), Unable);
    let mut silent = offered(agent());
    silent.state.capabilities = AgentCapabilities(0x2);
    assert_eq!(stands(&[(0, &silent), (1000, &silent)]), Silent);
}

#[test]
fn health_is_compared_with_what_it_was() {
    assert_eq!(stands(&[(0, &agent()), (5, &sick(applied()))]), Unhealthy);
    assert_eq!(stands(&[(0, &sick(agent())), (5, &sick(applied()))]), UnhealthyBefore);
    assert_eq!(stands(&[(0, &sick(agent())), (5, &applied())]), Healthy);
    assert_eq!(stands(&[(0, &agent()), (5, &applied()), (6, &sick(applied())), (7, &applied())]), Healthy);
}

#[test]
fn disconnects_are_told_apart() {
    use EndReason::*;
    for (reason, standing) in [
        (ConnectionLost, Gone),
        (Silent, Gone),
        (ProtocolError, Gone),
        (GatewayStopped, Away),
        (GatewayLost, Away),
        (Superseded, Away),
        (AgentDisconnect, Offline),
    ] {
        assert_eq!(stands(&[(0, &applied()), (5, &left(applied(), reason))]), standing, "{reason:?}");
        // It comes back.
        assert_eq!(stands(&[(0, &applied()), (5, &left(applied(), reason)), (9, &applied())]), Healthy);
    }
    // Before it was sent anything it is away, and that is all.
    assert_eq!(
        stands(&[(0, &left(agent(), ConnectionLost)), (999, &left(agent(), ConnectionLost))]),
        Offline
    );
    // Sent the change, and gone: perhaps because of it.
    let (there, gone) = (offered(agent()), left(offered(agent()), ConnectionLost));
    assert_eq!(stands(&[(0, &there), (5, &gone)]), Waiting);
    assert_eq!(stands(&[(0, &there), (5, &gone), (300, &gone)]), Lost);
    assert_eq!(stands(&[(0, &there), (5, &gone), (300, &gone), (301, &applied())]), Healthy);
    let ours = left(offered(agent()), GatewayLost);
    assert_eq!(stands(&[(0, &there), (5, &ours), (300, &ours)]), Offline, "our doing is no failure of it");
}

#[test]
fn the_deadline_runs_from_when_the_agent_is_there() {
    let (there, away) = (agent(), left(agent(), EndReason::ConnectionLost));
    let due = look(None, &PART, &there, at(7)).unwrap().1;
    assert_eq!(due, Some(at(307)));
    assert_eq!(stands(&[(0, &there), (299, &there)]), Waiting);
    assert_eq!(stands(&[(0, &there), (300, &there)]), Late);
    assert_eq!(stands(&[(0, &there), (300, &there), (400, &applied())]), Healthy);
    assert_eq!(stands(&[(0, &away), (5000, &there)]), Waiting, "it was offline until now");
    assert_eq!(stands(&[(0, &away), (5000, &there), (5300, &there)]), Late);
}

#[test]
fn who_is_not_exposed_is_watched_for_comparison_alone() {
    let unexposed = Part { exposed: false, given: false, ..PART };
    assert_eq!(after(unexposed, &[(0, &agent())]), None);
    let compared = Part { compares: true, ..unexposed };
    assert_eq!(after(compared, &[(0, &agent())]).unwrap().standing, UnexposedHealthy);
    assert_eq!(after(compared, &[(0, &sick(agent()))]).unwrap().standing, UnexposedUnhealthy);
    assert_eq!(after(compared, &[(0, &left(agent(), EndReason::Silent))]), None);
    // When it is exposed, what it was before is what it is then.
    let before = after(compared, &[(0, &agent())]);
    let track = look(before.as_ref(), &PART, &sick(agent()), at(9)).unwrap().0;
    assert!(track.exposed && track.was_unhealthy);
}

#[test]
fn a_halted_rollout_asks_nothing_of_who_does_not_have_it() {
    let halted = Part { mode: Mode::Halted, given: false, ..PART };
    let track = after(PART, &[(0, &agent())]);
    let found = look(track.as_ref(), &halted, &agent(), at(9999)).unwrap();
    assert_eq!((found.0.standing, found.1), (Waiting, None), "no deadline runs");
    let held = Part { given: true, ..halted };
    assert_eq!(look(track.as_ref(), &held, &applied(), at(9999)).unwrap().0.standing, Healthy);
}

#[test]
fn a_rollback_is_followed_to_each_agent() {
    let back = Part { mode: Mode::Back, given: false, ..PART };
    let stands = |agent: &Agent| look(None, &back, agent, at(0)).unwrap().0.standing;
    assert_eq!(stands(&agent()), Restoring);
    assert_eq!(stands(&applied()), Restored);
    assert_eq!(stands(&reported(agent(), 2, ConfigStatus::Failed)), RestoreFailed);
    assert_eq!(stands(&left(agent(), EndReason::ConnectionLost)), RestoredLater);
    let mut nothing = agent();
    nothing.state.desired = None;
    assert_eq!(stands(&nothing), Kept);
}

proptest! {
    /// Counts that follow agents' steps are the counts of where they are.
    #[test]
    fn counts_are_exact(steps in proptest::collection::vec((0_usize..6, proptest::option::of(0_usize..6)), 0..60)) {
        let all = [Waiting, Healthy, Failed, Offline, Gone, Away];
        let mut agents: [Option<Standing>; 6] = [None; 6];
        let mut counts = Counts::default();
        for (agent, to) in steps {
            let to = to.map(|to| all[to]);
            counts.step(agents[agent], to);
            agents[agent] = to;
        }
        for standing in all {
            let expected = agents.iter().filter(|found| **found == Some(standing)).count() as u64;
            prop_assert_eq!(counts.of(standing), expected);
        }
        prop_assert!(counts.by.values().all(|count| *count > 0));
    }
}
