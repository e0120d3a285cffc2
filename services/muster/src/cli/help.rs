//! Which role a command needs, in its help: from the table of operations.

use clap::Command;
use muster_domain::access;

/// The operations that each client command asks for.
const OPERATIONS: &[(&[&str], &[&str])] = &[
    (&["agents", "list"], &["listAgents"]),
    (&["agents", "get"], &["getAgent"]),
    (&["agents", "retry"], &["retryAgent"]),
    (&["agents", "label"], &["labelAgent"]),
    (&["agents", "restart"], &["commandAgent", "commandAgents", "listCommands"]),
    (&["agents", "pause"], &["commandAgent", "commandAgents", "listCommands"]),
    (&["agents", "resume"], &["commandAgent", "commandAgents", "listCommands"]),
    (&["agents", "disconnect"], &["commandAgent", "commandAgents", "listCommands"]),
    (&["agents", "report"], &["commandAgent", "commandAgents", "listCommands"]),
    (&["agents", "message"], &["commandAgent", "commandAgents", "listCommands"]),
    (&["agents", "commands"], &["listAgentCommands"]),
    (&["agents", "explain"], &["explainAgent"]),
    (&["apply"], &["apply"]),
    (&["changes"], &["listChanges"]),
    (&["diff"], &["diffManifests"]),
    (&["watch"], &["watchEvents"]),
    (&["configs", "list"], &["listConfigs"]),
    (&["configs", "get"], &["getConfig"]),
    (&["configs", "history"], &["listConfigVersions"]),
    (&["configs", "diff"], &["diffConfigVersions"]),
    (&["configs", "preview"], &["previewConfig"]),
    (&["configs", "delete"], &["deleteConfig"]),
    (&["assignments", "list"], &["listAssignments"]),
    (&["assignments", "get"], &["getAssignment"]),
    (&["assignments", "history"], &["listChanges"]),
    (&["assignments", "delete"], &["deleteAssignment"]),
    (&["rollouts", "list"], &["listRollouts"]),
    (&["rollouts", "get"], &["getRollout"]),
    (&["rollouts", "agents"], &["listRolloutAgents"]),
    (&["rollouts", "watch"], &["getRollout"]),
    (&["rollouts", "approve"], &["approveRollout"]),
    (&["rollouts", "pause"], &["pauseRollout"]),
    (&["rollouts", "resume"], &["resumeRollout"]),
    (&["rollouts", "promote"], &["promoteRollout"]),
    (&["rollouts", "abort"], &["abortRollout"]),
    (&["rollouts", "rollback"], &["rollBackRollout"]),
    (&["whoami"], &["whoAmI"]),
    (&["login"], &["whoAmI"]),
    (&["tokens", "create"], &["createToken"]),
    (&["tokens", "list"], &["listTokens"]),
    (&["tokens", "revoke"], &["revokeToken", "revokeAccount"]),
    (&["tenants", "list"], &["listTenants"]),
    (&["tenants", "get"], &["getTenant"]),
    (&["tenants", "create"], &["createTenant"]),
    (&["tenants", "limit"], &["limitTenant"]),
    (&["tenants", "remove"], &["removeTenant"]),
    (&["audit", "list"], &["listAudit"]),
    (&["audit", "export"], &["listAudit"]),
    (&["audit", "verify"], &["listAudit"]),
    (&["keys", "create"], &["createKey"]),
    (&["keys", "list"], &["listKeys"]),
    (&["keys", "revoke"], &["revokeKey", "revokeCredential"]),
    (&["keys", "rotate"], &["rotateKey"]),
];

/// Adds to the help of each client command which role it needs.
pub fn with_roles(command: Command) -> Command {
    OPERATIONS.iter().fold(command, |command, (path, operations)| at(command, path, &needs(operations)))
}

/// What a command needs, as a sentence.
fn needs(operations: &[&str]) -> String {
    let rows = operations.iter().filter_map(|id| access::operation(id));
    // The operation that the fewest may do decides.
    let hardest = rows.min_by_key(|row| row.roles.len());
    hardest.map_or_else(String::new, |row| format!("Needs role {}.", access::in_words(row.roles)))
}

fn at(command: Command, path: &[&str], help: &str) -> Command {
    match path {
        [] => command.after_help(help.to_owned()),
        [first, rest @ ..] if command.find_subcommand(first).is_some() => {
            command.mut_subcommand(*first, |inner| at(inner, rest, help))
        }
        _ => command,
    }
}

#[cfg(test)]
mod tests {
    use clap::Subcommand as _;

    use super::*;
    use crate::cli::ClientCommand;

    /// Commands without the server.
    const ALONE: &[&[&str]] = &[&["contexts", "list"], &["contexts", "use"], &["contexts", "remove"]];

    fn leaves(command: &Command, path: &[String], found: &mut Vec<Vec<String>>) {
        let mut inner = command.get_subcommands().filter(|inner| inner.get_name() != "help").peekable();
        if inner.peek().is_none() {
            found.push(path.to_vec());
        }
        for inner in inner {
            leaves(inner, &[path, &[inner.get_name().to_owned()]].concat(), found);
        }
    }

    #[test]
    fn every_command_says_which_role_it_needs() {
        let command = ClientCommand::augment_subcommands(Command::new("muster"));
        let mut found = Vec::new();
        leaves(&command, &[], &mut found);
        for path in found {
            let is_known = OPERATIONS.iter().any(|(known, _)| *known == path.as_slice());
            assert!(
                is_known || ALONE.iter().any(|known| *known == path.as_slice()),
                "{path:?} is not listed"
            );
        }
        for (path, operations) in OPERATIONS {
            assert!(operations.iter().all(|id| access::operation(id).is_some()), "{path:?}");
        }
        let mut with = with_roles(command);
        let apply = with.find_subcommand_mut("apply").unwrap().render_help().to_string();
        assert!(apply.contains("Needs role operator, admin or system."), "{apply}");
    }
}
