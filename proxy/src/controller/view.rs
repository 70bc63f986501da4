//! What the controller shows: published after every change, read by the API, the CLI and the metrics. Shapes are the
//! API's JSON (integers `_ms`, `_bytes`).

use std::time::Duration;

use migration::cutover::{Phase, State};
use migration::report::{DecisionReport, Verdict};
use migration::units::ByteCount;
use migration::world::Fact;
use replicator::changes::Reader;
use replicator::postgres::slot::Lane;
use replicator::status::{Phase as StreamPhase, StreamStatus};
use serde::{Deserialize, Serialize};

use super::behind::Behind;
use super::modes::{ModeChange, ModeState};
use crate::store::{Journal, JournalRow, LedgerRow, RunRow, StoreError};

/// One resource, now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ResourceView {
    /// Its name.
    pub name: String,
    /// Who serves.
    pub primary: String,
    /// Who follows.
    pub shadow: String,
    /// Where the machine stands.
    pub phase: String,
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
    /// Fencing number.
    pub generation: u64,
    /// Policy name.
    pub policy: String,
    /// `observe`, `advise` or `auto`.
    pub mode: String,
    /// The migration under way: its id.
    pub migration: Option<String>,
    /// The old primary soaks: until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soak: Option<SoakView>,
    /// The gate of the HTTP front.
    pub gate: Option<GateView>,
    /// The sessions of the PostgreSQL front.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<SessionsView>,
    /// By zone.
    pub placements: Vec<PlacementView>,
    /// The stream to the shadow.
    pub replication: ReplicationView,
    /// Who reads the service's changes through the PostgreSQL front, and goes with the primary.
    #[serde(default)]
    pub change_streams: Vec<ChangeStreamView>,
    /// The last decision.
    pub decision: Option<DecisionView>,
    /// Reads that the shadow was asked as well.
    #[serde(default)]
    pub mirror: crate::fronts::mirror::MirrorView,
    /// The move that waits for a person's approval.
    #[serde(default)]
    pub proposal: Option<super::proposals::ProposalView>,
    /// What is wrong now and what it means; empty: nothing.
    pub problems: Vec<String>,
}

/// An old primary that is kept at full capacity for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SoakView {
    /// When it is retired, Unix milliseconds.
    pub until_ms: u64,
    /// Not before both sides have compared equal, and they have not yet.
    pub unverified: bool,
}

impl SoakView {
    /// Of the old primary that soaks, if one does.
    pub fn of(state: &State) -> Option<Self> {
        let run = state.run.as_ref().filter(|_| state.phase == Phase::Soaking)?;
        let unverified = run.limits.require_verified && !run.verified;
        Some(Self { until_ms: state.deadline()?.0, unverified })
    }
}

/// A gate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GateView {
    /// Requests wait.
    pub closed: bool,
    /// How many.
    pub held: usize,
    /// Requests inside.
    pub in_flight: u64,
    /// Requests refused because the gate held all it may.
    pub refused_total: u64,
}

/// A reader of the service's changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ChangeStreamView {
    /// Its replication slot.
    pub slot: String,
    /// Somebody reads by it at the primary.
    pub active: bool,
    /// WAL that the primary has written since what it has confirmed.
    pub behind_bytes: u64,
    /// It has not confirmed all from before the last move: a further one waits for that.
    pub unread: bool,
}

impl ChangeStreamView {
    pub(super) fn of(reader: Reader) -> Self {
        let Reader { slot, active, behind_bytes, passed } = reader;
        Self { slot, active, behind_bytes, unread: !passed }
    }
}

/// Sessions of clients of the database.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SessionsView {
    /// Transactions may not begin.
    pub closed: bool,
    /// Connections of clients.
    pub connections: usize,
    /// Sessions that do not stand held between transactions.
    pub running: usize,
    /// Sessions whose client waits.
    pub held: usize,
    /// Sessions that were refused because they would have waited longer, or more of them, than may be.
    pub refused_total: u64,
}

