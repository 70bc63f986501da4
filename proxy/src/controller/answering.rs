//! Whether a zone's service answers: that the primary's does not is told, and nobody is moved to where it does not.

use std::sync::Arc;
use std::time::Duration;

use migration::cutover::{Phase, State};
use migration::units::Zone;
use migration::world::Service;

use super::effects::{Failure, Hands};
use super::measure::Measure;
use crate::clock;
use crate::config::model::{Placement, Resource};
use crate::feeds::prober::{Probes, Target, probe_once};
use crate::feeds::{Phase as Part, Probe};
use crate::fronts::pools::Reach;

/// How long one probe may take.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// One that fails alone says little on a long way.
pub(super) const IN_A_ROW: u32 = 2;
/// How long a service may be silent before a move to it is given up, and how often it is asked.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(250);
/// How long names may be looked up before a move goes by what is known.
const NAMES: Duration = Duration::from_secs(2);

/// What of a placement is probed.
pub fn target(placement: &Placement) -> Target {
    let reach = Reach::new(&placement.upstream, &[], &[]);
    if let Err(error) = &reach {
        tracing::warn!(zone = %placement.zone, error = %format_args!("{error:#}"), "endpoints are not probed");
    }
    Target {
        http: if reach.is_ok() { placement.http.clone() } else { Vec::new() },
        path: placement.probe.clone(),
        reach: Arc::new(reach.unwrap_or_default()),
        sql: placement.postgres.as_ref().map(|database| database.dsn.clone()),
        heartbeat: placement.postgres.as_ref().is_some_and(|database| database.heartbeat),
    }
}

/// Whether a failed probe says that nothing is served there. A status that is no success may be the path's alone, and so may an error after
/// a connection was taken (a gRPC server resets what is no call): then the service of the `other` zone answers no better.
fn is_silence(probe: &Probe, other: Option<&Probe>) -> bool {
    let better = other.is_some_and(|other| other.latency.is_ok());
    let alike = other.is_some_and(|other| other.status == probe.status);
    match (probe.status, &probe.latency) {
        (Some(status), _) => better || (status >= 500 && !alike),
        (None, Err(failure)) if failure.phase >= Part::FirstByte => better,
        (None, latency) => latency.is_err(),
    }
}

/// Why a service does not answer, by the probes on the board; none: it does, or nobody can say.
fn silent(of: &Probes, other: &Probes, oldest: Duration) -> Option<String> {
    let probe = of.http.as_ref().filter(|_| of.http_failed >= IN_A_ROW)?;
    let failure = probe.latency.as_ref().err()?;
    let fresh = clock::now().since(probe.at) <= oldest;
    (fresh && is_silence(probe, other.http.as_ref())).then(|| failure.why.clone())
}

