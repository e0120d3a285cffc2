//! What is drift, what is not, and what an agent that drifts again and again is offered.

use uuid::Uuid;

use super::*;
use crate::agent::{Agent, Entry};
use crate::capabilities::AgentCapabilities;
use crate::ids::{AgentKey, Claim, Incarnation, InstanceUid, IntentRevision};
use crate::reconcile::{Decision, Why, reconcile_agent};
use crate::report::{ConfigFile, ConfigMap, RemoteConfigStatus, Report};

const SECOND: u64 = 1_000_000;

/// An agent, and a control that decides for it after each report, a second later than the one before.
struct Managed {
    agent: Agent,
    session: u64,
    now: Timestamp,
    events: Vec<AgentEvent>,
}

fn hash(byte: u8) -> ConfigHash {
    ConfigHash::new(&[byte]).unwrap()
}

fn status(byte: Option<u8>, status: ConfigStatus) -> Report {
    let hash = byte.map(hash);
    let remote_config = RemoteConfigStatus { hash, status, error_message: String::new() };
    Report { remote_config: Some(remote_config), ..Report::default() }
}

fn applied(byte: u8) -> Report {
    status(Some(byte), ConfigStatus::Applied)
}

fn runs(text: &str) -> Report {
    let file = ConfigFile { body: text.into(), ..ConfigFile::default() };
    Report { effective_config: Some(ConfigMap::from([(String::new(), file)])), ..Report::default() }
}

impl Managed {
    fn new() -> Self {
        let uid = InstanceUid(Uuid::from_u128(1));
        let key = AgentKey { tenant: "default".parse().unwrap(), uid };
        let mut agent = Agent::new(key, Timestamp(0));
        agent.state.capabilities = AgentCapabilities(0x1002);
        Self { agent, session: 1, now: Timestamp(1_000 * SECOND), events: Vec::new() }
    }

    /// One that was offered this config, has applied it, and runs the text, since longer than it takes to
    /// settle.
    fn settled(byte: u8, text: &str) -> Self {
        let mut managed = Self::new();
        managed.report(runs("before"));
        managed.wants(byte);
        managed.report(runs(text));
        managed.report(applied(byte));
        managed.wait(SETTLES);
        managed.events.clear();
        managed
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.decide();
    }

    fn decide(&mut self) -> Option<Timestamp> {
        self.agent.judge_drift(self.now, &mut self.events);
        match reconcile_agent(&self.agent, self.now) {
            Decision::Offer(offer) => {
                self.agent.state.set_offered(offer, self.now);
                None
            }
            Decision::Nothing(Why::LeavesItAgain(at)) => Some(at),
            Decision::Nothing(_) => None,
        }
    }

    fn wants(&mut self, byte: u8) {
        self.agent.state.set_desired(Some(hash(byte)), None);
        self.decide();
    }

    /// Returns until when the agent is not offered what it left, if it is to wait.
    fn report(&mut self, report: Report) -> Option<Timestamp> {
        self.now.0 += SECOND;
        let id = Uuid::from_u128(self.session.into());
        self.agent.fold(Entry {
            session: SessionId(id),
            claim: Claim(self.session),
            gateway: "gw-1".parse().unwrap(),
            incarnation: Incarnation(Uuid::from_u128(9)),
            received_at: self.now,
            sequence_num: 1,
            started: None,
            report: Some(report),
            sent: None,
            ended: None,
            silent: false,
            unsent: None,
        });
        self.decide()
    }

    fn kind(&self) -> Option<DriftKind> {
        self.agent.state.drift.as_ref().map(|drift| drift.kind)
    }

    fn is_offered(&self) -> bool {
        self.agent.state.offered.is_some()
    }
}

