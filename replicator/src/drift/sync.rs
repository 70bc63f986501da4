//! Makes on the shadow what only the source has.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::fill::{self, Filled, Numbered, PATIENCE, Sides};
use super::{Difference, Mend, in_the_way, worded};
use crate::error::{Error, ErrorKind, chain};
use crate::fence::refused;

/// What a sync did.
#[derive(Debug, Default)]
pub struct Synced {
    /// What was done, one line each.
    pub done: Vec<String>,
    /// The tables whose rows were copied, all of them.
    pub filled: Vec<Numbered>,
    /// Why not all of it was.
    pub failure: Option<Error>,
    /// Why appliers may still go by what a table was before.
    pub unaware: Option<Error>,
}

/// Appliers are to look at the tables anew, until they do.
#[derive(Debug, Default)]
struct Renewal {
    owed: bool,
    failure: Option<Error>,
}

impl Renewal {
    fn tried(&mut self, ended: Result<(), Error>) {
        self.owed = ended.is_err();
        self.failure = ended.err();
    }
}

/// Applies these differences, as far as they need nobody to decide. What fails is tried again after the rest, as long as anything goes:
/// one thing may need another. What was done before a failure stays.
///
/// A table that is missing is made by `pg_dump` of it, and filled beside the stream, which brings its changes from there. Its types must
/// exist. What fails of the tables in `anew` is no failure: it waits until these are seeded anew, which gives them their columns.
pub async fn sync(sides: Sides<'_>, mut wanted: Vec<&Difference>, anew: &BTreeSet<&str>) -> Synced {
    let (_, shadow) = sides.shadow;
    wanted.sort_by_key(|difference| rank(&difference.mend));
    let (mut done, mut filled) = (Vec::new(), Vec::new());
    let mut failure = None;
    let mut renewal = Renewal::default();
    // Columns wait for those before them, as long as that may help.
    let mut in_order = true;
    let renew = async || fill::end_appliers(shadow).await.map_err(refused("have the tables looked at anew"));
    while !wanted.is_empty() {
        let before = wanted.len();
        failure = None;
        let mut failed = Vec::new();
        let tables = wanted.iter().filter_map(|difference| match &difference.mend {
            Mend::Table(name) => Some(name.as_str()),
            _ => None,
        });
        let tables: Vec<&str> = tables.collect();
        let mut together = None;
        // What could not be changed yet, by name without arguments.
        let mut old: Vec<&str> = Vec::new();
        // Tables that wait for a column, and whether it passes by itself: those that follow it wait as well, so that they come in the source's order.
        let mut behind: BTreeMap<&str, bool> = BTreeMap::new();
        let mut held = false;
        for difference in wanted {
            let is_column = matches!(&difference.mend, Mend::Add(sql) if adds_column(sql));
            let follows = behind.get(difference.subject.as_str()).filter(|_| is_column).copied();
            if follows.is_some() || matches!(&difference.mend, Mend::Add(sql) if is_computed_by(sql, &old)) {
                held |= follows == Some(false);
                if is_column && in_order {
                    behind.entry(&difference.subject).or_insert(false);
                }
                failed.push(difference);
                continue;
            }
            let mended = match &difference.mend {
                Mend::Drop(sql) if is_table(sql) => {
                    drop_table(shadow, &difference.subject, sql).await.map(|()| Some(sql.clone()))
                }
                Mend::Add(sql) | Mend::Drop(sql) => {
                    let of_appliers = is_of_appliers(&difference.mend);
                    let added = add(shadow, &difference.subject, sql, of_appliers).await;
                    renewal.owed |= added.is_ok() && of_appliers && is_index(sql);
                    added.map(|()| Some(sql.clone()))
                }
                // Before anything else can have its name.
                Mend::Rename(sql) => {
                    add(shadow, &difference.subject, sql, true).await.map(|()| Some(sql.clone()))
                }
                Mend::Table(name) => {
                    if together.is_none() {
                        // By now what they may need is there.
                        together = Some(fill::new::tables(sides, &tables).await);
                    }
                    let made = match together.as_mut().and_then(|made| made.remove(name)) {
                        Some(rows) => Ok(Filled::from(rows)),
                        None => fill::table(sides, name).await,
                    };
                    match made {
                        Ok(Filled { rows: Some(rows), heirs }) => {
                            filled.extend(numbered(shadow, name, &heirs).await);
                            Ok(Some(format!("{name}: made, {rows} rows copied, published")))
                        }
                        Ok(Filled { rows: None, .. }) => Ok(Some(format!("{name}: made"))),
                        Err(error) => Err(error),
                    }
                }
                Mend::Anew(_) | Mend::Identity(_) | Mend::Person(_) => Ok(None),
            };
            let mended = match (&difference.mend, &difference.made) {
                (Mend::Add(_), Some((key, of))) if mended.is_ok() => {
                    worded::made(shadow, key, of).await.and(mended)
                }
                _ => mended,
            };
            match mended {
                Ok(line) => done.extend(line),
                Err(error) => {
                    failed.push(difference);
                    let passes = error.kind() != ErrorKind::Operator;
                    // The others may pass as soon as their types and functions are there.
                    if is_column && (passes || in_order) {
                        behind.insert(&difference.subject, passes);
                    }
                    if matches!(&difference.mend, Mend::Add(sql) if computes(sql)) {
                        old.extend(difference.subject.split('(').next());
                    }
                    // What hangs on an old table waits for its end, and fails for that.
                    let first =
                        failure.is_none() || matches!(&difference.mend, Mend::Drop(sql) if is_table(sql));
                    if anew.contains(difference.subject.as_str()) {
                        tracing::info!(
                            table = difference.subject,
                            error = chain(&error),
                            "what is to be seeded anew is not yet as its source's"
                        );
                    } else if first {
                        failure = Some(error);
                    }
                }
            }
        }
        if renewal.owed {
            renewal.tried(renew().await);
        }
        if failed.len() == before {
            if !(held && in_order) {
                break;
            }
            // What does not pass is not waited for: the stream may need the others.
            in_order = false;
        }
        wanted = failed;
    }
    if renewal.owed {
        // The next sync will not see that it is.
        renewal.tried(renew().await);
    }
    Synced { done, filled, failure, unaware: renewal.failure }
}

