//! What a change of the configuration would do to agents: how many change, what is proven wrong for them,
//! and what one of them would get.
//!
//! Only agents that the changed assignments select are looked at, so the work grows with them and not with
//! the fleet.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use muster_domain::capabilities::AgentCapabilities;
use muster_domain::desired::{Desired, DesiredConfig, Planner, matches};
use muster_domain::ids::{Digest, InstanceUid, Tenant};
use muster_domain::intent::{Clash, Intent, IntentChange};
use muster_domain::preflight::{self, Checked, RenderedFile, Severity};
use muster_domain::report::ComponentsKey;
use muster_domain::selector::{AgentSelector, Known};
use muster_ports::store::StoredAgent;
use serde::Serialize;
use utoipa::ToSchema;

use crate::problem::ApiError;
use crate::{Shared, diff};

/// Agents that are read at once.
const PAGE: usize = 1000;
/// Agents that are named, of all that change, and for each thing that is wrong.
const FIRST: usize = 10;
const NAMED: usize = 5;
/// Kinds of configs that are checked; agents beyond are warned of.
const MAX_SHAPES: usize = 200;
/// Agents whose attributes are looked at to say what a selector may have meant.
const KNOWN: usize = 1000;

/// What a change does to agents.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Impact {
    /// Agents that the changed assignments select, before or after.
    pub(crate) selected: usize,
    /// Agents that should run something else.
    pub(crate) changed: usize,
    /// Agents that are held back then and were not before.
    pub(crate) held: usize,
    /// Of those that change, agents that accept no remote config.
    pub(crate) not_accepting: usize,
    /// The first of those that change.
    pub(crate) first: Vec<String>,
    /// What changes for one of them.
    pub(crate) sample: Option<Sample>,
    /// What is proven wrong. With any, nothing is applied unless that is forced.
    pub(crate) errors: Vec<String>,
    /// What may not be meant so, or cannot be known.
    pub(crate) warnings: Vec<String>,
}

/// What changes for one agent.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Sample {
    /// The agent.
    pub(crate) instance_uid: String,
    /// The unified difference of its rendered files.
    pub(crate) diff: String,
}

/// Looks at what a change would do.
pub(crate) async fn of(
    shared: &Shared,
    tenant: &Tenant,
    before: &Intent,
    change: &IntentChange,
) -> Result<Impact, ApiError> {
    let mut after = before.with(change);
    let names = affected(before, &after, change);
    // What agents get in the end, whatever stages it takes until then.
    after.rollouts.retain(|name, _| !names.contains(name));
    let changed: BTreeSet<String> = change.assignments.iter().map(|found| found.name.clone()).collect();
    let mut scan = Scan {
        old: Planner::new(before),
        new: Planner::new(&after),
        selected: changed
            .iter()
            .filter_map(|name| after.assignments.get(name))
            .filter(|assignment| assignment.retired_at.is_none())
            .map(|assignment| (assignment.name.clone(), (assignment.selector.clone(), 0)))
            .collect(),
        clashes: after.clashes(&names).into_iter().map(|clash| Meeting::new(clash, &after)).collect(),
        impact: Impact::default(),
        shapes: HashMap::new(),
        unchecked: 0,
    };
    let mut seen = HashSet::new();
    for selector in selectors(before, &after, &names) {
        let mut from: Option<InstanceUid> = None;
        loop {
            let page = shared.engines.fleet.page(tenant, &selector, from, PAGE).await?;
            from = page.last().map(|stored| stored.agent.key.uid);
            let is_last = page.len() < PAGE;
            for stored in page {
                if seen.insert(stored.agent.key.uid) {
                    scan.look(&stored);
                }
            }
            if is_last {
                break;
            }
            // Other requests have their turn.
            tokio::task::yield_now().await;
        }
    }
    scan.finish(shared, tenant, &names).await
}

/// The assignments that give something else, or to others, after the change.
fn affected(before: &Intent, after: &Intent, change: &IntentChange) -> BTreeSet<String> {
    let changed = change.assignments.iter().map(|assignment| &assignment.name);
    let follows = |intent: &Intent| {
        let new = |template: &str| change.templates.iter().any(|found| found.name == template);
        let followers =
            intent.assignments.values().filter(|found| found.version.is_none() && new(&found.template));
        followers.map(|found| found.name.clone()).collect::<Vec<_>>()
    };
    changed.chain(&change.removed_assignments).cloned().chain(follows(before)).chain(follows(after)).collect()
}

