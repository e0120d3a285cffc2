//! The manifests that are applied: two assignments that share the fleet, so that a change of one leaves
//! the agents of the other as they are.

/// What agents of the fleet say they are, as the fleet's collectors do.
const SERVICE: &str = "io.opentelemetry.collector";

/// The assignment that changes.
pub(crate) const CHANGING: &str = "changing";
/// The assignment that stays as it is.
pub(crate) const STEADY: &str = "steady";

/// Both templates and both assignments. `serial` makes the changing one new.
pub(crate) fn both(serial: u64) -> String {
    [template(), changing(serial), assignment(STEADY, 0, "NotIn")].join("---\n")
}

/// The changing assignment alone.
pub(crate) fn changing(serial: u64) -> String {
    assignment(CHANGING, serial, "In")
}

fn template() -> String {
    r#"apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: cluster-try, version: v1}
spec:
  variables:
    - {name: serial, type: int, required: true}
  config:
    receivers: {otlp: {protocols: {grpc: {endpoint: "127.0.0.1:4317"}}}}
    exporters: {debug: {sampling_initial: "{{.serial}}"}}
    service: {pipelines: {traces: {receivers: [otlp], exporters: [debug]}}}
"#
    .to_owned()
}

/// Agents in production, or all others.
fn assignment(name: &str, serial: u64, operator: &str) -> String {
    format!(
        "apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {{name: {name}}}
spec:
  template: {{name: cluster-try, version: v1}}
  file: collector.yaml
  values: {{serial: {serial}}}
  selector:
    matchLabels: {{service.name: {SERVICE}}}
    matchExpressions:
      - {{key: deployment.environment, operator: {operator}, values: [prod]}}
"
    )
}

/// A template of one file with so many bytes, and its assignment to every collector.
pub(crate) fn large(version: u64, bytes: usize) -> String {
    let line = "# what a large fleet's config has much of: comments that nobody reads\n";
    let mut content = format!("      # version {version}\n");
    let mut length = 0;
    while length < bytes {
        content.push_str("      ");
        content.push_str(line);
        length += line.len();
    }
    format!(
        "apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {{name: large, version: v{version}}}
spec:
  files:
    - name: large.yaml
      content: |
{content}---
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {{name: large}}
spec:
  template: {{name: large, version: v{version}}}
  file: large.yaml
  selector:
    matchLabels: {{service.name: {SERVICE}}}
"
    )
}
