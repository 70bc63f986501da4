use migration::world::Fact;

use super::super::tests::feed;
use super::super::{Failure, Reason, Understood};
use super::*;

const NOW: Timestamp = Timestamp(1_795_650_000_000);
const MINUTE: Duration = Duration::from_secs(60);

fn value(zone: &str, number: f64, at: Option<Timestamp>) -> Finding {
    Finding::Value(Value { zones: vec![zone.into()], value: number, at, ..Value::default() })
}

fn window(zone: &str, title: &str, starts: Timestamp, ends: Option<Timestamp>) -> Finding {
    Finding::Event(Event {
        zones: vec![zone.into()],
        kind: "maintenance".into(),
        title: title.into(),
        starts,
        ends,
        ..Event::default()
    })
}

fn board(serves: Use, findings: Vec<Finding>, at: Timestamp) -> FeedBoard {
    let board = FeedBoard::new([Feed { serves, stale_after: 10 * MINUTE, ..feed("prices") }]);
    let understood = Understood { findings, ..Understood::default() };
    board.change("prices", |state| state.succeeded(understood.clone(), 10, at));
    board
}

fn why(fact: Option<Fact<f64>>) -> String {
    match fact.expect("a feed speaks of that zone") {
        Fact::Unknown { why } => why,
        Fact::Known { value, .. } => panic!("known: {value}"),
    }
}

#[test]
fn a_fresh_value_has_its_age_and_its_source() {
    let measured = Timestamp(NOW.0 - 120_000);
    let findings = vec![value("west", 0.5, Some(measured)), value("west", 0.1, Some(Timestamp(0)))];
    let fact = board(Use::Cost, findings, NOW).cost("orders", "west", NOW);
    assert_eq!(fact, Some(Fact::known(0.5, 2 * MINUTE, "feed prices")));
}

#[test]
fn a_stale_value_is_unknown_and_never_zero() {
    let old = board(Use::Cost, vec![value("west", 0.5, None)], NOW);
    let later = NOW.after(11 * MINUTE);
    assert_eq!(
        why(old.cost("orders", "west", later)),
        "the newest of feed prices is 11 min old, 10 min are allowed"
    );
    // Just fetched, but measured long ago.
    let frozen = board(Use::Cost, vec![value("west", 0.5, Some(Timestamp(NOW.0 - 3_600_000)))], NOW);
    assert_eq!(
        why(frozen.cost("orders", "west", NOW)),
        "what feed prices says of west is 60 min old, 10 min are allowed"
    );
    // Nothing was ever said.
    let silent = FeedBoard::new([feed("prices")]);
    let failure = Failure::source(Reason::Connect, "refused");
    silent.change("prices", |state| state.failed(failure.clone(), NOW));
    assert_eq!(why(silent.cost("orders", "west", NOW)), "feed prices has said nothing yet; source: refused");
    // It speaks of that zone, but not now.
    let elsewhere = board(Use::Cost, vec![value("central", 0.5, None)], NOW);
    assert_eq!(why(elsewhere.cost("orders", "west", NOW)), "feed prices says nothing of west");
}

#[test]
fn of_two_that_differ_and_are_equally_new_neither_counts() {
    let cost = |findings| board(Use::Cost, findings, NOW).cost("orders", "west", NOW);
    let said = why(cost(vec![value("west", 0.5, None), value("west", 0.3, None)]));
    assert!(said.starts_with("feed prices says both 0.5 and 0.3 of west: name one"), "{said}");
    let known = Some(Fact::known(0.5, Duration::ZERO, "feed prices"));
    assert_eq!(cost(vec![value("west", 0.5, None), value("west", 0.5, None)]), known);
    let older = Timestamp(NOW.0 - 1);
    assert_eq!(cost(vec![value("west", 0.5, None), value("west", 0.3, Some(older))]), known);
}

#[test]
fn a_clock_that_is_put_back_keeps_nothing_fresh() {
    let silent = board(Use::Cost, vec![value("west", 0.5, None)], NOW);
    let back = Timestamp(NOW.0 - 3_600_000);
    assert!(silent.cost("orders", "west", back).is_some_and(|fact| fact.value().is_some()));
    let heard = crate::clock::monotonic().checked_sub(11 * MINUTE).expect("a machine that runs for longer");
    silent.change("prices", |state| FeedState { heard: Some(heard), ..state.clone() });
    let why = why(silent.cost("orders", "west", back));
    assert_eq!(why, "the newest of feed prices is 11 min old, 10 min are allowed");
}

#[test]
fn an_announcement_that_names_no_zone_may_be_of_any() {
    let event = |title: &str, ends| match window("west", title, NOW, Some(ends)) {
        Finding::Event(event) => Finding::Event(Event { zones: Vec::new(), ..event }),
        value @ Finding::Value(_) => value,
    };
    let findings = vec![event("Core routers", NOW.after(MINUTE)), event("Done", Timestamp(NOW.0 - 1))];
    let board = board(Use::Maintenance, findings, NOW);
    let (windows, unknown) = board.maintenance("orders", &["west", "central"], NOW);
    assert_eq!(windows, []);
    assert_eq!(unknown.as_deref(), Some("feed prices announces \"Core routers\" and names no zone"));
    assert_eq!(board.maintenance("orders", &["west"], NOW.after(2 * MINUTE)).1, None, "it is over");
}