/// A table and its heirs, whose rows were copied; none where that is not known: whoever knows of other rows there goes on doing so.
async fn numbered(shadow: &Client, table: &str, heirs: &[String]) -> Vec<Numbered> {
    let names: Vec<&str> = [table].into_iter().chain(heirs.iter().map(String::as_str)).collect();
    fill::numbered(shadow, &names).await.unwrap_or_default()
}

/// Writes a message to the source's WAL: even an idle source has something to bring then, and all before it is durable.
pub async fn mark(source: &Client) -> Result<(), Error> {
    let mark = "BEGIN; SET LOCAL synchronous_commit = local; \
        SELECT pg_catalog.pg_logical_emit_message(true, 'godwit.schema', ''); COMMIT";
    source.batch_execute(mark).await.map_err(refused("mark a place in the source's WAL"))
}

/// What others may need comes first.
fn rank(mend: &Mend) -> usize {
    const FIRST: [&str; 8] = [
        "CREATE SCHEMA ",
        "CREATE EXTENSION ",
        "CREATE SERVER ",
        "CREATE COLLATION ",
        "CREATE TEXT SEARCH DICTIONARY ",
        "CREATE TYPE ",
        "CREATE DOMAIN ",
        "ALTER TYPE ",
    ];
    const LAST: [&str; 5] = ["CREATE OR REPLACE ", "ALTER VIEW ", "DROP POLICY ", "GRANT ", "REVOKE "];
    match mend {
        Mend::Add(sql) if FIRST.iter().any(|word| sql.starts_with(word)) => 0,
        // What follows is not done to what is no part of it any more.
        Mend::Add(sql) if sql.contains(" DETACH PARTITION ") || sql.contains(" NO INHERIT ") => 0,
        // What is made in a schema may need what its owner may do there.
        Mend::Add(sql) if sql.starts_with("ALTER SCHEMA ") || is_grant_on_schema(sql) => 1,
        Mend::Add(sql) if sql.starts_with("CREATE SEQUENCE ") => 1,
        // Values that the old one computed would stay.
        Mend::Add(sql) if computes(sql) => 2,
        Mend::Table(_) => 3,
        Mend::Add(sql) if adds_column(sql) => 4,
        Mend::Add(sql) if sql.contains(" FOREIGN KEY ") => 6,
        Mend::Add(sql) => LAST.iter().position(|word| sql.starts_with(word)).map_or(5, |place| 7 + place),
        Mend::Rename(_) => 0,
        // What stood in its way is changed by then.
        Mend::Drop(_) => 12,
        Mend::Anew(_) | Mend::Identity(_) | Mend::Person(_) => 13,
    }
}

