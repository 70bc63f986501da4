//! Who gets into a cluster: its `pg_hba.conf`, and the password of its superuser, who may run programs as the user that the server
//! runs as and therefore never comes in by his name alone.
//!
//! Lines of the owner's stay, and come first. A file that has neither what `initdb` wrote nor what this module did is the owner's.

use std::collections::BTreeSet;
use std::path::PathBuf;

use replicator::postgres::Dsn;

use super::SUPERUSER;
use super::cluster::{Cluster, ClusterError, private};
use crate::config::model::Trusted;

const BEGIN: &str =
    "# godwit: from here to the end Godwit's, written anew; lines of yours go above, and count first";
const END: &str = "# godwit: end";
/// Before the password in a line of libpq's password file.
const OF_SUPERUSER: &str = "*:*:*:postgres:";

impl Cluster {
    /// Where its superuser's password is, for `PGPASSFILE`; readable for whom the server runs as.
    fn password_file(&self) -> PathBuf {
        self.data.join("godwit.superuser")
    }

    /// Its superuser's password, if it has one.
    pub fn superuser_password(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.password_file()).ok()?;
        text.lines().find_map(|line| line.strip_prefix(OF_SUPERUSER)).map(str::to_owned)
    }

    /// Writes down what the superuser's password is.
    pub(super) fn keep_superuser_password(&self, password: &str) -> Result<(), ClusterError> {
        private(&self.password_file(), &format!("{OF_SUPERUSER}{password}\n"))
    }

    /// Whether everybody on this machine gets in as everybody, as `initdb -A trust` leaves it.
    pub(super) fn is_open(&self) -> Result<bool, ClusterError> {
        Ok(self.rules()?.lines().any(lets_everybody_in))
    }

    /// Who gets in without a password by lines that `initdb` or this module wrote.
    pub(super) fn lets_in(&self) -> Result<Trusted, ClusterError> {
        Ok(let_in(&self.rules()?))
    }

    /// Lets nobody in without a password but whom it trusts; does nothing where the superuser has none yet.
    pub(super) fn restrict(&self, trusted: &Trusted) -> Result<(), ClusterError> {
        if self.superuser_password().is_none() {
            return Ok(());
        }
        let Some(restricted) = self.to_write(trusted)? else { return Ok(()) };
        private(&self.rules_file(), &restricted)?;
        if self.running()? { self.reload() } else { Ok(()) }
    }

    /// Whether that has nothing to write.
    pub(super) fn is_restricted(&self, trusted: &Trusted) -> Result<bool, ClusterError> {
        Ok(self.to_write(trusted)?.is_none())
    }

    fn to_write(&self, trusted: &Trusted) -> Result<Option<String>, ClusterError> {
        let rules = self.rules()?;
        Ok(restricted(&rules, trusted).filter(|restricted| *restricted != rules))
    }

    fn rules_file(&self) -> PathBuf {
        self.data.join("pg_hba.conf")
    }

    fn rules(&self) -> Result<String, ClusterError> {
        let path = self.rules_file();
        match std::fs::read_to_string(&path) {
            // Its owner has them somewhere else.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            read => read.map_err(|source| ClusterError::File { path, source }),
        }
    }
}

/// The logins that come as the superuser.
pub(super) fn of_superuser<'d>(logins: impl Iterator<Item = &'d Dsn>) -> Vec<&'d Dsn> {
    logins.filter(|login| login.get_user() == Some(SUPERUSER)).collect()
}

/// A line as `initdb -A trust` writes it.
fn lets_everybody_in(line: &str) -> bool {
    matches!(
        line.split_whitespace().collect::<Vec<_>>()[..],
        ["local", "all" | "replication", "all", "trust"]
            | ["host", "all" | "replication", "all", "127.0.0.1/32" | "::1/128", "trust"]
    )
}

fn let_in(rules: &str) -> Trusted {
    let mut roles = Trusted::Roles(BTreeSet::new());
    for line in rules.lines() {
        let ours = line.strip_prefix("host all,replication ");
        let role = ours.and_then(|line| line.strip_suffix(" 127.0.0.1/32 trust"));
        if role == Some("all") || lets_everybody_in(line) {
            return Trusted::All;
        }
        let name = role.and_then(|role| role.strip_prefix('"')?.strip_suffix('"'));
        if let Some(name) = name {
            roles.add(&name.replace("\"\"", "\""));
        }
    }
    roles
}

