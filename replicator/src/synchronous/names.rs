//! The setting `synchronous_standby_names`: read, joined, left. Pure.
//!
//! Grammar: `name [, …]` (first 1 of them), `[FIRST] n (name [, …])`, `ANY n (name [, …])`; a name is an identifier, a
//! number, `"quoted"` or `*`. Names count without regard to case (PostgreSQL: `syncrep_gram.y`, `syncrep.c`).

use std::fmt;

use crate::postgres::slot::is_own;

/// Which of the listed standbys a commit waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    First,
    Any,
}

/// A value of `synchronous_standby_names`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyNames {
    method: Method,
    /// How many a commit waits for.
    count: usize,
    names: Vec<String>,
}

impl StandbyNames {
    /// Reads a setting; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let tokens = tokens(text)?;
        let unreadable = || format!("synchronous_standby_names {text:?} cannot be read");
        let (method, count, list) = match tokens.as_slice() {
            [] => return Ok(Self { method: Method::First, count: 0, names: Vec::new() }),
            [Token::Word(word), Token::Word(count), Token::Open, list @ .., Token::Close]
                if word.eq_ignore_ascii_case("any") || word.eq_ignore_ascii_case("first") =>
            {
                let method = if word.eq_ignore_ascii_case("any") { Method::Any } else { Method::First };
                (method, Some(count), list)
            }
            [Token::Word(count), Token::Open, list @ .., Token::Close] => (Method::First, Some(count), list),
            list => (Method::First, None, list),
        };
        let mut names = Vec::new();
        for (at, token) in list.iter().enumerate() {
            match token {
                Token::Word(name) | Token::Quoted(name) if at % 2 == 0 => names.push(name.clone()),
                Token::Comma if at % 2 == 1 => {}
                _ => return Err(unreadable()),
            }
        }
        if list.len().is_multiple_of(2) {
            return Err(unreadable());
        }
        let count = match count {
            Some(count) => count.parse().ok().filter(|count| *count > 0).ok_or_else(unreadable)?,
            None => 1,
        };
        Ok(Self { method, count, names })
    }

    /// Whether this standby is listed by its name.
    pub fn contains(&self, name: &str) -> bool {
        self.names.iter().any(|listed| listed.eq_ignore_ascii_case(name))
    }

    /// The listed names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The listed names that Godwit gave: of slots of whatever resource.
    pub fn own(&self) -> Vec<String> {
        self.names.iter().filter(|name| is_own(name)).cloned().collect()
    }

    /// The setting without any of those: what the operator has there.
    #[must_use]
    pub fn of_operator(&self) -> Self {
        self.own().iter().fold(self.clone(), |names, own| names.without(own))
    }

    /// The setting under which a commit waits for `name` as well as for whatever it waits for now.
    ///
    /// There is one list and one number for a whole server, so that exists only where every listed standby is waited for:
    /// anywhere else another standby could stand in for `name`, and a commit would be acknowledged without it.
    pub fn with(&self, name: &str) -> Result<Self, String> {
        if self.contains(name) {
            return Ok(self.clone());
        }
        if self.names.iter().any(|listed| listed == "*") {
            return Err(format!(
                "synchronous_standby_names is {self}: any standby could stand in for the shadow; name the standbys \
                 that must be waited for, such as FIRST 1 (name)"
            ));
        }
        if self.count < self.names.len() {
            return Err(format!(
                "synchronous_standby_names is {self}: a commit waits for {} of {} standbys, and one of them could stand \
                 in for the shadow; use FIRST {} ({}) or keep replication asynchronous",
                self.count,
                self.names.len(),
                self.names.len(),
                self.names.join(", ")
            ));
        }
        let mut names = vec![name.to_owned()];
        names.extend(self.names.iter().cloned());
        Ok(Self { method: self.method, count: self.count + 1, names })
    }

    /// The setting without `name`: what was waited for beside it still is.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        if !self.contains(name) {
            return self.clone();
        }
        let names: Vec<String> =
            self.names.iter().filter(|listed| !listed.eq_ignore_ascii_case(name)).cloned().collect();
        let count = self.count.saturating_sub(1).max(1).min(names.len());
        Self { method: self.method, count, names }
    }
}

impl fmt::Display for StandbyNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names.is_empty() {
            return Ok(());
        }
        let method = match self.method {
            Method::First => "FIRST",
            Method::Any => "ANY",
        };
        let quoted = |name: &String| match name.as_str() {
            "*" => "*".to_owned(),
            name => format!("\"{}\"", name.replace('"', "\"\"")),
        };
        write!(
            f,
            "{method} {} ({})",
            self.count,
            self.names.iter().map(quoted).collect::<Vec<_>>().join(", ")
        )
    }
}

