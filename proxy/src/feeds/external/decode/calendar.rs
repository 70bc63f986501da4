//! A small reader of iCalendar (RFC 5545): VEVENT with its dates, time zones by IANA name, recurrence by days and weeks
//! with what was added to it, taken from it and moved, and every X- property (maintenance notices carry `X-MAINTNOTE-…`).
//!
//! Not here: VTODO, alarms, VTIMEZONE rules (a zone that IANA does not know makes its event a note), recurrence by
//! month rules (the first occurrence is kept, with a note), a move of all later occurrences (of one, with a note).

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp as Moment, ZonedDateTime};
use migration::units::Timestamp;
use serde_json::{Map, Value, json};

use super::{DecodeError, Decoded};

/// Most events read, and most occurrences of all of them.
const MAX_EVENTS: usize = 5_000;
/// Most notes kept.
const MAX_NOTES: usize = 20;
/// Occurrences are looked for from this long ago …
const BEFORE: SignedDuration = SignedDuration::from_hours(24 * 31);
/// … until so far ahead.
const AHEAD: SignedDuration = SignedDuration::from_hours(24 * 62);
/// Most steps of one rule from then on: more than occurrences are kept.
const MAX_STEPS: i64 = 10_000;
/// Of a week, as rules name them.
const DAYS: [&str; 7] = ["MO", "TU", "WE", "TH", "FR", "SA", "SU"];

/// `NAME;PARAMETER=VALUE:TEXT`.
struct Line {
    number: usize,
    name: String,
    parameters: Vec<(String, String)>,
    text: String,
}

type Properties = Vec<Line>;

pub(super) fn read(text: &str, now: Timestamp) -> Result<Decoded, DecodeError> {
    let lines = unfold(text);
    let starts = lines.first().is_some_and(|(_, line)| line.trim().eq_ignore_ascii_case("BEGIN:VCALENDAR"));
    if !starts {
        return Err(DecodeError("is not iCalendar: it does not begin with BEGIN:VCALENDAR".into()));
    }
    let (mut name, mut found) = (None, Vec::new());
    let mut open: Vec<String> = Vec::new();
    let mut event: Option<Properties> = None;
    for (number, line) in lines {
        if line.trim().is_empty() {
            continue;
        }
        let line =
            parse(number, &line).ok_or_else(|| DecodeError(format!("line {number} is not NAME:VALUE")))?;
        match line.name.as_str() {
            "BEGIN" => {
                let component = line.text.trim().to_ascii_uppercase();
                if component == "VEVENT" && open.len() == 1 {
                    event = Some(Vec::new());
                }
                open.push(component);
                if open.len() > 16 {
                    return Err(DecodeError(format!("components are nested too deep (line {number})")));
                }
            }
            "END" => {
                let component = line.text.trim().to_ascii_uppercase();
                if open.pop().as_ref() != Some(&component) {
                    return Err(DecodeError(format!("line {number} ends {component}, which is not open")));
                }
                if open.len() == 1 && component == "VEVENT" {
                    found.extend(event.take());
                }
                if found.len() > MAX_EVENTS {
                    return Err(DecodeError(format!("has more than {MAX_EVENTS} events")));
                }
            }
            "X-WR-CALNAME" if open.len() == 1 => name = Some(unescape(&line.text)),
            // Only what stands in the event itself, not in its alarms.
            _ if open.len() == 2 => event.iter_mut().for_each(|event| event.push_line(&line)),
            _ => {}
        }
    }
    if let Some(component) = open.last() {
        return Err(DecodeError(format!("ends inside {component}: it was cut off")));
    }
    Ok(gather(name, &found, now))
}

/// Events of all `found`; what cannot be read becomes a note.
fn gather(name: Option<String>, found: &[Properties], now: Timestamp) -> Decoded {
    let (mut events, mut notes) = (Vec::new(), Vec::new());
    let moved = moved(found);
    let mut left_out = 0;
    for properties in found {
        match occurrences(properties, &moved, now) {
            Ok((occurrences, noted)) => {
                notes.extend(noted);
                events.extend(occurrences.into_iter().map(|(starts, ends)| event(properties, starts, ends)));
            }
            Err(why) => {
                let uid = first(properties, "UID").map_or("without UID", |line| line.text.as_str());
                left_out += 1;
                notes.push(format!("event {:?} left out: {why}", uid.chars().take(60).collect::<String>()));
            }
        }
        if events.len() > MAX_EVENTS {
            events.truncate(MAX_EVENTS);
            // Before the others, of which some may be left out.
            notes.insert(0, format!("only the first {MAX_EVENTS} occurrences are kept"));
            break;
        }
    }
    if notes.len() > MAX_NOTES {
        notes.truncate(MAX_NOTES);
        notes.push(format!("{left_out} events left out in all"));
    }
    Decoded { value: json!({ "name": name, "events": events }), notes }
}

