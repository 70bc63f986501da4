//! One PostgreSQL cluster on this machine: initdb, start, stop.
//!
//! PostgreSQL refuses to run as root, so every program is started as user `postgres` when the caller is root.
//! Never deletes a directory that it did not create.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::{PASSED_ON, SUPERUSER};
use crate::drivers::passed_on;

/// A cluster operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A program could not be started.
    #[error("cannot run {program}")]
    Spawn {
        /// Path of the program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program ran and failed.
    #[error("{program} failed ({status}): {output}")]
    Failed {
        /// Path of the program.
        program: PathBuf,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it printed, both streams.
        output: String,
    },
    /// A file of the cluster could not be written or read.
    #[error("cannot prepare {path}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The data directory holds something that this driver did not make.
    #[error("{data} was not made by this driver: it is left alone")]
    NotOurs {
        /// The data directory.
        data: PathBuf,
    },
    /// A cluster was made, and its data directory is not there, or empty.
    #[error(
        "the cluster that was made in {data} is not there any more: mount its data again, or deprovision the placement"
    )]
    Gone {
        /// The data directory.
        data: PathBuf,
    },
    /// Running as root, and there is no user `postgres` to drop to.
    #[error("PostgreSQL does not run as root and there is no user \"postgres\" to run it as")]
    NoUser,
}

/// Where PostgreSQL's programs are, and the cluster they work on.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Directory with `initdb`, `pg_ctl`, `postgres`.
    pub bin: PathBuf,
    /// Data directory.
    pub data: PathBuf,
    /// Address to listen on.
    pub host: String,
    /// TCP port on it.
    pub port: u16,
}

/// The user that database programs run as when the caller is root.
#[derive(Clone, Copy, Debug)]
pub struct DropTo {
    uid: u32,
    gid: u32,
}

impl DropTo {
    /// `None` when the caller is not root and needs no drop.
    pub fn find() -> Result<Option<Self>, ClusterError> {
        let root = rustix::process::geteuid().is_root();
        if !root {
            return Ok(None);
        }
        let passwd = Path::new("/etc/passwd");
        let text = std::fs::read_to_string(passwd)
            .map_err(|source| ClusterError::File { path: passwd.to_owned(), source })?;
        let user = text.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some("postgres")).then_some(())?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(Self { uid, gid })
        });
        user.map(Some).ok_or(ClusterError::NoUser)
    }

    /// Gives `path` to this user.
    pub fn own(self, path: &Path) -> Result<(), ClusterError> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
            .map_err(|source| ClusterError::File { path: path.to_owned(), source })
    }

    /// Makes `command` run as this user.
    pub fn apply(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }
}

/// Directory with the programs of this PostgreSQL major version, if it is on the machine: Debian's place, or
/// `postgres-<major>/bin` in the cache folder, where `make setup` unpacks one.
///
/// The cache folder is `$GODWIT_CACHE`, else `/var/cache/godwit` for root (the database user must be able to read it),
/// else `~/.cache/godwit`.
pub fn installed(major: u32) -> Option<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let cached = cache().map(|cache| cache.join(format!("postgres-{major}/bin")));
    [Some(debian), cached].into_iter().flatten().find(|bin| bin.join("initdb").exists())
}

/// The cache folder, where `make setup` puts what the system does not have.
pub fn cache() -> Option<PathBuf> {
    if let Some(cache) = std::env::var_os("GODWIT_CACHE") {
        return Some(cache.into());
    }
    if rustix::process::geteuid().is_root() {
        return Some("/var/cache/godwit".into());
    }
    Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/godwit"))
}

/// Settings that every cluster of the `process` driver gets; later lines win.
const SETTINGS: &str = "
wal_level = logical
max_wal_senders = 20
max_replication_slots = 20
max_connections = 200
unix_socket_directories = ''
logging_collector = off
log_min_messages = warning
shared_buffers = 64MB
";

