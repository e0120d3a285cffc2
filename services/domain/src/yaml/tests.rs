//! Tests of reading and writing YAML, and strategies that other tests share.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::schema::is_exact_plain;
use super::*;

pub(crate) fn one(text: &str) -> Node {
    let documents = parse_documents(text).unwrap();
    assert_eq!(documents.len(), 1, "{text:?}");
    documents[0].root.clone()
}

fn message(text: &str) -> String {
    parse_documents(text).unwrap_err().to_string()
}

pub(crate) fn emitted(tree: Tree<()>) -> String {
    let text = |piece| match piece {
        Piece::Text(text) => text,
        Piece::Slot(()) => unreachable!(),
    };
    emit(tree).into_iter().map(text).collect()
}

/// The tree without places; literal blocks are strings like any other.
pub(crate) fn bare(node: &Node) -> Tree<()> {
    match &node.value {
        Value::Scalar(_) => Tree::same(node),
        Value::Sequence(items) => Tree::Sequence(items.iter().map(bare).collect()),
        Value::Mapping(entries) => {
            Tree::Mapping(entries.iter().map(|(key, value)| (bare(key), bare(value))).collect())
        }
    }
}

fn string(text: &str) -> Tree<()> {
    Tree::String(vec![Piece::Text(text.to_owned())])
}

#[test]
fn scalars_are_read_by_the_core_schema() {
    let node = one(
        "{a: 1, b: 0x1F, c: 0o17, d: 1.5, e: true, f: on, g: '1', h: ~, i: .inf, j: 99999999999999999999, k: -3, l: 1e3}",
    );
    let get = |key| node.get(key).unwrap();
    assert_eq!(get("a").as_i64(), Some(1));
    assert_eq!(get("a").as_f64(), Some(1.0));
    assert_eq!(get("a").as_str(), None);
    assert_eq!(get("b").as_i64(), Some(31));
    assert_eq!(get("c").as_i64(), Some(15));
    assert_eq!((get("d").as_f64(), get("d").as_i64()), (Some(1.5), None));
    assert_eq!(get("e").as_bool(), Some(true));
    assert_eq!(get("f").as_str(), Some("on"));
    assert_eq!((get("g").as_str(), get("g").as_i64()), (Some("1"), None));
    assert!(get("h").is_null());
    assert_eq!(get("i").as_f64(), Some(f64::INFINITY));
    assert_eq!((get("j").as_i64(), get("j").as_f64()), (None, Some(1e20)));
    assert_eq!(get("k").as_i64(), Some(-3));
    assert_eq!(get("l").as_f64(), Some(1000.0));
    for text in ["1_000", "0b1", "1:30", "0x", ".", "-", "+", "e5", "1e", "1.2.3", "2001-01-01", "yes", "nul"]
    {
        assert_eq!(resolve(text), Resolved::String, "{text:?}");
    }
}

#[test]
fn places_are_those_of_the_text() {
    let node = one("a: x{{b}}\n\"c\":  'y{{d}}'  # note\ne: |\n\n  text\n  more {{f}}\ng: \"\\t{{h}}\"\n");
    let place = |key, what| {
        let node = node.get(key).unwrap();
        let Span { line, column } = node.place_of(node.as_scalar().unwrap().text.find(what).unwrap());
        (line, column)
    };
    assert_eq!(place("a", "{{"), (1, 5));
    assert_eq!(place("c", "{{"), (2, 9));
    assert_eq!(place("e", "{{"), (6, 8));
    assert_eq!(place("e", "text"), (5, 3));
    // Escapes move what follows: the place is the scalar's.
    assert_eq!(place("g", "{{"), (7, 4));
}

#[test]
fn aliases_are_copies() {
    let node = one("a: &x {k: [1, 2]}\nb: *x\nc: [*x, *x]");
    assert_eq!(bare(node.get("a").unwrap()), bare(node.get("b").unwrap()));
    assert_eq!(node.get("b").unwrap().span, Span { line: 2, column: 4 });
    assert_eq!(node.get("c").unwrap().as_sequence().unwrap().len(), 2);
    let refused = "the alias names an anchor of another document, or one that it is part of";
    assert_eq!(message("a: &x [*x]"), format!("line 1, column 8: {refused}"));
    assert_eq!(message("&x a\n---\n*x"), format!("line 3, column 1: {refused}"));
}

#[test]
fn tags_agree_or_are_refused() {
    let node =
        one("[!!str 1, ! 2, !!int 3, !!float 1.0, !!bool true, !!null ~, !!seq [], !!map {}, !!str x]");
    let items = node.as_sequence().unwrap();
    assert_eq!((items[0].as_str(), items[1].as_str(), items[2].as_i64()), (Some("1"), Some("2"), Some(3)));
    assert_eq!(
        message("a: !!float 1"),
        "line 1, column 4: the tag \"tag:yaml.org,2002:float\" does not fit \"1\": remove the tag, or change the value"
    );
    assert_eq!(message("- !Ref x"), "line 1, column 3: the tag \"!Ref\" is not known here: remove it");
    assert!(message("!!set {a}").contains("is not known here"));
}