#[derive(Debug)]
enum Token {
    Word(String),
    Quoted(String),
    Comma,
    Open,
    Close,
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}' => {}
            ',' => tokens.push(Token::Comma),
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            '*' => tokens.push(Token::Word("*".into())),
            '"' => {
                let mut name = String::new();
                loop {
                    match rest.next() {
                        Some('"') if rest.peek() == Some(&'"') => {
                            rest.next();
                            name.push('"');
                        }
                        Some('"') => break,
                        Some(c) => name.push(c),
                        None => return Err(format!("synchronous_standby_names {text:?} lacks a quote")),
                    }
                }
                tokens.push(Token::Quoted(name));
            }
            c if word(c) => {
                let mut name = String::from(c);
                while let Some(c) = rest.next_if(|c| word(*c)) {
                    name.push(c);
                }
                tokens.push(Token::Word(name));
            }
            c => return Err(format!("synchronous_standby_names {text:?} has an unexpected {c:?}")),
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> StandbyNames {
        StandbyNames::parse(text).expect(text)
    }

    #[test]
    fn every_form_is_read() {
        assert_eq!(read("").to_string(), "");
        assert_eq!(read("  a , \"B c\"").to_string(), "FIRST 1 (\"a\", \"B c\")");
        assert_eq!(read("2 (a,b)").to_string(), "FIRST 2 (\"a\", \"b\")");
        assert_eq!(read("first 1(a)").to_string(), "FIRST 1 (\"a\")");
        assert_eq!(read("ANY 2 (a, b, *)").to_string(), "ANY 2 (\"a\", \"b\", *)");
        assert_eq!(read("any").to_string(), "FIRST 1 (\"any\")");
        assert_eq!(read("\"a\"\"b\"").names(), ["a\"b"]);
        for wrong in ["a b", "a,", "FIRST 0 (a)", "FIRST x (a)", "\"a", "a; b", "2 ()", "(a)"] {
            assert!(StandbyNames::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn joins_only_where_nobody_can_stand_in() {
        assert_eq!(read("").with("us").expect("alone").to_string(), "FIRST 1 (\"us\")");
        assert_eq!(read("a").with("us").expect("both").to_string(), "FIRST 2 (\"us\", \"a\")");
        assert_eq!(read("ANY 2 (a, b)").with("us").expect("all").to_string(), "ANY 3 (\"us\", \"a\", \"b\")");
        assert_eq!(read("US").with("us").expect("there").to_string(), "FIRST 1 (\"US\")");
        for refused in ["a, b", "ANY 1 (a, b)", "*", "FIRST 2 (a, b, c)"] {
            let why = read(refused).with("us").expect_err(refused);
            assert!(why.contains("stand in for"), "{why}");
        }
    }

    #[test]
    fn what_the_operator_has_is_told_from_what_godwit_put_there() {
        let both = "\"godwit_a_g1\", \"godwit_b_g17_critical\"";
        for (setting, own, rest) in [
            (format!("FIRST 2 ({both})"), 2, ""),
            (format!("FIRST 3 ({both}, a)"), 2, "FIRST 1 (\"a\")"),
            (format!("ANY 4 ({both}, a, b)"), 2, "ANY 2 (\"a\", \"b\")"),
            (
                "godwit_standby, godwit_g1, godwit_a_g".into(),
                0,
                "FIRST 1 (\"godwit_standby\", \"godwit_g1\", \"godwit_a_g\")",
            ),
        ] {
            let names = read(&setting);
            assert_eq!(
                (names.own().len(), names.of_operator().to_string()),
                (own, rest.to_owned()),
                "{setting}"
            );
        }
    }

    proptest! {
        #[test]
        fn leaving_undoes_joining(any in any::<bool>(), names in proptest::collection::vec("[a-z \"]{1,6}", 0..4)) {
            let names: Vec<String> = names.into_iter().enumerate().map(|(at, name)| format!("{name}{at}")).collect();
            let method = if any && !names.is_empty() { Method::Any } else { Method::First };
            let before = StandbyNames { method, count: names.len(), names };
            let joined = before.with("godwit_x_g1").expect("all are waited for");
            prop_assert_eq!(StandbyNames::parse(&joined.to_string()).expect("own text"), joined.clone());
            prop_assert!(joined.contains("GODWIT_x_g1"));
            prop_assert_eq!(joined.without("godwit_x_g1"), before);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = StandbyNames::parse(&text).map(|names| names.with("us").map(|with| with.without("us")));
        }
    }
}
