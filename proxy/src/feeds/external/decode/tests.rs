use proptest::prelude::*;
use serde_json::json;

use super::*;

const NOW: Timestamp = Timestamp(1_795_650_000_000);

fn golden(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/feeds").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn why(kind: Decode, bytes: &[u8]) -> String {
    decode(kind, bytes, NOW).unwrap_err().to_string()
}

#[test]
fn json_and_numbers() {
    let number = decode(Decode::Number, b" 0.412\r\n", NOW).unwrap();
    assert_eq!(number.value, json!(0.412));
    assert_eq!(decode(Decode::Json, b"\xef\xbb\xbf{\"a\": 1}", NOW).unwrap().value, json!({"a": 1}));
    let wrong: Vec<String> = [
        (Decode::Json, b"" as &[u8]),
        (Decode::Json, b" \n"),
        (Decode::Json, b"{\"a\": 1"),
        (Decode::Json, b"<!DOCTYPE html><html>"),
        (Decode::Json, b"{\"a\":\n  nope}"),
        (Decode::Number, b"0.4 EUR"),
        (Decode::Number, b"NaN"),
        (Decode::Number, b"inf"),
        (Decode::Number, b"\xff\xfe1"),
        (Decode::Feed, b"<html><body>moved</body></html>"),
        (Decode::Feed, b"not XML at all"),
        (Decode::Feed, b"<rss version=\"2.0\"><channel><title>cut off"),
        (Decode::Calendar, b"{}"),
        (Decode::Calendar, b"BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nSUMMARY:cut"),
        (Decode::Calendar, b"BEGIN:VCALENDAR\nno colon here\nEND:VCALENDAR"),
        (Decode::Calendar, b"BEGIN:VCALENDAR\nBEGIN:VEVENT\nEND:VCALENDAR"),
    ]
    .into_iter()
    .map(|(kind, bytes)| {
        let outcome =
            decode(kind, bytes, NOW).map_or_else(|error| error.to_string(), |read| format!("read {read:?}"));
        format!("{} {:?}: {outcome}\n", kind.name(), String::from_utf8_lossy(bytes))
    })
    .collect();
    insta::assert_snapshot!(wrong.concat());
}

#[test]
fn rss_and_atom() {
    let rss = decode(Decode::Feed, &golden("rss-status.xml"), NOW).unwrap();
    let atom = decode(Decode::Feed, &golden("atom-incidents.xml"), NOW).unwrap();
    insta::assert_json_snapshot!([rss.value, atom.value]);
}

#[test]
fn a_calendar_with_maintenance_notices() {
    let read = decode(Decode::Calendar, &golden("maintnote.ics"), NOW).unwrap();
    insta::assert_json_snapshot!(json!({ "value": read.value, "notes": read.notes }));
}

fn event(lines: &str) -> String {
    format!("BEGIN:VCALENDAR\nBEGIN:VEVENT\nUID:1\nSUMMARY:x\n{lines}\nEND:VEVENT\nEND:VCALENDAR\n")
}

fn windows(lines: &str) -> (Vec<(i64, i64)>, Vec<String>) {
    let read = decode(Decode::Calendar, event(lines).as_bytes(), NOW).unwrap();
    let events = read.value["events"].as_array().unwrap().clone();
    let seconds = |event: &Value, key: &str| event[key].as_i64().unwrap();
    (events.iter().map(|event| (seconds(event, "starts"), seconds(event, "ends"))).collect(), read.notes)
}

