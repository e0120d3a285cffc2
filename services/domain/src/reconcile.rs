//! Whether an agent is to be offered its desired config now, and why (not).

use std::time::Duration;

use crate::agent::{Agent, Offered};
use crate::capabilities::AgentCapabilities;
use crate::ids::{ConfigHash, SessionId, Timestamp};
use crate::report::{ConfigStatus, RemoteConfigStatus};

/// First wait for a report on an offer before it is sent again; doubled each time.
pub const FIRST_RETRY: Duration = Duration::from_secs(10);
/// Longest wait between two sends of one offer.
pub const LAST_RETRY: Duration = Duration::from_secs(300);

/// What [`reconcile`] decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Send the desired config, and record this with it.
    Offer(Offered),
    /// Send nothing.
    Nothing(Why),
}

/// Why an agent is offered nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// No assignment gives the agent a config.
    NoDesiredConfig,
    /// The agent has no live session.
    NotConnected,
    /// The agent does not accept remote config (now).
    NotCapable,
    /// The agent reports the desired hash.
    UpToDate,
    /// The agent reported that it cannot apply this hash.
    KnownToFail,
    /// It was sent; a report is awaited until this moment.
    AwaitingReport(Timestamp),
    /// It was sent to this session, and the agent reports no status that could be awaited.
    SentOnce,
    /// The agent leaves this config again and again by itself: it is offered at this moment.
    LeavesItAgain(Timestamp),
}

/// Decides for one agent. Level-triggered: it may be called at any time and any number of times.
///
/// - never without AcceptsRemoteConfig (OpAMP, AgentRemoteConfig);
/// - never while the reported hash is the desired one, or that one is known to fail; but of an agent that
///   only says that it is applying it, more is awaited, and not for ever: it may have ended in the middle;
/// - an unreported offer is repeated with growing distance, to a new session at once;
/// - an agent that reports no config status gets one send a session and hash.
pub fn reconcile(
    desired: Option<&ConfigHash>,
    reported: &RemoteConfigStatus,
    offered: Option<&Offered>,
    failed: Option<&ConfigHash>,
    capabilities: AgentCapabilities,
    session: Option<SessionId>,
    now: Timestamp,
) -> Decision {
    let Some(desired) = desired else { return Decision::Nothing(Why::NoDesiredConfig) };
    let Some(session) = session else { return Decision::Nothing(Why::NotConnected) };
    if !capabilities.has(AgentCapabilities::ACCEPTS_REMOTE_CONFIG) {
        return Decision::Nothing(Why::NotCapable);
    }
    if failed == Some(desired) {
        return Decision::Nothing(Why::KnownToFail);
    }
    let is_applying = reported.hash.as_ref() == Some(desired) && reported.status == ConfigStatus::Applying;
    if reported.hash.as_ref() == Some(desired) && !is_applying {
        return Decision::Nothing(match reported.status {
            ConfigStatus::Failed => Why::KnownToFail,
            _ => Why::UpToDate,
        });
    }
    let before = offered.filter(|offered| offered.hash == *desired && offered.session == session);
    if let Some(offered) = offered.filter(|offered| is_applying && offered.hash == *desired) {
        // Whatever the session: applying may restart the agent.
        let due = offered.next_at.plus(LAST_RETRY - wait(offered.attempts));
        if now < due && due.since(now) <= LAST_RETRY * 2 {
            return Decision::Nothing(Why::AwaitingReport(due));
        }
    }
    let attempts = match before {
        Some(_) if !capabilities.has(AgentCapabilities::REPORTS_REMOTE_CONFIG) => {
            return Decision::Nothing(Why::SentOnce);
        }
        // Later than any wait: the clock of whoever made the offer was ahead.
        Some(before)
            if !is_applying
                && now < before.next_at
                && before.next_at.since(now) <= wait(before.attempts) * 2 =>
        {
            return Decision::Nothing(Why::AwaitingReport(before.next_at));
        }
        Some(before) => before.attempts.saturating_add(1),
        None => 1,
    };
    let first_at = offered.filter(|offered| offered.hash == *desired).map_or(now, |offered| offered.first_at);
    let next_at = now.plus(wait(attempts));
    Decision::Offer(Offered { hash: desired.clone(), session, first_at, attempts, next_at })
}

/// How long a report is awaited after so many sends.
pub(crate) fn wait(attempts: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1 << attempts.saturating_sub(1).min(8)).min(LAST_RETRY)
}

