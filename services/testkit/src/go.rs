//! Go, for the tests against clients that are written in it.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::client_agent::ClientAgentBuilder;
use crate::skip::{path_directories, skip, target_directory};

const LONGEST_BUILD: Duration = Duration::from_secs(300);
const INTEROP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../loadtest/interop");

/// Where packages put Go, apart from `PATH`.
const PLACES: [&str; 4] =
    ["/usr/local/go/bin", "/usr/lib/go-1.26/bin", "/usr/lib/go-1.25/bin", "/usr/lib/go-1.24/bin"];

/// An installed Go.
#[derive(Clone, Debug)]
pub struct Go {
    program: PathBuf,
}

/// Finds Go. Without it, says on standard error that the running test is skipped and returns
/// nothing; under CI (`CI=true` or `1`) that is a panic.
pub fn go_or_skip() -> Option<Go> {
    let directories = path_directories().into_iter().chain(PLACES.map(PathBuf::from));
    let found = directories.map(|directory| directory.join("go")).find(|file| file.is_file());
    if found.is_none() {
        skip("Go is not installed");
    }
    found.map(|program| Go { program })
}

impl Go {
    /// The opamp-go agent, built once in a test process.
    pub async fn agent(&self) -> ClientAgentBuilder {
        static AGENT: OnceCell<PathBuf> = OnceCell::const_new();
        let program = AGENT.get_or_init(|| self.build("opampagent")).await;
        ClientAgentBuilder::new(program.clone())
    }

    /// Builds a command of the interop module. Go's cache makes all but the first time short.
    async fn build(&self, name: &str) -> PathBuf {
        let directory = target_directory().unwrap_or_else(std::env::temp_dir).join("interop");
        std::fs::create_dir_all(&directory).expect("the build directory can be made");
        // Other test processes build the same: whoever is last replaces a whole file.
        let fresh = directory.join(format!("{name}.{}", std::process::id()));
        let mut build = Command::new(&self.program);
        build.args(["build", "-o"]).arg(&fresh).arg(format!("./cmd/{name}")).current_dir(INTEROP);
        build.stdin(Stdio::null()).kill_on_drop(true);
        let Ok(output) = timeout(LONGEST_BUILD, build.output()).await else {
            panic!("go build of {name} does not end within {LONGEST_BUILD:?}");
        };
        let output =
            output.unwrap_or_else(|error| panic!("{} does not run: {error}", self.program.display()));
        assert!(output.status.success(), "go build failed:\n{}", String::from_utf8_lossy(&output.stderr));
        let program = directory.join(name);
        std::fs::rename(&fresh, &program).expect("the built program can be renamed");
        program
    }
}
