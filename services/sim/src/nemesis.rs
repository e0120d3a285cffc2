//! Breaks things, mends them some time later, and in the end waits until all is at rest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_adapters_memory::{MemoryKeyValue, MemoryOwnership, MemoryStore};
use muster_domain::ids::{AgentKey, InstanceUid, Partition};
use muster_ports::LEASE_TTL;
use muster_ports::store::RecoveryStore;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use crate::agent::{Agent, Kind};
use crate::check::{Settled, Stored, invariant, settled};
use crate::cluster::{Doors, Node, Role};
use crate::operator::Operator;
use crate::rng::Rng;
use crate::scenario::{Fault, Scenario};
use crate::socket::Break;
use crate::weather::{Engine, Odds, Outage};
use crate::world::{World, new_log};

/// Everything is to be at rest so long after the last fault: offers and asks have backoffs of minutes.
const BOUND: Duration = Duration::from_secs(1200);
/// How often that is looked at, and how long it is to stay so.
const LOOK_EVERY: Duration = Duration::from_secs(3);
const REST: Duration = Duration::from_secs(20);
/// Agents are put into so many partitions, so that they meet in them.
const PARTITIONS: usize = 3;
/// Most agent processes, clones among them.
const MOST_AGENTS: usize = 12;

/// Something to be mended.
#[derive(Debug)]
enum Mend {
    ResumeNode(usize),
    StartNode(usize),
    ResumeAgent(usize),
    RestartAgent(usize, bool),
    Engine(Engine),
    Cut(String, Engine),
    Odds,
    Resync,
}

/// A backup of the store, and what the checker knew then.
type Backup = (Arc<MemoryStore>, Stored);

/// The nemesis of a run.
pub(crate) struct Nemesis {
    world: Arc<World>,
    scenario: Scenario,
    rng: Rng,
    doors: Arc<Doors>,
    nodes: Vec<Node>,
    agents: Vec<Agent>,
    operator: Operator,
    mends: BTreeMap<(Instant, u64), Mend>,
    number: u64,
    ownership_backup: Option<Arc<MemoryOwnership>>,
    store_backup: Option<Backup>,
    partitions: Vec<Partition>,
}

impl Nemesis {
    /// Starts the cluster and its agents.
    pub(crate) fn new(world: &Arc<World>, scenario: Scenario) -> Self {
        let doors = Arc::new(Doors::default());
        world.weather.set_usual(scenario.usual);
        let mut rng = Rng::new(world.seed, "nemesis");
        let node = |role, (number, skew)| Node::new(world, &doors, role, number, skew, scenario.embedded);
        let gateways = (1..).zip(scenario.gateways.iter().copied());
        let gateways = gateways.map(|numbered| node(Role::Gateway, numbered));
        let controls = (1..).zip(scenario.controls.iter().copied());
        let controls = controls.map(|numbered| node(Role::Control, numbered));
        let mut nodes: Vec<_> = gateways.chain(controls).collect();
        nodes.iter_mut().for_each(Node::start);
        let partitions = (0..PARTITIONS).filter_map(|_| Partition::new(rng.below(64) as u16)).collect();
        let mut nemesis = Self {
            operator: Operator::new(world),
            world: Arc::clone(world),
            rng,
            doors,
            nodes,
            agents: Vec::new(),
            mends: BTreeMap::new(),
            number: 0,
            ownership_backup: None,
            store_backup: None,
            partitions,
            scenario,
        };
        for (kind, count) in nemesis.scenario.agents.clone() {
            let uids: Vec<_> = (0..count).map(|_| nemesis.new_uid()).collect();
            nemesis.start_agent(kind, &uids);
        }
        nemesis
    }

    /// A uid in one of the chosen partitions.
    fn new_uid(&mut self) -> Uuid {
        loop {
            let bits = u128::from(self.rng.next()) << 64 | u128::from(self.rng.next());
            let uid = Uuid::from_u128(bits);
            let key = AgentKey { tenant: self.world.tenant.clone(), uid: InstanceUid(uid) };
            if self.partitions.contains(&Partition::of(&key)) {
                return uid;
            }
        }
    }

    fn start_agent(&mut self, kind: Kind, uids: &[Uuid]) {
        let number = self.agents.len() as u64 + 1;
        self.agents.push(Agent::start(&self.world, &self.doors, number, kind, uids));
    }

    /// Breaks things for a time, then mends all of it and waits. Returns how long it took until all was at
    /// rest; nothing if it did not come to that.
    pub(crate) async fn run(mut self) -> anyhow::Result<Option<Duration>> {
        let end = Instant::now() + self.scenario.chaos;
        self.operator.apply();
        while Instant::now() < end {
            let next = Instant::now() + self.rng.millis(0, self.scenario.pace);
            self.mend_until(next).await;
            if let Some(fault) = self.rng.pick(&self.scenario.faults) {
                self.strike(fault);
            }
            if self.rng.chance(150) {
                self.ownership_backup = Some(Arc::new((*self.world.engines().ownership).clone()));
            }
            if self.rng.chance(100) {
                let stored = self.world.check(|checker| checker.backup());
                self.store_backup = Some((Arc::new((*self.world.engines().store).clone()), stored));
            }
        }
        self.mend_all().await;
        self.rest().await
    }