fn adds_column(sql: &str) -> bool {
    sql.contains(" ADD COLUMN ")
}

/// Whether it makes or changes what columns and indexes are computed by.
fn computes(sql: &str) -> bool {
    const COMPUTES: [&str; 5] = [
        "CREATE OR REPLACE FUNCTION ",
        "CREATE OR REPLACE PROCEDURE ",
        "CREATE OR REPLACE AGGREGATE ",
        "CREATE TEXT SEARCH CONFIGURATION ",
        "ALTER TEXT SEARCH ",
    ];
    COMPUTES.iter().any(|words| sql.starts_with(words))
}

/// Whether it would have values computed by one of these, which are not yet what they should be. A default waits for nobody: older rows
/// have what they have on the source, and the stream brings the others.
fn is_computed_by(sql: &str, old: &[&str]) -> bool {
    let computed = is_index(sql) || adds_column(sql) && sql.contains(" GENERATED ");
    computed && old.iter().any(|name| calls(sql, name))
}

/// Whether it calls a function of this name, or uses a text search configuration or dictionary of it, as servers word that. Names of other things
/// may begin or end so.
fn calls(sql: &str, name: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || ['_', '$', '"', '.'].contains(&character);
    sql.match_indices(name)
        .any(|(at, _)| !sql[..at].ends_with(is_part) && sql[at + name.len()..].starts_with(['(', '\'']))
}

fn is_grant_on_schema(sql: &str) -> bool {
    sql.starts_with("GRANT ") && sql.contains(" ON SCHEMA ")
}

/// Whether it makes or takes away what tells a row, or what acts on each change, or changes what its columns are: appliers go by what there was when
/// they met the table.
fn is_of_appliers(mend: &Mend) -> bool {
    const TELLS: [&str; 13] = [
        " UNIQUE ",
        " PRIMARY KEY ",
        " DROP CONSTRAINT ",
        " REPLICA IDENTITY ",
        " ENABLE ALWAYS ",
        " ENABLE REPLICA ",
        " ADD COLUMN ",
        " DROP COLUMN ",
        " TYPE ",
        " SET GENERATED ",
        " DROP EXPRESSION",
        " DROP NOT NULL",
        // The parent's triggers come with it.
        " ATTACH PARTITION ",
    ];
    let (Mend::Add(sql) | Mend::Drop(sql)) = mend else { return false };
    let begins = |words: &&str| sql.starts_with(words);
    ["CREATE UNIQUE INDEX ", "DROP INDEX "].iter().any(begins)
        // Tables of the type have them as columns.
        || sql.starts_with("ALTER TYPE ") && sql.contains(" ATTRIBUTE ")
        || (["ALTER TABLE ", "CREATE OR REPLACE TRIGGER ", "CREATE OR REPLACE RULE "].iter().any(begins)
            && TELLS.iter().any(|words| sql.contains(words)))
}

fn is_index(sql: &str) -> bool {
    ["CREATE INDEX ", "CREATE UNIQUE INDEX "].iter().any(|words| sql.starts_with(words))
}

