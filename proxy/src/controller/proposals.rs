//! Moves that the score proposes and a person approves (mode `advise`): each has an id and an end.

use std::sync::Arc;

use migration::report::{DecisionReport, Verdict};
use migration::units::Timestamp;
use serde::{Deserialize, Serialize};

use super::Denied;
use super::effects::chain;
use super::view::DecisionView;
use crate::store::{Journal, ProposalRow};

/// A proposal, as the API shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposalView {
    /// Its id.
    pub id: String,
    /// Where to.
    pub to: String,
    /// When it was made, Unix milliseconds.
    pub at_ms: u64,
    /// Until when it can be approved.
    pub expires_ms: u64,
}

/// The open proposal of one resource.
pub struct Proposals {
    resource: String,
    journal: Arc<Journal>,
    open: Option<ProposalRow>,
}

impl Proposals {
    /// With the one that was open when the process ended.
    pub fn open(resource: &str, journal: Arc<Journal>) -> Self {
        let newest = journal.proposal(resource, None).unwrap_or_else(|error| {
            tracing::warn!(error = chain(error), "proposals cannot be read");
            None
        });
        Self { resource: resource.to_owned(), journal, open: newest.filter(|row| row.ended.is_none()) }
    }

    /// The open one.
    pub fn view(&self) -> Option<ProposalView> {
        self.open.as_ref().map(|row| ProposalView {
            id: row.id.clone(),
            to: row.to.clone(),
            at_ms: row.at.0,
            expires_ms: row.expires.0,
        })
    }

    /// Follows the newest decision: what is over ends, what the score wants is proposed.
    pub fn follow(&mut self, report: &DecisionReport, expires: std::time::Duration, now: Timestamp) {
        let wanted = match &report.verdict {
            Verdict::Propose { to } => Some(to.to_string()),
            _ => None,
        };
        if let Some(row) = &self.open {
            let ended = if now >= row.expires {
                Some("expired")
            } else if wanted.as_ref().is_some_and(|to| *to != row.to) {
                Some("withdrawn")
            } else {
                None
            };
            if let Some(ended) = ended {
                self.end(ended, None, now);
            }
        }
        if let (None, Some(to)) = (&self.open, wanted) {
            self.make(to, report, now.after(expires), now);
        }
    }

    fn make(&mut self, to: String, report: &DecisionReport, expires: Timestamp, now: Timestamp) {
        let decision = serde_json::to_string(&DecisionView::of(report, now.0)).unwrap_or_default();
        let id = crate::rng::id();
        let row =
            ProposalRow { id, resource: self.resource.clone(), to, at: now, expires, decision, ended: None };
        match self.journal.propose(&row) {
            Ok(()) => {
                tracing::info!(resource = %self.resource, id = %row.id, to = %row.to, because = %report.because, "a move is proposed");
                self.open = Some(row);
            }
            Err(error) => tracing::warn!(error = chain(error), "a proposal cannot be written"),
        }
    }

    fn end(&mut self, ended: &str, by: Option<&str>, now: Timestamp) {
        let Some(row) = self.open.take() else { return };
        if let Err(error) = self.journal.end_proposal(&row.id, ended, by, now) {
            tracing::warn!(error = chain(error), id = %row.id, "the end of a proposal cannot be written");
        }
    }

    /// Whether `id` (none: the open one) can be approved now; where to.
    ///
    /// # Errors
    /// It is unknown, over, or the score no longer wants it.
    pub fn check(
        &self,
        id: Option<&str>,
        report: Option<&DecisionReport>,
        now: Timestamp,
    ) -> Result<String, Denied> {
        let open = self.open.as_ref().filter(|row| id.is_none_or(|id| id == row.id));
        let Some(row) = open else {
            let known =
                self.journal.proposal(&self.resource, id).map_err(|error| Denied::Journal(chain(error)))?;
            return Err(match (id, known) {
                (Some(id), Some(row)) => Denied::Conflict(format!(
                    "proposal {id} is {}; ask for the resource's state and approve the open one, if there is one",
                    row.ended.as_deref().unwrap_or("over")
                )),
                (Some(id), None) => Denied::NoSuchProposal(id.to_owned()),
                (None, _) => Denied::Conflict("no proposal is open".into()),
            });
        };
        if now >= row.expires {
            return Err(Denied::Conflict(format!("proposal {} has expired", row.id)));
        }
        match report.map(|report| (&report.verdict, &report.because)) {
            Some((Verdict::Propose { to }, _)) if to.to_string() == row.to => Ok(row.to.clone()),
            Some((_, because)) => {
                Err(Denied::Conflict(format!("proposal {} no longer holds: {because}", row.id)))
            }
            None => {
                Err(Denied::Conflict("nothing is known of the resource yet: ask again in a moment".into()))
            }
        }
    }