/// The rules without those that let everybody in, and with Godwit's at the end; none: they are the owner's alone.
fn restricted(rules: &str, trusted: &Trusted) -> Option<String> {
    let (mut text, mut known, mut inside) = (String::new(), false, false);
    for line in rules.lines() {
        if line == BEGIN {
            (known, inside) = (true, true);
        } else if inside {
            inside = line != END;
        } else if lets_everybody_in(line) {
            known = true;
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    known.then(|| text + &ours(trusted))
}

fn ours(trusted: &Trusted) -> String {
    let superuser = quoted(SUPERUSER);
    let mut text = format!(
        "{BEGIN}\nlocal all,replication all scram-sha-256\nhost all,replication {superuser} samehost scram-sha-256\n"
    );
    let roles: Vec<String> = match trusted {
        Trusted::All => vec!["all".to_owned()],
        // What begins with a slash is a pattern there, and a line ends where it ends.
        Trusted::Roles(roles) => roles
            .iter()
            .filter(|role| !role.starts_with('/') && !role.contains(['\n', '\r']))
            .map(|role| quoted(role))
            .collect(),
    };
    for role in roles {
        for loopback in ["127.0.0.1/32", "::1/128"] {
            text.push_str(&format!("host all,replication {role} {loopback} trust\n"));
        }
    }
    text.push_str("host all,replication all samehost scram-sha-256\n");
    text.push_str(END);
    text.push('\n');
    text
}

fn quoted(role: &str) -> String {
    replicator::postgres::quote_ident(role)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INITDB: &str = "\
# TYPE  DATABASE        USER            ADDRESS                 METHOD

# \"local\" is for Unix domain socket connections only
local   all             all                                     trust
host    all             all             127.0.0.1/32            trust
host    all             all             ::1/128                 trust
local   replication     all                                     trust
host    replication     all             127.0.0.1/32            trust
host    replication     all             ::1/128                 trust
";

    fn roles(names: &[&str]) -> Trusted {
        Trusted::Roles(names.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn nobody_comes_in_as_the_superuser_by_his_name_alone() {
        for trusted in [Trusted::All, roles(&["shop", "postgres"]), roles(&[])] {
            let text = restricted(INITDB, &trusted).expect("what initdb wrote");
            // The first line that is about somebody counts.
            let first = text.lines().find(|line| {
                line.starts_with("host") && (line.contains("\"postgres\"") || line.contains(" all "))
            });
            assert_eq!(first, Some("host all,replication \"postgres\" samehost scram-sha-256"), "{text}");
            assert!(!text.lines().any(lets_everybody_in), "{text}");
            assert_eq!(restricted(&text, &trusted), Some(text.clone()), "written once");
        }
    }

    #[test]
    fn only_who_is_trusted_needs_no_password() {
        let text = restricted(INITDB, &roles(&["sh\"op", "/^.*$", "a\nb"])).expect("what initdb wrote");
        let trust: Vec<&str> = text.lines().filter(|line| line.ends_with(" trust")).collect();
        let line = "host all,replication \"sh\"\"op\"";
        assert_eq!(trust, [format!("{line} 127.0.0.1/32 trust"), format!("{line} ::1/128 trust")]);
        let nobody = restricted(&text, &roles(&[])).expect("what was written before");
        assert!(!nobody.contains("trust\n") && nobody.contains("# \"local\" is for"), "{nobody}");
    }

    #[test]
    fn who_gets_in_by_name_is_read_from_what_was_written() {
        assert_eq!(let_in(INITDB), Trusted::All);
        for trusted in [Trusted::All, roles(&["sh\"op", "app"]), roles(&[])] {
            let text = restricted(INITDB, &trusted).expect("what initdb wrote");
            assert_eq!(let_in(&text), trusted, "{text}");
        }
        assert_eq!(let_in("host all all 10.0.0.0/8 trust\n"), roles(&[]), "the owner's");
    }

    #[test]
    fn lines_of_the_owner_stay_and_come_first() {
        let own = "hostssl all reports 10.0.0.0/8 scram-sha-256\n";
        let text = restricted(&format!("{own}{INITDB}"), &roles(&[])).expect("what initdb wrote");
        assert!(text.starts_with(own), "{text}");
        assert_eq!(restricted(own, &Trusted::All), None, "a file of the owner's alone");
    }
}
