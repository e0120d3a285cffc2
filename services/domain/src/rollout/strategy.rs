//! How a change reaches its agents: stages, criteria, limits. What `kind: RolloutStrategy` declares.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::Timestamp;
use crate::selector::AgentSelector;

/// Most stages of a strategy, after stages that grow are written out.
pub const MAX_STAGES: usize = 50;
/// How long an agent may take to apply a change, unless the strategy says it.
pub const APPLY_DEADLINE: Duration = Duration::from_secs(300);
/// Longest duration that a strategy may name.
pub const MAX_DURATION: Duration = Duration::from_secs(90 * 86_400);

/// A share of a whole, exact to a millionth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Share(u32);

impl Share {
    /// The whole.
    pub const ALL: Self = Self(1_000_000);

    /// A share from a fraction, 0 to 1.
    pub fn of_fraction(fraction: f64) -> Option<Self> {
        let parts = (fraction * 1_000_000.0).round();
        // In this range the cast is exact.
        (fraction.is_finite() && (0.0..=1_000_000.0).contains(&parts)).then_some(Self(parts as u32))
    }

    /// The fraction, 0 to 1.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 1_000_000.0
    }

    /// This share of a number, rounded up.
    pub fn of(self, number: u64) -> u64 {
        let parts = u128::from(number) * u128::from(self.0);
        u64::try_from(parts.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    /// Whether `part` of `whole` is more than this share.
    pub fn is_exceeded_by(self, part: u64, whole: u64) -> bool {
        u128::from(part) * 1_000_000 > u128::from(whole) * u128::from(self.0)
    }

    /// Whether `part` of `whole` is less than this share.
    pub fn is_missed_by(self, part: u64, whole: u64) -> bool {
        u128::from(part) * 1_000_000 < u128::from(whole) * u128::from(self.0)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", f64::from(self.0) / 10_000.0)
    }
}

/// How many agents a stage exposes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// This share of all, together with the stages before.
    Share(Share),
    /// So many, together with the stages before.
    Count(u64),
    /// Those that match, beside those of the stages before.
    Matching(AgentSelector),
}

/// When a stage passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Criteria {
    /// Largest share of agents that may fail, or not apply the change by the deadline.
    pub error_rate: Option<Share>,
    /// Smallest share of the agents with the change that must be healthy at the end of the soak.
    pub pass_rate: Option<Share>,
    /// How much smaller the share of healthy agents may be than that of agents that are not exposed.
    pub margin: Option<Share>,
    /// Reports without which there is no verdict; 1 where it is 0.
    pub min_reports: u64,
}

/// Who says that the next stage may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Promotion {
    /// Muster, when the stage has passed.
    #[default]
    Automatic,
    /// A person, when the stage has passed.
    Manual,
}

/// A stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Which agents.
    pub size: Size,
    /// How long agents are watched after the last one applied the change.
    pub soak: Duration,
    /// When it passes.
    #[serde(default)]
    pub criteria: Criteria,
    /// Who says that the next one begins.
    #[serde(default)]
    pub promotion: Promotion,
    /// Longest time from its beginning to its passing.
    #[serde(default)]
    pub deadline: Option<Duration>,
}

/// What happens when a stage fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Exposed agents get back what they had.
    #[default]
    Rollback,
    /// Nothing is sent any more until a person decides.
    Pause,
}

/// A part of the week in which agents may be newly exposed, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Days on which it begins: bit 0 is Monday.
    pub days: u8,
    /// Minute of the day at which it begins.
    pub from: u16,
    /// Minute of the day at which it ends; on the next day if that is not after the beginning.
    pub to: u16,
}

/// Minutes of a day.
pub const DAY: u16 = 24 * 60;
/// Days of the week, by the bits of [`Window::days`].
pub const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

impl Window {
    /// Whether it is open at this time.
    pub fn is_open(&self, now: Timestamp) -> bool {
        let minutes = now.0 / 60_000_000;
        let minute = (minutes % u64::from(DAY)) as u16;
        // 1970-01-01 was a Thursday.
        let day = ((minutes / u64::from(DAY)) + 3) % 7;
        let begins_on = |day: u64| self.days & (1 << (day % 7)) != 0;
        if self.from < self.to {
            return begins_on(day) && (self.from..self.to).contains(&minute);
        }
        begins_on(day) && minute >= self.from || begins_on(day + 6) && minute < self.to
    }
}

/// How a change reaches its agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strategy {
    /// Its stages; at least one, and the last one is for every agent.
    pub stages: Vec<Stage>,
    /// What happens when one fails.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Channels that are told of what happens.
    #[serde(default)]
    pub notify: Vec<String>,
    /// Narrows the agents of the assignment.
    #[serde(default)]
    pub target: Option<AgentSelector>,
    /// Exposed agents without an outcome, at most.
    #[serde(default)]
    pub max_in_flight: Option<u64>,
    /// How long an agent may take to apply the change, once it is connected.
    pub apply_deadline: Duration,
    /// When agents may be newly exposed; always, if there is none.
    #[serde(default)]
    pub windows: Vec<Window>,
}

impl Strategy {
    /// Whether agents may be newly exposed at this time.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.windows.is_empty() || self.windows.iter().any(|window| window.is_open(now))
    }

    /// Whether agents that are not exposed are watched, for comparison.
    pub fn compares(&self) -> bool {
        self.stages.iter().any(|stage| stage.criteria.margin.is_some())
    }
}

/// A duration such as `250ms`, `30s`, `1h30m` or `2d`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u32 = rest.get(..digits)?.parse().ok()?;
        let after = rest.get(digits..)?;
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let one = match after.get(..unit)? {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            "d" => Duration::from_secs(86_400),
            _ => return None,
        };
        total = total.checked_add(one.checked_mul(number)?)?;
        rest = after.get(unit..)?;
    }
    (total <= MAX_DURATION).then_some(total)
}
