//! Round trip and loss of the QUIC link to another zone, as its transport counts them.
//!
//! A link on which nothing comes back goes on telling what it last knew, for as long as QUIC takes to give it up. So it is asked only
//! once something has come since the look began.

use std::collections::BTreeMap;
use std::time::Duration;

use replicator::link::Transport;
use replicator::link::quic::KEEP_ALIVE;

use super::ping::Lately;
use crate::causes::chain;
use crate::feeds::external::fetch::Reach;

/// Open links by number.
type Open = Vec<(u64, Transport)>;

/// For how long nothing may come over any link: three signs of life of QUIC's own, and streams say more.
const SILENCE: Duration = KEEP_ALIVE.saturating_mul(3);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// What the open links to `zone` say; where none is open, what a handshake says.
pub(super) async fn read(zone: &str, reach: &Reach) -> Result<Open, String> {
    let Some(links) = &reach.links else { return Err("this process has no links".into()) };
    let Some(connector) = links.connector(zone) else {
        return Err(format!("this node has no link to {zone} (zones.{zone}.link and .node, node.link)"));
    };
    match tokio::time::timeout(SILENCE, heard(|| connector.transports())).await {
        Ok(Some(open)) => return Ok(open),
        // None is open, or all have ended meanwhile.
        Ok(None) => {}
        Err(_) => return Err(format!("nothing came over the open link for {} s", SILENCE.as_secs())),
    }
    // It is no link of a stream: its number must not be taken for one.
    let measured = connector.measure().await.map_err(|error| chain(&error))?;
    Ok(vec![(u64::MAX, measured)])
}

/// The open links as soon as something has come over one of them since now; `None` when none is open.
async fn heard(open: impl Fn() -> Open) -> Option<Open> {
    let before: BTreeMap<u64, Transport> = open().into_iter().collect();
    loop {
        let now = open();
        if now.is_empty() {
            return None;
        }
        let came = |(number, link): &(u64, Transport)| {
            // The handshake of a new one was answered.
            before.get(number).is_none_or(|before| link.received_datagrams > before.received_datagrams)
        };
        if now.iter().any(came) {
            return Some(now);
        }
        tokio::time::sleep(LOOK).await;
    }
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
        Transport {
            round_trip: Duration::from_millis(20),
            sent_packets,
            lost_packets,
            received_datagrams: sent_packets,
        }
    }

    #[tokio::test]
    async fn a_link_says_nothing_until_something_has_come_over_it() {
        use std::cell::RefCell;

        let silent = || vec![(0, at(100, 0)), (1, at(100, 0))];
        let patience = LOOK * 4;
        assert!(tokio::time::timeout(patience, heard(silent)).await.is_err());
        assert_eq!(heard(Vec::new).await, None);
        // What each look finds, the last one first.
        let looks = RefCell::new(vec![vec![(0, at(100, 0)), (1, at(101, 0))], silent(), silent()]);
        let open = || looks.borrow_mut().pop().unwrap_or_default();
        assert_eq!(heard(open).await.map(|open| open.len()), Some(2));
        // The one that was there has ended, and another is open; or none is.
        let looks = RefCell::new(vec![vec![(2, at(5, 0))], silent()]);
        assert_eq!(heard(|| looks.borrow_mut().pop().unwrap_or_default()).await, Some(vec![(2, at(5, 0))]));
        let looks = RefCell::new(vec![Vec::new(), silent()]);
        assert_eq!(heard(|| looks.borrow_mut().pop().unwrap_or_default()).await, None);
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
