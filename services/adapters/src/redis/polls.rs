//! Agents that poll: the decisions of [`muster_domain::poll`] as scripts, and what they answer.
//!
//! Further fields of an agent's hash, each empty or absent where there is nothing. `poll` is the session of
//! polls that speaks for the agent: it does only while it is also `session`, and no gateway holds the agent;
//! so a claim for a WebSocket ends it without knowing of it. Of that session: `previous`, the one before;
//! `known`, what was settled when it began; `life`, the newest epoch of the log that a request was taken in;
//! `flight`, `flight_at` and `flight_for`, the request in flight; what the last request left in `last`,
//! `digest`, `dirty`, `due`, `caps`, `announced`, `introduced`, `asks`, `sent` and `issued`; mail in `offer`,
//! `offer_rev`, `full`, `parts` and `commands` (ids, each with a space after it). Of the agent: `here`, `other`, `newer`, `turns` and `run`, its tracks.

use std::fmt::Display;
use std::time::Duration;

use async_trait::async_trait;
use muster_domain::capabilities::AgentCapabilities;
use muster_domain::ids::{AgentKey, Claim, CommandId, ConfigHash, IntentRevision, SessionId, Timestamp};
use muster_domain::poll::{
    Begun, FORGET, Kept, Letter, MAX_COMMANDS, Mail, NEAR, Poll, PollEnd, Silence, TURNS, Taken,
};
use muster_domain::sequence::{Known, TrackerParts};
use muster_ports::EngineError;
use muster_ports::polls::{PollOutcome, Polls};
use redis::Cmd;

use super::record::{self, Answer, Row};
use super::scripts::{Loaded, NUMBERS, expiry};
use super::{CHUNK, RedisOwnership};

/// Arguments: session that may begin, now, session to displace or nothing, expiry, request, its number or
/// nothing, digest, whether it has a description, whether it is plain, capabilities, lease in microseconds,
/// epoch of the log.
const BEGIN: &str = r"
local key, session, now, displace, ttl, id = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local epoch = ARGV[12]
local number, digest, described, plain, caps = ARGV[6], ARGV[7], ARGV[8] == '1', ARGV[9] == '1', ARGV[10]
local names = {'session', 'claim', 'gateway', 'incarnation', 'settled', 'seen', 'poll', 'previous', 'known',
  'flight', 'flight_at', 'flight_for', 'last', 'digest', 'dirty', 'due', 'caps', 'announced', 'introduced', 'asks',
  'sent', 'issued', 'offer', 'offer_rev', 'full', 'parts', 'commands', 'here', 'other', 'newer', 'turns', 'run', 'epoch', 'life'}
local at = {}
for index, value in ipairs(redis.call('HMGET', key, unpack(names))) do at[names[index]] = value or '' end
local is_known = at.session ~= ''
if not is_known and redis.call('EXISTS', key) == 1 then return {'corrupt', 'session'} end
if at.gateway ~= '' and at.session ~= displace then
  return {'contested', at.session, at.claim, at.gateway, at.incarnation}
end
if is_known then
  if #at.session ~= 36 then return {'corrupt', 'session'} end
  for _, name in ipairs({'claim', 'seen'}) do
    if not is_number(at[name]) then return {'corrupt', name} end
  end
end
for _, name in ipairs({'settled', 'flight_at', 'flight_for', 'last', 'due', 'here', 'other', 'turns', 'run', 'epoch', 'life'}) do
  if at[name] ~= '' and not is_number(at[name]) then return {'corrupt', name} end
end

