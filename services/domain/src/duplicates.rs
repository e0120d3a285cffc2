//! Contested instance_uids: who is right, and how often a client is given a new one.

use std::net::IpAddr;
use std::time::Duration;

use crate::ids::{AgentKey, InstanceUid, Timestamp};
use crate::recent::Recent;

/// Nobody listens for a gateway that just connects to the bus anew: it is asked once more after this.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_millis(300);

/// What the lease bucket says of the gateway of the session that holds the uid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// It was renewed in time.
    Live,
    /// There is none.
    Lapsed,
    /// The bucket cannot be read.
    Unknown,
}

/// What came of asking that gateway whether the agent of the session is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The agent answered.
    Alive,
    /// The agent said nothing; the gateway ends the session.
    Silent,
    /// The gateway has no such session.
    Absent,
    /// The bus knows nobody who listens under the gateway's name.
    NobodyListens,
    /// The gateway did not answer in time.
    Unanswered,
    /// The question could not be asked, or the gateway could not tell.
    Failed,
}

/// What is to be done next about a contested uid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Ask the gateway of the session that holds the uid, after this time, and look at its lease again.
    Ask {
        /// How long to wait before.
        after: Duration,
    },
    /// It is decided.
    Decided(Verdict),
}

/// Who is right about a contested uid, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The session that holds it is dead: the newcomer takes its place.
    Takeover(&'static str),
    /// Two live agents: the newcomer needs another uid.
    Duplicate(&'static str),
    /// Nobody can tell now: the newcomer comes again.
    Undecided(&'static str),
}

/// Decides about a contested uid, or says what is to be found out first. A takeover rests on the gateway's
/// own word, or on its silence while the lease bucket can be read.
pub fn judge(lease: Lease, answers: &[Answer]) -> Step {
    use Verdict::{Duplicate, Takeover, Undecided};
    Step::Decided(match (answers.last(), lease) {
        (Some(Answer::Alive), _) => Duplicate("the agent of the old session answered"),
        (Some(Answer::Silent), _) => Takeover("the agent of the old session is silent"),
        (Some(Answer::Absent), _) => Takeover("the old session is gone"),
        (Some(Answer::Failed), _) => Undecided("the gateway of the old session cannot tell"),
        (_, Lease::Lapsed) => Takeover("the lease of the old session's gateway has lapsed"),
        (Some(_), Lease::Unknown) => {
            Undecided("the gateway of the old session does not answer, and its lease cannot be read")
        }
        (Some(Answer::Unanswered), Lease::Live) => Takeover("the gateway of the old session does not answer"),
        (Some(Answer::NobodyListens), Lease::Live) if answers.len() > 1 => {
            Takeover("the gateway of the old session is gone from the bus")
        }
        (Some(Answer::NobodyListens), Lease::Live) => return Step::Ask { after: ASK_AGAIN_AFTER },
        (None, Lease::Live | Lease::Unknown) => return Step::Ask { after: Duration::ZERO },
    })
}

/// Connections that end without the new uid being taken, of one uid and one address, within
/// [`ATTEMPTS_WITHIN`]: further ones are refused. Clones behind one address may share this.
const ATTEMPTS: u32 = 10;
const ATTEMPTS_WITHIN: Duration = Duration::from_secs(600);
/// Who is refused is not looked into again for this long. It is short: the agent that the uid belongs to may
/// be behind the same address, and connect anew.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// How long the agent that asked for a uid may take to come again and be given the same one.
const ISSUED_FOR: Duration = Duration::from_secs(300);
/// Most clients that are remembered, of each kind.
const MOST: usize = 10_000;

/// An agent under the uid it uses, and where it connects from.
pub type Client = (AgentKey, IpAddr);

/// What becomes of a client that is not the first with its uid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It may be given a new uid.
    Left,
    /// It did not take any: it is refused, unless the other agent turns out to be dead.
    Over,
    /// The same, and that the other agent lives was found out a moment ago.
    OverAndKnown,
}

/// What one gateway remembers of uids that it gave to clients, over their connections. It is bounded: who
/// is forgotten is treated as new.
#[derive(Debug)]
pub struct Given {
    attempts: Recent<Client, Attempts>,
    issued: Recent<Client, InstanceUid>,
    /// For clients without a connection: the digest of a request for a uid, and what it was answered.
    answered: Recent<(Client, u64), InstanceUid>,
    /// For clients without a connection: who is to come under this uid.
    awaited: Recent<AgentKey, Client>,
}

#[derive(Debug, Default)]
struct Attempts {
    failed: u32,
    refused_at: Option<Timestamp>,
}

impl Default for Given {
    fn default() -> Self {
        Self {
            attempts: Recent::new(ATTEMPTS_WITHIN, MOST),
            issued: Recent::new(ISSUED_FOR, MOST),
            answered: Recent::new(ISSUED_FOR, MOST),
            awaited: Recent::new(ATTEMPTS_WITHIN, MOST),
        }
    }
}

impl Given {
    /// Whether a client whose uid is contested may be given a new one.
    pub fn patience(&self, client: &Client, now: Timestamp) -> Patience {
        match self.attempts.get(client, now) {
            Some(Attempts { failed, refused_at }) if *failed >= ATTEMPTS => match refused_at {
                Some(at) if now < at.plus(REFUSED_FOR) => Patience::OverAndKnown,
                _ => Patience::Over,
            },
            _ => Patience::Left,
        }
    }

    /// A client was given a new uid and did not take it.
    pub fn not_taken(&mut self, client: Client, now: Timestamp) {
        match self.attempts.get_mut(&client, now) {
            Some(attempts) => attempts.failed = attempts.failed.saturating_add(1),
            None => self.attempts.put(client, Attempts { failed: 1, refused_at: None }, now),
        }
    }

    /// A client whose patience is over is refused now: the other agent lives.
    pub fn refused(&mut self, client: &Client, now: Timestamp) {
        if let Some(attempts) = self.attempts.get_mut(client, now) {
            attempts.refused_at = Some(now);
        }
    }

    /// The uid for a client that asks for one (AgentToServerFlags.RequestInstanceUid). While it has not
    /// been taken, the same client gets the same one again: an answer that is lost leaves no agent behind
    /// that nobody is.
    pub fn issue(&mut self, client: Client, new: InstanceUid, now: Timestamp) -> InstanceUid {
        let uid = self.issued.get(&client, now).copied().unwrap_or(new);
        self.issued.put(client, uid, now);
        uid
    }

    /// The client has taken the uid that it was issued, or another agent has: it is issued no more.
    pub fn taken(&mut self, client: &Client) {
        self.issued.remove(client);
    }

    /// The uid for a client without a connection that asks for one. The same request, by its digest, is
    /// answered with the same one: that of another client behind the address tells of another host.
    pub fn issue_to(
        &mut self,
        client: Client,
        request: u64,
        new: InstanceUid,
        now: Timestamp,
    ) -> InstanceUid {
        let asked = (client, request);
        if let Some(uid) = self.answered.get(&asked, now) {
            return *uid;
        }
        self.answered.put(asked, new, now);
        new
    }

    /// A client without a connection was given a new uid. It counts as not taken until somebody
    /// [comes](Self::came) under it.
    pub fn gave(&mut self, client: Client, uid: InstanceUid, now: Timestamp) {
        let key = AgentKey { tenant: client.0.tenant.clone(), uid };
        if self.awaited.get(&key, now).is_none() {
            self.awaited.put(key, client.clone(), now);
            self.not_taken(client, now);
        }
    }

    /// A client without a connection uses this uid. Returns whether it was given to one lately.
    pub fn came(&mut self, key: &AgentKey, now: Timestamp) -> bool {
        let Some(client) = self.awaited.get(key, now).cloned() else { return false };
        self.awaited.remove(key);
        if let Some(attempts) = self.attempts.get_mut(&client, now) {
            attempts.failed = attempts.failed.saturating_sub(1);
        }
        true
    }
}

#[cfg(test)]
#[path = "duplicates_tests.rs"]
mod tests;
