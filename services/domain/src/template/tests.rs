//! Tests of compiling and rendering templates.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::yaml::tests::{bare, emitted, hostile, one, tree};
use crate::yaml::{Piece, Tree};

fn located(text: &str) -> Located<String> {
    Located { value: text.to_owned(), span: Span::START }
}

fn mk_variable(text: &str) -> VariableSpec {
    let node = one(text);
    let kind = node.get("type").and_then(Node::as_str).unwrap_or("string");
    VariableSpec {
        name: located(node.get("name").and_then(Node::as_str).unwrap()),
        kind: VariableType::ALL.into_iter().find(|known| known.name() == kind).unwrap(),
        required: node.get("required").and_then(Node::as_bool).unwrap_or_default(),
        one_of: node.get("enum").cloned(),
        default: node.get("default").cloned(),
        min: node.get("min").cloned(),
        max: node.get("max").cloned(),
    }
}

fn mk_spec(variables: &[&str], config: Option<&str>) -> TemplateSpec {
    TemplateSpec {
        variables: variables.iter().map(|text| mk_variable(text)).collect(),
        config: config.map(one),
        files: Vec::new(),
        span: Span::START,
    }
}

fn mk_file(name: &str, content: &str) -> FileSpec {
    let content = format!("\"{}\"", {
        let mut text = String::new();
        escape(content, &mut text);
        text
    });
    FileSpec { name: located(name), content_type: located("text/plain"), content: one(&content) }
}

fn mk_variables(variables: &[&str]) -> Vec<Variable> {
    compile(&mk_spec(variables, Some("{}"))).unwrap().variables
}

fn given(text: &str) -> GivenValues {
    let node = one(text);
    let entries = node.as_mapping().unwrap().iter().map(|(key, value)| GivenValue {
        name: Located { value: key.as_scalar().unwrap().text.clone(), span: key.span },
        value: value.clone(),
    });
    GivenValues { entries: entries.collect(), span: Span { line: 9, column: 9 } }
}

fn messages(problems: Vec<Problem>) -> Vec<String> {
    let message = |problem: &Problem| match problem.span {
        Some(span) => format!("{span}: {problem}"),
        None => problem.to_string(),
    };
    problems.iter().map(message).collect()
}

fn rendered(file: &CompiledFile, values: &[(&str, TypedValue)]) -> String {
    let values: BTreeMap<_, _> = values.iter().cloned().collect();
    let texts: Vec<String> = file
        .slots
        .iter()
        .map(|slot| match &slot.source {
            SlotSource::Variable(name) | SlotSource::AgentAttribute(name) | SlotSource::AgentLabel(name) => {
                slot.encoding.encode(&values[name.as_str()])
            }
        })
        .collect();
    render(&file.body, &texts)
}

fn string(text: &str) -> TypedValue {
    TypedValue::String(text.to_owned())
}

#[test]
fn placeholders_are_substituted_on_the_tree() {
    let config = "\
a: \"{{.rate}}\"   # typed
b: {c: 'x-{{.name}}-{{.rate}}', d: 1.50}
\"{{.name}}\": [on, \"{{ .agent.labels[\\\"team\\\"] }}\", '{{\"{{\"}} .x }}']
'k/{{.name}}':
e: |
  one
  {{.name}}
";
    let compiled = compile(&mk_spec(&["{name: rate, type: float}", "{name: name}"], Some(config))).unwrap();
    let file = &compiled.files[0];
    assert_eq!((file.name.as_deref(), file.content_type.as_str()), (None, "text/yaml"));
    let values = [("rate", TypedValue::Float(0.1)), ("name", string("it\"s\n")), ("team", string("a"))];
    let expected = "\
a: 0.1
b:
  c: \"x-it\\\"s\\n-0.1\"
  d: 1.50
? \"it\\\"s\\n\"
: - on
  - a
  - \"{{ .x }}\"
? \"k/it\\\"s\\n\"
:
e: \"one\\nit\\\"s\\n\\n\"
";
    assert_eq!(rendered(file, &values), expected);
    let quoted = |source: &SlotSource| {
        file.slots.iter().any(|slot| slot.source == *source && slot.encoding == SlotEncoding::YamlQuoted)
    };
    assert!(quoted(&SlotSource::Variable("rate".to_owned())));
    assert_eq!(file.slots.len(), 5);
    assert!(compiled.variables.iter().all(|variable| variable.used));
}