/// Of appliers: those that know what it changes end with it, and begin anew.
pub(super) async fn add(shadow: &Client, subject: &str, sql: &str, of_appliers: bool) -> Result<(), Error> {
    if is_index(sql) && index_beside_writers(shadow, subject, sql).await? {
        return Ok(());
    }
    // A value of an enum may not be added in a transaction with other things. The body of a function may speak of what comes later.
    let settings =
        format!("SET search_path = ''; SET check_function_bodies = off; SET lock_timeout = '{PATIENCE}'; ");
    let settings = if sql.starts_with("ALTER TYPE") { String::new() } else { settings };
    let all = if of_appliers { fill::unseen(sql) } else { sql.to_owned() };
    let Err(error) = shadow.batch_execute(&format!("{settings}{all}")).await else { return Ok(()) };
    // Another type of what a function returns, another column of a view.
    let is_another = [SqlState::INVALID_FUNCTION_DEFINITION, SqlState::INVALID_TABLE_DEFINITION]
        .iter()
        .any(|state| error.code() == Some(state));
    if is_another && let Some(drop) = dropped(subject, sql) {
        let made = async {
            let rest = if derived(shadow, subject).await? { "CASCADE" } else { "RESTRICT" };
            shadow.batch_execute(&format!("{settings}{drop} {rest}; {sql}")).await
        };
        return made.await.map_err(refused(&format!("{subject}: {drop}; {sql}")));
    }
    if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED)
        && let Some(column) = retyped(subject, sql)
    {
        let drops = in_the_way::dropped(shadow, subject, column).await?;
        if !drops.is_empty() {
            let drops = drops.join("; ");
            tracing::info!(sql, drops, "what uses a column is dropped, to be made again with its new type");
            let made = shadow.batch_execute(&format!("{settings}{drops}; {all}")).await;
            return made.map_err(refused(&format!("{subject}: {drops}; {sql}")));
        }
    }
    // The shadow's number is an old one, and need not be within the new bounds: a move sets it.
    if error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) && sql.starts_with("ALTER SEQUENCE ") {
        let made = shadow.batch_execute(&format!("{settings}{all} RESTART")).await;
        return made.map_err(refused(&format!("{subject}: {sql}")));
    }
    Err(refused(&format!("{subject}: {sql}"))(error))
}

/// What gives a column of this table another type, from its name on.
fn retyped<'s>(table: &str, sql: &'s str) -> Option<&'s str> {
    let column = sql.strip_prefix("ALTER TABLE ")?.strip_prefix(table)?.strip_prefix(" ALTER COLUMN ")?;
    column.contains(" TYPE ").then_some(column)
}

fn is_table(drop: &str) -> bool {
    drop.starts_with("DROP TABLE ")
}

/// With what hangs on it, where that is made again. Without its partitions: they may be another's on the source by now, with all their rows.
async fn drop_table(shadow: &Client, table: &str, sql: &str) -> Result<(), Error> {
    let failed = |error| refused(&format!("{table}: {sql}"))(error);
    let dropped = sql.trim_start_matches("DROP TABLE ").trim_start_matches("IF EXISTS ");
    let partitions = "SELECT format('ALTER TABLE %s DETACH PARTITION %I.%I; ', $1::text, n.nspname, c.relname) \
        FROM pg_catalog.pg_inherits h JOIN pg_catalog.pg_class c ON c.oid = h.inhrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
        WHERE h.inhparent = pg_catalog.to_regclass($1) AND c.relispartition ORDER BY 1";
    let partitions = shadow.query(partitions, &[&dropped]).await.map_err(failed)?;
    let detach: String = partitions.iter().map(|row| row.get::<_, &str>(0)).collect();
    let settings = format!("SET lock_timeout = '{PATIENCE}'");
    let tried = async |first: &str, rest: &str| {
        shadow.batch_execute(&format!("{settings}; {first}{detach}{sql}{rest}")).await
    };
    let dropped = match tried("", "").await {
        Err(error)
            if error.code() == Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST)
                && derived(shadow, table).await.unwrap_or(false) =>
        {
            tried("", " CASCADE").await
        }
        // Rows refer to those of its partitions.
        Err(error)
            if error.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION)
                && derived(shadow, table).await.unwrap_or(false) =>
        {
            let keys = "SELECT coalesce(string_agg(format('ALTER TABLE %I.%I DROP CONSTRAINT %I; ', n.nspname, c.relname, k.conname), '' ORDER BY k.oid), '') \
                FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                WHERE k.contype = 'f' AND k.confrelid = pg_catalog.to_regclass($1) AND k.conparentid = 0";
            let keys = shadow.query_one(keys, &[&dropped]).await.map_err(failed)?;
            tried(keys.get(0), " CASCADE").await
        }
        dropped => dropped,
    };
    dropped.map_err(failed)
}

