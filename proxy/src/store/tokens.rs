//! Tokens of the API: what is kept of each is its hash.
//!
//! A token is `gdw_<id>_<secret>`; the secret has 256 random bits, so that its plain SHA-256 gives nothing away and needs no salt.
//! A file of its own beside the journal, so that `godwit token` works on it while a node runs, and before one ever ran.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use migration::units::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::StoreError;
use crate::admin::access::{Caller, Role, Scope, Via};
use crate::lock::lock;

/// Longest name of a token, characters.
const NAME: usize = 100;
/// Longest life of a token, seconds: ten years.
const LIFE_S: u64 = 10 * 366 * 86_400;
/// What every token begins with, so that scanners for leaked secrets find them.
const PREFIX: &str = "gdw_";

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS token (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  role TEXT NOT NULL,
  resources TEXT,
  created_ms INTEGER NOT NULL,
  created_by TEXT NOT NULL,
  expires_ms INTEGER,
  revoked_ms INTEGER,
  revoked_by TEXT,
  hash BLOB NOT NULL
) STRICT;
";

/// What is known of a token; never the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenView {
    /// Names it in lists, in the audit and when it is revoked.
    pub id: String,
    /// Who or what it is for.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// To which resources; none: to all.
    pub resources: Option<BTreeSet<String>>,
    /// When it was made.
    pub created_ms: u64,
    /// By whom.
    pub created_by: String,
    /// When it ends; none: never.
    pub expires_ms: Option<u64>,
    /// When it was revoked.
    pub revoked_ms: Option<u64>,
    /// By whom.
    pub revoked_by: Option<String>,
}

/// What a new token is to be.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Who or what it is for.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// To which resources; none: to all.
    #[serde(default)]
    pub resources: Option<BTreeSet<String>>,
    /// How long it lives, seconds; none: until it is revoked.
    #[serde(default)]
    pub expires_s: Option<u64>,
}

impl NewToken {
    /// Whether it can be told apart in lists and in the audit, and ends some time.
    ///
    /// # Errors
    /// In words why not.
    pub fn check(&self) -> Result<(), String> {
        let name = &self.name;
        if name.trim().is_empty() || name.chars().count() > NAME || name.chars().any(char::is_control) {
            return Err(format!("name must have 1 to {NAME} printable characters"));
        }
        if self.expires_s.is_some_and(|seconds| seconds == 0 || seconds > LIFE_S) {
            return Err(format!("expires_s must be 1 to {LIFE_S}"));
        }
        Ok(())
    }
}

/// A new token with its secret: the only time that it is seen.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Issued {
    /// The token itself.
    pub token: String,
    /// What is kept of it.
    #[serde(flatten)]
    pub view: TokenView,
}

/// Why a token does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Not one of ours.
    #[error("the token is not known here")]
    Unknown,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It was taken back.
    #[error("the token was revoked")]
    Revoked,
}

impl TokenView {
    /// Whether it counts at `now`.
    pub fn check(&self, now: Timestamp) -> Result<(), Rejected> {
        match (self.revoked_ms, self.expires_ms) {
            (Some(_), _) => Err(Rejected::Revoked),
            (None, Some(end)) if now.0 >= end => Err(Rejected::Expired),
            _ => Ok(()),
        }
    }

    /// Who shows it.
    pub fn caller(&self, via: Via) -> Caller {
        Caller {
            name: self.name.clone(),
            person: self.name.clone(),
            id: Some(self.id.clone()),
            role: self.role,
            scope: self.resources.clone().map_or(Scope::All, Scope::Resources),
            via,
        }
    }
}

/// The open store of tokens.
pub struct Tokens {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Tokens {
    /// Opens or creates `tokens.db` in `directory`, to make and take back tokens. What root creates there belongs to the directory's owner.
    ///
    /// # Errors
    /// It cannot be read, or not written.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let tokens = Self::open_to_read(directory)?;
        tokens.writable()?;
        Ok(tokens)
    }

    /// The same for a node: the tokens in a file that it cannot write ([`Self::writable`]) count.
    ///
    /// # Errors
    /// It cannot be read, or is not there and cannot be made.
    pub fn open_to_read(directory: &Path) -> Result<Self, StoreError> {
        Self::open_with(directory, OpenFlags::default())
    }

