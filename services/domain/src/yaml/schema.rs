//! The core schema of YAML 1.2: what a plain scalar is; and which plain scalars every parser reads
//! in the same way.

/// What a plain scalar is by the core schema.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Resolved {
    Null,
    Bool(bool),
    /// `None`: a whole number that 64 bits do not hold.
    Int(Option<i64>),
    Float(f64),
    String,
}

/// What a plain scalar with this text is.
pub(crate) fn resolve(text: &str) -> Resolved {
    match text {
        "" | "null" | "Null" | "NULL" | "~" => return Resolved::Null,
        "true" | "True" | "TRUE" => return Resolved::Bool(true),
        "false" | "False" | "FALSE" => return Resolved::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Resolved::Float(f64::NAN),
        _ => {}
    }
    if let Some(digits) = text.strip_prefix("0o").filter(|digits| all(digits, |c| c.is_digit(8))) {
        return Resolved::Int(i64::from_str_radix(digits, 8).ok());
    }
    if let Some(digits) = text.strip_prefix("0x").filter(|digits| all(digits, |c| c.is_ascii_hexdigit())) {
        return Resolved::Int(i64::from_str_radix(digits, 16).ok());
    }
    let (negative, unsigned) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    match unsigned {
        ".inf" | ".Inf" | ".INF" if negative => Resolved::Float(f64::NEG_INFINITY),
        ".inf" | ".Inf" | ".INF" => Resolved::Float(f64::INFINITY),
        digits if all(digits, |c| c.is_ascii_digit()) => Resolved::Int(text.parse().ok()),
        number if is_decimal(number) => text.parse().map_or(Resolved::String, Resolved::Float),
        _ => Resolved::String,
    }
}

fn all(text: &str, is: impl Fn(char) -> bool) -> bool {
    !text.is_empty() && text.chars().all(is)
}

/// `(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_decimal(text: &str) -> bool {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (text, None),
    };
    let digits = |part: &str| all(part, |c| c.is_ascii_digit());
    let good_mantissa = match mantissa.split_once('.') {
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
        None => digits(mantissa),
    };
    good_mantissa && exponent.is_none_or(digits)
}

/// Whether a character may stand in YAML as it is, is no line break of any version of YAML, and is
/// not a tab.
pub(crate) fn is_simple(c: char) -> bool {
    matches!(c, ' '..='~' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..)
        && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// Whether a plain scalar with this text, on one line and outside brackets, is read by every parser
/// as a plain scalar with this text. Anything that is not a string is; strings with unusual
/// beginnings are not, to be on the safe side.
pub(super) fn is_exact_plain(text: &str) -> bool {
    const NOT_FIRST: &[char] =
        &['?', ':', ',', '[', ']', '{', '}', '#', '&', '*', '!', '|', '>', '\'', '"', '%', '@', '`', ' '];
    let marker = text.starts_with("---") || text.starts_with("...");
    !(marker || text == "-" || text.starts_with("- ") || text.starts_with(NOT_FIRST))
        && !(text.ends_with([' ', ':']) || text.contains(": ") || text.contains(" #"))
        && text.chars().all(is_simple)
}
