//! Programs that are not ours, playing against a front: each says on its output what it has done, and goes on until its input ends.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use anyhow::{Context, Result, ensure};

/// One of them, running. Killed when dropped.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    child: Child,
    /// It goes on until this is closed.
    input: Option<ChildStdin>,
    counts: Arc<Counts>,
    output: Option<std::thread::JoinHandle<Option<String>>>,
    errors: Option<std::thread::JoinHandle<String>>,
}

#[derive(Default)]
struct Counts {
    rounds: AtomicU64,
    ended: AtomicU64,
}

impl Program {
    /// Starts it. It prints a line `round …` for each round, `ended …` for each stream that was ended under it, and at last
    /// `done` with the number of rounds; whatever goes wrong ends it with another exit status than 0.
    pub(crate) fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (output, mut errors) = (output.context("its output")?, errors.context("its errors")?);
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        let output = std::thread::spawn(move || {
            let mut last = None;
            for line in BufReader::new(output).lines().map_while(std::io::Result::ok) {
                counted.rounds.fetch_add(u64::from(line.starts_with("round ")), SeqCst);
                counted.ended.fetch_add(u64::from(line.starts_with("ended ")), SeqCst);
                last = Some(line);
            }
            last
        });
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        Ok(Self { name, child, input, counts, output: Some(output), errors: Some(errors) })
    }

    /// Rounds so far.
    pub(crate) fn rounds(&self) -> u64 {
        self.counts.rounds.load(SeqCst)
    }

    /// Streams that were ended under it so far.
    pub(crate) fn ended(&self) -> u64 {
        self.counts.ended.load(SeqCst)
    }

    /// An error with its own words, where it is over already.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let said = self.said();
                anyhow::bail!("{} ended ({status}):\n{said}", self.name)
            }
        }
    }

    /// Lets it end by itself; it must be content. How many rounds it played.
    pub(crate) fn finish(mut self) -> Result<u64> {
        drop(self.input.take());
        let status = self.child.wait()?;
        let said = self.said();
        ensure!(status.success(), "{} failed ({status}):\n{said}", self.name);
        let last = self.output.take().and_then(|reading| reading.join().ok()).flatten();
        let rounds = self.rounds();
        let expected = format!("done {rounds}");
        ensure!(last.as_deref() == Some(&*expected), "{} ended with {last:?}, not {expected:?}", self.name);
        Ok(rounds)
    }

    fn said(&mut self) -> String {
        self.errors.take().and_then(|reading| reading.join().ok()).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
