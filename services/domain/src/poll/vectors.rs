//! What every ownership decides about polls: scripts of calls and what each is answered.

use std::time::Duration;

use uuid::Uuid;

use super::{Begun, Kept, Mail, Poll, PollEnd, Silence, Taken};
use crate::capabilities::AgentCapabilities;
use crate::ids::{Claim, CommandId, ConfigHash, IntentRevision, PollId, SessionId, Timestamp};
use crate::sequence::{Known, Numbered, Tracker};

/// A time in this century, so that numbers have their real size.
pub const NOW: Timestamp = Timestamp(1_790_000_000_000_000);
/// How long a request of the scripts may be in flight.
pub const LEASE: Duration = Duration::from_secs(10);

/// One call on behalf of one agent. Times are seconds after [`NOW`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A request begins.
    Poll {
        /// When.
        at: u64,
        /// Its sequence number; none for a message that holds only a uid.
        number: Option<u64>,
        /// What it holds.
        holds: Holds,
    },
    /// The last request that was taken ends, and the log has it.
    End {
        /// When.
        at: u64,
    },
    /// The same, and it was the agent's goodbye.
    Goodbye {
        /// When.
        at: u64,
    },
    /// The last request that was taken ends, and the log does not have it.
    Fail {
        /// When.
        at: u64,
    },
    /// An offer for the session of the last request that was taken: a hash and a revision.
    Offer(u8, u64),
    /// It is to be asked for full state.
    AskFullState,
    /// It is to be asked for its components.
    AskComponents,
    /// A command.
    Command(u8),
    /// A claim of this moment is stored, whoever made it.
    Outclaimed {
        /// When.
        at: u64,
    },
    /// Gateways hear of another epoch of the log. This is no call.
    NewEpoch,
    /// The session of the last request that was taken ends unless the agent was heard after this.
    Expire {
        /// When.
        before: u64,
    },
}

/// What a message holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Nothing but uid, number and the usual capabilities.
    Nothing,
    /// The same, with other capabilities.
    OtherCapabilities,
    /// A report, told apart from others by a number.
    Report(u8),
    /// A report with agent_description.
    Description(u8),
}

const fn beat(at: u64, number: u64) -> Step {
    Step::Poll { at, number: Some(number), holds: Holds::Nothing }
}

const fn bare(at: u64) -> Step {
    Step::Poll { at, number: None, holds: Holds::Nothing }
}

const fn report(at: u64, number: u64, which: u8) -> Step {
    Step::Poll { at, number: Some(number), holds: Holds::Report(which) }
}

const fn full(at: u64, number: u64, which: u8) -> Step {
    Step::Poll { at, number: Some(number), holds: Holds::Description(which) }
}

const fn end(at: u64) -> Step {
    Step::End { at }
}