/// A placement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlacementView {
    /// Its zone.
    pub zone: String,
    /// `primary` or `shadow`.
    pub role: String,
    /// Workers that answer; none: no driver says.
    pub ready: Option<u32>,
    /// Workers wanted.
    pub capacity: Option<u32>,
    /// Workers at full capacity.
    #[serde(default)]
    pub capacity_full: u32,
    /// Workers as a shadow.
    #[serde(default)]
    pub capacity_shadow: u32,
    /// What one worker costs per hour as it is configured, in the currency of the configuration.
    #[serde(default)]
    pub cost_per_hour: Option<f64>,
    /// The same as decisions take it: what a feed says, else what is configured.
    #[serde(default)]
    pub cost: FactView,
    /// Last HTTP probe, microseconds, or why it failed.
    #[schema(value_type = Option<crate::admin::openapi::Probe>)]
    pub http_probe: Option<Result<u64, String>>,
    /// The phases that it completed, in their order.
    #[serde(default)]
    pub http_phases: Vec<PhaseView>,
    /// Last SQL probe, microseconds, or why it failed.
    #[schema(value_type = Option<crate::admin::openapi::Probe>)]
    pub sql_probe: Option<Result<u64, String>>,
    /// The phases that it completed, in their order.
    #[serde(default)]
    pub sql_phases: Vec<PhaseView>,
    /// Last heartbeat, a row of Godwit's own written and committed, microseconds, or why there was none; not there for a shadow.
    #[schema(value_type = Option<crate::admin::openapi::Probe>)]
    #[serde(default)]
    pub heartbeat: Option<Result<u64, String>>,
    /// The way there from this node, as feeds measure it; none: no feed speaks of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathView>,
    /// Median forecast of the probe's answer, without opening the connection, milliseconds.
    pub forecast_ms: Option<f64>,
}

/// The way to a zone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PathView {
    /// Round trip, milliseconds.
    pub rtt_ms: FactView,
    /// Share of packets that are lost, 0 to 1.
    pub loss: FactView,
    /// For how long the route has been this one, milliseconds.
    pub route_age_ms: FactView,
}

impl PathView {
    /// As a decision has it.
    pub fn of(path: &migration::world::Path) -> Self {
        Self {
            rtt_ms: FactView::of(&path.rtt_ms),
            loss: FactView::of(&path.loss),
            route_age_ms: FactView::of(&path.route_age_ms),
        }
    }
}

/// A number with its age and source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FactView {
    /// None: unknown.
    pub value: Option<f64>,
    /// Where it comes from, or why it is unknown.
    pub source: String,
    /// How old it was when the resource was looked at.
    pub age_ms: Option<u64>,
}

impl FactView {
    pub(super) fn of(fact: &Fact<f64>) -> Self {
        match fact {
            Fact::Known { value, age, source } => {
                Self { value: Some(*value), source: source.clone(), age_ms: Some(millis(*age)) }
            }
            Fact::Unknown { why } => Self { source: format!("unknown: {why}"), ..Self::default() },
        }
    }
}

/// A phase of a probe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PhaseView {
    /// `dns`, `connect`, `tls`, `first_byte`, `body` or `total` of an HTTP probe; `connect` or `query` of an SQL probe.
    pub phase: String,
    /// How long it took, microseconds.
    pub us: u64,
}

