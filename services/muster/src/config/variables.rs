//! Environment variables that override keys: `MUSTER_SERVER__TLS__ENABLED` is `server.tls.enabled`.

use super::ConfigError;
use super::reader::Declared;
use super::tree::{Finding, Path, Place, Tree};

/// Variables of the command line, which are never configuration keys.
pub const CLI_VARIABLES: [&str; 12] = [
    "MUSTER_SERVER_URL",
    "MUSTER_TOKEN",
    "MUSTER_CONTEXT",
    "MUSTER_CONTEXTS",
    "MUSTER_TENANT",
    "MUSTER_CA_FILE",
    "MUSTER_CERT_FILE",
    "MUSTER_KEY_FILE",
    "MUSTER_DATA_DIR",
    "MUSTER_CONFIG",
    "MUSTER_ROLES",
    "MUSTER_NAME",
];

const PREFIX: &str = "MUSTER_";

/// The variables of this process that may be Muster's.
pub(super) fn of_process() -> Result<Vec<(String, String)>, ConfigError> {
    let (mut variables, mut problems) = (Vec::new(), Vec::new());
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        match value.into_string() {
            Ok(value) => variables.push((name.to_owned(), value)),
            Err(_) => problems.push(format!("{name}: is not UTF-8")),
        }
    }
    if problems.is_empty() { Ok(variables) } else { Err(ConfigError { problems }) }
}

/// What the variables say of keys, and those that look like a key's and are none.
///
/// A variable without `__` is left alone unless it names a key: orchestrators set others of this
/// prefix, as Kubernetes does for a service of this name.
pub(super) fn read(
    environment: impl IntoIterator<Item = (String, String)>,
    declared: &[Declared],
) -> (Tree, Vec<Finding>) {
    let mut variables: Vec<(String, String)> = environment.into_iter().collect();
    // A section's variable comes before those of its keys, which go before it.
    variables.sort();
    let (mut tree, mut problems) = (Tree::default(), Vec::new());
    for (variable, value) in variables {
        let Some(rest) = variable.strip_prefix(PREFIX) else { continue };
        if CLI_VARIABLES.contains(&variable.as_str()) {
            continue;
        }
        let path: Path = rest.to_lowercase().split("__").map(str::to_owned).collect();
        let is_top = || declared.iter().any(|key| key.path[0] == path[0]);
        if path.len() > 1 || is_top() {
            problems.extend(tree.add_variable(&variable, path, &value).err());
        } else if let Some(key) = declared.iter().find(|key| key.path.join("_") == path[0]) {
            let what = format!(
                "is not a variable of Muster: to set {}, write {} with two underscores between its parts",
                key.path.join("."),
                name_of(&key.path)
            );
            problems.push(Finding::new(&Place::Variable(variable.into()), &[], what));
        }
    }
    (tree, problems)
}

/// The variable that overrides a key.
pub(super) fn name_of(path: &[String]) -> String {
    format!("{PREFIX}{}", path.join("__").to_uppercase())
}