#[test]
fn times_of_a_calendar() {
    let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_second();
    let (whole_day, _) = windows("DTSTART;VALUE=DATE:20261126");
    assert_eq!(whole_day, [(at("2026-11-26T00:00:00Z"), at("2026-11-27T00:00:00Z"))]);
    let (floating, _) = windows("DTSTART:20261126T010000\nDURATION:PT90M");
    assert_eq!(floating, [(at("2026-11-26T01:00:00Z"), at("2026-11-26T02:30:00Z"))]);
    let (summer, _) = windows("DTSTART;TZID=Europe/Berlin:20260701T010000\nDURATION:P1D");
    assert_eq!(summer, [(at("2026-06-30T23:00:00Z"), at("2026-07-01T23:00:00Z"))]);

    let (daily, notes) = windows(
        "DTSTART:20261120T020000Z\nDURATION:PT1H\nRRULE:FREQ=DAILY;INTERVAL=3;UNTIL=20261127T000000Z",
    );
    assert_eq!(
        daily.iter().map(|(start, _)| *start).collect::<Vec<_>>(),
        [at("2026-11-20T02:00:00Z"), at("2026-11-23T02:00:00Z"), at("2026-11-26T02:00:00Z"),]
    );
    assert!(notes.is_empty(), "{notes:?}");

    // 02:00 in Berlin stays 02:00 when the clocks change on the 25th of October.
    let weekly = "DTSTART;TZID=Europe/Berlin:20261020T020000\nDURATION:PT1H\nRRULE:FREQ=WEEKLY;COUNT=3";
    let (weekly, _) = windows(weekly);
    assert_eq!(
        weekly.iter().map(|(start, _)| *start).collect::<Vec<_>>(),
        [
            // The first, on the 20th, is more than a month ago.
            at("2026-10-27T01:00:00Z"),
            at("2026-11-03T01:00:00Z"),
        ]
    );

    let starts = |lines: &str| -> Vec<i64> { windows(lines).0.iter().map(|(start, _)| *start).collect() };
    let on = |moments: &[&str]| -> Vec<i64> {
        moments.iter().map(|moment| at(&format!("2026-{moment}:00:00Z"))).collect()
    };
    // Where weeks begin decides which of them are left out.
    let fortnightly = "DTSTART:20261103T090000Z\nRRULE:FREQ=WEEKLY;INTERVAL=2;COUNT=4;BYDAY=TU,SU";
    assert_eq!(starts(fortnightly), on(&["11-03T09", "11-08T09", "11-17T09", "11-22T09"]));
    let of_sunday = format!("{fortnightly};WKST=SU");
    assert_eq!(starts(&of_sunday), on(&["11-03T09", "11-15T09", "11-17T09", "11-29T09"]));
    // A last day is one to its end, where the event is.
    let days = "DTSTART;VALUE=DATE:20261120\nRRULE:FREQ=DAILY;UNTIL=20261122";
    assert_eq!(starts(days), on(&["11-20T00", "11-21T00", "11-22T00"]));
    let nights = "DTSTART;TZID=Europe/Berlin:20261120T000000\nRRULE:FREQ=DAILY;UNTIL=20261122";
    assert_eq!(starts(nights), on(&["11-19T23", "11-20T23", "11-21T23"]));
    let nights = "DTSTART;TZID=America/New_York:20261120T000000\nRRULE:FREQ=DAILY;UNTIL=20261121T000000";
    assert_eq!(starts(nights), on(&["11-20T05", "11-21T05"]));
    // Further occurrences may have a length of their own.
    let (further, _) = windows(
        "DTSTART:20261120T020000Z\nDURATION:PT1H\nRDATE:20261122T020000Z,20261124T020000Z\n\
         RDATE;VALUE=PERIOD:20261125T020000Z/PT2H,20261126T020000Z/20261126T050000Z\nEXDATE:20261124T020000Z",
    );
    let hours: Vec<i64> = further.iter().map(|(start, end)| (end - start) / 3600).collect();
    assert_eq!(hours, [1, 1, 2, 3]);
    let begin: Vec<i64> = further.iter().map(|(start, _)| *start).collect();
    assert_eq!(begin, on(&["11-20T02", "11-22T02", "11-25T02", "11-26T02"]));

    // Endless rules are bounded by what lies ahead.
    let (endless, _) = windows("DTSTART:20100101T000000Z\nDURATION:PT1H\nRRULE:FREQ=DAILY");
    assert!((90..100).contains(&endless.len()), "{}", endless.len());

    // However long ago they began, counted ones as well.
    let (old, notes) = windows("DTSTART:19700101T010000Z\nDURATION:PT1H\nRRULE:FREQ=DAILY");
    assert!((90..100).contains(&old.len()) && notes.is_empty(), "{} {notes:?}", old.len());
    for (count, of) in [(20_752, 0), (20_756, 4), (30_000, 93)] {
        let lines = format!("DTSTART:19700101T010000Z\nRRULE:FREQ=DAILY;COUNT={count}");
        assert_eq!(starts(&lines).len(), of, "{count}");
    }
    // The Tuesday before it began was never one of them.
    let weekly = |count: usize| {
        starts(&format!("DTSTART:20200103T090000Z\nRRULE:FREQ=WEEKLY;INTERVAL=2;COUNT={count};BYDAY=TU,FR"))
    };
    assert_eq!(weekly(355), [0; 0]);
    assert_eq!(weekly(357), on(&["10-27T09", "10-30T09"]));
    assert_eq!(weekly(1000).len(), 14);

    let (monthly, notes) = windows("DTSTART:20261201T020000Z\nDURATION:PT1H\nRRULE:FREQ=MONTHLY");
    assert_eq!(monthly.len(), 1);
    assert_eq!(notes, ["line 7: FREQ=MONTHLY is not expanded; only its first occurrence is kept"]);

    for (lines, note) in [
        ("SUMMARY:no start", "event \"1\" left out: it has no DTSTART"),
        ("DTSTART:soon", "event \"1\" left out: line 5: \"soon\" is not a date"),
        (
            "DTSTART:20261201T020000Z\nDTEND:20261201T010000Z",
            "event \"1\" left out: line 5: it ends before it begins",
        ),
        (
            "DTSTART:20261201T020000Z\nDURATION:-PT1H",
            "event \"1\" left out: line 6: \"-PT1H\" is not a duration",
        ),
    ] {
        let (events, notes) = windows(lines);
        assert!(events.is_empty() && notes == [note], "{notes:?}");
    }
}

