//! The kinds of values: what each accepts, and how it is shown.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::ops::RangeInclusive;
use std::time::Duration;

use muster_domain::ids::check_name;
use muster_domain::network::Network;

use super::tree::{Given, Value};

/// Reads a value; an error is a hint at what is wrong, and may be empty.
type Parse<T> = Box<dyn Fn(&Given) -> Result<T, String>>;

/// A kind of value.
pub(super) struct Kind<T> {
    /// What a value must be, to follow "must be".
    pub(super) what: String,
    /// The same for the reference, in few words.
    pub(super) short: String,
    pub(super) parse: Parse<T>,
    /// The value as it would be written.
    pub(super) show: Box<dyn Fn(&T) -> String>,
    /// Whether no message may show a value.
    pub(super) secret: bool,
}

impl<T: 'static> Kind<T> {
    fn new(
        what: impl Into<String>,
        parse: impl Fn(&Given) -> Result<T, String> + 'static,
        show: impl Fn(&T) -> String + 'static,
    ) -> Self {
        let what = what.into();
        Self { short: what.clone(), what, parse: Box::new(parse), show: Box::new(show), secret: false }
    }

    fn short(self, short: impl Into<String>) -> Self {
        Self { short: short.into(), ..self }
    }

    /// The same, and none where no value is given.
    pub(super) fn optional(self) -> Kind<Option<T>> {
        let Self { what, short, parse, show, secret } = self;
        Kind {
            what,
            short,
            parse: Box::new(move |given| parse(given).map(Some)),
            show: Box::new(move |value| value.as_ref().map(&show).unwrap_or_default()),
            secret,
        }
    }
}

/// A text that must not be seen: it is in no message and no debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

fn none<E>(_: E) -> String {
    String::new()
}

pub(super) fn text() -> Kind<String> {
    let parse = |given: &Given| given.text().map(str::to_owned).ok_or_else(String::new);
    Kind::new("a text", parse, String::clone).short("text")
}

/// The path of a URL, without a query.
pub(super) fn url_path() -> Kind<String> {
    let parse = |given: &Given| {
        let text = given.text().ok_or_else(String::new)?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-._~".contains(c);
        match text.starts_with('/') && text.chars().all(is_plain) {
            true => Ok(text.to_owned()),
            false => Err(String::new()),
        }
    };
    let what = "a path that begins with `/`, of letters, digits and `/-._~`, such as /v1/opamp";
    Kind::new(what, parse, String::clone).short("path")
}

pub(super) fn secret() -> Kind<Secret> {
    let parse = |given: &Given| given.text().map(|text| Secret(text.to_owned())).ok_or_else(String::new);
    Kind { secret: true, ..Kind::new("a text", parse, |_| "[secret]".to_owned()).short("text, never shown") }
}

/// Parses a word that has no quotes; one that only lacks that gets the hint.
fn parse_word<T: std::str::FromStr>(given: &Given) -> Result<T, String> {
    let quoted =
        || given.text().filter(|text| text.parse::<T>().is_ok()).map(|_| "remove the quotes".to_owned());
    given.word().and_then(|word| word.parse().ok()).ok_or_else(|| quoted().unwrap_or_default())
}

pub(super) fn boolean() -> Kind<bool> {
    Kind::new("true or false", parse_word, bool::to_string)
}

pub(super) fn region() -> Kind<String> {
    let parse = |given: &Given| {
        let text = given.text().ok_or_else(String::new)?;
        check_name("region", text).map(|()| text.to_owned()).map_err(none)
    };
    let what = "a name of lower-case letters, digits, `-` and `.`, 63 characters at most, \
        beginning and ending with a letter or digit";
    Kind::new(what, parse, String::clone).short("name")
}

/// A whole number from `least`.
pub(super) fn whole<N: TryFrom<u64> + fmt::Display + 'static>(least: u64) -> Kind<N> {
    Kind::new(
        format!("a whole number of {least} or more"),
        move |given| number(given, least..=u64::MAX),
        N::to_string,
    )
}

