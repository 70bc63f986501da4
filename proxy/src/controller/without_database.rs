//! A service without a database of its own: its requests move, and what a move does with databases is done already.

use migration::cutover::{Effect, Event, State};
use migration::units::Position;

use super::effects::{Failure, Hands};

impl Hands {
    /// Carries out what would be about a database; none: it is about something else.
    pub(super) fn without_database(&self, effect: &Effect, state: &State) -> Option<Result<(), Failure>> {
        if self.resource.load().has_database() {
            return None;
        }
        let done = match effect {
            Effect::RunStream { generation, .. } => {
                self.report_stream(*generation, Event::StreamUp);
                return Some(Ok(()));
            }
            Effect::EndStream { .. } => Event::OldStreamGone,
            Effect::MakeReverseSlot { .. } => Event::ReverseSlotMade,
            Effect::DropReverseSlot { .. } => return Some(Ok(())),
            Effect::Fence { .. } => Event::FenceUp { marker: Position::default() },
            Effect::AwaitMarker { .. } => Event::MarkerApplied,
            Effect::SetSequences { .. } => Event::SequencesSet,
            Effect::LiftFence { .. } => Event::FenceLifted,
            Effect::Compare => Event::Compared { equal: true },
            Effect::ProvisionShadow { .. }
            | Effect::Scale { .. }
            | Effect::CheckGuards
            | Effect::CloseGate
            | Effect::SwapPool { .. }
            | Effect::OpenGate
            | Effect::TakeOver { .. }
            | Effect::CloseRun { .. } => return None,
        };
        self.report(state.run.as_ref().map(|run| run.id.clone()), done);
        Some(Ok(()))
    }
}
