//! Five cron fields: minute, hour, day of month, month, day of week. Lists, ranges, steps and English names; no `@daily`, no
//! seconds, no `L` or `#`. As in cron(5), a day matches either of its two fields where both are restricted.

/// When something begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    text: String,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    any_day: bool,
    any_weekday: bool,
}

const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

impl Cron {
    /// Reads five fields.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(format!(
                "has {} fields; minute, hour, day, month, day of week are five",
                fields.len()
            ));
        };
        let mut weekdays = field(weekday, "day of week", 0, 7, &WEEKDAYS, 0)?;
        // 7 is Sunday, too.
        weekdays = (weekdays | weekdays >> 7) & 0x7f;
        Ok(Self {
            text: fields.join(" "),
            minutes: field(minute, "minute", 0, 59, &[], 0)?,
            hours: field(hour, "hour", 0, 23, &[], 0)?,
            days: field(day, "day of month", 1, 31, &[], 0)?,
            months: field(month, "month", 1, 12, &MONTHS, 1)?,
            weekdays,
            any_day: day.starts_with('*'),
            any_weekday: weekday.starts_with('*'),
        })
    }

    /// Whether something begins on that day (1..=31, 1..=12, Sunday is 0).
    pub fn on(&self, day: u8, month: u8, weekday: u8) -> bool {
        let has = |set: u64, value: u8| set & (1 << value) != 0;
        let (by_day, by_weekday) = (has(self.days, day), has(self.weekdays, weekday));
        let fits = match (self.any_day, self.any_weekday) {
            (false, false) => by_day || by_weekday,
            _ => by_day && by_weekday,
        };
        fits && has(self.months, month)
    }

    /// Hours and minutes of such a day, ascending.
    pub fn times(&self) -> impl DoubleEndedIterator<Item = (u8, u8)> {
        let has = |set: u64, value: u8| set & (1 << value) != 0;
        let (hours, minutes) = (self.hours, self.minutes);
        (0..24).filter(move |hour| has(hours, *hour)).flat_map(move |hour| {
            (0..60).filter(move |minute| has(minutes, *minute)).map(move |minute| (hour, minute))
        })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

fn field(text: &str, what: &str, least: u8, most: u8, names: &[&str], first_name: u8) -> Result<u64, String> {
    let wrong =
        |part: &str| format!("has `{part}` as {what}; {least} to {most}, lists, ranges and steps are right");
    let value = |part: &str| {
        let named = names.iter().position(|name| name.eq_ignore_ascii_case(part));
        let value = named.map_or_else(|| part.parse().ok(), |at| Some(at as u8 + first_name));
        value.filter(|value| (least..=most).contains(value))
    };
    let mut set = 0_u64;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => {
                let step = step.parse::<u8>().ok().filter(|step| *step > 0);
                (range, step.ok_or_else(|| wrong(part))?)
            }
            None => (part, 1),
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (least, most),
            Some((from, to)) => {
                (value(from).ok_or_else(|| wrong(part))?, value(to).ok_or_else(|| wrong(part))?)
            }
            None => {
                let only = value(range).ok_or_else(|| wrong(part))?;
                (only, if part.contains('/') { most } else { only })
            }
        };
        if from > to {
            return Err(format!("has the range `{range}` the wrong way round as {what}"));
        }
        set = (from..=to).step_by(usize::from(step)).fold(set, |set, value| set | 1 << value);
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let cron = Cron::parse("0,30 8-9 * * MON-FRI").expect("valid");
        assert_eq!(cron.times().collect::<Vec<_>>(), [(8, 0), (8, 30), (9, 0), (9, 30)]);
        assert!(cron.on(3, 6, 1) && cron.on(3, 6, 5) && !cron.on(3, 6, 6) && !cron.on(3, 6, 0));
        let steps = Cron::parse("*/20 22/1 1 jan,DEC *").expect("valid");
        assert_eq!(
            steps.times().collect::<Vec<_>>(),
            [(22, 0), (22, 20), (22, 40), (23, 0), (23, 20), (23, 40)]
        );
        assert!(steps.on(1, 1, 4) && steps.on(1, 12, 4) && !steps.on(1, 2, 4) && !steps.on(2, 1, 4));
        // Both restricted: either will do. Seven is Sunday.
        let either = Cron::parse("0 0 13 * 7").expect("valid");
        assert!(either.on(13, 5, 2) && either.on(4, 5, 0) && !either.on(4, 5, 1));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let wrong = |text: &str| Cron::parse(text).expect_err(text);
        assert_eq!(wrong("0 8 * *"), "has 4 fields; minute, hour, day, month, day of week are five");
        assert!(wrong("60 8 * * *").starts_with("has `60` as minute; 0 to 59"));
        assert!(wrong("0 8 * * FRI-MON").contains("the wrong way round"));
        assert!(wrong("0 8 * * */0").contains("`*/0` as day of week"));
        assert!(wrong("0 8 L * *").contains("`L` as day of month"));
    }
}
