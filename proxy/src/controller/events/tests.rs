use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::controller::view::DecisionView;

fn events() -> Arc<Events> {
    Arc::new(Events::new(Timestamp(7), CancellationToken::new()))
}

fn step(resource: &str, phase: &str) -> MigrationEvent {
    MigrationEvent { resource: resource.into(), phase: phase.into(), ..MigrationEvent::default() }
}

/// What can be heard without anything new.
async fn heard(listener: &mut Listener) -> Vec<Message> {
    let mut all = Vec::new();
    while let Ok(Some(message)) = tokio::time::timeout(Duration::ZERO, listener.next()).await {
        all.push(message);
    }
    all
}

fn ids(messages: &[Message]) -> Vec<u64> {
    let id = |message: &Message| match message {
        Message::Event(event) => event.id,
        Message::Reset(id, _) => *id,
    };
    messages.iter().map(id).collect()
}

#[tokio::test]
async fn a_listener_starts_with_a_reset_and_hears_what_follows() {
    let events = events();
    events.migration(&step("orders", "warm"));
    let mut listener = events.listen(None, None).unwrap();
    events.migration(&step("orders", "armed"));
    let heard = heard(&mut listener).await;
    assert_eq!(heard[0], Message::Reset(7_001, Reset::start()));
    let Message::Event(event) = &heard[1] else { panic!("{heard:?}") };
    assert_eq!((event.id, event.kind), (7_002, Kind::Migration));
    assert_eq!(serde_json::from_str::<MigrationEvent>(&event.data).unwrap(), step("orders", "armed"));
}

#[tokio::test]
async fn that_a_resource_is_released_is_told_to_who_listens_to_it() {
    let events = events();
    let mut one = events.listen(Some(["orders".into()].into()), Some(7_000)).unwrap();
    events.released("other", Timestamp(8));
    events.released("orders", Timestamp(9));
    let heard = heard(&mut one).await;
    let [Message::Event(event)] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!((event.kind.name(), event.data.as_str()), ("gone", r#"{"at_ms":9,"resource":"orders"}"#));
}

#[tokio::test]
async fn listening_goes_on_after_the_last_event_and_only_to_one_resource() {
    let events = events();
    for phase in 0..100 {
        events.migration(&step(if phase % 50 == 0 { "orders" } else { "other" }, &phase.to_string()));
    }
    let mut all = events.listen(None, Some(7_098)).unwrap();
    assert_eq!(ids(&heard(&mut all).await), [7_099, 7_100]);
    let mut one = events.listen(Some(["orders".into()].into()), Some(7_000)).unwrap();
    assert_eq!(ids(&heard(&mut one).await), [7_001, 7_051]);
}

#[tokio::test]
async fn numbers_of_another_process_or_too_old_ones_are_a_gap() {
    let events = events();
    events.migration(&step("orders", "warm"));
    for (asked, why) in [(6_000, "gap"), (9_000, "gap")] {
        let mut listener = events.listen(None, Some(asked)).unwrap();
        let heard = heard(&mut listener).await;
        assert!(matches!(&heard[..], [Message::Reset(7_001, reset)] if reset.why == why), "{heard:?}");
    }
}

#[tokio::test]
async fn a_slow_listener_is_told_and_dropped() {
    let events = events();
    let mut slow = events.listen(None, Some(7_000)).unwrap();
    for _ in 0..=EVENTS {
        events.migration(&step("orders", "warm"));
    }
    let last = 7_001 + EVENTS as u64;
    assert!(
        matches!(slow.next().await, Some(Message::Reset(id, reset)) if id == last && reset.why == "slow")
    );
    assert_eq!(slow.next().await, None);
}

#[tokio::test]
async fn listeners_are_bounded_and_end_with_the_node() {
    let stop = CancellationToken::new();
    let events = Arc::new(Events::new(Timestamp(7), stop.clone()));
    let mut all: Vec<_> = (0..LISTENERS).map(|_| events.listen(None, Some(7_000)).unwrap()).collect();
    assert!(events.listen(None, None).is_none());
    all.truncate(1);
    assert!(events.listen(None, None).is_some());
    stop.cancel();
    assert_eq!(all[0].next().await, None);
}

#[test]
fn what_differs_becomes_events_each_once() {
    let decision = |score| Some(DecisionView { score, ..DecisionView::default() });
    let old = ResourceView { name: "orders".into(), problems: vec!["a".into()], ..ResourceView::default() };
    let kinds = |new: &ResourceView| -> Vec<Kind> {
        shapes::changes(&old, new, Timestamp(1)).into_iter().map(|(kind, _)| kind).collect()
    };
    assert_eq!(kinds(&old), []);
    assert_eq!(kinds(&ResourceView { decision: decision(1.0), ..old.clone() }), [Kind::Decision]);
    assert_eq!(kinds(&ResourceView { generation: 2, ..old.clone() }), [Kind::Resource]);
    let new = ResourceView { problems: vec!["b".into()], decision: decision(0.5), ..old.clone() };
    let told = shapes::changes(&old, &new, Timestamp(1));
    let data: Vec<serde_json::Value> =
        told.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    assert_eq!(data[0].get("decision"), None, "it comes as an event of its own");
    assert_eq!((&data[1]["resource"], &data[1]["score"]), (&"orders".into(), &0.5.into()));
    assert_eq!((&data[2]["appeared"][0], &data[2]["gone"][0]), (&"b".into(), &"a".into()));
}

proptest! {
    #[test]
    fn the_ring_gives_every_kept_event_once_and_names_what_is_gone(
        sizes in prop::collection::vec(0_usize..400, 0..60), asked in 0_u64..80, limit in 1_usize..20,
    ) {
        let mut ring = Ring::new(10, 8, 2_000);
        for size in &sizes {
            ring.append(Kind::Resource, "r", "x".repeat(*size));
        }
        let newest = 10 + sizes.len() as u64;
        prop_assert_eq!(ring.newest(), newest);
        prop_assert!(ring.oldest() + 8 > newest);
        match ring.after(asked, limit) {
            Ok(events) => {
                prop_assert!(asked + 1 >= ring.oldest() && asked <= newest);
                let ids: Vec<u64> = events.iter().map(|event| event.id).collect();
                let expected: Vec<u64> = (asked + 1..=newest).take(limit).collect();
                prop_assert_eq!(ids, expected);
            }
            Err(gone) => {
                prop_assert!(asked + 1 < gone.oldest || asked > gone.newest);
            }
        }
    }
}
