//! A small cluster of real processes loses a gateway, then a control, then its database is set back, under load:
//! everything converges, nothing answered is lost, and nobody gets a config twice or an older one.

#![expect(clippy::expect_used, reason = "a test ends with its panics")]

mod program;

use std::time::Duration;

use muster_cluster::ClusterOptions;
use muster_cluster::faults::{CASES, Rig};
use muster_testkit::engines::{Engine, engines_or_skip};

const AGENTS: usize = 100;
const REPORTERS: usize = 20;
const BOUND: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_a_control_and_a_part_of_the_database_are_lost_and_nothing_with_them() {
    if !engines_or_skip(&[Engine::Nats, Engine::Redis, Engine::Postgres]) {
        return;
    }
    let options = ClusterOptions {
        gateways: 2,
        controls: 2,
        apis: 1,
        nats: 1,
        fsync: false,
        ..ClusterOptions::new(program::muster())
    };
    let mut rig = Rig::start(&options, AGENTS, REPORTERS).await.expect("the cluster starts");
    for name in ["gateway-kill9", "control-kill9", "reports-twice", "postgres-backup"] {
        let case = CASES.iter().find(|case| case.name == name).expect("the case is there");
        let report = rig.run(&muster_cluster::faults::Case { bound: BOUND, ..*case }).await;
        println!("{name}: settled {:?}, {}", report.settled, report.notes);
        assert_eq!(report.problems, [""; 0], "{name}: {}", report.notes);
    }
    rig.stop().await;
}
