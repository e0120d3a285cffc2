//! A small cluster of real processes loses a gateway, then a control, under load: everything converges,
//! nothing answered is lost, and nobody gets a config twice.

#![expect(clippy::expect_used, reason = "a test ends with its panics")]

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use muster_cluster::ClusterOptions;
use muster_cluster::faults::{CASES, Rig};
use muster_testkit::engines::{Engine, engines_or_skip};

const AGENTS: usize = 100;
const REPORTERS: usize = 20;
const BOUND: Duration = Duration::from_secs(40);

/// The program: `MUSTER_BIN`, or else built as a developer would. Cargo gives a test only the programs of
/// its own package.
fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("MUSTER_BIN") {
        return program.into();
    }
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "-p", "muster", "--message-format=json"]);
    build.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = build.output().expect("cargo runs");
    assert!(output.status.success(), "cargo build -p muster failed");
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == "muster";
        message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
    };
    messages.lines().find_map(executable).expect("cargo says where the program is")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_and_a_control_are_lost_and_nothing_with_them() {
    if !engines_or_skip(&[Engine::Nats, Engine::Redis, Engine::Postgres]) {
        return;
    }
    let options = ClusterOptions {
        gateways: 2,
        controls: 2,
        apis: 1,
        nats: 1,
        fsync: false,
        ..ClusterOptions::new(program())
    };
    let mut rig = Rig::start(&options, AGENTS, REPORTERS).await.expect("the cluster starts");
    for name in ["gateway-kill9", "control-kill9"] {
        let case = CASES.iter().find(|case| case.name == name).expect("the case is there");
        let report = rig.run(&muster_cluster::faults::Case { bound: BOUND, ..*case }).await;
        println!("{name}: settled {:?}, {}", report.settled, report.notes);
        assert_eq!(report.problems, [""; 0], "{name}: {}", report.notes);
    }
    rig.stop().await;
}
