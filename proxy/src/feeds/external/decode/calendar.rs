//! A small reader of iCalendar (RFC 5545): VEVENT with its dates, time zones by IANA name, plain recurrence, and every
//! X- property (maintenance notices carry `X-MAINTNOTE-…`).
//!
//! Not here: VTODO, alarms, VTIMEZONE rules (a zone that IANA does not know makes its event a note), recurrence by
//! month rules (the first occurrence is kept, with a note).

use std::collections::BTreeMap;

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
/// Most steps of one rule: a daily one for 27 years.
const MAX_STEPS: i64 = 10_000;

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
    let mut left_out = 0;
    for properties in found {
        match occurrences(properties, now) {
            Ok((occurrences, note)) => {
                notes.extend(note);
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

/// A moment, or a day that has no hour.
fn time(line: &Line) -> Result<(ZonedDateTime, bool), String> {
    let parameter = |name: &str| line.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    let wrong = || format!("line {}: {:?} is not a date", line.number, short(&line.text));
    let text = line.text.trim();
    if text.len() == 8 || parameter("VALUE").is_some_and(|value| value.eq_ignore_ascii_case("DATE")) {
        let date: Date = text.parse().map_err(|_| wrong())?;
        return Ok((date.to_zoned_datetime(TimeZone::UTC).map_err(|_| wrong())?, true));
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
        // A floating time means the reader's zone; servers run in UTC.
        None => TimeZone::UTC,
    };
    Ok((civil.to_zoned_datetime(zone).map_err(|_| wrong())?, false))
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

/// `P1DT2H`, `PT30M`, `P2W`: exact time, days of 24 h.
fn duration(line: &Line) -> Result<SignedDuration, String> {
    let wrong = || format!("line {}: {:?} is not a duration", line.number, short(&line.text));
    let text = line.text.trim();
    let span: Span = text.strip_prefix('+').unwrap_or(text).parse().map_err(|_| wrong())?;
    let span = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    if span.is_negative() { Err(wrong()) } else { Ok(span) }
}

type Occurrences = Vec<(Moment, Moment)>;

/// When it takes place, around `now`; an event that does not recur whenever that is.
fn occurrences(properties: &Properties, now: Timestamp) -> Result<(Occurrences, Option<String>), String> {
    let line = first(properties, "DTSTART").ok_or("it has no DTSTART")?;
    let (begin, whole_day) = time(line)?;
    let length = match (first(properties, "DTEND"), first(properties, "DURATION")) {
        (Some(line), _) => time(line)?.0.timestamp().duration_since(begin.timestamp()),
        (None, Some(line)) => duration(line)?,
        (None, None) if whole_day => SignedDuration::from_hours(24),
        (None, None) => SignedDuration::ZERO,
    };
    if length.is_negative() {
        return Err(format!("line {}: it ends before it begins", line.number));
    }
    let ends = |start: Moment| {
        start
            .checked_add(length)
            .map(|end| (start, end))
            .map_err(|_| "it ends after the year 9999".to_owned())
    };
    let Some(rule) = first(properties, "RRULE") else {
        return Ok((vec![ends(begin.timestamp())?], None));
    };
    let rule = match Rule::parse(rule) {
        Ok(rule) => rule,
        Err(why) => return Ok((vec![ends(begin.timestamp())?], Some(why))),
    };
    let mut left_out = Vec::new();
    for line in properties.iter().filter(|line| line.name == "EXDATE") {
        for text in line.text.split(',') {
            let one = Line {
                number: line.number,
                name: line.name.clone(),
                parameters: line.parameters.clone(),
                text: text.to_owned(),
            };
            left_out.push(time(&one)?.0.timestamp());
        }
    }
    let now = i64::try_from(now.0).ok().and_then(|ms| Moment::from_millisecond(ms).ok()).unwrap_or_default();
    let from = now.checked_sub(BEFORE.saturating_add(length)).unwrap_or(Moment::MIN);
    let until = now.checked_add(AHEAD).unwrap_or(Moment::MAX);
    let starts = rule.expand(&begin, from, until);
    let kept = starts.into_iter().filter(|start| !left_out.contains(start));
    Ok((kept.map(ends).collect::<Result<_, _>>()?, None))
}

/// A recurrence by days or weeks.
struct Rule {
    weekly: bool,
    interval: i64,
    count: Option<usize>,
    until: Option<Moment>,
    /// Of a weekly rule, Monday = 0; empty: the day it begins on.
    days: Vec<i8>,
}

impl Rule {
    fn parse(line: &Line) -> Result<Self, String> {
        let not_read = |what: &str| {
            format!("line {}: {what} is not expanded; only its first occurrence is kept", line.number)
        };
        let mut rule = Self { weekly: false, interval: 1, count: None, until: None, days: Vec::new() };
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
                    let line = Line {
                        number: line.number,
                        name: key.to_owned(),
                        parameters: Vec::new(),
                        text: value.to_owned(),
                    };
                    let (until, whole_day) = time(&line).map_err(|_| not_read("its UNTIL"))?;
                    let day = SignedDuration::from_hours(if whole_day { 24 } else { 0 });
                    rule.until = until.timestamp().checked_add(day).ok();
                }
                "BYDAY" => {
                    const DAYS: [&str; 7] = ["MO", "TU", "WE", "TH", "FR", "SA", "SU"];
                    for day in value.split(',') {
                        let place = DAYS.iter().position(|name| name.eq_ignore_ascii_case(day));
                        rule.days.push(place.ok_or_else(|| not_read("its BYDAY"))? as i8);
                    }
                    rule.days.sort_unstable();
                }
                "WKST" => {}
                other => return Err(not_read(&short(other))),
            }
        }
        if !frequency || (!rule.days.is_empty() && !rule.weekly) {
            return Err(not_read("its RRULE"));
        }
        Ok(rule)
    }

    /// The beginnings from `from` to `until`, in the event's own time zone: 02:00 stays 02:00 in summer.
    fn expand(&self, begin: &ZonedDateTime, from: Moment, until: Moment) -> Vec<Moment> {
        let own = [begin.weekday().to_monday_zero_offset()];
        let days: &[i8] = if self.days.is_empty() { &own } else { &self.days };
        let last = self.until.map_or(until, |own| own.min(until));
        let (mut found, mut counted) = (Vec::new(), 0);
        for step in 0..MAX_STEPS {
            let ahead = step * self.interval;
            let in_step: &[i8] = if self.weekly { days } else { &own };
            for day in in_step {
                let shift = i64::from(*day) - i64::from(own[0]) + if self.weekly { 7 * ahead } else { ahead };
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
