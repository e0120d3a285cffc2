//! Debian packages.

use std::process::Command;

use anyhow::Result;

use super::{Version, version_in};
use crate::process;

/// apt-get, where it exists and this process is root. Its lists are fetched once, at the first need.
#[derive(Default)]
pub(super) struct Apt {
    usable: Option<bool>,
}

impl Apt {
    /// Installs the first of the packages that is no older than this; whether there is one.
    pub(super) fn install(&mut self, packages: &[&str], least: Version) -> Result<bool> {
        let usable = match self.usable {
            Some(usable) => usable,
            None => *self.usable.insert(Apt::prepare()),
        };
        let candidate = packages.iter().find(|package| {
            let policy = process::stdout(Command::new("apt-cache").args(["policy", package]));
            usable && candidate_in(&policy.unwrap_or_default()).is_some_and(|version| version >= least)
        });
        let Some(package) = candidate else { return Ok(false) };
        let mut install = Command::new("apt-get");
        install.args(["install", "--yes", "--no-install-recommends", package]);
        Ok(process::status(install.env("DEBIAN_FRONTEND", "noninteractive"))?.success())
    }

    fn prepare() -> bool {
        let root = process::stdout(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
        root && process::status(Command::new("apt-get").arg("update")).is_ok_and(|status| status.success())
    }
}

/// The version that `apt-cache policy` would install, without its epoch.
fn candidate_in(policy: &str) -> Option<Version> {
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    version_in(candidate.split_once(':').map_or(candidate, |(_epoch, version)| version))
}

/// Stops a service that its package started, now and for good: tests start their own, on other ports.
pub(super) fn stop(service: &str) {
    // In a container there may be nothing that runs services, and so nothing to stop.
    let _ = process::status(Command::new("service").args([service, "stop"]));
    let _ = process::status(Command::new("update-rc.d").args([service, "disable"]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_that_apt_would_install_counts() {
        assert_eq!(candidate_in("golang-go:\n  Installed: (none)\n  Candidate: 2:1.19~1\n"), Some((1, 19)));
        assert_eq!(candidate_in("golang-go:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_in(""), None);
    }
}
