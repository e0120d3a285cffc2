//! Whoever changes intent: applies manifests as the API does, and wakes control.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use muster_domain::ids::{AgentKey, InstanceUid};
use muster_domain::intent::plan;
use muster_domain::manifest;
use muster_ports::bus::{Bus, Subject};
use muster_ports::store::{IntentError, IntentStore};
use tokio::time::sleep;
use uuid::Uuid;

use crate::engines::Wire;
use crate::process::Process;
use crate::rng::Rng;
use crate::world::World;

/// Attempts at one change.
const ATTEMPTS: usize = 4;

/// What is wanted, as numbers that manifests are made of.
#[derive(Debug, Clone, PartialEq)]
struct Wanted {
    /// Value that everybody gets.
    all: u64,
    /// Value that one team gets instead.
    team: u64,
    which: &'static str,
    /// Changes the template's text.
    text: u64,
}

/// An operator.
pub(crate) struct Operator {
    world: Arc<World>,
    process: Arc<Process>,
    wire: Arc<Wire>,
    wanted: Wanted,
    before: Vec<Wanted>,
}

const TEAMS: [&str; 3] = ["blue", "red", "green"];

impl Operator {
    /// An operator who has not done anything yet.
    pub(crate) fn new(world: &Arc<World>) -> Self {
        let process = Process::new(world, "operator");
        let wire = Wire::new(world, &process, Rng::new(world.seed, "operator"), 0);
        let wanted = Wanted { all: 1, team: 2, which: TEAMS[0], text: 0 };
        Self { world: Arc::clone(world), process, wire, wanted, before: Vec::new() }
    }

    /// Declares what is wanted.
    pub(crate) fn apply(&self) {
        let (world, wire, text) = (Arc::clone(&self.world), Arc::clone(&self.wire), self.wanted.manifests());
        self.process.spawn(async move {
            for _ in 0..ATTEMPTS {
                match apply(&world, &wire, &text).await {
                    Ok(()) => return,
                    Err(error) => world.trace.note("operator", format_args!("{error}")),
                }
                sleep(Duration::from_millis(500)).await;
            }
        });
    }

    /// Wants something else, at times what was wanted before.
    pub(crate) fn change(&mut self, rng: &mut Rng) {
        let mut wanted = self.wanted.clone();
        match rng.below(6) {
            0 | 1 => wanted.all = rng.below(40),
            2 => wanted.team = rng.below(40),
            3 => wanted.which = TEAMS[rng.below(3) as usize],
            4 => wanted.text += 1,
            _ => {
                if let Some(before) = rng.pick(&self.before) {
                    wanted = before;
                }
            }
        }
        self.before.push(std::mem::replace(&mut self.wanted, wanted));
        self.apply();
    }

    /// Labels an agent, or takes its label away.
    pub(crate) fn label(&self, uid: Uuid, team: Option<&'static str>) {
        let (world, wire) = (Arc::clone(&self.world), Arc::clone(&self.wire));
        self.process.spawn(async move {
            let (store, bus) = wire.operator_engines();
            let key = AgentKey { tenant: world.tenant.clone(), uid: InstanceUid(uid) };
            let changes = [("team".to_owned(), team.map(str::to_owned))].into();
            if let Err(error) = store.label(&key, &changes, world.now(), None).await {
                world.trace.note("operator", format_args!("{error}"));
            }
            // A lost wake-up costs time only.
            let _ = bus.publish(&Subject::Wake(world.cell.clone()), Bytes::new()).await;
        });
    }
}

async fn apply(world: &World, wire: &Arc<Wire>, text: &str) -> Result<(), String> {
    let (store, bus) = wire.operator_engines();
    let documents = manifest::parse(text).map_err(|errors| format!("{errors:?}"))?;
    let intent = store.intent(&world.tenant).await.map_err(|error| error.to_string())?;
    let random = wire.random();
    let change = plan(&intent, &documents, world.now(), || random.uuid(world.now()))
        .map_err(|errors| format!("{errors:?}"))?;
    match store.change(&world.tenant, &change).await {
        Ok(_) => {}
        Err(error @ (IntentError::Moved | IntentError::Engine(_))) => return Err(error.to_string()),
    }
    // A lost wake-up costs time only.
    let _ = bus.publish(&Subject::Wake(world.cell.clone()), Bytes::new()).await;
    Ok(())
}

impl Wanted {
    fn manifests(&self) -> String {
        let Self { all, team, which, text } = self;
        let host = r#"'{{.agent.attributes["host.name"]}}'"#;
        format!(
            "
apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {{name: base}}
spec:
  variables: [{{name: v, type: int, required: true}}]
  config: {{v: '{{{{.v}}}}', host: {host}, text: {text}}}
---
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {{name: all}}
spec: {{template: {{name: base}}, values: {{v: {all}}}, selector: {{}}}}
---
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {{name: team}}
spec:
  template: {{name: base}}
  values: {{v: {team}}}
  priority: 10
  selector: {{matchLabels: {{team: {which}}}}}
"
        )
    }
}
