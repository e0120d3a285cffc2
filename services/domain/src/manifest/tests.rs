//! Tests of manifests, and of the examples in the documentation.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::template::{CompiledFile, SlotSource, TypedValue, check_values, render};
use crate::yaml::tests::{bare, nearly_yaml, one};

const GUIDE: &str = include_str!("fixtures/guide-template.yaml");
const EXAMPLE_TEMPLATE: &str = include_str!("../../../../docs/examples/collector-template.yaml");
const EXAMPLE_ASSIGNMENT: &str = include_str!("../../../../docs/examples/collector-assignment.yaml");

fn template(text: &str) -> TemplateManifest {
    match parse(text).unwrap().remove(0).manifest {
        Manifest::ConfigTemplate(manifest) => manifest,
        other => panic!("not a template: {other:?}"),
    }
}

fn assignment(text: &str) -> AssignmentManifest {
    match parse(text).unwrap().remove(0).manifest {
        Manifest::ConfigAssignment(manifest) => manifest,
        other => panic!("not an assignment: {other:?}"),
    }
}

/// An assignment with this spec, two spaces deep.
fn mk_assignment(spec: &str) -> String {
    format!("apiVersion: opamp.io/v1\nkind: ConfigAssignment\nmetadata:\n  name: a\nspec:\n{spec}")
}

/// A template with this spec, two spaces deep.
fn mk_template(spec: &str) -> String {
    format!("apiVersion: opamp.io/v1\nkind: ConfigTemplate\nmetadata:\n  name: t\nspec:\n{spec}")
}

