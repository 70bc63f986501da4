//! Live progress: one line that renews itself on a terminal, a line every few seconds elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::super::load::Snapshot;
use crate::clock;
use crate::controller::view::ResourceView;

/// How often a line is printed where nothing can be renewed.
const PLAIN: Duration = Duration::from_secs(5);

/// Where the progress goes.
pub(super) struct Screen {
    began: Instant,
    terminal: bool,
    shown: Option<Instant>,
    /// A renewable line stands on the terminal.
    open: bool,
    phase: String,
    /// Why nobody reads it any more: the terminal was closed, say.
    unread: Option<std::io::Error>,
}

impl Screen {
    pub(super) fn new(began: Instant) -> Self {
        Self {
            began,
            terminal: std::io::stdout().is_terminal(),
            shown: None,
            open: false,
            phase: String::new(),
            unread: None,
        }
    }

    /// Fails once nobody reads it any more.
    pub(super) fn check(&mut self) -> Result<()> {
        self.unread.take().map_or(Ok(()), Err).context("nobody reads what is said")
    }

    fn write(&mut self, text: &str) {
        let mut out = std::io::stdout().lock();
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            self.unread.get_or_insert(error);
        }
    }

    /// A line as it is.
    pub(super) fn line(&mut self, line: &str) {
        self.write(&format!("{line}\n"));
    }

    /// A line that stays.
    pub(super) fn say(&mut self, line: &str) {
        self.clear();
        self.line(&format!("{:>6.1} s  {line}", self.began.elapsed().as_secs_f64()));
    }

    /// How it goes now.
    pub(super) fn show(&mut self, view: &ResourceView, load: Option<&Snapshot>) {
        let line = status(view, load);
        if self.phase != view.phase {
            self.phase.clone_from(&view.phase);
            self.say(&line);
            self.shown = Some(clock::monotonic());
        } else if self.terminal {
            self.clear();
            let width = 150;
            self.write(&format!(
                "{:>6.1} s  {}",
                self.began.elapsed().as_secs_f64(),
                line.chars().take(width).collect::<String>()
            ));
            self.open = true;
        } else if self.shown.is_none_or(|shown| shown.elapsed() >= PLAIN) {
            self.say(&line);
            self.shown = Some(clock::monotonic());
        }
    }

    fn clear(&mut self) {
        if self.open {
            self.write("\r\x1b[2K");
            self.open = false;
        }
    }
}

fn status(view: &ResourceView, load: Option<&Snapshot>) -> String {
    let mut line = format!("{:<10} {} serves", view.phase, view.primary);
    if let Some(load) = load {
        let ms = |latency: Option<Duration>| {
            latency.map_or("-".into(), |l| format!("{:.0}", l.as_secs_f64() * 1000.0))
        };
        line.push_str(&format!(
            " │ {} req/s, p50 {} p99 {} ms, {} failed",
            load.last_second,
            ms(load.p50),
            ms(load.p99),
            load.failed
        ));
    }
    if let Some(decision) = &view.decision {
        line.push_str(&format!(
            " │ score {:+.2} (lower {:+.2}, needs {:.2})",
            decision.score, decision.lower, decision.needed
        ));
    }
    if let Some(bytes) = view.replication.lag_bytes {
        line.push_str(&format!(" │ lag {bytes} B"));
    }
    if view.replication.state != "streaming" {
        line.push_str(&format!(" │ {} {}", view.replication.state, view.replication.detail));
    }
    line
}
