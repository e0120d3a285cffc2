//! Questions of control whether the agent of a session is still there, on the connection that carries it.

use std::time::Duration;

use muster_domain::ids::{InstanceUid, SessionId};
use muster_proto::bus::ProbeResult;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::mailbox::Hold;

/// An agent that says nothing for this long is gone.
const PROBE_WAIT: Duration = Duration::from_secs(3);
/// The connection must have asked the agent within this time, or the agent's silence says nothing.
const ASKED_WITHIN: Duration = Duration::from_secs(1);
/// An agent that answers and then ends its session within this time had opened its new connection before
/// it closed the old one.
const LINGER: Duration = Duration::from_secs(1);
/// Control waits a little longer than this.
const DEADLINE: Duration = Duration::from_millis(3200);

/// What a connection says about a probe. When it drops the probe, the session is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// The agent was asked.
    Asked,
    /// The agent answered.
    Answered,
}

/// A question about one session.
#[derive(Debug)]
pub(crate) struct Probe {
    /// The agent.
    pub(crate) uid: InstanceUid,
    /// Its session.
    pub(crate) session: SessionId,
    /// Whom to tell.
    said: mpsc::Sender<Said>,
}

/// Whoever asks.
pub(crate) struct Listener {
    said: mpsc::Receiver<Said>,
}

/// A question about a session, and who waits for its answer.
pub(crate) fn probe(uid: InstanceUid, session: SessionId) -> (Probe, Listener) {
    // Room for everything that is ever said.
    let (said, listener) = mpsc::channel(2);
    (Probe { uid, session, said }, Listener { said: listener })
}

impl Listener {
    /// Waits for the answer. `hold` says what keeps the connection from reading it.
    ///
    /// # Errors
    /// If the connection had no time to ask, or none to read the answer.
    pub(crate) async fn result(mut self, hold: impl Fn() -> Hold) -> Result<ProbeResult, String> {
        let begin = Instant::now();
        let mut asked = false;
        loop {
            match timeout_at(begin + PROBE_WAIT, self.said.recv()).await {
                Ok(Some(Said::Asked)) => asked = begin.elapsed() <= ASKED_WITHIN,
                Ok(Some(Said::Answered)) => break,
                Ok(None) => return Ok(ProbeResult::Absent),
                Err(_) => match hold() {
                    Hold::Peer => return Ok(ProbeResult::Silent),
                    Hold::None if asked => return Ok(ProbeResult::Silent),
                    Hold::None | Hold::Engines => {
                        return Err("the connection had no time to ask its agent".to_owned());
                    }
                },
            }
        }
        let end = (Instant::now() + LINGER).min(begin + DEADLINE);
        match timeout_at(end, self.said.recv()).await {
            Ok(_) => Ok(ProbeResult::Absent),
            Err(_) => Ok(ProbeResult::Alive),
        }
    }
}

/// The questions on one connection.
#[derive(Default)]
pub(crate) struct Probes {
    open: Vec<Open>,
}

struct Open {
    probe: Probe,
    /// Asked by a ping, when the connection carried this session alone. Otherwise only a message of this
    /// very agent is an answer.
    by_ping: bool,
    answered: bool,
}

impl Probes {
    /// The agent is being asked.
    pub(crate) fn asked(&mut self, probe: Probe, by_ping: bool) {
        // There is room: it is the first that is said.
        let _ = probe.said.try_send(Said::Asked);
        self.open.push(Open { probe, by_ping, answered: false });
    }

    /// Whether this agent was asked and has not answered: many may want to know the same.
    pub(crate) fn is_asked(&self, session: SessionId) -> bool {
        let waits = |open: &Open| !open.answered && !open.probe.said.is_closed();
        self.open.iter().any(|open| waits(open) && open.probe.session == session)
    }

    /// A frame came; a message of this agent, if it was one.
    pub(crate) fn heard(&mut self, of: Option<InstanceUid>) {
        if self.open.is_empty() {
            return;
        }
        for open in &mut self.open {
            if !open.answered && (open.by_ping || of == Some(open.probe.uid)) {
                open.answered = true;
                // There is room: nothing but that it was asked was said before.
                let _ = open.probe.said.try_send(Said::Answered);
            }
        }
        // Those that were answered stay while somebody looks whether the session ends all the same.
        self.keep(|open| !open.probe.said.is_closed());
    }