#[test]
fn a_failure_does_not_make_what_is_fresh_unknown() {
    let board = board(Use::Cost, vec![value("west", 0.5, None)], NOW);
    board.change("prices", |state| state.failed(Failure::source(Reason::Status, "answered 500"), NOW));
    assert!(board.cost("orders", "west", NOW.after(9 * MINUTE)).is_some_and(|fact| fact.value().is_some()));
    let why = why(board.cost("orders", "west", NOW.after(11 * MINUTE)));
    assert!(why.ends_with("; source: answered 500"), "{why}");
    // Confirmed as unchanged, it is fresh again.
    board.change("prices", |state| state.unchanged(NOW.after(11 * MINUTE)));
    assert!(board.cost("orders", "west", NOW.after(20 * MINUTE)).is_some_and(|fact| fact.value().is_some()));
}

#[test]
fn zones_and_resources_of_which_no_feed_speaks_are_left_alone() {
    let own = Feed { resource: Some("orders".into()), ..feed("prices") };
    let board = FeedBoard::new([own]);
    assert_eq!(board.cost("orders", "north", NOW), None);
    assert_eq!(board.cost("billing", "west", NOW), None);
    assert_eq!(board.utilization("orders", "west", NOW), None);
}

#[test]
fn the_first_feed_that_knows_is_believed() {
    let board = FeedBoard::new([feed("a"), feed("b")]);
    let understood = Understood { findings: vec![value("west", 2.0, None)], ..Understood::default() };
    board.change("b", |state| state.succeeded(understood.clone(), 1, NOW));
    assert_eq!(board.cost("orders", "west", NOW), Some(Fact::known(2.0, Duration::ZERO, "feed b")));
}

#[test]
fn units_are_brought_to_one() {
    let in_unit = |serves, number, unit: &str| {
        let value =
            Value { value: number, unit: Some(unit.into()), zones: vec!["west".into()], ..Value::default() };
        super::number(serves, &value)
    };
    assert_eq!(in_unit(Use::Cost, 24.0, "/d"), Ok(1.0));
    assert_eq!(in_unit(Use::Cost, 730.0, "/month"), Ok(1.0));
    assert_eq!(in_unit(Use::Utilization, 62.0, "%"), Ok(0.62));
    assert_eq!(in_unit(Use::Utilization, 1.3, "ratio"), Ok(1.0));
    for (serves, number, unit, why) in [
        (Use::Cost, 1.0, "EUR", "\"EUR\" is no unit of cost; known here: /h, /d, /month, /year"),
        (Use::Cost, -1.0, "/h", "-1 is negative"),
        (
            Use::Utilization,
            62.0,
            "ratio",
            "62 is no share of 0 to 1; give it `unit: \"%\"` if it is a percentage",
        ),
    ] {
        assert_eq!(in_unit(serves, number, unit).unwrap_err(), why);
    }
}

#[test]
fn findings_must_fit_what_the_feed_is_for() {
    let nowhere = Finding::Value(Value { value: 1.0, ..Value::default() });
    let event = window("west", "routers", NOW, None);
    let prices = feed("prices");
    assert!(fits(&prices, &nowhere).unwrap_err().contains("names no zone"));
    assert!(fits(&prices, &event).unwrap_err().contains("this is an event: \"routers\""));
    let Places::Named(mut places) = prices.places.clone() else { panic!("several") };
    let one = Feed { places: Places::One(places.swap_remove(0)), ..prices.clone() };
    assert_eq!(fits(&one, &nowhere), Ok(()));
    let calendar = Feed { serves: Use::Maintenance, ..prices };
    assert!(fits(&calendar, &nowhere).unwrap_err().contains("this is a number"));
    assert_eq!(fits(&calendar, &event), Ok(()));
}

#[test]
fn maintenance_that_is_over_is_gone_and_what_was_announced_stays() {
    let at = |minutes: i64| Timestamp(NOW.0.saturating_add_signed(minutes * 60_000));
    let findings = vec![
        window("central", "later", at(300), Some(at(400))),
        window("central", "soon", at(20), Some(at(60))),
        window("central", "over", at(-60), Some(at(-1))),
        window("central", "endless", at(-60), None),
        window("west", "of the other", at(5), None),
        window("north", "elsewhere", at(5), None),
    ];
    let board = board(Use::Maintenance, findings, NOW);
    let (windows, unknown) = board.maintenance("orders", &["west", "central"], NOW);
    let titles: Vec<&str> = windows.iter().map(|window| window.title.as_str()).collect();
    assert_eq!(titles, ["endless", "of the other", "soon", "later"]);
    assert_eq!(unknown, None);
    let (windows, unknown) = board.maintenance("orders", &["central"], at(30));
    assert_eq!(windows.len(), 3);
    assert_eq!(unknown.unwrap(), "the newest of feed prices is 30 min old, 10 min are allowed");
}