    fn open_with(directory: &Path, flags: OpenFlags) -> Result<Self, StoreError> {
        let of_directory = |source| StoreError::Directory { path: directory.to_owned(), source };
        std::fs::create_dir_all(directory).map_err(of_directory)?;
        let path = directory.join("tokens.db");
        create(directory, &path).map_err(of_directory)?;
        let of_database = |source| StoreError::Database { path: path.clone(), source };
        let connection = Connection::open_with_flags(&path, flags).map_err(of_database)?;
        let prepare = || -> rusqlite::Result<bool> {
            connection.busy_timeout(Duration::from_secs(5))?;
            if connection.is_readonly("main")? {
                return connection.table_exists(None, "token");
            }
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.execute_batch(SCHEMA)?;
            Ok(true)
        };
        if !prepare().map_err(of_database)? {
            return Err(read_only(path));
        }
        Ok(Self { path, connection: Mutex::new(connection) })
    }

    /// Whether tokens can be made and taken back.
    ///
    /// # Errors
    /// The file could not be written when it was opened; what to do about that.
    pub fn writable(&self) -> Result<(), StoreError> {
        if self.with(|connection| connection.is_readonly("main"))? {
            return Err(read_only(self.path.clone()));
        }
        Ok(())
    }

    fn with<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let connection = lock(&self.connection);
        work(&connection).map_err(|source| StoreError::Database { path: self.path.clone(), source })
    }

    /// Makes a token.
    pub fn create(&self, new: NewToken, by: &str, now: Timestamp) -> Result<Issued, StoreError> {
        self.writable()?;
        let id = crate::rng::id();
        let token = format!("{PREFIX}{id}_{}", crate::rng::secret());
        let view = TokenView {
            id,
            name: new.name,
            role: new.role,
            resources: new.resources,
            created_ms: now.0,
            created_by: by.to_owned(),
            expires_ms: new.expires_s.map(|seconds| now.0.saturating_add(seconds.saturating_mul(1000))),
            revoked_ms: None,
            revoked_by: None,
        };
        let resources = view.resources.as_ref().map(serde_json::to_string).transpose();
        let resources = resources.map_err(StoreError::Encode)?;
        self.with(|connection| {
            connection.execute(
                "INSERT INTO token (id, name, role, resources, created_ms, created_by, expires_ms, hash)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                params![
                    view.id,
                    view.name,
                    view.role.name(),
                    resources,
                    view.created_ms,
                    view.created_by,
                    view.expires_ms,
                    hash(&token)
                ],
            )
        })?;
        Ok(Issued { token, view })
    }

    /// Every token, the newest first.
    pub fn list(&self) -> Result<Vec<TokenView>, StoreError> {
        self.with(|connection| {
            let mut statement = connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM token ORDER BY created_ms DESC, id"))?;
            statement.query_map([], view)?.collect()
        })
    }

    /// The token of this id.
    pub fn find(&self, id: &str) -> Result<Option<TokenView>, StoreError> {
        self.with(|connection| {
            let sql = format!("SELECT {COLUMNS} FROM token WHERE id = ?");
            connection.prepare_cached(&sql)?.query_row([id], view).optional()
        })
    }

    /// Takes a token back; false: there is none of this id, or it was revoked before.
    pub fn revoke(&self, id: &str, by: &str, now: Timestamp) -> Result<bool, StoreError> {
        let sql = "UPDATE token SET revoked_ms = ?2, revoked_by = ?3 WHERE id = ?1 AND revoked_ms IS NULL";
        self.writable()?;
        Ok(self.with(|connection| connection.execute(sql, params![id, now.0, by]))? > 0)
    }

    /// What is known of a token that somebody shows.
    pub fn authenticate(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<Result<TokenView, Rejected>, StoreError> {
        let id = token.strip_prefix(PREFIX).and_then(|rest| Some(rest.split_once('_')?.0));
        let Some(id) = id else { return Ok(Err(Rejected::Unknown)) };
        let found = self.with(|connection| {
            let sql = format!("SELECT {COLUMNS}, hash FROM token WHERE id = ?");
            connection
                .prepare_cached(&sql)?
                .query_row([id], |row| Ok((view(row)?, row.get::<_, Vec<u8>>(9)?)))
                .optional()
        })?;
        let Some((view, kept)) = found else { return Ok(Err(Rejected::Unknown)) };
        if !bool::from(kept.ct_eq(&hash(token))) {
            return Ok(Err(Rejected::Unknown));
        }
        Ok(view.check(now).map(|()| view))
    }
}