#[test]
fn keys_are_unique_scalars() {
    assert_eq!(
        message("a: 1\nb:\n  c: 1\n  d: 2\n  'c': 3\n"),
        "line 5, column 3: the key \"c\" is here twice, first on line 3: remove one"
    );
    assert!(message("? [a]\n: b").contains("a key must be a scalar, this is a list"));
    assert!(message("a: &x [1]\nb: {*x : 1}").contains("a key must be a scalar, this is a list"));
    assert!(message("? \n: b").contains("the key is empty"));
    for unquoted in ["rate: {{.rate}}", "a:\n  time: {{.n}}s\n", "x: [{{ .agent.labels[\"a\"] }}]"] {
        assert!(
            message(unquoted)
                .ends_with("put a value that begins with a placeholder in quotes: \"{{.name}}\"")
        );
    }
}

#[test]
fn a_stream_has_documents_with_their_own_text() {
    let text =
        "# 置\na: 1\n---\n---\n# b\nb: |\n  x\n...\n%YAML 1.2\n---\nc: é\n--- [d]\n--- # nothing\n...\n";
    let documents = parse_documents(text).unwrap();
    let sources: Vec<_> = documents.iter().map(|document| document.source).collect();
    assert_eq!(sources, ["# 置\na: 1\n", "# b\nb: |\n  x\n", "%YAML 1.2\n---\nc: é\n", "--- [d]\n"]);
    for document in &documents {
        assert_eq!(bare(&one(document.source)), bare(&document.root));
    }
    assert_eq!(parse_documents("").unwrap(), []);
    assert_eq!(parse_documents("# only a comment\n---\n").unwrap(), []);
}

#[test]
fn bounds_are_kept() {
    let bomb = (1..10).fold("- &a0 [x, x]\n".to_owned(), |text, n| {
        let items = vec![format!("*a{}", n - 1); 10].join(", ");
        format!("{text}- &a{n} [{items}]\n")
    });
    assert!(message(&bomb).contains("more than 100000 nodes"));
    let long = format!("- &a {}\n{}", "x".repeat(1 << 20), "- *a\n".repeat(20));
    assert!(message(&long).contains("more than 16777216 bytes of text"));
    assert!(message(&"x".repeat(MAX_INPUT + 1)).contains("is longer than 4194304 bytes"));
    assert!(message(&"a,".repeat(MAX_INDICATORS + 1)).contains("more than 200000 of the characters"));
    assert!(message(&"- ".repeat(65)).contains("nested deeper than 64 levels"));
    assert!(parse_documents(&"- ".repeat(64)).is_ok());
    assert!(message(&"[".repeat(1000)).contains("is not YAML"));
    let deep =
        format!("- &a {}x{}\n- {}*a{}", "[".repeat(40), "]".repeat(40), "[".repeat(40), "]".repeat(40));
    assert!(message(&deep).contains("nested deeper than 64 levels"));
}

#[test]
fn trees_are_written_in_block_style() {
    let text = "\
a: 0.10
b: \"on\"
\"c d\": ${env:FOO}
e:
  - 1
  - - x
    - f: {}
      g: []
  -
h: ~
i:
j: |
  one
    two

  three
k: |-
  one
  two
l: \"one \\ntwo\\n\\n\"
";
    assert_eq!(emitted(bare(&one(text))), text);
    assert_eq!(emitted(Tree::Mapping(Vec::new())), "{}\n");
    // A plain scalar that would not be read back is written as the string it is.
    assert_eq!(emitted(Tree::Plain("a: b".to_owned())), "\"a: b\"\n");
    let long = "k".repeat(600);
    let tree =
        Tree::Mapping(vec![(string(&long), Tree::Mapping(vec![(string("a"), Tree::Plain(String::new()))]))]);
    assert_eq!(emitted(tree), format!("? \"{long}\"\n: \"a\":\n"));
}

#[test]
fn keys_with_slots_are_explicit() {
    let key = Tree::String(vec![Piece::Text("a\"".to_owned()), Piece::Slot(7)]);
    let inner = Tree::Mapping(vec![(key, Tree::Mapping(vec![(Tree::Slot(8), Tree::Plain("1".to_owned()))]))]);
    let pieces = emit(Tree::Mapping(vec![(Tree::Plain("r".to_owned()), inner)]));
    let text = |text: &str| Piece::Text(text.to_owned());
    let expected =
        [text("r:\n  ? \"a\\\""), Piece::Slot(7), text("\"\n  : ? "), Piece::Slot(8), text("\n    : 1\n")];
    assert_eq!(pieces, expected);
}

