//! A migration as a trace: it is the first span, each of its phases one below. Told when it has ended, from what the journal has.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{Fact, Place, Span, Traces};
use crate::controller::events::{Events, Kind, Message};
use crate::controller::view::{MigrationView, StepView};
use crate::store::{Journal, StoreError};

/// How soon a seat among the listeners is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// What matters here of a migration's event.
#[derive(Deserialize)]
struct Told {
    id: String,
    outcome: Option<String>,
}

/// Tells each migration that ends, until cancelled.
pub async fn follow(events: Arc<Events>, journal: Arc<Journal>, traces: Arc<Traces>) {
    loop {
        let Some(mut listener) = events.listen(None, None) else {
            // There are as many as there may be.
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        while let Some(message) = listener.next().await {
            let Message::Event(event) = message else { continue };
            if event.kind != Kind::Migration {
                continue;
            }
            let Ok(Told { id, outcome: Some(_) }) = serde_json::from_str(&event.data) else { continue };
            match ended(&journal, &id) {
                Ok(Some(run)) => spans(&run).into_iter().for_each(|span| traces.send(span)),
                Ok(None) => {}
                Err(error) => tracing::warn!(migration = id, %error, "it is not traced"),
            }
        }
        // It was too slow, and goes on from here.
        tokio::task::yield_now().await;
    }
}

fn ended(journal: &Journal, id: &str) -> Result<Option<MigrationView>, StoreError> {
    journal.run(id)?.map(|run| MigrationView::read(run, journal)).transpose()
}

/// The trace's id follows from the migration's: whoever knows one finds the other.
fn place(id: &str) -> Place {
    let hash: [u8; 32] = Sha256::digest(id.as_bytes()).into();
    let (mut trace, mut span) = ([0; 16], [0; 8]);
    trace.copy_from_slice(&hash[..16]);
    span.copy_from_slice(&hash[16..24]);
    Place { trace, span, parent: None }
}

fn spans(run: &MigrationView) -> Vec<Span> {
    let whole = place(&run.id);
    let end = run.ended_ms.unwrap_or(run.started_ms);
    let text = |name, value: &str| (name, Fact::Text(value.to_owned()));
    let mut facts = vec![
        text("godwit.migration", &run.id),
        text("godwit.resource", &run.resource),
        text("godwit.from", &run.from),
        text("godwit.to", &run.to),
        text("godwit.trigger", &run.trigger),
        text("godwit.outcome", &run.state),
        ("godwit.generation", Fact::Count(run.generation.cast_signed())),
    ];
    if let Some(held) = run.held_ms {
        facts.push(("godwit.held_ms", Fact::Count(held.cast_signed())));
    }
    if let Some(comparison) = &run.comparison {
        facts.push(text("godwit.comparison", comparison));
    }
    let span = |place, name: String, began: u64, ended: u64| Span {
        place,
        name: name.into(),
        serves: false,
        began: Duration::from_millis(began),
        ended: Duration::from_millis(ended.max(began)),
        facts: Vec::new(),
        failed: None,
    };
    let phase = |step: &StepView| {
        let facts = vec![text("godwit.migration", &run.id)];
        let ended = step.ended_ms.unwrap_or(end);
        Span { facts, ..span(whole.child(), step.phase.clone(), step.started_ms, ended) }
    };
    let first = span(whole, "migration".into(), run.started_ms, end);
    let first = Span { facts, failed: run.reason.clone(), ..first };
    std::iter::once(first).chain(run.steps.iter().map(phase)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_is_a_trace_with_its_phases() {
        let step = |phase: &str, started_ms, ended_ms| StepView { phase: phase.into(), started_ms, ended_ms };
        let run = MigrationView {
            id: "m-1".into(),
            resource: "orders".into(),
            state: "aborted".into(),
            reason: Some("the link is gone".into()),
            started_ms: 1_000,
            ended_ms: Some(1_400),
            held_ms: Some(90),
            steps: vec![step("requested", 1_000, Some(1_300)), step("held", 1_300, None)],
            ..MigrationView::default()
        };
        let spans = spans(&run);
        let brief: Vec<_> = spans
            .iter()
            .map(|span| (&*span.name, span.began.as_millis(), span.ended.as_millis(), span.failed.is_some()))
            .collect();
        assert_eq!(
            brief,
            [
                ("migration", 1_000, 1_400, true),
                ("requested", 1_000, 1_300, false),
                ("held", 1_300, 1_400, false)
            ]
        );
        assert_eq!(spans[0].place, place("m-1"), "found by the migration's id");
        for phase in &spans[1..] {
            assert_eq!(
                (phase.place.trace, phase.place.parent),
                (spans[0].place.trace, Some(spans[0].place.span))
            );
        }
        assert!(spans[0].facts.contains(&("godwit.held_ms", Fact::Count(90))));
    }
}