/// Makes an empty file, which SQLite takes for a database without tables, unless there is one. Nodes do not run as root: theirs are the
/// directory and what is in it. SQLite gives the files that it makes beside this one the same owner.
fn create(directory: &Path, path: &Path) -> io::Result<()> {
    let file = match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => file,
        Err(_) if path.exists() => return Ok(()),
        Err(error) => return Err(error),
    };
    let of = std::fs::metadata(directory)?;
    if rustix::process::geteuid().is_root() && of.uid() != 0 {
        fchown(&file, Some(of.uid()), Some(of.gid())).inspect_err(|_| drop(std::fs::remove_file(path)))?;
    }
    Ok(())
}

fn read_only(path: PathBuf) -> StoreError {
    let user = rustix::process::geteuid().as_raw();
    match std::fs::metadata(&path) {
        Ok(file) => {
            let advice = advice(&path, file.uid() == user, file.mode() & 0o200 != 0);
            StoreError::ReadOnly { path, owner: file.uid(), user, advice }
        }
        Err(source) => StoreError::Directory { path, source },
    }
}

/// What to do about a file that was opened and cannot be written, by whether it is this user's and its owner may write it.
fn advice(path: &Path, own: bool, writable: bool) -> String {
    let (directory, path) = (path.parent().unwrap_or(path).display(), path.display());
    match (own, writable) {
        (false, _) => format!(
            "`chown --reference={directory} {path}*` as root gives it to the owner of its directory; a node is to be started again then"
        ),
        (true, false) => {
            format!("`chmod u+w {path}*` lets it be written; a node is to be started again then")
        }
        (true, true) => "its file system is read-only, or was when the file was opened, or the file was another one's then: \
                         a node is to be started again once it can be written"
            .to_owned(),
    }
}

const COLUMNS: &str = "id, name, role, resources, created_ms, created_by, expires_ms, revoked_ms, revoked_by";

fn view(row: &Row<'_>) -> rusqlite::Result<TokenView> {
    let role: String = row.get(2)?;
    let resources: Option<String> = row.get(3)?;
    Ok(TokenView {
        id: row.get(0)?,
        name: row.get(1)?,
        // What cannot be read gives the least.
        role: Role::from_name(&role).unwrap_or(Role::Viewer),
        resources: resources.map(|names| serde_json::from_str(&names).unwrap_or_default()),
        created_ms: row.get(4)?,
        created_by: row.get(5)?,
        expires_ms: row.get(6)?,
        revoked_ms: row.get(7)?,
        revoked_by: row.get(8)?,
    })
}