pub(crate) fn hostile() -> impl Strategy<Value = String> {
    let snippets = prop::sample::select(vec![
        "---",
        "...",
        ": ",
        " #",
        "- ",
        "? ",
        "\n",
        "\r",
        "\t",
        " ",
        "\"",
        "'",
        "\\",
        "{{",
        "}}",
        "|",
        ">",
        "&a",
        "*a",
        "!!str",
        "%",
        "@",
        "`",
        "~",
        "null",
        "true",
        "yes",
        "0x1",
        "1e3",
        "2001-01-01",
        "12:30",
        ".inf",
        "\0",
        "\u{7f}",
        "\u{85}",
        "\u{a0}",
        "\u{2028}",
        "\u{feff}",
        "\u{fffe}",
        "\u{ffff}",
        "é",
        "置",
        "\u{1f600}",
        "=",
        "<<",
        "[",
        "]",
        "{",
        "}",
        ",",
        "x",
        "key",
        "\\u0041",
        "\\x",
    ]);
    prop_oneof![
        any::<String>(),
        prop::collection::vec(snippets, 0..8).prop_map(|parts| parts.concat()),
        "[ -~\n\t]{0,40}",
        "[a-z\n ]{0,40}",
        "(x{1100}|\"{1100})",
    ]
}

fn plain_text() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "0.10",
        "on",
        "0x1F",
        "${env:FOO}",
        "null",
        "~",
        "true",
        "-1",
        "1e3",
        ".inf",
        "0.0.0.0:4317",
        "1s",
        "<<",
        "a b",
        "--flag",
        "=",
        "a,b]",
        "http://x/y?z#w",
    ]);
    let exact = |text: &String| is_exact_plain(text) || resolve(text) != Resolved::String;
    prop_oneof![known.prop_map(str::to_owned), "[ -~é置]{1,12}".prop_filter("is an exact plain", exact)]
}

fn scalar_tree() -> impl Strategy<Value = Tree<()>> {
    prop_oneof![plain_text().prop_map(Tree::Plain), hostile().prop_map(|text| string(&text))]
}

pub(crate) fn tree() -> impl Strategy<Value = Tree<()>> {
    let leaf = prop_oneof![8 => scalar_tree(), 1 => Just(Tree::Plain(String::new()))];
    leaf.prop_recursive(6, 40, 5, |inner| {
        let entries = prop::collection::vec((scalar_tree(), inner.clone()), 0..5).prop_map(|mut entries| {
            let mut seen = BTreeSet::new();
            entries.retain(|(key, _)| match key {
                Tree::Plain(text) => seen.insert(text.clone()) && !text.is_empty(),
                Tree::String(pieces) => matches!(&pieces[0], Piece::Text(text) if seen.insert(text.clone())),
                _ => false,
            });
            Tree::Mapping(entries)
        });
        prop_oneof![prop::collection::vec(inner, 0..5).prop_map(Tree::Sequence), entries]
    })
}

/// Text that is nearly YAML.
pub(crate) fn nearly_yaml() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec![
        "a",
        "1",
        ":",
        ": ",
        "- ",
        "? ",
        "\n",
        "\n  ",
        "\n    ",
        "[",
        "]",
        "{",
        "}",
        ",",
        "\"",
        "'",
        "|",
        "|-\n",
        ">",
        "&x ",
        "*x",
        "!!str ",
        "!t ",
        "# c",
        "---",
        "...",
        "%YAML 1.2",
        "\t",
        "\r",
        "~",
        "{{.a}}",
        "é",
        "\u{feff}",
        "\\",
        "\u{85}",
        "<<: ",
    ]);
    prop_oneof![
        any::<String>(),
        prop::collection::vec(any::<u8>(), 0..200)
            .prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        prop::collection::vec(token, 0..40).prop_map(|tokens| tokens.concat()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn what_is_emitted_is_read_back(tree in tree()) {
        let text = emitted(tree.clone());
        let documents = parse_documents(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        match documents.as_slice() {
            [document] => prop_assert_eq!(bare(&document.root), tree, "{}", text),
            [] => prop_assert_eq!(Tree::Plain(String::new()), tree),
            _ => prop_assert!(false, "several documents: {}", text),
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in nearly_yaml()) {
        if let Ok(documents) = parse_documents(&text) {
            for document in documents {
                // What was taken can be written, and then reads the same.
                let tree = bare(&document.root);
                prop_assert_eq!(bare(&one(&emitted(tree.clone()))), tree);
                prop_assert_eq!(&bare(&one(document.source)), &bare(&document.root));
            }
        }
    }
}
