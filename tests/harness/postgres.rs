//! Throw-away PostgreSQL clusters; stopped and removed when dropped.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
pub use godwit::demo::zone::{GODWIT_ROLE, OWNER_ROLE, SUPERUSER};
use godwit::drivers::process::cluster::{Cluster, DropTo};
use replicator::Lsn;
use replicator::grants::{Needs, grants};
use replicator::postgres::Dsn;
use tokio_postgres::Client;

pub use crate::programs::bin_directory;

/// A running cluster in a temporary directory.
pub struct TestCluster {
    /// The cluster.
    pub cluster: Cluster,
    directory: PathBuf,
}

/// A port that nobody uses, claimed for the life of this process.
pub fn free_port() -> Result<u16> {
    godwit::demo::zone::free_ports(1)?.pop().context("no free port")
}

/// Copies a directory with everything in it, as it is.
pub fn copy_files(from: &Path, to: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.arg("-a").args([from, to]);
    anyhow::ensure!(copy.status()?.success(), "{copy:?} failed");
    Ok(())
}

/// The newest major on this machine other than 15, or 15: the other side of a migration.
pub fn other_major() -> u32 {
    [18, 17, 16].into_iter().find(|major| bin_directory(*major).is_some()).unwrap_or(15)
}

impl TestCluster {
    /// Creates and starts a cluster of this major version.
    pub fn start(major: u32) -> Result<Self> {
        Self::start_with(major, "")
    }

    /// The same with extra lines for postgresql.conf. What is committed outlives the server's processes, not the machine.
    pub fn start_with(major: u32, settings: &str) -> Result<Self> {
        let Some(bin) = bin_directory(major) else {
            bail!("PostgreSQL {major} is not on this machine: run make setup")
        };
        let directory = tempfile::Builder::new().prefix("godwit-test-").tempdir()?.keep();
        // The database user must be able to walk into it.
        std::fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let cluster =
            Cluster { bin, data: directory.join("data"), host: "127.0.0.1".into(), port: free_port()? };
        let this = Self { cluster, directory };
        this.cluster.init(&format!("fsync = off\n{settings}"))?;
        this.cluster.start()?;
        Ok(this)
    }

    /// A restored copy of this cluster, promoted: the same data and system identifier, a new timeline, none of the slots.
    pub fn restored(&self) -> Result<Self> {
        let this = self.sibling()?;
        let data = this.cluster.data.display().to_string();
        let (host, port) = (self.cluster.host.as_str(), self.cluster.port.to_string());
        let from = ["-h", host, "-p", &port, "-U", SUPERUSER];
        run(
            &self.cluster,
            "pg_basebackup",
            &[&from[..], &["-D", &data, "-X", "stream", "-c", "fast"]].concat(),
        )?;
        std::fs::write(this.cluster.data.join("standby.signal"), "")?;
        this.cluster.start()?;
        run(&self.cluster, "pg_ctl", &["-D", &data, "-w", "promote"])?;
        Ok(this)
    }

    /// A copy of this cluster's files, slots included, as a snapshot of the disk would be. This one must be stopped.
    pub fn snapshot(&self) -> Result<Self> {
        let this = self.sibling()?;
        copy_files(&self.cluster.data, &this.cluster.data)?;
        Ok(this)
    }

    fn sibling(&self) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("godwit-test-").tempdir()?.keep();
        std::fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        if let Some(user) = DropTo::find()? {
            user.own(&directory)?;
        }
        let (bin, host) = (self.cluster.bin.clone(), self.cluster.host.clone());
        let cluster = Cluster { bin, data: directory.join("data"), host, port: free_port()? };
        Ok(Self { cluster, directory })
    }

    /// Its major version, as its files say.
    pub fn major(&self) -> Option<u32> {
        std::fs::read_to_string(self.cluster.data.join("PG_VERSION")).ok()?.trim().parse().ok()
    }

    /// Where the cluster lives.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Connection parameters for a database, as Godwit's role.
    pub fn config(&self, database: &str) -> Dsn {
        self.config_as(GODWIT_ROLE, database)
    }

    /// Connection parameters for a database as some role (trust authentication).
    pub fn config_as(&self, user: &str, database: &str) -> Dsn {
        let mut config = Dsn::default();
        config.host(&self.cluster.host).port(self.cluster.port).user(user).dbname(database);
        config
    }

    /// Connects as superuser `postgres`: what an administrator does, never Godwit.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        self.connect_as(SUPERUSER, database).await
    }

    /// Connects as some role.
    pub async fn connect_as(&self, role: &str, database: &str) -> Result<Client> {
        let (client, connection) = self.config_as(role, database).connect(tokio_postgres::NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "test connection ended");
            }
        });
        Ok(client)
    }

    /// Creates a database of [`OWNER_ROLE`], gives Godwit's role what [`replicator::grants`] says and no more, runs `sql` in it
    /// as the owner, and connects as Godwit's role.
    pub async fn create_database(&self, name: &str, sql: &str) -> Result<Client> {
        let administrator = self.connect(SUPERUSER).await?;
        administrator.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        self.govern(name, &[]).await?;
        let client = self.connect_as(GODWIT_ROLE, name).await?;
        client.batch_execute(&format!("SET ROLE {OWNER_ROLE}")).await?;
        client.batch_execute(sql).await?;
        client.batch_execute("RESET ROLE").await?;
        Ok(client)
    }

    /// Gives Godwit's role what it needs in a database.
    pub async fn govern(&self, name: &str, app_roles: &[&str]) -> Result<()> {
        self.govern_with(name, app_roles, false).await
    }

    /// The same, and what filling caches needs.
    pub async fn govern_with(&self, name: &str, app_roles: &[&str], caches: bool) -> Result<()> {
        let administrator = self.connect(name).await?;
        let needs = Needs {
            role: GODWIT_ROLE.into(),
            database: name.into(),
            owner: OWNER_ROLE.into(),
            app_roles: app_roles.iter().map(|&role| role.to_owned()).collect(),
            synchronous: true,
            row_security: false,
            caches,
            verifiers: false,
            extensions: false,
        };
        for grant in grants(&needs) {
            administrator.batch_execute(&grant.sql).await.with_context(|| grant.sql.clone())?;
        }
        Ok(())
    }

    /// Creates a database of the superuser's, runs `sql` in it and stays connected as the superuser.
    pub async fn create_database_of_superuser(&self, name: &str, sql: &str) -> Result<Client> {
        self.connect(SUPERUSER).await?.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        let client = self.connect(name).await?;
        client.batch_execute(sql).await?;
        Ok(client)
    }
}

/// Runs one of PostgreSQL's programs as the user of the database.
pub fn run(cluster: &Cluster, program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(cluster.bin.join(program));
    command.args(arguments).current_dir("/");
    if let Some(user) = DropTo::find()? {
        user.apply(&mut command);
    }
    let output = command.output()?;
    anyhow::ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        if let Err(error) = self.cluster.stop("immediate") {
            eprintln!("test cluster in {} was not stopped: {error}", self.directory.display());
        }
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            eprintln!("test directory {} was not removed: {error}", self.directory.display());
        }
    }
}

/// Where the server's WAL is durable: everything committed so far lies before it. (Up to the position of insertion there may be what no
/// commit stands behind, which may wait to be written for long.)
pub async fn wal_position(client: &Client) -> Result<Lsn> {
    let text: String = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await?.get(0);
    Ok(text.parse()?)
}
