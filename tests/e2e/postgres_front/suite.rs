//! PostgreSQL's own regression and isolation suites, at the server itself and through the front: `make test-postgres-front`.
//!
//! `scripts/postgres-suite.sh` fetches them; each run has a cluster of its own, since the suites leave roles behind.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use godwit::config::model::PostgresAuth;
use godwit::drivers::process::cluster::DropTo;
use godwit_tests::postgres::{SUPERUSER, TestCluster};

use super::{HOLD, Served, settings};

/// Debian's package of the client has the programs that run the suites.
const PGXS: &str = "/usr/lib/postgresql/15/lib/pgxs/src/test";
const SETTINGS: &str = "max_prepared_transactions = 10\n";
/// As `pg_regress` makes its database; with the locale that most of the expected output is for.
const CREATE: [&str; 7] = [
    "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'",
    "ALTER DATABASE {} SET lc_messages TO 'C'",
    "ALTER DATABASE {} SET lc_monetary TO 'C'",
    "ALTER DATABASE {} SET lc_numeric TO 'C'",
    "ALTER DATABASE {} SET lc_time TO 'C'",
    "ALTER DATABASE {} SET bytea_output TO 'hex'",
    "ALTER DATABASE {} SET timezone_abbreviations TO 'Default'",
];

/// One of the two.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Suite {
    Regression,
    Isolation,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Regression => "regression",
            Self::Isolation => "isolation",
        }
    }

    /// The name that its tests know.
    pub(crate) fn database(self) -> &'static str {
        match self {
            Self::Regression => "regression",
            Self::Isolation => "isolation_regression",
        }
    }

    /// How many tests it has.
    fn tests(self) -> usize {
        match self {
            Self::Regression => 217,
            Self::Isolation => 115,
        }
    }

    fn command(self, source: &Path) -> Command {
        let (program, folder, schedule) = match self {
            Self::Regression => ("regress/pg_regress", "src/test/regress", "parallel_schedule"),
            Self::Isolation => ("isolation/pg_isolation_regress", "src/test/isolation", "isolation_schedule"),
        };
        let folder = source.join(folder);
        let mut command = Command::new(Path::new(PGXS).join(program));
        command
            .arg(format!("--inputdir={}", folder.display()))
            .arg(format!("--schedule={}", folder.join(schedule).display()))
            .arg(format!("--dlpath={}", source.join("lib").display()))
            .arg("--max-concurrent-tests=20");
        command
    }
}

/// How each test ended: true, as expected.
type Outcome = BTreeMap<String, bool>;

/// Lines such as `test boolean      ... ok          105 ms`, with `test` in front of those that ran alone.
fn read(report: &str) -> Outcome {
    let line = |line: &str| {
        let (name, end) = line.split_once(" ... ")?;
        let name = name.trim().trim_start_matches("test ").trim().to_owned();
        (!name.is_empty()).then(|| (name, end.trim_start().starts_with("ok")))
    };
    report.lines().filter_map(line).collect()
}

