//! PostgreSQL's programs for tests: `initdb` copies what it made once. A suite makes hundreds of clusters that begin alike.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use godwit::drivers::process::cluster::{DropTo, cache, installed};

/// In place of `initdb`, for `-D DIRECTORY -U SUPERUSER --pwfile FILE` and whatever else. Each copy gets a password of its own, which the
/// name of a template must not depend on, and a system identifier, as every cluster has: what `pg_control` begins with (the byte that
/// follows is of the second it was made in); `pg_resetwal` makes the checksum and the WAL that go with it.
const INITDB: &str = r#"#!/bin/sh
set -eu
[ "$1 $3 $5" = '-D -U --pwfile' ]
data=$2 superuser=$4 password=$6
shift 6
template=@templates@/$(printf %s "$superuser $*" | cksum | tr ' ' -)
if [ ! -d "$template" ]; then
  exec 9>@templates@/.lock
  flock 9
  if [ ! -d "$template" ]; then
    rm -rf @templates@/making
    @bin@/initdb -D @templates@/making -U "$superuser" --pwfile "$password" "$@"
    rm -f @templates@/making/pg_wal/0*
    mv @templates@/making "$template"
  fi
  exec 9>&-
fi
cp -a "$template/." "$data"
head -c 7 /dev/urandom | dd of="$data/global/pg_control" conv=notrunc status=none
said=$(@bin@/pg_resetwal -f "$data" 2>&1) || { echo "$said" >&2; exit 1; }
said=$(echo "ALTER ROLE $superuser PASSWORD '$(cat "$password")'" |
  @bin@/postgres --single -j -F -c shared_buffers=1MB -c exit_on_error=on -D "$data" template1 2>&1) || { echo "$said" >&2; exit 1; }
"#;

/// Directory with the programs of this PostgreSQL major version, if it is on the machine, for clusters by the dozen. That of
/// [`installed`] has the real `initdb`.
pub fn bin_directory(major: u32) -> Option<PathBuf> {
    let bin = installed(major)?;
    Some(with_templates(&bin, major).unwrap_or_else(|error| {
        eprintln!("every cluster is made by initdb itself: {error:#}");
        bin
    }))
}

/// Made once in the cache folder, and anew, in place of what was there, after an upgrade of PostgreSQL or where another script makes
/// them.
fn with_templates(bin: &Path, major: u32) -> Result<PathBuf> {
    let home = cache().context("no cache folder")?.join("tests");
    let server = std::fs::metadata(bin.join("postgres"))?;
    let mut script = DefaultHasher::new();
    INITDB.hash(&mut script);
    let folder = home.join(format!("{major}-{}-{:x}", server.mtime(), script.finish()));
    if folder.exists() {
        return Ok(folder.join("bin"));
    }
    std::fs::create_dir_all(&home)?;
    let lock = std::fs::File::create(home.join(".lock"))?;
    lock.lock()?;
    if folder.exists() {
        return Ok(folder.join("bin"));
    }
    let making = tempfile::Builder::new().prefix("making-").tempdir_in(&home)?;
    std::fs::set_permissions(making.path(), PermissionsExt::from_mode(0o755))?;
    for name in ["bin", "templates"] {
        std::fs::create_dir(making.path().join(name))?;
    }
    if let Some(user) = DropTo::find()? {
        user.own(&making.path().join("templates"))?;
    }
    for program in std::fs::read_dir(bin)? {
        let program = program?;
        if program.file_name() != "initdb" {
            symlink(program.path(), making.path().join("bin").join(program.file_name()))?;
        }
    }
    let script = INITDB
        .replace("@templates@", &folder.join("templates").display().to_string())
        .replace("@bin@", &bin.display().to_string());
    let mut initdb = std::fs::File::create(making.path().join("bin/initdb"))?;
    initdb.write_all(script.as_bytes())?;
    initdb.set_permissions(PermissionsExt::from_mode(0o755))?;
    drop(initdb);
    for earlier in std::fs::read_dir(&home)? {
        let earlier = earlier?;
        if earlier.file_name().to_string_lossy().starts_with(&format!("{major}-")) {
            std::fs::remove_dir_all(earlier.path())?;
        }
    }
    std::fs::rename(making.keep(), &folder)?;
    Ok(folder.join("bin"))
}

#[cfg(test)]
mod tests {
    use super::bin_directory;
    use crate::postgres::TestCluster;
    use anyhow::{Context, Result};
    use std::collections::HashSet;

    /// A template for each would make hundreds in one run of the suite, and fill the disk.
    #[test]
    fn clusters_with_passwords_of_their_own_are_copies_of_one_template() -> Result<()> {
        let mut passwords = HashSet::new();
        for _ in 0..2 {
            let cluster = TestCluster::start(15)?;
            passwords.insert(cluster.cluster.superuser_password().context("a password")?);
        }
        assert_eq!(passwords.len(), 2);
        let templates = bin_directory(15).context("PostgreSQL 15")?.with_file_name("templates");
        let made = std::fs::read_dir(templates)?.filter(|it| it.as_ref().is_ok_and(|it| it.path().is_dir()));
        assert_eq!(made.count(), 1);
        Ok(())
    }
}