fn hash(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str, expires_s: Option<u64>) -> NewToken {
        NewToken {
            name: name.to_owned(),
            role: Role::Operator,
            resources: Some(BTreeSet::from(["orders".to_owned()])),
            expires_s,
        }
    }

    #[test]
    fn a_token_counts_until_it_expires_or_is_revoked() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let tokens = Tokens::open(directory.path()).expect("open");
        let issued = tokens.create(new("ci", Some(60)), "ann", Timestamp(1000)).expect("create");
        let ask = |token: &str, at| tokens.authenticate(token, Timestamp(at)).expect("read");
        let view = ask(&issued.token, 2000).expect("it counts");
        assert_eq!(view, issued.view);
        let caller = view.caller(Via::Token);
        assert!(caller.knows("orders") && !caller.knows("billing"));
        assert_eq!(ask(&issued.token, 61_000), Err(Rejected::Expired));

        let lasting = tokens.create(new("ops", None), "ann", Timestamp(1000)).expect("create");
        assert!(ask(&lasting.token, u64::MAX >> 1).is_ok());
        assert!(tokens.revoke(&lasting.view.id, "bob", Timestamp(5)).expect("revoke"));
        assert!(!tokens.revoke(&lasting.view.id, "bob", Timestamp(6)).expect("revoke"));
        assert_eq!(ask(&lasting.token, 10), Err(Rejected::Revoked));
        assert_eq!(tokens.list().expect("list").len(), 2);
    }

    #[test]
    fn nothing_else_counts_and_no_secret_is_kept() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let tokens = Tokens::open(directory.path()).expect("open");
        let issued = tokens.create(new("ci", None), "ann", Timestamp(0)).expect("create");
        let mut other = issued.token.clone();
        other.pop();
        for wrong in ["", "gdw_", "gdw_x_y", &other, &issued.token[4..], &format!("{}x", issued.token)] {
            let answer = tokens.authenticate(wrong, Timestamp(1)).expect("read");
            assert_eq!(answer, Err(Rejected::Unknown), "{wrong:?}");
        }
        drop(tokens);
        let secret = issued.token.rsplit_once('_').expect("its parts").1;
        for entry in std::fs::read_dir(directory.path()).expect("the directory") {
            let bytes = std::fs::read(entry.expect("an entry").path()).expect("a file");
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
        }
    }

    #[test]
    fn what_root_creates_belongs_to_the_owner_of_the_directory() {
        let directory = tempfile::tempdir().expect("temporary directory");
        if !rustix::process::geteuid().is_root() {
            return;
        }
        std::os::unix::fs::chown(directory.path(), Some(65_534), Some(65_533)).expect("root may");
        let tokens = Tokens::open(directory.path()).expect("open");
        tokens.create(new("ann", None), "root", Timestamp(0)).expect("create");
        let mut owners = Vec::new();
        for entry in std::fs::read_dir(directory.path()).expect("the directory") {
            let file = entry.expect("an entry").metadata().expect("a file");
            owners.push((file.uid(), file.gid()));
        }
        assert_eq!(owners, [(65_534, 65_533); 3], "the database, its log, its shared memory");
    }

    #[test]
    fn tokens_in_a_file_that_a_node_cannot_write_count_and_cannot_be_taken_back() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let command = Tokens::open(directory.path()).expect("open");
        let issued = command.create(new("ann", None), "root", Timestamp(0)).expect("create");
        drop(command);
        // As of another user's file: root, who may run this, can write any.
        let node = Tokens::open_with(directory.path(), OpenFlags::SQLITE_OPEN_READ_ONLY).expect("it is read");
        let counts = || node.authenticate(&issued.token, Timestamp(1)).expect("read").is_ok();
        assert!(counts());
        let refused = [
            node.writable().err(),
            node.create(new("ci", None), "ann", Timestamp(1)).err(),
            node.revoke(&issued.view.id, "ann", Timestamp(1)).err(),
        ];
        for error in refused {
            let said = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(said.contains("tokens.db cannot be written: it belongs to user "), "{said}");
        }
        assert!(counts() && node.list().expect("list").len() == 1);

        let empty = tempfile::tempdir().expect("temporary directory");
        let none = Tokens::open_with(empty.path(), OpenFlags::SQLITE_OPEN_READ_ONLY).err();
        assert!(matches!(none, Some(StoreError::ReadOnly { .. })), "{none:?}");
    }

    #[test]
    fn what_to_do_about_a_file_that_cannot_be_written_fits_whose_it_is() {
        let path = Path::new("/state/tokens.db");
        let first = |own, writable| advice(path, own, writable).split(' ').next().map(str::to_owned);
        let advised =
            [(false, true), (false, false), (true, false), (true, true)].map(|(own, w)| first(own, w));
        assert_eq!(advised.map(Option::unwrap_or_default), ["`chown", "`chown", "`chmod", "its"]);
        assert!(advice(path, false, true).contains("`chown --reference=/state /state/tokens.db*`"));
    }

    #[test]
    fn a_token_has_a_name_and_an_end() {
        for name in ["", " ", "a\nb", &"x".repeat(101)] {
            assert!(new(name, None).check().is_err_and(|why| why.starts_with("name")), "{name:?}");
        }
        for life in [0, LIFE_S + 1] {
            assert!(new("ann", Some(life)).check().is_err_and(|why| why.starts_with("expires_s")), "{life}");
        }
        assert_eq!(new("ann", Some(LIFE_S)).check(), Ok(()));
    }

    #[test]
    fn another_process_may_add_one_while_this_one_reads() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let node = Tokens::open(directory.path()).expect("open");
        let command = Tokens::open(directory.path()).expect("open again");
        let issued = command.create(new("ci", None), "root", Timestamp(0)).expect("create");
        assert!(node.authenticate(&issued.token, Timestamp(1)).expect("read").is_ok());
    }
}
