//! The health that agents of each kind report.

use std::collections::BTreeMap;

use muster_proto::opamp::ComponentHealth;

use crate::kind::Kind;

/// The last error of an unhealthy agent.
const STUCK: &str = "exporter queue is full";

/// The health of an agent of this kind that started at `started`, seen at `now`; both in
/// nanoseconds since 1970.
pub(crate) fn report(kind: Kind, started: u64, now: u64) -> ComponentHealth {
    let part = |name: &str, broken: bool, parts: Vec<(String, ComponentHealth)>| {
        let health = ComponentHealth {
            healthy: !broken,
            start_time_unix_nano: started,
            last_error: if broken { STUCK.to_owned() } else { String::new() },
            status: if broken { "StatusRecoverableError" } else { "StatusOK" }.to_owned(),
            status_time_unix_nano: now,
            component_health_map: BTreeMap::from_iter(parts),
            attributes: Vec::new(),
        };
        (name.to_owned(), health)
    };
    let whole = |broken, parts| part("", broken, parts).1;
    let working = |name| part(name, false, Vec::new());
    match kind {
        Kind::Collector | Kind::Rejecting | Kind::Unhealthy => {
            let broken = kind == Kind::Unhealthy;
            let pipeline = |name, broken| {
                let exporter = part("exporter:otlp", broken, Vec::new());
                part(name, broken, vec![working("receiver:otlp"), working("processor:batch"), exporter])
            };
            whole(
                broken,
                vec![
                    part("extensions", false, vec![working("extension:opamp")]),
                    pipeline("pipeline:metrics", false),
                    pipeline("pipeline:traces", broken),
                ],
            )
        }
        Kind::FluentBit => whole(false, vec![working("input:tail"), working("output:opentelemetry")]),
        Kind::Custom => whole(false, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_reports_its_pipelines() {
        let health = report(Kind::Collector, 1, 2);
        assert!(health.healthy && health.last_error.is_empty());
        assert_eq!((health.start_time_unix_nano, health.status_time_unix_nano), (1, 2));
        let pipeline = &health.component_health_map["pipeline:traces"];
        assert!(pipeline.component_health_map["exporter:otlp"].healthy);
    }

    #[test]
    fn an_unhealthy_one_says_where_and_why() {
        let health = report(Kind::Unhealthy, 1, 2);
        assert!(!health.healthy);
        assert_eq!(health.last_error, "exporter queue is full");
        let pipeline = &health.component_health_map["pipeline:traces"];
        assert!(!pipeline.component_health_map["exporter:otlp"].healthy);
        assert!(pipeline.component_health_map["receiver:otlp"].healthy);
        assert!(health.component_health_map["pipeline:metrics"].healthy);
    }
}
