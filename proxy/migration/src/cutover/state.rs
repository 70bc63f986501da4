//! What is true of one resource.

use std::fmt;
use std::time::Duration;

use crate::policy::{OnDrainTimeout, Policy};
use crate::units::{Generation, Position, Timestamp, Zone};

/// Where a resource stands. The name says what is true; what is being done follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// No shadow is wanted.
    Idle,
    /// A shadow is being provisioned and copied.
    Preparing,
    /// The shadow follows the primary.
    Shadowing,
    /// A migration was accepted; the shadow scales up.
    Requested,
    /// The shadow is at full capacity; guards are checked and the reverse slot is made.
    Warm,
    /// Guards passed; the gate is about to close.
    Armed,
    /// The gate is closed; requests in flight end.
    Held,
    /// No request is in flight; the fence goes up.
    Drained,
    /// The old primary takes no writes; the marker travels.
    Fenced,
    /// The shadow has applied the marker.
    CaughtUp,
    /// The shadow's sequences are set; the reverse slot is confirmed.
    Sequenced,
    /// The point of no return: the shadow is the primary.
    Committed,
    /// The front's pool is the new primary's and its database is open.
    Swapped,
    /// The gate is open; clients are served by the new primary.
    Released,
    /// The reverse stream runs; the old slot is watched for writes that went round the fence.
    Watching,
    /// The old primary waits, at full capacity, for verification and for its retirement.
    Soaking,
    /// A migration is being undone; the old primary stays.
    Aborting,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 17] = [
        Self::Idle,
        Self::Preparing,
        Self::Shadowing,
        Self::Requested,
        Self::Warm,
        Self::Armed,
        Self::Held,
        Self::Drained,
        Self::Fenced,
        Self::CaughtUp,
        Self::Sequenced,
        Self::Committed,
        Self::Swapped,
        Self::Released,
        Self::Watching,
        Self::Soaking,
        Self::Aborting,
    ];

    /// The name used in the journal, API and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Preparing => "preparing",
            Self::Shadowing => "shadowing",
            Self::Requested => "requested",
            Self::Warm => "warm",
            Self::Armed => "armed",
            Self::Held => "held",
            Self::Drained => "drained",
            Self::Fenced => "fenced",
            Self::CaughtUp => "caught_up",
            Self::Sequenced => "sequenced",
            Self::Committed => "committed",
            Self::Swapped => "swapped",
            Self::Released => "released",
            Self::Watching => "watching",
            Self::Soaking => "soaking",
            Self::Aborting => "aborting",
        }
    }

    /// The phase of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.name() == name)
    }

    /// A migration that may still go back.
    pub fn may_abort(self) -> bool {
        (Self::Requested..=Self::Sequenced).contains(&self)
    }

    /// A migration that only goes forward.
    pub fn past_commit(self) -> bool {
        (Self::Committed..=Self::Soaking).contains(&self)
    }

    /// Requests wait: nobody serves.
    pub fn holds(self) -> bool {
        (Self::Held..=Self::Swapped).contains(&self)
    }
}

/// Who asked for a migration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// The score.
    Score,
    /// A person, by name.
    Operator(String),
    /// Requests fail since the move before; in words.
    Failures(String),
}

/// What comes before the words of [`Trigger::Failures`].
const FAILURES: &str = "failures: ";

impl Trigger {
    /// What failed since the move before, of one in words.
    pub fn failures(words: &str) -> Option<&str> {
        words.strip_prefix(FAILURES)
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Score => f.write_str("score"),
            Self::Operator(name) => f.write_str(name),
            Self::Failures(what) => write!(f, "{FAILURES}{what}"),
        }
    }
}

/// How long a run may take where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Scaling the shadow up.
    pub scale: Duration,
    /// Guards and reverse slot.
    pub arm: Duration,
    /// Requests in flight, after the gate closed.
    pub drain: Duration,
    /// The whole time the gate is closed before the commit.
    pub hold: Duration,
    /// Watching the old slot after the release.
    pub watch: Duration,
    /// Soak before the old primary is retired.
    pub retire_after: Duration,
    /// Retire only after a clean verification.
    pub require_verified: bool,
}

/// How long the gate may take to close.
const CLOSES: Duration = Duration::from_secs(30);

impl Limits {
    /// What a policy allows.
    pub fn of(policy: &Policy) -> Self {
        Self {
            scale: Duration::from_secs(600),
            // Before the hold, and minutes where the schemas of thousands of tables are compared.
            arm: Duration::from_mins(3),
            // Where transactions are ended after that time, their end is awaited too.
            drain: match policy.on_drain_timeout {
                OnDrainTimeout::Abort => policy.drain_timeout,
                OnDrainTimeout::Terminate => policy.max_hold,
            },
            hold: policy.max_hold,
            watch: Duration::from_secs(1),
            retire_after: policy.retire_after,
            require_verified: policy.require_verified,
        }
    }
}

