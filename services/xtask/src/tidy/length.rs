//! No file grows past what a reader holds in mind. Tests do not count.

use super::{Finding, Text};

const MOST: usize = 600;

pub(super) fn check(source: &Text) -> Option<Finding> {
    let is_test = source.path.split('/').any(|part| part == "tests" || part.ends_with("tests.rs"));
    let lines = lines_before_tests(&source.text);
    (!is_test && lines > MOST).then(|| {
        let what = format!("{lines} lines, more than {MOST}");
        Finding::new(&source.path, MOST + 1, what, "split the module by what changes together")
    })
}

/// The lines up to a test module at the end. Clippy (`items_after_test_module`) sees to it that nothing
/// follows such a module.
fn lines_before_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let starts_tests = |at: &usize| {
        let mut after = lines[*at..].iter().skip_while(|line| line.starts_with("#["));
        lines[*at] == "#[cfg(test)]" && after.next().is_some_and(|line| opens_module(line))
    };
    (0..lines.len()).find(starts_tests).unwrap_or(lines.len())
}

fn opens_module(line: &str) -> bool {
    line.trim_start_matches("pub(crate) ").starts_with("mod ") && line.ends_with('{')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::text;

    const TESTS: &str = "#[cfg(test)]\n#[expect(dead_code)]\nmod tests {\n";

    #[test]
    fn long_code_is_found() {
        assert_eq!(check(&text("src/a.rs", &"x\n".repeat(600))), None);
        let finding = check(&text("src/a.rs", &"x\n".repeat(601)));
        assert_eq!(finding.map(|finding| finding.what), Some("601 lines, more than 600".to_owned()));
    }

    #[test]
    fn tests_do_not_count() {
        let code_and_tests = |code| format!("{}{TESTS}{}}}\n", "x\n".repeat(code), "    y\n".repeat(900));
        assert_eq!(check(&text("src/a.rs", &code_and_tests(600))), None);
        assert!(check(&text("src/a.rs", &code_and_tests(601))).is_some());
        assert_eq!(check(&text("tests/a.rs", &"x\n".repeat(900))), None);
        assert_eq!(check(&text("src/a/tests.rs", &"x\n".repeat(900))), None);
        assert_eq!(check(&text("src/a_tests.rs", &"x\n".repeat(900))), None);
    }

    #[test]
    fn a_test_only_item_does_not_end_the_count() {
        let source = format!("#[cfg(test)]\nfn helper() {{}}\n{}", "x\n".repeat(600));
        assert!(check(&text("src/a.rs", &source)).is_some());
    }
}
