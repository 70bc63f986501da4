//! How long does a database take to answer `select 1`?
//!
//! On one connection that is kept (clients of a pool do not pay for connecting either). A connection that failed or
//! did not answer in time is dropped, because its state is unknown, and opened again with growing pauses; a probe
//! during a pause fails with the reason of the last attempt.

use std::time::{Duration, Instant};

use replicator::postgres::{Dsn, connect_apart};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::{Phase, Probe, chain};
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
    /// Drives the connection; aborted when dropped.
    _driver: JoinSet<()>,
}

struct Failed {
    why: String,
    pause: Duration,
    retry_at: Instant,
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
        let mut phases = Vec::with_capacity(2);
        let kept = self.kept.take();
        let latency = match self.paused() {
            Some(why) => Err(why),
            None => match tokio::time::timeout(self.timeout, ask(&self.dsn, kept, &mut phases)).await {
                Ok(Ok((kept, latency))) => {
                    self.kept = Some(kept);
                    self.failed = None;
                    Ok(latency)
                }
                Ok(Err(why)) => Err(self.fail(why)),
                Err(_) => Err(self.fail(format!("no answer within {} ms", self.timeout.as_millis()))),
            },
        };
        Probe { latency, phases, at: clock::now() }
    }

    fn paused(&self) -> Option<String> {
        let failed = self.failed.as_ref()?;
        let left = failed.retry_at.checked_duration_since(clock::monotonic())?;
        (!left.is_zero()).then(|| format!("{} (next attempt in {} ms)", failed.why, left.as_millis()))
    }

    fn fail(&mut self, why: String) -> String {
        let pause =
            self.failed.as_ref().map_or(SHORTEST_PAUSE, |failed| (failed.pause * 2).min(LONGEST_PAUSE));
        self.failed = Some(Failed { why: why.clone(), pause, retry_at: clock::monotonic() + pause });
        why
    }
}

async fn ask(
    dsn: &Dsn,
    kept: Option<Kept>,
    phases: &mut Vec<(Phase, Duration)>,
) -> Result<(Kept, Duration), String> {
    let kept = match kept.filter(|kept| !kept.client.is_closed()) {
        Some(kept) => kept,
        None => connect(dsn, phases).await?,
    };
    let begin = clock::monotonic();
    kept.client.simple_query("select 1").await.map_err(|error| chain(&error))?;
    let latency = begin.elapsed();
    phases.push((Phase::Query, latency));
    Ok((kept, latency))
}

async fn connect(dsn: &Dsn, phases: &mut Vec<(Phase, Duration)>) -> Result<Kept, String> {
    let begin = clock::monotonic();
    let (client, connection) = connect_apart(dsn, "godwit-probe").await.map_err(|error| chain(&error))?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // Its error also reaches the client's next query, which reports it.
        let _ = connection.await;
    });
    phases.push((Phase::Connect, begin.elapsed()));
    Ok(Kept { client, _driver: driver })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Answers the start of a session and then each simple query, as PostgreSQL would; `queries` of them.
    async fn session(stream: &mut TcpStream, queries: usize) -> std::io::Result<()> {
        let length = stream.read_i32().await?;
        stream.read_exact(&mut vec![0; usize::try_from(length - 4).unwrap()]).await?;
        // AuthenticationOk, ReadyForQuery(idle).
        stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await?;
        for _ in 0..queries {
            assert_eq!(stream.read_u8().await?, b'Q');
            let length = stream.read_i32().await?;
            stream.read_exact(&mut vec![0; usize::try_from(length - 4).unwrap()]).await?;
            // CommandComplete "SELECT 1", ReadyForQuery(idle).
            stream.write_all(b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I").await?;
        }
        Ok(())
    }

    async fn listen() -> (TcpListener, Dsn) {
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
            for queries in [2, 9] {
                let (mut stream, _) = listener.accept().await.unwrap();
                session(&mut stream, queries).await.unwrap();
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
        assert!(first.contains("refused"), "{first}");
        let second = probe.run().await.latency.unwrap_err();
        assert!(second.contains("refused") && second.contains("next attempt in"), "{second}");
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_a_failure_after_the_timeout() {
        let (listener, config) = listen().await;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = session(&mut stream, 0).await;
            std::future::pending::<()>().await;
        });
        let mut probe = SqlProbe::new(config, Duration::from_millis(150));
        let why = probe.run().await.latency.unwrap_err();
        assert_eq!(why, "no answer within 150 ms");
        assert!(probe.kept.is_none());
    }

    #[test]
    fn pauses_double_up_to_a_limit() {
        let mut probe = SqlProbe::new(Dsn::default(), Duration::from_secs(1));
        let pauses: Vec<u128> = (0..7)
            .map(|_| {
                probe.fail("refused".into());
                probe.failed.as_ref().unwrap().pause.as_millis()
            })
            .collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 5000, 5000]);
    }
}
