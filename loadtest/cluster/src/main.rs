//! `muster-cluster`: a whole cluster as local processes, to try, to break, to measure.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use muster_cluster::bench::{self, BenchOptions};
use muster_cluster::faults::{self, FaultOptions};
use muster_cluster::{ClusterOptions, muster_program, status};

/// A whole cluster as local processes: to try, to break, to measure.
#[derive(Debug, Parser)]
#[command(name = "muster-cluster")]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster and keep it running until Ctrl-C.
    Cluster {
        #[command(flatten)]
        topology: Topology,
        /// Simulated agents that connect.
        #[arg(long, default_value_t = 0)]
        agents: usize,
        /// Where the logs go; by default a temporary directory.
        #[arg(long)]
        logs: Option<PathBuf>,
    },
    /// Break a part of a cluster under load and check that nothing is lost.
    Faults {
        #[command(flatten)]
        topology: Topology,
        /// Simulated agents.
        #[arg(long, default_value_t = 2000)]
        agents: usize,
        /// Agents beside them that report all the time.
        #[arg(long, default_value_t = 100)]
        reporters: usize,
        /// Only the case of this name.
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
        /// Only the cases that take little time.
        #[arg(long)]
        quick: bool,
        /// Where the logs go; by default a temporary directory, which stays after a failure.
        #[arg(long)]
        logs: Option<PathBuf>,
        /// Write loadtest/results/faults.json.
        #[arg(long)]
        write: bool,
        /// What the machine is, for the results.
        #[arg(long, default_value = "not said")]
        machine: String,
        /// Today's date, for the results.
        #[arg(long, default_value = "not said")]
        date: String,
    },
    /// Measure memory, processor time and fan-out beside the goals.
    Bench(BenchArgs),
}

#[derive(Debug, Args)]
struct Topology {
    /// Gateways.
    #[arg(long, default_value_t = 3)]
    gateways: usize,
    /// Controls.
    #[arg(long, default_value_t = 2)]
    controls: usize,
    /// Apis.
    #[arg(long, default_value_t = 2)]
    apis: usize,
    /// NATS servers: 1, 3 or 5.
    #[arg(long, default_value_t = 3)]
    nats: usize,
    /// The muster program; by default MUSTER_BIN, or the one beside this program.
    #[arg(long, value_name = "FILE")]
    muster: Option<PathBuf>,
}

impl Topology {
    fn options(self, logs: Option<PathBuf>) -> anyhow::Result<ClusterOptions> {
        let Self { gateways, controls, apis, nats, muster } = self;
        let options = ClusterOptions::new(muster_program(muster)?);
        Ok(ClusterOptions { gateways, controls, apis, nats, logs, ..options })
    }
}

#[derive(Debug, Args)]
struct BenchArgs {
    /// The measurement that takes some minutes: the only one so far.
    #[arg(long)]
    quick: bool,
    /// Simulated agents.
    #[arg(long, default_value_t = 3000)]
    agents: usize,
    /// Seconds of each measurement of processor time.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// The muster program; by default MUSTER_BIN, or the one beside this program.
    #[arg(long, value_name = "FILE")]
    muster: Option<PathBuf>,
    /// What the machine is, for the report.
    #[arg(long, default_value = "not said")]
    machine: String,
    /// Today's date, for the report.
    #[arg(long, default_value = "not said")]
    date: String,
    /// Write loadtest/results/quick.json and the table in docs/performance.md.
    #[arg(long)]
    write: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let good = match Program::parse().command {
        Command::Cluster { topology, agents, logs } => {
            status::run(&topology.options(logs)?, agents).await?;
            true
        }
        Command::Faults { topology, agents, reporters, only, quick, logs, write, machine, date } => {
            let cluster = topology.options(logs)?;
            let write = write.then_some((machine, date));
            faults::run(&FaultOptions { cluster, agents, reporters, only, quick, write }).await?
        }
        Command::Bench(args) => {
            anyhow::ensure!(args.quick, "there is only the quick measurement so far: add --quick");
            let options = BenchOptions {
                program: muster_program(args.muster)?,
                agents: args.agents,
                seconds: args.seconds,
                machine: args.machine,
                date: args.date,
                write: args.write,
            };
            bench::run(&options).await?;
            true
        }
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Program::command().debug_assert();
    }
}
