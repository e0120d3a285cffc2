//! TCP ports that nobody uses.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rand::Rng;

/// Handed out by this process, to its servers that may be down just now.
static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Finds ports of 127.0.0.1 that are free and that this function did not give to anybody else in
/// this process.
///
/// They lie below the range from which the system takes the ports of outgoing connections: a client
/// that connects to a server that is down can otherwise get the server's own port and keep it.
pub fn free_ports(count: usize) -> Vec<u16> {
    let candidates = candidates();
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = Vec::with_capacity(count);
    for _ in 0..10_000 {
        if found.len() == count {
            break;
        }
        let wanted = candidates.as_ref().map_or(0, |range| rand::rng().random_range(range.clone()));
        let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).and_then(|socket| socket.local_addr());
        if let Ok(address) = bound
            && taken.insert(address.port())
        {
            found.push(address.port());
        }
    }
    assert_eq!(found.len(), count, "this machine has no {count} free ports left");
    found
}

/// The ports to choose from; nothing where the system's own range leaves none.
fn candidates() -> Option<Range<u16>> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    below(&range)
}

fn below(ephemeral: &str) -> Option<Range<u16>> {
    let lowest = ephemeral.split_whitespace().next().map_or(Some(32_768), |low| low.parse().ok())?;
    let range = 10_000..lowest.min(32_768);
    (range.len() >= 1_000).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let mut ports = free_ports(20);
        ports.extend(free_ports(20));
        let distinct: BTreeSet<_> = ports.iter().collect();
        assert_eq!(distinct.len(), 40);
    }

    #[test]
    fn ports_lie_below_the_ephemeral_ones() {
        assert_eq!(below("32768\t60999\n"), Some(10_000..32_768));
        assert_eq!(below("16000\t65000\n"), Some(10_000..16_000));
        assert_eq!(below("1024\t65000\n"), None);
        assert_eq!(below(""), Some(10_000..32_768));
    }
}
