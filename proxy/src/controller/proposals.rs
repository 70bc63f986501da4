//! Moves that the score proposes (mode `advise`), or a person where the policy asks for several (`limits.approvals`), and that
//! people approve: each has an id and an end.

use std::sync::Arc;

use migration::report::{DecisionReport, Verdict};
use migration::units::Timestamp;
use serde::{Deserialize, Serialize};

use super::Denied;
use super::view::DecisionView;
use crate::causes::chain;
use crate::store::{ApprovalRow, Journal, ProposalRow, StoreError};

/// A proposal, as the API shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProposalView {
    /// Its id.
    pub id: String,
    /// Where to.
    pub to: String,
    /// When it was made, Unix milliseconds.
    pub at_ms: u64,
    /// Until when it can be approved.
    pub expires_ms: u64,
    /// The person who asked for it; none: the score did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<String>,
    /// Who wants it so far.
    #[serde(default)]
    pub approved_by: Vec<String>,
}

/// Who asks for a move, or approves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// As it is shown.
    pub name: String,
    /// What tells people apart: the same whatever else is known of them.
    pub id: String,
}

impl From<&str> for Person {
    fn from(name: &str) -> Self {
        Self { name: name.to_owned(), id: name.to_owned() }
    }
}

/// The open proposal of one resource.
pub struct Proposals {
    resource: String,
    journal: Arc<Journal>,
    open: Option<ProposalRow>,
    /// Who wants the open one.
    approvals: Vec<ApprovalRow>,
}

impl Proposals {
    /// With the one that was open when the process ended.
    pub fn open(resource: &str, journal: Arc<Journal>) -> Self {
        let newest = journal.proposal(resource, None).unwrap_or_else(|error| {
            tracing::warn!(error = chain(error), "proposals cannot be read");
            None
        });
        let open = newest.filter(|row| row.ended.is_none());
        let approvals =
            open.as_ref().map(|row| journal.approvals(&row.id)).transpose().unwrap_or_else(|error| {
                // They are asked again.
                tracing::warn!(error = chain(error), "approvals cannot be read");
                None
            });
        Self { resource: resource.to_owned(), journal, open, approvals: approvals.unwrap_or_default() }
    }

    /// The open one.
    pub fn view(&self) -> Option<ProposalView> {
        self.open.as_ref().map(|row| ProposalView {
            id: row.id.clone(),
            to: row.to.clone(),
            at_ms: row.at.0,
            expires_ms: row.expires.0,
            asked_by: self.asked().map(str::to_owned),
            approved_by: self.approved_by(),
        })
    }

    /// The person who asked for the open one.
    fn asked(&self) -> Option<&str> {
        self.approvals.iter().find(|approval| approval.asked).map(|approval| approval.person.as_str())
    }

