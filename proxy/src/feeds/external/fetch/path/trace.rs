//! The routers on the way to a host, and since when it has been that way.
//!
//! Echoes of every lifetime go out together; each router that lets one die says so (RFC 792). A router that is silent is not
//! known, and never a change. A way that was seen once only is none yet: a lost answer must not look like another route.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use migration::units::Timestamp;
use socket2::SockRef;
use tokio::time::timeout_at;

use super::icmp::{self, Answer, Echo, Icmp};
use crate::clock;

/// The furthest router.
const HOPS: u16 = 30;
/// Between two echoes: a burst would be answered in part only.
const GAP: Duration = Duration::from_millis(5);
/// How long answers are waited for.
const WAIT: Duration = Duration::from_secs(1);
/// How often what did not answer is asked.
const ROUNDS: u16 = 2;

/// A way. Routers that are silent are `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) hops: Vec<Option<IpAddr>>,
    /// The last of them is the host itself.
    pub(super) reached: bool,
}

/// Traces the way to `to`.
pub(super) async fn run(to: IpAddr) -> std::io::Result<Way> {
    let icmp = Icmp::raw(to)?;
    let luck = crate::rng::seed();
    let (identifier, cookie) = (luck as u16, luck.rotate_left(32));
    let mut found = Found { to, identifier, cookie, hops: vec![None; usize::from(HOPS)], length: None };
    for round in 0..ROUNDS {
        for hop in 0..HOPS {
            if found.needs(hop) {
                let lifetime = u32::from(hop) + 1;
                let socket = SockRef::from(&icmp.socket);
                if to.is_ipv4() {
                    socket.set_ttl_v4(lifetime)?;
                } else {
                    socket.set_unicast_hops_v6(lifetime)?;
                }
                let echo = Echo { identifier, sequence: round * HOPS + hop, cookie };
                icmp.socket.send_to(&icmp::request(to, echo), SocketAddr::new(to, 0)).await?;
                found.listen(&icmp, clock::tick() + GAP).await;
            }
        }
        found.listen(&icmp, clock::tick() + WAIT).await;
    }
    Ok(found.way())
}

struct Found {
    to: IpAddr,
    identifier: u16,
    cookie: u64,
    hops: Vec<Option<IpAddr>>,
    /// Hops to the host, once it has answered.
    length: Option<usize>,
}

impl Found {
    fn needs(&self, hop: u16) -> bool {
        let hop = usize::from(hop);
        self.hops[hop].is_none() && self.length.is_none_or(|length| hop < length)
    }

    /// Until `until`, or until nothing is missing.
    async fn listen(&mut self, icmp: &Icmp, until: tokio::time::Instant) {
        let mut bytes = [0; 512];
        while (0..HOPS).any(|hop| self.needs(hop)) {
            let Ok(received) = timeout_at(until, icmp.socket.recv_from(&mut bytes)).await else { return };
            let Ok((length, from)) = received else { continue };
            if let Some(answer) = icmp::answer(self.to, icmp.header, &bytes[..length]) {
                self.take(answer, from.ip());
            }
        }
    }

    fn take(&mut self, answer: Answer, from: IpAddr) {
        let (sequence, ends) = match answer {
            Answer::Reply { sequence, cookie } if cookie == self.cookie => (sequence, true),
            Answer::Gone { identifier, sequence, exceeded } if identifier == self.identifier => {
                (sequence, !exceeded && from == self.to)
            }
            _ => return,
        };
        let hop = usize::from(sequence % HOPS);
        self.hops[hop].get_or_insert(from);
        if ends {
            self.length = Some(self.length.map_or(hop + 1, |length| length.min(hop + 1)));
        }
    }

    fn way(mut self) -> Way {
        let last_heard = self.hops.iter().rposition(Option::is_some).map_or(0, |hop| hop + 1);
        self.hops.truncate(self.length.unwrap_or(last_heard));
        Way { hops: self.hops, reached: self.length.is_some() }
    }
}

/// What is known of a way over time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) way: Way,
    /// Since when it has been this one; the first: since it was looked at.
    pub(super) since: Timestamp,
    /// What it was before, if it has changed.
    pub(super) before: Option<Way>,
    /// Another one, seen once.
    doubted: Option<(Way, Timestamp)>,
}

impl Known {
    pub(super) fn first(way: Way, at: Timestamp) -> Self {
        Self { way, since: at, before: None, doubted: None }
    }

    /// Takes what was seen at `at`.
    pub(super) fn see(&mut self, way: Way, at: Timestamp) {
        if same(&self.way, &way) {
            self.doubted = None;
            // Routers that had been silent may speak now.
            for (known, seen) in self.way.hops.iter_mut().zip(&way.hops) {
                *known = known.or(*seen);
            }
            // A way that was cut short, by lost answers, goes on as it is seen now.
            self.way.hops.extend(way.hops.iter().skip(self.way.hops.len()));
            self.way.reached |= way.reached;
            return;
        }
        match self.doubted.take() {
            Some((doubted, since)) if same(&doubted, &way) => {
                self.before = Some(std::mem::replace(&mut self.way, way));
                self.since = since;
            }
            _ => self.doubted = Some((way, at)),
        }
    }