/// One migration: one run of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// Its id.
    pub id: String,
    /// Old primary.
    pub from: Zone,
    /// New primary.
    pub to: Zone,
    /// The generation it commits.
    pub generation: Generation,
    /// Who asked.
    pub trigger: Trigger,
    /// When it was accepted.
    pub started: Timestamp,
    /// How long it may take.
    pub limits: Limits,
    /// When the gate began to close.
    pub held_since: Option<Timestamp>,
    /// Position of the end marker.
    pub fence: Option<Position>,
    /// Guards passed.
    pub guarded: bool,
    /// The reverse slot exists.
    pub reverse_slot: bool,
    /// The shadow applied the marker.
    pub caught_up: bool,
    /// The shadow's sequences are set.
    pub sequenced: bool,
    /// After the commit: the new primary is open. While aborting: the old one is.
    pub opened: bool,
    /// The front's pool is the new primary's.
    pub swapped: bool,
    /// The reverse stream runs.
    pub reversed: bool,
    /// Both sides were compared and are equal.
    pub verified: bool,
    /// Why it is being undone.
    pub aborted: Option<String>,
    /// Undoing it must lift a fence.
    pub lift_fence: bool,
    /// The old primary is lost: nothing was asked of it, and what had not reached the shadow is not there.
    pub taken_over: bool,
}

impl Run {
    /// A run to the shadow of which nothing is done yet.
    pub(super) fn begun(state: &State, id: String, trigger: Trigger, limits: Limits, now: Timestamp) -> Self {
        Self {
            id,
            from: state.primary.clone(),
            to: state.shadow.clone(),
            generation: state.generation.next(),
            trigger,
            started: now,
            limits,
            held_since: None,
            fence: None,
            guarded: false,
            reverse_slot: false,
            caught_up: false,
            sequenced: false,
            opened: false,
            swapped: false,
            reversed: false,
            verified: false,
            aborted: None,
            lift_fence: false,
            taken_over: false,
        }
    }
}

/// A move whose old primary soaks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Soak {
    /// The move.
    pub run: Run,
    /// Since when it soaks.
    pub since: Timestamp,
}

/// The whole durable state of one resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Its name.
    pub resource: String,
    /// Fencing number of the last commit.
    pub generation: Generation,
    /// Who serves.
    pub primary: Zone,
    /// Who follows.
    pub shadow: Zone,
    /// Where it stands.
    pub phase: Phase,
    /// Since when.
    pub since: Timestamp,
    /// The migration under way.
    pub run: Option<Run>,
    /// Where that one goes back while the old primary of the move before soaks, and may still be undone: what goes on then.
    pub soaking: Option<Soak>,
}

impl State {
    /// A resource that was never moved.
    pub fn first(resource: &str, primary: Zone, shadow: Zone, now: Timestamp) -> Self {
        Self {
            resource: resource.to_owned(),
            generation: Generation(1),
            primary,
            shadow,
            phase: Phase::Idle,
            since: now,
            run: None,
            soaking: None,
        }
    }

    /// This resource with a run of another node's, of which only the fence in the primary is known: it is undone. The caller has made sure
    /// that it cannot be committed any more.
    #[must_use]
    pub fn undoing(mut self, run: &str, limits: Limits, why: &str, now: Timestamp) -> Self {
        let begun = Run::begun(&self, run.to_owned(), Trigger::Operator("unknown".into()), limits, now);
        self.run = Some(Run { aborted: Some(why.to_owned()), lift_fence: true, ..begun });
        self.phase = Phase::Aborting;
        self
    }

    /// Whether a process that starts in this state must start with its gate closed: a database may be fenced.
    pub fn starts_closed(&self) -> bool {
        self.phase.holds()
            || (self.phase == Phase::Aborting
                && self.run.as_ref().is_some_and(|run| run.lift_fence && !run.opened))
    }

    /// When the present phase must be over; `None`: it may last.
    pub fn deadline(&self) -> Option<Timestamp> {
        let run = self.run.as_ref()?;
        let limits = &run.limits;
        let held = run.held_since.unwrap_or(self.since);
        match self.phase {
            Phase::Requested => Some(self.since.after(limits.scale)),
            Phase::Warm => Some(self.since.after(limits.arm)),
            Phase::Armed => Some(self.since.after(limits.arm.min(CLOSES))),
            Phase::Held => Some(held.after(limits.drain.min(limits.hold))),
            Phase::Drained | Phase::Fenced | Phase::CaughtUp | Phase::Sequenced => {
                Some(held.after(limits.hold))
            }
            Phase::Watching => Some(self.since.after(limits.watch)),
            Phase::Soaking => Some(self.since.after(limits.retire_after)),
            _ => None,
        }
    }
}