#[test]
fn files_are_text() {
    let mut spec = mk_spec(&["{name: host}", "{name: unused}"], None);
    spec.files.push(mk_file("fluent-bit.conf", "[OUTPUT]\n  Host {{.host}}\n  Id {{{.host}}}\n"));
    spec.files.push(mk_file("empty", ""));
    let compiled = compile(&spec).unwrap();
    let text = rendered(&compiled.files[0], &[("host", string("a \"b\"\n#"))]);
    assert_eq!(text, "[OUTPUT]\n  Host a \"b\"\n#\n  Id {a \"b\"\n#}\n");
    assert_eq!(compiled.files[0].slots.len(), 1);
    assert_eq!(
        (compiled.files[1].name.as_deref(), &compiled.files[1].body),
        (Some("empty"), &CompiledBody::default())
    );
    assert!(!compiled.variables[1].used);
}

#[test]
fn what_is_wrong_with_a_template_has_its_place() {
    let config = "a:\n  - b: 'x {{.enviroment}}'\n  - \"{{ if .x }}\"\n'{{\"a\"}}': 1\n";
    let mut spec = mk_spec(
        &[
            "{name: environment, enum: [dev, prod], default: staging}",
            "{name: n, type: int, min: 5, max: 3}",
            "{name: n, type: int, enum: [1, 1, x], max: 3, default: 9}",
            "{name: agent, min: 1}",
            "{name: f, type: float, default: '0.5'}",
            "{name: b, type: bool, default: yes, enum: []}",
        ],
        Some(config),
    );
    spec.files = vec![mk_file("a", "{{"), mk_file("a", "\0"), mk_file("", "")];
    spec.files[2].content_type = located("yaml");
    let expected = "\
line 1, column 49: spec.variables[0].default: \"staging\" is not one of \"dev\", \"prod\"
line 1, column 35: spec.variables[1].max: 3 is below min, which is 5
line 1, column 1: spec.variables[2].name: \"n\" is declared twice: remove one
line 1, column 32: spec.variables[2].enum[1]: 1 is here twice: remove one
line 1, column 35: spec.variables[2].enum[2]: must be an int, this is a string \"x\": write a whole number of 64 bits, such as 10
line 1, column 56: spec.variables[2].default: 9 is not one of 1
line 1, column 1: spec.variables[3].name: \"agent\" is not a name for a variable: use letters, digits and `_`, at most 63, beginning with no digit, and not `agent`
line 1, column 20: spec.variables[3].min: is only for int and float, this is a string: remove it
line 1, column 33: spec.variables[4].default: must be a float, this is a string \"0.5\": remove the quotes
line 1, column 43: spec.variables[5].enum: must be a list of 1 to 1000 values
line 1, column 32: spec.variables[5].default: must be a bool, this is a string \"yes\": write true or false
line 2, column 11: spec.config.a[0].b: uses the variable \"enviroment\", which spec.variables does not declare: declare it; did you mean `environment`?
line 3, column 6: spec.config.a[1]: \"if .x\" is not a placeholder: there are only {{.name}}, {{.agent.attributes[\"key\"]}}, {{.agent.labels[\"key\"]}} and {{\"text\"}} for literal text; no conditions, loops or functions
line 4, column 1: spec.config.{{\"a\"}}: this key is in the mapping twice, written otherwise: remove one
line 1, column 2: spec.files[0].content: `{{` is not closed: close it with `}}`, or write {{\"{{\"}} for a literal `{{`
line 1, column 1: spec.files[1].name: \"a\" is here twice: give each file its own name
line 1, column 1: spec.files[1].content: has a NUL character: remove it
line 1, column 1: spec.files[2].name: \"\" is not a file name: it has 1 to 255 bytes and no control characters
line 1, column 1: spec.files[2].content_type: \"yaml\" is not a MIME type such as text/yaml";
    assert_eq!(messages(compile(&spec).unwrap_err()).join("\n"), expected);
}

#[test]
fn templates_are_bounded() {
    let first = |spec: &TemplateSpec| compile(spec).unwrap_err()[0].to_string();
    let none = mk_spec(&[], None);
    assert!(first(&none).starts_with("spec: has neither `config` nor `files`"));
    assert_eq!(first(&mk_spec(&[], Some("[a]"))), "spec.config: must be a mapping, this is a list");
    let mut spec = none.clone();
    spec.files = vec![mk_file("a", &"x".repeat(MAX_LITERALS + 1))];
    assert!(first(&spec).starts_with("spec: gives more than 3145728 bytes"));
    spec.files = vec![mk_file("a", &"{{.agent.labels['x']}}".repeat(MAX_SLOTS + 1))];
    assert!(first(&spec).starts_with("spec: has more than 4096 placeholders"));
    spec.files = vec![mk_file("a", ""); MAX_FILES + 1];
    assert!(first(&spec).starts_with("spec.files: has more than 64 files"));
    let names: Vec<String> = (0..=MAX_VARIABLES).map(|n| format!("{{name: v{n}}}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert!(first(&mk_spec(&names, Some("{}"))).starts_with("spec.variables: has more than 256 variables"));
    spec.files = vec![mk_file("a", &"{{.x}}".repeat(10_000))];
    assert_eq!(compile(&spec).unwrap_err().len(), MAX_PROBLEMS);
    spec.files = vec![mk_file("a", &"{{x}}".repeat(10_000))];
    assert_eq!(compile(&spec).unwrap_err().len(), MAX_PROBLEMS);
}

#[test]
fn given_values_get_their_types() {
    let variables = mk_variables(&[
        "{name: environment, required: true, enum: [dev, prod]}",
        "{name: rate, type: float, min: 0.01, max: 1}",
        "{name: port, type: int, min: 1, default: 80}",
        "{name: tls, type: bool}",
    ]);
    let values = check_values(&variables, &given("{environment: prod, rate: 1, tls: true}")).unwrap();
    let expected =
        [("environment", string("prod")), ("rate", TypedValue::Float(1.0)), ("tls", TypedValue::Bool(true))];
    assert_eq!(values, expected.map(|(name, value)| (name.to_owned(), value)).into());
    let problems =
        check_values(&variables, &given("enviroment: prod\nrate: '0.5'\nport: 0\ntls: 1\n")).unwrap_err();
    let expected = "\
line 1, column 1: spec.values.enviroment: the template has no variable \"enviroment\"; did you mean `environment`?
line 2, column 7: spec.values.rate: must be a float, this is a string \"0.5\": remove the quotes
line 3, column 7: spec.values.port: 0 is below the minimum 1
line 4, column 6: spec.values.tls: must be a bool, this is an int \"1\": write true or false
line 9, column 9: spec.values.environment: is required: give it a value (one of \"dev\", \"prod\")";
    assert_eq!(messages(problems).join("\n"), expected);
    let message = |text| messages(check_values(&variables, &given(text)).unwrap_err()).remove(0);
    assert!(
        message("{environment: pro}")
            .ends_with("\"pro\" is not one of \"dev\", \"prod\"; did you mean `prod`?")
    );
    assert!(
        message("{environment: 1.20}")
            .ends_with("must be a string, this is a float \"1.20\": put it in quotes")
    );
    assert!(
        message("{environment: ~}")
            .ends_with("must be a string, this is empty: give it a value, or remove it")
    );
    assert!(message("{environment: [prod]}").ends_with("must be a string, this is a list"));
    assert!(
        message("{environment: prod, rate: .inf}")
            .ends_with("this is a float \".inf\": write a finite number, such as 0.5")
    );
    assert!(message("{environment: prod, rate: 1.5}").ends_with("1.5 is above the maximum 1.0"));
    assert!(message("{environment: prod, port: 1.0}").contains("must be an int, this is a float \"1.0\""));
    assert!(
        message("{environment: prod, port: 99999999999999999999}")
            .contains("write a whole number of 64 bits")
    );
    assert!(message("{environment: \"a\\0\"}").ends_with("has a NUL character: remove it"));
    let long = format!("{{environment: {}}}", "x".repeat(MAX_VALUE + 1));
    assert!(message(&long).ends_with("has 65537 bytes: a value has at most 65536"));
}

#[test]
fn a_used_variable_needs_a_value_or_a_default() {
    let variables = compile(&mk_spec(&["{name: a}", "{name: b}"], Some("x: '{{.a}}'"))).unwrap().variables;
    let problems = messages(check_values(&variables, &given("{}")).unwrap_err());
    let expected = "line 9, column 9: spec.values.a: is used by the template and has no default: \
                    give it a value (string), or the variable a default";
    assert_eq!(problems, [expected]);
    assert_eq!(check_values(&variables, &given("{a: ''}")).unwrap(), [("a".to_owned(), string(""))].into());
}

#[test]
fn stored_values_are_checked_against_another_version() {
    let before = mk_variables(&["{name: rate, type: int}", "{name: gone}", "{name: name}"]);
    let stored = check_values(&before, &given("{rate: 2, gone: x, name: '7'}")).unwrap();
    let stored: BTreeMap<_, _> = serde_json::from_str(&serde_json::to_string(&stored).unwrap()).unwrap();
    let after = mk_variables(&[
        "{name: rate, type: float, max: 1.5}",
        "{name: name, type: int}",
        "{name: new, required: true}",
    ]);
    let expected = [
        "spec.values.gone: the template has no variable \"gone\"",
        "spec.values.name: must be an int, this is the string \"7\"",
        "spec.values.rate: 2.0 is above the maximum 1.5",
        "spec.values.new: is required: give it a value (string)",
    ];
    assert_eq!(messages(check_typed_values(&after, &stored).unwrap_err()), expected);
    let wider = mk_variables(&["{name: rate, type: float}", "{name: gone}", "{name: name}", "{name: new}"]);
    assert_eq!(check_typed_values(&wider, &stored).unwrap()["rate"], TypedValue::Float(2.0));
}

#[test]
fn values_have_a_text_and_a_canonical_form() {
    use TypedValue::{Bool, Float, Int};
    let forms = [
        (Float(0.1), "0.1", "f:3fb999999999999a"),
        (Float(1.0), "1.0", "f:3ff0000000000000"),
        (Float(-0.0), "-0.0", "f:8000000000000000"),
        (Float(1e21), "1.0e+21", "f:444b1ae4d6e2ef50"),
        (Float(1.5e-9), "1.5e-9", "f:3e19c511dc3a41df"),
        (Int(-5), "-5", "i:-5"),
        (Bool(true), "true", "b:true"),
        (string("a\nb"), "a\nb", "s:a\nb"),
    ];
    for (value, text, canonical) in forms {
        assert_eq!((value.text().as_str(), value.canonical().as_str()), (text, canonical));
        let json = serde_json::to_string(&value).unwrap();
        assert_eq!(serde_json::from_str::<TypedValue>(&json).unwrap(), value, "{json}");
    }
}

#[test]
fn only_safe_strings_are_written_plain() {
    for plain in ["prod", "/var/log/x.log", "eu-west-1", "v1.2.3", "A_b", "e5"] {
        assert_eq!(SlotEncoding::YamlScalar.encode(&string(plain)), plain);
    }
    for quoted in [
        "",
        "yes",
        "No",
        "ON",
        "off",
        "y",
        "N",
        "null",
        "Null",
        "~",
        "true",
        "False",
        "1",
        "1.0",
        "0x1F",
        "1e3",
        "-1",
        "+1",
        "12:30:45",
        "2001-01-01",
        ".inf",
        ".nan",
        "nan",
        "-",
        "---",
        "a: b",
        "a #b",
        "a ",
        " a",
        "#a",
        "&a",
        "*a",
        "!a",
        "{a}",
        "[a]",
        "a,b",
        "a:b",
        "@a",
        "`a",
        "%a",
        "|",
        ">",
        "'a'",
        "\"a\"",
        "=",
        "<<",
        "_1",
        "é",
        "a\tb",
        "${env:X}",
    ] {
        let text = SlotEncoding::YamlScalar.encode(&string(quoted));
        assert!(text.starts_with('"') && text.ends_with('"'), "{quoted:?} is written {text}");
    }
    assert_eq!(
        SlotEncoding::YamlScalar.encode(&string("a\"\\\n\u{7}é\u{2028}")),
        "\"a\\\"\\\\\\n\\u0007é\\u2028\""
    );
    assert_eq!(SlotEncoding::YamlQuoted.encode(&string("a\"b")), "a\\\"b");
    assert_eq!(SlotEncoding::Text.encode(&string("a\"b")), "a\"b");
    assert_eq!(SlotEncoding::YamlQuoted.encode(&TypedValue::Int(3)), "3");
}

/// Computed apart: SHA-256 over each part preceded by its length as 8 bytes, big endian.
#[test]
fn the_digest_of_a_file_has_a_test_vector() {
    let slot = |source, encoding| Slot { source, encoding };
    let file = |content_type: &str| {
        let segments = vec![
            Segment::Literal("a: ".to_owned()),
            Segment::Slot(0),
            Segment::Literal("\nb: \"".to_owned()),
            Segment::Slot(1),
            Segment::Slot(2),
            Segment::Literal("\"\n".to_owned()),
        ];
        let slots = vec![
            slot(SlotSource::Variable("rate".to_owned()), SlotEncoding::YamlScalar),
            slot(SlotSource::AgentAttribute("host.name".to_owned()), SlotEncoding::YamlQuoted),
            slot(SlotSource::AgentLabel("team".to_owned()), SlotEncoding::Text),
        ];
        CompiledFile::digest_of(content_type, &CompiledBody { segments }, &slots).to_string()
    };
    assert_eq!(file("text/yaml"), "d8e99e9b460e9995c31f6c92ad2018296ebf7621bcecfb346842d4ead5f2fbec");
    assert_ne!(file("text/yaml"), file("text/plain"));
}

#[test]
fn compiled_templates_survive_storage() {
    let variables = ["{name: rate, type: float, min: 0, max: 1, default: 0.5}", "{name: name, enum: [a, b]}"];
    let config = "{a: '{{.rate}}', b: '{{.name}}-{{.agent.attributes[\"x\"]}}'}";
    let compiled = compile(&mk_spec(&variables, Some(config))).unwrap();
    let json = serde_json::to_string(&compiled).unwrap();
    assert_eq!(serde_json::from_str::<CompiledTemplate>(&json).unwrap(), compiled);
}

fn value() -> impl Strategy<Value = TypedValue> {
    prop_oneof![
        4 => hostile().prop_map(TypedValue::String),
        1 => any::<i64>().prop_map(TypedValue::Int),
        1 => prop::num::f64::NORMAL.prop_map(TypedValue::Float),
        1 => any::<bool>().prop_map(TypedValue::Bool),
    ]
}

/// Writes a text such that compiling gives it back.
fn escaped(text: &str) -> String {
    text.replace('{', "{{\"{\"}}")
}

/// A tree in which some strings hold placeholders, and the tree it must render to.
fn with_slots(
    tree: Tree<()>,
    picks: &mut impl Iterator<Item = u8>,
    values: &[TypedValue],
) -> (Tree<()>, Tree<()>) {
    let piece = |text: String| Tree::String(vec![Piece::Text(text)]);
    let alone = |value: &TypedValue| match value {
        TypedValue::String(text) if !is_safe_plain(text) => piece(text.clone()),
        other => Tree::Plain(other.text()),
    };
    match tree {
        Tree::String(pieces) => {
            let [Piece::Text(text)] = pieces.as_slice() else { unreachable!() };
            let pick = picks.next().unwrap_or_default();
            let n = usize::from(pick) % values.len();
            let value = &values[n];
            match pick % 3 {
                0 => (piece(format!("{{{{.v{n}}}}}")), alone(value)),
                1 if text.is_empty() => (piece(format!("{{{{ .v{n} }}}}")), alone(value)),
                1 => {
                    let around = escaped(text);
                    let with = format!("{around}{{{{.v{n}}}}}{around}");
                    (piece(with), piece(format!("{text}{}{text}", value.text())))
                }
                _ => (piece(escaped(text)), piece(text.clone())),
            }
        }
        Tree::Sequence(items) => {
            let (a, b) = items.into_iter().map(|item| with_slots(item, picks, values)).unzip();
            (Tree::Sequence(a), Tree::Sequence(b))
        }
        Tree::Mapping(entries) => {
            let mut before = Vec::new();
            let mut after: Vec<(Tree<()>, Tree<()>)> = Vec::new();
            for (key, value) in entries {
                let (key, rendered_key) = with_slots(key, picks, values);
                let (value, rendered_value) = with_slots(value, picks, values);
                // Values can make keys equal; such a mapping is not what is tested here.
                if after.iter().all(|(known, _)| plain(known) != plain(&rendered_key)) {
                    before.push((key, value));
                    after.push((rendered_key, rendered_value));
                }
            }
            (Tree::Mapping(before), Tree::Mapping(after))
        }
        Tree::Plain(text) if text.contains("{{") => (piece(escaped(&text)), piece(text)),
        other => (other.clone(), other),
    }
}

fn plain(tree: &Tree<()>) -> String {
    match tree {
        Tree::Plain(text) => text.clone(),
        Tree::String(pieces) => match pieces.as_slice() {
            [Piece::Text(text)] => text.clone(),
            _ => String::new(),
        },
        _ => String::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn what_is_rendered_is_the_tree_with_the_values(
        tree in tree(),
        values in prop::collection::vec(value(), 1..4),
        picks in prop::collection::vec(any::<u8>(), 60),
    ) {
        let root = |tree| Tree::Mapping(vec![(Tree::Plain("root".to_owned()), tree)]);
        let (before, after) = with_slots(tree, &mut picks.into_iter(), &values);
        let source = emitted(root(before));
        let variables: Vec<String> = values
            .iter()
            .enumerate()
            .map(|(n, value)| format!("{{name: v{n}, type: {}}}", value.kind()))
            .collect();
        let variables: Vec<&str> = variables.iter().map(String::as_str).collect();
        let compiled = compile(&mk_spec(&variables, Some(&source)))
            .map_err(|problems| TestCaseError::fail(format!("{problems:?}\n{source}")))?;
        let names: Vec<String> = (0..values.len()).map(|n| format!("v{n}")).collect();
        let values: Vec<(&str, TypedValue)> = names.iter().map(String::as_str).zip(values).collect();
        let text = rendered(&compiled.files[0], &values);
        prop_assert_eq!(bare(&one(&text)), root(after), "{}\n{}", source, text);
    }

    #[test]
    fn a_scalar_of_any_value_is_read_back(value in value()) {
        let node = one(&format!("- {}\n", SlotEncoding::YamlScalar.encode(&value)));
        let item = &node.as_sequence().unwrap()[0];
        match value {
            TypedValue::String(text) => prop_assert_eq!(item.as_str(), Some(text.as_str())),
            other => prop_assert_eq!(values::typed(other.kind(), item), Ok(other)),
        }
    }
}