    /// The session is gone.
    pub(crate) fn ended(&mut self, session: SessionId) {
        self.keep(|open| open.probe.session != session);
    }

    fn keep(&mut self, keep: impl Fn(&Open) -> bool) {
        self.open.retain(keep);
        if self.open.is_empty() {
            self.open = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const SESSION: SessionId = SessionId(Uuid::from_u128(1));

    fn uid(number: u8) -> InstanceUid {
        InstanceUid(Uuid::from_bytes([number; 16]))
    }

    /// What comes of a probe during which this happens to the connection.
    async fn result(act: impl AsyncFnOnce(&mut Probes, Probe)) -> (Result<ProbeResult, String>, Duration) {
        let (probe, listener) = probe(uid(1), SESSION);
        let begin = Instant::now();
        let mut probes = Probes::default();
        let (result, ()) = tokio::join!(listener.result(|| Hold::None), act(&mut probes, probe));
        (result, begin.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_answers_and_stays_lives() {
        let (result, took) = result(async |probes, probe| {
            probes.asked(probe, true);
            probes.heard(None);
            probes.heard(None);
            tokio::time::sleep(LINGER * 2).await;
            probes.heard(None);
            assert!(probes.open.is_empty(), "nobody looks any more");
        })
        .await;
        assert_eq!((result, took), (Ok(ProbeResult::Alive), LINGER * 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_told_in_time() {
        let begin = Instant::now();
        let (probe, listener) = probe(uid(1), SESSION);
        let mut probes = Probes::default();
        probes.asked(probe, true);
        let answers = async {
            tokio::time::sleep(PROBE_WAIT - Duration::from_millis(10)).await;
            probes.heard(None);
        };
        let (told, ()) =
            tokio::join!(async { (listener.result(|| Hold::None).await, begin.elapsed()) }, answers);
        assert_eq!(told, (Ok(ProbeResult::Alive), DEADLINE));
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_closes_its_old_connection_a_moment_later_is_gone() {
        let (result, took) = result(async |probes, probe| {
            probes.asked(probe, true);
            probes.heard(None);
            tokio::time::sleep(LINGER / 2).await;
            probes.ended(SESSION);
        })
        .await;
        assert_eq!((result, took), (Ok(ProbeResult::Absent), LINGER / 2));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_silence_only_where_the_agent_was_asked() {
        let silent = result(async |probes, probe| {
            probes.asked(probe, true);
            tokio::time::sleep(PROBE_WAIT * 2).await;
        });
        assert_eq!(silent.await.0, Ok(ProbeResult::Silent));
        let never_asked = result(async |_, _probe| tokio::time::sleep(PROBE_WAIT * 2).await);
        assert!(never_asked.await.0.is_err());
        let asked_late = result(async |probes, probe| {
            tokio::time::sleep(ASKED_WITHIN * 2).await;
            probes.asked(probe, true);
            tokio::time::sleep(PROBE_WAIT).await;
        });
        assert!(asked_late.await.0.is_err());
        let (_stuck, listener) = probe(uid(1), SESSION);
        assert_eq!(listener.result(|| Hold::Peer).await, Ok(ProbeResult::Silent));
        let (asked, listener) = probe(uid(1), SESSION);
        let mut probes = Probes::default();
        probes.asked(asked, true);
        assert!(listener.result(|| Hold::Engines).await.is_err(), "the answer may wait to be read");
    }

    #[tokio::test(start_paused = true)]
    async fn among_several_agents_only_its_own_message_is_an_answer() {
        let others = result(async |probes, probe| {
            probes.asked(probe, false);
            probes.heard(None);
            probes.heard(Some(uid(2)));
            tokio::time::sleep(PROBE_WAIT * 2).await;
        });
        assert_eq!(others.await.0, Ok(ProbeResult::Silent));
        let own = result(async |probes, probe| {
            probes.asked(probe, false);
            assert!(probes.is_asked(SESSION));
            probes.heard(Some(uid(1)));
            assert!(!probes.is_asked(SESSION), "another probe asks again");
            tokio::time::sleep(PROBE_WAIT * 2).await;
        });
        assert_eq!(own.await.0, Ok(ProbeResult::Alive));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_is_gone_is_absent_at_once() {
        let (result, took) = result(async |_, probe| drop(probe)).await;
        assert_eq!((result, took), (Ok(ProbeResult::Absent), Duration::ZERO));
    }
}