/// A stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReplicationView {
    /// `connecting`, `copying`, `streaming`, `failed`, `stopped`; `none`: the resource has no database.
    pub state: String,
    /// Progress of a copy or the error.
    pub detail: String,
    /// Source zone.
    pub source: String,
    /// Target zone.
    pub target: String,
    /// Bytes behind: what the stream says, or, while it is down, what the primary keeps for it. Null: not known.
    #[serde(default)]
    pub lag_bytes: Option<u64>,
    /// The primary does not answer: it was so much when it did.
    #[serde(default)]
    pub lag_at_least: bool,
    /// Milliseconds behind; while the stream is down, since the shadow was last known to have caught up. Null: not known.
    #[serde(default)]
    pub lag_ms: Option<u64>,
    /// When a stream that is down last said how far it is, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_ms: Option<u64>,
    /// Newest source position known.
    pub source_lsn: String,
    /// Durably applied.
    pub applied_lsn: String,
    /// Transactions applied by this process.
    pub transactions: u64,
    /// Row changes applied by this process.
    pub changes: u64,
    /// How far the initial copy is, while it is made.
    #[serde(default)]
    pub copy: Option<CopyView>,
    /// What is carried beside it; none: there are no large objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large_objects: Option<LargeObjectsView>,
    /// Which commits wait for the shadow.
    #[serde(default)]
    pub mode: ModeView,
    /// Each lane by itself, where there are two.
    #[serde(default)]
    pub lanes: Vec<LaneView>,
}

/// Large objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LargeObjectsView {
    /// How many the primary had at the last look.
    pub objects: u64,
    /// How long that look took, milliseconds.
    pub looked_ms: u64,
}

/// How far an initial copy is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CopyView {
    /// `rows`; `indexes`: the rows are there; `settling`: changes bring tables that were copied at different times to one
    /// point; `finishing`: what had to wait for that is made.
    pub stage: String,
    /// Tables whose rows are there.
    pub tables_done: u32,
    /// Tables in all.
    pub tables: u32,
    /// Rows copied, those of an earlier attempt included.
    pub rows: u64,
    /// Rows in all, as the source's planner guesses.
    pub rows_estimate: u64,
    /// Bytes of row data copied, those of an earlier attempt included.
    pub bytes: u64,
    /// Size of the tables on the source's disk: row data takes less or more.
    pub bytes_estimate: u64,
    /// Milliseconds that the rows will still take at this speed; none: not known.
    pub remaining_ms: Option<u64>,
}

impl CopyView {
    /// From a stream's own word; none: it does not copy.
    pub fn of(phase: &StreamPhase) -> Option<Self> {
        let StreamPhase::Copying {
            stage,
            tables_done,
            tables,
            rows,
            bytes,
            rows_estimate,
            bytes_estimate,
            remaining,
        } = phase
        else {
            return None;
        };
        Some(Self {
            stage: stage.name().into(),
            tables_done: *tables_done,
            tables: *tables,
            rows: *rows,
            rows_estimate: *rows_estimate,
            bytes: *bytes,
            bytes_estimate: *bytes_estimate,
            remaining_ms: remaining.map(millis),
        })
    }

    /// Share of the rows that are there, 0..=1; none: nothing says how many there are, or there are more than was guessed.
    pub fn share(&self) -> Option<f64> {
        let (done, all) = if self.rows_estimate > 0 {
            (self.rows, self.rows_estimate)
        } else {
            (self.bytes, self.bytes_estimate)
        };
        if self.stage != "rows" {
            return Some(1.0);
        }
        (all > 0 && done <= all).then(|| done as f64 / all as f64)
    }

    /// On one line: `3 of 7 tables, 1.2 of about 4.0 million rows, 96 MiB, about 12 s left`.
    pub fn line(&self) -> String {
        let Self { tables_done, tables, rows, .. } = self;
        // A guess that was passed says nothing any more.
        let guess = Some(self.rows_estimate).filter(|guess| *guess > 0 && rows <= guess);
        let left = self.remaining_ms.filter(|_| self.share().is_some());
        match &*self.stage {
            "indexes" => format!("{rows} rows are there; builds indexes and constraints"),
            "settling" => format!("{rows} rows are there; brings its tables to one point"),
            "finishing" => "finishes what the copy left: foreign keys, materialized views".into(),
            _ => format!(
                "{tables_done} of {tables} tables, {rows}{} rows, {} copied{}",
                guess.map(|guess| format!(" of about {guess}")).unwrap_or_default(),
                ByteCount(self.bytes),
                left.map(|left| format!(", about {} s left", left / 1000)).unwrap_or_default()
            ),
        }
    }
}