    /// Who wants the open one so far.
    pub fn approved_by(&self) -> Vec<String> {
        self.approvals.iter().map(|approval| approval.person.clone()).collect()
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
            } else if self.asked().is_none() && wanted.as_ref().is_some_and(|to| *to != row.to) {
                Some("withdrawn")
            } else {
                None
            };
            if let Some(ended) = ended {
                self.end(ended, None, now);
            }
        }
        if let (None, Some(to)) = (&self.open, wanted) {
            match self.make(to, Some(report), now.after(expires), now) {
                Ok(()) => {}
                Err(error) => tracing::warn!(error = chain(error), "a proposal cannot be written"),
            }
        }
    }

    /// A person asks for a move that others must approve: of the one that is open, where that leads to the same place.
    ///
    /// # Errors
    /// Another place is proposed, or it cannot be written.
    pub fn ask(
        &mut self,
        to: &str,
        by: &Person,
        report: Option<&DecisionReport>,
        expires: std::time::Duration,
        now: Timestamp,
    ) -> Result<(), Denied> {
        match &self.open {
            Some(row) if now < row.expires && row.to == to => return self.wish(by, now),
            Some(row) if now < row.expires => {
                return Err(Denied::Conflict(format!("a move to {} is proposed ({})", row.to, row.id)));
            }
            Some(_) => self.end("expired", None, now),
            None => {}
        }
        let written = |error| Denied::Journal(chain(error));
        self.make(to.to_owned(), report, now.after(expires), now).map_err(written)?;
        self.note(by, true, now).map_err(written)
    }

    /// One more person wants the open one; who does, once that are as many as are `needed`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn approve(
        &mut self,
        by: &Person,
        needed: u32,
        now: Timestamp,
    ) -> Result<Option<Vec<String>>, Denied> {
        // Alone, whoever approves is the one.
        if needed <= 1 && self.approvals.is_empty() {
            return Ok(Some(vec![by.name.clone()]));
        }
        self.wish(by, now)?;
        Ok((self.approvals.len() as u64 >= u64::from(needed)).then(|| self.approved_by()))
    }

    fn wish(&mut self, by: &Person, now: Timestamp) -> Result<(), Denied> {
        // An earlier program kept only how a person is shown.
        let said = |approval: &ApprovalRow| match &approval.id {
            Some(id) => *id == by.id,
            None => approval.person == by.name || approval.person == by.id,
        };
        if self.approvals.iter().any(said) {
            return Ok(());
        }
        self.note(by, false, now).map_err(|error| Denied::Journal(chain(error)))
    }

    fn note(&mut self, by: &Person, asked: bool, now: Timestamp) -> Result<(), StoreError> {
        let Some(row) = &self.open else { return Ok(()) };
        let approval = ApprovalRow { person: by.name.clone(), id: Some(by.id.clone()), at: now, asked };
        self.journal.approve_proposal(&row.id, &approval)?;
        let by = &by.name;
        tracing::info!(resource = %self.resource, id = %row.id, to = %row.to, by, asked, "a move is approved");
        self.approvals.push(approval);
        Ok(())
    }

    fn make(
        &mut self,
        to: String,
        report: Option<&DecisionReport>,
        expires: Timestamp,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let view = report.map(|report| DecisionView::of(report, now.0)).unwrap_or_default();
        let decision = serde_json::to_string(&view).unwrap_or_default();
        let id = crate::rng::id();
        let row =
            ProposalRow { id, resource: self.resource.clone(), to, at: now, expires, decision, ended: None };
        self.journal.propose(&row)?;
        tracing::info!(resource = %self.resource, id = %row.id, to = %row.to, because = %view.because, "a move is proposed");
        (self.open, self.approvals) = (Some(row), Vec::new());
        Ok(())
    }

    fn end(&mut self, ended: &str, by: Option<&str>, now: Timestamp) {
        let Some(row) = self.open.take() else { return };
        self.approvals.clear();
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
        if self.asked().is_some() {
            // What the score says binds nobody; the guards are asked when it begins.
            return Ok(row.to.clone());
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

    /// The service is elsewhere by now: what was wanted of another place ends, and everybody's word for it.
    pub fn withdraw(&mut self, now: Timestamp) {
        if let Some(row) = &self.open {
            tracing::info!(resource = %self.resource, id = %row.id, to = %row.to, "a proposal ends, the service has moved");
        }
        self.end("withdrawn", None, now);
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
            score: score(&weights, &migration::world::World::unknown("a", "b", "test")),
            needed: 0.3,
            guards: Vec::new(),
            because: "tested".into(),
            awaited: Vec::new(),
            flips: Vec::new(),
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

    #[test]
    fn a_person_s_wish_waits_for_another_one_whatever_the_score_says() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let journal = Arc::new(Journal::open(directory.path()).expect("open"));
        let stay = report(Verdict::Stay);
        let minute = Duration::from_secs(60);
        let mut proposals = Proposals::open("orders", journal.clone());
        proposals.ask("b", &"ann".into(), Some(&stay), minute, Timestamp(1000)).expect("written");
        let id = proposals.view().expect("asked").id;
        assert_eq!(proposals.approve(&"ann".into(), 2, Timestamp(1500)), Ok(None), "nobody counts twice");
        proposals.follow(&stay, minute, Timestamp(2000));

        let mut proposals = Proposals::open("orders", journal);
        let view = proposals.view().expect("outlives a restart");
        assert_eq!((view.id, view.asked_by, view.approved_by), (id, Some("ann".into()), vec!["ann".into()]));
        assert_eq!(proposals.check(None, Some(&stay), Timestamp(3000)), Ok("b".into()));
        let elsewhere = proposals.ask("c", &"bob".into(), None, minute, Timestamp(3000));
        assert!(matches!(elsewhere, Err(Denied::Conflict(_))), "{elsewhere:?}");
        // To ask for the same is to approve it.
        proposals.ask("b", &"bob".into(), None, minute, Timestamp(3000)).expect("written");
        assert_eq!(proposals.approved_by(), ["ann", "bob"]);

        proposals.follow(&stay, minute, Timestamp(61_000));
        assert_eq!(proposals.view(), None, "it expires like any other");
        proposals.ask("b", &"bob".into(), None, minute, Timestamp(62_000)).expect("written");
        assert_eq!(proposals.approved_by(), ["bob"], "and what was said of it goes with it");
    }

    #[test]
    fn a_wish_is_for_the_move_that_it_was_said_of() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let journal = Arc::new(Journal::open(directory.path()).expect("open"));
        let minute = Duration::from_secs(60);
        let mut proposals = Proposals::open("orders", journal.clone());
        proposals.ask("b", &"ann".into(), None, minute, Timestamp(1000)).expect("written");
        let id = proposals.view().expect("asked").id;
        proposals.withdraw(Timestamp(2000));
        assert_eq!((proposals.view(), proposals.approved_by()), (None, Vec::new()));
        let over = proposals.check(Some(&id), None, Timestamp(3000)).expect_err("over").to_string();
        assert!(over.starts_with(&format!("proposal {id} is withdrawn")), "{over}");
        assert_eq!(Proposals::open("orders", journal).view(), None, "also after a restart");
        proposals.ask("b", &"bob".into(), None, minute, Timestamp(4000)).expect("written");
        assert_eq!(
            proposals.approve(&"bob".into(), 2, Timestamp(4000)),
            Ok(None),
            "hers was for another one"
        );
    }

    #[test]
    fn a_person_counts_once_by_whatever_name() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let journal = Arc::new(Journal::open(directory.path()).expect("open"));
        let minute = Duration::from_secs(60);
        let person = |name: &str| Person { name: name.into(), id: "s-1".into() };
        let (named, bare) = (person("ann (s-1)"), person("s-1"));
        let mut proposals = Proposals::open("orders", journal.clone());
        proposals.ask("b", &named, None, minute, Timestamp(1000)).expect("written");
        for mut proposals in [proposals, Proposals::open("orders", journal)] {
            assert_eq!(proposals.approve(&bare, 2, Timestamp(1500)), Ok(None), "by another name");
            assert_eq!(proposals.ask("b", &bare, None, minute, Timestamp(1600)), Ok(()));
            assert_eq!(proposals.approved_by(), ["ann (s-1)"]);
        }
    }

    #[test]
    fn everybody_who_wanted_a_move_is_named_also_where_one_would_do_by_now() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let journal = Arc::new(Journal::open(directory.path()).expect("open"));
        let mut proposals = Proposals::open("orders", journal.clone());
        let minute = Duration::from_secs(60);
        let approve = |proposals: &mut Proposals, by: &str, needed| {
            proposals.approve(&by.into(), needed, Timestamp(2000))
        };
        proposals.follow(&report(Verdict::Propose { to: "b".into() }), minute, Timestamp(1000));
        assert_eq!(approve(&mut proposals, "ann", 1), Ok(Some(vec!["ann".into()])), "it was the score's");
        assert_eq!(proposals.approved_by(), Vec::<String>::new(), "and may be refused yet");
        assert_eq!(approve(&mut proposals, "ann", 3), Ok(None));
        assert_eq!(approve(&mut proposals, "bob", 1), Ok(Some(vec!["ann".into(), "bob".into()])));
        let noted: Vec<_> = Proposals::open("orders", journal).approved_by();
        assert_eq!(noted, ["ann", "bob"]);
    }
}
