//! Moves that people ask for and approve.

use migration::cutover::{Refused, Trigger, step};

use super::{Machine, denied};
use crate::clock;
use crate::controller::proposals::Person;
use crate::controller::{ApprovalView, Denied, Plan};

impl Machine {
    /// A person asks for a move: it begins, or waits for the others that the policy wants.
    pub(super) fn ask(&mut self, to: Option<&str>, by: &Person) -> Result<Plan, Denied> {
        // What was ordered since the last decision, such as a freeze, counts.
        self.decide();
        let policy = self.hands.policy();
        if policy.approvals <= 1 {
            return self.migrate(to, &by.name, false);
        }
        let plan = self.migrate(to, &by.name, true)?;
        self.could_begin(&plan.to, &by.name)?;
        let report = self.decision.as_ref().map(|(report, _)| report);
        self.proposals.ask(&plan.to, by, report, policy.proposal_expires, clock::now())?;
        self.begin_if_approved(by)
    }

    /// A proposal that still holds becomes a migration once enough people want it.
    pub(super) fn approve(&mut self, id: Option<&str>, by: &Person) -> Result<Plan, Denied> {
        self.decide();
        let report = self.decision.as_ref().map(|(report, _)| report);
        self.proposals.check(id, report, clock::now())?;
        self.begin_if_approved(by)
    }

    /// Whether a move that a person asks for could begin now; `next` is what the machine says to it.
    pub(super) fn may_begin<T>(&mut self, next: Result<T, Refused>) -> Result<(), Denied> {
        self.slots.free()?;
        next.map_err(|refused| denied(&refused))?;
        self.judge_anew();
        let refusals = match &self.decision {
            Some((report, _)) => report.operator_refusals(),
            None => vec!["nothing is known of the resource yet: ask again in a moment".to_owned()],
        };
        if refusals.is_empty() {
            return Ok(());
        }
        self.measure.look_again();
        Err(Denied::Guards(refusals))
    }

    fn could_begin(&mut self, to: &str, by: &str) -> Result<(), Denied> {
        let (_, event) = self.request(to.into(), Trigger::Operator(by.to_owned()));
        let now = self.moment();
        let next = step(&self.state, event, now);
        self.may_begin(next)
    }

    fn begin_if_approved(&mut self, by: &Person) -> Result<Plan, Denied> {
        let needed = self.hands.policy().approvals;
        let Some(proposal) = self.proposals.view() else {
            return Err(Denied::Conflict("no proposal is open".into()));
        };
        // A move that is refused leaves the proposal as it was: nobody's word counts later that was refused now.
        self.could_begin(&proposal.to, &by.name)?;
        let Some(people) = self.proposals.approve(by, needed, clock::now())? else {
            let mut plan = self.migrate(Some(&proposal.to), &by.name, true)?;
            let approved_by = self.proposals.approved_by();
            plan.approval = Some(ApprovalView { proposal: proposal.id, approved_by, needed });
            self.publish();
            return Ok(plan);
        };
        let people = people.join(", ");
        let plan = self.migrate(Some(&proposal.to), &people, false)?;
        self.proposals.approved(&people, clock::now());
        self.publish();
        Ok(plan)
    }
}