/// What takes away that which this would replace; none: it replaces nothing.
fn dropped(subject: &str, sql: &str) -> Option<String> {
    let made = sql.strip_prefix("CREATE OR REPLACE ")?;
    let kind = ["VIEW ", "FUNCTION ", "PROCEDURE "].into_iter().find(|kind| made.starts_with(kind))?;
    Some(format!("DROP {kind}{subject}"))
}

/// Whether all that hangs on a view, a function or a table is compared, holds no rows, and so is made anew after it.
pub(super) async fn derived(shadow: &Client, subject: &str) -> Result<bool, tokio_postgres::Error> {
    let row = shadow.query_one(include_str!("derived.sql"), &[&subject]).await?;
    Ok(row.get(0))
}

/// Makes an index of this table while the applier goes on writing; whether that is possible (not of a partitioned table).
async fn index_beside_writers(shadow: &Client, table: &str, sql: &str) -> Result<bool, Error> {
    let context = format!("{table}: {sql}");
    // It waits for those who write, and nobody for it.
    let settings = "SET search_path = ''; SET lock_timeout = 0";
    shadow.batch_execute(settings).await.map_err(refused(&context))?;
    let Err(error) = shadow.batch_execute(&sql.replacen(" INDEX ", " INDEX CONCURRENTLY ", 1)).await else {
        return Ok(true);
    };
    if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) {
        return Ok(false);
    }
    // What is left of it nobody uses, and its name is taken.
    let left = "SELECT format('DROP INDEX %s', indexrelid::pg_catalog.regclass) FROM pg_catalog.pg_index \
        WHERE indrelid = pg_catalog.to_regclass($1) AND NOT indisvalid";
    for row in shadow.query(left, &[&table]).await.map_err(refused(&context))? {
        shadow.batch_execute(row.get(0)).await.map_err(refused(&context))?;
    }
    Err(refused(&context)(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appliers_look_at_a_table_anew_where_what_they_know_of_it_changes() {
        let add = |sql: &str| is_of_appliers(&Mend::Add(sql.into()));
        let drop = |sql: &str| is_of_appliers(&Mend::Drop(sql.into()));
        assert!(add("CREATE UNIQUE INDEX by_mail ON public.people (mail)"));
        assert!(add("ALTER TABLE public.people ADD CONSTRAINT people_key UNIQUE (mail)"));
        assert!(add("ALTER TABLE public.people REPLICA IDENTITY USING INDEX by_mail"));
        assert!(drop("DROP INDEX IF EXISTS public.by_mail"));
        assert!(drop("ALTER TABLE public.people DROP CONSTRAINT IF EXISTS people_key"));
        assert!(drop("ALTER TABLE public.people DROP COLUMN IF EXISTS nick"));
        assert!(add("ALTER TABLE public.people ADD COLUMN nick text DEFAULT 'none'"));
        assert!(add("ALTER TYPE public.address ADD ATTRIBUTE zip text CASCADE"));
        assert!(add("ALTER TABLE public.days ATTACH PARTITION public.new_day DEFAULT"));
        for change in ["TYPE bigint", "SET GENERATED ALWAYS", "DROP EXPRESSION", "DROP NOT NULL"] {
            assert!(add(&format!("ALTER TABLE public.people ALTER COLUMN id {change}")), "{change}");
        }
        let trigger = |how: &str| {
            format!(
                "CREATE OR REPLACE TRIGGER t BEFORE INSERT ON public.people FOR EACH ROW EXECUTE FUNCTION f(); \
                 ALTER TABLE public.people {how} TRIGGER t"
            )
        };
        assert!(add(&trigger("ENABLE ALWAYS")) && add(&trigger("ENABLE REPLICA")));
        assert!(add("CREATE OR REPLACE RULE r AS …; ALTER TABLE public.people ENABLE ALWAYS RULE r"));
        // They fire for none of an applier's changes.
        assert!(
            !add(&trigger("ENABLE"))
                && !add("CREATE OR REPLACE RULE r AS ON INSERT TO public.people DO ALSO NOTIFY n")
        );
        assert!(
            !add("ALTER TABLE public.people ALTER COLUMN id SET DEFAULT 1")
                && !add("ALTER TYPE mood ADD VALUE 'ok'")
        );
        assert!(!add("CREATE INDEX by_name ON public.people (name)"));
        assert!(!add("ALTER TABLE public.people ADD CONSTRAINT c CHECK (age > 0)"));
        assert!(!add("CREATE OR REPLACE FUNCTION f() RETURNS text LANGUAGE sql RETURN ' UNIQUE '"));
        assert!(!is_of_appliers(&Mend::Table("public.people".into())));
    }

    #[test]
    fn a_column_that_gets_another_type_is_told() {
        let of = |sql| retyped("public.people", sql);
        assert_eq!(
            of("ALTER TABLE public.people ALTER COLUMN \"a b\" TYPE bigint"),
            Some("\"a b\" TYPE bigint")
        );
        assert_eq!(of("ALTER TABLE public.people ALTER COLUMN id SET NOT NULL"), None);
        assert_eq!(of("ALTER TABLE public.people ADD COLUMN n int"), None);
        assert_eq!(of("ALTER TABLE public.people_2 ALTER COLUMN id TYPE bigint"), None);
    }

    #[test]
    fn what_computes_is_changed_before_what_is_computed_by_it() {
        let add = |sql: &str| Mend::Add(sql.into());
        let mut all = [
            add("CREATE OR REPLACE VIEW s.v AS SELECT s.f(t) FROM s.t"),
            add("CREATE INDEX i ON s.t (s.f(t))"),
            Mend::Table("s.new".into()),
            add("ALTER TABLE s.t ADD COLUMN c text GENERATED ALWAYS AS (s.f(t)) STORED"),
            add("CREATE OR REPLACE FUNCTION s.f(text) …"),
            add("ALTER TEXT SEARCH CONFIGURATION s.words ADD MAPPING FOR word WITH s.plain"),
            add("CREATE TEXT SEARCH CONFIGURATION s.words (PARSER = pg_catalog.\"default\"); …"),
            add("CREATE TEXT SEARCH DICTIONARY s.plain (TEMPLATE = pg_catalog.simple)"),
        ];
        let before = all.clone();
        all.sort_by_key(rank);
        let places: Vec<_> = all.iter().map(|mend| before.iter().position(|other| other == mend)).collect();
        assert_eq!(places, [7, 4, 5, 6, 2, 3, 1, 0].map(Some));

        assert!(is_computed_by("CREATE INDEX i ON s.t (s.f(t))", &["s.f"]), "it waits for the function");
        assert!(is_computed_by(
            "ALTER TABLE s.t ADD COLUMN c text GENERATED ALWAYS AS (s.f(t)) STORED",
            &["s.f"]
        ));
        assert!(is_computed_by(
            "ALTER TABLE s.t ADD COLUMN c tsvector GENERATED ALWAYS AS (to_tsvector('s.words'::regconfig, t)) STORED",
            &["s.words"]
        ));
        assert!(!is_computed_by("CREATE INDEX i ON s.t (s.g(t))", &["s.f"]));
        assert!(!is_computed_by("CREATE INDEX i ON s.t (s.f_too(t), a_s.f(t))", &["s.f"]));
        assert!(!is_computed_by("CREATE INDEX i ON s.found USING btree (n)", &["s.f", "s.found"]));
        // The function may wait for the column.
        assert!(!is_computed_by("ALTER TABLE s.found ADD COLUMN c int", &["s.f"]));
        assert!(!is_computed_by("ALTER TABLE s.t ADD COLUMN c int DEFAULT s.f()", &["s.f"]));
        assert!(!is_computed_by("CREATE OR REPLACE VIEW s.v AS SELECT s.f(t) FROM s.t", &["s.f"]));
    }

    #[test]
    fn appliers_are_ended_until_they_are() {
        let mut renewal = Renewal { owed: true, failure: None };
        renewal.tried(Err(Error::Link("cut".into())));
        assert!(renewal.owed && renewal.failure.is_some());
        renewal.tried(Ok(()));
        assert!(!renewal.owed && renewal.failure.is_none());
    }
}
