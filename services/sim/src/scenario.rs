//! What a run is about: how large the cluster is, which agents there are, what may break.

use std::fmt;
use std::time::Duration;

use crate::agent::Kind;
use crate::rng::Rng;

/// Something that happens to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A gateway or control dies, and is started again some time later.
    KillNode,
    /// A gateway or control is held still for a while, often past its lease.
    HoldNode,
    /// A gateway or control is stopped in good order, and started again.
    RestartNode,
    /// An agent's connection breaks.
    CutAgent,
    /// An agent dies, and usually comes back.
    KillAgent,
    /// An agent stops in good order, and usually comes back.
    StopAgent,
    /// An agent is held still for a while.
    HoldAgent,
    /// A new agent starts with another one's uid.
    CloneAgent,
    /// An engine is away from everybody for a while.
    EngineAway,
    /// An engine is away from one process for a while.
    CutOff,
    /// For a while calls are slow or fail, and messages are lost, doubled, late.
    Rough,
    /// Ownership forgets everything.
    LoseOwnership,
    /// Ownership is an old copy of itself.
    OldOwnership,
    /// The log is lost, and another one takes its place.
    LoseLog,
    /// The buckets are lost.
    LoseValues,
    /// The store is an old copy of itself.
    OldStore,
    /// An operator wants something else.
    ChangeIntent,
    /// An operator labels an agent, or takes its label away.
    Label,
    /// Everything runs in one process, and it dies.
    Crash,
}

const OPTIONAL: [Fault; 17] = [
    Fault::KillNode,
    Fault::HoldNode,
    Fault::RestartNode,
    Fault::CutAgent,
    Fault::KillAgent,
    Fault::StopAgent,
    Fault::HoldAgent,
    Fault::CloneAgent,
    Fault::EngineAway,
    Fault::CutOff,
    Fault::Rough,
    Fault::LoseOwnership,
    Fault::OldOwnership,
    Fault::LoseLog,
    Fault::LoseValues,
    Fault::OldStore,
    Fault::Label,
];

/// One run's plan.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    /// One process with everything, on engines that die with it.
    pub(crate) embedded: bool,
    /// How far each gateway's clock is off, in microseconds; one for each.
    pub(crate) gateways: Vec<i64>,
    /// The same for controls.
    pub(crate) controls: Vec<i64>,
    /// Agent processes: the kind, and how many agents share the connection.
    pub(crate) agents: Vec<(Kind, usize)>,
    /// What happens, each as often as it stands here.
    pub(crate) faults: Vec<Fault>,
    /// How long things happen.
    pub(crate) chaos: Duration,
    /// Longest time between two faults, in milliseconds.
    pub(crate) pace: u64,
    /// Longest usual time of a call one way, in milliseconds.
    pub(crate) usual: u64,
}

impl Scenario {
    /// The plan of a seed.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed, "scenario");
        let embedded = rng.chance(150);
        // A clock an hour off, at times.
        let is_skewed = rng.chance(150);
        let hour = 3_600_000_000;
        let mut skews = |most: u64| {
            let count = if embedded { 1 } else { 1 + rng.below(most) };
            let skew = |rng: &mut Rng| match is_skewed && rng.chance(500) {
                true if rng.chance(500) => hour,
                true => -hour,
                false => 0,
            };
            (0..count).map(|_| skew(&mut rng)).collect::<Vec<_>>()
        };
        let (gateways, controls) = (skews(3), skews(3));
        let count = 2 + rng.below(6);
        let kinds = &Kind::ALL;
        let agents = (0..count)
            .map(|_| {
                let kind = rng.pick(kinds).unwrap_or(Kind::Go);
                let shared = kind == Kind::Go && rng.chance(250);
                (kind, if shared { 2 + rng.below(2) as usize } else { 1 })
            })
            .collect();
        let mut faults = vec![Fault::ChangeIntent, Fault::ChangeIntent, Fault::CutAgent];
        for fault in OPTIONAL {
            // Each seed has some of them, so that each is met alone, too.
            if rng.chance(450) {
                let weight = 1 + rng.below(3) as usize;
                faults.extend(std::iter::repeat_n(fault, weight));
            }
        }
        if embedded {
            faults.retain(|fault| {
                !matches!(
                    fault,
                    Fault::KillNode
                        | Fault::EngineAway
                        | Fault::CutOff
                        | Fault::Rough
                        | Fault::LoseOwnership
                        | Fault::OldOwnership
                        | Fault::LoseLog
                        | Fault::LoseValues
                )
            });
            faults.extend([Fault::Crash, Fault::Crash]);
        }
        Self {
            embedded,
            gateways,
            controls,
            agents,
            faults,
            chaos: rng.millis(40_000, 240_000),
            pace: 500 + rng.below(12_000),
            usual: [0, 2, 5, 20][rng.below(4) as usize],
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut faults: Vec<_> = self.faults.iter().map(|fault| format!("{fault:?}")).collect();
        faults.dedup();
        let agents: Vec<_> =
            self.agents.iter().map(|(kind, count)| format!("{}x{count}", kind.name())).collect();
        write!(
            f,
            "{}{} gateways {:?}, {} controls {:?}, agents {}, {} s of {}",
            if self.embedded { "embedded, " } else { "" },
            self.gateways.len(),
            self.gateways.iter().map(|skew| skew / 1_000_000).collect::<Vec<_>>(),
            self.controls.len(),
            self.controls.iter().map(|skew| skew / 1_000_000).collect::<Vec<_>>(),
            agents.join(" "),
            self.chaos.as_secs(),
            faults.join(" ")
        )
    }
}
