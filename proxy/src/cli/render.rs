//! Tables for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use migration::units::Timestamp;
use replicator::verify::Kind;

use crate::config::catalogue::Catalogue;
use crate::controller::Plan;
use crate::controller::behind::Behind;
use crate::controller::doctor::{DoctorView, FindingView};
use crate::controller::drift::{SchemaView, reseed_command};
use crate::controller::freezes::FreezeView;
use crate::controller::verification::{Standing, VerificationView};
use crate::controller::view::{
    ChangeStreamView, DecisionView, FactView, GuardView, LargeObjectsView, MigrationView, ModeView, PathView,
    ReplicationView, ResourceView, SoakView,
};
use crate::controller::zones::{ChoiceView, ZoneView};
use crate::store::{Rejected, TokenView};

/// Rows of cells, columns as wide as their widest cell.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[&str]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            let _ = write!(text, "{cell:<width$}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    };
    let mut text = line(head);
    for row in rows {
        text.push_str(&line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    text
}

fn probe(result: Option<&Result<u64, String>>) -> String {
    match result {
        Some(Ok(micros)) => format!("{:.1} ms", *micros as f64 / 1000.0),
        Some(Err(why)) => why.clone(),
        None => "-".into(),
    }
}

/// The way to a zone, each number with its age and source.
fn way(path: &PathView) -> String {
    let fact = |name: &str, fact: &FactView, shown: &dyn Fn(f64) -> String| match (fact.value, fact.age_ms) {
        (Some(value), Some(age)) => format!("{name} {} ({}, {age} ms old)", shown(value), fact.source),
        _ => format!("{name} {}", fact.source),
    };
    let facts = [
        fact("round trip", &path.rtt_ms, &|ms| format!("{ms:.1} ms")),
        fact("loss", &path.loss, &|share| format!("{:.1} %", share * 100.0)),
        fact("route for", &path.route_age_ms, &|ms| format!("{:.0} s", ms / 1000.0)),
    ];
    facts.join("; ")
}

/// `[#####...............]  25 %`; of what nobody can tell the share of, nothing.
fn bar(share: Option<f64>) -> String {
    const WIDTH: usize = 20;
    let Some(share) = share else { return format!("[{}]  ? %", "?".repeat(WIDTH)) };
    let full = ((share * WIDTH as f64) as usize).min(WIDTH);
    format!("[{}{}] {:>3.0} %", "#".repeat(full), ".".repeat(WIDTH - full), share * 100.0)
}

/// From where to where, and how far behind.
fn following(stream: &ReplicationView) -> String {
    let behind = stream.behind().text();
    let applied = if stream.applied_lsn.is_empty() { "nothing yet" } else { &stream.applied_lsn };
    format!(" {} → {}, {behind}, applied {applied}", stream.source, stream.target)
}

/// The stream, who else reads it, and which commits wait for it.
fn replicated(text: &mut String, view: &ResourceView) {
    let stream = &view.replication;
    let _ = writeln!(
        text,
        "  replication  {}{}{}",
        stream.state,
        following(stream),
        if stream.detail.is_empty() { String::new() } else { format!(" ({})", stream.detail) }
    );
    if let Some(copy) = &stream.copy {
        let _ = writeln!(text, "  copy         {} {}", bar(copy.share()), copy.line());
    }
    if let Some(LargeObjectsView { objects, looked_ms }) = stream.large_objects {
        let _ = writeln!(text, "  large objects {objects}, looked through in {looked_ms} ms");
    }
    for reader in &view.change_streams {
        let ChangeStreamView { slot, active, behind_bytes, unread } = reader;
        let _ = writeln!(
            text,
            "  reader       {slot} {}, {behind_bytes} bytes behind{}",
            if *active { "reads" } else { "is away" },
            if *unread { "; not all from before the last move is read" } else { "" }
        );
    }
    let mode = &stream.mode;
    let _ = writeln!(
        text,
        "  mode         {}{}{}",
        mode.effective,
        if mode.effective == mode.wanted { String::new() } else { format!(" (wanted: {})", mode.wanted) },
        if mode.why.is_empty() { String::new() } else { format!(": {}", mode.why) }
    );
    for lane in &stream.lanes {
        let _ = writeln!(
            text,
            "    lane {:<8} {}, {}, applied {}",
            lane.name,
            lane.state,
            Behind {
                bytes: lane.lag_bytes,
                time: lane.lag_ms.map(Duration::from_millis),
                ..Behind::default()
            }
            .text(),
            lane.applied_lsn
        );
    }
}

/// What stands in the way may be much, and is shown line by line as well.
fn shortened(because: &str, resource: &str) -> String {
    const LONGEST: usize = 240;
    match because.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}… (godwit explain {resource})", &because[..at]),
        None => because.to_owned(),
    }
}