trait PushLine {
    fn push_line(&mut self, line: &Line);
}

impl PushLine for Properties {
    fn push_line(&mut self, line: &Line) {
        self.push(Line {
            number: line.number,
            name: line.name.clone(),
            parameters: line.parameters.clone(),
            text: line.text.clone(),
        });
    }
}

/// Lines with their numbers; one that begins with a space or a tab goes on with the one before it.
fn unfold(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    for (index, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        match (line.strip_prefix([' ', '\t']), lines.last_mut()) {
            (Some(more), Some((_, last))) => last.push_str(more),
            _ => lines.push((index + 1, line.to_owned())),
        }
    }
    lines
}

/// Colons and semicolons in quotes separate nothing.
fn parse(number: usize, line: &str) -> Option<Line> {
    let mut quoted = false;
    let mut cuts = Vec::new();
    let mut colon = None;
    for (at, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            ';' if !quoted => cuts.push(at),
            ':' if !quoted => {
                colon = Some(at);
                break;
            }
            _ => {}
        }
    }
    let colon = colon?;
    cuts.push(colon);
    let name = line.get(..cuts[0])?.trim().to_ascii_uppercase();
    let named = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if name.is_empty() || !name.chars().all(named) {
        return None;
    }
    let parameter = |pair: &[usize]| {
        let (key, value) = line.get(pair[0] + 1..pair[1])?.split_once('=')?;
        Some((key.trim().to_ascii_uppercase(), value.trim().trim_matches('"').to_owned()))
    };
    let parameters = cuts.windows(2).filter_map(parameter).collect();
    Some(Line { number, name, parameters, text: line.get(colon + 1..)?.to_owned() })
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(c) = letters.next() {
        match (c, c == '\\') {
            (_, false) => plain.push(c),
            _ => match letters.next() {
                Some('n' | 'N') => plain.push('\n'),
                Some(other) => plain.push(other),
                None => {}
            },
        }
    }
    plain
}

fn first<'p>(properties: &'p Properties, name: &str) -> Option<&'p Line> {
    properties.iter().find(|line| line.name == name)
}

fn event(properties: &Properties, starts: Moment, ends: Moment) -> Value {
    let text = |name: &str| first(properties, name).map(|line| unescape(&line.text));
    let all = |name: &str| -> Vec<String> {
        let of_name = properties.iter().filter(|line| line.name == name);
        of_name.flat_map(|line| line.text.split(',').map(|part| unescape(part.trim()))).collect()
    };
    let mut own: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in properties.iter().filter(|line| line.name.starts_with("X-")) {
        own.entry(line.name.clone()).or_default().push(unescape(&line.text));
    }
    let own: Map<String, Value> = own
        .into_iter()
        .map(|(name, mut texts)| {
            let value = if texts.len() == 1 { json!(texts.remove(0)) } else { json!(texts) };
            (name, value)
        })
        .collect();
    json!({
        "uid": text("UID"),
        "summary": text("SUMMARY"),
        "description": text("DESCRIPTION"),
        "location": text("LOCATION"),
        "status": text("STATUS"),
        "starts": starts.as_second(),
        "ends": ends.as_second(),
        "categories": all("CATEGORIES"),
        "properties": own,
    })
}

/// A moment, or a day that has no hour. A floating time means the reader's zone; servers run in UTC.
fn time(line: &Line) -> Result<(ZonedDateTime, bool), String> {
    time_in(line, &line.text, &TimeZone::UTC)
}

