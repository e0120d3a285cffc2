//! Tests of selectors.

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Selector {
    text.parse().unwrap()
}

fn message(text: &str) -> String {
    text.parse::<Selector>().unwrap_err().to_string()
}

fn agent(key: &str) -> Option<Cow<'static, str>> {
    [("service.name", "otelcol"), ("region", "eu"), ("k8s.io/x_y", "a b"), ("empty", "")]
        .iter()
        .find(|(known, _)| *known == key)
        .map(|(_, value)| Cow::Borrowed(*value))
}

#[test]
fn requirements_are_those_of_kubernetes() {
    for text in [
        "",
        " ",
        "region",
        "region=eu",
        "region==eu",
        " region = 'eu' ",
        "region in (us,eu)",
        "region in ( \"eu\" )",
        "region!=us",
        "zone!=us",
        "region notin (us, ap)",
        "zone notin (eu)",
        "!zone",
        "! zone",
        "empty=",
        "empty=\"\"",
        "k8s.io/x_y=\"a b\"",
        "region=eu,service.name in (otelcol),!zone",
        "region = eu , region",
        "zone!=",
    ] {
        assert!(parse(text).matches(agent), "{text:?}");
    }
    for text in [
        "zone",
        "zone=eu",
        "zone=",
        "region=us",
        "region=EU",
        "region in (us)",
        "region!=eu",
        "region notin (eu,us)",
        "!region",
        "region=",
        "region=eu,zone",
        "empty!=",
    ] {
        assert!(!parse(text).matches(agent), "{text:?}");
    }
}

#[test]
fn a_selector_has_a_text() {
    for (text, shown) in [
        ("a == b", "a=b"),
        ("a in (b)", "a=b"),
        ("a in ('b c', d,  \"\")", "a in (\"b c\",d,\"\")"),
        ("a notin(x , y),!b,c , d!='\"\\\\'", "a notin (x,y),!b,c,d!=\"\\\"\\\\\""),
        ("in in (in),notin", "in=in,notin"),
        ("a=10.0.0.1:80/x", "a=10.0.0.1:80/x"),
    ] {
        assert_eq!(parse(text).to_string(), shown);
        assert_eq!(serde_json::to_string(&parse(text)).unwrap(), serde_json::to_string(shown).unwrap());
    }
}

#[test]
fn errors_say_where_and_what_to_do() {
    for (text, expected) in [
        (",", "character 1: a key is missing: write a requirement such as service.name=otelcol"),
        ("a=b,", "character 5: a requirement is missing after the comma"),
        (
            "é=b c",
            "character 5: a comma must stand between requirements; a value with spaces must be in quotes",
        ),
        (
            "a=b=c",
            "character 4: a comma must stand between requirements; a value with spaces must be in quotes",
        ),
        (
            "a b",
            "character 3: an operator must follow the key: =, ==, !=, in (x, y), notin (x, y), or nothing",
        ),
        (
            "a > 1",
            "character 3: an operator must follow the key: =, ==, !=, in (x, y), notin (x, y), or nothing",
        ),
        ("a in x", "character 6: values in parentheses must follow: (x, y)"),
        ("a in ()", "character 7: a value is missing; write \"\" for the empty one"),
        ("a in (x,)", "character 9: a value is missing; write \"\" for the empty one"),
        ("a in (x y)", "character 9: `,` or `)` must follow a value; a value with spaces must be in quotes"),
        ("a in (x", "character 8: `,` or `)` must follow a value; a value with spaces must be in quotes"),
        ("a='b", "character 3: the quotes are not closed: add '"),
        ("a='b\\c'", "character 5: write a backslash in quotes as \\\\"),
        (
            "!a=b",
            "character 3: a comma must stand between requirements; a value with spaces must be in quotes",
        ),
        ("'a'=b", "character 1: a key is missing: write a requirement such as service.name=otelcol"),
        (
            "a='\t'",
            "character 1: \"\\t\" is not a value: it has at most 1024 bytes and no control characters",
        ),
    ] {
        assert_eq!(message(text), expected, "{text:?}");
    }
}

#[test]
fn selectors_are_bounded() {
    assert!(message(&vec!["a"; 65].join(",")).contains("has more than 64 requirements"));
    assert!(message(&format!("a in ({})", vec!["x"; 1001].join(","))).contains("has more than 1000 values"));
    let half = format!("a in ({})", vec!["x"; 501].join(","));
    assert!(message(&format!("{half},{half}")).contains("has more than 1000 values"));
    assert!(message(&"k".repeat(254)).contains("is not a key: it has 1 to 253 bytes"));
    assert!(
        message(&format!("a={}", "v".repeat(1025))).contains("is not a value: it has at most 1024 bytes")
    );
    let ids = |n| AgentSelector::new(Selector::default(), (0..n).map(|id| format!("a{id}")));
    assert!(ids(10_000).is_ok());
    assert!(ids(10_001).unwrap_err().to_string().contains("more than 10000 agent ids"));
    assert!(Requirement::new("a", Condition::In(Vec::new())).is_err());
    assert!(Requirement::new("a b", Condition::Exists).is_err());
}

#[test]
fn agents_are_selected_by_requirements_or_ids() {
    const UID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
    let mk = |text: &str, ids: &[&str]| {
        AgentSelector::new(parse(text), ids.iter().map(|id| (*id).to_owned())).unwrap()
    };
    let matches = |selector: &AgentSelector| selector.matches(UID, Some("edge-1"), agent);
    assert!(matches(&AgentSelector::default()));
    assert!(matches(&mk("region=eu", &[])));
    assert!(!matches(&mk("region=us", &[])));
    assert!(matches(&mk("region=us", &["edge-1"])));
    assert!(matches(&mk("region=eu", &["edge-2"])));
    assert!(matches(&mk("", &[&UID.to_uppercase()])));
    assert!(!matches(&mk("", &["edge-2", "EDGE-1"])));
    assert!(!mk("", &["edge-1"]).matches(UID, None, agent));
    assert!(AgentSelector::new(Selector::default(), [String::new()]).is_err());
    for selector in [AgentSelector::default(), mk("a in (b,'c d')", &["x"])] {
        let json = serde_json::to_string(&selector).unwrap();
        assert_eq!(serde_json::from_str::<AgentSelector>(&json).unwrap(), selector);
    }
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let value = || prop_oneof!["[a-z]{0,3}", "\\PC{0,10}", "[\"'\\\\,=!() a]{0,6}"];
    let values = || prop::collection::vec(value(), 1..4);
    let condition = prop_oneof![
        values().prop_map(Condition::In),
        values().prop_map(Condition::NotIn),
        Just(Condition::Exists),
        Just(Condition::DoesNotExist),
    ];
    let key = prop_oneof!["in", "notin", "[a-z./_-]{1,8}", "\\PC{1,8}"];
    (key, condition).prop_filter_map("has a key", |(key, condition)| Requirement::new(key, condition).ok())
}

proptest! {
    #[test]
    fn the_text_of_a_selector_is_read_back(requirements in prop::collection::vec(requirement(), 0..5)) {
        let selector = Selector::new(requirements).unwrap();
        prop_assert_eq!(selector.to_string().parse(), Ok(selector));
    }

    #[test]
    fn any_text_is_read_or_refused(text in prop_oneof![any::<String>(), "[ab,=!()'\"\\\\ inotéx]{0,30}"]) {
        if let Ok(selector) = text.parse::<Selector>() {
            prop_assert_eq!(selector.to_string().parse(), Ok(selector));
        }
    }
}
