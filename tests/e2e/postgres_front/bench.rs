//! pgbench as a client of the front: the pieces that tests of cutovers share.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Result, ensure};
use godwit::demo::zone::{DATABASE, OWNER_ROLE, Playground, SERVICE_ROLE, SUPERUSER};
use tokio_postgres::Client;

use crate::leader::connect;

/// The tables of pgbench with a key where it has none: without it nothing could be replicated but inserts.
const PREPARE: &str = "ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY; \
    GRANT ALL ON ALL TABLES IN SCHEMA public TO orders_app; GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO orders_app";

fn pgbench(playground: &Playground, address: SocketAddr) -> Command {
    let mut command = Command::new(playground.zones[0].cluster.bin.join("pgbench"));
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]);
    command.arg(DATABASE).current_dir(&playground.directory);
    command
}

/// Makes its tables in the first zone, owned as those of the service.
pub(super) async fn make(playground: &Playground, scale: usize) -> Result<()> {
    let made = pgbench(playground, playground.zones[0].database)
        .args(["-i", "-q", "-s", &scale.to_string(), "-U", SUPERUSER])
        // Whose tables they are: Godwit's role has its rights.
        .env("PGOPTIONS", format!("-c role={OWNER_ROLE}"))
        .env("PGPASSWORD", playground.zones[0].cluster.superuser_password().unwrap_or_default())
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    connect(&playground.zones[0]).await?.batch_execute(PREPARE).await?;
    Ok(())
}

/// One that runs TPC-B, and tries nothing again.
pub(super) struct Bench {
    child: Option<Child>,
    logs: PathBuf,
}

impl Bench {
    /// So many clients at the front, until they are told to finish; with `pace` that many transactions a second in all.
    pub(super) fn start(
        playground: &Playground,
        front: SocketAddr,
        protocol: &str,
        clients: usize,
        pace: Option<u32>,
    ) -> Result<Self> {
        let logs = playground.directory.join(format!("pgbench-{protocol}"));
        // A thread each: while it prepares a statement it does nothing for another, which may have what that one waits for.
        let count = clients.to_string();
        let child = pgbench(playground, front)
            .args(["-U", SERVICE_ROLE, "-n", "-c", &count, "-j", &count, "-T", "7200"])
            .args(["-M", protocol, "-l", "--log-prefix", &logs.display().to_string()])
            .args(pace.map(|pace| format!("--rate={pace}")))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self { child: Some(child), logs })
    }

    /// Lets it finish what is under way: no transaction may have failed. How long each took, in microseconds.
    pub(super) fn finish(mut self) -> Result<Vec<u64>> {
        let Some(child) = self.child.take() else { return Ok(Vec::new()) };
        // Its time is over.
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::ALARM)?;
        let output = child.wait_with_output()?;
        let (out, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{out}\n{told}");
        let clean = out.contains("number of failed transactions: 0 ") && !told.contains("error:");
        ensure!(clean, "{out}\n{told}");
        took(&self.logs)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Of its logs, one for each of its threads: client, transaction, microseconds, …
fn took(prefix: &Path) -> Result<Vec<u64>> {
    let (folder, name) = (prefix.parent(), prefix.file_name().unwrap_or_default().to_string_lossy());
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder.unwrap_or(Path::new(".")))? {
        let path = entry?.path();
        let own = path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&*name));
        if own {
            let text = std::fs::read_to_string(&path)?;
            all.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok()));
        }
    }
    Ok(all)
}

/// Every transaction is in each of the four sums, or in none.
pub(super) async fn balances(client: &Client, at_least: usize) -> Result<()> {
    let sums = client
        .query_one(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts)::bigint, (SELECT sum(tbalance) FROM pgbench_tellers)::bigint,
                    (SELECT sum(bbalance) FROM pgbench_branches)::bigint, (SELECT sum(delta) FROM pgbench_history)::bigint,
                    (SELECT count(*) FROM pgbench_history)",
            &[],
        )
        .await?;
    let [accounts, tellers, branches, history, count]: [i64; 5] = std::array::from_fn(|at| sums.get(at));
    ensure!(accounts == tellers && tellers == branches && branches == history, "balances differ: {sums:?}");
    ensure!(count as usize >= at_least, "only {count} of {at_least} transactions");
    Ok(())
}
