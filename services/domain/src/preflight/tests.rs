//! Tests of preflight checks.

use super::*;
use crate::report::Component;

fn file(name: &str, content_type: &str, text: &str) -> RenderedFile {
    RenderedFile { name: name.to_owned(), content_type: content_type.to_owned(), text: text.to_owned() }
}

fn found(files: &[RenderedFile]) -> Vec<String> {
    check(files).findings.iter().map(|finding| format!("{:?} {finding}", finding.severity)).collect()
}

const COLLECTOR: &str = "receivers: {otlp: {}}
processors: {batch: }
exporters: {otlp/a: {}, debug: {}}
service:
  pipelines:
    traces: {receivers: [otlp], processors: [batch], exporters: [otlp/a]}
";

#[test]
fn texts_are_checked_by_their_type_or_else_their_name() {
    let bad = "a: [1\n";
    let of = |name: &str, kind: &str| found(&[file(name, kind, bad)]);
    assert!(of("x", "text/yaml; charset=utf-8")[0].starts_with("Error file \"x\", line "));
    assert!(of("x.yml", "text/plain")[0].contains("is not YAML"));
    assert!(of("x", "application/json")[0].contains("is not JSON: "));
    assert!(of("fluent-bit.conf", "text/plain")[0].contains("stands in no section"));
    assert_eq!(of("x", "text/plain"), [""; 0], "what is not known is passed over");
    assert_eq!(found(&[file("x.json", "application/json", "{\"a\": [1]}")]), [""; 0]);
}

#[test]
fn a_sound_collector_config_needs_its_components() {
    let checked = check(&[file("base", "text/yaml", COLLECTOR)]);
    assert_eq!(checked.findings, []);
    let needs: Vec<_> = checked.needs.iter().map(ToString::to_string).collect();
    assert_eq!(
        needs,
        ["debug in exporters", "otlp in exporters", "batch in processors", "otlp in receivers"]
    );
    let section = |names: &[&str]| Component {
        components: names.iter().map(|name| ((*name).to_owned(), Component::default())).collect(),
        ..Component::default()
    };
    let has = [("exporters".to_owned(), section(&["otlp"])), ("receivers".to_owned(), section(&["otlp"]))];
    let missing: Vec<_> = missing(&checked.needs, &has.into()).into_iter().map(ToString::to_string).collect();
    assert_eq!(missing, ["debug in exporters"], "a section that is not reported is not known");
}

#[test]
fn pipelines_refer_to_what_is_defined_in_any_file() {
    let text = COLLECTOR.replace("receivers: [otlp]", "receivers: [otlpp]").replace("[otlp/a]", "[]");
    assert_eq!(
        found(&[file("base", "text/yaml", &text)]),
        [
            "Error file \"base\", line 6, column 5: service.pipelines.traces.exporters: is missing: a pipeline has \
             at least one of them",
            "Error file \"base\", line 6, column 26: service.pipelines.traces.receivers: \"otlpp\" is not defined in \
             receivers or connectors: define it; did you mean `otlp`?",
        ]
    );
    let parts = [
        file("a", "text/yaml", "receivers: {otlp: }\nexporters: {debug: }\n"),
        file(
            "b",
            "text/yaml",
            "service: {pipelines: {logs/x: {receivers: [otlp, c], exporters: [debug]}}}\n",
        ),
        file("c", "text/yaml", "connectors: {c: }\n"),
    ];
    assert_eq!(found(&parts), [""; 0]);
    let odd = "receivers: [otlp]\nservice: {extensions: [zpages], pipelines: {trace: {receivers: otlp}}}\n";
    let odd = found(&[file("f", "text/yaml", odd)]).join("\n");
    assert!(odd.contains("receivers: must be a mapping, this is a list"), "{odd}");
    assert!(odd.contains("service.extensions: \"zpages\" is not defined in extensions"), "{odd}");
    assert!(odd.contains("did you mean `traces`?"), "{odd}");
    assert!(
        odd.contains("traces.receivers: must be a list") || odd.contains("trace.receivers: must be a list"),
        "{odd}"
    );
}

#[test]
fn a_bare_opamp_extension_is_warned_of() {
    let with =
        |id: &str| found(&[file("f", "text/yaml", &format!("{COLLECTOR}extensions: {{{id}: {{}}}}\n"))]);
    assert!(with("opamp")[0].starts_with("Warning file \"f\", line 7, column 14: extensions.opamp: "));
    assert_eq!(with("opamp/mine"), [""; 0]);
}

#[test]
fn yaml_that_is_no_collector_config_is_left_alone() {
    assert_eq!(
        found(&[file("x.yaml", "text/yaml", "pipeline: {inputs: [{name: cpu}]}\nlist: [1]\n")]),
        [""; 0]
    );
}

#[test]
fn the_classic_format_of_fluent_bit_is_read() {
    let good = "# c\n@SET a=b\n[SERVICE]\n    Flush 1\n\n[OUTPUT]\n    Name  http\n@INCLUDE x.conf\n";
    assert_eq!(found(&[file("fluent-bit.conf", "text/plain", good)]), [""; 0]);
    let bad = "Flush 1\n[SERVICE\nName http\n    Match\n@X\n@SET a\n";
    let messages = found(&[file("fluent-bit.conf", "text/plain", bad)]);
    assert_eq!(messages.len(), 6, "{messages:?}");
}