#[test]
fn a_hash_that_leaves_the_desired_one_is_drift_until_it_is_back() {
    let mut managed = Managed::settled(1, "a");
    managed.report(applied(7));
    let drift = Drift {
        kind: DriftKind::RemoteConfig,
        since: managed.now,
        expected: "01".to_owned(),
        found: Some("07".to_owned()),
        again: None,
    };
    assert_eq!(managed.agent.state.drift, Some(drift.clone()));
    assert_eq!(managed.events, [AgentEvent::Drifted(drift.clone())]);
    assert!(managed.is_offered(), "the hash differs: it is offered again");
    // It stays the same drift, whatever it runs meanwhile.
    managed.report(status(None, ConfigStatus::Unset));
    assert_eq!(managed.agent.state.drift, Some(Drift { found: None, ..drift }));
    managed.report(status(Some(1), ConfigStatus::Applying));
    assert_eq!(managed.kind(), Some(DriftKind::RemoteConfig));
    managed.report(applied(1));
    assert_eq!(managed.agent.state.drift, None);
    assert_eq!(managed.events[1..], [AgentEvent::DriftEnded(DriftKind::RemoteConfig)]);
}

#[test]
fn an_effective_config_that_changes_without_an_offer_is_drift_and_nothing_is_sent() {
    let mut managed = Managed::settled(1, "a");
    let expected = managed.agent.state.effective_config.unwrap();
    managed.report(runs("b"));
    let found = managed.agent.state.effective_config.unwrap();
    let drift = managed.agent.state.drift.clone().unwrap();
    assert_eq!((drift.kind, drift.since), (DriftKind::EffectiveConfig, managed.now));
    assert_eq!((drift.expected, drift.found), (expected.to_string(), Some(found.to_string())));
    assert!(!managed.is_offered(), "nothing is sent while the hash matches");
    managed.report(runs("c"));
    assert_eq!(managed.agent.state.drift.as_ref().map(|now| now.since), Some(drift.since));
    managed.report(runs("a"));
    assert_eq!(managed.kind(), None);
    let kinds: Vec<_> = managed.events.iter().map(|event| matches!(event, AgentEvent::Drifted(_))).collect();
    assert_eq!(kinds, [true, false], "told once, and once that it is over");
}

#[test]
fn what_changes_around_an_offer_is_put_down_to_it() {
    let mut managed = Managed::settled(1, "a");
    managed.wants(2);
    managed.report(runs("on the way"));
    managed.report(status(Some(2), ConfigStatus::Applying));
    managed.report(runs("b"));
    managed.report(applied(2));
    // As the operator bridge does: with its next heartbeat.
    managed.wait(Duration::from_secs(30));
    managed.report(runs("later"));
    assert_eq!((managed.kind(), managed.events.as_slice()), (None, &[][..]));
    managed.wait(SETTLES);
    managed.report(runs("b"));
    assert_eq!(managed.kind(), Some(DriftKind::EffectiveConfig));
    // Another config is another thing.
    managed.wants(3);
    assert_eq!(managed.kind(), None);
    managed.report(applied(3));
    assert_eq!(managed.kind(), None);
}

#[test]
fn an_agent_that_came_with_its_config_settles_at_once() {
    let mut managed = Managed::new();
    managed.agent.state.set_desired(Some(hash(1)), None);
    managed.report(Report { effective_config: runs("a").effective_config, ..applied(1) });
    managed.report(runs("b"));
    assert_eq!(managed.kind(), Some(DriftKind::EffectiveConfig));
}

#[test]
fn what_was_never_applied_cannot_drift() {
    let mut managed = Managed::new();
    managed.report(runs("a"));
    managed.report(applied(7));
    managed.report(applied(8));
    managed.wants(1);
    managed.report(status(Some(1), ConfigStatus::Failed));
    managed.report(applied(8));
    managed.report(runs("b"));
    assert_eq!((managed.kind(), managed.events.as_slice()), (None, &[][..]));
    // Nor can who should run nothing.
    let mut managed = Managed::settled(1, "a");
    managed.agent.state.set_desired(None, None);
    managed.report(applied(7));
    assert_eq!(managed.kind(), None);
}

