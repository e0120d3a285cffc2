//! Changes that reach agents in stages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_fleet::{Fleet, FleetOptions, Kind, Mix, Observer, Rejects};
use muster_testkit::{Muster, eventually};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{SOON, apply, server};

/// Longest wait for a rollout of stages that are seconds long.
const ROLLED: Duration = Duration::from_secs(40);

/// A template of which a version says a text.
fn template(version: &str, says: &str) -> String {
    format!(
        "apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {{name: app, version: {version}}}
spec:
  config: {{says: {says}}}
"
    )
}

/// Gives the template to every agent, by the strategy `canary`.
fn staged() -> String {
    "apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {name: app}
spec:
  template: {name: app}
  selector: {}
  rollout: {strategy: canary}
"
    .to_owned()
}

/// The same for every agent at once.
fn at_once() -> String {
    staged().replace("  rollout: {strategy: canary}\n", "")
}

/// The strategy `canary`: a quarter, then all.
fn strategy(soak: &str, more: &str) -> String {
    format!(
        "apiVersion: opamp.io/v1
kind: RolloutStrategy
metadata: {{name: canary}}
spec:
  stages:
    - name: canary
      percentage: 25
      duration: {soak}
      success_criteria: {{error_rate_threshold: 0.1, health_check_pass_rate: 0.9}}
    - name: all
      percentage: 100
      duration: {soak}
      success_criteria: {{error_rate_threshold: 0.1, health_check_pass_rate: 0.9}}
{more}"
    )
}

/// What each agent was offered, in order: what the file says.
#[derive(Clone, Default)]
struct Offered(Arc<Mutex<Vec<(usize, String)>>>);

impl Offered {
    fn observer(&self) -> Observer {
        let offered = self.clone();
        Observer::new(move |index, files| {
            let text = files.get("app").map(|file| String::from_utf8_lossy(&file.body).into_owned());
            let text = text.unwrap_or_default().trim().trim_start_matches("says: ").to_owned();
            offered.0.lock().unwrap().push((index, text));
        })
    }

    /// The agents that were offered this.
    fn agents(&self, says: &str) -> BTreeSet<usize> {
        let offered = self.0.lock().unwrap();
        offered.iter().filter(|(_, text)| text == says).map(|(index, _)| *index).collect()
    }

    fn count(&self, says: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|(_, text)| text == says).count()
    }
}

/// A fleet of which three in ten are Fluent Bits, which refuse what says `bad`.
async fn fleet(muster: &Muster, count: usize, offered: &Offered) -> Fleet {
    let refuses = |kind: Kind, files: &muster_fleet::ConfigFiles| {
        let is_bad = files.values().any(|file| file.body.windows(3).any(|window| window == b"bad"));
        (kind == Kind::FluentBit && is_bad).then(|| "it is bad".to_owned())
    };
    let options = FleetOptions {
        count,
        mix: Mix { collector: 0.7, fluent_bit: 0.3, custom: 0.0, unhealthy: 0.0, rejecting: 0.0 },
        apply_delay: Duration::ZERO..=Duration::from_millis(50),
        rejects: Rejects::when(refuses),
        observer: offered.observer(),
        ..FleetOptions::new(muster.opamp_url())
    };
    let fleet = Fleet::start(options, CancellationToken::new()).unwrap();
    fleet.wait(|stats| stats.connected == count, SOON).await.unwrap();
    fleet
}

/// The latest rollout.
async fn rollout(muster: &Muster) -> Value {
    muster.api().get("/api/v1/rollouts?limit=1").await.unwrap()["items"][0].clone()
}

/// Waits until the latest rollout is in a state.
async fn rollout_is(muster: &Muster, state: &str) -> Value {
    eventually(ROLLED, async || {
        let view = rollout(muster).await;
        if view["state"] == state { Ok(view) } else { Err(format!("not {state}: {view:#}")) }
    })
    .await
}

/// Waits until every agent of a fleet runs one config.
async fn all_run_one(fleet: &Fleet, count: usize) {
    eventually(SOON, async || {
        let stats = fleet.stats();
        let runs: BTreeMap<_, _> = stats.running.iter().filter(|(_, count)| **count > 0).collect();
        if runs.len() == 1 && runs.values().all(|running| **running == count) {
            Ok(())
        } else {
            Err(format!("{runs:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn a_good_change_goes_through_its_stages() {
    let muster = server().await;
    let offered = Offered::default();
    let fleet = fleet(&muster, 40, &offered).await;
    apply(&muster, &[&template("v1", "one"), &at_once()]).await;
    all_run_one(&fleet, 40).await;
    let applied = apply(&muster, &[&strategy("1s", ""), &staged()]).await;
    assert_eq!(applied["rollouts"], json!([]), "the agents have what it gives: {applied}");

    let applied = apply(&muster, &[&template("v2", "two")]).await;
    assert_eq!(applied["rollouts"].as_array().unwrap().len(), 1, "{applied}");
    eventually(SOON, async || match rollout(&muster).await {
        view if view["state"] == "soaking" && view["stage"] == 1 => Ok(()),
        view => Err(format!("{view:#}")),
    })
    .await;
    assert_eq!(offered.agents("two").len(), 10, "a quarter of 40 agents");
    let done = rollout_is(&muster, "completed").await;
    assert_eq!(offered.agents("two").len(), 40);
    assert_eq!(offered.count("two"), 40, "nobody is offered it twice");
    assert_eq!(done["counts"], json!({"healthy": 40}), "{done:#}");
    let told: Vec<_> =
        done["history"].as_array().unwrap().iter().map(|step| step["state"].as_str()).collect();
    let told: Vec<_> = told.into_iter().flatten().collect();
    assert_eq!(told, ["running", "running", "soaking", "running", "running", "soaking", "completed"]);
    let shown = muster.cli(&["rollouts", "get", "app"]).await;
    assert!(shown.stdout.contains("stage \"canary\" passed"), "{}", shown.stdout);
    fleet.stop().await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_change_that_agents_refuse_halts_in_the_first_stage_and_is_rolled_back() {
    let muster = server().await;
    let offered = Offered::default();
    let fleet = fleet(&muster, 40, &offered).await;
    apply(&muster, &[&template("v1", "one"), &at_once()]).await;
    all_run_one(&fleet, 40).await;
    apply(&muster, &[&strategy("5m", ""), &staged()]).await;
    apply(&muster, &[&template("v2", "bad")]).await;

    let rolled_back = rollout_is(&muster, "rolled_back").await;
    assert!(rolled_back["failure"].as_str().unwrap().contains("could not apply it"), "{rolled_back:#}");
    assert_eq!((&rolled_back["stage"], &rolled_back["exposed"]), (&json!(1), &json!(10)));
    let exposed = offered.agents("bad");
    assert!(!exposed.is_empty() && exposed.len() <= 10, "{exposed:?}");
    let sent = offered.count("bad");
    all_run_one(&fleet, 40).await;
    assert_eq!(rolled_back["counts"]["restored"], 10, "{rolled_back:#}");
    // Late joiners get what was there before.
    let more = Offered::default();
    let late = self::fleet(&muster, 5, &more).await;
    all_run_one(&late, 5).await;
    assert_eq!(
        (more.count("bad"), offered.count("bad")),
        (0, sent),
        "nothing of it is sent after it was halted"
    );
    let watched = muster.cli(&["rollouts", "watch", "app"]).await;
    assert!(watched.code != Some(0) && watched.stderr.contains("rolled back"), "{}", watched.stderr);
    late.stop().await;
    fleet.stop().await;
    muster.assert_no_errors();
}
