//! Asks the endpoints of a front's active pool how they are, and their names where they lead.
//!
//! Each endpoint is asked at a moment of its own, spread by luck, so that many nodes do not ask at once. Some failures in a
//! row take it out, some answers bring it back; requests only read the result. Where all are down, requests go on as if none
//! were: a check that is wrong must not take the service with it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::http::settings::HealthCheck;
use super::pools::{Endpoint, Reach};
use super::routes::ResourceFront;
use crate::clock;
use crate::telemetry::names;

/// How often names of endpoints are looked up again.
const RESOLVE: Duration = Duration::from_secs(30);
/// How soon, where one was not found so far.
const AGAIN: Duration = Duration::from_secs(2);
/// The first checks come within this share of the interval, later ones are spread by it to both sides.
const JITTER: f64 = 0.2;

/// Keeps a front's endpoints checked and their names resolved, for ever.
pub async fn keep(front: Arc<ResourceFront>) {
    tokio::join!(check(&front), resolve(&front));
}

async fn resolve(front: &ResourceFront) {
    let mut said = HashMap::new();
    loop {
        let lost = front.pool.reaches().any(|(_, reach)| !reach.not_found().is_empty());
        tokio::time::sleep(spread(if lost { AGAIN } else { RESOLVE })).await;
        // A driver may have given a placement its names meanwhile.
        let named = front.pool.reaches().filter(|(_, reach)| reach.has_names());
        // At once: a zone whose names are lost keeps none of another's.
        let resolved =
            join_all(named.map(|(zone, reach)| async move { (zone, reach.resolve().await) })).await;
        for (zone, resolved) in resolved {
            let why = resolved.err().map(|error| format!("{error:#}"));
            if said.insert(zone, why.clone()).flatten() != why
                && let Some(error) = why
            {
                tracing::warn!(resource = %front.name, %zone, error, "names are not resolved");
            }
        }
    }
}

/// One endpoint's record.
struct Known {
    endpoint: Arc<Endpoint>,
    due: tokio::time::Instant,
    failures: u32,
    answers: u32,
    asked: bool,
}

async fn check(front: &Arc<ResourceFront>) {
    let Some(rules) = front.settings.health.clone() else { return };
    let mut known: Vec<Known> = Vec::new();
    let mut asking = JoinSet::new();
    let look = (rules.every / 10).clamp(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        let now = clock::tick();
        let pool = Arc::clone(&front.pool.load());
        known.retain(|one| pool.endpoints().iter().any(|endpoint| Arc::ptr_eq(endpoint, &one.endpoint)));
        for endpoint in pool.endpoints() {
            if !known.iter().any(|one| Arc::ptr_eq(&one.endpoint, endpoint)) {
                let due = now + rules.every.mul_f64(JITTER * luck());
                known.push(Known { endpoint: endpoint.clone(), due, failures: 0, answers: 0, asked: false });
            }
        }
        for one in known.iter_mut().filter(|one| !one.asked && one.due <= now) {
            one.asked = true;
            let (endpoint, reach, rules, front) =
                (one.endpoint.clone(), pool.reach.clone(), rules.clone(), front.clone());
            asking.spawn(async move {
                let asked = ask(reach.reached_at(endpoint.address()), &reach, &rules, host(&front));
                let answer = tokio::time::timeout(rules.timeout, asked).await;
                (endpoint, answer.unwrap_or_else(|_| Err(format!("no answer within {:?}", rules.timeout))))
            });
        }
        tokio::select! {
            Some(Ok((endpoint, answer))) = asking.join_next() => {
                let one = known.iter_mut().find(|one| Arc::ptr_eq(&one.endpoint, &endpoint));
                if let Some(one) = one {
                    one.asked = false;
                    one.due = clock::tick() + spread(rules.every);
                    one.learn(front, &pool.zone, &rules, answer);
                }
            }
            () = tokio::time::sleep(look) => {}
        }
    }
}

impl Known {
    fn learn(&mut self, front: &ResourceFront, zone: &str, rules: &HealthCheck, answer: Result<(), String>) {
        let address = self.endpoint.address();
        match answer {
            Ok(()) => {
                (self.failures, self.answers) = (0, self.answers.saturating_add(1));
                // A fresh endpoint counts as well already.
                if self.answers >= rules.up_after && self.endpoint.found(true) {
                    tracing::info!(resource = %front.name, zone, %address, "endpoint is up");
                }
            }
            Err(why) => {
                (self.failures, self.answers) = (self.failures.saturating_add(1), 0);
                metrics::counter!(names::HEALTH_FAILURES, names::RESOURCE => front.name.to_string(),
                    names::ZONE => zone.to_owned())
                .increment(1);
                if self.failures >= rules.down_after && self.endpoint.found(false) {
                    tracing::warn!(resource = %front.name, zone, %address, why, "endpoint is down");
                }
            }
        }
    }
}

fn host(front: &ResourceFront) -> String {
    front.hosts.first().cloned().unwrap_or_else(|| "localhost".to_owned())
}

/// Asks once.
async fn ask(address: SocketAddr, reach: &Reach, rules: &HealthCheck, host: String) -> Result<(), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let Some(path) = &rules.path else { return Ok(()) };
    let asked = async { reach.greet(stream).await?.get(path, &host, "godwit-health").await };
    let status = asked.await.map_err(|error| error.to_string())?.response.status();
    if status.is_success() { Ok(()) } else { Err(format!("it answered {}", status.as_u16())) }
}

/// The interval, a little longer or shorter.
fn spread(every: Duration) -> Duration {
    every.mul_f64(1.0 + JITTER * (2.0 * luck() - 1.0))
}

/// From 0 to 1.
pub(super) fn luck() -> f64 {
    (crate::rng::quick() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::http::settings::Upstream;
    use super::super::pools::Pool;
    use super::*;
    use crate::config::model::{HoldLimits, HttpFront};

    #[tokio::test(start_paused = true)]
    async fn names_that_were_learned_later_are_looked_up_too() {
        let (zone, reach) = ("b".into(), Arc::new(Reach::new(&Upstream::default(), &[], &[]).unwrap()));
        let plain = HttpFront::plain("127.0.0.1:80".parse().unwrap(), &[]);
        let hold = HoldLimits { requests: 1, bytes: 1, time: Duration::from_secs(1) };
        let reaches = HashMap::from([(zone, reach.clone())]);
        let front = ResourceFront::reaching("shop", &plain, hold, Pool::new(0, "a", &[]), reaches).unwrap();
        let old = "192.0.2.1:80".parse().unwrap();
        let learned = async {
            tokio::time::sleep(RESOLVE / 2).await;
            reach.place(&["localhost:80".to_owned()], &[Some(old)]);
            while reach.reached_at(old) == old {
                tokio::time::sleep(RESOLVE / 2).await;
            }
        };
        tokio::select! {
            () = keep(front) => unreachable!("it is kept for ever"),
            found = tokio::time::timeout(RESOLVE * 10, learned) => found.unwrap(),
        }
        assert!(reach.reached_at(old).ip().is_loopback());
    }
}
