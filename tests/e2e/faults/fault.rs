//! What can go wrong: struck while a migration stands still after a record, healed when its row says so.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit::demo::relay::Way;
use godwit::demo::zone::{DATABASE, GODWIT_ROLE, RESOURCE, SERVICE_ROLE, Zone};
use godwit_tests::waiting::until;
use replicator::postgres::{Dsn, slot};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;
use tokio_postgres::Client;

use super::clients::send_order;
use super::world::{Scene, World};
use crate::leader::{PATIENCE, connect};

/// Longer than the policy lets the gate be closed.
pub(super) const TOO_LONG: Duration = Duration::from_millis(2_500);
/// Longer than anybody waits: links, sessions and clients have given up.
pub(super) const A_MINUTE: Duration = Duration::from_mins(1);

/// Which side of the migration, as it was when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Primary,
    Shadow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// kill -9 of the leader.
    KillLeader,
    /// SIGTERM of the leader.
    Terminate,
    /// SIGSTOP of the leader, SIGCONT after so long.
    FreezeLeader(Duration),
    /// The same of every process of a database.
    FreezeDatabase(Side),
    /// The wall clock jumps by so many milliseconds.
    Clock(i64),
    /// The wall clock goes back an hour, and nothing comes from the far zone any more.
    ClockBackAndCut,
    /// kill -9 of a database, which is started again.
    Crash(Side),
    /// The node of the far zone dies and is started again.
    KillAgent,
    /// Everything between the zones is lost and every connection closed.
    Cut,
    /// One direction between the zones is lost, and nobody is told.
    BlackHole(Way),
    /// The slot that the stream to the shadow reads goes.
    SlotLost,
    /// The slot of the way back goes.
    WayBackLost,
    /// A session of the application holds row locks and does nothing.
    IdleInTransaction,
    /// A session of the application reads for ever.
    EndlessRead,
    /// A prepared transaction holds locks.
    Prepared,
    /// A column is added on the primary.
    AddColumn,
    /// A table is added on the primary.
    AddTable,
    /// A superuser writes round the fence on the primary, with the triggers switched off.
    WriteRoundTheFence,
    /// Held clients leave.
    ClientsLeave,
    /// A second migration is asked for.
    SecondRequest,
    /// The configuration is read anew, with another limit or another number of workers; before that, with a file that is wrong.
    Reload(Setting),
    /// A disk is full: the leader's state, or a database's.
    DiskFull(Disk),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    Journal,
    Database(Side),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    /// It can change at any time.
    Limit,
    /// It can change while no migration runs.
    Capacity,
}

/// What a fault leaves behind to be healed.
#[derive(Default)]
pub(crate) struct Struck {
    sessions: Vec<Client>,
    keys: Vec<String>,
    pub(crate) refused: bool,
    alarms: usize,
    refusals: usize,
}

impl Fault {
    /// When the migration goes on is part of it.
    fn lets_go_on(self) -> bool {
        matches!(self, Self::KillLeader | Self::Terminate | Self::FreezeLeader(_) | Self::FreezeDatabase(_))
    }

