//! Every crate takes the lints of the workspace.

use super::{Finding, Text};

pub(super) fn check(manifest: &Text) -> Option<Finding> {
    let mut section = "";
    for line in manifest.text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        if line.starts_with('[') {
            section = line;
        }
        let setting: String = line.split_whitespace().collect();
        if section == "[lints]" && setting == "workspace=true" || setting == "lints.workspace=true" {
            return None;
        }
    }
    let mend = "add `[lints]` with `workspace = true`";
    Some(Finding::new(&manifest.path, 1, "the lints of the workspace are not in force", mend))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::text;

    #[test]
    fn the_section_must_take_the_workspace_lints() {
        let found = |manifest| check(&text("Cargo.toml", manifest)).is_some();
        assert!(!found("[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"));
        assert!(!found("[package]\nlints.workspace = true\n"));
        assert!(found("[package]\nname = \"a\"\n"));
        assert!(found("[lints]\n# workspace = true\n"));
        assert!(found("[lints]\n[dependencies]\nworkspace = true\n"));
        assert!(found("[lints.rust]\nunsafe_code = \"forbid\"\n"));
    }
}