impl Cluster {
    /// True once `initdb` has finished in the data directory.
    pub fn exists(&self) -> bool {
        self.data.join("godwit.ready").exists()
    }

    /// Refuses where one that was made is gone: an empty one would take its place.
    pub fn check_there(&self) -> Result<(), ClusterError> {
        if self.exists() { Ok(()) } else { Err(ClusterError::Gone { data: self.data.clone() }) }
    }

    /// Creates the cluster (superuser `postgres` with a password, trust on loopback) with `extra` settings lines.
    ///
    /// Idempotent: an initialised cluster is left as it is.
    pub fn init(&self, extra: &str) -> Result<(), ClusterError> {
        if self.exists() {
            // Left by a call that was killed between its last two steps.
            let _ = std::fs::remove_file(self.half_made());
            return Ok(());
        }
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| ClusterError::File { path, source }
        };
        self.check_ours()?;
        let half_made = self.half_made();
        if half_made.exists() && self.data.exists() {
            // Of an earlier, killed call: initdb refuses a directory that is not empty.
            std::fs::remove_dir_all(&self.data).map_err(file(&self.data))?;
        }
        if let Some(parent) = half_made.parent() {
            std::fs::create_dir_all(parent).map_err(file(parent))?;
        }
        let password = crate::rng::secret();
        private(&half_made, &format!("{password}\n"))?;
        std::fs::create_dir_all(&self.data).map_err(file(&self.data))?;
        if let Some(user) = DropTo::find()? {
            user.own(&self.data)?;
        }
        let (data, password_file) = (self.data.display().to_string(), half_made.display().to_string());
        let who = ["-D", &data, "-U", SUPERUSER, "--pwfile", &password_file, "-A", "trust"];
        let how = ["--no-sync", "-E", "UTF8", "--locale", "C.UTF-8"];
        self.program("initdb", &[&who[..], &how[..]].concat())?;
        self.keep_superuser_password(&password)?;
        let conf = self.data.join("postgresql.conf");
        let mut text = std::fs::read_to_string(&conf).map_err(file(&conf))?;
        text.push_str(SETTINGS);
        text.push_str(extra);
        std::fs::write(&conf, text).map_err(file(&conf))?;
        let ready = self.data.join("godwit.ready");
        std::fs::write(&ready, "initdb finished\n").map_err(file(&ready))?;
        std::fs::remove_file(&half_made).map_err(file(&half_made))
    }

    /// Refuses a data directory with content that [`Self::init`] did not make.
    pub fn check_ours(&self) -> Result<(), ClusterError> {
        if self.exists() || self.half_made().exists() {
            return Ok(());
        }
        let empty = match std::fs::read_dir(&self.data) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
            Err(source) => return Err(ClusterError::File { path: self.data.clone(), source }),
        };
        if empty { Ok(()) } else { Err(ClusterError::NotOurs { data: self.data.clone() }) }
    }

    /// A file beside the data directory that is there while `initdb` runs, which reads the superuser's password from it.
    fn half_made(&self) -> PathBuf {
        let mut name = self.data.clone().into_os_string();
        name.push(".half-made");
        name.into()
    }

    /// Starts the server and returns when it accepts connections. Idempotent.
    pub fn start(&self) -> Result<(), ClusterError> {
        if self.running()? {
            return Ok(());
        }
        let data = self.data.display().to_string();
        let log = self.data.join("server.log").display().to_string();
        let options = format!("-c listen_addresses={} -c port={}", self.host, self.port);
        self.program("pg_ctl", &["-D", &data, "-l", &log, "-w", "-t", "60", "-o", &options, "start"])
            .map(drop)
    }

    /// Stops the server; `mode` is pg_ctl's `smart`, `fast` or `immediate`. Idempotent.
    pub fn stop(&self, mode: &str) -> Result<(), ClusterError> {
        if !self.running()? {
            return Ok(());
        }
        let data = self.data.display().to_string();
        self.program("pg_ctl", &["-D", &data, "-w", "-t", "60", "-m", mode, "stop"]).map(drop).or_else(
            |error| {
                // It may have died by itself meanwhile, without tidying up.
                if self.running()? { Err(error) } else { Ok(()) }
            },
        )
    }

    /// Makes the server read its files again.
    pub(super) fn reload(&self) -> Result<(), ClusterError> {
        let data = self.data.display().to_string();
        self.program("pg_ctl", &["-D", &data, "reload"]).map(drop)
    }

    /// Whether a server runs on the data directory.
    pub fn running(&self) -> Result<bool, ClusterError> {
        if !self.exists() {
            return Ok(false);
        }
        let data = self.data.display().to_string();
        Ok(self.output("pg_ctl", &["-D", &data, "status"])?.status.success())
    }

    fn program(&self, name: &str, arguments: &[&str]) -> Result<Output, ClusterError> {
        let output = self.output(name, arguments)?;
        if output.status.success() {
            return Ok(output);
        }
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        if let Ok(log) = std::fs::read_to_string(self.data.join("server.log")) {
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            text.push_str(&tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        Err(ClusterError::Failed { program: self.bin.join(name), status: output.status, output: text })
    }

    fn output(&self, name: &str, arguments: &[&str]) -> Result<Output, ClusterError> {
        let program = self.bin.join(name);
        let mut command = Command::new(&program);
        // Files, not pipes: pg_ctl's server would inherit a pipe and keep it open for ever.
        let capture = tempfile::tempfile()
            .map_err(|source| ClusterError::Spawn { program: program.clone(), source })?;
        let clone = |f: &File| {
            f.try_clone().map_err(|source| ClusterError::Spawn { program: program.clone(), source })
        };
        command
            .args(arguments)
            // What is secret to us is no business of whoever may run code in there.
            .env_clear()
            .envs(passed_on(&PASSED_ON))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(clone(&capture)?)
            .stderr(clone(&capture)?)
            // Its own group: a Ctrl-C on the terminal must not stop the database.
            .process_group(0);
        if let Some(user) = DropTo::find()? {
            user.apply(&mut command);
        }
        let status =
            command.status().map_err(|source| ClusterError::Spawn { program: program.clone(), source })?;
        let text = read_from_start(capture).map_err(|source| ClusterError::Spawn { program, source })?;
        Ok(Output { status, stdout: text, stderr: Vec::new() })
    }
}

/// Writes a file that only the user of the database can read, in one step.
pub(super) fn private(path: &Path, text: &str) -> Result<(), ClusterError> {
    let user = DropTo::find()?;
    let mut new = path.to_owned().into_os_string();
    new.push(".new");
    let write = || {
        // Whatever a killed call left.
        let _ = std::fs::remove_file(&new);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        if let Some(user) = user {
            std::os::unix::fs::fchown(&file, Some(user.uid), Some(user.gid))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(|source| ClusterError::File { path: path.to_owned(), source })
}

fn read_from_start(mut file: File) -> std::io::Result<Vec<u8>> {
    use std::io::{Read, Seek};
    file.rewind()?;
    let mut text = Vec::with_capacity(file.metadata()?.len() as usize);
    file.read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_server_does_not_get_the_environment() {
        let home = tempfile::tempdir().unwrap();
        let all_may_read = std::fs::Permissions::from_mode(0o755);
        let program = home.path().join("pg_ctl");
        std::fs::write(&program, "#!/bin/sh\nenv\n").unwrap();
        for path in [home.path(), &program] {
            std::fs::set_permissions(path, all_may_read.clone()).unwrap();
        }
        let data = home.path().join("data");
        let cluster = Cluster { bin: home.path().to_owned(), data, host: "127.0.0.1".into(), port: 1 };
        let output = cluster.output("pg_ctl", &[]).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("PATH="), "{text}");
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some() && !text.contains("CARGO_"), "{text}");
    }
}
