//! What of a controller's work goes into the audit.

use migration::cutover::{Phase, State};
use migration::report::{DecisionReport, Verdict};

use crate::audit::Entry;

/// The verdict and the guards that fail: what makes two decisions different ones.
pub(super) type Gist = (&'static str, Vec<&'static str>);

/// What matters of a decision.
pub(super) fn gist(report: &DecisionReport) -> Gist {
    let verdict = match report.verdict {
        Verdict::Move { .. } => "move",
        Verdict::Propose { .. } => "propose",
        Verdict::Stay => "stay",
    };
    let failing = report.guards.iter().filter(|guard| !guard.passed).map(|guard| guard.name).collect();
    (verdict, failing)
}

pub(super) fn decision(resource: &str, report: &DecisionReport) -> Entry {
    let (verdict, guards) = gist(report);
    Entry::Decision {
        resource: resource.to_owned(),
        verdict: verdict.to_owned(),
        because: report.because.clone(),
        score: report.score.total,
        lower: report.score.lower,
        needed: report.needed,
        guards: guards.into_iter().map(str::to_owned).collect(),
    }
}

pub(super) fn step(before: &State, after: &State, event: &str) -> Entry {
    // Where a soak goes on, it is the way back that was undone.
    let undone = before.run.as_ref().filter(|_| before.soaking.is_some() && after.phase == Phase::Soaking);
    let run = undone.or(after.run.as_ref()).or(before.run.as_ref());
    Entry::Step {
        resource: after.resource.clone(),
        migration: run.map(|run| run.id.clone()),
        trigger: run.map(|run| run.trigger.to_string()),
        event: event.to_owned(),
        before: before.phase.name().to_owned(),
        after: after.phase.name().to_owned(),
        generation: after.generation.0,
        primary: after.primary.to_string(),
    }
}
