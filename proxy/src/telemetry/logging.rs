//! Log lines: for people on a terminal, JSON otherwise. What is logged can be changed while the process runs.

use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock};

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::reload;

use crate::config::suggest;
use crate::lock::lock;

/// Names the filter to start with.
const VARIABLE: &str = "GODWIT_LOG";
/// pingora's and QUIC's own chatter only where it matters.
const DEFAULT: &str = "info,pingora=warn,pingora_core=warn,pingora_proxy=warn,quinn=warn,tokio_postgres=warn";
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// Longest filter, bytes.
const LONGEST: usize = 1000;

static LIVE: OnceLock<Live> = OnceLock::new();

/// The filter of this process.
struct Live {
    started_with: String,
    now: Mutex<String>,
    replace: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
}

impl Live {
    fn view(&self) -> LogView {
        let filter = lock(&self.now).clone();
        LogView { filter, started_with: self.started_with.clone() }
    }
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogView {
    /// Directives `target=level`, or `level` for the rest, with commas between (`info,godwit::controller=debug`).
    pub filter: String,
    /// As the process was started.
    pub started_with: String,
}

/// Why the filter stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It is not understood.
    #[error("{0}")]
    Wrong(String),
    /// This process does not log, or somebody else began to.
    #[error("this process has no log of its own")]
    Missing,
}

/// Starts logging to standard error. `GODWIT_LOG` filters (default `info`, of the libraries `warn`).
pub fn start() {
    let asked = std::env::var(VARIABLE).ok().map(|text| (parse(&text), text));
    let (filter, text, wrong) = match asked {
        Some((Ok(filter), text)) => (filter, text, None),
        Some((Err(error), text)) => (EnvFilter::new(DEFAULT), DEFAULT.to_owned(), Some((text, error))),
        None => (EnvFilter::new(DEFAULT), DEFAULT.to_owned(), None),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let live = |replace| Live { started_with: text.clone(), now: Mutex::new(text.clone()), replace };
    // A second start, as in tests that run several nodes in one process, changes nothing.
    let started = if std::io::stderr().is_terminal() {
        let builder = builder.with_ansi(std::env::var_os("NO_COLOR").is_none()).with_filter_reloading();
        let handle = builder.reload_handle();
        builder.try_init().map(|()| live(Box::new(move |filter| handle.reload(filter))))
    } else {
        let builder = builder.json().with_filter_reloading();
        let handle = builder.reload_handle();
        builder.try_init().map(|()| live(Box::new(move |filter| handle.reload(filter))))
    };
    match started {
        // Whoever initialises the subscriber is the only one.
        Ok(live) => {
            drop(LIVE.set(live));
            if let Some((said, why)) = wrong {
                tracing::warn!(said, %why, "{VARIABLE} is not understood: logged is what is by default");
            }
        }
        Err(error) => tracing::debug!(%error, "logging was started before"),
    }
}

/// What is logged now.
///
/// # Errors
/// [`FilterError::Missing`].
pub fn filter() -> Result<LogView, FilterError> {
    LIVE.get().map(Live::view).ok_or(FilterError::Missing)
}

/// Logs what passes this filter from now on; none: what passed at the start.
///
/// # Errors
/// It is not understood, or there is nothing to filter: all stays as it was.
pub fn set(filter: Option<&str>) -> Result<LogView, FilterError> {
    let live = LIVE.get().ok_or(FilterError::Missing)?;
    let text = filter.unwrap_or(&live.started_with);
    let parsed = parse(text)?;
    let mut now = lock(&live.now);
    (live.replace)(parsed).map_err(|_| FilterError::Missing)?;
    text.clone_into(&mut now);
    drop(now);
    tracing::info!(filter = text, "what is logged has changed");
    Ok(live.view())
}

fn parse(text: &str) -> Result<EnvFilter, FilterError> {
    if text.trim().is_empty() || text.len() > LONGEST {
        return Err(FilterError::Wrong(format!("a filter has 1 to {LONGEST} bytes")));
    }
    // A word by itself would be taken for a target, and everything else would be silent.
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty() && !word.contains(['=', '['])) {
        if !LEVELS.contains(&word.to_ascii_lowercase().as_str()) && word.parse::<LevelFilter>().is_err() {
            return Err(FilterError::Wrong(format!(
                "`{word}` is no level; {}; of one target: {word}=debug",
                suggest(word, LEVELS)
            )));
        }
    }
    EnvFilter::try_new(text).map_err(|error| FilterError::Wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_and_targets() {
        for right in [
            "info",
            "INFO",
            "warn,godwit=debug",
            DEFAULT,
            "off",
            "3",
            "godwit::controller=trace",
            "[span]=debug",
        ] {
            assert!(parse(right).is_ok(), "{right}");
        }
        for wrong in ["", " ", "godwit=loud", "a=b=c", &"x".repeat(LONGEST + 1)] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_no_filter() {
        for (text, says) in [
            ("inof", "`inof` is no level; did you mean `info`?"),
            ("godwit=debug,wran", "`wran` is no level; did you mean `warn`?"),
            ("godwit", "of one target: godwit=debug"),
        ] {
            let error = parse(text).map(drop).expect_err(text).to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
