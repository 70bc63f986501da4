//! The failure table: what each fault does at each step of a migration (docs/failures.md is made of it).

use super::fault::{A_MINUTE, Disk, Fault, Setting, Side, TOO_LONG};
use godwit::demo::relay::Way;

/// How the run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Undone: the old primary stays.
    Aborts,
    /// The new primary serves.
    Finishes,
    /// One or the other, by which event comes first; both are right.
    Either,
}

/// One fault.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Its test, under `faults::`.
    pub(crate) test: &'static str,
    pub(crate) fault: Fault,
    /// The steps it can meet, with the run's end.
    pub(crate) steps: &'static [(&'static str, End)],
    /// Those in `make test`; all are in `make test-faults`.
    pub(crate) telling: &'static [&'static str],
}

use End::{Aborts, Either, Finishes};

/// The columns.
pub(crate) const STEPS: [&str; 12] = [
    "requested",
    "warm",
    "armed",
    "held",
    "drained",
    "fenced",
    "aborting",
    "committed",
    "swapped",
    "released",
    "watching",
    "soaking",
];

const BY_COMMIT: &[(&str, End)] = &[
    ("requested", Aborts),
    ("warm", Aborts),
    ("armed", Aborts),
    ("held", Aborts),
    ("drained", Aborts),
    ("fenced", Aborts),
    ("aborting", Aborts),
    ("committed", Finishes),
    ("swapped", Finishes),
    ("released", Finishes),
    ("watching", Finishes),
    ("soaking", Finishes),
];
const EITHER_BEFORE: &[(&str, End)] = &[
    ("requested", Either),
    ("warm", Either),
    ("armed", Either),
    ("held", Either),
    ("drained", Either),
    ("fenced", Either),
    ("aborting", Aborts),
    ("committed", Finishes),
    ("swapped", Finishes),
    ("released", Finishes),
    ("watching", Finishes),
    ("soaking", Finishes),
];
const UNMOVED: &[(&str, End)] = &[
    ("requested", Finishes),
    ("warm", Finishes),
    ("armed", Finishes),
    ("held", Finishes),
    ("drained", Finishes),
    ("fenced", Finishes),
    ("aborting", Aborts),
    ("committed", Finishes),
    ("swapped", Finishes),
    ("released", Finishes),
    ("watching", Finishes),
    ("soaking", Finishes),
];
/// Once the far zone has been fenced and has told all, the near one needs nothing more of it; the other way round it is undone ([`super::cut_off`]).
const LINK: &[(&str, End)] = &[
    ("requested", Either),
    ("warm", Either),
    ("armed", Aborts),
    ("held", Aborts),
    ("drained", Aborts),
    ("fenced", Either),
    ("aborting", Aborts),
    ("committed", Finishes),
    ("swapped", Finishes),
    ("released", Finishes),
    ("watching", Finishes),
    ("soaking", Finishes),
];
const A_MINUTE_AT: &[(&str, End)] =
    &[("held", Either), ("fenced", Either), ("committed", Finishes), ("soaking", Finishes)];
const UNTIL_THE_FENCE: &[(&str, End)] =
    &[("requested", Aborts), ("warm", Aborts), ("armed", Aborts), ("held", Aborts), ("drained", Aborts)];