/// Asks the service of a placement until it answers, for so long; the error says why it does not.
async fn ask(there: &Placement, other: Option<&Placement>, patience: Duration) -> Result<(), String> {
    let deadline = clock::monotonic() + patience;
    loop {
        let Some(probe) = probe_once(target(there), TIMEOUT).await else { return Ok(()) };
        let Err(failure) = &probe.latency else { return Ok(()) };
        let beside = match other.filter(|_| failure.phase >= Part::FirstByte) {
            Some(other) => probe_once(target(other), TIMEOUT).await,
            None => None,
        };
        if !is_silence(&probe, beside.as_ref()) {
            return Ok(());
        }
        if clock::monotonic() > deadline {
            return Err(failure.why.clone());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Why the service in `zone` does not answer, asked now; none: it does, or there is none to ask.
pub(super) async fn asked(resource: &Resource, zone: &str, patience: Duration) -> Option<String> {
    let there = resource.placements.get(zone).filter(|_| resource.http.is_some())?;
    ask(there, resource.other(zone), patience).await.err()
}

impl Hands {
    /// Nobody is sent to where nothing answers: the service that is about to serve is asked once more, now.
    pub(super) async fn answers(&self, zone: &Zone) -> Result<(), Failure> {
        if let Some(why) = asked(&self.resource.load(), &zone.0, PATIENCE).await {
            return Err(format!("the service in {zone} does not answer: {why}"));
        }
        self.look_up(zone).await
    }

    /// Requests go to where the names of `zone` lead now; an error where none has ever led anywhere.
    pub(super) async fn look_up(&self, zone: &Zone) -> Result<(), Failure> {
        let Some(reach) = self.endpoints.named(&zone.0).filter(|_| self.front.is_some()) else {
            return Ok(());
        };
        if let Ok(Err(error)) = tokio::time::timeout(NAMES, reach.resolve()).await {
            tracing::warn!(resource = %self.resource.name, %zone, error = format!("{error:#}"), "names are not resolved");
        }
        let lost = reach.not_found();
        if lost.is_empty() || lost.len() < reach.endpoints().len() {
            return Ok(());
        }
        Err(format!("no endpoint in {zone} is found: {} cannot be resolved", lost.join(", ")))
    }
}

impl Measure {
    /// The shadow's service, as far as a move may be judged by it.
    pub fn shadow_service(&self, hands: &Hands, state: &State) -> Service {
        let zone = &state.shadow;
        if hands.front.is_none() {
            return Service::Unjudged("no HTTP front leads to it".into());
        }
        if hands.drivers.contains_key(&*zone.0) {
            return Service::Unjudged("its driver starts it for a move, and it is asked then".into());
        }
        let (there, here) = (self.probes(zone), self.probes(&state.primary));
        match silent(&there, &here, self.oldest()) {
            Some(why) => Service::Silent(why),
            None if there.http.is_some_and(|probe| probe.latency.is_ok()) => Service::Answers,
            None => Service::Unjudged("its probe does not say; it is asked before anybody is held".into()),
        }
    }

    /// What is wrong with the services of both zones; `runs`: what should answer there.
    pub(super) fn silence(&self, hands: &Hands, state: &State, runs: impl Fn(&Zone) -> bool) -> Vec<String> {
        let (here, there) = (self.probes(&state.primary), self.probes(&state.shadow));
        let mut problems = Vec::new();
        for zone in [&state.primary, &state.shadow] {
            let lost = hands.endpoints.named(&zone.0).map(|reach| reach.not_found()).unwrap_or_default();
            problems
                .extend(lost.iter().map(|name| format!("the endpoint {name} in {zone} cannot be resolved")));
        }
        if let Some(why) = silent(&here, &there, self.oldest()) {
            problems.push(format!("the service in {} does not answer ({why})", state.primary));
        }
        if state.phase >= Phase::Shadowing
            && runs(&state.shadow)
            && let Some(why) = silent(&there, &here, self.oldest())
        {
            let (shadow, primary) = (&state.shadow, &state.primary);
            problems.push(format!(
                "the service in {shadow} does not answer ({why}): the service stays in {primary}"
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feeds::Failure as Failed;

    fn probe(answer: Result<(), Option<u16>>) -> Probe {
        let failed = |status: Option<u16>| {
            let phase = if status.is_some() { Part::FirstByte } else { Part::Connect };
            Failed { phase, why: "it failed".into() }
        };
        Probe {
            latency: answer.map(|()| Duration::from_millis(3)).map_err(failed),
            status: answer.err().flatten(),
            phases: Vec::new(),
            at: clock::now(),
        }
    }

    const OK: Result<(), Option<u16>> = Ok(());
    const NOTHING: Result<(), Option<u16>> = Err(None);

    const fn status(status: u16) -> Result<(), Option<u16>> {
        Err(Some(status))
    }

    #[test]
    fn a_status_counts_where_the_other_zone_answers_better() {
        let silent = |here, other| is_silence(&probe(here), Some(&probe(other)));
        assert!(
            [OK, NOTHING, status(404)].iter().all(|other| silent(NOTHING, *other) && !silent(OK, *other))
        );
        // The path is none of the service, or the other zone burns: nobody is kept there.
        assert!(!silent(status(404), status(404)) && !silent(status(404), NOTHING));
        assert!(silent(status(404), OK));
        assert!(silent(status(503), OK) && silent(status(503), NOTHING) && silent(status(503), status(404)));
        assert!(!silent(status(503), status(503)));
        assert!(!is_silence(&probe(status(404)), None) && is_silence(&probe(NOTHING), None));
        // It takes connections: it hangs, or does not know what is asked of it, as the other does not.
        let latency = Err(Failed { phase: Part::FirstByte, why: "it reset the stream".into() });
        let odd = Probe { latency, ..probe(NOTHING) };
        assert!(
            is_silence(&odd, Some(&probe(OK))) && !is_silence(&odd, Some(&odd)) && !is_silence(&odd, None)
        );
    }

    #[test]
    fn one_failure_and_an_old_one_say_nothing() {
        let failed = |http_failed, age| {
            let at = migration::units::Timestamp(clock::now().0 - age);
            let http = Some(Probe { at, ..probe(NOTHING) });
            silent(
                &Probes { http, http_failed, ..Probes::default() },
                &Probes::default(),
                Duration::from_secs(15),
            )
        };
        assert_eq!(failed(2, 0), Some("it failed".into()));
        assert_eq!((failed(1, 0), failed(2, 60_000)), (None, None));
    }
}
