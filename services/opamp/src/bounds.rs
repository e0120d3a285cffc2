//! Checks what an agent reports, and bounds what is kept of it, before anything is published: one
//! pass over the bytes that allocates nothing.
//!
//! A message that passes can be decoded: the pass is as strict as the decoder. Fields that the
//! protocol does not define are left alone.

mod clean;
mod shapes;

use std::fmt;

use muster_proto::encoding::{WireType, decode_key, decode_varint};

pub(crate) use clean::clean;
use shapes::{Field, Kind, Shape};

/// Most bytes of agent_description, of health, of a status of remote config, packages or connection
/// settings, and of available_components.
pub const MAX_DESCRIPTION: usize = 256 << 10;
/// See [`MAX_DESCRIPTION`].
pub const MAX_HEALTH: usize = 256 << 10;
/// See [`MAX_DESCRIPTION`].
pub const MAX_STATUS: usize = 128 << 10;
/// See [`MAX_DESCRIPTION`].
pub const MAX_COMPONENTS: usize = 512 << 10;
/// Most entries of a list or map, such as attributes, components, files.
pub const MAX_ENTRIES: usize = 2048;
/// Most bytes of a name: a key, a file's name, a custom capability.
pub const MAX_NAME: usize = 512;
/// Most bytes of a text for people, such as an error message.
pub const MAX_TEXT: usize = 64 << 10;
/// Most bytes of a hash.
pub const MAX_HASH: usize = 256;
/// How deep messages may be nested. A level of component health takes two, one of an attribute's lists
/// or maps two or three.
pub const MAX_DEPTH: usize = 40;

/// Segments of a field's path that are told.
const TOLD: usize = 6;

/// Why a message is refused: which field, and the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// From the innermost field to the outermost.
    path: Vec<&'static str>,
    problem: String,
    /// It is no AgentToServer at all, rather than too large a one.
    malformed: bool,
}

impl Refused {
    fn new(problem: impl Into<String>) -> Self {
        Self { path: Vec::new(), problem: problem.into(), malformed: false }
    }

    fn malformed(problem: impl fmt::Display) -> Self {
        Self { malformed: true, ..Self::new(problem.to_string()) }
    }

    fn within(mut self, field: &Field) -> Self {
        if !field.name.is_empty() {
            self.path.push(field.name);
        }
        self
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, problem, malformed } = self;
        if *malformed {
            f.write_str("the message is not an AgentToServer: ")?;
        }
        if path.is_empty() {
            return f.write_str(problem);
        }
        let told: Vec<_> = path.iter().rev().take(TOLD).copied().collect();
        let more = if path.len() > TOLD { "..." } else { "" };
        write!(f, "{}{more}: {problem}", told.join("."))
    }
}

/// Checks an AgentToServer. Returns whether a text in it holds NUL.
pub(crate) fn check(message: &[u8]) -> Result<bool, Refused> {
    check_message(&shapes::AGENT_TO_SERVER, message, MAX_DEPTH)
}

fn check_message(shape: &Shape, mut rest: &[u8], depth: usize) -> Result<bool, Refused> {
    let mut seen = [(0, 0); shapes::MOST_FIELDS];
    let mut has_nul = false;
    while !rest.is_empty() {
        let (number, value) = next(&mut rest, depth)?;
        let Some((field, (count, bytes))) = shape.field(number, &mut seen) else { continue };
        has_nul |= check_field(field, &value, depth, count, bytes).map_err(|error| error.within(field))?;
    }
    Ok(has_nul)
}

fn check_field(
    field: &Field,
    value: &Value<'_>,
    depth: usize,
    count: &mut usize,
    bytes: &mut usize,
) -> Result<bool, Refused> {
    let payload = match (&field.kind, value) {
        (Kind::Number, Value::Number) | (Kind::Fixed, Value::Fixed) => return Ok(false),
        (Kind::Text | Kind::Bytes | Kind::Message(_), Value::Payload(payload)) => *payload,
        _ => return Err(Refused::malformed("has the wrong wire type")),
    };
    *count += 1;
    // A field that stands there twice is one, of which both count.
    *bytes = if field.most == 1 { *bytes + payload.len() } else { payload.len() };
    if field.most > 1 && *count > field.most {
        return Err(Refused::new(format!("has more than {} entries, the most that are taken", field.most)));
    }
    if *bytes > field.bytes {
        let (has, most) = (*bytes, field.bytes);
        return Err(Refused::new(format!("has {has} bytes, at most {most} are taken")));
    }
    match &field.kind {
        Kind::Text => match std::str::from_utf8(payload) {
            Ok(_) => Ok(payload.contains(&0)),
            Err(_) => Err(Refused::malformed("is not UTF-8")),
        },
        Kind::Message(shape) => match depth.checked_sub(1) {
            Some(depth) => check_message(shape, payload, depth),
            None => Err(Refused::new(format!("is nested deeper than {MAX_DEPTH} messages"))),
        },
        Kind::Number | Kind::Fixed | Kind::Bytes => Ok(false),
    }
}

/// The value of a field, as far as it matters here.
enum Value<'a> {
    /// A varint.
    Number,
    /// Eight bytes.
    Fixed,
    /// Bytes with a length.
    Payload(&'a [u8]),
    /// Anything that only unknown fields have.
    Other,
}

/// Takes a field's number and value off.
fn next<'a>(rest: &mut &'a [u8], depth: usize) -> Result<(u32, Value<'a>), Refused> {
    let (number, wire_type) = decode_key(rest).map_err(Refused::malformed)?;
    let value = match wire_type {
        WireType::Varint => {
            decode_varint(rest).map_err(Refused::malformed)?;
            Value::Number
        }
        WireType::SixtyFourBit => {
            take(rest, 8)?;
            Value::Fixed
        }
        WireType::ThirtyTwoBit => {
            take(rest, 4)?;
            Value::Other
        }
        WireType::LengthDelimited => {
            let length = decode_varint(rest).map_err(Refused::malformed)?;
            Value::Payload(take(rest, usize::try_from(length).unwrap_or(usize::MAX))?)
        }
        WireType::StartGroup => {
            skip_group(rest, number, depth)?;
            Value::Other
        }
        WireType::EndGroup => {
            return Err(Refused::malformed("a group ends that did not begin"));
        }
    };
    Ok((number, value))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Refused> {
    rest.split_off(..length).ok_or_else(|| Refused::malformed("ends inside a field"))
}

/// Groups are of an old wire format, and only unknown fields can be some.
fn skip_group(rest: &mut &[u8], group: u32, depth: usize) -> Result<(), Refused> {
    let depth = depth
        .checked_sub(1)
        .ok_or_else(|| Refused::new(format!("groups are nested deeper than {MAX_DEPTH} messages")))?;
    loop {
        let mut after = *rest;
        let (number, wire_type) = decode_key(&mut after).map_err(Refused::malformed)?;
        if wire_type == WireType::EndGroup && number == group {
            *rest = after;
            return Ok(());
        }
        next(rest, depth)?;
    }
}

#[cfg(test)]
#[path = "bounds_tests.rs"]
mod tests;