#[test]
fn an_occurrence_that_was_moved_takes_place_once() {
    let daily = "DTSTART:20261124T020000Z\nRRULE:FREQ=DAILY;COUNT=4";
    let event = |lines: &str| format!("BEGIN:VEVENT\nUID:1\n{lines}\nEND:VEVENT\n");
    let own = [
        event("RECURRENCE-ID:20261125T020000Z\nDTSTART:20261125T050000Z"),
        event("RECURRENCE-ID:20261126T020000Z\nDTSTART:20261126T020000Z\nSTATUS:CANCELLED"),
        event("RECURRENCE-ID;RANGE=THISANDFUTURE:20261127T020000Z\nDTSTART:20261127T040000Z"),
        event("RECURRENCE-ID:soon\nDTSTART:20261127T040000Z"),
        // Of a series that is not there.
        event("RECURRENCE-ID:20261124T020000Z\nDTSTART:20261124T030000Z").replace("UID:1", "UID:2"),
    ];
    let text = format!("BEGIN:VCALENDAR\n{}{}END:VCALENDAR", event(daily), own.concat());
    let read = decode(Decode::Calendar, text.as_bytes(), NOW).unwrap();
    let shown: Vec<String> = read.value["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| {
            let at = jiff::Timestamp::from_second(event["starts"].as_i64().unwrap()).unwrap();
            format!("{at} {}", event["status"].as_str().unwrap_or_default())
        })
        .collect();
    assert_eq!(
        shown,
        [
            "2026-11-24T02:00:00Z ",
            "2026-11-25T05:00:00Z ",
            "2026-11-26T02:00:00Z CANCELLED",
            "2026-11-27T04:00:00Z ",
            "2026-11-24T03:00:00Z ",
        ]
    );
    assert_eq!(
        read.notes,
        [
            "line 20: its RANGE is not read; it counts for one occurrence",
            "event \"1\" left out: line 25: \"soon\" is not a date",
        ]
    );
}

