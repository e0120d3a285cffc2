//! The commands: scripts, so that each reads and writes an agent's hash at once.
//!
//! Fields of a hash: `session` and `claim` of the session that holds the agent or did so last; `gateway`
//! and `incarnation` only while one on a WebSocket holds it; `settled`, if something is, and the `epoch` that
//! it is of, if that is known; `seen`. The fields of agents that poll are in [`super::polls`].

use std::time::Duration;

use muster_domain::ids::{AgentKey, SessionId};
use muster_ports::ownership::{ClaimRequest, Settled};
use redis::{Cmd, Script};

/// Numbers as text: any u64 is exact.
pub(super) const NUMBERS: &str = r"
local function is_number(text)
  return #text <= 20 and (text == '0' or string.find(text, '^[1-9]%d*$') ~= nil)
end
local function above(a, b)
  if #a ~= #b then return #a > #b end
  return a > b
end
local function successor(text)
  if text == '18446744073709551615' then return text end
  local head, tail = string.sub(text, 1, -10), tonumber(string.sub(text, -9)) + 1
  if head == '' then return string.format('%.0f', tail) end
  if tail < 1000000000 then return head .. string.format('%09.0f', tail) end
  return string.format('%.0f', tonumber(head) + 1) .. '000000000'
end
";

/// Arguments: session, gateway, incarnation, now, session to displace or nothing, expiry, epoch.
const CLAIM: &str = r"
local key, session, now = KEYS[1], ARGV[1], ARGV[4]
local last, claim, gateway, incarnation, settled, seen, epoch = unpack(redis.call('HMGET', key,
  'session', 'claim', 'gateway', 'incarnation', 'settled', 'seen', 'epoch'))
if not last and redis.call('EXISTS', key) == 0 then
  redis.call('HSET', key, 'session', session, 'claim', now, 'gateway', ARGV[2], 'incarnation', ARGV[3],
    'seen', now)
  redis.call('PEXPIRE', key, ARGV[6])
  return {'granted', now}
end
if gateway and last ~= session and last ~= ARGV[5] then
  return {'contested', last, claim, gateway, incarnation}
end
if not last or #last ~= 36 then return {'corrupt', 'session'} end
if not claim or not is_number(claim) then return {'corrupt', 'claim'} end
if settled and not is_number(settled) then return {'corrupt', 'settled'} end
if not seen or not is_number(seen) then return {'corrupt', 'seen'} end
claim = above(now, claim) and now or successor(claim)
redis.call('HSET', key, 'session', session, 'claim', claim, 'gateway', ARGV[2], 'incarnation', ARGV[3],
  'seen', above(now, seen) and now or seen)
if last ~= session then redis.call('HDEL', key, 'settled', 'epoch') end
redis.call('PEXPIRE', key, ARGV[6])
if epoch and epoch ~= ARGV[7] and epoch ~= '0' and ARGV[7] ~= '0' then settled = false end
return {'resumed', claim, last, settled}
";

/// Arguments: session, sequence number or nothing, when it was heard, expiry, epoch.
const SETTLE: &str = r"
local key = KEYS[1]
local last, gateway, seen = unpack(redis.call('HMGET', key, 'session', 'gateway', 'seen'))
if last ~= ARGV[1] or not gateway then return {'other'} end
if not seen or not is_number(seen) then return {'corrupt', 'seen'} end
if above(ARGV[3], seen) then seen = ARGV[3] end
if ARGV[2] == '' then
  redis.call('HSET', key, 'seen', seen)
else
  redis.call('HSET', key, 'seen', seen, 'settled', ARGV[2], 'epoch', ARGV[5])
end
redis.call('PEXPIRE', key, ARGV[4])
return {'holder'}
";

/// Arguments: session, expiry.
const RELEASE: &str = r"
local key = KEYS[1]
local last, gateway = unpack(redis.call('HMGET', key, 'session', 'gateway'))
if last ~= ARGV[1] or not gateway then return {'other'} end
redis.call('HDEL', key, 'gateway', 'incarnation')
redis.call('PEXPIRE', key, ARGV[2])
return {'holder'}
";

/// Longest expiry, in milliseconds, some thousand years: Redis refuses one that overflows.
const LONGEST: u128 = 100_000_000_000_000;

/// Expiry of a hash after it was written, in milliseconds.
pub(super) fn expiry(ttl: Duration) -> String {
    ttl.as_millis().clamp(1, LONGEST).to_string()
}

/// The scripts and what they are given beside the callers' arguments.
#[derive(Debug)]
pub(super) struct Scripts {
    claim: Loaded,
    settle: Loaded,
    release: Loaded,
    /// Expiry of a hash after it was written, in milliseconds.
    ttl: String,
}

/// A script, called by its hash.
#[derive(Debug)]
pub(super) struct Loaded {
    code: String,
    hash: String,
}

impl Loaded {
    pub(super) fn new(code: String) -> Self {
        let hash = Script::new(&code).get_hash().to_owned();
        Self { code, hash }
    }

    pub(super) fn run(&self, key: &AgentKey, arguments: &[&str]) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hash).arg(1).arg(name(key)).arg(arguments);
        command
    }

    /// The command after which it can be called.
    pub(super) fn load(&self) -> Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(&self.code);
        command
    }
}

impl Scripts {
    /// Hashes expire so long after they were written.
    pub(super) fn new(ttl: Duration) -> Self {
        Self {
            claim: Loaded::new([NUMBERS, CLAIM].concat()),
            settle: Loaded::new([NUMBERS, SETTLE].concat()),
            release: Loaded::new(RELEASE.to_owned()),
            ttl: expiry(ttl),
        }
    }

    /// The commands after which the others work.
    pub(super) fn loading(&self) -> Vec<Cmd> {
        [&self.claim, &self.settle, &self.release].map(Loaded::load).into()
    }

    pub(super) fn claim(&self, request: &ClaimRequest) -> Cmd {
        let ClaimRequest { key, session, gateway, incarnation, now, displace, epoch } = request;
        let displace = displace.map(|session| session.to_string()).unwrap_or_default();
        let [session, incarnation] = [session.to_string(), incarnation.to_string()];
        let [now, epoch] = [now.0, *epoch].map(|number| number.to_string());
        self.claim.run(key, &[&session, gateway.as_str(), &incarnation, &now, &displace, &self.ttl, &epoch])
    }

    pub(super) fn settle(&self, settled: &Settled) -> Cmd {
        let Settled { key, session, sequence_num, epoch, seen } = settled;
        let sequence_num = sequence_num.map(|number| number.to_string()).unwrap_or_default();
        let [seen, epoch] = [seen.0, *epoch].map(|number| number.to_string());
        self.settle.run(key, &[&session.to_string(), &sequence_num, &seen, &self.ttl, &epoch])
    }

    pub(super) fn release(&self, key: &AgentKey, session: SessionId) -> Cmd {
        self.release.run(key, &[&session.to_string(), &self.ttl])
    }
}

/// Reads what [`super::record::owned`] understands.
pub(super) fn look_up(key: &AgentKey) -> Cmd {
    let mut command = redis::cmd("HMGET");
    command.arg(name(key)).arg(&["session", "claim", "gateway", "incarnation", "settled", "seen"]);
    command
}

/// The key of an agent's hash.
pub(super) fn name(key: &AgentKey) -> String {
    format!("muster:{{{key}}}")
}