    async fn mend_until(&mut self, until: Instant) {
        while let Some(entry) = self.mends.first_entry() {
            let (at, _) = *entry.key();
            if at > until {
                break;
            }
            let mend = entry.remove();
            sleep_until(at).await;
            self.mend(mend).await;
        }
        sleep_until(until).await;
    }

    async fn mend(&mut self, mend: Mend) {
        self.world.trace.note("nemesis", format_args!("mends {mend:?}"));
        match mend {
            Mend::ResumeNode(node) => self.nodes[node].hold(false),
            Mend::StartNode(node) => self.nodes[node].start(),
            Mend::ResumeAgent(agent) => self.agents[agent].hold(false),
            Mend::RestartAgent(agent, forgets) => {
                if !self.agents[agent].is_alive {
                    self.agents[agent].restart(forgets);
                }
            }
            Mend::Engine(engine) => self.world.weather.set_away(None, engine, None),
            Mend::Cut(name, engine) => self.world.weather.set_away(Some(&name), engine, None),
            Mend::Odds => self.world.weather.set_odds(Odds::default()),
            Mend::Resync => self.resync().await,
        }
    }

    fn mend_later(&mut self, from: u64, to: u64, mend: Mend) {
        self.number += 1;
        let at = Instant::now() + self.rng.millis(from, to);
        self.mends.insert((at, self.number), mend);
    }

    /// Everything that was broken is mended, and nothing happens any more.
    async fn mend_all(&mut self) {
        self.world.trace.note("nemesis", format_args!("stops"));
        self.doors.be_calm();
        self.world.weather.clear();
        let mends = std::mem::take(&mut self.mends);
        if mends.values().any(|mend| matches!(mend, Mend::Resync)) {
            self.resync().await;
        }
        for node in &mut self.nodes {
            node.hold(false);
            if !node.is_running() {
                node.start();
            }
        }
        for agent in &self.agents {
            agent.hold(false);
        }
    }

    /// Waits until all is at rest, and stays so for a while.
    async fn rest(mut self) -> anyhow::Result<Option<Duration>> {
        let began = Instant::now();
        let mut rested: Option<Instant> = None;
        // Who was told to stop is not started by anybody else.
        sleep(Duration::from_secs(40)).await;
        for node in &mut self.nodes {
            if node.is_stopping() {
                node.start();
            }
        }
        loop {
            sleep(LOOK_EVERY).await;
            let views: Vec<_> = self.agents.iter().flat_map(Agent::views).collect();
            self.world.trace.count(format!("checks {}", invariant::SETTLES));
            let Settled { not_yet } = settled(&self.world, &views).await?;
            if not_yet.is_empty() {
                let since = *rested.get_or_insert_with(Instant::now);
                if since.elapsed() >= REST {
                    return Ok(Some(since - began));
                }
            } else {
                rested = None;
                if began.elapsed() > BOUND {
                    self.world.violate(invariant::SETTLES, not_yet.join("; "));
                    return Ok(None);
                }
            }
        }
    }

    fn some_node(&mut self, of: impl Fn(&Node) -> bool) -> Option<usize> {
        let nodes: Vec<_> = (0..self.nodes.len()).filter(|node| of(&self.nodes[*node])).collect();
        self.rng.pick(&nodes)
    }

    fn some_agent(&mut self, alive: bool) -> Option<usize> {
        let agents: Vec<_> =
            (0..self.agents.len()).filter(|agent| self.agents[*agent].is_alive == alive).collect();
        self.rng.pick(&agents)
    }

    fn some_break(&mut self) -> Break {
        if self.rng.chance(400) { Break::Silence } else { Break::Reset }
    }

