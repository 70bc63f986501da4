//! How the proxy library is told to reach the endpoint that was picked.

use std::sync::Arc;

use pingora::protocols::ALPN;
use pingora::upstreams::peer::HttpPeer;

use super::settings::{AtCutover, Timeouts};
use crate::fronts::pools::Pick;
use crate::fronts::pools::upgrading::Upgrading;

/// Requests under way on one HTTP/2 connection to an endpoint.
const STREAMS: usize = 100;

/// The peer of a pick. `silent`: it may be silent for long. `upgrading`: the request has a connection of its own.
pub(super) fn of(
    pick: &Pick,
    timeouts: &Timeouts,
    at_cutover: AtCutover,
    silent: bool,
    upgrading: Option<&Arc<Upgrading>>,
) -> HttpPeer {
    let reach = pick.reach();
    let name = reach.server_name.clone().unwrap_or_default();
    let mut peer = HttpPeer::new(pick.reached_at(), reach.server_name.is_some(), name);
    // Connections are kept apart by endpoint, which ends its own when it goes: another resource, or another generation, may
    // have one at the same address. On HTTP/2, where streams share them, also by what becomes of streams at a cutover: one is
    // ended with its connection. On HTTP/1.1, one that may become a tunnel was never another request's.
    let apart = if reach.http2 { rule(at_cutover) } else { u64::from(upgrading.is_some()) };
    peer.group_key = pick.endpoint().number() << 2 | apart;
    let options = &mut peer.options;
    options.total_connection_timeout = Some(timeouts.connect);
    options.idle_timeout = Some(timeouts.keep);
    options.read_timeout = (!silent).then_some(timeouts.answer);
    options.write_timeout = Some(timeouts.answer);
    options.custom_l4 = Some(match upgrading {
        Some(upgrading) => Arc::clone(upgrading) as _,
        None => pick.dialer(),
    });
    options.ca = reach.authorities();
    if reach.http2 {
        options.alpn = ALPN::H2;
        options.max_h2_streams = STREAMS;
    }
    peer
}

fn rule(at_cutover: AtCutover) -> u64 {
    match at_cutover {
        AtCutover::Finish => 1,
        AtCutover::Close => 2,
        AtCutover::Block => 3,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::SocketAddr;

    use pingora::upstreams::peer::Peer as _;

    use super::*;
    use crate::fronts::now;
    use crate::fronts::pools::{ActivePool, Pool};

    /// What the connections to the only endpoint are known by.
    fn key(pool: &ActivePool) -> u64 {
        let pick = pool.pick(&[], now()).unwrap();
        of(&pick, &Timeouts::default(), AtCutover::Finish, false, None).reuse_hash()
    }

    #[test]
    fn connections_are_of_one_endpoint() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let [orders, billing] = [(), ()].map(|()| ActivePool::new(Pool::new(0, "a", &[address])));
        let first = key(&orders);
        assert_eq!(first, key(&orders));
        assert_ne!(first, key(&billing), "another resource's");
        orders.set_upstreams(0, &[address]).unwrap();
        assert_eq!(first, key(&orders), "it stays");
        orders.set_upstreams(0, &[]).unwrap();
        orders.set_upstreams(0, &[address]).unwrap();
        let again = key(&orders);
        assert_ne!(first, again, "it went and came back");
        orders.swap(Pool::new(1, "a", &[address])).unwrap();
        assert_ne!(again, key(&orders), "another generation's");
    }
}
