//! Disks that are full: small file systems in memory under the leader's state and the databases' files.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use godwit::demo::zone::{LEADER, Playground, Zone};
use godwit::drivers::process::cluster::{Cluster, DropTo};

use rustix::process::Signal;

use super::fault::{Disk, Side};
use super::world::{Scene, World};
use crate::leader::connect;

/// What takes the space.
const FILLER: &str = "filler";

/// A log of this size is soon written from its start (1,000 pages).
const LONG: u64 = 2 << 20;

/// Mounted file systems; unmounted when dropped, before the playground removes its directory.
pub(crate) struct Mounts {
    paths: Vec<PathBuf>,
    clusters: Vec<Cluster>,
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for cluster in &self.clusters {
            if let Err(error) = cluster.stop("immediate") {
                eprintln!("the database in {} was not stopped: {error}", cluster.data.display());
            }
        }
        for path in &self.paths {
            // At once for whoever looks, in fact when the last process has let go.
            if !Command::new("umount").arg("-l").arg(path).status().is_ok_and(|status| status.success()) {
                eprintln!("{} was not unmounted", path.display());
            }
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Mounts {
    /// Puts the leader's state and both databases, which stand still meanwhile, on file systems of their own. Needs root.
    pub(crate) fn under(playground: &Playground) -> Result<Self> {
        let mut mounts = Self { paths: Vec::new(), clusters: Vec::new() };
        let state = playground.directory.join("state").join(LEADER);
        std::fs::create_dir_all(&state)?;
        mounts.mount(&state, 16)?;
        for zone in &playground.zones {
            mounts.move_database(zone)?;
        }
        Ok(mounts)
    }

    fn mount(&mut self, path: &Path, mebibytes: u32) -> Result<()> {
        let size = format!("size={mebibytes}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path))?;
        self.paths.push(path.to_owned());
        Ok(())
    }

    fn move_database(&mut self, zone: &Zone) -> Result<()> {
        let data = &zone.cluster.data;
        let aside = data.with_extension("aside");
        zone.cluster.stop("fast")?;
        std::fs::rename(data, &aside)?;
        std::fs::create_dir(data)?;
        self.mount(data, 400)?;
        self.clusters.push(zone.cluster.clone());
        run(Command::new("cp").arg("-a").arg(aside.join(".")).arg(data))?;
        if let Some(user) = DropTo::find()? {
            user.own(data)?;
        }
        std::fs::set_permissions(data, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        zone.cluster.start()?;
        Ok(())
    }
}

pub(super) fn directory(world: &World<'_>, scene: &Scene, disk: Disk) -> PathBuf {
    match disk {
        Disk::Journal => journal(world),
        Disk::Database(side) => {
            let name = if side == Side::Primary { &scene.from } else { &scene.to };
            world.zone(name).cluster.data.clone()
        }
    }
}

/// SQLite writes a long log again from its start, which needs no room: a process that ends leaves none.
pub(super) async fn short_journal(world: &mut World<'_>) -> Result<()> {
    let log = journal(world).join("godwit.db-wal");
    if log.metadata().is_ok_and(|log| log.len() > LONG) {
        world.signal_leader(Signal::TERM)?;
        world.restart_leader()?;
        world.leader.ready().await?;
        world.failures()?;
    }
    Ok(())
}

fn journal(world: &World<'_>) -> PathBuf {
    world.playground.directory.join("state").join(LEADER)
}

/// Not a byte is left. Of a database also the segments of the log that lie ready are written full.
pub(super) async fn fill(world: &World<'_>, directory: &Path) -> Result<()> {
    // A session that begins on a full disk may fail for a file of its own.
    let zone = world.playground.zones.iter().find(|zone| zone.cluster.data == directory);
    let client = match zone {
        Some(zone) => Some(connect(zone).await.context("a database that is about to be full")?),
        None => None,
    };
    let mut file = std::fs::File::create(directory.join(FILLER))?;
    for size in [1 << 20, 4096] {
        while file.write_all(&vec![b'x'; size]).is_ok() {}
    }
    if let Some(client) = client {
        let sql = "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1 << 22))";
        for _ in 0..100 {
            if client.simple_query(sql).await.is_err() {
                return Ok(());
            }
        }
        anyhow::bail!("the database in {} is not full", directory.display());
    }
    Ok(())
}

pub(super) fn empty(directory: &Path) -> Result<()> {
    Ok(std::fs::remove_file(directory.join(FILLER))?)
}
