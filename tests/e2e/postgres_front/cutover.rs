//! Real nodes: clients of the database stay connected while the service is moved to and fro.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::demo::zone::{DATABASE, OWNER_ROLE, Options, Playground, SERVICE_ROLE};
use tokio_postgres::{Config, NoTls};

use crate::leader::{Leader, connect, load, options};

/// Of each of two pgbench.
const CLIENTS: usize = 8;
const SCALE: usize = 4;
const CUTOVERS: usize = 4;

/// The tables of pgbench with a key where it has none: without it nothing could be replicated but inserts.
const PREPARE: &str = "ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY; \
    GRANT ALL ON ALL TABLES IN SCHEMA public TO orders_app; GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO orders_app";

fn pgbench(playground: &Playground, address: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new(playground.zones[0].cluster.bin.join("pgbench"));
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]);
    command.args(arguments).arg(DATABASE).current_dir(&playground.directory);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_does_not_notice_cutovers() -> Result<()> {
    let wan = Duration::from_millis(2);
    let playground = Playground::start(&Options { wan, postgres_front: true, ..options(false)? }).await?;
    let front = playground.postgres_front.context("a front")?;
    let scale = SCALE.to_string();
    let made =
        pgbench(&playground, playground.zones[0].database, &["-i", "-q", "-s", &scale, "-U", "postgres"])
            // Whose tables they are: Godwit's role has its rights.
            .env("PGOPTIONS", format!("-c role={OWNER_ROLE}"))
            .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    connect(&playground.zones[0]).await?.batch_execute(PREPARE).await?;

    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let load = load(&playground, 50.0, "beside");
    let clients = CLIENTS.to_string();
    // Half of it with prepared statements; none tries again.
    let run = |protocol: &str| {
        pgbench(
            &playground,
            front,
            &["-U", SERVICE_ROLE, "-n", "-c", &clients, "-j", "2", "-T", "600", "-M", protocol, "-P", "1"],
        )
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    };
    let running = [run("simple")?, run("prepared")?];
    let mut config = Config::new();
    config.host(front.ip().to_string()).port(front.port()).user(SERVICE_ROLE).dbname(DATABASE);
    let (watch, connection) = config.connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    watch.batch_execute("SET work_mem = '7MB'; LISTEN moved").await?;
    let statement = watch.prepare("SELECT current_setting('work_mem'), $1::int").await?;
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let asking = async {
        while !stop.load(SeqCst) {
            let round = asked.fetch_add(1, SeqCst) as i32;
            let row = watch.query_one(&statement, &[&round]).await?;
            ensure!(row.get::<_, String>(0) == "7MB" && row.get::<_, i32>(1) == round);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    };
    let moving = async {
        for round in 0..CUTOVERS {
            let view = leader.ready().await?;
            let enough = asked.load(SeqCst) + 50;
            leader.until("clients work", |_| asked.load(SeqCst) > enough).await?;
            let id = leader.migrate(&view.shadow).await?;
            leader
                .until(&format!("cutover {round}"), |now| {
                    now.primary == view.shadow && now.phase == "shadowing"
                })
                .await?;
            let run = leader.migration(&id).await?;
            ensure!(run.state == "retired" && run.verified == Some(true), "{run:#?}");
        }
        stop.store(true, SeqCst);
        anyhow::Ok(())
    };
    let (asked_all, moved) = tokio::join!(asking, moving);
    moved?;
    asked_all?;
    drop(watch);
    connection.await??;
    for child in running {
        // Its time is over: it finishes what is under way, and reports.
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::ALARM)?;
        let output = child.wait_with_output()?;
        let (out, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{out}\n{told}");
        ensure!(
            out.contains("number of failed transactions: 0 ") && !told.contains("error:"),
            "{out}\n{told}"
        );
    }
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);

    let view = leader.ready().await?;
    let primary = connect(leader.zone(&view.primary)).await?;
    let sums = primary
        .query_one(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts)::bigint, (SELECT sum(tbalance) FROM pgbench_tellers)::bigint,
                    (SELECT sum(bbalance) FROM pgbench_branches)::bigint, (SELECT sum(delta) FROM pgbench_history)::bigint,
                    (SELECT count(*) FROM pgbench_history)",
            &[],
        )
        .await?;
    let [accounts, tellers, branches, history, count]: [i64; 5] = std::array::from_fn(|at| sums.get(at));
    ensure!(accounts == tellers && tellers == branches && branches == history, "balances differ: {sums:?}");
    ensure!(count > 1_000, "only {count} transactions");
    Ok(())
}
