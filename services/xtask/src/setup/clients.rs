//! Real clients in languages that are not compiled: a Python virtual environment and a directory of Node
//! modules beside the built tools, in pinned versions; nothing outside of them is changed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::apt::Apt;
use super::go::tools;
use crate::process;

/// A client, what pins its version, and what is there once it is installed.
pub(super) struct Client {
    pub(super) name: &'static str,
    pins: &'static [&'static str],
    installed: &'static str,
    /// Debian packages that hold what it is installed with.
    packages: &'static [&'static str],
    install: fn(&Path) -> Result<bool>,
    pub(super) advice: &'static str,
}

pub(super) const CLIENTS: &[Client] = &[
    Client {
        name: "Python client",
        pins: &["loadtest/interop/python/requirements.txt"],
        installed: "python/bin/python",
        packages: &["python3-venv"],
        install: install_python,
        advice: "install Python 3.10 or later with its venv module, for example `apt-get install python3-venv`",
    },
    Client {
        name: "Node client",
        pins: &["loadtest/interop/node/package.json", "loadtest/interop/node/package-lock.json"],
        installed: "node/node_modules/@elastic/opamp-client-node",
        packages: &["npm"],
        install: install_node,
        advice: "install Node 20.6 or later with npm, for example from https://nodejs.org/",
    },
];

impl Client {
    /// Whether it is there in the pinned version: the pins are kept beside what was installed by them.
    pub(super) fn is_installed(&self) -> bool {
        let Some(tools) = tools() else { return false };
        let same = |pin: &&str| {
            let kept = fs::read(kept(&tools, pin)).ok();
            kept.is_some() && kept == fs::read(pin).ok()
        };
        tools.join(self.installed).exists() && self.pins.iter().all(same)
    }

    /// Installs it; whether it is there then.
    pub(super) fn install(&self, apt: &mut Apt) -> Result<bool> {
        let tools = tools().context("the target directory is not known")?;
        fs::create_dir_all(&tools).with_context(|| format!("cannot make {}", tools.display()))?;
        let mut done = (self.install)(&tools)?;
        if !done && apt.install(self.packages, (0, 0))? {
            done = (self.install)(&tools)?;
        }
        if !done {
            return Ok(false);
        }
        for pin in self.pins {
            let kept = kept(&tools, pin);
            fs::copy(pin, &kept).with_context(|| format!("cannot write {}", kept.display()))?;
        }
        Ok(self.is_installed())
    }
}

/// Where a copy of a file of pins is.
fn kept(tools: &Path, pin: &str) -> std::path::PathBuf {
    tools.join(format!("installed-{}", pin.replace('/', "-")))
}

fn install_python(tools: &Path) -> Result<bool> {
    let directory = tools.join("python");
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(&directory);
    // Without Python, or without its venv module, there is nothing to install with.
    if !process::status(&mut venv).is_ok_and(|status| status.success()) {
        return Ok(false);
    }
    let mut pip = Command::new(directory.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r"]);
    pip.arg("loadtest/interop/python/requirements.txt");
    Ok(process::status(&mut pip)?.success())
}

fn install_node(tools: &Path) -> Result<bool> {
    let directory = tools.join("node");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for file in ["package.json", "package-lock.json"] {
        let from = Path::new("loadtest/interop/node").join(file);
        fs::copy(&from, directory.join(file)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--no-fund", "--no-audit", "--ignore-scripts"]).current_dir(&directory);
    Ok(process::status(&mut npm).is_ok_and(|status| status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_has_its_pins() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for client in CLIENTS {
            for pin in client.pins {
                assert!(root.join(pin).is_file(), "{}: {pin}", client.name);
            }
        }
    }
}
