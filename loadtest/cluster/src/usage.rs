//! What a process has used, from `/proc`.

use std::fs;

use anyhow::{Context, Result};

/// Ticks a second of the times in `/proc/PID/stat`: 100 on every Linux that is built as usual.
const TICKS: f64 = 100.0;

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Seconds of processor time, its own and the system's for it.
    pub cpu: f64,
    /// Memory in use, in bytes.
    pub rss: u64,
    /// As `rss`, with what is shared counted in shares.
    pub pss: u64,
}

impl Usage {
    /// What this process has used.
    ///
    /// # Errors
    /// If there is no such process, or no `/proc`.
    pub fn of(process: u32) -> Result<Self> {
        let read = |name: &str| {
            let file = format!("/proc/{process}/{name}");
            fs::read_to_string(&file).with_context(|| format!("{file} cannot be read"))
        };
        let cpu = cpu(&read("stat")?).context("/proc/PID/stat")?;
        let rollup = read("smaps_rollup")?;
        let kilobytes = |name| kilobytes(&rollup, name).with_context(|| format!("no {name} of {process}"));
        Ok(Self { cpu, rss: kilobytes("Rss:")? * 1024, pss: kilobytes("Pss:")? * 1024 })
    }

    /// The memory of a process that is in use, in bytes.
    pub(crate) fn rss_of(process: u32) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        Some(status.lines().find_map(|line| kilobytes(line, "VmRSS:"))? * 1024)
    }

    /// Seconds of processor time of a process and of its children, those that ended too.
    pub fn cpu_with_children(root: u32) -> f64 {
        let stats = fs::read_dir("/proc").into_iter().flatten().flatten();
        let stats = stats.filter_map(|entry| {
            let process: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent: u32 = after_name(&stat)?.get(1)?.parse().ok()?;
            match process == root {
                true => Some(cpu(&stat)? + cpu_at(&stat, 13)?),
                false => (parent == root).then(|| cpu(&stat))?,
            }
        });
        stats.sum()
    }
}

/// The fields after the name, which may hold anything.
fn after_name(stat: &str) -> Option<Vec<&str>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace().collect())
}

fn cpu(stat: &str) -> Option<f64> {
    cpu_at(stat, 11)
}

/// The sum of a user time and the system time after it.
fn cpu_at(stat: &str, at: usize) -> Option<f64> {
    let fields = after_name(stat)?;
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(at)? + ticks(at + 1)?) / TICKS)
}

fn kilobytes(rollup: &str, name: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_after_the_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 100 1 1";
        assert_eq!(cpu(stat), Some(3.0));
    }

    #[test]
    fn this_process_uses_something() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.rss > 1 << 20 && usage.pss <= usage.rss);
        assert_eq!(kilobytes("Rss:    12 kB\n", "Rss:"), Some(12));
    }
}