/// The same of a part of the line; what names no zone is of `floating`.
fn time_in(line: &Line, text: &str, floating: &TimeZone) -> Result<(ZonedDateTime, bool), String> {
    let parameter = |name: &str| line.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    let wrong = || format!("line {}: {:?} is not a date", line.number, short(text));
    let text = text.trim();
    if text.len() == 8 || parameter("VALUE").is_some_and(|value| value.eq_ignore_ascii_case("DATE")) {
        let date: Date = text.parse().map_err(|_| wrong())?;
        return Ok((date.to_zoned_datetime(floating.clone()).map_err(|_| wrong())?, true));
    }
    let (civil, utc) = match text.strip_suffix(['Z', 'z']) {
        Some(civil) => (civil, true),
        None => (text, false),
    };
    let civil: DateTime = civil.parse().map_err(|_| wrong())?;
    let zone = match parameter("TZID").filter(|_| !utc) {
        Some(name) => TimeZone::get(name.trim_start_matches('/')).map_err(|_| {
            format!("line {}: the time zone {:?} is not one of IANA's", line.number, short(name))
        })?,
        None if utc => TimeZone::UTC,
        None => floating.clone(),
    };
    Ok((civil.to_zoned_datetime(zone).map_err(|_| wrong())?, false))
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

/// `P1DT2H`, `PT30M`, `P2W`: exact time, days of 24 h.
fn duration(line: &Line, text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("line {}: {:?} is not a duration", line.number, short(text));
    let text = text.trim();
    let span: Span = text.strip_prefix('+').unwrap_or(text).parse().map_err(|_| wrong())?;
    let span = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    if span.is_negative() { Err(wrong()) } else { Ok(span) }
}

type Occurrences = Vec<(Moment, Moment)>;
/// Occurrences of an event that have an event of their own, by its UID.
type Moved<'p> = BTreeMap<&'p str, BTreeSet<Moment>>;

fn moved(found: &[Properties]) -> Moved<'_> {
    let mut moved = Moved::new();
    for properties in found {
        if let (Some(uid), Some(line)) = (first(properties, "UID"), first(properties, "RECURRENCE-ID"))
            && let Ok((at, _)) = time(line)
        {
            moved.entry(uid.text.trim()).or_default().insert(at.timestamp());
        }
    }
    moved
}

/// Every text of a list, with its line.
fn each<'p>(properties: &'p Properties, name: &'p str) -> impl Iterator<Item = (&'p Line, &'p str)> {
    let lines = properties.iter().filter(move |line| line.name == name);
    lines.flat_map(|line| line.text.split(',').map(move |text| (line, text)))
}

/// A further occurrence: a moment, or a period with a length of its own.
fn further(line: &Line, text: &str, length: SignedDuration) -> Result<(Moment, SignedDuration), String> {
    let moment = |text: &str| time_in(line, text, &TimeZone::UTC).map(|(at, _)| at.timestamp());
    let Some((start, end)) = text.split_once('/') else { return Ok((moment(text)?, length)) };
    let start = moment(start)?;
    let length = if end.trim_start().starts_with(['P', 'p', '+']) {
        duration(line, end)?
    } else {
        moment(end)?.duration_since(start)
    };
    if length.is_negative() { Err(backwards(line)) } else { Ok((start, length)) }
}

fn backwards(line: &Line) -> String {
    format!("line {}: it ends before it begins", line.number)
}

/// When it takes place, around `now`; an event that does not recur whenever that is. With notes.
fn occurrences(
    properties: &Properties,
    moved: &Moved<'_>,
    now: Timestamp,
) -> Result<(Occurrences, Vec<String>), String> {
    let line = first(properties, "DTSTART").ok_or("it has no DTSTART")?;
    let (begin, whole_day) = time(line)?;
    let length = match (first(properties, "DTEND"), first(properties, "DURATION")) {
        (Some(line), _) => time(line)?.0.timestamp().duration_since(begin.timestamp()),
        (None, Some(line)) => duration(line, &line.text)?,
        (None, None) if whole_day => SignedDuration::from_hours(24),
        (None, None) => SignedDuration::ZERO,
    };
    if length.is_negative() {
        return Err(backwards(line));
    }
    let now = i64::try_from(now.0).ok().and_then(|ms| Moment::from_millisecond(ms).ok()).unwrap_or_default();
    let from = now.checked_sub(BEFORE.saturating_add(length)).unwrap_or(Moment::MIN);
    let until = now.checked_add(AHEAD).unwrap_or(Moment::MAX);

    let mut notes = Vec::new();
    let rule = first(properties, "RRULE").and_then(|line| {
        let rule = Rule::parse(line, begin.time_zone());
        rule.map_err(|why| notes.push(why)).ok()
    });
    let starts = match rule {
        Some(rule) => rule.expand(&begin, from, until),
        None => vec![begin.timestamp()],
    };
    let mut found: BTreeMap<Moment, SignedDuration> =
        starts.into_iter().map(|start| (start, length)).collect();
    for (line, text) in each(properties, "RDATE") {
        let (start, length) = further(line, text, length)?;
        if (from..=until).contains(&start) {
            found.insert(start, length);
        }
    }
    for (line, text) in each(properties, "EXDATE") {
        found.remove(&time_in(line, text, &TimeZone::UTC)?.0.timestamp());
    }
    if let Some(line) = first(properties, "RECURRENCE-ID") {
        time(line)?;
        if line.parameters.iter().any(|(key, _)| key == "RANGE") {
            notes.push(format!("line {}: its RANGE is not read; it counts for one occurrence", line.number));
        }
    } else if let Some(moved) = first(properties, "UID").and_then(|uid| moved.get(uid.text.trim())) {
        found.retain(|start, _| !moved.contains(start));
    }
    let ends = |(start, length): (Moment, SignedDuration)| {
        let end = start.checked_add(length).map_err(|_| "it ends after the year 9999".to_owned());
        end.map(|end| (start, end))
    };
    Ok((found.into_iter().map(ends).collect::<Result<_, _>>()?, notes))
}

