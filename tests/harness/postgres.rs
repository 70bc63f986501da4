//! Throw-away PostgreSQL clusters; stopped and removed when dropped.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use godwit::drivers::process::cluster::Cluster;
pub use godwit::drivers::process::cluster::installed as bin_directory;
use replicator::postgres::Dsn;

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

/// The newest major on this machine other than 15, or 15: the other side of a migration.
pub fn other_major() -> u32 {
    [18, 17, 16].into_iter().find(|major| bin_directory(*major).is_some()).unwrap_or(15)
}

impl TestCluster {
    /// Creates and starts a cluster of this major version.
    pub fn start(major: u32) -> Result<Self> {
        Self::start_with(major, "fsync = off\n")
    }

    /// The same with extra lines for postgresql.conf.
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
        this.cluster.init(settings)?;
        this.cluster.start()?;
        Ok(this)
    }

    /// Where the cluster lives.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Connection parameters for a database, as superuser `postgres`.
    pub fn config(&self, database: &str) -> Dsn {
        self.config_as("postgres", database)
    }

    /// Connection parameters for a database as some role (trust authentication).
    pub fn config_as(&self, user: &str, database: &str) -> Dsn {
        let mut config = Dsn::default();
        config.host(&self.cluster.host).port(self.cluster.port).user(user).dbname(database);
        config
    }

    /// Connects as superuser `postgres`.
    pub async fn connect(&self, database: &str) -> Result<tokio_postgres::Client> {
        let (client, connection) = self.config(database).connect(tokio_postgres::NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "test connection ended");
            }
        });
        Ok(client)
    }

    /// Creates a database and runs `sql` in it.
    pub async fn create_database(&self, name: &str, sql: &str) -> Result<tokio_postgres::Client> {
        self.connect("postgres").await?.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        let client = self.connect(name).await?;
        client.batch_execute(sql).await?;
        Ok(client)
    }
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
