//! Clients in languages that are not compiled; `cargo xtask setup` installs them into `target/tools`.

use std::path::{Path, PathBuf};

use crate::client_agent::ClientAgentBuilder;
use crate::skip::{path_directories, skip, target_directory};

const INTEROP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../loadtest/interop");

fn tools() -> PathBuf {
    target_directory().unwrap_or_default().join("tools")
}

/// An agent on the Python client. Without it, says on standard error that the running test is skipped
/// and returns nothing; under CI (`CI=true` or `1`) that is a panic.
pub fn python_or_skip() -> Option<ClientAgentBuilder> {
    let python = tools().join("python/bin/python");
    if !python.is_file() {
        skip("the Python client is not installed");
        return None;
    }
    let script = Path::new(INTEROP).join("python/agent.py");
    Some(ClientAgentBuilder::new(python).script(script, Vec::new()))
}

/// Node, and where its modules are, if this one is installed.
fn node_with(module: &str) -> Option<(PathBuf, PathBuf)> {
    let modules = tools().join("node/node_modules");
    let mut node = path_directories().into_iter().map(|directory| directory.join("node"));
    let node = node.find(|file| file.is_file());
    node.filter(|_| modules.join(module).is_dir()).map(|node| (node, modules))
}

/// As [`python_or_skip`], a command that runs an issuer of tokens on another implementation of OpenID Connect.
/// It prints its address, and for each line of standard input, the name of a role, a token that says it.
pub fn issuer_or_skip() -> Option<tokio::process::Command> {
    let Some((node, modules)) = node_with("oidc-provider") else {
        skip("the issuer of tokens (oidc-provider) is not installed");
        return None;
    };
    let mut command = tokio::process::Command::new(node);
    command.arg(Path::new(INTEROP).join("node/issuer.js")).env("NODE_PATH", modules);
    Some(command)
}

/// As [`python_or_skip`], an agent on the Node client.
pub fn node_or_skip() -> Option<ClientAgentBuilder> {
    let Some((node, modules)) = node_with("@elastic/opamp-client-node") else {
        skip("the Node client is not installed");
        return None;
    };
    let script = Path::new(INTEROP).join("node/agent.js");
    Some(ClientAgentBuilder::new(node).script(script, vec![("NODE_PATH", modules)]))
}