    /// It was approved and the move has begun.
    pub fn approved(&mut self, by: &str, now: Timestamp) {
        self.end("approved", Some(by), now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use migration::score::score;

    use super::*;

    fn report(verdict: Verdict) -> DecisionReport {
        let weights = migration::policy::PolicyParts::default().weights;
        DecisionReport {
            verdict,
            score: score(&weights, &world()),
            needed: 0.3,
            guards: Vec::new(),
            because: "tested".into(),
            awaited: Vec::new(),
            flips: Vec::new(),
        }
    }

    fn world() -> migration::world::World {
        use migration::world::Fact;
        migration::world::World {
            primary: "a".into(),
            shadow: "b".into(),
            phase: migration::cutover::Phase::Shadowing,
            running: None,
            baseline_ms: Fact::unknown("test"),
            latency: Fact::unknown("test"),
            primary_probe: Fact::unknown("test"),
            shadow_probe: Fact::unknown("test"),
            primary_mirrored: Fact::unknown("test"),
            shadow_mirrored: Fact::unknown("test"),
            mirrored_different: Fact::unknown("test"),
            primary_cost: Fact::unknown("test"),
            shadow_cost: Fact::unknown("test"),
            primary_utilization: Fact::unknown("test"),
            shadow_utilization: Fact::unknown("test"),
            lag: Fact::unknown("test"),
            maintenance: Vec::new(),
            maintenance_unknown: None,
            blockers: Vec::new(),
            last_move: None,
            moves_last_day: 0,
            moves_ease: None,
            freezes: Vec::new(),
            above_since: None,
        }
    }

    #[test]
    fn a_proposal_lasts_over_a_restart_and_not_over_its_end() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let journal = Arc::new(Journal::open(directory.path()).expect("open"));
        let propose = report(Verdict::Propose { to: "b".into() });
        let stay = report(Verdict::Stay);
        let minute = Duration::from_secs(60);
        let mut proposals = Proposals::open("orders", journal.clone());
        proposals.follow(&propose, minute, Timestamp(1000));
        let first = proposals.view().expect("proposed").id;
        proposals.follow(&propose, minute, Timestamp(2000));
        assert_eq!(proposals.view().expect("still there").id, first);

        let mut proposals = Proposals::open("orders", journal);
        let check = |proposals: &Proposals, id: Option<&str>, report: &DecisionReport, now| {
            proposals.check(id, Some(report), Timestamp(now)).map_err(|denied| denied.to_string())
        };
        assert_eq!(check(&proposals, None, &propose, 3000), Ok("b".into()));
        assert_eq!(check(&proposals, Some(&first), &propose, 3000), Ok("b".into()));
        let changed = check(&proposals, None, &stay, 3000).expect_err("changed");
        assert_eq!(changed, format!("proposal {first} no longer holds: tested"));
        let expired = check(&proposals, None, &propose, 61_000).expect_err("expired");
        assert_eq!(expired, format!("proposal {first} has expired"));
        assert_eq!(check(&proposals, Some("p9"), &propose, 3000), Err("no proposal p9".into()));

        proposals.follow(&propose, minute, Timestamp(61_000));
        let second = proposals.view().expect("proposed anew").id;
        assert_ne!(second, first);
        let over = check(&proposals, Some(&first), &propose, 62_000).expect_err("over");
        assert!(over.starts_with(&format!("proposal {first} is expired")), "{over}");
        proposals.approved("ann", Timestamp(62_000));
        assert_eq!(check(&proposals, None, &propose, 62_000), Err("no proposal is open".into()));
    }
}
