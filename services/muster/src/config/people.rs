//! The sections of who may ask the HTTP API.

use muster_domain::budget::Rate;
use muster_domain::network::Network;

use super::kinds::{boolean, list, network, origin, whole};
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