const BLOCKED_BY_THE_FENCE: &[(&str, End)] = &[
    ("requested", Aborts),
    ("warm", Aborts),
    ("armed", Aborts),
    ("held", Aborts),
    ("drained", Aborts),
    ("fenced", Finishes),
    ("committed", Finishes),
    ("swapped", Finishes),
];

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "kill -9 of godwit",
        test: "processes",
        fault: Fault::KillLeader,
        steps: BY_COMMIT,
        telling: &["fenced", "aborting", "committed"],
    },
    Row {
        name: "SIGTERM",
        test: "processes",
        fault: Fault::Terminate,
        steps: EITHER_BEFORE,
        telling: &["held", "swapped"],
    },
    Row {
        name: "SIGSTOP of godwit, longer than the hold may last",
        test: "processes",
        fault: Fault::FreezeLeader(TOO_LONG),
        steps: EITHER_BEFORE,
        telling: &["drained", "committed"],
    },
    Row {
        name: "SIGSTOP of godwit for a minute",
        test: "minutes",
        fault: Fault::FreezeLeader(A_MINUTE),
        steps: A_MINUTE_AT,
        telling: &["fenced"],
    },
    Row {
        name: "SIGSTOP of the primary's database",
        test: "freezes",
        fault: Fault::FreezeDatabase(Side::Primary),
        steps: EITHER_BEFORE,
        telling: &["drained", "released"],
    },
    Row {
        name: "SIGSTOP of the shadow's database",
        test: "freezes",
        fault: Fault::FreezeDatabase(Side::Shadow),
        steps: EITHER_BEFORE,
        telling: &["fenced", "committed"],
    },
    Row {
        name: "clock jumps an hour ahead",
        test: "clocks",
        fault: Fault::Clock(3_600_000),
        steps: UNMOVED,
        telling: &["drained", "soaking"],
    },
    Row {
        name: "clock jumps an hour back",
        test: "clocks",
        fault: Fault::Clock(-3_600_000),
        steps: UNMOVED,
        telling: &["held", "released"],
    },
    Row {
        name: "clock jumps an hour back, and the far zone is gone",
        test: "clocks",
        fault: Fault::ClockBackAndCut,
        steps: &[("armed", Aborts), ("held", Aborts), ("drained", Aborts), ("fenced", Either)],
        telling: &["fenced"],
    },
    Row {
        name: "primary crashes and returns",
        test: "crashes",
        fault: Fault::Crash(Side::Primary),
        steps: EITHER_BEFORE,
        telling: &["drained", "fenced", "aborting", "watching"],
    },
    Row {
        name: "shadow crashes and returns",
        test: "crashes",
        fault: Fault::Crash(Side::Shadow),
        steps: EITHER_BEFORE,
        telling: &["fenced", "committed", "released"],
    },
    Row {
        name: "link cut",
        test: "links",
        fault: Fault::Cut,
        steps: LINK,
        telling: &["held", "fenced", "committed"],
    },
    Row {
        name: "black hole towards the far zone",
        test: "links",
        fault: Fault::BlackHole(Way::Forth),
        steps: LINK,
        telling: &["drained"],
    },
    Row {
        name: "black hole back: what is asked is done, its answer lost",
        test: "links",
        fault: Fault::BlackHole(Way::Back),
        steps: LINK,
        telling: &["drained", "aborting", "committed"],
    },
    Row {
        name: "node of the far zone dies",
        test: "far_node",
        fault: Fault::KillAgent,
        steps: EITHER_BEFORE,
        telling: &["fenced", "released"],
    },
    Row {
        name: "link cut between two nodes",
        test: "far_node",
        fault: Fault::Cut,
        steps: LINK,
        telling: &["fenced", "swapped"],
    },
    Row {
        name: "slot lost",
        test: "slots_lost",
        fault: Fault::SlotLost,
        // Not while it soaks: that begins when the old stream and its slot are gone.
        steps: EITHER_BEFORE.split_at(EITHER_BEFORE.len() - 1).0,
        telling: &["held", "fenced", "committed"],
    },
    Row {
        name: "slot of the way back lost",
        test: "slots_lost",
        fault: Fault::WayBackLost,
        steps: &[
            ("armed", Either),
            ("held", Either),
            ("drained", Either),
            ("fenced", Either),
            ("committed", Finishes),
            ("swapped", Finishes),
            ("released", Finishes),
            ("soaking", Finishes),
        ],
        telling: &["fenced", "committed"],
    },
    Row {
        name: "session idle in a transaction, with row locks",
        test: "sessions",
        fault: Fault::IdleInTransaction,
        steps: BLOCKED_BY_THE_FENCE,
        telling: &["requested", "drained", "fenced"],
    },
    Row {
        name: "endless reader",
        test: "sessions",
        fault: Fault::EndlessRead,
        steps: &[
            ("requested", Finishes),
            ("armed", Finishes),
            ("drained", Finishes),
            ("fenced", Finishes),
            ("committed", Finishes),
        ],
        telling: &["drained"],
    },
    Row {
        name: "prepared transaction",
        test: "sessions",
        fault: Fault::Prepared,
        steps: UNTIL_THE_FENCE,
        telling: &["warm", "drained"],
    },
    Row {
        name: "DDL: a column is added on the primary",
        test: "ddl",
        fault: Fault::AddColumn,
        steps: UNTIL_THE_FENCE,
        telling: &["armed", "drained"],
    },
    Row {
        name: "DDL: a table is added on the primary",
        test: "ddl",
        fault: Fault::AddTable,
        steps: UNTIL_THE_FENCE,
        telling: &["held"],
    },
    Row {
        name: "superuser writes round the fence, triggers off",
        test: "clients",
        fault: Fault::WriteRoundTheFence,
        steps: &[
            ("requested", Finishes),
            ("drained", Finishes),
            ("fenced", Finishes),
            ("committed", Finishes),
            ("swapped", Finishes),
        ],
        telling: &["drained", "committed"],
    },
    Row {
        name: "clients gone while held",
        test: "clients",
        fault: Fault::ClientsLeave,
        steps: &[
            ("held", Finishes),
            ("drained", Finishes),
            ("fenced", Finishes),
            ("committed", Finishes),
            ("swapped", Finishes),
        ],
        telling: &["fenced"],
    },
    Row {
        name: "asked for twice",
        test: "clients",
        fault: Fault::SecondRequest,
        steps: &[
            ("requested", Finishes),
            ("warm", Finishes),
            ("armed", Finishes),
            ("held", Finishes),
            ("drained", Finishes),
            ("fenced", Finishes),
            ("aborting", Aborts),
            ("committed", Finishes),
            ("swapped", Finishes),
            ("released", Finishes),
        ],
        telling: &["fenced", "aborting", "committed"],
    },
    Row {
        name: "configuration read anew: another limit, at once",
        test: "reloads",
        fault: Fault::Reload(Setting::Limit),
        steps: UNMOVED,
        telling: &["held", "fenced", "committed"],
    },
    Row {
        name: "configuration read anew: other workers, refused until the end",
        test: "reloads",
        fault: Fault::Reload(Setting::Capacity),
        steps: UNMOVED,
        telling: &["warm", "drained", "aborting", "swapped"],
    },
    Row {
        name: "disk full under the journal",
        test: "disks",
        fault: Fault::DiskFull(Disk::Journal),
        steps: EITHER_BEFORE,
        telling: &["armed", "fenced", "swapped"],
    },
    Row {
        name: "disk full under the primary's database",
        test: "disks",
        fault: Fault::DiskFull(Disk::Database(Side::Primary)),
        steps: EITHER_BEFORE,
        telling: &["drained", "released"],
    },
    Row {
        name: "disk full under the shadow's database",
        test: "disks",
        fault: Fault::DiskFull(Disk::Database(Side::Shadow)),
        steps: EITHER_BEFORE,
        telling: &["fenced", "committed"],
    },
];