    pub(crate) async fn strike(self, world: &mut World<'_>, scene: &Scene) -> Result<Struck> {
        let mut struck = Struck::default();
        let of = |side: Side| if side == Side::Primary { &*scene.from } else { &*scene.to };
        match self {
            Self::KillLeader => {
                world.signal_leader(Signal::KILL)?;
                world.restart_leader()?;
            }
            Self::Terminate => {
                world.signal_leader(Signal::TERM)?;
                world.restart_leader()?;
            }
            Self::FreezeLeader(how_long) => {
                world.signal_leader(Signal::STOP)?;
                // It would go on now if it could.
                world.release()?;
                world.unheard |= how_long >= A_MINUTE;
                sleep(how_long).await;
                world.signal_leader(Signal::CONT)?;
            }
            Self::FreezeDatabase(side) => {
                let processes = freeze(world.zone(of(side)))?;
                world.release()?;
                sleep(TOO_LONG).await;
                signal_all(&processes, Signal::CONT)?;
            }
            Self::Clock(skew) => world.clock(skew).await?,
            Self::ClockBackAndCut => {
                world.clock(-3_600_000).await?;
                world.path_far().cut();
            }
            Self::Crash(side) => crash(world.zone(of(side)))?,
            Self::KillAgent => {
                let agent = world.agent.take().context("a node in the far zone")?;
                agent.signal(Signal::KILL)?;
                drop(agent);
                world.agent = crate::leader::agent(world.playground)?;
            }
            Self::Cut => {
                world.path_far().cut();
                world.path_far().reset_connections();
            }
            Self::BlackHole(way) => world.path_far().cut_one_way(way),
            Self::SlotLost => {
                drop_slot(world.zone(&scene.from), &slot::slot_name(RESOURCE, scene.generation)).await?;
            }
            Self::WayBackLost => {
                drop_slot(world.zone(&scene.to), &slot::slot_name(RESOURCE, scene.generation + 1)).await?;
            }
            Self::IdleInTransaction => {
                let sql = "BEGIN; UPDATE customers SET balance = balance WHERE id = 1";
                struck.session(world.zone(&scene.from), "forgotten-job", sql).await;
            }
            Self::EndlessRead => {
                let sql = "BEGIN; SELECT count(*) FROM customers";
                struck.session(world.zone(&scene.from), "endless-report", sql).await;
                for session in &struck.sessions {
                    // It is ended with its session.
                    let endless = session.simple_query("SELECT pg_sleep(600)");
                    drop(tokio::time::timeout(Duration::from_millis(50), endless).await);
                }
            }
            Self::Prepared => {
                let sql = "BEGIN; UPDATE customers SET balance = balance WHERE id = 2; PREPARE TRANSACTION 'in-doubt'";
                connect(world.zone(&scene.from)).await?.batch_execute(sql).await?;
            }
            Self::AddColumn | Self::AddTable => {
                let name = format!("added_{}", scene.id);
                let sql = match self {
                    Self::AddColumn => format!("ALTER TABLE payments ADD COLUMN {name} int"),
                    _ => format!("CREATE TABLE {name} (id int PRIMARY KEY)"),
                };
                connect(world.zone(&scene.from)).await?.batch_execute(&sql).await?;
                struck.keys.push(name);
            }
            Self::WriteRoundTheFence => {
                let name = format!("round the fence {}", scene.id);
                let sql = format!(
                    "SET session_replication_role = replica; UPDATE customers SET name = '{name}' WHERE id = 3"
                );
                connect(world.zone(&scene.from)).await?.batch_execute(&sql).await?;
                struck.keys.push(name);
                struck.alarms = alarms(world);
            }
            Self::ClientsLeave => {
                let mut sockets = Vec::new();
                let before = held(world).await?;
                for number in 0..10 {
                    let key = format!("gone-{}-{}-{number}", scene.generation, scene.phase);
                    sockets.push(send_order(world.playground.front, &key).await?);
                    struck.keys.push(key);
                }
                until("they are held", async || Ok(held(world).await? >= before + 10)).await?;
            }
            Self::SecondRequest => {
                // The controller answers when it goes on.
                let goes_on = async {
                    sleep(Duration::from_millis(50)).await;
                    world.release()
                };
                let (refused, released) = tokio::join!(world.leader.ask_to_migrate(&scene.to), goes_on);
                released?;
                let refused = refused.expect_err("one at a time");
                ensure!(refused.to_string().contains(&scene.id), "{refused:#}");
                struck.refused = true;
            }
            Self::Reload(setting) => {
                super::reload::broken(world).await?;
                match setting {
                    Setting::Limit => super::reload::of_a_limit(world).await?,
                    Setting::Capacity => {
                        struck.refused = super::reload::of_the_capacity(world, scene).await?;
                    }
                }
            }
            Self::DiskFull(disk) => {
                struck.refusals = refusals(world);
                super::disk::fill(world, &super::disk::directory(world, scene, disk)).await?;
            }
        }
        if !self.lets_go_on() {
            world.release()?;
        }
        Ok(struck)
    }

