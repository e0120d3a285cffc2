//! Certificates for tests, made by the commands of the documentation.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use muster_tls::{ClientConfig, ClientIdentity, client_config};
use tempfile::TempDir;

const DEPLOYMENT: &str = include_str!("../../../docs/deployment.md");
/// What stands before the commands, and ends them.
const BEGIN: &str = "<!-- certificates -->\n```sh\n";
const END: &str = "```";

/// An authority, a server's and a client's certificate in a directory of their own: `ca.crt`, `server.crt`,
/// `server.key`, `client.crt`, `client.key` and what it took to make them.
#[derive(Debug)]
pub struct Certificates {
    directory: TempDir,
}

impl Certificates {
    /// Runs the commands of docs/deployment.md; panics if they fail. The server's certificate is also for
    /// `localhost` and 127.0.0.1, the client's name is `agent-1`.
    pub fn make() -> Self {
        let (_, after) = DEPLOYMENT.split_once(BEGIN).expect("commands in docs/deployment.md");
        let (commands, _) = after.split_once(END).expect("an end of the commands");
        let made = Self { directory: TempDir::new().expect("a temporary directory") };
        made.run(commands);
        made
    }

    /// Runs further commands of a shell in the directory; panics if one fails.
    pub fn run(&self, commands: &str) {
        let output =
            Command::new("sh").args(["-e", "-c", commands]).current_dir(self.directory.path()).output();
        let output = output.expect("a shell");
        assert!(
            output.status.success(),
            "openssl failed for {commands}:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The path of a file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The TLS of a client that trusts the authority.
    pub async fn client(&self) -> Arc<ClientConfig> {
        self.config(None).await
    }

    /// The same of one that shows the certificate of files such as `client.crt` and `client.key`.
    pub async fn client_as(&self, name: &str) -> Arc<ClientConfig> {
        let file = |end: &str| self.path(&format!("{name}.{end}"));
        self.config(Some(ClientIdentity { cert_file: file("crt"), key_file: file("key") })).await
    }

    async fn config(&self, identity: Option<ClientIdentity>) -> Arc<ClientConfig> {
        let keys = ["ca_file", "cert_file", "key_file"];
        let config = client_config(keys, &self.path("ca.crt"), identity.as_ref()).await;
        config.expect("certificates that can be used")
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}
