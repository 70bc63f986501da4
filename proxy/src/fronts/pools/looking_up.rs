//! Names of endpoints that are looked up before anything is served: all at once, each on a thread of its own, within one short time.
//! A zone whose names are lost keeps nobody from being served.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crate::clock;

/// How long a look-up is waited for. What is not found by then is looked up again while the node serves.
const WITHIN: Duration = Duration::from_secs(2);

type Found = io::Result<Option<SocketAddr>>;

/// Names of one placement's endpoints, in order.
pub struct LookingUp {
    asked: Vec<(String, Receiver<Found>)>,
    until: Instant,
}

impl LookingUp {
    /// Asks for all of them, and waits for none.
    pub fn begin(names: &[String]) -> Self {
        Self::by(names, WITHIN, |name| name.to_socket_addrs().map(|mut found| found.next()))
    }

    fn by(names: &[String], within: Duration, ask: impl Fn(&str) -> Found + Clone + Send + 'static) -> Self {
        let asked = names.iter().map(|name| {
            let (tell, told) = mpsc::sync_channel(1);
            if let Ok(address) = name.parse() {
                let _ = tell.send(Ok(Some(address)));
            } else {
                let (name, ask) = (name.clone(), ask.clone());
                // It may outlast whoever waits for it, and where there can be no thread there is no answer.
                let _ = thread::Builder::new().name("look-up".into()).spawn(move || tell.send(ask(&name)));
            }
            (name.clone(), told)
        });
        Self { asked: asked.collect(), until: clock::monotonic() + within }
    }

    /// The names, and what was found of each in time.
    pub(super) fn found(self) -> (Vec<String>, Vec<Found>) {
        let until = self.until;
        let found = |told: Receiver<Found>| {
            let told = told.recv_timeout(until.saturating_duration_since(clock::monotonic()));
            told.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")))
        };
        self.asked.into_iter().map(|(name, told)| (name, found(told))).unzip()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Barrier, Mutex};

    use super::*;

    fn names(names: [&str; 2]) -> [String; 2] {
        names.map(str::to_owned)
    }

    #[test]
    fn names_of_all_placements_are_looked_up_at_once() {
        let all = Arc::new(Barrier::new(4));
        let ask = move |_: &str| {
            all.wait();
            Ok(Some(SocketAddr::from(([192, 0, 2, 7], 80))))
        };
        let begun = [["a:80", "b:80"], ["c:80", "d:80"]]
            .map(|two| LookingUp::by(&names(two), Duration::from_secs(60), ask.clone()));
        for looking in begun {
            let (_, found) = looking.found();
            assert!(found.iter().all(Result::is_ok), "{found:?}");
        }
    }

    #[test]
    fn a_name_without_an_answer_is_not_waited_for() {
        let silence = Arc::new(Mutex::new(()));
        let silent = silence.lock().unwrap();
        let held = silence.clone();
        let ask = move |_: &str| held.lock().map(|_| None).map_err(|_| io::ErrorKind::Other.into());
        let looking = LookingUp::by(&names(["lost:80", "192.0.2.7:80"]), Duration::ZERO, ask);
        let (asked, found) = looking.found();
        assert_eq!(asked, ["lost:80", "192.0.2.7:80"]);
        assert_eq!(found[0].as_ref().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(*found[1].as_ref().unwrap(), Some("192.0.2.7:80".parse().unwrap()));
        drop(silent);
    }
}
