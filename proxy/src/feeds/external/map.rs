//! From decoded JSON to findings by a jq program (`jaq`): pure, it gets `$now` (seconds) and `$zones`.
//!
//! A program yields readings, one by one or in lists; each is a number, `{value, zone?, name?, unit?, at?, for?}` or
//! `{event, title, starts, zone?, ends?, severity?, id?}`, where `zone` is a name or a list of names and a moment is
//! seconds of the epoch or text such as `2026-11-25T23:40:00Z`. An empty list says that there is nothing now; no output
//! at all is an error, and so is anything else.
//!
//! Programs are the operator's own: they are bounded in outputs and, by the caller, in time, not in memory. `env`,
//! `now`, `debug`, `stderr` and `halt` are taken out.

use jaq_core::data::JustLut;
use jaq_core::load::{Arena, File, Loader};
use jaq_core::{Compiler, Ctx, Vars, unwrap_valr};
use jaq_json::{Num, Val};
use migration::units::Timestamp;
use serde_json::Value as Json;

use super::finding::Finding;
use super::places::Place;

mod output;
mod shape;

pub use shape::shape;

/// Most findings of one run.
const MAX_FINDINGS: usize = 10_000;
/// What a program may use beside its input.
const GLOBALS: [&str; 2] = ["$now", "$zones"];
/// Asking for the time or the environment, and doing something other than answering.
const IMPURE: [&str; 9] =
    ["env", "now", "localtime", "strflocaltime", "halt", "halt_error", "debug", "stderr", "debug_empty"];

type Data = JustLut<Val>;

/// A program that compiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    text: String,
}

/// Why a text is not a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} (line {line}, column {column} of the program)")]
pub struct ProgramError {
    /// Line in the program, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong there.
    pub what: String,
}

/// Why a program gave no findings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// It stopped with an error.
    #[error("the program failed: {0}")]
    Failed(String),
    /// It yielded nothing.
    #[error("the program yielded nothing (an empty list would say that there is nothing); it got {0}")]
    Nothing(String),
    /// It yielded something that is no finding.
    #[error("reading {number} is none: {why}")]
    NoFinding {
        /// Which output, from 1.
        number: usize,
        /// What is wrong with it and what would be right.
        why: String,
    },
    /// It yields too much.
    #[error("the program yielded more than {MAX_FINDINGS} readings")]
    TooMany,
}

impl Program {
    /// Checks `text`.
    pub fn new(text: &str) -> Result<Self, ProgramError> {
        compile(text).map(|_| Self { text: text.to_owned() })
    }

    /// The program.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Runs over `input`. May take long: call it where waiting harms nobody.
    pub fn run(&self, input: &Json, zones: &[Place], now: Timestamp) -> Result<Vec<Finding>, MapError> {
        let filter = compile(&self.text).map_err(|error| MapError::Failed(error.to_string()))?;
        let globals = [Val::from(now.0 as f64 / 1000.0), zones_value(zones)];
        let context = Ctx::<Data>::new(&filter.lut, Vars::new(globals));
        let mut findings = Vec::new();
        let mut outputs = 0_usize;
        for output in filter.id.run((context, to_val(input))).map(unwrap_valr) {
            outputs += 1;
            let output = output.map_err(|error| MapError::Failed(output::words(error)))?;
            let listed =
                if let Val::Arr(list) = &output { list.as_slice() } else { std::slice::from_ref(&output) };
            for reading in listed {
                let finding = output::finding(reading);
                findings
                    .push(finding.map_err(|why| MapError::NoFinding { number: findings.len() + 1, why })?);
            }
            if outputs.max(findings.len()) > MAX_FINDINGS {
                return Err(MapError::TooMany);
            }
        }
        if outputs == 0 {
            return Err(MapError::Nothing(shape(input)));
        }
        Ok(findings)
    }
}

fn compile(text: &str) -> Result<jaq_core::Filter<Data>, ProgramError> {
    let defs = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
    let defs = defs.filter(|def| !IMPURE.contains(&def.name));
    let funs = jaq_core::funs().chain(jaq_std::funs()).chain(jaq_json::funs());
    let funs = funs.filter(|(name, ..)| !IMPURE.contains(name));
    let arena = Arena::default();
    let modules = Loader::new(defs)
        .load(&arena, File { code: text, path: () })
        .map_err(|errors| syntax(text, errors.into_iter().next().map(|(_, error)| error)))?;
    Compiler::default().with_funs(funs).with_global_vars(GLOBALS).compile(modules).map_err(|errors| {
        let undefined = errors.into_iter().flat_map(|(_, errors)| errors).next();
        let (name, kind) = undefined.map_or(("", "name"), |(name, kind)| (name, kind.as_str()));
        at(text, name, format!("there is no {kind} `{name}` here"))
    })
}

fn syntax(text: &str, error: Option<jaq_core::load::Error<&str>>) -> ProgramError {
    use jaq_core::load::Error;
    match error {
        Some(Error::Lex(errors)) if !errors.is_empty() => {
            let (expected, found) = &errors[0];
            at(text, found, format!("expected {}", expected.as_str()))
        }
        Some(Error::Parse(errors)) if !errors.is_empty() => {
            let (expected, found) = &errors[0];
            at(text, found, format!("expected {}", expected.as_str()))
        }
        Some(Error::Io(_)) => at(text, text, "a program cannot import another".into()),
        _ => at(text, text, "is not a jq program".into()),
    }
}

/// The position of `part` in `text`, of which it is a slice.
fn at(text: &str, part: &str, what: String) -> ProgramError {
    let offset = (part.as_ptr() as usize).checked_sub(text.as_ptr() as usize);
    let before = offset.and_then(|offset| text.get(..offset)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let end = if offset.is_some_and(|offset| offset >= text.len()) { ", and the program ends" } else { "" };
    ProgramError { line, column, what: what + end }
}

/// `serde_json` has bounded the depth.
fn to_val(value: &Json) -> Val {
    match value {
        Json::Null => Val::Null,
        Json::Bool(value) => Val::from(*value),
        Json::Number(number) => Val::Num(match number.as_i64().and_then(|n| isize::try_from(n).ok()) {
            Some(whole) => Num::Int(whole),
            None => Num::Float(number.as_f64().unwrap_or(f64::NAN)),
        }),
        Json::String(text) => Val::from(text.clone()),
        Json::Array(list) => list.iter().map(to_val).collect(),
        Json::Object(map) => {
            Val::obj(map.iter().map(|(key, value)| (Val::from(key.clone()), to_val(value))).collect())
        }
    }
}

fn zones_value(zones: &[Place]) -> Val {
    let zone = |place: &Place| {
        serde_json::json!({
            "name": place.zone,
            "provider": place.provider,
            "region": place.region,
            "country": place.country,
            "location": place.location.map(|(latitude, longitude)| [latitude, longitude]),
        })
    };
    zones.iter().map(|place| to_val(&zone(place))).collect()
}

#[cfg(test)]
mod tests;