    /// For how long the leader can do nothing, where that is longer than anything may be held.
    pub(crate) fn asleep(self) -> Duration {
        match self {
            Self::FreezeLeader(how_long) => how_long,
            _ => Duration::ZERO,
        }
    }

    /// While the run goes on.
    pub(crate) async fn heal(self, world: &mut World<'_>, scene: &Scene, struck: &Struck) -> Result<()> {
        let of = |side: Side| if side == Side::Primary { &*scene.from } else { &*scene.to };
        match self {
            Self::Crash(side) => revive(world.zone(of(side))).await?,
            Self::Cut | Self::BlackHole(_) | Self::ClockBackAndCut => {
                // What was lost under way must not look like a connection that still works.
                sleep(TOO_LONG).await;
                world.path_far().restore();
                world.path_far().reset_connections();
            }
            Self::DiskFull(disk) => {
                sleep(TOO_LONG).await;
                if disk == Disk::Journal {
                    let before = struck.refusals;
                    let tried = async || Ok(refusals(world) > before);
                    until("the leader says that its disk is full", tried).await?;
                }
                super::disk::empty(&super::disk::directory(world, scene, disk))?;
                if let Disk::Database(side) = disk {
                    revive(world.zone(of(side))).await?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// After the run's end: what is left over goes, what must hold of it is looked at.
    pub(crate) async fn clean(self, world: &mut World<'_>, scene: &Scene, struck: Struck) -> Result<()> {
        let view = world.leader.view().await?;
        match self {
            Self::Clock(_) | Self::ClockBackAndCut => world.clock(0).await?,
            Self::Prepared => {
                let client = connect(world.zone(&scene.from)).await?;
                client.batch_execute("ROLLBACK PREPARED 'in-doubt'").await?;
            }
            Self::AddColumn | Self::AddTable => {
                let name = struck.keys.first().context("what was added")?;
                let sql = "SELECT count(*) FROM (SELECT attname FROM pg_attribute \
                     WHERE attrelid = 'payments'::regclass AND NOT attisdropped \
                     UNION SELECT relname FROM pg_class) n WHERE n.attname = $1";
                let found: i64 =
                    connect(world.zone(&view.primary)).await?.query_one(sql, &[name]).await?.get(0);
                ensure!(found == 1, "{name} is not on the primary any more");
                world.sync_schema().await?;
            }
            Self::WriteRoundTheFence => {
                let name = struck.keys.first().context("what was written")?;
                for zone in [&scene.from, &scene.to] {
                    let client = connect(world.zone(zone)).await?;
                    let sql = "SELECT name FROM customers WHERE id = 3";
                    let there = async || Ok(client.query_one(sql, &[]).await?.get::<_, String>(0) == *name);
                    until(&format!("{name} is in {zone}"), there).await?;
                }
                // Behind the fence's end marker it is an alarm.
                let behind = ["fenced", "committed", "swapped"].contains(&scene.phase);
                let alarms = alarms(world) - struck.alarms;
                ensure!(alarms == usize::from(behind), "{alarms} alarms\n{}", world.leader.node.tail(30));
            }
            Self::Reload(Setting::Capacity) => {
                // What stood still before the first effect of its end has let nothing else in.
                ensure!(struck.refused || scene.phase == "soaking", "taken while a migration ran");
                super::reload::again(world).await?;
            }
            Self::ClientsLeave => {
                let client = connect(world.zone(&view.primary)).await?;
                for key in &struck.keys {
                    let row = client.query_one("SELECT count(*) FROM orders WHERE key = $1", &[key]).await?;
                    ensure!(row.get::<_, i64>(0) == 0, "{key} was forwarded although its client had left");
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// How often the leader has said that a client goes round the fence.
fn alarms(world: &World<'_>) -> usize {
    said(world, "rows were written to the old primary after its fence")
}

/// How often the leader could not write its state.
fn refusals(world: &World<'_>) -> usize {
    said(world, "database or disk is full")
}

fn said(world: &World<'_>, what: &str) -> usize {
    world.leader.node.tail(usize::MAX).matches(what).count()
}

impl Struck {
    /// Where the fence is up the application is not let in: that is as it must be.
    async fn session(&mut self, zone: &Zone, name: &str, sql: &str) {
        let mut dsn: Dsn = zone.dsn(SERVICE_ROLE);
        dsn.application_name(name);
        let opened = async {
            let (client, connection) = dsn.connect(tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            client.batch_execute(sql).await?;
            Ok::<_, tokio_postgres::Error>(client)
        };
        match opened.await {
            Ok(client) => self.sessions.push(client),
            Err(_) => self.refused = true,
        }
    }
}

/// As the metrics say: the controller, whose view would tell, stands still.
async fn held(world: &World<'_>) -> Result<usize> {
    let metrics = crate::slots::metrics(world.playground).await?;
    let line = metrics.lines().find(|line| line.starts_with("godwit_held_requests{"));
    let number = line.and_then(|line| line.rsplit(' ').next()).context("the number of held requests")?;
    Ok(number.parse::<f64>()? as usize)
}

/// Every process of a cluster, the postmaster first.
pub(crate) fn processes(zone: &Zone) -> Result<Vec<i32>> {
    let postmaster = postmaster(zone)?;
    let mut all = vec![postmaster];
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // pid (comm) state ppid …
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
        if parent == Some(&*postmaster.to_string()) {
            all.push(pid);
        }
    }
    Ok(all)
}

/// Stops a server where it is, the one first that begins its sessions.
pub(crate) fn freeze(zone: &Zone) -> Result<Vec<i32>> {
    signal_all(&[postmaster(zone)?], Signal::STOP)?;
    let all = processes(zone)?;
    signal_all(&all, Signal::STOP)?;
    Ok(all)
}

fn postmaster(zone: &Zone) -> Result<i32> {
    let text = std::fs::read_to_string(zone.cluster.data.join("postmaster.pid"))?;
    Ok(text.lines().next().context("a pid")?.trim().parse()?)
}

pub(crate) fn signal_all(processes: &[i32], signal: Signal) -> Result<()> {
    for (at, pid) in processes.iter().enumerate() {
        let sent = kill_process(Pid::from_raw(*pid).context("a pid")?, signal);
        // A session may have ended meanwhile; the postmaster not.
        ensure!(sent.is_ok() || at > 0, "{sent:?}");
    }
    Ok(())
}

fn crash(zone: &Zone) -> Result<()> {
    signal_all(&[postmaster(zone)?], Signal::KILL)
}

/// Starts a database as often as it takes: the old one's processes may still hold its memory, the driver may be quicker.
pub(super) async fn revive(zone: &Zone) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Ok(client) = connect(zone).await
            && client.simple_query("SELECT 1").await.is_ok()
        {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < deadline, "{} does not come back", zone.name);
        let cluster = zone.cluster.clone();
        drop(tokio::task::spawn_blocking(move || cluster.start()).await?);
        sleep(Duration::from_millis(50)).await;
    }
}

/// A slot that is being read is let go first. A fence ends sessions, this one too: it connects again, and a slot that is
/// gone after a drop without an answer was dropped by it.
async fn drop_slot(zone: &Zone, name: &str) -> Result<()> {
    let mut dsn = zone.dsn(GODWIT_ROLE);
    dsn.dbname(DATABASE);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut asked = false;
    loop {
        let dropped = try_drop_slot(&dsn, name, &mut asked).await;
        match dropped {
            Ok(1) => return Ok(()),
            Ok(_) if asked => return Ok(()),
            Ok(_) => bail!("there is no slot {name}"),
            Err(error) => ensure!(tokio::time::Instant::now() < deadline, "{name} is not dropped: {error}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// How many were dropped; `asked` once it may have happened without an answer.
async fn try_drop_slot(dsn: &Dsn, name: &str, asked: &mut bool) -> Result<usize> {
    let client = replicator::postgres::connect(dsn, "vandal").await?;
    let sql =
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active";
    client.query(sql, &[&name]).await?;
    let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
    match client.query(sql, &[&name]).await {
        Ok(dropped) => Ok(dropped.len()),
        Err(error) => {
            *asked |= error.is_closed();
            Err(error.into())
        }
    }
}