fn coordinates([latitude, longitude]: [f64; 2]) -> String {
    format!("{latitude:.2}, {longitude:.2}")
}

pub(super) fn zones(zones: &[ZoneView]) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let rows: Vec<Vec<String>> = zones
        .iter()
        .map(|zone| {
            vec![
                zone.name.clone(),
                or_dash(&zone.provider),
                or_dash(&zone.region),
                or_dash(&zone.country),
                or_dash(&zone.grid),
                zone.location.map_or_else(|| "-".into(), coordinates),
                zone.resources.join(", "),
            ]
        })
        .collect();
    table(&["ZONE", "PROVIDER", "REGION", "COUNTRY", "GRID", "LOCATION", "PLACEMENTS OF"], &rows)
}

pub(super) fn verification(view: &VerificationView, resource: &str) -> String {
    let mut text = String::new();
    for difference in &view.differences {
        let _ = writeln!(text, "{}", super::verify::line(difference));
    }
    let more = view.progress.differences.saturating_sub(view.differences.len() as u64);
    if more > 0 {
        let _ = writeln!(text, "and {more} more");
    }
    for note in &view.notes {
        let _ = writeln!(text, "note: {note}");
    }
    let progress = &view.progress;
    let looked =
        format!("{} of {} tables, {} rows looked at", progress.tables_done, progress.tables, progress.rows);
    let way = format!("{} → {}", view.source, view.target);
    let _ = match view.state {
        Standing::None => writeln!(text, "no verification was made yet"),
        Standing::Running => writeln!(text, "{way}: a verification is under way: {looked}"),
        Standing::Stopped | Standing::Failed => {
            let what = if view.state == Standing::Stopped { "stopped" } else { "failed" };
            let why = &view.why;
            writeln!(text, "{way}: {what} ({why}) after {looked}; godwit verify {resource} --resume goes on")
        }
        Standing::Done if progress.differences == 0 => writeln!(text, "{way}: equal: {looked}"),
        Standing::Done => writeln!(text, "{way}: {} differences: {looked}", progress.differences),
    };
    let tables: BTreeSet<&str> = view
        .differences
        .iter()
        .filter(|difference| matches!(difference.kind, Kind::Missing | Kind::Extra | Kind::Changed))
        .map(|difference| difference.table.as_str())
        .collect();
    if !tables.is_empty() {
        let tables: Vec<String> = tables.into_iter().map(|table| format!("--table '{table}'")).collect();
        let _ = writeln!(text, "to copy them again: godwit reseed {resource} {}", tables.join(" "));
    }
    text
}

pub(super) fn choice(choice: &ChoiceView) -> String {
    let mut rows = Vec::new();
    for candidate in &choice.candidates {
        let cells = |first: [String; 3], term: &crate::controller::zones::BurdenView| {
            let numbers = [format!("{:.3}", term.burden), format!("{:.2}", term.weight)];
            let name = term.name.clone();
            first.into_iter().chain([name]).chain(numbers).chain([term.detail.clone()]).collect()
        };
        let mut first =
            [candidate.zone.clone(), candidate.verdict.clone(), format!("{:.3}", candidate.burden)];
        for term in &candidate.terms {
            rows.push(cells(std::mem::take(&mut first), term));
        }
    }
    let mut text =
        format!("{}: {} serves, the shadow is in {}\n", choice.resource, choice.primary, choice.shadow);
    text.push_str(&table(&["ZONE", "VERDICT", "BURDEN", "TERM", "BURDEN", "WEIGHT", "FROM"], &rows));
    for candidate in choice.candidates.iter().filter(|candidate| !candidate.why.is_empty()) {
        let _ = writeln!(text, "{} {}: {}", candidate.zone, candidate.verdict, candidate.why.join("; "));
    }
    let _ = match &choice.chosen {
        Some(zone) => writeln!(text, "best: {zone}"),
        None => writeln!(text, "best: none, every zone is refused"),
    };
    text
}