fn errors(text: &str) -> String {
    parse(text).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The file with these values, and defaults for the others.
fn rendered(
    compiled: &CompiledTemplate,
    file: &CompiledFile,
    values: &BTreeMap<String, TypedValue>,
) -> String {
    let value = |name: &String| {
        let declared = compiled.variables.iter().find(|variable| variable.name == *name);
        values.get(name).or_else(|| declared.and_then(|variable| variable.default.as_ref())).unwrap().clone()
    };
    let texts: Vec<String> = file
        .slots
        .iter()
        .map(|slot| match &slot.source {
            SlotSource::Variable(name) => slot.encoding.encode(&value(name)),
            other => panic!("no value for {other}"),
        })
        .collect();
    render(&file.body, &texts)
}

#[test]
fn the_template_of_the_guide_loads_unchanged() {
    let manifest = template(GUIDE);
    assert_eq!((manifest.name.as_str(), manifest.version.as_deref()), ("standard-collector", Some("v1.0.0")));
    assert_eq!(manifest.source, GUIDE);
    let compiled = manifest.compile().unwrap();
    let given = assignment(&mk_assignment(
        "  template: {name: standard-collector}\n  selector: {}\n  values:\n    environment: prod\n    backend_endpoint: otel.example:4317\n",
    ));
    let values = check_values(&compiled.variables, &given.values).unwrap();
    let text = rendered(&compiled, &compiled.files[0], &values);
    let expected = "\
receivers:
  otlp:
    protocols:
      grpc:
        endpoint: 0.0.0.0:4317
processors:
  attributes:
    actions:
      - key: deployment.environment
        value: prod
        action: upsert
  probabilistic_sampler:
    sampling_percentage: 0.1
  batch:
    timeout: 1s
exporters:
  otlp:
    endpoint: \"otel.example:4317\"
    tls:
      insecure: false
service:
  pipelines:
    traces:
      receivers:
        - otlp
      processors:
        - attributes
        - probabilistic_sampler
        - batch
      exporters:
        - otlp
";
    assert_eq!(text, expected);
    let node = one(&text);
    let sampler = node.get("processors").and_then(|node| node.get("probabilistic_sampler")).unwrap();
    assert_eq!(sampler.get("sampling_percentage").and_then(|node| node.as_f64()), Some(0.1));
    let endpoint =
        node.get("exporters").and_then(|node| node.get("otlp")).and_then(|node| node.get("endpoint"));
    assert_eq!(endpoint.and_then(|node| node.as_str()), Some("otel.example:4317"));
}

#[test]
fn the_examples_load() {
    let manifest = template(EXAMPLE_TEMPLATE);
    let compiled = manifest.compile().unwrap();
    let given = assignment(EXAMPLE_ASSIGNMENT);
    assert_eq!(given.template, TemplateRef { name: manifest.name, version: None });
    let values = check_values(&compiled.variables, &given.values).unwrap();
    let node = one(&rendered(&compiled, &compiled.files[0], &values));
    let get = |path: &[&str]| path.iter().fold(&node, |node, key| node.get(key).unwrap()).clone();
    assert_eq!(get(&["processors", "memory_limiter", "limit_mib"]).as_i64(), Some(512));
    assert_eq!(get(&["processors", "probabilistic_sampler", "sampling_percentage"]).as_f64(), Some(25.0));
    assert_eq!(get(&["exporters", "otlp", "tls", "insecure"]).as_bool(), Some(true));
    assert_eq!(get(&["exporters", "otlp", "headers", "x-telemetry-source"]).as_str(), Some("muster/dev"));
    let both = format!("{EXAMPLE_ASSIGNMENT}---\n{EXAMPLE_TEMPLATE}");
    let kinds: Vec<_> = parse(&both).unwrap().iter().map(|document| document.manifest.kind()).collect();
    assert_eq!(kinds, ["ConfigAssignment", "ConfigTemplate"]);
    assert_eq!(
        given.selector.requirements.to_string(),
        "service.name in (otelcol,io.opentelemetry.collector)"
    );
}

#[test]
fn an_assignment_is_read() {
    let manifest = assignment(&mk_assignment(
        "  template: {name: standard-collector, version: v2}
  values:
    rate: 0.5
  selector:
    matchLabels: {region: eu}
    matchExpressions:
      - {key: tier, operator: NotIn, values: [test, 'a b']}
      - {key: zone, operator: Exists}
      - {key: old, operator: DoesNotExist}
    agent_ids: [edge-1, 01890A5D-AC96-774B-BCCE-B302099A8057]
  priority: -5
  file: collector.yaml
  rollout: {}
",
    ));
    assert_eq!(
        (manifest.name.as_str(), manifest.priority, manifest.file.as_deref()),
        ("a", -5, Some("collector.yaml"))
    );
    assert_eq!(
        manifest.template,
        TemplateRef { name: "standard-collector".to_owned(), version: Some("v2".to_owned()) }
    );
    assert_eq!(manifest.selector.requirements.to_string(), "region=eu,tier notin (test,\"a b\"),zone,!old");
    let ids: Vec<_> = manifest.selector.agent_ids.iter().map(String::as_str).collect();
    assert_eq!(ids, ["01890a5d-ac96-774b-bcce-b302099a8057", "edge-1"]);
    assert_eq!(manifest.values.entries[0].name.value, "rate");
    assert_eq!(manifest.values.entries[0].value.span, Span { line: 8, column: 11 });

    let least = assignment(&mk_assignment("  template: {name: t}\n  selector: {}\n"));
    assert_eq!((least.selector, least.priority, least.file), (AgentSelector::default(), 0, None));
    assert_eq!(least.values, GivenValues { entries: Vec::new(), span: Span { line: 6, column: 3 } });

    let empty = assignment(&mk_assignment(
        "  template: {name: t}\n  selector: {}\n  values:\n  priority:\n  file: ~\n",
    ));
    assert_eq!((empty.priority, empty.file, empty.values), (0, None, least.values));
    let error = errors(&mk_assignment("  template: {name: t}\n  selector:\n"));
    assert_eq!(
        error,
        "line 6, column 3: spec.selector: is missing: add it; `selector: {}` matches every agent"
    );
}

#[test]
fn a_template_may_have_files() {
    let manifest = template(&mk_template(
        "  variables:
    - {name: host, type: string}
  files:
    - name: fluent-bit.conf
      content: |
        [OUTPUT]
            Host {{.host}}
    - {name: a.json, content_type: application/json, content: '{\"a\": {}}'}
",
    ));
    let compiled = manifest.compile().unwrap();
    let files: Vec<_> = compiled
        .files
        .iter()
        .map(|file| (file.name.as_deref().unwrap(), file.content_type.as_str()))
        .collect();
    assert_eq!(files, [("fluent-bit.conf", "text/plain"), ("a.json", "application/json")]);
    let values = [("host".to_owned(), TypedValue::String("x y".to_owned()))].into();
    assert_eq!(rendered(&compiled, &compiled.files[0], &values), "[OUTPUT]\n    Host x y\n");
}

#[test]
fn all_errors_of_a_file_are_reported() {
    let text = "\
apiVersion: opamp.io/v2
kind: ConfigTemplate
metadata:
  nam: x
  version: 1.10
spec:
  variables:
    - name: rate
      type: flaot
      default: 0.5
    - name: limit
      type: int
      require: true
      required: yes
      default: 1.5
  config:
    a: '{{.rate}} {{.limt}}'
---
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata:
  name: Not A Name
  version: v1
  labels: {a: 1}
spec:
  template: standard-collector
  priority: high
  rollout:
    strategy: canary
---
apiVersion: opamp.io/v1
kind: ConfigAsignment
status: {}
";
    let expected = "\
line 1, column 13: apiVersion: \"opamp.io/v2\" is not known: write opamp.io/v1
line 4, column 3: metadata.nam: there is no such field; did you mean `name`?; the fields are name, version, labels, annotations
line 4, column 3: metadata.name: is missing: add it
line 5, column 12: metadata.version: must be a string, this is a float \"1.10\": put it in quotes
line 9, column 13: spec.variables[0].type: \"flaot\" is not a type: write one of string, int, float, bool; did you mean `float`?
line 13, column 7: spec.variables[1].require: there is no such field; did you mean `required`?; the fields are name, type, required, enum, default, min, max
line 14, column 17: spec.variables[1].required: must be true or false, this is a string \"yes\"
line 15, column 16: spec.variables[1].default: must be an int, this is a float \"1.5\": write a whole number of 64 bits, such as 10
line 17, column 19: spec.config.a: uses the variable \"limt\", which spec.variables does not declare: declare it; did you mean `limit`?
line 22, column 9: metadata.name: name \"Not A Name\" is not a name: use lower-case letters, digits, `-` and `.`, beginning and ending with a letter or digit
line 23, column 3: metadata.version: there is no such field; the fields are name, labels, annotations
line 24, column 15: metadata.labels.a: must be a string, this is an int \"1\": put it in quotes
line 26, column 3: spec.selector: is missing: add it; `selector: {}` matches every agent
line 26, column 13: spec.template: must be a mapping, this is a string \"standard-collector\"
line 27, column 13: spec.priority: must be a whole number from -2147483648 to 2147483647
line 32, column 7: kind: \"ConfigAsignment\" is not known: write one of ConfigTemplate, ConfigAssignment, RolloutStrategy; did you mean `ConfigAssignment`?
line 33, column 1: status: there is no such field; the fields are apiVersion, kind, metadata, spec";
    assert_eq!(errors(text), expected);
}

#[test]
fn a_bad_selector_is_refused() {
    let selector = |text: &str| {
        let text = mk_assignment(&format!("  template: {{name: t}}\n  selector:\n{text}\n"));
        errors(&text).replace("spec.selector.", "").replace("matchExpressions", "expr")
    };
    let expected =
        "line 8, column 18: matchLabels: is empty: remove it, or fill it; `selector: {}` matches every agent";
    assert_eq!(selector("    matchLabels: {}"), expected);
    assert!(selector("    agent_ids: []").starts_with("line 8, column 16: agent_ids: is empty"));
    assert!(selector("    expr: []").contains("there is no such field"));
    assert!(selector("    matchExpressions: []").contains("expr: is empty"));
    assert!(selector("    matchlabels: {}").contains("did you mean `matchLabels`?"));
    assert_eq!(
        selector("    matchLabels: {a: 1}"),
        "line 8, column 22: matchLabels.a: must be a string, this is an int \"1\": put it in quotes"
    );
    assert!(selector("    matchLabels: {a b: x}").contains("column 19: matchLabels: \"a b\" is not a key"));
    let expression = |text: &str| selector(&format!("    matchExpressions:\n      - {text}"));
    assert_eq!(
        expression("{key: a, operator: in, values: [x]}"),
        "line 9, column 28: expr[0].operator: \"in\" is not an operator: write one of In, NotIn, Exists, DoesNotExist; did you mean `In`?"
    );
    assert_eq!(expression("{key: a, operator: In}"), "line 9, column 9: expr[0].values: is missing: add it");
    assert_eq!(
        expression("{key: a, operator: In, values: []}"),
        "line 9, column 9: expr[0]: \"a\" has no values: give at least one"
    );
    assert_eq!(
        expression("{key: a, operator: In, values: [x, 2]}"),
        "line 9, column 44: expr[0].values[1]: must be a string, this is an int \"2\": put it in quotes"
    );
    assert_eq!(
        expression("{key: a, operator: Exists, values: [x]}"),
        "line 9, column 44: expr[0].values: has no place with Exists: remove it"
    );
    assert_eq!(expression("{operator: Exists}"), "line 9, column 9: expr[0].key: is missing: add it");
    assert!(selector("    agent_ids: ['']").contains("\"\" is not an agent id"));
    assert!(selector("    agent_ids: x").contains("must be a list, this is a string \"x\""));
}

#[test]
fn other_bad_manifests_are_refused() {
    assert_eq!(errors(""), "line 1, column 1: there is no manifest: write at least one");
    assert_eq!(errors("- a"), "line 1, column 1: must be a mapping, this is a list");
    assert!(errors("a: [").starts_with("line 2, column 1: is not YAML: "));
    assert!(errors("kind: ConfigTemplate").starts_with("line 1, column 1: apiVersion: is missing: add it\n"));
    let file = |text: &str| errors(&mk_template(&format!("  files:\n    - {text}\n")));
    assert_eq!(file("{name: a}"), "line 7, column 7: spec.files[0].content: is missing: add it");
    assert_eq!(
        file("{name: a, content: 1}"),
        "line 7, column 26: spec.files[0].content: must be a string, this is an int \"1\": put it in quotes"
    );
    assert!(file("{name: \"a\\n\", content: x}").contains("spec.files[0].name: \"a\\n\" is not a file name"));
    assert!(errors(&mk_template("  {}\n")).contains("spec: has neither `config` nor `files`"));
    assert!(
        errors(&mk_assignment("  template: {name: t}\n  selector: {}\n  file: ''\n"))
            .contains("spec.file: \"\" is not a file name")
    );
    let spaces = mk_template("  config: {}\n").replace("name: t", "name: t\n  version: 'a b'");
    assert!(errors(&spaces).contains("metadata.version: \"a b\" is not a version"));
}

#[test]
fn objects_are_declared_once() {
    let one = mk_template("  config: {}\n");
    let two = one.replace("name: t", "name: t\n  version: v1");
    assert_eq!(parse(&format!("{one}---\n{two}")).unwrap().len(), 2);
    assert_eq!(
        errors(&format!("{two}---\n{one}---\n{two}")),
        "line 16, column 1: metadata.name: ConfigTemplate \"t\" version \"v1\" is declared on line 1 too: remove one"
    );
    let assignment = mk_assignment("  template: {name: t}\n  selector: {}\n").replace("name: a", "name: t");
    assert_eq!(parse(&format!("{one}---\n{assignment}")).unwrap().len(), 2);
    assert!(
        errors(&format!("{assignment}---\n{assignment}"))
            .ends_with("ConfigAssignment \"t\" is declared on line 1 too: remove one")
    );
}

#[test]
fn errors_are_bounded() {
    let many: String = (0..1000).map(|n| format!("x{n}: 1\n")).collect();
    assert_eq!(parse(&many).unwrap_err().len(), 20);
}

/// Text that is nearly a manifest: one of ours with some of its pieces lost or repeated.
fn nearly_manifest() -> impl Strategy<Value = String> {
    let whole = format!("{GUIDE}---\n{EXAMPLE_ASSIGNMENT}");
    prop::collection::vec(
        (0..whole.len(), 0..60_usize, "(\\{\\{|: |- |\n|[a-z]|[0-9]|\\[|\\]|\\}|\"|'|~|){0,3}"),
        0..4,
    )
    .prop_map(move |edits| {
        edits.into_iter().fold(whole.clone(), |text, (at, length, with)| {
            let boundary =
                |at: usize| (at.min(text.len())..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap();
            let (start, end) = (boundary(at), boundary(at + length));
            format!("{}{with}{}", &text[..start], &text[end..])
        })
    })
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in prop_oneof![nearly_yaml(), nearly_manifest(), nearly_manifest()]) {
        match parse(&text) {
            Err(errors) => prop_assert!(!errors.is_empty() && errors.len() <= 20),
            Ok(documents) => {
                for document in documents {
                    if let Manifest::ConfigTemplate(manifest) = document.manifest {
                        let compiled = manifest.compile().unwrap();
                        let again = template(&manifest.source);
                        prop_assert_eq!(again.compile().unwrap(), compiled.clone());
                        // Numbers are safe in any slot.
                        let texts = |file: &CompiledFile| vec!["1".to_owned(); file.slots.len()];
                        for file in &compiled.files {
                            prop_assert!(matches!(bare(&one(&render(&file.body, &texts(file)))), crate::yaml::Tree::Mapping(_)));
                        }
                    }
                }
            }
        }
    }
}
