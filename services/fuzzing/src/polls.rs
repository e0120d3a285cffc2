//! An agent that polls: bodies of its requests, and what engines and control do meanwhile.

use std::time::Duration;

use bytes::Bytes;
use muster_domain::ids::{
    Claim, CommandId, ConfigHash, InstanceUid, IntentRevision, PollId, SessionId, Timestamp,
};
use muster_domain::poll::{Begun, MAX_COMMANDS, Mail, State};
use muster_opamp::connection::NotNow;
use muster_opamp::poll::{self, OfferEnd, Order, Orders, Turn};
use muster_proto::Message;
use muster_proto::opamp::{CustomMessage, ServerToAgent};
use uuid::Uuid;

use crate::session::{check_alone, check_published};

/// Runs a script: each step is a byte that says what happens, and its arguments.
///
/// 0 is a request, with the length of its body in two bytes; other steps end requests, put something before
/// the next one, and let time pass.
pub fn polls(data: &[u8]) {
    let mut run = Run {
        script: data,
        state: None,
        now: Timestamp(1_000_000_000),
        epoch: 0,
        calls: 0,
        last: None,
        in_flight: Vec::new(),
    };
    while let Some(step) = run.byte() {
        run.step(step);
    }
    while !run.in_flight.is_empty() {
        run.end(true, 0);
    }
}

struct Run<'a> {
    script: &'a [u8],
    state: Option<State>,
    now: Timestamp,
    epoch: u64,
    calls: u128,
    /// The last session, and its claim.
    last: Option<(SessionId, Claim)>,
    in_flight: Vec<Turn>,
}

impl Run<'_> {
    fn byte(&mut self) -> Option<u8> {
        self.script.split_off_first().copied()
    }

    fn number(&mut self) -> u8 {
        self.byte().unwrap_or_default()
    }

    fn step(&mut self, step: u8) {
        match step % 8 {
            0 | 1 => {
                let length = u16::from_be_bytes([self.number(), self.number()]);
                let length = usize::from(length).min(self.script.len());
                let body = Bytes::copy_from_slice(self.script.split_off(..length).unwrap_or_default());
                self.request(body);
            }
            2 | 3 => {
                let sent = self.number();
                self.end(step % 8 == 2, sent);
            }
            4 => {
                let what = self.number();
                self.post(what);
            }
            5 => {
                let before = Timestamp(self.now.0.saturating_sub(u64::from(self.number()) * 1_000_000));
                if let (Some(state), Some((session, _))) = (&mut self.state, self.last) {
                    state.expire(session, before);
                }
            }
            6 => self.now = self.now.plus(Duration::from_secs(self.number().into())),
            _ => self.epoch += 1,
        }
    }

    fn request(&mut self, body: Bytes) {
        let Ok(head) = poll::head(&body) else { return };
        self.calls += 1;
        let (id, session) = (PollId(Uuid::from_u128(self.calls)), SessionId(Uuid::from_u128(self.calls)));
        let lease = Duration::from_secs(10);
        let request = poll::request(&head, (id, session), self.now, lease, self.epoch);
        let begun = match &mut self.state {
            Some(state) => state.begin(&request),
            None => {
                let (state, begun) = State::first(&request);
                self.state = Some(state);
                begun
            }
        };
        let Begun::Taken(taken) = begun else { return };
        assert!(taken.mail.commands.len() <= MAX_COMMANDS, "{} commands wait", taken.mail.commands.len());
        if let Some((last, claim)) = self.last {
            assert!(taken.session == last || taken.claim > claim, "a later session has no higher claim");
        }
        self.last = Some((taken.session, taken.claim));
        let uid = InstanceUid(head.uid.0);
        let (turn, publish) = Turn::new(id, uid, *taken, head, body);
        if let Some((head, message)) = publish.and_then(|publish| publish.message) {
            check_published(head, message);
        }
        let longest = turn.longest_answer();
        assert!(longest <= 1 << 20, "an answer of {longest} bytes without an offer");
        self.in_flight.push(turn);
    }

    /// Ends a request, the latest or an earlier one. `sent` says what is sent with its answer.
    fn end(&mut self, is_stored: bool, sent: u8) {
        let at = usize::from(sent >> 4) % self.in_flight.len().max(1);
        if at >= self.in_flight.len() {
            return;
        }
        let turn = self.in_flight.remove(self.in_flight.len() - 1 - at);
        let is_latest = at == 0;
        let offer = match (&turn.mail().offer, sent & 1) {
            (Some((hash, revision)), 1) => OfferEnd::Sent(hash.clone(), *revision),
            (Some((hash, revision)), _) if sent & 8 != 0 => OfferEnd::DoneWith(hash.clone(), *revision),
            _ => OfferEnd::Waits,
        };
        let order = match sent & 6 {
            2 => Some(Order::Restart),
            4 => Some(Order::Message(CustomMessage::default())),
            _ => None,
        };
        let done = turn.mail().commands.iter().take(usize::from(order.is_some())).copied().collect();
        let orders = if is_stored { Orders { done, sent: order.clone() } } else { Orders::default() };
        let not_now = NotNow { reason: "not now".to_owned(), retry_after: Duration::from_secs(30) };
        let (end, said) = turn.end(if is_stored { Ok(()) } else { Err(not_now) }, offer, orders, self.now);
        assert!(end.settled.is_none() || !end.kept.tracker.dirty, "a dirty session settles something");
        let message = said.message();
        match ServerToAgent::decode(message.encode_to_vec().as_slice()) {
            Ok(decoded) => assert_eq!(decoded, message),
            Err(error) => panic!("{said:?} cannot be decoded: {error}"),
        }
        check_alone(&message);
        if is_stored && order == Some(Order::Restart) {
            assert!(message.command.is_some() && message.flags == 0, "a restart is alone in its message");
        }
        if let Some(state) = &mut self.state {
            let was_in_flight = state.end(&end);
            assert!(is_latest || !was_in_flight, "a request ends that another one had followed");
            assert!(!state.end(&end), "a request ends twice");
        }
    }

    fn post(&mut self, what: u8) {
        let (Some(state), Some((session, claim))) = (&mut self.state, self.last) else { return };
        let offer = ConfigHash::new(&[what]).map(|hash| (hash, IntentRevision(u64::from(what >> 4))));
        let mail = Mail {
            offer: offer.filter(|_| what & 1 != 0),
            full_state: what & 2 != 0,
            components: what & 4 != 0,
            commands: (0..what >> 5).map(|at| CommandId(Uuid::from_u128((what ^ at).into()))).collect(),
        };
        let above = if what & 24 == 24 { Claim(claim.0 + 1) } else { Claim::default() };
        state.post(session, &mail, above);
    }
}
