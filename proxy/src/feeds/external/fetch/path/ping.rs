//! How long an echo takes, and how many are lost. Where ICMP is not allowed a TCP connection stands in, and a warning says
//! once what would allow it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Once;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout_at;

use super::icmp::{self, Answer, Echo, Icmp};
use crate::clock;

/// Echoes of one run.
pub(super) const ECHOES: u16 = 5;
/// Between two of them.
const GAP: Duration = Duration::from_millis(50);
/// How long the last one is waited for.
const WAIT: Duration = Duration::from_secs(1);
/// Runs over which loss is counted.
const RUNS: usize = 12;

/// One run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Run {
    /// The fastest answer.
    pub(super) rtt: Option<Duration>,
    pub(super) sent: u32,
    pub(super) lost: u32,
    /// By TCP connections, because ICMP is not allowed.
    pub(super) tcp: bool,
}

/// Pings `to`; `port` is for TCP.
pub(super) async fn run(to: IpAddr, port: u16) -> std::io::Result<Run> {
    match Icmp::open(to) {
        Ok(icmp) => echoes(to, &icmp).await,
        Err(error) if not_allowed(&error) => {
            static TOLD: Once = Once::new();
            TOLD.call_once(|| {
                tracing::warn!(
                    "ICMP is not allowed to this process: pings are TCP connections instead; {}",
                    icmp::ALLOW_PING
                );
            });
            Ok(connections(SocketAddr::new(to, port)).await)
        }
        Err(error) => Err(error),
    }
}

/// Whether more rights would help.
pub(super) fn not_allowed(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, Unsupported};
    // A kernel without ping sockets knows no such protocol; the raw socket was refused then, too.
    matches!(error.kind(), PermissionDenied | Unsupported)
}

async fn echoes(to: IpAddr, icmp: &Icmp) -> std::io::Result<Run> {
    let luck = crate::rng::seed();
    let (identifier, cookie) = (luck as u16, luck.rotate_left(32));
    icmp.socket.connect(SocketAddr::new(to, 0)).await?;
    let mut sent = Vec::with_capacity(usize::from(ECHOES));
    let mut took: Vec<Option<Duration>> = vec![None; usize::from(ECHOES)];
    let mut bytes = [0; 512];
    for sequence in 0..ECHOES {
        sent.push(clock::monotonic());
        // What cannot be sent (no way to there, say) is lost like what does not arrive.
        let _ = icmp.socket.send(&icmp::request(to, Echo { identifier, sequence, cookie })).await;
        let last = sequence + 1 == ECHOES;
        let until = clock::tick() + if last { WAIT } else { GAP };
        while took.iter().any(Option::is_none) {
            let Ok(received) = timeout_at(until, icmp.socket.recv(&mut bytes)).await else { break };
            // An error that came back for one of them is no answer; the next may be.
            let Ok(length) = received else { continue };
            let answered = icmp::answer(to, icmp.header, &bytes[..length]);
            if let Some(Answer::Reply { sequence, cookie: theirs }) = answered
                && theirs == cookie
                && let (Some(slot), Some(began)) =
                    (took.get_mut(usize::from(sequence)), sent.get(usize::from(sequence)))
            {
                slot.get_or_insert(began.elapsed());
            }
        }
    }
    Ok(counted(&took, false))
}

/// A refusal is an answer: the host sent it.
async fn connections(to: SocketAddr) -> Run {
    let mut took = Vec::with_capacity(usize::from(ECHOES));
    for _ in 0..ECHOES {
        let began = clock::monotonic();
        let connected = tokio::time::timeout(WAIT, TcpStream::connect(to)).await;
        let answered = match connected {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
            Err(_) => false,
        };
        took.push(answered.then(|| began.elapsed()));
        tokio::time::sleep(GAP).await;
    }
    counted(&took, true)
}

fn counted(took: &[Option<Duration>], tcp: bool) -> Run {
    let lost = took.iter().filter(|one| one.is_none()).count();
    Run { rtt: took.iter().flatten().min().copied(), sent: took.len() as u32, lost: lost as u32, tcp }
}

/// What was lost lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Lately(VecDeque<(u64, u64)>);

impl Lately {
    /// Takes what was sent and lost since the last time; gives the share of the last runs, if anything was sent.
    pub(super) fn share(&mut self, sent: u64, lost: u64) -> Option<f64> {
        self.0.push_back((sent, lost));
        if self.0.len() > RUNS {
            self.0.pop_front();
        }
        let (sent, lost) = self.0.iter().fold((0, 0), |(all, gone), (sent, lost)| (all + sent, gone + lost));
        (sent > 0).then(|| lost as f64 / sent as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn loopback_answers_by_icmp_or_where_that_is_not_allowed_by_tcp() {
        for to in [IpAddr::from([127, 0, 0, 1]), "::1".parse().unwrap()] {
            // Nobody listens at port 1: the refusal is the answer.
            let run = match run(to, 1).await {
                Ok(run) => run,
                // A machine without IPv6.
                Err(error) if to.is_ipv6() && error.kind() == std::io::ErrorKind::AddrNotAvailable => {
                    continue;
                }
                Err(error) => panic!("{to}: {error}"),
            };
            assert_eq!((run.sent, run.lost), (u32::from(ECHOES), 0), "{to}");
            assert!(run.rtt.is_some_and(|rtt| rtt < WAIT));
            assert_eq!(run.tcp, Icmp::open(to).is_err());
        }
    }

    #[tokio::test]
    async fn without_icmp_connections_are_timed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = connections(listener.local_addr().unwrap()).await;
        assert_eq!((open.lost, open.tcp), (0, true));
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(connections(address).await.lost, 0, "a refusal is an answer");
    }

    #[test]
    fn loss_is_that_of_the_last_runs() {
        let mut lately = Lately::default();
        assert_eq!(lately.share(0, 0), None);
        assert_eq!(lately.share(5, 5), Some(1.0));
        assert_eq!(lately.share(5, 0), Some(0.5));
        for _ in 0..RUNS {
            lately.share(5, 0);
        }
        assert_eq!(lately.share(5, 0), Some(0.0));
        assert!(counted(&[None, None], false).rtt.is_none());
    }
}