    fn strike(&mut self, fault: Fault) {
        self.world.trace.note("nemesis", format_args!("strikes {fault:?}"));
        self.world.trace.count(format!("fault {fault:?}"));
        match fault {
            Fault::KillNode => {
                if let Some(node) = self.some_node(|node| node.is_running()) {
                    self.told(node);
                    self.nodes[node].kill();
                    self.mend_later(0, 25_000, Mend::StartNode(node));
                }
            }
            Fault::HoldNode => {
                if let Some(node) = self.some_node(|node| node.is_running() && !node.is_held()) {
                    self.told(node);
                    self.nodes[node].hold(true);
                    self.mend_later(200, 60_000, Mend::ResumeNode(node));
                }
            }
            Fault::RestartNode => {
                if let Some(node) = self.some_node(|node| node.is_running() && !node.is_held()) {
                    self.told(node);
                    self.nodes[node].stop();
                    self.mend_later(0, 40_000, Mend::StartNode(node));
                }
            }
            Fault::CutAgent | Fault::KillAgent | Fault::StopAgent | Fault::HoldAgent | Fault::CloneAgent => {
                self.strike_agent(fault);
            }
            Fault::EngineAway => {
                if let Some(engine) = self.rng.pick(&Engine::ALL) {
                    let outage = self.some_outage();
                    self.world.trace.note("nemesis", format_args!("takes {} away", engine.name()));
                    self.world.weather.set_away(None, engine, Some(outage));
                    self.mend_later(500, 30_000, Mend::Engine(engine));
                }
            }
            Fault::CutOff => {
                if let (Some(node), Some(engine)) =
                    (self.some_node(|node| node.is_running()), self.rng.pick(&Engine::ALL))
                {
                    let outage = self.some_outage();
                    let name = self.nodes[node].name.clone();
                    self.world.trace.note("nemesis", format_args!("cuts {name} off from {}", engine.name()));
                    self.world.weather.set_away(Some(&name), engine, Some(outage));
                    self.mend_later(500, 40_000, Mend::Cut(name, engine));
                }
            }
            Fault::Rough => {
                let mut often = |most| if self.rng.chance(600) { self.rng.below(most) } else { 0 };
                let odds = Odds {
                    slow: often(100),
                    lost: often(60),
                    unanswered: often(60),
                    message_lost: often(300),
                    message_doubled: often(300),
                    message_late: often(300),
                };
                self.world.weather.set_odds(odds);
                self.mend_later(2000, 40_000, Mend::Odds);
            }
            Fault::LoseOwnership => self.world.lock_engines().ownership = Arc::default(),
            Fault::OldOwnership => {
                if let Some(backup) = &self.ownership_backup {
                    self.world.lock_engines().ownership = Arc::new((**backup).clone());
                }
            }
            Fault::LoseLog => self.lose_log(),
            Fault::LoseValues => self.lose_values(),
            Fault::OldStore => self.restore_store(),
            Fault::ChangeIntent => self.operator.change(&mut self.rng),
            Fault::Label => {
                if let Some(agent) = self.some_agent(true) {
                    let team = self.rng.pick(&[Some("blue"), Some("red"), Some("green"), None]).flatten();
                    for uid in self.agents[agent].uids() {
                        self.operator.label(uid, team);
                    }
                }
            }
            Fault::Crash => {
                for node in 0..self.nodes.len() {
                    self.nodes[node].kill();
                }
                self.lose_log();
                self.lose_values();
                self.world.lock_engines().ownership = Arc::default();
                for node in 0..self.nodes.len() {
                    self.mend_later(0, 3000, Mend::StartNode(node));
                }
            }
        }
    }

    fn told(&self, node: usize) {
        self.world.trace.note("nemesis", format_args!("means {}", self.nodes[node].name));
    }

    fn some_outage(&mut self) -> Outage {
        if self.rng.chance(500) { Outage::Refuses } else { Outage::Hangs }
    }

    fn strike_agent(&mut self, fault: Fault) {
        let how = self.some_break();
        let Some(agent) = self.some_agent(true) else { return };
        self.world.trace.note("nemesis", format_args!("means {} {how:?}", self.agents[agent].name));
        match fault {
            Fault::CutAgent => self.agents[agent].cut(how),
            Fault::KillAgent | Fault::StopAgent => {
                if fault == Fault::KillAgent {
                    let how = self.rng.chance(700).then_some(how);
                    self.agents[agent].kill(how);
                } else {
                    self.agents[agent].stop();
                }
                if self.rng.chance(800) {
                    let forgets = self.rng.chance(300);
                    self.mend_later(6000, 40_000, Mend::RestartAgent(agent, forgets));
                }
            }
            Fault::HoldAgent => {
                self.agents[agent].hold(true);
                self.mend_later(500, 120_000, Mend::ResumeAgent(agent));
            }
            _ => {
                let uids = self.agents[agent].uids();
                if self.agents.len() < MOST_AGENTS
                    && let Some(kind) = self.agents[agent].kind()
                {
                    self.start_agent(kind, &uids);
                }
            }
        }
    }

    fn lose_log(&self) {
        {
            let mut engines = self.world.lock_engines();
            let life = engines.log.0 + 1;
            engines.log = (life, new_log(life));
        }
        self.world.check(|checker| checker.log_replaced());
        self.world.weather.stir();
    }

    fn lose_values(&self) {
        let mut engines = self.world.lock_engines();
        engines.leases = Arc::new(MemoryKeyValue::new(Some(LEASE_TTL)));
        engines.values = Arc::default();
    }

    /// Puts the store in front of what it has forgotten, as `muster resync` does.
    async fn resync(&mut self) {
        let store = self.world.engines().store;
        // The store of one process does not fail.
        if store.resync(&self.world.cell).await.is_ok() {
            self.world.check(|checker| checker.resynced());
            // One of before does not know of it.
            self.store_backup = None;
        }
    }

    /// Controls are stopped, the store is restored from its backup, controls are started. The operator runs
    /// `muster resync`, early or late.
    fn restore_store(&mut self) {
        let Some((store, stored)) = self.store_backup.take() else { return };
        for node in 0..self.nodes.len() {
            if self.nodes[node].role == Role::Control {
                self.nodes[node].kill();
                self.mend_later(0, 3000, Mend::StartNode(node));
            }
        }
        self.world.lock_engines().store = store;
        self.world.check(|checker| checker.restore(stored));
        self.mend_later(0, 30_000, Mend::Resync);
    }
}