/// A whole number within these bounds.
pub(super) fn within<N: TryFrom<u64> + fmt::Display + 'static>(bounds: RangeInclusive<u64>) -> Kind<N> {
    let what = format!("a whole number from {} to {}", bounds.start(), bounds.end());
    Kind::new(what, move |given| number(given, bounds.clone()), N::to_string)
}

fn number<N: TryFrom<u64>>(given: &Given, bounds: RangeInclusive<u64>) -> Result<N, String> {
    let number: u64 = parse_word(given)?;
    if !bounds.contains(&number) {
        return Err(String::new());
    }
    N::try_from(number).map_err(none)
}

const SIZES: [(&str, usize); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// A number of bytes, at least 1 KiB.
pub(super) fn bytes() -> Kind<usize> {
    let parse = |given: &Given| {
        let text = given.text().ok_or_else(String::new)?;
        let (digits, factor) = SIZES
            .iter()
            .find_map(|(unit, factor)| text.strip_suffix(unit).map(|digits| (digits.trim_end(), *factor)))
            .unwrap_or((text, 1));
        let number: usize = digits.parse().map_err(none)?;
        number.checked_mul(factor).filter(|bytes| *bytes >= 1 << 10).ok_or_else(String::new)
    };
    let show = |bytes: &usize| {
        let unit = SIZES.iter().find(|(_, factor)| *bytes > 0 && bytes.is_multiple_of(*factor));
        unit.map_or_else(|| bytes.to_string(), |(unit, factor)| format!("{}{unit}", bytes / factor))
    };
    Kind::new("a number of bytes such as 65536, 512KiB or 64MiB, at least 1KiB", parse, show).short("bytes")
}

pub(super) fn duration() -> Kind<Duration> {
    let parse = |given: &Given| {
        let text = given.text().ok_or_else(String::new)?;
        let is_number = text.parse::<f64>().is_ok();
        let hint = || if is_number { format!("the unit is missing, as in {text}s") } else { String::new() };
        parse_duration(text).ok_or_else(hint)
    };
    Kind::new("a duration such as 250ms, 30s, 1h30m or 90d", parse, show_duration).short("duration")
}

const NANOS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
    ("d", 86_400 * 1_000_000_000),
];

/// A duration in Go's notation, with `d` for days: `1h30m`, `1.5h`, `90d`; `0` needs no unit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (whole, after) = split_digits(rest);
        let (fraction, after) = after.strip_prefix('.').map_or(("", after), split_digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let (_, nanos) = NANOS.iter().find(|(name, _)| *name == unit)?;
        if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
            return None;
        }
        let digits = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u128>().ok() };
        let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        let part = digits(whole)?.checked_mul(*nanos)?.checked_add(digits(fraction)? * nanos / scale)?;
        total = total.checked_add(part)?;
        rest = after;
    }
    let nanos_per_second = 1_000_000_000;
    let seconds = u64::try_from(total / nanos_per_second).ok()?;
    // No more than what an i64 of nanoseconds holds, as in Go; 292 years.
    let is_sane = !text.is_empty() && total <= u128::from(i64::MAX.unsigned_abs());
    is_sane.then(|| Duration::new(seconds, u32::try_from(total % nanos_per_second).unwrap_or_default()))
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn show_duration(duration: &Duration) -> String {
    let nanos = duration.as_nanos();
    let unit = NANOS.iter().rev().find(|(_, unit)| nanos > 0 && nanos.is_multiple_of(*unit));
    unit.map_or_else(|| "0".to_owned(), |(name, unit)| format!("{}{name}", nanos / unit))
}

/// An address to listen on.
pub(super) fn endpoint() -> Kind<SocketAddr> {
    let parse = |given: &Given| parse_endpoint(given.text().ok_or_else(String::new)?);
    Kind::new(
        "an address and a port such as 127.0.0.1:4320, localhost:4320 or :4320",
        parse,
        SocketAddr::to_string,
    )
    .short("address")
}