local changed = {}
local function put(name, value)
  at[name] = value
  changed[#changed + 1] = name
  changed[#changed + 1] = value
end
local function answer(list)
  redis.call('HSET', key, unpack(changed))
  redis.call('PEXPIRE', key, ttl)
  return list
end
local function take()
  put('flight', id)
  put('flight_at', now)
  put('flight_for', ARGV[11])
  return answer({'taken', at.session, at.claim, at.previous, at.known, at.last, at.digest, at.dirty, at.due,
    at.caps, at.announced, at.introduced, at.asks, at.sent, at.issued, at.offer, at.offer_rev, at.full, at.parts,
    at.commands})
end
put('seen', (not is_known or above(now, at.seen)) and now or at.seen)

local is_open = is_known and at.gateway == '' and at.poll == at.session
if is_open and at.flight ~= '' then
  if at.flight == id then return take() end
  if math.abs(tonumber(now) - tonumber(at.flight_at)) < tonumber(at.flight_for) then return answer({'overlapping'}) end
  is_open = false
end
if is_open and at.life ~= '0' and above(epoch, at.life) then is_open = false end
local last = is_open and at.last or ''
if number ~= '' then
  if last == number and at.digest == digest then
    return answer({'repeat', at.introduced == number and '1' or ''})
  end
  local function small(text) return math.min(tonumber(text), 4503599627370496) end
  local n = small(number)
  local here = at.here ~= '' and small(at.here)
  local other = at.other ~= '' and small(at.other)
  local turns, run = tonumber(at.turns) or 0, tonumber(at.run) or 0
  local function tracks(here, other, newer, turns, run)
    put('here', string.format('%.0f', here))
    put('other', other and string.format('%.0f', other) or '')
    put('newer', newer and '1' or '')
    put('turns', tostring(turns))
    put('run', tostring(run))
  end
  local is_other = false
  local is_new = false
  if not here then is_new = true
  elseif n == here + 1 then
  elseif other and n == other + 1 then is_other = true
  elseif other and n == other and turns == TURNS then is_other = true
  elseif n >= here and n - here <= NEAR then
  elseif other and n > other and n - other <= NEAR then is_other = true
  elseif n > here or described or here - n > NEAR then is_new = true
  else n = false end
  if is_new then
    tracks(n, here, here and true or false, 0, 0)
  elseif is_other then
    if turns == TURNS and at.newer ~= '1' then
      put('other', string.format('%.0f', n))
      return answer({'newcomer'})
    end
    tracks(n, here, at.newer ~= '1', math.min(turns + 1, TURNS), 0)
  elseif n then
    run = math.min(run + 1, FORGET)
    if run == FORGET then tracks(n, false, false, 0, run)
    else tracks(n, other, at.newer == '1', turns, run) end
  end
end
local restarted = described and last ~= '' and above(last, number)
if is_open and not restarted then
  if above(epoch, at.life) then put('life', epoch) end
  local unchanged = caps == '0' or caps == at.caps
  local follows = number == '' or (last ~= '' and last ~= number and successor(last) == number)
  local asks = at.due ~= '' and not above(at.due, now)
  if plain and at.announced == '1' and unchanged and follows and not asks and at.offer == ''
    and at.full == '' and at.parts == '' and at.commands == '' then
    if number ~= '' then
      put('last', number)
      put('digest', digest)
      if at.dirty ~= '1' then
        put('settled', number)
        put('epoch', at.life)
      end
    end
    return answer({'heartbeat'})
  end
  return take()
end
put('previous', at.session)
local is_of_epoch = at.epoch == epoch or at.epoch == '' or at.epoch == '0' or epoch == '0'
put('known', not is_known and 'nothing' or (at.settled ~= '' and is_of_epoch and at.settled or 'unsettled'))
put('life', epoch)
redis.call('HDEL', key, 'settled', 'epoch')
put('claim', is_known and not above(now, at.claim) and successor(at.claim) or now)
put('session', session)
put('poll', session)
for _, name in ipairs({'last', 'digest', 'dirty', 'due', 'caps', 'announced', 'introduced', 'asks', 'sent',
  'issued', 'offer', 'offer_rev', 'full', 'parts', 'commands'}) do put(name, '') end
if at.gateway ~= '' then redis.call('HDEL', key, 'gateway', 'incarnation') end
return take()
";

/// Whether the session in the first argument is one of polls that speaks for the agent.
const OPEN: &str = r"
local key, session = KEYS[1], ARGV[1]
local last, poll, gateway, seen, flight, sent, offer, offer_rev, life, claim, commands = unpack(redis.call('HMGET',
  key, 'session', 'poll', 'gateway', 'seen', 'flight', 'sent', 'offer', 'offer_rev', 'life', 'claim', 'commands'))
commands = commands or ''
local is_open = last == session and poll == session and not gateway
";

/// Arguments: session, request, now, expiry, whether the session is over, settled number or nothing, last,
/// digest, dirty, due, caps, announced, introduced, asks, revision sent, whether the uid was issued, delivered hash,
/// its revision, whether full state was asked, whether components were, commands that are done with.
const END: &str = r"
if not is_open or flight ~= ARGV[2] then return {'other'} end
if not seen or not is_number(seen) then return {'corrupt', 'seen'} end
redis.call('HSET', key, 'flight', '', 'seen', above(ARGV[3], seen) and ARGV[3] or seen,
  'last', ARGV[7], 'digest', ARGV[8], 'dirty', ARGV[9], 'due', ARGV[10], 'caps', ARGV[11],
  'announced', ARGV[12], 'introduced', ARGV[13], 'asks', ARGV[14], 'sent', ARGV[15],
  'issued', ARGV[16])
if not life or not is_number(life) then return {'corrupt', 'life'} end
if ARGV[6] ~= '' then redis.call('HSET', key, 'settled', ARGV[6], 'epoch', life) end
if ARGV[17] ~= '' and offer == ARGV[17] and not above(offer_rev, ARGV[18]) then
  redis.call('HSET', key, 'offer', '', 'offer_rev', '')
end
if ARGV[19] == '1' then redis.call('HSET', key, 'full', '') end
if ARGV[20] == '1' then redis.call('HSET', key, 'parts', '') end
if ARGV[21] ~= '' and commands ~= '' then
  local left = ''
  for command in commands:gmatch('%S+') do
    if not ARGV[21]:find(command, 1, true) then left = left .. command .. ' ' end
  end
  redis.call('HSET', key, 'commands', left)
end
if ARGV[5] == '1' then redis.call('HSET', key, 'poll', '') end
redis.call('PEXPIRE', key, ARGV[4])
return {'holder'}
";

/// Arguments: session, expiry, hash or nothing, revision, whether full state is to be asked for, whether
/// components are, a claim that is stored, commands.
const POST: &str = r"
if not is_open then return {'other'} end
if not claim or not is_number(claim) then return {'corrupt', 'claim'} end
if above(ARGV[7], claim) then
  redis.call('HSET', key, 'claim', ARGV[7], 'poll', '')
  return {'other'}
end
local is_older = (sent and sent ~= '' and above(sent, ARGV[4]))
  or (offer and offer ~= '' and above(offer_rev, ARGV[4]))
if ARGV[3] ~= '' and not is_older then
  redis.call('HSET', key, 'offer', ARGV[3], 'offer_rev', ARGV[4])
end
if ARGV[5] == '1' then redis.call('HSET', key, 'full', '1') end
if ARGV[6] == '1' then redis.call('HSET', key, 'parts', '1') end
local is_full = false
for command in ARGV[8]:gmatch('%S+') do
  if not is_full and not commands:find(command, 1, true) then
    local _, count = commands:gsub(' ', ' ')
    is_full = count >= MAX_COMMANDS
    if not is_full then commands = commands .. command .. ' ' end
  end
end
redis.call('HSET', key, 'commands', commands)
redis.call('PEXPIRE', key, ARGV[2])
return {is_full and 'other' or 'holder'}
";

/// Arguments: session, time.
const EXPIRE: &str = r"
if not last then
  if redis.call('EXISTS', key) == 1 then return {'corrupt', 'session'} end
  return {'unknown'}
end
if not seen or not is_number(seen) then return {'corrupt', 'seen'} end
if above(seen, ARGV[2]) then return {'heard', seen} end
if is_open then redis.call('HSET', key, 'poll', '') end
return {'over'}
";

/// The scripts and what they are given beside the callers' arguments.
#[derive(Debug)]
pub(super) struct PollScripts {
    begin: Loaded,
    end: Loaded,
    post: Loaded,
    expire: Loaded,
    /// Expiry of a hash after it was written, in milliseconds.
    ttl: String,
}

fn text(value: Option<impl Display>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn listed(commands: &[CommandId]) -> String {
    commands.iter().map(|command| format!("{command} ")).collect()
}

fn flag(set: bool) -> &'static str {
    if set { "1" } else { "" }
}

/// The parts of a tracker that no script looks at.
fn asks(tracker: &TrackerParts) -> String {
    let (at, since) = match tracker.asked {
        Some((at, since)) => (at.0.to_string(), flag(since)),
        None => (String::new(), ""),
    };
    format!("{at}/{since}/{}", tracker.asks)
}

impl PollScripts {
    /// Hashes expire so long after they were written.
    pub(super) fn new(ttl: Duration) -> Self {
        let constants = format!("local NEAR, TURNS, FORGET = {NEAR}, {TURNS}, {FORGET}\n");
        let most = format!("local MAX_COMMANDS = {MAX_COMMANDS}\n");
        Self {
            begin: Loaded::new([NUMBERS, &constants, BEGIN].concat()),
            end: Loaded::new([NUMBERS, OPEN, END].concat()),
            post: Loaded::new([NUMBERS, &most, OPEN, POST].concat()),
            expire: Loaded::new([NUMBERS, OPEN, EXPIRE].concat()),
            ttl: expiry(ttl),
        }
    }

    /// The commands after which the others work.
    pub(super) fn loading(&self) -> Vec<Cmd> {
        [&self.begin, &self.end, &self.post, &self.expire].map(Loaded::load).into()
    }

    fn begin(&self, key: &AgentKey, poll: &Poll) -> Cmd {
        let message = poll.message.as_ref();
        let arguments = [
            &poll.session.to_string(),
            &poll.now.0.to_string(),
            &text(poll.displace),
            &self.ttl,
            &poll.id.to_string(),
            &text(message.map(|message| message.sequence_num)),
            &text(message.map(|message| message.digest)),
            flag(message.is_some_and(|message| message.has_description)),
            flag(poll.plain),
            &poll.capabilities.0.to_string(),
            &poll.lease.as_micros().to_string(),
            &poll.epoch.to_string(),
        ];
        self.begin.run(key, &arguments)
    }

    fn end(&self, key: &AgentKey, end: &PollEnd) -> Cmd {
        let Kept { tracker, ask_due, capabilities, announced, introduced, sent, issued } = &end.kept;
        let offer = end.delivered.offer.as_ref();
        let arguments = [
            &end.session.to_string(),
            &end.poll.to_string(),
            &end.now.0.to_string(),
            &self.ttl,
            flag(end.over),
            &text(end.settled),
            &text(tracker.last.map(|(number, _)| number)),
            &text(tracker.last.map(|(_, digest)| digest)),
            flag(tracker.dirty),
            &text(ask_due.map(|due| due.0)),
            &capabilities.0.to_string(),
            flag(*announced),
            &text(*introduced),
            &asks(tracker),
            &sent.0.to_string(),
            flag(*issued),
            &text(offer.map(|(hash, _)| hash)),
            &text(offer.map(|(_, revision)| revision.0)),
            flag(end.delivered.full_state),
            flag(end.delivered.components),
            &listed(&end.delivered.commands),
        ];
        self.end.run(key, &arguments)
    }

    fn post(&self, letter: &Letter) -> Cmd {
        let offer = letter.mail.offer.as_ref();
        let arguments = [
            &letter.session.to_string(),
            &self.ttl,
            &text(offer.map(|(hash, _)| hash)),
            &text(offer.map(|(_, revision)| revision.0)),
            flag(letter.mail.full_state),
            flag(letter.mail.components),
            &letter.above.0.to_string(),
            &listed(&letter.mail.commands),
        ];
        self.post.run(&letter.key, &arguments)
    }

    fn expire(&self, (key, session, before): &(AgentKey, SessionId, Timestamp)) -> Cmd {
        self.expire.run(key, &[&session.to_string(), &before.0.to_string()])
    }
}

fn begun(key: &AgentKey, answer: Answer) -> Result<PollOutcome, EngineError> {
    let row = Row::new(key, answer)?;
    let begun = match row.text(0) {
        Some("contested") => return Ok(PollOutcome::Contested { holder: row.holder(1)? }),
        Some("heartbeat") => Begun::Heartbeat,
        Some("repeat") => Begun::Repeat { introduces: row.flag(1) },
        Some("overlapping") => Begun::Overlapping,
        Some("newcomer") => Begun::Newcomer,
        Some("taken") => Begun::Taken(Box::new(taken(&row)?)),
        _ => return Err(row.unexpected()),
    };
    Ok(PollOutcome::Begun(begun))
}

fn taken(row: &Row<'_>) -> Result<Taken, EngineError> {
    let known = match row.text(4) {
        Some("nothing") => Known::Nothing,
        Some("unsettled") => Known::Unsettled,
        _ => Known::SettledTo(row.number(4, "known")?),
    };
    let last = match row.maybe(5, "last")? {
        Some(number) => Some((number, row.number(6, "digest")?)),
        None => None,
    };
    let mut asks = row.text(12).unwrap_or_default().split('/');
    let mut part = || asks.next().unwrap_or_default();
    let (asked_at, since, count) = (part(), part() == "1", part());
    let tracker = TrackerParts {
        last,
        known,
        dirty: row.flag(7),
        asked: asked_at.parse().ok().map(|at| (Timestamp(at), since)),
        asks: count.parse().unwrap_or_default(),
    };
    let kept = Kept {
        tracker,
        ask_due: row.maybe(8, "due")?.map(Timestamp),
        capabilities: AgentCapabilities(row.maybe(9, "caps")?.unwrap_or_default()),
        announced: row.flag(10),
        introduced: row.maybe(11, "introduced")?,
        sent: IntentRevision(row.maybe(13, "sent")?.unwrap_or_default()),
        issued: row.flag(14),
    };
    let offer = match row.maybe::<ConfigHash>(15, "offer")? {
        Some(hash) => Some((hash, IntentRevision(row.number(16, "offer_rev")?))),
        None => None,
    };
    let commands = row.text(19).unwrap_or_default().split_whitespace();
    let commands: Result<_, _> =
        commands.map(|command| command.parse().map_err(|_| row.unexpected())).collect();
    Ok(Taken {
        session: row.field(1, "session")?,
        claim: Claim(row.number(2, "claim")?),
        previous: row.maybe(3, "previous")?,
        kept,
        mail: Mail { offer, full_state: row.flag(17), components: row.flag(18), commands: commands? },
    })
}

fn silence(key: &AgentKey, answer: Answer) -> Result<Silence, EngineError> {
    let row = Row::new(key, answer)?;
    match row.text(0) {
        Some("heard") => Ok(Silence::Heard(Timestamp(row.number(1, "seen")?))),
        Some("over") => Ok(Silence::Over),
        Some("unknown") => Ok(Silence::Unknown),
        _ => Err(row.unexpected()),
    }
}

#[async_trait]
impl Polls for RedisOwnership {
    async fn begin(&self, key: &AgentKey, poll: Poll) -> Result<PollOutcome, EngineError> {
        let answer = self.link.ask(&self.polls.begin(key, &poll)).await?;
        self.checked(begun(key, answer))
    }

    async fn end(&self, key: &AgentKey, end: PollEnd) -> Result<bool, EngineError> {
        let answer = self.link.ask(&self.polls.end(key, &end)).await?;
        self.checked(record::was_holder(key, answer))
    }

    /// When it fails, some may be there: it can be repeated as it is. An agent of which something unusable
    /// is kept gets no mail and does not hinder the others.
    async fn post(&self, letters: Vec<Letter>) -> Result<Vec<bool>, EngineError> {
        let mut posted = Vec::with_capacity(letters.len());
        for chunk in letters.chunks(CHUNK) {
            let commands: Vec<Cmd> = chunk.iter().map(|letter| self.polls.post(letter)).collect();
            for (letter, answer) in chunk.iter().zip(self.link.ask_all(&commands).await?) {
                posted.push(self.checked(record::was_holder(&letter.key, answer)).unwrap_or(false));
            }
        }
        Ok(posted)
    }

    /// An agent of which something unusable is kept is unknown.
    async fn expire(
        &self,
        silent: Vec<(AgentKey, SessionId, Timestamp)>,
    ) -> Result<Vec<Silence>, EngineError> {
        let mut found = Vec::with_capacity(silent.len());
        for chunk in silent.chunks(CHUNK) {
            let commands: Vec<Cmd> = chunk.iter().map(|silent| self.polls.expire(silent)).collect();
            for ((key, ..), answer) in chunk.iter().zip(self.link.ask_all(&commands).await?) {
                found.push(self.checked(silence(key, answer)).unwrap_or(Silence::Unknown));
            }
        }
        Ok(found)
    }
}