pub(super) fn catalogue(catalogue: &Catalogue) -> String {
    let mut rows = Vec::new();
    for (provider, regions) in catalogue {
        for (name, region) in regions {
            let (latitude, longitude) = region.location;
            rows.push(vec![
                provider.clone(),
                name.clone(),
                region.place.clone(),
                region.country.clone(),
                region.grid.clone(),
                coordinates([latitude, longitude]),
            ]);
        }
    }
    table(&["PROVIDER", "REGION", "PLACE", "COUNTRY", "GRID", "LOCATION"], &rows)
}

/// A move that waits for more people.
pub(super) fn approval(resource: &str, plan: &Plan) -> String {
    let Some(approval) = &plan.approval else { return "the node did not say what it started\n".into() };
    let more = (approval.needed as usize).saturating_sub(approval.approved_by.len());
    format!(
        "{} → {} waits: approved by {}; {more} more must approve it: godwit approve {resource} {}\n",
        plan.from,
        plan.to,
        approval.approved_by.join(", "),
        approval.proposal
    )
}

fn people(approved_by: &[String]) -> String {
    if approved_by.is_empty() { String::new() } else { format!(", approved by {}", approved_by.join(", ")) }
}

fn soaks(view: &ResourceView, soak: &SoakView) -> String {
    let equal = if soak.unverified { ", once both compare equal" } else { "" };
    let until = moment(soak.until_ms);
    format!(": {} soaks until {until}{equal} (godwit retire {}: no longer)", view.shadow, view.name)
}

pub(super) fn resources(views: &[ResourceView]) -> String {
    let mut text = String::new();
    for view in views {
        let _ = writeln!(
            text,
            "{}: {} serves, {} follows; {} (generation {}), policy {} ({})",
            view.name, view.primary, view.shadow, view.phase, view.generation, view.policy, view.mode
        );
        if let Some(id) = &view.migration {
            let soak = view.soak.as_ref().map(|soak| soaks(view, soak)).unwrap_or_default();
            let _ = writeln!(text, "  migration    {id}{soak}");
        }
        if let Some(proposal) = &view.proposal {
            let _ = writeln!(
                text,
                "  proposed     {} → {} ({}{}), until {}: godwit approve {}",
                view.primary,
                proposal.to,
                proposal.id,
                people(&proposal.approved_by),
                moment(proposal.expires_ms),
                view.name
            );
        }
        if let Some(gate) = &view.gate {
            let word = if gate.closed { "closed" } else { "open" };
            let _ = writeln!(text, "  gate         {word}, {} held, {} in flight", gate.held, gate.in_flight);
        }
        if view.replication.state != "none" {
            replicated(&mut text, view);
        }
        if let Some(decision) = &view.decision {
            let _ = writeln!(
                text,
                "  score        {:.2} (lower bound {:.2}, needs {:.2}): {}",
                decision.score,
                decision.lower,
                decision.needed,
                shortened(&decision.because, &view.name)
            );
        }
        let rows: Vec<Vec<String>> = view
            .placements
            .iter()
            .map(|placement| {
                let number = |value: Option<u32>| value.map_or("-".into(), |value| value.to_string());
                vec![
                    format!("  {}", placement.zone),
                    placement.role.clone(),
                    format!("{}/{}", number(placement.ready), number(placement.capacity)),
                    probe(placement.http_probe.as_ref()),
                    probe(placement.sql_probe.as_ref()),
                    probe(placement.heartbeat.as_ref()),
                    placement.forecast_ms.map_or("-".into(), |ms| format!("{ms:.1} ms")),
                ]
            })
            .collect();
        text.push_str(&table(
            &["  ZONE", "ROLE", "READY", "HTTP PROBE", "SQL PROBE", "HEARTBEAT", "FORECAST"],
            &rows,
        ));
        for placement in &view.placements {
            if let Some(path) = &placement.path {
                let _ = writeln!(text, "  way to {}: {}", placement.zone, way(path));
            }
        }
        for problem in &view.problems {
            let _ = writeln!(text, "  ! {problem}");
        }
    }
    text
}

