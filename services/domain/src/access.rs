//! Who may do what: the one table of operations and roles, and the decision that it makes.
//!
//! An operation has the name that the OpenAPI document gives it (`operationId`). What is not in the table
//! nobody may do. The API decides by it, and the help of the command line and `docs/access.md` are made
//! from it.

use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::Tenant;

/// What a person or a service may do in its tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads, applies configurations, labels and commands agents.
    Operator,
    /// Reads, and approves what others have applied.
    Approver,
    /// Everything in its tenant, tokens and the audit log among it.
    Admin,
    /// Everything in every tenant, and the tenants themselves.
    System,
}

impl Role {
    /// Every role, in the order of the table's columns.
    pub const ALL: [Self; 5] = [Self::Viewer, Self::Operator, Self::Approver, Self::Admin, Self::System];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Approver => "approver",
            Self::Admin => "admin",
            Self::System => "system",
        }
    }

    /// What it is for, in a few words.
    pub fn about(self) -> &'static str {
        match self {
            Self::Viewer => "reads",
            Self::Operator => "reads, applies configurations, labels and commands agents",
            Self::Approver => "reads, and approves what others have applied",
            Self::Admin => "everything in its tenant, tokens and the audit log among it",
            Self::System => "everything in every tenant, and the tenants themselves",
        }
    }

    /// Whether who has this role may do everything that the other role may.
    pub fn includes(self, other: Self) -> bool {
        OPERATIONS
            .iter()
            .all(|operation| !operation.roles.contains(&other) || operation.roles.contains(&self))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: use viewer, operator, approver, admin or system")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

/// Something that the API can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Its name in the OpenAPI document.
    pub id: &'static str,
    /// What it does, in a few words.
    pub about: &'static str,
    /// Who may do it; for everybody, also without a token, [`Role::ALL`] and `is_public`.
    pub roles: &'static [Role],
    /// Whether nobody is asked who they are.
    pub is_public: bool,
    /// Whether it changes something, and so stands in the audit log.
    pub is_change: bool,
}

const READERS: &[Role] = &Role::ALL;
const OPERATORS: &[Role] = &[Role::Operator, Role::Admin, Role::System];

const ADMINS: &[Role] = &[Role::Admin, Role::System];
const APPROVERS: &[Role] = &[Role::Approver, Role::Admin, Role::System];

const fn public(id: &'static str, about: &'static str) -> Operation {
    Operation { id, about, roles: READERS, is_public: true, is_change: false }
}

const fn read(id: &'static str, about: &'static str) -> Operation {
    Operation { id, about, roles: READERS, is_public: false, is_change: false }
}

const fn administer(id: &'static str, about: &'static str, is_change: bool) -> Operation {
    Operation { id, about, roles: ADMINS, is_public: false, is_change }
}

const fn system(id: &'static str, about: &'static str, is_change: bool) -> Operation {
    Operation { id, about, roles: &[Role::System], is_public: false, is_change }
}

const fn operate(id: &'static str, about: &'static str) -> Operation {
    Operation { id, about, roles: OPERATORS, is_public: false, is_change: true }
}

const fn approve(id: &'static str, about: &'static str) -> Operation {
    Operation { id, about, roles: APPROVERS, is_public: false, is_change: true }
}

/// The table: every operation of the API.
pub const OPERATIONS: &[Operation] = &[
    read("listAgents", "list agents"),
    read("getAgent", "show an agent"),
    operate("labelAgent", "set and remove an agent's labels"),
    operate("retryAgent", "offer an agent again what it could not apply"),
    operate("commandAgent", "give an agent a command"),
    operate("commandAgents", "give commands to the agents that a selector matches"),
    read("listAgentCommands", "list an agent's commands"),
    read("listCommands", "show commands"),
    read("getCommand", "show a command"),
    read("watchEvents", "watch what happens to agents"),
    operate("apply", "apply manifests"),
    read("diffManifests", "say what applying manifests would change"),
    read("listConfigs", "list templates"),
    read("getConfig", "show a template"),
    read("listConfigVersions", "list the versions of a template"),
    read("diffConfigVersions", "compare versions of a template"),
    operate("deleteConfig", "delete a template"),
    read("listAssignments", "list assignments"),
    read("getAssignment", "show an assignment"),
    operate("deleteAssignment", "delete an assignment"),
    read("listChanges", "list changes of the configuration"),
    read("explainAgent", "explain why an agent has what it has"),
    read("previewConfig", "preview an agent's config"),
    read("whoAmI", "show who asks"),
    administer("listTokens", "list tokens", false),
    administer("createToken", "make a token", true),
    administer("revokeToken", "revoke a token", true),
    administer("revokeAccount", "revoke all tokens of an account", true),
    administer("listAudit", "show the audit log", false),
    system("listTenants", "list tenants", false),
    system("getTenant", "show a tenant", false),
    system("createTenant", "make a tenant", true),
    system("limitTenant", "set what a tenant may use", true),
    system("removeTenant", "remove a tenant", true),
    administer("createKey", "make a key for agents", true),
    administer("listKeys", "list agents' keys", false),
    administer("getKey", "show one of agents' keys", false),
    administer("revokeKey", "revoke a key of agents", true),
    administer("rotateKey", "replace a key of agents", true),
    administer("revokeCredential", "revoke agents' tokens or certificates by name", true),
    read("listStrategies", "list rollout strategies"),
    read("getStrategy", "show a rollout strategy"),
    read("listRollouts", "list rollouts"),
    read("getRollout", "show a rollout"),
    read("listRolloutAgents", "list the agents that a rollout has admitted"),
    approve("approveRollout", "let a rollout begin"),
    operate("pauseRollout", "send nothing more of a rollout"),
    operate("resumeRollout", "go on with a rollout"),
    operate("promoteRollout", "go to a rollout's next stage"),
    operate("abortRollout", "end a rollout where it stands"),
    operate("rollBackRollout", "give agents back what they had before a rollout"),
    public("health", "whether the process is alive"),
    public("ready", "whether the process can serve"),
    public("metrics", "the process's metrics, which name no tenant"),
];

