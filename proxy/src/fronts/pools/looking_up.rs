//! Names of endpoints that are looked up before anything is served: all at once, each on a thread of its own, within one short time.
//! A zone whose names are lost keeps nobody from being served; only the first of where requests go to is waited for longer.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crate::clock;

/// How long look-ups are waited for. What is not found by then is looked up again while the node serves.
const WITHIN: Duration = Duration::from_secs(2);
/// The same where nobody could be served without one of them: a resolver takes 5 s to go on from a server that is gone to the next. While the
/// program is replaced clients wait in the kernel.
const AT_MOST: Duration = Duration::from_secs(10);

type Found = io::Result<Option<SocketAddr>>;

/// Names of one placement's endpoints, in order.
pub struct LookingUp {
    names: Vec<String>,
    told: Receiver<(usize, Found)>,
    until: Instant,
    /// How long the first that is found is waited for.
    first_until: Instant,
}

impl LookingUp {
    /// Asks for all of them, and waits for none.
    pub fn begin(names: &[String]) -> Self {
        Self::by(names, WITHIN, |name| name.to_socket_addrs().map(|mut found| found.next()))
    }

    /// Nobody is served without one of them.
    pub fn needs_one(&mut self) {
        self.needs_one_within(AT_MOST);
    }

    fn needs_one_within(&mut self, at_most: Duration) {
        self.first_until = self.until.max(clock::monotonic() + at_most);
    }

    fn by(names: &[String], within: Duration, ask: impl Fn(&str) -> Found + Clone + Send + 'static) -> Self {
        let (tell, told) = mpsc::channel();
        for (at, name) in names.iter().enumerate() {
            if let Ok(address) = name.parse() {
                let _ = tell.send((at, Ok(Some(address))));
            } else {
                let (name, ask, tell) = (name.clone(), ask.clone(), tell.clone());
                // It may outlast whoever waits for it, and where there can be no thread there is no answer.
                let _ =
                    thread::Builder::new().name("look-up".into()).spawn(move || tell.send((at, ask(&name))));
            }
        }
        let until = clock::monotonic() + within;
        Self { names: names.to_vec(), told, until, first_until: until }
    }

    /// The names, and what was found of each in time.
    pub(super) fn found(self) -> (Vec<String>, Vec<Found>) {
        let mut found: Vec<Option<Found>> = self.names.iter().map(|_| None).collect();
        loop {
            let one = found.iter().any(|found| matches!(found, Some(Ok(Some(_)))));
            let until = if one { self.until } else { self.first_until };
            // It ends with the last answer, too: nobody is left to tell then.
            let told = self.told.recv_timeout(until.saturating_duration_since(clock::monotonic()));
            let Ok((at, answer)) = told else { break };
            found[at] = Some(answer);
        }
        let late = || Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
        (self.names, found.into_iter().map(|found| found.unwrap_or_else(late)).collect())
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

    /// Names without an answer for as long as that is locked.
    fn silent(held: &Arc<Mutex<()>>) -> impl Fn(&str) -> Found + Clone + Send + 'static {
        let held = held.clone();
        move |_: &str| held.lock().map(|_| None).map_err(|_| io::ErrorKind::Other.into())
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
        let lost = silence.lock().unwrap();
        let looking = LookingUp::by(&names(["lost:80", "192.0.2.7:80"]), Duration::ZERO, silent(&silence));
        let (asked, found) = looking.found();
        assert_eq!(asked, ["lost:80", "192.0.2.7:80"]);
        assert_eq!(found[0].as_ref().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(*found[1].as_ref().unwrap(), Some("192.0.2.7:80".parse().unwrap()));
        drop(lost);
    }

    #[test]
    fn the_first_of_those_that_one_is_needed_of_is_waited_for() {
        let address = SocketAddr::from(([192, 0, 2, 8], 80));
        let late = move |name: &str| {
            let asked = clock::monotonic();
            while clock::monotonic() <= asked + Duration::from_millis(100) {
                thread::yield_now();
            }
            if name == "b:80" { Err(io::ErrorKind::NotFound.into()) } else { Ok(Some(address)) }
        };
        let mut looking = LookingUp::by(&names(["a:80", "b:80"]), Duration::ZERO, late);
        looking.needs_one_within(Duration::from_secs(3600));
        let (_, found) = looking.found();
        assert_eq!(*found[0].as_ref().unwrap(), Some(address));

        let mut looking = LookingUp::by(&names(["b:80", "b:80"]), Duration::ZERO, late);
        looking.needs_one_within(Duration::from_secs(3600));
        let (_, found) = looking.found();
        assert!(
            found.iter().all(|one| one.as_ref().unwrap_err().kind() == io::ErrorKind::NotFound),
            "none is left: {found:?}"
        );

        let silence = Arc::new(Mutex::new(()));
        let lost = silence.lock().unwrap();
        let mut looking =
            LookingUp::by(&names(["lost:80", "192.0.2.7:80"]), Duration::ZERO, silent(&silence));
        looking.needs_one_within(Duration::from_secs(3600));
        assert!(looking.found().1[0].is_err(), "there is one");
        drop(lost);
    }
}