/// Which commits wait for the shadow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModeView {
    /// The policy's: `async`, `sync` or `hybrid`.
    pub wanted: String,
    /// The one in effect: `async` while it has fallen back.
    pub effective: String,
    /// Since when, Unix milliseconds; none: this process has not seen it begin.
    pub since_ms: Option<u64>,
    /// Why it is not the policy's, commits wait for a shadow that does not follow, or the database is not in line with it; empty: none of them.
    pub why: String,
    /// Sessions whose commits wait now.
    pub waiting: u32,
    /// How long a commit may wait, or the link be down, before it falls back.
    pub after_ms: u64,
    /// The newest changes, oldest first.
    pub changes: Vec<ModeChangeView>,
}

/// A change of the mode in effect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModeChangeView {
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// The mode from then on.
    pub mode: String,
    /// Why.
    pub why: String,
}

/// One lane of a stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LaneView {
    /// `main` or `critical`.
    pub name: String,
    /// `connecting`, `copying`, `streaming`, `failed`, `stopped`.
    pub state: String,
    /// Bytes behind, as of the stream. Null: not known.
    #[serde(default)]
    pub lag_bytes: Option<u64>,
    /// Milliseconds behind, as of the stream. Null: not known.
    #[serde(default)]
    pub lag_ms: Option<u64>,
    /// Durably applied.
    pub applied_lsn: String,
}

impl ModeView {
    /// From the keeper's word.
    pub fn of(state: &ModeState, after: Duration) -> Self {
        let change = |change: &ModeChange| ModeChangeView {
            at_ms: change.at.0,
            mode: change.mode.name().into(),
            why: change.why.clone(),
        };
        Self {
            wanted: state.wanted.name().into(),
            effective: state.effective.name().into(),
            since_ms: state.since.map(|at| at.0),
            why: state.why.clone(),
            waiting: state.waiting,
            after_ms: millis(after),
            changes: state.changes.iter().map(change).collect(),
        }
    }
}

impl ReplicationView {
    /// From a stream's own word.
    pub fn of(source: &str, target: &str, status: &StreamStatus) -> Self {
        let copy = CopyView::of(&status.phase);
        let (state, detail) = match &status.phase {
            StreamPhase::Connecting => ("connecting", String::new()),
            StreamPhase::Copying { .. } => ("copying", copy.as_ref().map(CopyView::line).unwrap_or_default()),
            StreamPhase::Streaming => ("streaming", String::new()),
            StreamPhase::Failed { error, retrying } => {
                ("failed", if *retrying { format!("{error}; retrying") } else { error.clone() })
            }
            StreamPhase::Stopped => ("stopped", String::new()),
        };
        Self {
            state: state.into(),
            detail,
            source: source.into(),
            target: target.into(),
            source_lsn: status.source_lsn.to_string(),
            applied_lsn: status.applied_lsn.to_string(),
            transactions: status.transactions,
            changes: status.changes,
            copy,
            ..Self::default()
        }
    }

    /// The same with how far the shadow is behind.
    #[must_use]
    pub fn with_behind(self, behind: &Behind) -> Self {
        Self {
            lag_bytes: behind.bytes,
            lag_at_least: behind.at_least,
            lag_ms: behind.time.map(millis),
            heard_ms: behind.heard.map(|at| at.0),
            ..self
        }
    }

    /// The same with what is carried beside the stream.
    #[must_use]
    pub fn with_large_objects(self, large_objects: Option<LargeObjectsView>) -> Self {
        Self { large_objects, ..self }
    }

    /// The same with the mode and the lanes.
    #[must_use]
    pub fn with_mode(mut self, mode: ModeView, lanes: &[(Lane, StreamStatus, Behind)]) -> Self {
        self.mode = mode;
        if lanes.len() > 1 {
            let lane = |(lane, status, behind): &(Lane, StreamStatus, Behind)| {
                let view = Self::of("", "", status);
                let name = match lane {
                    Lane::Main => "main",
                    Lane::Critical => "critical",
                };
                LaneView {
                    name: name.into(),
                    state: view.state,
                    lag_bytes: behind.bytes,
                    lag_ms: behind.time.map(millis),
                    applied_lsn: view.applied_lsn,
                }
            };
            self.lanes = lanes.iter().map(lane).collect();
        }
        self
    }
}

