//! A connection: frames of an agent, and what engines and control do meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use muster_domain::agent::EndReason;
use muster_domain::ids::{Claim, ConfigHash, InstanceUid, IntentRevision, SessionId, Timestamp};
use muster_domain::sequence::Known;
use muster_opamp::connection::{Claimed, Connection, Limits, NotNow, Output};
use muster_opamp::frame;
use muster_opamp::head::Head;
use muster_opamp::reply::Reply;
use muster_proto::Message;
use muster_proto::opamp::{AgentToServer, ServerToAgent};
use uuid::Uuid;

/// Runs a script: each step is a byte that says what happens, and its arguments.
///
/// 0 is a frame, with its length in two bytes; other steps answer claims and publishes, end sessions,
/// ask agents, and let time pass.
pub fn session(data: &[u8]) {
    let mut run = Run {
        script: data,
        machine: Connection::new(Limits { max_sessions: 8, ..Limits::default() }),
        now: Timestamp(1_000_000),
        claims: 0,
        claiming: Vec::new(),
        issuing: Vec::new(),
        new_uids: BTreeSet::new(),
        sessions: BTreeMap::new(),
        publishing: Vec::new(),
    };
    while let Some(step) = run.byte() {
        run.step(step);
        run.poll();
    }
    run.machine.close(EndReason::ConnectionLost);
    run.poll();
    while let Some((uid, session)) = run.publishing.pop() {
        run.machine.published(uid, session, Err(not_now()), run.now);
        run.poll();
    }
    assert_eq!(run.machine.sessions(), 0, "every session ends with its connection");
}

struct Run<'a> {
    script: &'a [u8],
    machine: Connection,
    now: Timestamp,
    claims: u64,
    claiming: Vec<InstanceUid>,
    issuing: Vec<InstanceUid>,
    /// Uids that were made for agents; their first messages carry other ones.
    new_uids: BTreeSet<InstanceUid>,
    sessions: BTreeMap<InstanceUid, SessionId>,
    publishing: Vec<(InstanceUid, SessionId)>,
}

fn not_now() -> NotNow {
    NotNow { reason: "not now".to_owned(), retry_after: Duration::from_secs(30) }
}