#[test]
fn huge_input_is_bounded() {
    let deep = "[".repeat(1 << 20);
    assert!(why(Decode::Json, deep.as_bytes()).contains("recursion limit"));
    let deep = "<a>".repeat(1 << 18);
    assert_eq!(why(Decode::Feed, deep.as_bytes()), "has elements nested more than 64 deep");
    let nested =
        "<rss version='2.0'><channel><item><media:group xmlns:media='http://search.yahoo.com/mrss/' a='/>'>"
            .to_owned()
            + &"<media:group a='/>'>".repeat(1 << 16);
    assert_eq!(why(Decode::Feed, nested.as_bytes()), "has elements nested more than 64 deep");
    // A quote where none opens hides nothing of what comes behind it.
    let nested = nested.replace('\'', "\"").replace(" a=\"/>\"", "");
    for before in ["<?x ' ?>", "<!DOCTYPE a [<!-- ' -->]>"] {
        let nested = format!("{before}{nested}");
        assert_eq!(why(Decode::Feed, nested.as_bytes()), "has elements nested more than 64 deep", "{before}");
    }
    let many = format!("BEGIN:VCALENDAR\n{}END:VCALENDAR", "BEGIN:VEVENT\nEND:VEVENT\n".repeat(5_001));
    assert_eq!(why(Decode::Calendar, many.as_bytes()), "has more than 5000 events");
    let long = event(&format!("DTSTART:20261126T000000Z\nDESCRIPTION:{}", "x".repeat(8 << 20)));
    assert!(decode(Decode::Calendar, long.as_bytes(), NOW).is_ok());
    let nested = format!("BEGIN:VCALENDAR\n{}", "BEGIN:X\n".repeat(1 << 18));
    assert_eq!(why(Decode::Calendar, nested.as_bytes()), "components are nested too deep (line 17)");
    let items = format!(
        "<rss version='2.0'><channel>{}</channel></rss>",
        "<item><title>x</title></item>".repeat(50_000)
    );
    let read = decode(Decode::Feed, items.as_bytes(), NOW).unwrap();
    assert_eq!(read.value["entries"].as_array().unwrap().len(), 2_000);
    let many = format!(
        "BEGIN:VCALENDAR\n{}END:VCALENDAR",
        "BEGIN:VEVENT\nDTSTART:20200101T000000Z\nRRULE:FREQ=DAILY\nEND:VEVENT\n".repeat(200)
    );
    let read = decode(Decode::Calendar, many.as_bytes(), NOW).unwrap();
    assert_eq!(read.value["events"].as_array().unwrap().len(), 5_000);
    let odd = "BEGIN:VEVENT\nDTSTART:soon\nEND:VEVENT\n".repeat(100);
    let many = many.replace("BEGIN:VCALENDAR\n", &format!("BEGIN:VCALENDAR\n{odd}"));
    let read = decode(Decode::Calendar, many.as_bytes(), NOW).unwrap();
    assert_eq!(read.notes[0], "only the first 5000 occurrences are kept");
    assert_eq!(read.notes.last().unwrap(), "100 events left out in all");
}

/// A sample with `edits` bytes changed, cut off at `cut`.
fn spoilt(name: &str, edits: &[(prop::sample::Index, u8)], cut: Option<prop::sample::Index>) -> Vec<u8> {
    let mut bytes = golden(name);
    for (at, byte) in edits {
        let at = at.index(bytes.len());
        bytes[at] = *byte;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for (_, kind) in Decode::ALL {
            let _ = decode(kind, &bytes, NOW);
        }
    }

    #[test]
    fn spoilt_feeds_are_answered(
        name in prop::sample::select(vec!["rss-status.xml", "atom-incidents.xml"]),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let _ = decode(Decode::Feed, &spoilt(name, &edits, cut), NOW);
    }

    #[test]
    fn spoilt_calendars_are_answered(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 32_u8..127), 0..20),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let _ = decode(Decode::Calendar, &spoilt("maintnote.ics", &edits, cut), NOW);
    }

    #[test]
    fn lines_that_look_like_a_calendar_are_answered(
        lines in prop::collection::vec(
            prop::sample::select(vec![
                "BEGIN:VEVENT", "END:VEVENT", "DTSTART:20261126T000000Z", "DTSTART;TZID=Europe/Berlin:20260329T023000",
                "DTEND:99991231T235959Z", "DURATION:P99999999W", "RRULE:FREQ=WEEKLY;BYDAY=MO,SU;INTERVAL=1000",
                "RRULE:FREQ=DAILY;COUNT=99999999999", "EXDATE:20261126T000000Z,", "RDATE;VALUE=PERIOD:20261126T000000Z/P1D,20261126T000000Z/",
                "UID:1", "RECURRENCE-ID:20261126T000000Z", "RRULE:FREQ=WEEKLY;WKST=SA;UNTIL=99991231", "RDATE:00010101/99991231",
                "DTSTART;VALUE=DATE:00010101", " folded",
                "DTSTART:-99990101T000000Z",
            ]),
            0..12,
        ),
    ) {
        let text = format!("BEGIN:VCALENDAR\n{}\nEND:VCALENDAR", lines.join("\n"));
        let _ = decode(Decode::Calendar, text.as_bytes(), NOW);
    }
}
