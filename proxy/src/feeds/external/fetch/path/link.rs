//! Round trip and loss of the QUIC link to another zone, as its transport counts them.

use std::collections::BTreeMap;
use std::time::Duration;

use replicator::link::Transport;

use super::ping::Lately;
use crate::feeds::external::fetch::{Reach, chain};

/// Open links by number.
type Open = Vec<(u64, Transport)>;

/// What the open links to `zone` say; where none is open, what a handshake says.
pub(super) async fn read(zone: &str, reach: &Reach) -> Result<Open, String> {
    let Some(links) = &reach.links else { return Err("this process has no links".into()) };
    let Some(connector) = links.connector(zone) else {
        return Err(format!("this node has no link to {zone} (zones.{zone}.link and .node, node.link)"));
    };
    let open = connector.transports();
    if !open.is_empty() {
        return Ok(open);
    }
    // It is no link of a stream: its number must not be taken for one.
    let measured = connector.measure().await.map_err(|error| chain(&error))?;
    Ok(vec![(u64::MAX, measured)])
}

/// The counters of each link, as they were last time.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    counters: BTreeMap<u64, (u64, u64)>,
    lately: Lately,
}

impl Seen {
    /// Round trip of the newest link, and the share of packets lost lately on all.
    pub(super) fn take(&mut self, open: &[(u64, Transport)]) -> (Option<Duration>, Option<f64>) {
        let (mut sent, mut lost) = (0, 0);
        let mut counters = BTreeMap::new();
        for (number, now) in open {
            // Each handshake begins to count anew.
            let before =
                self.counters.get(number).filter(|_| *number != u64::MAX).copied().unwrap_or_default();
            sent += now.sent_packets.saturating_sub(before.0);
            lost += now.lost_packets.saturating_sub(before.1);
            counters.insert(*number, (now.sent_packets, now.lost_packets));
        }
        self.counters = counters;
        let newest = open.iter().max_by_key(|(number, _)| *number);
        (newest.map(|(_, now)| now.round_trip), self.lately.share(sent, lost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sent_packets: u64, lost_packets: u64) -> Transport {
        Transport { round_trip: Duration::from_millis(20), sent_packets, lost_packets }
    }

    #[test]
    fn loss_is_counted_from_one_look_to_the_next_on_each_link() {
        let mut seen = Seen::default();
        assert_eq!(seen.take(&[(0, at(100, 10))]), (Some(Duration::from_millis(20)), Some(0.1)));
        assert_eq!(seen.take(&[(0, at(200, 10))]).1, Some(0.05));
        // A new link counts from nothing, the old one goes on.
        assert_eq!(seen.take(&[(0, at(300, 10)), (1, at(100, 30))]).1, Some(0.1));
        assert_eq!(seen.take(&[(1, at(200, 30))]).1, Some(0.08));
        assert_eq!(Seen::default().take(&[]), (None, None));
    }
}