/// A decision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DecisionView {
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// `move`, `propose` or `stay`.
    pub verdict: String,
    /// One sentence.
    pub because: String,
    /// Sum of the terms' points.
    pub score: f64,
    /// The same at the lower confidence bound.
    pub lower: f64,
    /// What the lower bound must clear.
    pub needed: f64,
    /// The terms.
    pub terms: Vec<TermView>,
    /// Every condition.
    pub guards: Vec<GuardView>,
    /// What time alone may bring.
    #[serde(default)]
    pub awaited: Vec<AwaitedView>,
    /// What would change the verdict, the smallest change first; empty: no single fact would.
    #[serde(default)]
    pub flips: Vec<FlipView>,
}

/// A condition that time alone may let pass.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AwaitedView {
    /// The guard.
    pub guard: String,
    /// What must happen.
    pub what: String,
    /// When, Unix milliseconds; none: nobody can say.
    pub at_ms: Option<u64>,
}

/// The smallest change of one fact that changes the verdict.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FlipView {
    /// The term or guard.
    pub of: String,
    /// The fact as it is.
    pub from: String,
    /// Where it would have to be.
    pub to: String,
    /// The change as a share of what is now; none: of nothing.
    pub size: Option<f64>,
    /// What would follow.
    pub then: String,
}

/// A term of the score.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TermView {
    /// `latency`, `cost` or `utilization`.
    pub name: String,
    /// Before weighting; none: unknown.
    pub raw: Option<f64>,
    /// The policy's weight.
    pub weight: f64,
    /// What it adds.
    pub points: f64,
    /// What it adds at the lower bound.
    pub points_lower: f64,
    /// Where it comes from, or why it is unknown.
    pub source: String,
    /// How old the facts are.
    pub age_ms: Option<u64>,
    /// The numbers that went in.
    pub detail: String,
}

/// A condition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GuardView {
    /// Its name.
    pub name: String,
    /// Whether it lets the move through.
    pub passed: bool,
    /// What was found.
    pub value: String,
    /// What is needed.
    pub limit: String,
    /// It also binds a move that an operator starts.
    pub binds_operator: bool,
}

impl DecisionView {
    /// The report, unchanged.
    pub fn of(report: &DecisionReport, at_ms: u64) -> Self {
        let verdict = match report.verdict {
            Verdict::Move { .. } => "move",
            Verdict::Propose { .. } => "propose",
            Verdict::Stay => "stay",
        };
        let term = |term: &migration::score::Term| {
            let (source, age) = match &term.raw {
                Fact::Known { source, age, .. } => (source.clone(), Some(millis(*age))),
                Fact::Unknown { why } => (format!("unknown: {why}"), None),
            };
            TermView {
                name: term.name.into(),
                raw: term.raw.value().copied(),
                weight: term.weight,
                points: term.points,
                points_lower: term.points_lower,
                source,
                age_ms: age,
                detail: term.detail.clone(),
            }
        };
        Self {
            at_ms,
            verdict: verdict.into(),
            because: report.because.clone(),
            score: report.score.total,
            lower: report.score.lower,
            needed: report.needed,
            terms: report.score.terms.iter().map(term).collect(),
            guards: report
                .guards
                .iter()
                .map(|guard| GuardView {
                    name: guard.name.into(),
                    passed: guard.passed,
                    value: guard.value.clone(),
                    limit: guard.limit.clone(),
                    binds_operator: guard.binds_operator,
                })
                .collect(),
            awaited: report
                .awaited
                .iter()
                .map(|awaited| AwaitedView {
                    guard: awaited.guard.into(),
                    what: awaited.what.clone(),
                    at_ms: awaited.at.map(|at| at.0),
                })
                .collect(),
            flips: report
                .flips
                .iter()
                .map(|flip| FlipView {
                    of: flip.of.into(),
                    from: flip.from.clone(),
                    to: flip.to.clone(),
                    size: Some(flip.size).filter(|size| size.is_finite()),
                    then: flip.then.clone(),
                })
                .collect(),
        }
    }
}

