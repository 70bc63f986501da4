//! What a move would do, in words.

use migration::cutover::Capacity;
use migration::units::Zone;

use super::{Machine, Plan};
use crate::controller::view::DecisionView;
use crate::controller::{unlogged, warm_up};

impl Machine {
    pub(super) fn plan(&self, to: &Zone) -> Plan {
        let resource = self.hands.settings();
        let steps = if resource.has_database() { self.steps(to) } else { self.steps_without_database(to) };
        let guards = self.decision.as_ref().map(|(report, at)| DecisionView::of(report, *at).guards);
        Plan {
            id: None,
            approval: None,
            from: self.state.primary.to_string(),
            to: to.to_string(),
            steps,
            guards: guards.unwrap_or_default(),
        }
    }

    fn steps(&self, to: &Zone) -> Vec<String> {
        let (from, policy) = (&self.state.primary, &self.hands.policy());
        vec![
            format!("{}, {}", self.scaled_up(to), warm_up::words(policy)),
            format!("make the slot of the way back in {to}{}; check every guard", unlogged::words(policy)),
            self.held(),
            format!("fence the database in {from}, emit the end marker"),
            format!("wait until {to} has applied the marker; set its sequences"),
            self.committed(),
            format!("open the database in {to}, swap the pool, release the held requests"),
            format!("stream from {to} back to {from}; watch {from} for writes that go round the fence"),
            format!("compare both sides; {}", self.kept()),
        ]
    }

    fn steps_without_database(&self, to: &Zone) -> Vec<String> {
        vec![
            format!("{}; check every guard", self.scaled_up(to)),
            self.held(),
            self.committed(),
            "swap the pool, release the held requests".to_owned(),
            self.kept(),
        ]
    }

    fn scaled_up(&self, to: &Zone) -> String {
        let asked = if self.hands.front.is_some() { ", see that its service answers" } else { "" };
        format!("scale {to} up to {} workers{asked}", self.hands.workers(to, Capacity::Full))
    }

    fn held(&self) -> String {
        let most = self.hands.policy().max_hold.as_millis();
        format!("hold requests (at most {most} ms), wait for those in flight")
    }

    fn committed(&self) -> String {
        format!("commit generation {} (point of no return)", self.state.generation.next())
    }

    fn kept(&self) -> String {
        let from = &self.state.primary;
        let (after, keep) =
            (self.hands.policy().retire_after.as_secs(), self.hands.workers(from, Capacity::Shadow));
        format!("after {after} s keep {from} as the shadow with {keep} workers")
    }
}
