//! The sections of who may ask the HTTP API.

use muster_domain::budget::Rate;
use muster_domain::network::Network;

use super::kinds::{boolean, choice, list, network, one_of, origin, text, whole};
use super::reader::{key, optional, section};

section! {
    /// Section `auth.api`: requests to the HTTP API.
    ApiAccess {
        /// Whether requests to the API must show a token.
        required: Option<bool> = optional(boolean()).shown("unless `auth.type` is `none`");
        /// Networks that requests to the API are taken from, such as `10.0.0.0/8`; from everywhere where the list is empty.
        allowed_networks: Vec<Network> = key(list(network()), Vec::new());
        /// Networks of proxies whose `X-Forwarded-For` is believed.
        trusted_proxies: Vec<Network> = key(list(network()), Vec::new());
        /// Origins of web pages that may ask the API, such as `https://console.example.com`.
        cors_origins: Vec<String> = key(list(origin()), Vec::new());
        /// Requests a second of a tenant to one process, in the long run, where tokens are required.
        requests_per_second: u64 = key(whole(1), 1_000);
        /// Requests of a tenant to one process at once, after a pause.
        requests_burst: u64 = key(whole(1), 2_000);
        /// Failed attempts a second of one address to show who it is, in the long run.
        failures_per_second: u64 = key(whole(1), 1);
        /// Failed attempts of one address at once, after a pause.
        failures_burst: u64 = key(whole(1), 20);
    }
}

impl ApiAccess {
    /// How often a tenant may ask.
    pub fn requests(&self) -> Rate {
        Rate { per_second: self.requests_per_second, burst: self.requests_burst }
    }

    /// How often an address may fail to show who it is.
    pub fn failures(&self) -> Rate {
        Rate { per_second: self.failures_per_second, burst: self.failures_burst }
    }
}

section! {
    /// Section `oidc`: tokens of people that an issuer signs (OpenID Connect).
    Oidc {
        /// The issuer, as its tokens name it.
        issuer: Option<String> = optional(text());
        /// Whom tokens must be meant for; needed with `oidc.issuer`.
        audience: Option<String> = optional(text());
        /// File or URL of the issuer's keys (JWKS), where the issuer does not say itself.
        jwks: Option<String> = optional(text());
        /// The claim that names the person.
        account_claim: String = key(text(), "sub".to_owned());
        /// The claim that names the person's tenant.
        tenant_claim: String = key(text(), "muster_tenant".to_owned());
        /// The tenant of tokens that name none; without it they are refused.
        tenant: Option<String> = optional(text());
        /// The claim that names the person's role, or roles.
        role_claim: String = key(text(), "muster_role".to_owned());
        /// The most that such a token allows.
        most_role: RoleName = key(one_of(), RoleName::Admin);
    }
}

choice! {
    /// A role.
    RoleName {
        /// Reads.
        Viewer = "viewer";
        /// Applies and commands.
        Operator = "operator";
        /// Approves.
        Approver = "approver";
        /// Everything in its tenant.
        Admin = "admin";
        /// Everything in every tenant.
        System = "system";
    }
}