/// Which commits wait, why not more, and how that came.
pub(super) fn mode(mode: &ModeView) -> String {
    let mut text = format!("replication mode: {}", mode.effective);
    if mode.effective != mode.wanted {
        let _ = write!(text, " (the policy wants {}: {})", mode.wanted, mode.why);
    } else if !mode.why.is_empty() {
        let _ = write!(text, " ({})", mode.why);
    }
    if mode.wanted != "async" {
        let _ = write!(text, "; falls back after {} ms, {} commits wait now", mode.after_ms, mode.waiting);
    }
    text.push('\n');
    let rows: Vec<Vec<String>> = mode
        .changes
        .iter()
        .map(|change| vec![moment(change.at_ms), change.mode.clone(), change.why.clone()])
        .collect();
    if !rows.is_empty() {
        text.push_str(&table(&["SINCE", "MODE", "WHY"], &rows));
    }
    text
}

pub(super) fn moment(at_ms: u64) -> String {
    let at = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or("-".into(), |at| format!("{at:.0}"))
}

fn guards(guards: &[GuardView]) -> String {
    let rows: Vec<Vec<String>> = guards
        .iter()
        .map(|guard| {
            let mark = if guard.passed { "✓" } else { "✗" };
            vec![mark.to_owned(), guard.name.clone(), guard.value.clone(), guard.limit.clone()]
        })
        .collect();
    table(&["", "GUARD", "IS", "NEEDS"], &rows)
}

pub(super) fn decision(decision: &DecisionView) -> String {
    let rows: Vec<Vec<String>> = decision
        .terms
        .iter()
        .map(|term| {
            vec![
                term.name.clone(),
                term.raw.map_or("unknown".into(), |raw| format!("{raw:+.3}")),
                format!("{}", term.weight),
                format!("{:+.3}", term.points),
                term.age_ms.map_or("-".into(), |age| format!("{age} ms")),
                format!("{}: {}", term.source, term.detail).trim_end_matches([':', ' ']).to_owned(),
            ]
        })
        .collect();
    let mut text = format!(
        "{}: {}\nscore {:+.3}, lower bound {:+.3}, needs above {:.3}\n\n",
        decision.verdict, decision.because, decision.score, decision.lower, decision.needed
    );
    text.push_str(&table(&["TERM", "RAW", "WEIGHT", "POINTS", "AGE", "FROM"], &rows));
    text.push('\n');
    text.push_str(&guards(&decision.guards));
    if !decision.awaited.is_empty() {
        text.push_str("\nawaited:\n");
    }
    for awaited in &decision.awaited {
        let at = awaited.at_ms.map_or("nobody can say when".into(), moment);
        let _ = writeln!(text, "  {}: {} ({at})", awaited.guard, awaited.what);
    }
    if !decision.flips.is_empty() {
        text.push_str("\nwhat alone would change it, the smallest change first:\n");
    }
    for flip in &decision.flips {
        let size = flip.size.map(|size| format!(" ({:.0}%)", size * 100.0)).unwrap_or_default();
        let _ = writeln!(text, "  {}: {} → {}{size}: {}", flip.of, flip.from, flip.to, flip.then);
    }
    text
}

pub(super) fn freezes(freezes: &[FreezeView]) -> String {
    if freezes.is_empty() {
        return "nothing is frozen by an operator\n".into();
    }
    let rows: Vec<Vec<String>> = freezes
        .iter()
        .map(|freeze| {
            vec![
                freeze.resource.clone().unwrap_or_else(|| "every resource".into()),
                freeze.by.clone(),
                moment(freeze.at_ms),
                freeze.until_ms.map_or("it is lifted".into(), moment),
                freeze.why.clone(),
            ]
        })
        .collect();
    table(&["FROZEN", "BY", "SINCE", "UNTIL", "WHY"], &rows)
}