/// A recurrence by days or weeks.
struct Rule {
    weekly: bool,
    interval: i64,
    count: Option<usize>,
    until: Option<Moment>,
    /// Of a weekly rule, Monday = 0; empty: the day it begins on.
    days: Vec<i8>,
    /// The day that weeks begin with.
    week_start: i8,
}

impl Rule {
    /// `zone` is that of the event: its end may have none.
    fn parse(line: &Line, zone: &TimeZone) -> Result<Self, String> {
        let not_read = |what: &str| {
            format!("line {}: {what} is not expanded; only its first occurrence is kept", line.number)
        };
        let day =
            |name: &str| DAYS.iter().position(|day| day.eq_ignore_ascii_case(name)).map(|day| day as i8);
        let mut rule =
            Self { weekly: false, interval: 1, count: None, until: None, days: Vec::new(), week_start: 0 };
        let mut frequency = false;
        for part in line.text.trim().split(';').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| not_read("a broken RRULE"))?;
            match key.to_ascii_uppercase().as_str() {
                "FREQ" => {
                    frequency = true;
                    rule.weekly = match value.to_ascii_uppercase().as_str() {
                        "DAILY" => false,
                        "WEEKLY" => true,
                        _ => return Err(not_read(&format!("FREQ={}", short(value)))),
                    };
                }
                "INTERVAL" => {
                    let interval = value.parse().ok().filter(|days| (1..=1000).contains(days));
                    rule.interval = interval.ok_or_else(|| not_read("its INTERVAL"))?;
                }
                "COUNT" => rule.count = Some(value.parse().map_err(|_| not_read("its COUNT"))?),
                "UNTIL" => {
                    let until = time_in(line, value, zone);
                    let (until, whole_day) = until.map_err(|_| not_read("its UNTIL"))?;
                    // To the last moment of a day.
                    let day = || until.tomorrow().ok()?.checked_sub(SignedDuration::from_nanos(1)).ok();
                    rule.until =
                        if whole_day { day() } else { Some(until.clone()) }.map(|end| end.timestamp());
                }
                "BYDAY" => {
                    for name in value.split(',') {
                        rule.days.push(day(name).ok_or_else(|| not_read("its BYDAY"))?);
                    }
                }
                "WKST" => rule.week_start = day(value).ok_or_else(|| not_read("its WKST"))?,
                other => return Err(not_read(&short(other))),
            }
        }
        if !frequency || (!rule.days.is_empty() && !rule.weekly) {
            return Err(not_read("its RRULE"));
        }
        Ok(rule)
    }

    /// Steps that surely lie before `from` as a whole, whatever clocks did meanwhile.
    fn steps_before(&self, begin: Moment, from: Moment) -> i64 {
        let days = from.duration_since(begin).as_hours() / 24;
        let step = if self.weekly { 7 * self.interval } else { self.interval };
        (days / step - 2).max(0)
    }

    /// The beginnings from `from` to `until`, in the event's own time zone: 02:00 stays 02:00 in summer.
    fn expand(&self, begin: &ZonedDateTime, from: Moment, until: Moment) -> Vec<Moment> {
        let in_week = |day: i8| i64::from((day - self.week_start).rem_euclid(7));
        let own = [in_week(begin.weekday().to_monday_zero_offset())];
        let days: BTreeSet<i64> = self.days.iter().copied().map(in_week).collect();
        let days: Vec<i64> = if days.is_empty() { own.to_vec() } else { days.into_iter().collect() };
        let last = self.until.map_or(until, |own| own.min(until));
        // However long ago it began. Of its first week what lies before that is no occurrence.
        let skipped = self.steps_before(begin.timestamp(), from);
        let never = if skipped > 0 { days.iter().filter(|day| **day < own[0]).count() } else { 0 };
        let mut counted = usize::try_from(skipped).unwrap_or_default().saturating_mul(days.len()) - never;
        let mut found = Vec::new();
        for step in skipped..skipped + MAX_STEPS {
            let ahead = step * self.interval;
            for day in &days {
                let shift = day - own[0] + if self.weekly { 7 * ahead } else { ahead };
                let Ok(at) = Span::new().try_days(shift).and_then(|span| begin.checked_add(span)) else {
                    return found;
                };
                let at = at.timestamp();
                if at < begin.timestamp() {
                    continue;
                }
                if at > last || self.count.is_some_and(|count| counted >= count) {
                    return found;
                }
                counted += 1;
                if at >= from {
                    found.push(at);
                }
            }
        }
        found
    }
}