/// The selectors of these assignments, before and after; one for everybody if one is.
fn selectors(before: &Intent, after: &Intent, names: &BTreeSet<String>) -> Vec<AgentSelector> {
    let of = |intent: &Intent| -> Vec<AgentSelector> {
        names.iter().filter_map(|name| Some(intent.assignments.get(name)?.selector.clone())).collect()
    };
    let mut all: Vec<AgentSelector> = Vec::new();
    for selector in of(before).into_iter().chain(of(after)) {
        if selector == AgentSelector::default() {
            return vec![selector];
        }
        if !all.contains(&selector) {
            all.push(selector);
        }
    }
    all
}

/// A clash, and who meets it.
struct Meeting {
    clash: Clash,
    selectors: Option<(AgentSelector, AgentSelector)>,
    agents: Agents,
}

impl Meeting {
    fn new(clash: Clash, intent: &Intent) -> Self {
        let selector = |name: &str| Some(intent.assignments.get(name)?.selector.clone());
        let selectors = selector(&clash.changed).zip(selector(&clash.other));
        Self { clash, selectors, agents: Agents::default() }
    }
}

/// Agents that something is about: how many, and the first of them.
#[derive(Default)]
struct Agents {
    count: usize,
    first: Vec<InstanceUid>,
}

impl Agents {
    fn add(&mut self, uid: InstanceUid) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(uid);
        }
    }

    fn extend(&mut self, other: &Self) {
        self.count += other.count;
        self.first.extend(other.first.iter().take(NAMED.saturating_sub(self.first.len())));
    }
}

impl std::fmt::Display for Agents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.first.iter().map(ToString::to_string).collect();
        let more = if self.count > names.len() { ", ..." } else { "" };
        let noun = if self.count == 1 { "agent" } else { "agents" };
        write!(f, "{} {noun} ({}{more})", self.count, names.join(", "))
    }
}

/// Which compiled bodies make a config: configs of one shape differ in values only.
type Shape = Vec<(String, Digest)>;

/// The configs of one shape.
struct Configs {
    checked: Checked,
    /// Agents by the list of components that they report.
    agents: HashMap<Option<ComponentsKey>, Agents>,
}

struct Scan {
    old: Planner,
    new: Planner,
    /// Agents that each changed assignment selects.
    selected: BTreeMap<String, (AgentSelector, usize)>,
    clashes: Vec<Meeting>,
    impact: Impact,
    shapes: HashMap<Shape, Configs>,
    unchecked: usize,
}

impl Scan {
    fn look(&mut self, stored: &StoredAgent) {
        let StoredAgent { agent, labels } = stored;
        let uid = agent.key.uid;
        self.impact.selected += 1;
        for (selector, count) in self.selected.values_mut() {
            *count += usize::from(matches(selector, agent, labels));
        }
        for meeting in &mut self.clashes {
            let both = |(one, other): &(AgentSelector, AgentSelector)| {
                matches(one, agent, labels) && matches(other, agent, labels)
            };
            if meeting.selectors.as_ref().is_some_and(both) {
                meeting.agents.add(uid);
            }
        }
        let (old, new) = (self.old.desired(agent, labels), self.new.desired(agent, labels));
        match (&old, &new) {
            (Desired::Config(old), Desired::Config(new)) if old.hash == new.hash => return,
            (Desired::Held { .. } | Desired::Nothing, Desired::Nothing) => return,
            (Desired::Held { .. }, Desired::Held { .. }) => return,
            (_, Desired::Held { reason }) => {
                self.impact.held += 1;
                if self.impact.held == 1 {
                    self.impact.warnings.push(format!("agent {uid} would be held back: {reason}"));
                }
                return;
            }
            _ => {}
        }
        self.impact.changed += 1;
        if !agent.state.capabilities.has(AgentCapabilities::ACCEPTS_REMOTE_CONFIG) {
            self.impact.not_accepting += 1;
        }
        if self.impact.first.len() < FIRST {
            self.impact.first.push(uid.to_string());
        }
        // Whom no assignment gives anything any more keeps what it runs.
        let Desired::Config(config) = new else { return };
        if self.impact.sample.is_none() {
            let old = if let Desired::Config(old) = &old { files(&self.old, old) } else { Vec::new() };
            let diff = diff::files(&named(&old), &named(&files(&self.new, &config)));
            self.impact.sample = Some(Sample { instance_uid: uid.to_string(), diff });
        }
        let shape: Shape = config.files.iter().map(|file| (file.name.clone(), file.digest)).collect();
        if !self.shapes.contains_key(&shape) && self.shapes.len() >= MAX_SHAPES {
            self.unchecked += 1;
            return;
        }
        let planner = &self.new;
        let configs = self.shapes.entry(shape).or_insert_with(|| Configs {
            checked: preflight::check(&files(planner, &config)),
            agents: HashMap::new(),
        });
        configs.agents.entry(agent.state.components_key(&agent.key.tenant)).or_default().add(uid);
    }