#[test]
fn the_supervisors_rollback_is_no_drift() {
    let mut managed = Managed::settled(1, "a");
    managed.wants(2);
    for report in [status(Some(2), ConfigStatus::Applying), status(Some(2), ConfigStatus::Failed), applied(1)]
    {
        managed.report(report);
        assert_eq!(managed.kind(), None);
    }
}

#[test]
fn an_offer_that_was_taken_back_is_no_drift() {
    let mut managed = Managed::settled(1, "a");
    managed.wants(2);
    managed.wants(1);
    for report in [status(Some(2), ConfigStatus::Applying), runs("b"), applied(2), applied(1)] {
        managed.report(report);
        assert_eq!(managed.kind(), None);
    }
    // Later it is the agent's own doing.
    managed.wait(SETTLES);
    managed.report(applied(2));
    assert_eq!(managed.kind(), Some(DriftKind::RemoteConfig));
}

#[test]
fn an_empty_effective_config_says_nothing() {
    let mut managed = Managed::settled(1, "a");
    // As a supervisor that begins anew, before its collector runs.
    for report in [runs(""), Report { effective_config: Some(ConfigMap::new()), ..Report::default() }] {
        managed.report(report);
        assert_eq!(managed.kind(), None);
    }
    managed.report(runs("a"));
    assert_eq!(managed.kind(), None);
    managed.report(runs("b"));
    assert_eq!(managed.kind(), Some(DriftKind::EffectiveConfig));
}

#[test]
fn who_leaves_a_config_again_and_again_is_offered_it_with_growing_distance() {
    let mut managed = Managed::settled(1, "a");
    let mut waits = Vec::new();
    for _ in 0..8 {
        let again = managed.report(applied(7));
        waits.push(again.map_or(0, |at| at.since(managed.now).as_secs()));
        if let Some(at) = again {
            assert!(!managed.is_offered());
            managed.wait(at.since(managed.now));
        }
        assert!(managed.is_offered());
        managed.report(applied(1));
    }
    assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    // A new session is offered it at once; it may have begun anew without its config.
    managed.session = 2;
    assert_eq!(managed.report(applied(7)), None);
    assert!(managed.is_offered());
    managed.report(applied(1));
    // An operator's word makes all of it forgotten.
    managed.agent.state.set_retried(IntentRevision(1));
    assert_eq!(managed.report(applied(7)), None);
    assert_eq!(managed.kind(), None, "it never had what it should run, as far as is known now");
    managed.report(applied(1));
    assert_eq!(managed.report(applied(7)), None);
}

#[test]
fn a_new_session_ends_the_wait() {
    let mut managed = Managed::settled(1, "a");
    managed.report(applied(7));
    managed.report(applied(1));
    assert!(managed.report(applied(7)).is_some());
    managed.session = 2;
    assert_eq!(managed.report(applied(7)), None);
    assert!(managed.is_offered());
}

#[test]
fn an_operator_may_take_what_runs_for_right() {
    let mut managed = Managed::settled(1, "a");
    managed.report(runs("b"));
    assert!(managed.agent.state.set_retried(IntentRevision(1)));
    managed.decide();
    assert_eq!(managed.kind(), None);
    managed.report(runs("a"));
    assert_eq!(managed.kind(), Some(DriftKind::EffectiveConfig));
}

#[test]
fn a_drifted_agents_text_says_so_by_its_beginning() {
    let mut managed = Managed::settled(1, "a");
    let text = |managed: &Managed| serde_json::to_string(&managed.agent.state).unwrap();
    assert!(!text(&managed).starts_with("{\"drift\":{"));
    managed.report(runs("b"));
    assert!(text(&managed).starts_with("{\"drift\":{"));
    assert_eq!(serde_json::from_str::<AgentState>(&text(&managed)).unwrap(), managed.agent.state);
}