/// A migration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MigrationView {
    /// Its id.
    pub id: String,
    /// The resource.
    pub resource: String,
    /// Old primary.
    pub from: String,
    /// New primary.
    pub to: String,
    /// `score`, the operator's name, or `failures: ` and what failed since the move that this takes back.
    pub trigger: String,
    /// The generation it commits.
    pub generation: u64,
    /// The phase it is in, or `retired`, `superseded`, `aborted`, `taken_over`.
    pub state: String,
    /// Why it was aborted, or ended without its old primary being retired or being one any more.
    pub reason: Option<String>,
    /// When it was accepted, Unix milliseconds.
    pub started_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// When it passed the point of no return.
    pub committed_ms: Option<u64>,
    /// How long the gate was closed.
    pub held_ms: Option<u64>,
    /// The end marker's position.
    pub fence_lsn: Option<String>,
    /// Comparison of both sides at the end marker; none: not yet.
    pub verified: Option<bool>,
    /// What was compared.
    pub comparison: Option<String>,
    /// Every phase it went through.
    pub steps: Vec<StepView>,
    /// What it was expected to bring and what it brought.
    #[serde(default)]
    pub ledger: Option<super::ledger::LedgerView>,
    /// The decision that started it.
    #[serde(default)]
    pub decision: Option<DecisionView>,
}

/// A phase of a migration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StepView {
    /// The phase.
    pub phase: String,
    /// When it was entered, Unix milliseconds.
    pub started_ms: u64,
    /// When the next one was.
    pub ended_ms: Option<u64>,
}

impl MigrationView {
    /// With what the journal has of this run.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn read(run: RunRow, journal: &Journal) -> Result<Self, StoreError> {
        let (timeline, ledger) = (journal.timeline(&run.id)?, journal.ledger(&run.id)?);
        Ok(Self::of(run, &timeline, ledger))
    }

    /// From the history's line and the journal's records.
    fn of(run: RunRow, timeline: &[JournalRow], ledger: Option<LedgerRow>) -> Self {
        let mut steps: Vec<StepView> = Vec::new();
        for row in timeline {
            if steps.last().is_some_and(|last| last.phase == row.phase) {
                continue;
            }
            if let Some(last) = steps.last_mut() {
                last.ended_ms = Some(row.at.0);
            }
            steps.push(StepView { phase: row.phase.clone(), started_ms: row.at.0, ended_ms: None });
        }
        if let (Some(last), Some(ended)) = (steps.last_mut(), run.ended) {
            last.ended_ms = Some(ended.0);
        }
        let state = run.outcome.clone().or_else(|| steps.last().map(|step| step.phase.clone()));
        Self {
            id: run.id,
            resource: run.resource,
            from: run.from,
            to: run.to,
            trigger: run.trigger,
            generation: run.generation,
            state: state.unwrap_or_else(|| "requested".into()),
            reason: run.reason,
            started_ms: run.started.0,
            ended_ms: run.ended.map(|at| at.0),
            committed_ms: run.committed.map(|at| at.0),
            held_ms: run.held_ms,
            fence_lsn: run.fence.map(|lsn| replicator::Lsn(lsn).to_string()),
            verified: run.verified,
            comparison: run.comparison,
            steps,
            ledger: ledger.map(|row| super::ledger::LedgerView::of(&row, run.held_ms)),
            decision: run.decision.and_then(|text| serde_json::from_str(&text).ok()),
        }
    }

    /// Nothing more will happen to it.
    pub fn ended(&self) -> bool {
        self.ended_ms.is_some()
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