/// Where the suites are.
fn source() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/postgres-suite.sh");
    let output = Command::new(script).stderr(std::process::Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the suites cannot be had");
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

/// Where differences are left for a person to read.
fn left(suite: Suite, way: &str) -> Result<PathBuf> {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("postgres-front/{}-{way}", suite.name()));
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// A cluster with the suite's database, empty.
pub(crate) async fn cluster(suite: Suite, major: u32) -> Result<TestCluster> {
    let cluster = TestCluster::start_with(major, SETTINGS)?;
    let administrator = cluster.connect("postgres").await?;
    for statement in CREATE {
        administrator.batch_execute(&statement.replace("{}", suite.database())).await?;
    }
    Ok(cluster)
}

/// A cluster with the database that the regression suite leaves behind.
pub(crate) async fn regression_database() -> Result<TestCluster> {
    let cluster = cluster(Suite::Regression, 15).await?;
    let outcome = play(Suite::Regression, &source()?, &cluster, None, "copied").await?;
    ensure!(outcome.len() == Suite::Regression.tests(), "not every test has run");
    Ok(cluster)
}

async fn run(suite: Suite, source: &Path, through: bool) -> Result<Outcome> {
    let cluster = cluster(suite, 15).await?;
    if !through {
        return play(suite, source, &cluster, None, "direct").await;
    }
    let mut settings = settings(suite.database())?;
    settings.auth = PostgresAuth::Trust;
    let database = cluster.config_as(SUPERUSER, suite.database());
    let _served = Served::start(&settings, HOLD, &[("a", database)]).await;
    play(suite, source, &cluster, Some(settings.listen), "front").await
}

/// Runs the suite's tests at the server itself, or through the front that listens there.
async fn play(
    suite: Suite,
    source: &Path,
    cluster: &TestCluster,
    front: Option<SocketAddr>,
    way: &str,
) -> Result<Outcome> {
    let server = &cluster.cluster;
    let (host, port) =
        front.map_or((server.host.clone(), server.port), |front| (front.ip().to_string(), front.port()));
    let output = cluster.directory().join("suite");
    std::fs::create_dir(&output)?;
    let mut command = suite.command(source);
    command
        .arg(format!("--outputdir={}", output.display()))
        .arg(format!("--bindir={}", server.bin.display()))
        .args(["--use-existing", "--dbname", suite.database(), "--user", SUPERUSER])
        .args(["--host", &host, "--port", &port.to_string()])
        .current_dir(&output)
        .env_remove("PGOPTIONS");
    if let Some(user) = DropTo::find()? {
        user.own(&output)?;
        user.apply(&mut command);
    }
    // Its exit status says no more than its lines.
    let ran = tokio::task::spawn_blocking(move || command.output()).await??;
    let report = String::from_utf8_lossy(&ran.stdout).into_owned();
    let folder = left(suite, way)?;
    std::fs::write(folder.join("report.txt"), &report)?;
    let differences = output.join("regression.diffs");
    if differences.exists() {
        std::fs::copy(&differences, folder.join("regression.diffs"))?;
    }
    let outcome = read(&report);
    ensure!(!outcome.is_empty(), "{report}\n{}", String::from_utf8_lossy(&ran.stderr));
    Ok(outcome)
}

/// Runs it both ways; what the front broke is an error.
async fn compare(suite: Suite) -> Result<()> {
    let source = source()?;
    let direct = run(suite, &source, false).await?;
    let front = run(suite, &source, true).await?;
    let passed = |outcome: &Outcome| outcome.values().filter(|passed| **passed).count();
    println!("{:<12} {:>12} {:>18}", "suite", "direct", "through the front");
    let counts = |outcome: &Outcome| format!("{}/{}", passed(outcome), outcome.len());
    println!("{:<12} {:>12} {:>18}", suite.name(), counts(&direct), counts(&front));
    let mut broken = String::new();
    for (name, _) in direct.iter().filter(|(name, passed)| **passed && front.get(*name) != Some(&true)) {
        write!(broken, " {name}")?;
    }
    ensure!(broken.is_empty(), "fail through the front only:{broken}; see {}", env!("CARGO_TARGET_TMPDIR"));
    ensure!(direct.len() == suite.tests() && front.len() == suite.tests(), "not every test has run");
    ensure!(passed(&front) >= passed(&direct));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: make test-postgres-front"]
async fn the_regression_suite_passes_as_at_the_server_itself() -> Result<()> {
    compare(Suite::Regression).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: make test-postgres-front"]
async fn the_isolation_suite_passes_as_at_the_server_itself() -> Result<()> {
    compare(Suite::Isolation).await
}

#[test]
fn reports_are_read() {
    let report = "============== running regression test queries        ==============\n\
        test tablespace                   ... ok          431 ms\n\
        parallel group (2 tests):  boolean char\n     boolean                      ... ok          105 ms\n\
        \x20    char                         ... FAILED      12 ms\ntest hash ... failed (ignored)\n";
    let expected = [("boolean", true), ("char", false), ("hash", false), ("tablespace", true)];
    let expected: Outcome = expected.iter().map(|(name, passed)| ((*name).to_owned(), *passed)).collect();
    assert_eq!(read(report), expected);
}
