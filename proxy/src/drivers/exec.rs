//! The `exec` driver: a program of the operator's. The request goes to its standard input, the answer comes as JSON
//! lines from its standard output, what it says on standard error goes to the log.
//!
//! It gets a bare environment and what the configuration gives it. At the deadline, when nobody waits any more, or before
//! this process becomes another program its whole process group is killed.

use std::path::PathBuf;
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, Take};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::contract::{LONGEST, Outcome, Request, Said, outside, parse, short};
use super::groups::{self, Group};
use super::outside::Carrier;
use super::{DriverError, DriverErrorKind, PASSED_ON, passed_on};
use crate::config::model::ExecDriver;

/// How long it may take to end after its answer.
const END: Duration = Duration::from_secs(5);
/// How long reading what a program that has ended left in its pipes may take.
const LEFT: Duration = Duration::from_secs(1);

/// Runs the program once for each request.
#[derive(Clone, Debug)]
pub struct Exec {
    settings: ExecDriver,
}

impl Exec {
    /// Of these settings. Starts nothing yet.
    pub fn new(settings: ExecDriver) -> Self {
        Self { settings }
    }

    fn program(&self) -> PathBuf {
        self.settings.argv.first().map(PathBuf::from).unwrap_or_default()
    }

    fn spawn(&self) -> Result<(Child, Group), DriverError> {
        let program = self.program();
        let given = self.settings.environment.iter().map(|(name, value)| (name, &value.0));
        let mut command = Command::new(&program);
        command
            .args(self.settings.argv.get(1..).unwrap_or_default())
            .env_clear()
            .envs(passed_on(&PASSED_ON))
            .envs(given)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // What it starts ends with it, and a Ctrl-C on the terminal is not for it.
            .process_group(0)
            .kill_on_drop(true);
        groups::all().start(|| command.spawn()).map_err(|error| {
            outside(DriverErrorKind::Failed, format!("{} cannot be started: {error}", program.display()))
        })
    }

    async fn converse(&self, request: &Request, child: &mut Child) -> Result<Outcome, DriverError> {
        let name = self.name();
        let failed = |what: String| outside(DriverErrorKind::Failed, format!("{name}: {what}"));
        let mut text = serde_json::to_vec(request).map_err(|error| failed(error.to_string()))?;
        text.push(b'\n');
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (last, complained) = watch::channel(String::new());
        let complaints =
            AbortOnDropHandle::new(tokio::spawn(complaints(stderr, name.clone(), request.clone(), last)));
        if let Some(mut stdin) = stdin {
            // A program that answers without reading its input is right, too.
            let _ = stdin.write_all(&text).await;
        }
        let stdout = stdout.ok_or_else(|| failed("has no standard output".into()))?;
        let mut lines = Lines::of(stdout);
        let said = while_it_runs(child, lines.answer(request, &name)).await.map_err(failed)?.flatten();
        let ended = tokio::time::timeout(END, async {
            while_it_runs(child, lines.nothing_more()).await?;
            child.wait().await.map_err(|error| error.to_string())
        });
        let status = ended
            .await
            .unwrap_or_else(|_| Err(format!("did not end within {} s of its answer", END.as_secs())))
            .map_err(failed)?;
        match said {
            Some(Said::Result(outcome)) if status.success() => Ok(outcome),
            Some(Said::Error(kind, message)) => Err(outside(kind, format!("{name}: {message}"))),
            Some(Said::Result(_)) => Err(failed(format!("gave a result and ended with {status}"))),
            Some(Said::Progress(_)) | None => {
                let _ = tokio::time::timeout(LEFT, complaints).await;
                let last = complained.borrow().clone();
                let last = if last.is_empty() { last } else { format!(": {last}") };
                Err(failed(format!("ended with {status} and without an answer{last}")))
            }
        }
    }
}

#[async_trait]
impl Carrier for Exec {
    fn name(&self) -> String {
        self.program().display().to_string()
    }

    async fn ask(&self, request: &Request) -> Result<Outcome, DriverError> {
        let (mut child, group) = self.spawn()?;
        let done = tokio::time::timeout(request.deadline(), self.converse(request, &mut child)).await;
        drop(group);
        match done {
            Ok(answer) => answer,
            Err(_) => Err(outside(
                DriverErrorKind::NotReady,
                format!(
                    "{} had not answered {} within {:?}: its process group was killed",
                    self.name(),
                    request.verb,
                    request.deadline()
                ),
            )),
        }
    }
}

/// What comes of `reading` one of the program's pipes. Where the program has ended only what it left there counts: whoever it started may hold
/// that open for as long as it likes.
async fn while_it_runs<T>(
    child: &mut Child,
    reading: impl Future<Output = Result<T, String>>,
) -> Result<Option<T>, String> {
    let mut reading = pin!(reading);
    tokio::select! {
        biased;
        read = &mut reading => read.map(Some),
        _ = child.wait() => tokio::time::timeout(LEFT, reading).await.ok().transpose(),
    }
}

/// What the program says: JSON, one object a line.
struct Lines {
    from: BufReader<Take<ChildStdout>>,
    line: Vec<u8>,
    length: u64,
}

impl Lines {
    fn of(stdout: ChildStdout) -> Self {
        Self { from: BufReader::new(stdout.take(LONGEST + 1)), line: Vec::new(), length: 0 }
    }

    /// The next line that is not empty; none: there is no more.
    async fn next(&mut self) -> Result<Option<Said>, String> {
        loop {
            self.line.clear();
            let read = self.from.read_until(b'\n', &mut self.line).await;
            self.length += read.map_err(|error| error.to_string())? as u64;
            if self.length > LONGEST {
                return Err(format!("said more than {LONGEST} bytes"));
            }
            if self.line.is_empty() {
                return Ok(None);
            }
            if !self.line.trim_ascii().is_empty() {
                return parse(&self.line).map(Some).map_err(|why| format!("a line of its output {why}"));
            }
        }
    }