/// [`reconcile`] with an agent's own state. What the agent leaves again and again within one session is
/// offered again with growing distance.
pub fn reconcile_agent(agent: &Agent, now: Timestamp) -> Decision {
    let state = &agent.state;
    let decision = reconcile(
        state.desired.as_ref(),
        &state.remote_config,
        state.offered.as_ref(),
        state.failed.as_ref().map(|failed| &failed.hash),
        state.capabilities,
        agent.live_session().map(|session| session.id),
        now,
    );
    match decision {
        Decision::Offer(offer) => match state.drift_wait(offer.session, now) {
            Some(until) => Decision::Nothing(Why::LeavesItAgain(until)),
            None => Decision::Offer(offer),
        },
        nothing => nothing,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const BOTH: AgentCapabilities = AgentCapabilities(0x1002);

    fn hash(byte: u8) -> ConfigHash {
        ConfigHash::new(&[byte]).unwrap()
    }

    fn session(number: u128) -> SessionId {
        SessionId(Uuid::from_u128(number))
    }

    fn reported(byte: u8, status: ConfigStatus) -> RemoteConfigStatus {
        RemoteConfigStatus { hash: Some(hash(byte)), status, error_message: String::new() }
    }

    #[test]
    fn a_new_offer_is_repeated_with_growing_distance() {
        let mut offered: Option<Offered> = None;
        let mut now = Timestamp(0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let unset = RemoteConfigStatus::default();
            let decision =
                reconcile(Some(&hash(1)), &unset, offered.as_ref(), None, BOTH, Some(session(1)), now);
            let Decision::Offer(offer) = decision else { panic!("{decision:?}") };
            waits.push(offer.next_at.since(now).as_secs());
            let early = Timestamp(offer.next_at.0 - 1);
            let decision =
                reconcile(Some(&hash(1)), &unset, Some(&offer), None, BOTH, Some(session(1)), early);
            assert_eq!(decision, Decision::Nothing(Why::AwaitingReport(offer.next_at)));
            now = offer.next_at;
            offered = Some(offer);
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(offered.unwrap().first_at, Timestamp(0));
    }

    #[test]
    fn an_offer_of_a_clock_that_was_ahead_is_repeated() {
        let (unset, now) = (RemoteConfigStatus::default(), Timestamp(1_000_000));
        let decide = |ahead| {
            let at = now.plus(Duration::from_secs(ahead));
            let Decision::Offer(offer) =
                reconcile(Some(&hash(1)), &unset, None, None, BOTH, Some(session(1)), at)
            else {
                panic!()
            };
            reconcile(Some(&hash(1)), &unset, Some(&offer), None, BOTH, Some(session(1)), now)
        };
        assert!(matches!(decide(3600), Decision::Offer(Offered { attempts: 2, .. })));
        assert!(
            matches!(decide(2), Decision::Nothing(Why::AwaitingReport(_))),
            "clocks always differ a little"
        );
    }

    #[test]
    fn a_new_session_is_offered_at_once() {
        let unset = RemoteConfigStatus::default();
        let offered = Offered {
            hash: hash(1),
            session: session(1),
            first_at: Timestamp(0),
            attempts: 7,
            next_at: Timestamp(u64::MAX),
        };
        let decision =
            reconcile(Some(&hash(1)), &unset, Some(&offered), None, BOTH, Some(session(2)), Timestamp(5));
        let Decision::Offer(offer) = decision else { panic!("{decision:?}") };
        assert_eq!((offer.attempts, offer.session), (1, session(2)));
    }

    #[test]
    fn an_agent_that_reports_no_status_gets_one_send_a_session() {
        let unset = RemoteConfigStatus::default();
        let silent = AgentCapabilities(0x2);
        let decide = |offered: Option<&Offered>, at| {
            reconcile(Some(&hash(1)), &unset, offered, None, silent, Some(session(1)), Timestamp(at))
        };
        let Decision::Offer(offer) = decide(None, 0) else { panic!() };
        assert_eq!(decide(Some(&offer), u64::MAX), Decision::Nothing(Why::SentOnce));
    }

    #[test]
    fn an_agent_that_only_says_that_it_is_applying_is_offered_it_again_after_long() {
        let decide = |offered: Option<&Offered>, by, at| {
            let applying = reported(1, ConfigStatus::Applying);
            reconcile(Some(&hash(1)), &applying, offered, None, BOTH, Some(session(by)), Timestamp(at))
        };
        let Decision::Offer(first) = decide(None, 1, 0) else { panic!("nobody knows since when") };
        let due = Timestamp(0).plus(LAST_RETRY);
        // It may have been restarted by what it applies.
        for session in [1, 2] {
            assert_eq!(decide(Some(&first), session, due.0 - 1), Decision::Nothing(Why::AwaitingReport(due)));
        }
        let Decision::Offer(second) = decide(Some(&first), 1, due.0) else { panic!("it is due") };
        assert_eq!(second.attempts, 2);
        let again = due.plus(LAST_RETRY);
        assert_eq!(decide(Some(&second), 1, due.0), Decision::Nothing(Why::AwaitingReport(again)));
        assert!(matches!(decide(Some(&second), 2, again.0), Decision::Offer(Offered { attempts: 1, .. })));
    }

    #[test]
    fn the_supervisors_rollback_loop_ends() {
        // APPLIED(A), APPLYING(B), FAILED(B), APPLIED(A): the reported hash is A again.
        let decision = reconcile(
            Some(&hash(2)),
            &reported(1, ConfigStatus::Applied),
            None,
            Some(&hash(2)),
            BOTH,
            Some(session(1)),
            Timestamp(9),
        );
        assert_eq!(decision, Decision::Nothing(Why::KnownToFail));
    }

    proptest! {
        /// Invariant 4: no offer without capability, difference, and a hash not known to fail.
        #[test]
        fn offers_need_capability_difference_and_hope(
            desired in proptest::option::of(0_u8..3),
            report in proptest::option::of(0_u8..3),
            status in 0_u8..4,
            failed in proptest::option::of(0_u8..3),
            bits in prop::sample::select(vec![0_u64, 0x2, 0x1000, 0x1002]),
            live in any::<bool>(),
            now in any::<u64>(),
        ) {
            let status = [ConfigStatus::Unset, ConfigStatus::Applied, ConfigStatus::Applying, ConfigStatus::Failed]
                [usize::from(status)];
            let reported = RemoteConfigStatus { hash: report.map(hash), status, error_message: String::new() };
            let decision = reconcile(
                desired.map(hash).as_ref(),
                &reported,
                None,
                failed.map(hash).as_ref(),
                AgentCapabilities(bits),
                live.then(|| session(1)),
                Timestamp(now),
            );
            let differs = report != desired || reported.status == ConfigStatus::Applying;
            let may = desired.is_some() && live && bits & 0x2 != 0 && differs && failed != desired;
            prop_assert_eq!(matches!(decision, Decision::Offer(_)), may, "{:?}", decision);
        }
    }
}
