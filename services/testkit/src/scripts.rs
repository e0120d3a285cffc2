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

/// As [`python_or_skip`], an agent on the Node client.
pub fn node_or_skip() -> Option<ClientAgentBuilder> {
    let modules = tools().join("node/node_modules");
    let node = path_directories().into_iter().map(|directory| directory.join("node"));
    let node = node.into_iter().find(|file| file.is_file());
    let Some(node) = node.filter(|_| modules.join("@elastic/opamp-client-node").is_dir()) else {
        skip("the Node client is not installed");
        return None;
    };
    let script = Path::new(INTEROP).join("node/agent.js");
    Some(ClientAgentBuilder::new(node).script(script, vec![("NODE_PATH", modules)]))
}