    /// Where it differs from what it was before: the hop, from one, with what was there and what is.
    pub(super) fn change(&self) -> Option<(usize, Option<IpAddr>, Option<IpAddr>)> {
        let before = self.before.as_ref()?;
        let at = |way: &Way, hop: usize| way.hops.get(hop).copied().flatten();
        let hop = (0..before.hops.len().max(self.way.hops.len())).find(|hop| {
            let (old, new) = (at(before, *hop), at(&self.way, *hop));
            old != new
                && (old.is_some() && new.is_some() || *hop >= before.hops.len().min(self.way.hops.len()))
        })?;
        Some((hop + 1, at(before, hop), at(&self.way, hop)))
    }
}

/// Whether both may be one way: where both are known they agree.
fn same(one: &Way, other: &Way) -> bool {
    let agree = one.hops.iter().zip(&other.hops).all(|pair| match pair {
        (Some(one), Some(other)) => one == other,
        _ => true,
    });
    // Behind the host there is no router.
    let ends_at = |end: &Way, other: &Way| !end.reached || other.hops.len() <= end.hops.len();
    agree && ends_at(one, other) && ends_at(other, one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(hops: &[u8]) -> Way {
        let address = |last: &u8| (*last > 0).then(|| IpAddr::from([10, 0, 0, *last]));
        Way { hops: hops.iter().map(address).collect(), reached: true }
    }

    #[test]
    fn a_way_that_is_seen_twice_is_a_change_and_silence_is_none() {
        let mut known = Known::first(way(&[1, 0, 3]), Timestamp(1));
        known.see(way(&[1, 2, 0]), Timestamp(2));
        assert_eq!(known, Known { way: way(&[1, 2, 3]), ..Known::first(way(&[]), Timestamp(1)) });
        known.see(way(&[1, 4, 3]), Timestamp(3));
        known.see(way(&[1, 2, 3]), Timestamp(4));
        known.see(way(&[1, 4, 3]), Timestamp(5));
        assert_eq!((known.since, known.change()), (Timestamp(1), None), "it was never seen twice in a row");
        known.see(way(&[1, 4, 0]), Timestamp(6));
        assert_eq!(known.since, Timestamp(5));
        let (hop, old, new) = known.change().unwrap();
        assert_eq!(
            (hop, old.unwrap().to_string(), new.unwrap().to_string()),
            (2, "10.0.0.2".into(), "10.0.0.4".into())
        );
        known.see(way(&[1, 4, 3, 5]), Timestamp(7));
        known.see(way(&[1, 4, 3, 5]), Timestamp(8));
        assert_eq!((known.since, known.change().unwrap().0), (Timestamp(7), 4));
    }

    #[test]
    fn what_lies_behind_a_way_that_was_cut_short_is_seen_to_change() {
        let mut known = Known::first(Way { reached: false, ..way(&[1, 2, 3]) }, Timestamp(1));
        known.see(way(&[1, 2, 3, 4, 5]), Timestamp(2));
        assert_eq!(known, Known::first(way(&[1, 2, 3, 4, 5]), Timestamp(1)));
        known.see(Way { reached: false, ..way(&[1, 2]) }, Timestamp(3));
        assert_eq!(known, Known::first(way(&[1, 2, 3, 4, 5]), Timestamp(1)), "less is known of the same way");
        known.see(way(&[1, 2, 3, 6, 5]), Timestamp(4));
        known.see(way(&[1, 2, 3, 6, 5]), Timestamp(5));
        assert_eq!((known.since, known.change().unwrap().0), (Timestamp(4), 4));
        known.see(Way { reached: false, ..way(&[1, 2, 3, 6, 5, 7]) }, Timestamp(6));
        known.see(way(&[1, 2, 3, 6, 5, 7, 8]), Timestamp(7));
        assert_eq!((known.since, known.change().unwrap().0), (Timestamp(6), 6), "the host was nearer");
    }

    #[test]
    fn answers_come_in_any_order_and_those_of_others_count_for_nothing() {
        let host = IpAddr::from([10, 0, 0, 9]);
        let mut found =
            Found { to: host, identifier: 7, cookie: 8, hops: vec![None; usize::from(HOPS)], length: None };
        found.take(Answer::Reply { sequence: 4, cookie: 8 }, host);
        found.take(Answer::Reply { sequence: 2, cookie: 8 }, host);
        found.take(
            Answer::Gone { identifier: 7, sequence: HOPS, exceeded: true },
            IpAddr::from([10, 0, 0, 1]),
        );
        found.take(Answer::Gone { identifier: 6, sequence: 1, exceeded: true }, IpAddr::from([6, 6, 6, 6]));
        found.take(Answer::Reply { sequence: 1, cookie: 9 }, host);
        assert!(found.needs(1) && !found.needs(3));
        assert_eq!(found.way(), way(&[1, 0, 9]));
    }

    #[tokio::test]
    async fn loopback_is_one_hop_away_or_the_right_that_is_missing_is_named() {
        let to = IpAddr::from([127, 0, 0, 1]);
        match run(to).await {
            Ok(found) => assert_eq!(found, Way { hops: vec![Some(to)], reached: true }),
            Err(error) => {
                assert!(super::super::ping::not_allowed(&error), "{error}");
                assert!(Icmp::raw(to).is_err());
            }
        }
    }
}
