//! Where a piece of work belongs in a trace, as processes tell one another (W3C Trace Context).

use std::fmt;
use std::str::FromStr;

/// A recorded span, as other processes refer to it. Its text is a `traceparent` of version 00.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

/// A text that is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a W3C traceparent")]
pub struct InvalidTraceContext;

impl TraceContext {
    /// The context of a span. `None` for ids of zeros, which mean that there is no span.
    pub fn new(trace: [u8; 16], span: [u8; 8], sampled: bool) -> Option<Self> {
        (trace != [0; 16] && span != [0; 8]).then_some(Self { trace, span, sampled })
    }

    /// The trace.
    pub fn trace(&self) -> [u8; 16] {
        self.trace
    }

    /// The span within the trace.
    pub fn span(&self) -> [u8; 8] {
        self.span
    }

    /// Whether the span is recorded.
    pub fn sampled(&self) -> bool {
        self.sampled
    }
}

impl FromStr for TraceContext {
    type Err = InvalidTraceContext;

    /// Reads version 00, and of later versions what they have in common with it.
    fn from_str(text: &str) -> Result<Self, InvalidTraceContext> {
        let mut fields = text.split('-');
        let [version] = hex(fields.next())?;
        let (trace, span, [flags]) = (hex(fields.next())?, hex(fields.next())?, hex(fields.next())?);
        if version == 0xff || (version == 0 && fields.next().is_some()) {
            return Err(InvalidTraceContext);
        }
        Self::new(trace, span, flags & 1 == 1).ok_or(InvalidTraceContext)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.span.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", u8::from(self.sampled))
    }
}

/// As many bytes in lower-case hexadecimal, and nothing else.
fn hex<const N: usize>(field: Option<&str>) -> Result<[u8; N], InvalidTraceContext> {
    let digits = field.unwrap_or_default().as_bytes();
    if digits.len() != 2 * N {
        return Err(InvalidTraceContext);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return Err(InvalidTraceContext),
            };
            *byte = *byte << 4 | value;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_printed() {
        let context: TraceContext = TEXT.parse().unwrap();
        assert!(context.sampled());
        assert_eq!(context.trace()[..2], [0x4b, 0xf9]);
        assert_eq!(context.span(), [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        assert_eq!(context.to_string(), TEXT);
    }

    #[test]
    fn only_the_sampled_flag_is_kept() {
        for (flags, printed) in [("00", "00"), ("02", "00"), ("ff", "01")] {
            let context: TraceContext = format!("{}{flags}", &TEXT[..53]).parse().unwrap();
            assert_eq!(context.to_string(), format!("{}{printed}", &TEXT[..53]));
        }
    }

    #[test]
    fn a_later_version_may_say_more() {
        let context: TraceContext = format!("cc{}-what-comes", &TEXT[2..]).parse().unwrap();
        assert_eq!(context.to_string(), TEXT);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let zero_trace = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let zero_span = format!("{}{}-01", &TEXT[..36], "0".repeat(16));
        let upper = TEXT.to_uppercase();
        let more = format!("{TEXT}-more");
        let (short, forbidden) = (&TEXT[..54], format!("ff{}", &TEXT[2..]));
        for text in ["", "00", "-", &zero_trace, &zero_span, &upper, &more, short, &forbidden, "00-äöü-é-01"]
        {
            assert_eq!(text.parse::<TraceContext>(), Err(InvalidTraceContext), "{text:?}");
        }
    }
}