/// Who lifts more than they thought of reads it.
pub(super) fn lifted(freezes: &[FreezeView]) -> String {
    let lifted = freezes.iter().map(|freeze| format!("lifted: by {}: {}", freeze.by, freeze.why));
    lifted.map(|line| line + "\n").collect()
}

pub(super) fn plan(plan: &Plan) -> String {
    let mut text = format!("{} → {}\n", plan.from, plan.to);
    for (index, step) in plan.steps.iter().enumerate() {
        let _ = writeln!(text, "{:>3}. {step}", index + 1);
    }
    text.push('\n');
    text.push_str(&guards(&plan.guards));
    let failed = |binds| {
        let guards = plan.guards.iter().filter(|guard| !guard.passed && guard.binds_operator == binds);
        guards.map(|guard| guard.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (stops, own) = (failed(true), failed(false));
    let verdict = if stops.is_empty() { "it would go" } else { "it would be refused" };
    let _ = write!(text, "\n{verdict}");
    if !stops.is_empty() {
        let _ = write!(text, ": {stops}");
    }
    if !own.is_empty() {
        let _ = write!(text, " ({own}: only for moves that Godwit makes by itself)");
    }
    text.push('\n');
    text
}

pub(super) fn migration(view: &MigrationView) -> String {
    let mut text = format!("{} {}: {} → {}, {}\n", view.resource, view.id, view.from, view.to, view.state);
    if let Some(reason) = &view.reason {
        let _ = writeln!(text, "  because {reason}");
    }
    if let Some(held) = view.held_ms {
        let _ = writeln!(text, "  held {held} ms");
    }
    if let Some(ledger) = &view.ledger {
        let ms = |value: Option<f64>| value.map_or("unknown".into(), |ms| format!("{ms:.1} ms"));
        let _ = writeln!(
            text,
            "  expected {} instead of {}; realised {} over {} steps, about {} had it stayed",
            ms(ledger.predicted_ms),
            ms(ledger.stay_ms),
            ms(ledger.realised_ms),
            ledger.steps,
            ms(ledger.never_moved_ms)
        );
    }
    for step in &view.steps {
        let spent = step
            .ended_ms
            .map_or("…".into(), |ended| format!("{} ms", ended.saturating_sub(step.started_ms)));
        let _ = writeln!(text, "  {:<10} {spent}", step.phase);
    }
    text
}

pub(super) fn history(runs: &[MigrationView]) -> String {
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            vec![
                moment(run.started_ms),
                run.resource.clone(),
                run.id.clone(),
                format!("{} → {}", run.from, run.to),
                run.trigger.clone(),
                run.state.clone(),
                run.held_ms.map_or("-".into(), |ms| format!("{ms} ms")),
                run.verified.map_or("-", |equal| if equal { "equal" } else { "DIFFERENT" }).to_owned(),
                run.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(&["STARTED", "RESOURCE", "ID", "MOVE", "BY", "STATE", "HELD", "COMPARED", "REASON"], &rows)
}

pub(super) fn tokens(tokens: &[TokenView], now: Timestamp) -> String {
    let rows: Vec<Vec<String>> = tokens
        .iter()
        .map(|token| {
            let state = match token.check(now) {
                Ok(()) => token.expires_ms.map_or("counts".into(), |end| format!("until {}", moment(end))),
                Err(Rejected::Revoked) => {
                    format!("revoked by {}", token.revoked_by.as_deref().unwrap_or("somebody"))
                }
                Err(_) => "expired".into(),
            };
            let resources = token.resources.as_ref();
            vec![
                token.id.clone(),
                token.name.clone(),
                token.role.to_string(),
                resources.map_or("all".into(), |names| names.iter().cloned().collect::<Vec<_>>().join(", ")),
                moment(token.created_ms),
                token.created_by.clone(),
                state,
            ]
        })
        .collect();
    table(&["ID", "NAME", "ROLE", "RESOURCES", "MADE", "BY", "STATE"], &rows)
}

/// So many warnings that say the same are shown.
const ALIKE: usize = 10;

/// For each resource the verdict, then each finding with what mends it on a line of its own, to be copied. Of many warnings that say the same the
/// first ones.
pub(super) fn doctor(views: &[DoctorView]) -> String {
    views.iter().map(examination).collect::<Vec<_>>().join("\n")
}

fn examination(view: &DoctorView) -> String {
    let verdict = if view.go { "GO" } else { "NO-GO" };
    let mut text = format!("{verdict}  {}: {} → {}\n", view.resource, view.primary, view.shadow);
    let mut alike: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for finding in &view.findings {
        let FindingView { severity, zone, subject, problem, remedy } = finding;
        if severity == "warning" {
            let so_far = alike.entry((zone, problem)).or_default();
            *so_far += 1;
            if *so_far > ALIKE {
                continue;
            }
        }
        let _ = writeln!(text, "\n{severity:<7}  {zone}: {subject}: {problem}");
        if let Some(remedy) = remedy {
            let _ = writeln!(text, "   mend  {remedy}");
        }
    }
    for ((zone, problem), count) in alike.into_iter().filter(|(_, count)| *count > ALIKE) {
        let _ =
            writeln!(text, "\nwarning  {zone}: and {} more (-o json names them): {problem}", count - ALIKE);
    }
    text
}

pub(super) fn schema(view: &SchemaView) -> String {
    let mut text = String::new();
    for done in &view.done {
        // A function has many lines: who wants them asks for JSON.
        let (line, more) = done.split_once('\n').map_or((done.as_str(), ""), |(line, _)| (line, " …"));
        text.push_str(&format!("done      {line}{more}\n"));
    }
    for difference in &view.differences {
        let mark = match (difference.additive, difference.drops) {
            (true, _) => "additive",
            (_, true) => "dropped ",
            _ => "decide  ",
        };
        let stops = if difference.stops { "" } else { " (no move waits for it)" };
        text.push_str(&format!("{mark}  {}: {}{stops}\n", difference.subject, difference.what));
        if difference.reseed {
            let command = reseed_command(&view.resource, &difference.subject);
            text.push_str(&format!("          {command}\n"));
        }
        if let Some(sql) = &difference.sql {
            text.push_str(&format!("          on {}: {sql}\n", view.shadow));
        }
    }
    if view.waits {
        text.push_str("the rest waits until the shadow has all that was written before: try again\n");
    }
    if view.differences.is_empty() {
        text.push_str(&format!("{} and {} have the same schema\n", view.primary, view.shadow));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{DoctorView, FindingView};
    use crate::config::load;
    use crate::controller::view::{
        CopyView, FactView, PathView, PlacementView, ReplicationView, ResourceView,
    };
    use crate::controller::zones::{choice, zones};

    const CONFIG: &str = "
node: { name: edge-1, zone: dublin }
zones:
  dublin: { provider: aws, region: eu-west-1 }
  frankfurt: { provider: aws, region: eu-central-1 }
  dublin-azure: { provider: azure, region: northeurope }
  paris: { provider: gcp, region: europe-west9, cost: 0.2/h }
  virginia: { provider: aws, region: us-east-1, cost: 0.1/h }
  cellar: {}
resources:
  orders:
    fronts: { http: { listen: 127.0.0.1:8080 } }
    placements:
      dublin: { http: [\"127.0.0.1:8001\"], cost: 0.4/h }
      frankfurt: { http: [\"127.0.0.1:8002\"], cost: 0.3/h }
    primary: dublin
    policy: careful
";

    #[test]
    fn of_many_warnings_that_say_the_same_the_first_are_shown() {
        let finding = |severity: &str, subject: String, problem: &str| FindingView {
            severity: severity.into(),
            zone: "near".into(),
            subject,
            problem: problem.into(),
            remedy: Some("SQL".into()),
        };
        let mut findings: Vec<_> =
            (0..12).map(|table| finding("blocker", format!("public.b{table}"), "gone")).collect();
        findings.extend((0..400).map(|table| finding("warning", format!("public.t{table}"), "no key")));
        findings.push(finding("warning", "wal_level".into(), "other"));
        let view = DoctorView {
            resource: "shop".into(),
            primary: "near".into(),
            shadow: "far".into(),
            go: false,
            findings,
        };
        let text = super::doctor(&[view]);
        assert_eq!(text.matches("   mend  SQL").count(), 12 + 10 + 1, "{text}");
        assert!(text.ends_with("\nwarning  near: and 390 more (-o json names them): no key\n"), "{text}");
    }

    #[test]
    fn a_copy_shows_how_far_it_is() {
        let copy = |stage: &str, rows, remaining_ms| CopyView {
            stage: stage.into(),
            tables_done: 3,
            tables: 7,
            rows,
            rows_estimate: 4_000_000,
            bytes: 100 << 20,
            bytes_estimate: 400 << 20,
            remaining_ms,
        };
        let shown = |copy: CopyView| {
            let replication = ReplicationView { copy: Some(copy), ..ReplicationView::default() };
            let view = ResourceView { replication, ..ResourceView::default() };
            let text = super::resources(&[view]);
            text.lines().find(|line| line.contains("copy ")).unwrap_or_default().to_owned()
        };
        let lines = [
            shown(copy("rows", 1_000_000, Some(12_400))),
            shown(CopyView { rows_estimate: 0, bytes_estimate: 0, ..copy("rows", 10, None) }),
            shown(copy("rows", 4_100_000, Some(0))),
            shown(copy("indexes", 4_000_000, None)),
            shown(copy("settling", 4_000_000, None)),
            shown(copy("finishing", 0, None)),
        ];
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_way_shows_what_is_known_of_it_and_since_when() {
        let known = |value, age_ms| FactView {
            value: Some(value),
            source: "feed links".into(),
            age_ms: Some(age_ms),
        };
        let unknown =
            FactView { source: "unknown: feed links says nothing of it".into(), ..FactView::default() };
        let path = PathView { rtt_ms: known(22.04, 812), loss: known(0.0125, 812), route_age_ms: unknown };
        let placement = PlacementView { zone: "east".into(), path: Some(path), ..PlacementView::default() };
        let view = ResourceView { placements: vec![placement], ..ResourceView::default() };
        let text = super::resources(&[view]);
        let line = text.lines().find(|line| line.contains("way to")).unwrap_or_default();
        insta::assert_snapshot!(line, @"  way to east: round trip 22.0 ms (feed links, 812 ms old); loss 1.2 % (feed links, 812 ms old); route for unknown: feed links says nothing of it");
    }

    #[test]
    fn a_choice_names_every_zone_and_why_it_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("godwit.yaml");
        std::fs::create_dir(folder.path().join("policies")).expect("a folder");
        std::fs::write(
            folder.path().join("policies/careful.yaml"),
            "shadow: { zones: { residency: [DE, FR, IE] } }",
        )
        .expect("written");
        std::fs::write(&path, CONFIG).expect("written");
        let config = load(&path).expect("valid");
        let placement = |zone: &str, ms: f64| PlacementView {
            zone: zone.into(),
            forecast_ms: Some(ms),
            ..PlacementView::default()
        };
        let view = ResourceView {
            name: "orders".into(),
            primary: "dublin".into(),
            shadow: "frankfurt".into(),
            placements: vec![placement("dublin", 20.0), placement("frankfurt", 10.0)],
            ..ResourceView::default()
        };
        let spikes =
            Ok([("dublin", Ok(0.5)), ("frankfurt", Err("3.0 h of probes are kept, 6 h are needed".into()))]
                .map(|(zone, rate)| (zone.to_owned(), rate))
                .into());
        let (feeds, now) =
            (crate::feeds::external::board::FeedBoard::default(), migration::units::Timestamp(0));
        let judged = choice(&config, &config.resources["orders"], &view, &spikes, &feeds, now);
        assert_eq!(judged.chosen.as_deref(), Some("frankfurt"));
        insta::assert_snapshot!(super::choice(&judged));
        insta::assert_snapshot!(super::zones(&zones(&config)));
    }
}
