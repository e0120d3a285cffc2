//! Strategies and their manifests.

use std::time::Duration;

use super::super::strategy::{OnFailure, Promotion, Share, Size, Strategy, Window, parse_duration};
use super::{at, share};
use crate::manifest::{Manifest, parse};

const GUIDE: &str = include_str!("../../manifest/fixtures/guide-strategy.yaml");

fn strategy(text: &str) -> Strategy {
    match parse(text).unwrap().remove(0).manifest {
        Manifest::RolloutStrategy(manifest) => manifest.strategy,
        other => panic!("not a strategy: {other:?}"),
    }
}

/// A strategy with these lines of its spec.
fn mk(spec: &str) -> String {
    format!("apiVersion: opamp.io/v1\nkind: RolloutStrategy\nmetadata: {{name: s}}\nspec:\n{spec}\n")
}

fn errors(spec: &str) -> String {
    parse(&mk(spec)).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

const ALL: &str = "    - {name: all, percentage: 100}";

#[test]
fn the_guides_example_loads_unchanged() {
    let strategy = strategy(GUIDE);
    let sizes: Vec<_> = strategy.stages.iter().map(|stage| stage.size.clone()).collect();
    assert_eq!(sizes, [Size::Share(share(0.05)), Size::Share(share(0.2)), Size::Share(Share::ALL)]);
    let soaks: Vec<_> = strategy.stages.iter().map(|stage| stage.soak.as_secs()).collect();
    assert_eq!(soaks, [1800, 3600, 7200]);
    let canary = strategy.stages[0].criteria;
    assert_eq!((canary.error_rate, canary.pass_rate), (Some(share(0.01)), Some(share(0.99))));
    assert_eq!(
        (strategy.on_failure, strategy.notify.clone()),
        (OnFailure::Rollback, vec!["slack".to_owned(), "email".to_owned()])
    );
    let target = strategy.target.unwrap();
    assert_eq!(target.requirements.to_string(), "region=us-east-1,tier=production");
    assert_eq!(target.agent_ids, ["agent-001".to_owned(), "agent-002".to_owned()].into());
}

#[test]
fn everything_else_is_read() {
    let strategy = strategy(&mk("  stages:
    - {name: one, count: 1, duration: 1h30m, promotion: manual, deadline: 2h}
    - name: eu
      region: eu-1
      success_criteria: {comparison_margin: 0.05, min_reports: 7}
    - name: old
      selector: {matchExpressions: [{key: os, operator: NotIn, values: [linux]}]}
    - {name: rest, percentage: 100}
  max_in_flight: 50
  apply_deadline: 90s
  failure_policy: {action: pause}
  windows:
    - {days: [mon, fri], from: \"22:00\", to: \"06:30\"}"));
    let one = &strategy.stages[0];
    assert_eq!((&one.size, one.promotion), (&Size::Count(1), Promotion::Manual));
    assert_eq!((one.soak.as_secs(), one.deadline), (5400, Some(Duration::from_secs(7200))));
    let selectors = strategy.stages.iter().filter_map(|stage| match &stage.size {
        Size::Matching(selector) => Some(selector.requirements.to_string()),
        _ => None,
    });
    assert_eq!(selectors.collect::<Vec<_>>(), ["region=eu-1", "os!=linux"]);
    assert_eq!(strategy.stages[1].criteria.min_reports, 7);
    assert!(strategy.compares());
    assert_eq!((strategy.max_in_flight, strategy.apply_deadline.as_secs()), (Some(50), 90));
    assert_eq!(strategy.on_failure, OnFailure::Pause);
    assert_eq!(strategy.windows, [Window { days: 0b10001, from: 22 * 60, to: 6 * 60 + 30 }]);
}

#[test]
fn a_growing_stage_is_written_out() {
    let grown = strategy(&mk("  stages:
    - {name: grow, percentage: 10, growth: {}}"));
    let sizes: Vec<_> = grown.stages.iter().map(|stage| (stage.name.as_str(), stage.size.clone())).collect();
    let size = |percent: f64| Size::Share(share(percent / 100.0));
    assert_eq!(
        sizes,
        [
            ("grow-1", size(10.0)),
            ("grow-2", size(20.0)),
            ("grow-3", size(40.0)),
            ("grow-4", size(80.0)),
            ("grow-5", size(100.0))
        ]
    );
    let part = strategy(&mk(&format!(
        "  stages:
    - {{name: grow, percentage: 1, growth: {{factor: 3, to: 9}}}}
{ALL}"
    )));
    assert_eq!(part.stages.len(), 4, "1, 3, 9, 100");
}

#[test]
fn what_cannot_work_is_refused_with_field_and_fix() {
    let stage = |more: &str| format!("  stages:\n    - {{name: a, {more}}}\n{ALL}");
    let cases = [
        ("  stages: []".to_owned(), "spec.stages: is empty: add a stage"),
        ("  max_in_flight: 3".to_owned(), "spec.stages: is missing"),
        ("  stages:\n    - {name: a, percentage: 50}".to_owned(), "end with a stage of `percentage: 100`"),
        (
            format!("  stages:\n    - {{name: a, percentage: 20}}\n    - {{name: b, percentage: 5}}\n{ALL}"),
            "stage \"b\" is not larger than \"a\"",
        ),
        (
            format!("  stages:\n    - {{name: a, count: 5}}\n    - {{name: b, count: 5}}\n{ALL}"),
            "each must be larger",
        ),
        (format!("  stages:\n    - {{name: all, percentage: 20}}\n{ALL}"), "two stages are called \"all\""),
        (format!("  stages:\n    - {{name: a, percentage: 100}}\n{ALL}"), "is not larger"),
        (stage("percentage: 0"), "spec.stages[0].percentage: must be a number above 0 and up to 100"),
        (stage("percentage: 101"), "spec.stages[0].percentage: must be a number above 0 and up to 100"),
        (stage("count: 0"), "spec.stages[0].count: must be a whole number, 1 or more"),
        (stage("count: 3, percentage: 5"), "must say which agents by one of percentage, count"),
        (stage("duration: 1h"), "must say which agents by one of"),
        (stage("percentage: 5, duration: 30"), "spec.stages[0].duration: must be a duration such as 30s"),
        (stage("percentage: 5, duration: 100d"), "at most 90d"),
        (
            stage("percentage: 5, duration: 1h, deadline: 30m"),
            "spec.stages[0].deadline: is over after 1800 s",
        ),
        (stage("count: 3, success_criteria: {min_reports: 4}"), "asks for more reports than the 3 agents"),
        (
            stage("count: 3, success_criteria: {error_rate_threshold: 5}"),
            "error_rate_threshold: must be a number from 0 to 1; for 5 % write 0.05",
        ),
        (stage("count: 3, success_criteria: {error_rate_threshold: 1}"), "never fails: every agent may fail"),
        (stage("count: 3, success_criteria: {health_check_pass_rate: -1}"), "must be a number from 0 to 1"),
        (stage("count: 3, success_criteria: {health_chek: 1}"), "there is no such field"),
        (stage("count: 3, growth: {}"), "needs `percentage`"),
        (stage("percentage: 3, growth: {factor: 1}"), "must be a number from 1.1 to 100"),
        (stage("percentage: 3, promotion: manuel"), "did you mean `manual`"),
        (stage("selector: {matchLabels: {}}"), "is empty: remove it, or fill it"),
        (format!("  stages:\n{ALL}\n  failure_policy: {{action: rolback}}"), "did you mean `rollback`"),
        (format!("  stages:\n{ALL}\n  max_in_flight: 0"), "spec.max_in_flight: must be a whole number"),
        (format!("  stages:\n{ALL}\n  apply_deadline: 0"), "must be longer than 0"),
        (
            format!("  stages:\n{ALL}\n  windows: [{{days: [today], from: \"1:00\", to: \"2:00\"}}]"),
            "is not a day",
        ),
        (
            format!("  stages:\n{ALL}\n  windows: [{{from: \"25:00\", to: \"2:00\"}}]"),
            "must be a time of day in UTC",
        ),
    ];
    for (spec, expected) in cases {
        let errors = errors(&spec);
        assert!(errors.contains(expected), "{spec}\n{errors}\nshould say: {expected}");
    }
}

#[test]
fn shares_are_exact() {
    assert_eq!(share(0.05).of(100), 5);
    assert_eq!(share(0.05).of(101), 6, "rounded up");
    assert_eq!((share(0.05).of(0), share(0.000_001).of(1)), (0, 1));
    assert_eq!(Share::ALL.of(u64::MAX), u64::MAX);
    assert!(!share(0.01).is_exceeded_by(1, 100) && share(0.01).is_exceeded_by(2, 100));
    assert!(!share(0.99).is_missed_by(99, 100) && share(0.99).is_missed_by(98, 100));
    assert!(share(0.0).is_exceeded_by(1, 1_000_000), "not one may fail");
    assert_eq!(Share::of_fraction(f64::NAN), None);
}

#[test]
fn durations_are_read() {
    let cases = [
        ("250ms", Some(250)),
        ("1h30m", Some(5_400_000)),
        ("2d", Some(172_800_000)),
        ("1", None),
        ("", None),
        ("m", None),
        ("1x", None),
        ("-1s", None),
        ("1.5h", None),
        ("99999999999999h", None),
        ("4294967295d", None),
    ];
    for (text, millis) in cases {
        assert_eq!(parse_duration(text).map(|found| found.as_millis()), millis, "{text}");
    }
}

#[test]
fn windows_are_open_across_midnight() {
    // The tests begin on a Friday at 12:30.
    let friday = Window { days: 1 << 4, from: 22 * 60, to: 6 * 60 };
    let hours = |hours: u64| at(hours * 3600);
    assert!(!friday.is_open(hours(0)));
    assert!(friday.is_open(hours(10)), "22:30");
    assert!(friday.is_open(hours(17)), "Saturday 5:30, begun on Friday");
    assert!(!friday.is_open(hours(18)), "Saturday 6:30");
    assert!(!friday.is_open(hours(34)), "Saturday 22:30");
    let noon = Window { days: 0x7f, from: 12 * 60, to: 13 * 60 };
    assert!(noon.is_open(hours(0)) && !noon.is_open(hours(1)) && noon.is_open(hours(24)));
}