#[test]
fn maintenance_goes_on_while_a_fresh_feed_says_so() {
    let at = |minutes: i64| Timestamp(NOW.0.saturating_add_signed(minutes * 60_000));
    let late = Event {
        zones: vec!["west".into()],
        title: "late".into(),
        starts: at(-300),
        ends: Some(at(5)),
        under_way: true,
        ..Event::default()
    };
    let endless = window("west", "endless", at(-30 * 24 * 60), None);
    let board = board(Use::Maintenance, vec![Finding::Event(late), endless], NOW);
    let seen = |now: Timestamp| -> Vec<(String, Option<Timestamp>)> {
        let (windows, _) = board.maintenance("orders", &["west"], now);
        windows.into_iter().map(|window| (window.title, window.ends)).collect()
    };
    let (endless, late) = (("endless".to_owned(), None), "late".to_owned());
    assert_eq!(seen(NOW), [endless.clone(), (late.clone(), Some(at(5)))]);
    assert_eq!(seen(at(6)), [endless.clone(), (late, None)], "its end has passed, and it has not ended");
    // A feed that is silent says nothing any more: what was planned is all that is known.
    assert_eq!(seen(at(11)), [endless]);
    assert_eq!(seen(at(7 * 24 * 60 + 1)), []);
}

#[test]
fn of_a_recurring_notice_the_newest_occurrence_is_under_way() {
    let at = |hours: i64| Timestamp(NOW.0.saturating_add_signed(hours * 3_600_000));
    let night = |hours: i64| {
        Finding::Event(Event {
            zones: vec!["west".into()],
            title: "links".into(),
            starts: at(hours),
            ends: Some(at(hours + 4)),
            under_way: true,
            id: Some("links@example.org".into()),
            ..Event::default()
        })
    };
    let week = 7 * 24;
    let nights = (-3..2).map(|nth| night(nth * week - 1)).collect();
    let board =
        FeedBoard::new([Feed { serves: Use::Maintenance, stale_after: 24 * 60 * MINUTE, ..feed("prices") }]);
    let understood = Understood { findings: nights, ..Understood::default() };
    board.change("prices", |state| state.succeeded(understood.clone(), 10, NOW));
    let seen = |now: Timestamp| -> Vec<_> {
        let (windows, _) = board.maintenance("orders", &["west"], now);
        windows.into_iter().map(|window| (window.starts, window.ends)).collect()
    };
    let next = (at(week - 1), Some(at(week + 3)));
    assert_eq!(seen(NOW), [(at(-1), Some(at(3))), next]);
    assert_eq!(seen(at(5)), [(at(-1), None), next], "it goes on");
}

#[test]
fn what_a_calendar_has_beside_what_was_read_is_not_known() {
    let board =
        FeedBoard::new(["works", "calls"].map(|name| Feed { serves: Use::Maintenance, ..feed(name) }));
    let heard = |notes: &[&str]| {
        let notes = notes.iter().map(|note| (*note).to_owned()).collect();
        let understood = Understood { notes, ..Understood::default() };
        board.change("works", |state| state.succeeded(understood.clone(), 1, NOW));
        board.maintenance("orders", &["west", "central"], NOW).1.unwrap()
    };
    let calls = "feed calls has said nothing yet";
    assert_eq!(heard(&[]), calls);
    assert_eq!(heard(&["line 7: odd"]), format!("{calls}; feed works was not read as a whole: line 7: odd"));
    let several = heard(&["line 7: odd", "line 9: odd"]);
    assert_eq!(several, format!("{calls}; feed works was not read as a whole: line 7: odd (and 1 more)"));
}

#[test]
fn what_was_said_is_told_once_without_forecasts() {
    let gusts =
        |about| Finding::Value(Value { name: Some("gusts".into()), value: 30.0, about, ..Value::default() });
    let (before, late) = (Timestamp(NOW.0 - 120_000), Some(NOW.after(60 * MINUTE)));
    let findings = vec![
        value("west", 0.5, Some(before)),
        value("central", 0.7, Some(Timestamp(7))),
        value("east", 0.6, late),
        gusts(None),
        gusts(Some(NOW.after(MINUTE))),
    ];
    let board = board(Use::Weather, findings, NOW);
    let mut said = BTreeMap::new();
    let told = board.said(&mut said, NOW);
    let now = |name: &str, value| (name.to_owned(), value, NOW);
    let west = ("prices.west".to_owned(), 0.5, before);
    assert_eq!(told, [west, now("prices.east", 0.6), now("prices.gusts", 30.0)], "central's is stale");
    assert_eq!(board.said(&mut said, NOW), []);
    board.change("prices", |state| state.unchanged(NOW.after(MINUTE)));
    let (told, later) = (board.said(&mut said, NOW.after(MINUTE)), NOW.after(MINUTE));
    let anew = [("prices.east".to_owned(), 0.6, later), ("prices.gusts".to_owned(), 30.0, later)];
    assert_eq!(told, anew, "west's was told");
    board.change("prices", |state| state.unchanged(NOW.after(2 * MINUTE)));
    assert_eq!(board.said(&mut said, NOW.after(30 * MINUTE)), [], "what is stale is not told");
}
