//! How long does a database take to answer `select 1`, and, where it is the primary's, to commit a row?
//!
//! On one connection that is kept (clients of a pool do not pay for connecting either). A connection that failed or
//! did not answer in time is dropped, because its state is unknown, and opened again with growing pauses; a probe
//! during a pause fails with the reason of the last attempt. A heartbeat ([`replicator::heartbeat`]) comes after the question and on
//! its connection: the difference of the two is what the write costs, the way there aside.

use std::time::{Duration, Instant};

use replicator::heartbeat::{self, Beat};
use replicator::postgres::{Dsn, connect_apart};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::probe::{Course, Failure, Phase, Probe};
use crate::causes::chain;
use crate::clock;

/// First pause after a failed connection; doubled by each further one.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Probes one database over a kept connection.
pub struct SqlProbe {
    dsn: Dsn,
    timeout: Duration,
    kept: Option<Kept>,
    failed: Option<Failed>,
}

struct Kept {
    client: Client,
    /// Heartbeats may go over it.
    prepared: bool,
    /// Drives the connection; aborted when dropped.
    _driver: JoinSet<()>,
}

/// A heartbeat that has ended.
pub struct Beaten {
    /// Its latency is [`Phase::Write`], or why nothing is known to have been committed.
    pub probe: Probe,
    /// Something forbade it: nothing was tried, so nothing has failed.
    pub refused: bool,
}

struct Failed {
    failure: Failure,
    pause: Duration,
    retry_at: Instant,
    in_a_row: u32,
}

impl SqlProbe {
    /// Of this database; each probe takes at most `timeout`, connecting included.
    pub fn new(dsn: Dsn, timeout: Duration) -> Self {
        Self { dsn, timeout, kept: None, failed: None }
    }

    /// Probes once. The latency is [`Phase::Query`]; [`Phase::Connect`] is there when this probe had to connect.
    ///
    /// Cancel-safe: a dropped probe at worst drops the connection.
    pub async fn run(&mut self) -> Probe {
        let kept = self.kept.take().filter(|kept| !kept.client.is_closed());
        let mut course = Course::begin(if kept.is_some() { Phase::Query } else { Phase::Connect });
        if let Some(failure) = self.paused() {
            return course.found(Err(failure));
        }
        let failure = match tokio::time::timeout(self.timeout, ask(&self.dsn, kept, &mut course)).await {
            Ok(Ok((kept, latency))) => {
                self.kept = Some(kept);
                self.failed = None;
                return course.found(Ok(latency));
            }
            Ok(Err(why)) => course.failed(why),
            Err(_) => course.too_late(self.timeout),
        };
        self.fail(failure.clone());
        course.found(Err(failure))
    }

    /// Writes a heartbeat of `resource` for a node at `generation`, within the limit, over the connection that the last
    /// question was answered on; `None` where there is none.
    ///
    /// A connection on which it failed is dropped. Cancel-safe: so is one on which it was.
    pub async fn beat(&mut self, resource: &str, generation: u64) -> Option<Beaten> {
        let mut kept = self.kept.take().filter(|kept| !kept.client.is_closed())?;
        let mut course = Course::begin(Phase::Write);
        let written = tokio::time::timeout(self.timeout, async {
            if !kept.prepared {
                heartbeat::prepare(&kept.client).await?;
                kept.prepared = true;
                course = Course::begin(Phase::Write);
            }
            heartbeat::beat(&kept.client, resource, generation).await
        });
        let (latency, refused) = match written.await {
            Ok(Ok(Beat::Written)) => (Ok(course.end()), false),
            Ok(Ok(Beat::Refused(why))) => (Err(course.failed(why.to_string())), true),
            Ok(Err(error)) => (Err(course.failed(chain(&error))), false),
            Err(_) => (Err(course.too_late(self.timeout)), false),
        };
        if latency.is_ok() || refused {
            self.kept = Some(kept);
        }
        Some(Beaten { probe: course.found(latency), refused })
    }

    /// How many attempts have failed in a row; a probe during a pause is none.
    pub fn failures(&self) -> u32 {
        self.failed.as_ref().map_or(0, |failed| failed.in_a_row)
    }

    fn paused(&self) -> Option<Failure> {
        let Failed { failure, retry_at, .. } = self.failed.as_ref()?;
        let left = retry_at.checked_duration_since(clock::monotonic()).filter(|left| !left.is_zero())?;
        let why = format!("{} (next attempt in {} ms)", failure.why, left.as_millis());
        Some(Failure { phase: failure.phase, why })
    }

    fn fail(&mut self, failure: Failure) {
        let pause =
            self.failed.as_ref().map_or(SHORTEST_PAUSE, |failed| (failed.pause * 2).min(LONGEST_PAUSE));
        let in_a_row = self.failures().saturating_add(1);
        self.failed = Some(Failed { failure, pause, retry_at: clock::monotonic() + pause, in_a_row });
    }
}

async fn ask(dsn: &Dsn, kept: Option<Kept>, course: &mut Course) -> Result<(Kept, Duration), String> {
    let kept = match kept {
        Some(kept) => kept,
        None => {
            let kept = connect(dsn).await?;
            course.then(Phase::Query);
            kept
        }
    };
    kept.client.simple_query("select 1").await.map_err(|error| chain(&error))?;
    let latency = course.end();
    Ok((kept, latency))
}