/// A name, and calls with the words for their answers.
pub type Vector = (&'static str, &'static [(Step, &'static str)]);

/// The scripts; each begins with an agent of which nothing is known.
#[rustfmt::skip] // A table.
pub const VECTORS: &[Vector] = &[
    ("heartbeats need no end", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (beat(30, 2), "heartbeat"),
        (bare(40), "heartbeat"),
        (beat(60, 3), "heartbeat"),
        (report(61, 4, 0), "taken at 3"),
        (end(61), "ended"),
        (beat(90, 5), "heartbeat"),
    ]),
    ("changed capabilities are a report", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (Step::Poll { at: 1, number: Some(2), holds: Holds::OtherCapabilities }, "taken at 1"),
        (end(1), "ended"),
        (beat(2, 3), "taken at 2"),
    ]),
    ("a heartbeat of a session that the log does not know is published", &[
        (beat(0, 7), "taken, new, knows nothing"),
        (Step::Fail { at: 1 }, "ended"),
        (beat(2, 8), "taken at 7, dirty, asks"),
        (end(2), "ended"),
        (bare(3), "heartbeat"),
        (beat(4, 9), "heartbeat"),
        (beat(12, 10), "taken at 9, dirty, asks"),
        (end(12), "ended"),
        (full(13, 11, 0), "taken at 10, dirty, asks"),
        (end(13), "ended"),
        (report(14, 12, 0), "taken at 11"),
    ]),
    ("the same message is a repeat, but not after it was lost", &[
        (full(0, 0, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (full(1, 0, 0), "repeat that introduces"),
        (report(2, 1, 0), "taken at 0"),
        (Step::Fail { at: 2 }, "ended"),
        (report(3, 1, 0), "taken at 1, dirty, asks"),
        (end(3), "ended"),
        (report(4, 1, 0), "repeat"),
        (report(5, 1, 1), "taken at 1, dirty, asks"),
        (end(5), "ended"),
        (beat(6, 2), "heartbeat"),
        (beat(7, 2), "repeat"),
    ]),
    ("one request is in flight", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (full(1, 1, 0), "overlapping"),
        (report(2, 2, 0), "overlapping"),
        (bare(3), "overlapping"),
        (end(4), "ended"),
        (end(5), "not in flight"),
        (report(5, 2, 0), "taken at 1"),
        (end(5), "ended"),
    ]),
    ("a request that is in flight for too long is lost: another session begins", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (report(1, 2, 0), "taken at 1"),
        (report(10, 2, 0), "overlapping"),
        (report(11, 2, 0), "taken, new, knows 1"),
        (end(12), "ended"),
        (beat(30, 3), "heartbeat"),
    ]),
    ("a lease from the future does not count for longer", &[
        (full(3600, 1, 0), "taken, new, knows nothing"),
        (report(1, 2, 0), "taken, new, knows unsettled"),
    ]),
    ("a gap and an old message are for the gateway to judge", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (beat(1, 3), "taken at 1"),
        (end(1), "ended"),
        (beat(2, 4), "heartbeat"),
        (report(3, 2, 0), "taken at 4, dirty, asks"),
        (end(3), "ended"),
        (beat(4, 5), "heartbeat"),
        (report(5, 6, 0), "taken at 5, dirty, asks"),
    ]),
    ("a lower number with a description is a restarted agent", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (beat(1, 2), "heartbeat"),
        (full(2, 1, 1), "taken, new, knows 2"),
        (end(2), "ended"),
        (beat(3, 2), "heartbeat"),
    ]),
    ("a session that is over is followed by another one", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (report(1, 2, 0), "taken at 1"),
        (Step::Goodbye { at: 1 }, "ended"),
        (Step::Offer(1, 1), "over"),
        (beat(2, 3), "taken, new, knows 2"),
        (end(2), "ended"),
        (beat(3, 4), "heartbeat"),
    ]),
    ("silence ends a session", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (beat(30, 2), "heartbeat"),
        (Step::Expire { before: 29 }, "heard at 30"),
        (beat(60, 3), "heartbeat"),
        (Step::Expire { before: 60 }, "over"),
        (Step::Expire { before: 60 }, "over"),
        (beat(200, 4), "taken, new, knows 3"),
    ]),
    ("mail waits, and the higher revision wins", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (Step::Offer(1, 5), "there"),
        (end(0), "ended"),
        (Step::Offer(2, 7), "there"),
        (Step::Offer(1, 6), "there"),
        (beat(1, 2), "taken at 1, offers 02 of 7"),
        (Step::Offer(3, 7), "there"),
        (end(1), "ended"),
        (beat(2, 3), "taken at 2, offers 03 of 7"),
        (Step::AskFullState, "there"),
        (end(2), "ended"),
        (beat(3, 4), "taken at 3, wants full state"),
        (end(3), "ended"),
        (Step::AskComponents, "there"),
        (beat(4, 5), "taken at 4, wants components"),
        (end(4), "ended"),
        (beat(5, 6), "heartbeat"),
    ]),
    ("the session and what was settled may be lost in a new epoch of the log", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (Step::NewEpoch, ""),
        (report(1, 2, 0), "taken at 1"),
        (end(1), "ended"),
        (Step::NewEpoch, ""),
        (report(2, 2, 0), "taken, new, knows unsettled"),
        (end(2), "ended"),
        (beat(3, 3), "heartbeat"),
        (report(4, 4, 0), "taken at 3, dirty, asks"),
        (Step::NewEpoch, ""),
        (report(5, 4, 0), "overlapping"),
        (end(6), "ended"),
        (report(7, 4, 0), "taken, new, knows unsettled"),
    ]),
    ("what is older than the last offer is superseded", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (Step::Offer(1, 5), "there"),
        (beat(1, 2), "taken at 1, offers 01 of 5"),
        (end(1), "ended"),
        (Step::Offer(2, 4), "there"),
        (beat(2, 3), "heartbeat"),
        (Step::Offer(2, 5), "there"),
        (beat(3, 4), "taken at 3, offers 02 of 5"),
        (end(3), "ended"),
        // Another session may be sent anything.
        (full(4, 1, 1), "taken, new, knows 4"),
        (end(4), "ended"),
        (Step::Offer(3, 1), "there"),
        (beat(5, 2), "taken at 1, offers 03 of 1"),
    ]),
    ("mail of a session is not for the next one", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (beat(1, 2), "heartbeat"),
        (Step::Offer(1, 5), "there"),
        (full(2, 1, 1), "taken, new, knows 2"),
        (end(2), "ended"),
        (bare(3), "heartbeat"),
    ]),
    ("an agent that sends only its uid is taken once", &[
        (bare(0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (bare(30), "heartbeat"),
        (Step::Offer(1, 5), "there"),
        (bare(60), "taken, offers 01 of 5"),
        (end(60), "ended"),
        (bare(90), "heartbeat"),
        (full(91, 4, 0), "taken"),
        (end(91), "ended"),
        (beat(92, 5), "heartbeat"),
    ]),
    ("two agents are told apart at the third turn", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (beat(1, 2), "heartbeat"),
        (full(2, 1, 1), "taken, new, knows 2"),
        (end(2), "ended"),
        (beat(3, 3), "taken at 1"),
        (end(3), "ended"),
        (report(4, 2, 0), "taken at 3, dirty, asks"),
        (end(4), "ended"),
        (beat(5, 4), "heartbeat"),
        (report(6, 3, 0), "newcomer"),
        (report(7, 3, 0), "newcomer"),
        (beat(8, 5), "heartbeat"),
        (report(9, 4, 0), "newcomer"),
    ]),
    ("a newcomer changes nothing, whatever became of the request before", &[
        (full(0, 50, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (full(1, 1, 1), "taken, new, knows unsettled"),
        (end(1), "ended"),
        (beat(2, 51), "taken at 1"),
        (end(2), "ended"),
        (beat(3, 2), "taken at 51, dirty, asks"),
        (end(3), "ended"),
        (report(4, 52, 0), "taken at 51, dirty, asks"),
        (report(20, 3, 0), "newcomer"),
        (end(21), "ended"),
        (report(22, 52, 0), "repeat"),
    ]),
    ("commands wait in order, each once, and not for another session", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (Step::Command(2), "there"),
        (Step::Command(1), "there"),
        (Step::Command(2), "there"),
        (beat(1, 2), "taken at 1, command 2, command 1"),
        (Step::Command(3), "there"),
        (end(1), "ended"),
        (beat(2, 3), "taken at 2, command 3"),
        (Step::Fail { at: 2 }, "ended"),
        (beat(3, 4), "taken at 3, dirty, asks"),
        (end(3), "ended"),
        (Step::Command(4), "there"),
        (full(4, 1, 1), "taken, new, knows 2"),
    ]),
    ("only so many commands wait", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (Step::Command(1), "there"),
        (Step::Command(2), "there"),
        (Step::Command(3), "there"),
        (Step::Command(4), "there"),
        (Step::Command(5), "there"),
        (Step::Command(6), "there"),
        (Step::Command(7), "there"),
        (Step::Command(8), "there"),
        (Step::Command(9), "there"),
        (Step::Command(10), "there"),
        (Step::Command(11), "there"),
        (Step::Command(12), "there"),
        (Step::Command(13), "there"),
        (Step::Command(14), "there"),
        (Step::Command(15), "there"),
        (Step::Command(16), "there"),
        (Step::Command(17), "over"),
        (Step::Command(16), "there"),
    ]),
    ("a session with a claim that is too low is over", &[
        (full(0, 1, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (Step::Outclaimed { at: 0 }, "there"),
        (beat(1, 2), "heartbeat"),
        (report(2, 3, 0), "taken at 2"),
        (Step::Outclaimed { at: 100 }, "over"),
        (end(2), "not in flight"),
        (beat(3, 3), "taken, new, knows 2"),
        (end(3), "ended"),
        (Step::Outclaimed { at: 100 }, "there"),
        (beat(4, 4), "heartbeat"),
    ]),
    ("the largest numbers", &[
        (full(0, u64::MAX - 2, 0), "taken, new, knows nothing"),
        (end(0), "ended"),
        (full(0, u64::MAX - 1, 1), "taken at 18446744073709551613, dirty, asks"),
        (end(0), "ended"),
        (beat(1, u64::MAX), "heartbeat"),
        (beat(2, u64::MAX), "repeat"),
        (report(3, u64::MAX, 0), "taken at 18446744073709551615"),
        (end(3), "ended"),
        (full(4, 0, 0), "taken, new, knows 18446744073709551615"),
    ]),
];

/// A call that a [`Step`] stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A request begins.
    Begin(Poll),
    /// It ends.
    End(PollEnd),
    /// Something is put before the next one.
    Post(SessionId, Mail, Claim),
    /// The session ends unless the agent was heard after this.
    Expire(SessionId, Timestamp),
}

/// Makes calls of steps, and words of answers.
#[derive(Debug, Default)]
pub struct Player {
    calls: u128,
    epoch: u64,
    /// The last request that was taken.
    taken: Option<(Poll, Taken)>,
}

fn at(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

impl Player {
    /// The call for a step. Nothing for a step that needs a request that was taken, if none was.
    pub fn call(&mut self, step: Step) -> Option<Call> {
        let taken = self.taken.as_ref();
        let post = |mail, above| taken.map(|(_, taken)| Call::Post(taken.session, mail, Claim(above)));
        match step {
            Step::Poll { at, number, holds } => Some(Call::Begin(self.poll(at, number, holds))),
            Step::End { at } => taken.map(|(poll, taken)| Call::End(ended(poll, taken, at, Fate::Stored))),
            Step::Goodbye { at } => {
                taken.map(|(poll, taken)| Call::End(ended(poll, taken, at, Fate::Goodbye)))
            }
            Step::Fail { at } => taken.map(|(poll, taken)| Call::End(ended(poll, taken, at, Fate::Lost))),
            Step::Offer(hash, revision) => {
                let offer = ConfigHash::new(&[hash]).map(|hash| (hash, IntentRevision(revision)));
                post(Mail { offer, ..Mail::default() }, 0)
            }
            Step::AskFullState => post(Mail { full_state: true, ..Mail::default() }, 0),
            Step::AskComponents => post(Mail { components: true, ..Mail::default() }, 0),
            Step::Command(number) => {
                let commands = vec![CommandId(Uuid::from_u128(number.into()))];
                post(Mail { commands, ..Mail::default() }, 0)
            }
            Step::Outclaimed { at: seconds } => post(Mail::default(), at(seconds).0),
            Step::NewEpoch => {
                self.epoch += 1;
                None
            }
            Step::Expire { before } => taken.map(|(_, taken)| Call::Expire(taken.session, at(before))),
        }
    }

    fn poll(&mut self, seconds: u64, number: Option<u64>, holds: Holds) -> Poll {
        self.calls += 1;
        let digest = match holds {
            Holds::Nothing => 1,
            Holds::OtherCapabilities => 2,
            Holds::Report(which) => 1000 + u64::from(which),
            Holds::Description(which) => 2000 + u64::from(which),
        };
        let has_description = matches!(holds, Holds::Description(_));
        let capabilities = AgentCapabilities(match holds {
            Holds::OtherCapabilities => 3,
            _ if number.is_none() => 0,
            _ => 1,
        });
        Poll {
            id: PollId(Uuid::from_u128(0x9011 << 64 | self.calls)),
            session: SessionId(Uuid::from_u128(0x5e55 << 64 | self.calls)),
            message: number.map(|sequence_num| Numbered {
                sequence_num,
                digest,
                has_description,
                is_full: has_description,
            }),
            plain: matches!(holds, Holds::Nothing | Holds::OtherCapabilities),
            capabilities,
            now: at(seconds),
            lease: LEASE,
            displace: None,
            epoch: self.epoch,
        }
    }

    /// The words for what became of a request.
    pub fn begun(&mut self, poll: &Poll, begun: &Begun) -> String {
        let taken = match begun {
            Begun::Heartbeat => return "heartbeat".to_owned(),
            Begun::Repeat { introduces: true } => return "repeat that introduces".to_owned(),
            Begun::Repeat { introduces: false } => return "repeat".to_owned(),
            Begun::Overlapping => return "overlapping".to_owned(),
            Begun::Newcomer => return "newcomer".to_owned(),
            Begun::Taken(taken) => taken,
        };
        let mut words = "taken".to_owned();
        let kept = &taken.kept;
        if let Some((last, _)) = kept.tracker.last {
            words += &format!(" at {last}");
        }
        if taken.session == poll.session {
            words += match kept.tracker.known {
                Known::Nothing => ", new, knows nothing".to_owned(),
                Known::Unsettled => ", new, knows unsettled".to_owned(),
                Known::SettledTo(number) => format!(", new, knows {number}"),
            }
            .as_str();
        }
        if kept.tracker.dirty {
            words += ", dirty";
        }
        if kept.ask_due.is_some() {
            words += ", asks";
        }
        if let Some((hash, revision)) = &taken.mail.offer {
            words += &format!(", offers {hash} of {revision}");
        }
        if taken.mail.full_state {
            words += ", wants full state";
        }
        if taken.mail.components {
            words += ", wants components";
        }
        for command in &taken.mail.commands {
            words += &format!(", command {}", command.0.as_u128());
        }
        self.taken = Some((poll.clone(), (**taken).clone()));
        words
    }

    /// The words for what an end was answered.
    pub fn ended(was_in_flight: bool) -> &'static str {
        if was_in_flight { "ended" } else { "not in flight" }
    }

    /// The words for what a letter was answered.
    pub fn posted(is_there: bool) -> &'static str {
        if is_there { "there" } else { "over" }
    }

    /// The words for what was said of a silent agent.
    pub fn silence(silence: Silence) -> String {
        match silence {
            Silence::Heard(when) => format!("heard at {}", when.since(NOW).as_secs()),
            Silence::Over => "over".to_owned(),
            Silence::Unknown => "unknown".to_owned(),
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stored,
    Goodbye,
    Lost,
}

fn ended(poll: &Poll, taken: &Taken, seconds: u64, fate: Fate) -> PollEnd {
    let mut tracker = Tracker::from(taken.kept.tracker);
    match poll.message {
        Some(message) if !message.has_description && tracker.last() > Some(message.sequence_num) => {
            tracker.mark_dirty();
        }
        Some(message) => {
            tracker.step(message);
        }
        None => {}
    }
    let stored = fate != Fate::Lost;
    if !stored {
        tracker.lost();
    } else if tracker.ask_due().is_some_and(|due| due <= at(seconds)) {
        tracker.asked(at(seconds));
    }
    let number = poll.message.map_or(0, |message| message.sequence_num);
    let capabilities = match poll.capabilities {
        AgentCapabilities(0) => taken.kept.capabilities,
        named => named,
    };
    PollEnd {
        session: taken.session,
        poll: poll.id,
        kept: Kept {
            tracker: tracker.parts(),
            ask_due: tracker.ask_due(),
            capabilities: if stored { capabilities } else { taken.kept.capabilities },
            announced: stored || taken.kept.announced,
            introduced: taken.kept.introduced.or(stored.then_some(number)),
            // What waited was sent.
            sent: taken.mail.offer.as_ref().map_or(taken.kept.sent, |(_, revision)| *revision),
            issued: taken.kept.issued,
        },
        settled: (stored && !tracker.is_dirty() && poll.message.is_some()).then_some(number),
        delivered: taken.mail.clone(),
        over: fate == Fate::Goodbye,
        now: at(seconds),
    }
}