    /// Puts together what was seen.
    async fn finish(
        mut self,
        shared: &Shared,
        tenant: &Tenant,
        names: &BTreeSet<String>,
    ) -> Result<Impact, ApiError> {
        self.tell_clashes();
        self.tell_configs(shared).await?;
        // What no agent gets yet is checked as far as it can be without one.
        if self.shapes.is_empty() {
            for name in names {
                if let Some(found) = self.new.files_without_agent(name) {
                    self.tell_findings(&preflight::check(&found), None);
                }
            }
        }
        if self.unchecked > 0 {
            let what = format!(
                "{} agents would get configs of too many kinds: those are not checked",
                self.unchecked
            );
            self.impact.warnings.push(what);
        }
        let idle: Vec<_> = self.selected.iter().filter(|(_, (_, count))| *count == 0).collect();
        if !idle.is_empty() {
            let some = shared.engines.fleet.page(tenant, &AgentSelector::default(), None, KNOWN).await?;
            let known = Known::of(some.iter().map(|stored| (&stored.agent, &stored.labels)));
            for (name, (selector, _)) in idle {
                let what = format!("ConfigAssignment {name:?} selects no agent: {}", known.nearest(selector));
                self.impact.warnings.push(what);
            }
        }
        Ok(self.impact)
    }

    fn tell_clashes(&mut self) {
        for Meeting { clash, agents, .. } in &self.clashes {
            let Clash { changed, other, file, priority, certain } = clash;
            let what = format!(
                "ConfigAssignment {changed:?} and ConfigAssignment {other:?} both give file {file:?} at priority {priority}"
            );
            let fix = "give one of them another priority or file";
            if agents.count > 0 {
                self.impact.errors.push(format!("{what} to {agents}: {fix}"));
            } else if *certain {
                self.impact.errors.push(format!("{what}, and one selects whom the other does: {fix}"));
            } else {
                let what = format!(
                    "{what}: no agent is selected by both now; if one is, the first by name gives it"
                );
                self.impact.warnings.push(what);
            }
        }
    }

    async fn tell_configs(&mut self, shared: &Shared) -> Result<(), ApiError> {
        let mut lists: HashMap<ComponentsKey, Option<Arc<_>>> = HashMap::new();
        let mut lacking: BTreeMap<String, Agents> = BTreeMap::new();
        let mut unknown = Agents::default();
        for configs in std::mem::take(&mut self.shapes).into_values() {
            let mut all = Agents::default();
            configs.agents.values().for_each(|agents| all.extend(agents));
            self.tell_findings(&configs.checked, Some(&all));
            if configs.checked.needs.is_empty() {
                continue;
            }
            for (key, agents) in &configs.agents {
                let list = match key {
                    None => None,
                    Some(key) => match lists.get(key) {
                        Some(list) => list.clone(),
                        None => {
                            let list = shared.engines.components.components(key).await?.map(Arc::new);
                            lists.insert(key.clone(), list.clone());
                            list
                        }
                    },
                };
                match list {
                    None => unknown.extend(agents),
                    Some(list) => {
                        for need in preflight::missing(&configs.checked.needs, &list) {
                            lacking.entry(need.to_string()).or_default().extend(agents);
                        }
                    }
                }
            }
        }
        for (need, agents) in lacking {
            self.impact.errors.push(format!("{agents} would fail: without {need}, as they report"));
        }
        if unknown.count > 0 {
            let what =
                format!("{unknown} have not reported their components: whether they have all is not known");
            self.impact.warnings.push(what);
        }
        Ok(())
    }

    fn tell_findings(&mut self, checked: &Checked, agents: Option<&Agents>) {
        for finding in &checked.findings {
            let whom = agents.map(|agents| format!("{agents}: ")).unwrap_or_default();
            let told = match finding.severity {
                Severity::Error => &mut self.impact.errors,
                Severity::Warning => &mut self.impact.warnings,
            };
            told.push(format!("{whom}{finding}"));
        }
    }
}

/// The rendered files of a config.
fn files(planner: &Planner, config: &DesiredConfig) -> Vec<RenderedFile> {
    let file = |(name, content_type, text)| RenderedFile { name, content_type, text };
    planner.rendered(config).into_iter().map(file).collect()
}

fn named(files: &[RenderedFile]) -> Vec<diff::File> {
    files.iter().map(|file| (file.name.clone(), file.text.clone())).collect()
}