async fn connect(dsn: &Dsn) -> Result<Kept, String> {
    let (client, connection) = connect_apart(dsn, "godwit-probe").await.map_err(|error| chain(&error))?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // Its error also reaches the client's next query, which reports it.
        let _ = connection.await;
    });
    Ok(Kept { client, prepared: false, _driver: driver })
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Answers the start of a session and then simple queries as PostgreSQL would, with the tag that `answer` gives each, until
    /// it gives none.
    pub(crate) async fn serve(
        stream: &mut TcpStream,
        mut answer: impl FnMut(&str) -> Option<&'static str>,
    ) -> std::io::Result<()> {
        let length = stream.read_i32().await?;
        stream.read_exact(&mut vec![0; usize::try_from(length - 4).unwrap()]).await?;
        // AuthenticationOk, ReadyForQuery(idle).
        stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await?;
        loop {
            assert_eq!(stream.read_u8().await?, b'Q');
            let length = stream.read_i32().await?;
            let mut query = vec![0; usize::try_from(length - 4).unwrap()];
            stream.read_exact(&mut query).await?;
            let query = String::from_utf8(query).unwrap();
            let Some(tag) = answer(query.trim_end_matches('\0')) else { return Ok(()) };
            let mut complete = vec![b'C', 0, 0, 0, u8::try_from(tag.len() + 5).unwrap()];
            complete.extend(tag.as_bytes());
            complete.extend(b"\0Z\0\0\0\x05I");
            stream.write_all(&complete).await?;
        }
    }

    pub(crate) async fn listen() -> (TcpListener, Dsn) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut dsn: Dsn = "user=godwit sslmode=disable".parse().unwrap();
        dsn.host("127.0.0.1").port(listener.local_addr().unwrap().port());
        (listener, dsn)
    }

    #[tokio::test]
    async fn the_connection_is_kept_and_opened_again_when_it_broke() {
        let (listener, config) = listen().await;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            for mut queries in [2_u32, 9] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let answer = |_: &str| {
                    queries = queries.checked_sub(1)?;
                    Some("SELECT 1")
                };
                serve(&mut stream, answer).await.unwrap();
            }
        });
        let mut probe = SqlProbe::new(config, Duration::from_secs(2));
        let first = probe.run().await;
        assert!(first.latency.is_ok(), "{first:?}");
        assert!(first.phase(Phase::Connect).is_some());
        let second = probe.run().await;
        assert!(second.latency.is_ok() && second.phase(Phase::Connect).is_none());
        // The server has hung up: within a few probes there is a new connection.
        let again = tokio::time::timeout(Duration::from_secs(5), async {
            loop {
                let found = probe.run().await;
                if found.latency.is_ok() {
                    break found;
                }
                tokio::task::yield_now().await;
            }
        });
        assert!(again.await.unwrap().phase(Phase::Connect).is_some());
    }

    #[tokio::test]
    async fn a_refused_connection_is_not_tried_again_at_once() {
        let (listener, config) = listen().await;
        drop(listener);
        let mut probe = SqlProbe::new(config, Duration::from_secs(2));
        let first = probe.run().await.latency.unwrap_err();
        assert!(first.why.contains("refused"), "{first}");
        let second = probe.run().await.latency.unwrap_err();
        assert!(second.why.contains("refused") && second.why.contains("next attempt in"), "{second}");
        assert_eq!([first.phase, second.phase], [Phase::Connect; 2]);
        assert_eq!(probe.failures(), 1, "nobody was asked again");
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_a_failure_after_the_timeout() {
        let (listener, config) = listen().await;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = serve(&mut stream, |_| None).await;
            std::future::pending::<()>().await;
        });
        let mut probe = SqlProbe::new(config, Duration::from_millis(150));
        let failure = probe.run().await.latency.unwrap_err();
        assert_eq!(failure, Failure { phase: Phase::Query, why: "no answer within 150 ms".into() });
        assert!(probe.kept.is_none());
    }

    #[tokio::test]
    async fn a_heartbeat_that_is_not_committed_in_time_costs_its_connection() {
        let (listener, config) = listen().await;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut kept = Vec::new();
            for answers in [false, true] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let answer = |query: &str| match query.split(' ').next() {
                    Some("WITH") => answers.then_some("INSERT 0 1"),
                    Some("SET") => Some("SET"),
                    _ => Some("SELECT 1"),
                };
                let _ = serve(&mut stream, answer).await;
                kept.push(stream);
            }
        });
        let mut probe = SqlProbe::new(config, Duration::from_millis(300));
        assert!(probe.beat("orders", 1).await.is_none(), "nobody was asked yet: there is no connection");
        assert!(probe.run().await.latency.is_ok());
        let Beaten { probe: found, refused } = probe.beat("orders", 1).await.unwrap();
        let why = "the heartbeat was not committed within 300 ms".into();
        assert_eq!((found.latency, refused), (Err(Failure { phase: Phase::Write, why }), false));
        assert!(probe.kept.is_none());
        // What a question takes is measured again at once, over another connection.
        let next = probe.run().await;
        assert!(next.latency.is_ok() && next.phase(Phase::Connect).is_some(), "{next:?}");
        let Beaten { probe: found, refused } = probe.beat("orders", 1).await.unwrap();
        assert!(found.latency.is_ok() && found.phase(Phase::Write).is_some() && !refused, "{found:?}");
        assert!(probe.kept.is_some());
    }

    #[test]
    fn pauses_double_up_to_a_limit() {
        let mut probe = SqlProbe::new(Dsn::default(), Duration::from_secs(1));
        let pauses: Vec<u128> = (0..7)
            .map(|_| {
                probe.fail(Failure { phase: Phase::Connect, why: "refused".into() });
                probe.failed.as_ref().unwrap().pause.as_millis()
            })
            .collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 5000, 5000]);
    }
}