/// The row of an operation.
pub fn operation(id: &str) -> Option<&'static Operation> {
    OPERATIONS.iter().find(|operation| operation.id == id)
}

/// Somebody who has shown who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Their name, as the audit log has it.
    pub name: String,
    /// The tenant that they are of.
    pub tenant: Tenant,
    /// What they may do there.
    pub role: Role,
}

/// Whether a request may be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It may, for this tenant.
    Allowed(Tenant),
    /// It may not: the reason, and what would help.
    Denied(String),
}

/// Decides whether a principal may do something; `named` is the tenant that the request asks for, where it
/// names one.
pub fn decide(principal: &Principal, operation: &Operation, named: Option<&Tenant>) -> Decision {
    let Principal { name, tenant, role } = principal;
    if !operation.is_public && !operation.roles.contains(role) {
        return Decision::Denied(format!(
            "{name} has role {role} in tenant {tenant}, which may not {} ({}): it needs {}",
            operation.about,
            operation.id,
            in_words(operation.roles)
        ));
    }
    match named {
        Some(named) if named != tenant && *role != Role::System => Decision::Denied(format!(
            "{name} is of tenant {tenant}: only role system may name another tenant"
        )),
        Some(named) => Decision::Allowed(named.clone()),
        None => Decision::Allowed(tenant.clone()),
    }
}

/// Roles as a text: `operator, admin or system`.
pub fn in_words(roles: &[Role]) -> String {
    let names: Vec<_> = roles.iter().map(|role| role.name()).collect();
    match names.as_slice() {
        [] => "no role".to_owned(),
        [one] => (*one).to_owned(),
        [init @ .., last] => format!("{} or {last}", init.join(", ")),
    }
}

/// The table in Markdown.
pub fn table() -> String {
    let mut table = "| Operation | What it does |".to_owned();
    for role in Role::ALL {
        let _ = write!(table, " {role} |");
    }
    let _ = writeln!(table, "\n|---|---|{}", ":-:|".repeat(Role::ALL.len()));
    for operation in OPERATIONS {
        let change = if operation.is_change { " (a change)" } else { "" };
        let _ = write!(table, "| `{}` | {}{change} |", operation.id, operation.about);
        for role in Role::ALL {
            let mark = match operation.roles.contains(&role) {
                true if operation.is_public => "all",
                true => "yes",
                false => "",
            };
            let _ = write!(table, " {mark} |");
        }
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn mk_principal(role: Role) -> Principal {
        Principal { name: "ana".to_owned(), tenant: "acme".parse().unwrap(), role }
    }

    #[test]
    fn roles_are_nested_but_for_the_approver() {
        use Role::{Admin, Approver, Operator, System, Viewer};
        for (role, included) in [
            (Viewer, &[Viewer][..]),
            (Operator, &[Viewer, Operator]),
            (Approver, &[Viewer, Approver]),
            (Admin, &[Viewer, Operator, Approver, Admin]),
            (System, &Role::ALL),
        ] {
            for other in included {
                assert!(role.includes(*other), "{role} does not include {other}");
            }
        }
        assert!(!Viewer.includes(Operator) && !Approver.includes(Operator));
    }

    #[test]
    fn an_operation_stands_once_and_somebody_may_do_it() {
        let ids: BTreeSet<_> = OPERATIONS.iter().map(|operation| operation.id).collect();
        assert_eq!(ids.len(), OPERATIONS.len());
        for operation in OPERATIONS {
            assert!(operation.roles.contains(&Role::System), "{}", operation.id);
            assert!(!(operation.is_public && operation.is_change), "{}", operation.id);
            assert!(!(operation.is_change && operation.roles.contains(&Role::Viewer)), "{}", operation.id);
        }
    }

    #[test]
    fn a_denial_says_who_what_and_which_role_helps() {
        let apply = operation("apply").unwrap();
        assert_eq!(
            decide(&mk_principal(Role::Viewer), apply, None),
            Decision::Denied(
                "ana has role viewer in tenant acme, which may not apply manifests (apply): it needs operator, \
                 admin or system"
                    .to_owned()
            )
        );
        let own: Tenant = "acme".parse().unwrap();
        assert_eq!(decide(&mk_principal(Role::Operator), apply, None), Decision::Allowed(own));
    }

    #[test]
    fn only_the_system_role_names_another_tenant() {
        let list = operation("listAgents").unwrap();
        let (own, other): (Tenant, Tenant) = ("acme".parse().unwrap(), "globex".parse().unwrap());
        for role in Role::ALL {
            let principal = mk_principal(role);
            assert_eq!(decide(&principal, list, Some(&own)), Decision::Allowed(own.clone()));
            let decision = decide(&principal, list, Some(&other));
            assert_eq!(decision == Decision::Allowed(other.clone()), role == Role::System, "{decision:?}");
        }
    }

    #[test]
    fn a_role_is_parsed_by_its_name() {
        for role in Role::ALL {
            assert_eq!(role.name().parse(), Ok(role));
            assert_eq!(serde_json::to_value(role).unwrap(), role.name());
        }
        assert!("root".parse::<Role>().unwrap_err().to_string().contains("approver"));
    }
}