impl Run<'_> {
    fn byte(&mut self) -> Option<u8> {
        self.script.split_off_first().copied()
    }

    fn frame(&mut self) -> Bytes {
        let length = u16::from_be_bytes([self.byte().unwrap_or_default(), self.byte().unwrap_or_default()]);
        let length = usize::from(length).min(self.script.len());
        Bytes::copy_from_slice(self.script.split_off(..length).unwrap_or_default())
    }

    fn claimed(&mut self) -> Claimed {
        self.claims += 1;
        let known = match self.byte().unwrap_or_default() {
            0 => Known::Nothing,
            1 => Known::Unsettled,
            settled => Known::SettledTo(settled.into()),
        };
        let id = |number: u64| SessionId(Uuid::from_u128(number.into()));
        let previous = (self.claims > 1).then(|| id(self.claims - 1));
        Claimed { session: id(self.claims), claim: Claim(self.claims), known, previous }
    }

    /// A session that is there, or one that is not.
    fn any_session(&mut self) -> (InstanceUid, SessionId) {
        let at = usize::from(self.byte().unwrap_or_default());
        let none = (InstanceUid(Uuid::nil()), SessionId(Uuid::nil()));
        self.sessions.iter().nth(at % 9).map_or(none, |(uid, session)| (*uid, *session))
    }

    fn step(&mut self, step: u8) {
        let now = self.now;
        match step % 15 {
            0 | 1 => {
                let frame = self.frame();
                self.machine.frame(&frame, now);
            }
            2 => {
                if let Some(uid) = self.claiming.pop() {
                    let claimed = self.claimed();
                    self.sessions.insert(uid, claimed.session);
                    self.machine.claimed(uid, claimed, now);
                }
            }
            3 => {
                if let Some(uid) = self.claiming.pop() {
                    self.machine.claim_failed(uid, &not_now());
                }
            }
            4 | 5 => {
                if !self.publishing.is_empty() {
                    let (uid, session) = self.publishing.remove(0);
                    let result = if step % 15 == 4 { Ok(()) } else { Err(not_now()) };
                    self.machine.published(uid, session, result, now);
                }
            }
            6 => {
                let (uid, _) = self.any_session();
                let claimed = self.claimed();
                self.sessions.insert(uid, claimed.session);
                self.machine.reclaimed(uid, claimed);
            }
            7 => {
                let (uid, session) = self.any_session();
                self.machine.close_session(uid, Some(session), EndReason::Superseded);
            }
            8 => {
                let (uid, session) = self.any_session();
                self.machine.request_full_state(uid, session, now);
            }
            9 => {
                let (uid, session) = self.any_session();
                self.machine.request_components(uid, session);
            }
            10 => {
                let (uid, session) = self.any_session();
                let revision = IntentRevision(self.byte().unwrap_or_default().into());
                if let Some(hash) = ConfigHash::new(&revision.0.to_be_bytes()) {
                    let _ = self.machine.offer(uid, session, revision, hash);
                }
            }
            11 => {
                if let Some(uid) = self.issuing.pop() {
                    let claimed = self.claimed();
                    let new_uid = InstanceUid(Uuid::from_u128(claimed.claim.0.into()));
                    if self.machine.issued(uid, new_uid, claimed, now) {
                        self.new_uids.insert(new_uid);
                        self.sessions.insert(new_uid, claimed.session);
                    }
                }
            }
            12 => {
                if let Some(uid) = self.claiming.pop().or_else(|| self.issuing.pop()) {
                    let new_uid = self.byte().map(|byte| InstanceUid(Uuid::from_u128(byte.into())));
                    let given = self.machine.duplicate(uid, new_uid, now);
                    assert!(given.is_none() || given == new_uid, "a uid is given that nobody made");
                }
            }
            13 => {
                if let Some(uid) = self.issuing.pop() {
                    self.machine.claim_failed(uid, &not_now());
                }
            }
            _ => {
                self.now = now.plus(Duration::from_secs(self.byte().unwrap_or_default().into()));
                if self.machine.poll_timeout().is_some_and(|due| due <= self.now) {
                    self.machine.timeout(self.now);
                }
            }
        }
    }

    fn poll(&mut self) {
        let mut outputs = 0;
        while let Some(output) = self.machine.poll() {
            outputs += 1;
            assert!(outputs <= 1000, "outputs do not end");
            match output {
                Output::Claim(uid) => self.claiming.push(uid),
                Output::Issue(uid) => self.issuing.push(uid),
                Output::Publish(publish) => {
                    if let Some((head, message)) = publish.message {
                        assert!(head.uid == publish.uid || self.new_uids.contains(&publish.uid));
                        check_published(head, message);
                    }
                    self.publishing.push((publish.uid, publish.session));
                }
                Output::Send(reply) => check_reply(&reply),
                Output::Settled { .. }
                | Output::Ended { .. }
                | Output::Taken { .. }
                | Output::NotTaken(_) => {}
            }
        }
    }
}

/// What is published of a message can be read, and says the same.
pub(crate) fn check_published(head: Head, message: Bytes) {
    let publishable = head.publishable(message);
    match AgentToServer::decode(publishable.clone()) {
        Ok(decoded) => assert_eq!(decoded.instance_uid, head.uid.as_bytes()),
        Err(error) => panic!("what is published cannot be decoded: {error}"),
    }
    match Head::read(&publishable) {
        Ok(again) => assert_eq!((again.kinds, again.has_nul), (head.kinds, false)),
        Err(error) => panic!("what is published would be refused: {error}"),
    }
}

fn check_reply(reply: &Reply) {
    let Ok(message) = frame::decode(&reply.frame()) else { panic!("{reply:?} has no header") };
    let Ok(decoded) = ServerToAgent::decode(message) else { panic!("{reply:?} cannot be decoded") };
    check_alone(&decoded);
}

/// An error_response stands alone in its message.
pub(crate) fn check_alone(message: &ServerToAgent) {
    if message.error_response.is_some() {
        let alone = ServerToAgent {
            instance_uid: message.instance_uid.clone(),
            error_response: message.error_response.clone(),
            ..ServerToAgent::default()
        };
        assert_eq!(*message, alone, "an error_response stands alone");
    }
}