fn parse_endpoint(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        let is_port = text.parse::<u16>().is_ok();
        return Err(if is_port { format!("write :{text} for all addresses") } else { String::new() });
    };
    let port: u16 = port.parse().map_err(none)?;
    match host {
        "" => Ok((Ipv4Addr::UNSPECIFIED, port).into()),
        "localhost" => Ok((Ipv4Addr::LOCALHOST, port).into()),
        _ if host.contains(['/', ':', '@', ' ']) => Err("the host is not a name or an address".to_owned()),
        _ => {
            let mut found =
                (host, port).to_socket_addrs().map_err(|error| format!("no address found: {error}"))?;
            found.next().ok_or_else(|| "no address found".to_owned())
        }
    }
}

/// A network of addresses.
pub(super) fn network() -> Kind<Network> {
    let parse = |given: &Given| given.text().ok_or_else(String::new)?.parse().map_err(none);
    let what = "a network such as 10.0.0.0/8 or 2001:db8::/32, or an address";
    Kind::new(what, parse, Network::to_string).short("network")
}

/// Where a web page comes from: scheme, host and port.
pub(super) fn origin() -> Kind<String> {
    let parse = |given: &Given| {
        let text = given.text().ok_or_else(String::new)?;
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_host = |host: &str| !host.is_empty() && !host.contains(['/', '*', ' ', '@', '?', '#']);
        host.filter(|host| host.is_ascii() && is_host(host)).map(|_| text.to_owned()).ok_or_else(String::new)
    };
    Kind::new("an origin such as https://console.example.com", parse, String::clone).short("origin")
}

/// The address of this port on this machine alone.
pub(super) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A list of values of a kind.
pub(super) fn list<T: 'static>(of: Kind<T>) -> Kind<Vec<T>> {
    let Kind { what, short, parse, show, secret } = of;
    let parse = move |given: &Given| match &given.value {
        Value::List(items) => items.iter().map(&parse).collect(),
        _ => Err(String::new()),
    };
    let show = move |items: &Vec<T>| items.iter().map(&show).collect::<Vec<_>>().join(", ");
    Kind {
        secret,
        ..Kind::new(format!("a list, each item {what}"), parse, show).short(format!("list of {short}"))
    }
}

/// One value of a kind, or a list of them.
pub(super) fn one_or_list<T: 'static>(of: Kind<T>) -> Kind<Vec<T>> {
    let Kind { what, short, parse, show, secret } = of;
    let parse = move |given: &Given| match &given.value {
        Value::List(items) if items.is_empty() => Err("the list is empty".to_owned()),
        Value::List(items) => items.iter().map(&parse).collect(),
        _ => parse(given).map(|one| vec![one]),
    };
    let show = move |items: &Vec<T>| items.iter().map(&show).collect::<Vec<_>>().join(", ");
    let what = format!("{what}, or a list of these");
    Kind { secret, ..Kind::new(what, parse, show).short(format!("{short}, or a list of these")) }
}

/// One of a few words.
pub(super) trait Choice: Copy + PartialEq + 'static {
    /// Every choice and its word.
    const ALL: &'static [(Self, &'static str)];
}

pub(super) fn one_of<T: Choice>() -> Kind<T> {
    let words: Vec<&str> = T::ALL.iter().map(|(_, word)| *word).collect();
    let what = match words.as_slice() {
        [only] => (*only).to_owned(),
        [init @ .., last] => format!("{} or {last}", init.join(", ")),
        [] => String::new(),
    };
    let find = |text: &str| T::ALL.iter().find(|(_, word)| *word == text).map(|(choice, _)| *choice);
    let parse = move |given: &Given| given.text().and_then(find).ok_or_else(String::new);
    Kind::new(what, parse, |value| word(*value).to_owned())
}

/// The word of a choice.
pub(super) fn word<T: Choice>(value: T) -> &'static str {
    T::ALL.iter().find(|(choice, _)| *choice == value).map_or("", |(_, word)| word)
}

/// An enum of words.
macro_rules! choice {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $help:literal])+ $variant:ident = $word:literal;)+ }) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[doc = $help])+ $variant,)+
        }

        impl $name {
            /// The word as it stands in the configuration.
            pub fn as_str(self) -> &'static str {
                $crate::config::kinds::word(self)
            }
        }

        impl $crate::config::kinds::Choice for $name {
            const ALL: &'static [(Self, &'static str)] = &[$((Self::$variant, $word)),+];
        }
    };
}
pub(super) use choice;