    /// Reads up to the answer; none: it ends without one.
    async fn answer(&mut self, request: &Request, name: &str) -> Result<Option<Said>, String> {
        loop {
            match self.next().await? {
                Some(Said::Progress(progress)) => tracing::info!(
                    driver = name, resource = %request.placement.resource, zone = %request.placement.zone,
                    operation = request.operation, done = progress.done, message = %progress.message, "driver works"
                ),
                answer => return Ok(answer),
            }
        }
    }

    /// The answer is the last of them.
    async fn nothing_more(&mut self) -> Result<(), String> {
        self.next().await?.map_or(Ok(()), |_| Err("went on after its answer".into()))
    }
}

/// Passes each line on to the log and tells the last one; all is read, or the program would stand still.
async fn complaints(
    pipe: Option<impl AsyncRead + Unpin>,
    name: String,
    request: Request,
    last: watch::Sender<String>,
) {
    let Some(pipe) = pipe else { return };
    let mut lines = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without an end must not grow without one.
        let mut bounded = (&mut lines).take(8 << 10);
        match bounded.read_until(b'\n', &mut line).await {
            Ok(1..) => {
                let text = short(&String::from_utf8_lossy(&line));
                if !text.is_empty() {
                    let (resource, zone) = (&request.placement.resource, &request.placement.zone);
                    tracing::info!(driver = name, %resource, %zone, verb = %request.verb, "{text}");
                    last.send_replace(text);
                }
            }
            Ok(_) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::contract::Placement;
    use super::*;

    fn shell(script: &str) -> Exec {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let environment =
            BTreeMap::from([("TOKEN".to_owned(), crate::feeds::external::Secret("s3cret".into()))]);
        Exec::new(ExecDriver { argv, environment })
    }

    fn request(deadline: Duration) -> Request {
        let placement = Placement { resource: "orders".into(), zone: "b".into(), full: 4, database: None };
        Request::asking("status", &placement, &serde_json::json!({"size": 3}), deadline)
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn asks_by_standard_input_and_takes_the_last_line() {
        let script = r#"read line; echo "works" >&2
            echo '{"progress": {"done": 0.5, "message": "half"}}'
            case "$line" in *'"verb":"status"'*'"size":3'*) ;; *) exit 9;; esac
            [ "$TOKEN" = s3cret ] && [ -z "$CARGO" ] || exit 8
            echo '{"result": {"ready": 2, "capacity": 2, "database": true}}'"#;
        let outcome = shell(script).ask(&request(LONG)).await.unwrap();
        assert_eq!(outcome.status().unwrap().ready, 2);
    }

    #[tokio::test]
    async fn wrong_answers_say_what_is_wrong() {
        for (script, kind, what) in [
            ("echo oops >&2; exit 3", DriverErrorKind::Failed, "without an answer: oops"),
            (r#"echo '{"error": {"kind": "refused", "message": "no"}}'"#, DriverErrorKind::Refused, "no"),
            ("echo hello", DriverErrorKind::Failed, "a line of its output is not of the contract"),
            (r#"echo '{"result": {}}'; exit 1"#, DriverErrorKind::Failed, "gave a result and ended with"),
            (r#"echo '{"result": {}}'; echo '{"result": {}}'"#, DriverErrorKind::Failed, "went on after"),
            ("head -c 2000000 /dev/zero", DriverErrorKind::Failed, "more than 1048576 bytes"),
        ] {
            let error = shell(script).ask(&request(LONG)).await.unwrap_err();
            assert!(error.kind() == kind && error.to_string().contains(what), "{script}: {error}");
        }
        let settings = ExecDriver { argv: vec!["/nowhere/driver".into()], environment: BTreeMap::new() };
        let error = Exec::new(settings).ask(&request(LONG)).await.unwrap_err();
        assert!(error.to_string().contains("cannot be started"), "{error}");
    }

    #[tokio::test]
    async fn whoever_holds_its_pipes_is_not_waited_for() {
        let answer = r#"echo '{"result": {"ready": 1, "capacity": 1, "database": true}}'"#;
        let outcome = shell(&format!("sleep 600 & {answer}")).ask(&request(LONG)).await.unwrap();
        assert_eq!(outcome.ready, Some(1));
        let error = shell("sleep 600 & echo oops >&2; exit 3").ask(&request(LONG)).await.unwrap_err();
        assert!(error.to_string().ends_with("without an answer: oops"), "{error}");
        // It must end by itself, and long before the deadline of what it was asked.
        let error = shell(&format!("{answer}; sleep 600")).ask(&request(LONG * 100)).await.unwrap_err();
        assert!(error.to_string().contains("did not end within 5 s of its answer"), "{error}");
    }

    #[tokio::test]
    async fn a_deadline_kills_the_program_and_what_it_started() {
        let home = tempfile::tempdir().unwrap();
        let (started, lock) = (home.path().join("started"), home.path().join("child"));
        // The grandchild holds a lock on a file for as long as it lives.
        let script = format!(
            "flock -x {lock} sh -c 'echo yes > {started}; sleep 600' & wait",
            lock = lock.display(),
            started = started.display()
        );
        let error = shell(&script).ask(&request(Duration::from_secs(2))).await.unwrap_err();
        assert_eq!(error.kind(), DriverErrorKind::NotReady);
        assert!(error.to_string().contains("its process group was killed"), "{error}");
        assert!(started.exists(), "the grandchild never ran");
        let free =
            std::process::Command::new("flock").args(["-w", "10", "-x"]).arg(&lock).arg("true").status();
        assert!(free.unwrap().success(), "the grandchild still lives");
    }
}
