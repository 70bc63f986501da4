//! A zoo of types through copy and stream, between versions, with hostile defaults at both ends: the same rows, by hash.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit_tests::postgres::{GODWIT_ROLE, TestCluster, bin_directory, other_major, wal_position};
use replicator::copy::CopyOptions;
use replicator::link::memory::Options;
use replicator::postgres::slot;
use replicator::pump::{LocalEnd, LocalPeer, StreamSpec, maintain};
use replicator::spill::Spill;
use replicator::status::{Phase, StreamStatus};
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

const PATIENCE: Duration = Duration::from_secs(60);

/// Types that are made first.
const MADE: &str = r#"
CREATE SCHEMA "Odd ""schema""";
CREATE TYPE "Odd ""schema""".mood AS ENUM ('so so', 'it''s "fine"', 'a\b', '');
CREATE TYPE pair AS (a int, "B b" text, c numeric[]);
CREATE TYPE nested AS (p pair, at timestamptz);
CREATE DOMAIN short AS varchar(8) CHECK (value <> 'bad');
CREATE DOMAIN codes AS int[] CHECK (cardinality(value) < 9);
CREATE DOMAIN deep AS short;
CREATE TYPE span AS RANGE (subtype = float8, multirange_type_name = spans);
"#;

/// A type, whether it can be a primary key, and values as SQL expressions.
const ZOO: &[(&str, bool, &[&str])] = &[
    ("smallint", true, &["-32768", "0", "32767"]),
    ("integer", true, &["-2147483648", "0", "2147483647"]),
    ("bigint", true, &["-9223372036854775808", "0", "9223372036854775807"]),
    ("boolean", true, &["true", "false"]),
    (
        "numeric",
        true,
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "1.0",
            "2.000000",
            "1e-300",
            "123456789012345678901234567890.5",
            "-0.1",
        ],
    ),
    ("numeric(12,4)", true, &["1.5", "-99999999.9999", "'NaN'"]),
    (
        "real",
        true,
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "'-0'",
            "1e-45",
            "3.4028235e38",
            "0.1",
            "16777217",
            "1.17549435e-38",
        ],
    ),
    (
        "double precision",
        true,
        &[
            "'NaN'",
            "'Infinity'",
            "'-0'",
            "5e-324",
            "1.7976931348623157e308",
            "0.1",
            "0.30000000000000004",
            "1/3.0",
        ],
    ),
    (
        "text",
        true,
        &[
            "''",
            r"'\N'",
            r#"E'tab\t nl\n cr\r bs\\ q'' dq\" '"#,
            "'NULL'",
            "'{}'",
            "'ünï ☃ 𝄞'",
            r"E'\\.'",
            r"E'\x01\x7f'",
        ],
    ),
    ("varchar(10)", true, &["'x'", "'ten chars!'", "'trail  '"]),
    ("char(5)", true, &["'a'", "'abcde'", "''"]),
    (r#""char""#, true, &["'a'", r"'\'", "''"]),
    ("name", true, &["'name'", "'Odd \"one'"]),
    ("bytea", true, &[r"'\x'", r"'\x00ff5c27'", r"'\x5c303030'"]),
    (
        "date",
        true,
        &["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'5874897-12-31'", "'2024-02-29'", "'0001-02-03'"],
    ),
    ("time", true, &["'24:00:00'", "'00:00:00.000001'", "'12:34:56.789'"]),
    ("timetz", true, &["'24:00:00-15:59:59'", "'12:00+05:30'", "'00:00:00.5+00:19:32'"]),
    (
        "timestamp",
        true,
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-01 00:00:00 BC'",
            "'294276-12-31 23:59:59.999999'",
            "'0099-03-04 05:06'",
        ],
    ),
    (
        "timestamptz",
        true,
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-02 00:00:00+00 BC'",
            "'2024-03-31 01:30:00+00'",
            "'1883-11-18 12:00:00+00'",
            "'0044-03-15 12:00:00.25+00 BC'",
        ],
    ),
    (
        "interval",
        true,
        &[
            "'-1 year -2 mons +3 days -04:05:06.789'",
            "'1 year 2 months'",
            "'-00:00:01'",
            "'1 mon -1 day'",
            "'0'",
            "'-178000000 years'",
            "'-1 days +02:03:00'",
        ],
    ),
    ("interval day to second(3)", true, &["'1 02:03:04.567'", "'-1 00:00:00.001'"]),
    ("bit(5)", true, &["B'10101'", "B'00000'"]),
    ("bit varying", true, &["B''", "B'1'", "B'000000001'"]),
    ("uuid", true, &["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'00000000-0000-0000-0000-000000000000'"]),
    ("inet", true, &["'192.168.0.1/24'", "'::1'", "'10.0.0.1'", "'2001:db8::/32'"]),
    ("cidr", true, &["'192.168.0.0/16'", "'2001:db8::/32'"]),
    ("macaddr", true, &["'08:00:2b:01:02:03'"]),
    ("macaddr8", true, &["'08:00:2b:01:02:03:04:05'"]),
    (
        "money",
        true,
        &["'92233720368547758.07'::numeric::money", "'-1234.56'::numeric::money", "'0'::numeric::money"],
    ),
    ("oid", true, &["0", "4294967295"]),
    ("pg_lsn", true, &["'0/0'", "'FFFFFFFF/FFFFFFFF'"]),
    ("xid8", true, &["'18446744073709551615'"]),
    ("json", false, &[r#"'{"b": 1,  "a": [null, "\u00e9\n"], "b": 2}'"#, "'null'", r#"'"\\"'"#]),
    ("jsonb", true, &[r#"'{"b": 1.00, "a": [null, "\u00e9\t\\"]}'"#, "'null'", "'1e400'"]),
    ("jsonpath", false, &["'$.a[*] ? (@ > 1)'"]),
    (
        "xml",
        false,
        &["xmlparse(content 'a<b>&amp;</b>c')", "xmlparse(document '<?xml version=\"1.0\"?><a>ü</a>')"],
    ),
    ("tsvector", true, &[r"$$'it''s':1A,2 'back\\slash' b:3$$", "''"]),
    ("tsquery", true, &[r"$$'a b' & !c:*A | d <2> e$$"]),
    ("point", false, &["'(1e-300,-0)'", "'(NaN,Infinity)'"]),
    ("line", false, &["'{1,2,3}'"]),
    ("lseg", false, &["'[(0,0),(1,0.1)]'"]),
    ("box", false, &["'(3,4),(1,2)'"]),
    ("path", false, &["'[(0,0),(1,1),(2,0)]'", "'((0,0),(1,1))'"]),
    ("polygon", false, &["'((0,0),(1,1),(2,0))'"]),
    ("circle", false, &["'<(1,2),0.3>'"]),
    ("int4range", true, &["'empty'", "'[1,5)'", "'(,)'", "'[,3]'"]),
    ("numrange", true, &["'(1.10,2.000]'", "'[,)'"]),
    ("tstzrange", true, &["'[-infinity,infinity]'", "'(2024-01-01 00:00+02,)'"]),
    ("daterange", true, &["'[2024-01-01,2024-02-01)'"]),
    ("int8multirange", true, &["'{}'", "'{[1,3),[5,9)}'"]),
    ("datemultirange", true, &["'{[2024-01-01,2024-02-01),[2025-01-01,)}'"]),
    ("span", true, &["'[0.1,0.30000000000000004)'", "'empty'"]),
    ("spans", true, &["'{[0.1,1),[2,3]}'"]),
    ("int[]", true, &["'{}'", "'{1,NULL,3}'", "'{{1,2},{3,4}}'", "'[0:1][-2:-1]={{1,2},{3,4}}'"]),
    ("text[]", true, &[r#"ARRAY['', 'NULL', NULL, 'a,b', '{', '"', E'\\', E'n\nt\t']"#, "'{}'"]),
    ("timestamptz[]", true, &["ARRAY['2024-03-31 01:30:00+00', 'infinity', NULL]::timestamptz[]"]),
    ("money[]", true, &["ARRAY[1234.56::numeric::money, NULL]"]),
    ("bytea[]", true, &[r"ARRAY['\x00ff'::bytea, '\x', NULL]"]),
    (r#""Odd ""schema""".mood"#, true, &["'so so'", r"'a\b'", "''", r#"'it''s "fine"'"#]),
    (r#""Odd ""schema""".mood[]"#, true, &[r#"ARRAY['so so', 'a\b', '', NULL]::"Odd ""schema""".mood[]"#]),
    ("pair", true, &[r#"ROW(1, E'a"b\\c,(d', '{1.0,NULL}')"#, "ROW(NULL, NULL, NULL)", "ROW(2, '', '{}')"]),
    ("nested", true, &["ROW(ROW(1, 'x', NULL)::pair, '2024-01-01 00:00+00')"]),
    ("pair[]", true, &[r#"ARRAY[ROW(1, 'a "q"', NULL)::pair, NULL]"#]),
    ("short", true, &["'ok'", "''"]),
    ("deep", true, &["'deep'"]),
    ("codes", true, &["'{1,2,NULL}'", "'{}'"]),
    ("codes[]", false, &["ARRAY['{1,2}'::codes, '{}'::codes]"]),
    ("regclass", true, &["'pg_catalog.pg_class'", "'public.zoo_0'"]),
    ("regtype", true, &["'\"char\"'", "'public.pair'"]),
];

/// The same of extensions that are there on both sides.
const EXTENSIONS: &[(&str, &str, bool, &[&str])] = &[
    ("hstore", "hstore", true, &[r#"'a=>1, "b b"=>NULL, "q\""=>"\\"'"#, "''"]),
    ("citext", "citext", true, &["'MiXed'", "'ÜBER'"]),
    ("ltree", "ltree", true, &["'Top.Science.Astronomy'", "''"]),
];

struct Table {
    name: String,
    sql_type: String,
    keyed: bool,
    values: Vec<String>,
}

impl Table {
    fn values(&self) -> String {
        let rows: Vec<String> = self
            .values
            .iter()
            .enumerate()
            .map(|(at, value)| format!("({at}, ({value})::{})", self.sql_type))
            .collect();
        format!("(VALUES {}) AS v(n, v)", rows.join(", "))
    }

    fn create(&self) -> String {
        let (name, sql_type) = (&self.name, &self.sql_type);
        let mut sql = format!(
            "CREATE TABLE {name} (id int PRIMARY KEY, v {sql_type}, w {sql_type}); \
             CREATE TABLE {name}_full (v {sql_type}, n int); ALTER TABLE {name}_full REPLICA IDENTITY FULL;"
        );
        if self.keyed {
            let _ = write!(sql, "CREATE TABLE {name}_key (v {sql_type} PRIMARY KEY, n int);");
        }
        sql
    }

    /// Rows; `round` keeps those of the copy apart from those of the stream.
    fn insert(&self, round: i32) -> String {
        let (name, values, first) = (&self.name, self.values(), round * 1000);
        let mut sql = format!(
            "INSERT INTO {name} SELECT {first} + n, v, NULL FROM {values}; \
             INSERT INTO {name} SELECT {first} + 100 + 10 * g + n, v, v FROM {values}, generate_series(1, 15) g WHERE n < 10; \
             INSERT INTO {name}_full SELECT v, g FROM {values}, generate_series(1, 4) g; \
             INSERT INTO {name}_full VALUES (NULL, 1), (NULL, 1), (NULL, NULL);"
        );
        if self.keyed && round == 0 {
            let _ = write!(sql, "INSERT INTO {name}_key SELECT v, n FROM {values} WHERE n % 2 = 0;");
        }
        sql
    }

    fn changes(&self) -> String {
        let (name, values) = (&self.name, self.values());
        let mut sql = format!(
            "UPDATE {name} t SET w = v, v = (SELECT v.v FROM {values} WHERE v.n = t.id % {}) WHERE id % 3 = 0; \
             DELETE FROM {name} WHERE id % 3 = 1 AND id > 100; \
             UPDATE {name} SET id = id + 100000 WHERE id % 1000 = 110; \
             UPDATE {name}_full SET n = 9, v = NULL WHERE ctid = (SELECT min(ctid) FROM {name}_full); \
             UPDATE {name}_full SET n = n + 1 WHERE n = 2; \
             DELETE FROM {name}_full WHERE ctid = (SELECT max(ctid) FROM {name}_full WHERE n = 1); \
             DELETE FROM {name}_full WHERE n = 4;",
            self.values.len()
        );
        if self.keyed {
            let _ = write!(
                sql,
                "INSERT INTO {name}_key SELECT v, n FROM {values} WHERE n % 2 = 1; \
                 UPDATE {name}_key SET n = n + 10; DELETE FROM {name}_key WHERE n % 3 = 0;"
            );
        }
        sql
    }

    fn all(&self) -> Vec<String> {
        let mut names = vec![self.name.clone(), format!("{}_full", self.name)];
        names.extend(self.keyed.then(|| format!("{}_key", self.name)));
        names
    }
}

async fn available(client: &Client) -> Result<Vec<String>> {
    let rows = client.query("SELECT name::text FROM pg_available_extensions", &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Rows, and a hash of their text.
async fn hash(client: &Client, table: &str) -> Result<(i64, Option<String>)> {
    let sql = format!(
        "SELECT count(*), md5(string_agg(t::text, E'\\n' ORDER BY t::text COLLATE \"C\")) FROM ONLY {table} t"
    );
    let row = client.query_one(&sql, &[]).await.with_context(|| table.to_owned())?;
    Ok((row.get(0), row.get(1)))
}

async fn pinned(cluster: &TestCluster) -> Result<Client> {
    let client = cluster.connect_as(GODWIT_ROLE, "zoo").await?;
    client
        .batch_execute(
            "SET datestyle = 'ISO, YMD'; SET intervalstyle = postgres; SET extra_float_digits = 3; \
             SET bytea_output = hex; SET timezone = 'UTC'; SET xmloption = content; SET lc_monetary = 'C'",
        )
        .await?;
    Ok(client)
}

async fn round_trip(source: u32, target: u32) -> Result<()> {
    let (source, target) = (TestCluster::start(source)?, TestCluster::start(target)?);
    for (cluster, settings) in [
        (&source, ["'SQL, DMY'", "sql_standard", "-3", "escape", "'America/St_Johns'", "document", "on"]),
        (&target, ["'German, MDY'", "iso_8601", "0", "escape", "'Asia/Kathmandu'", "document", "off"]),
    ] {
        let client = cluster.connect("postgres").await?;
        client.batch_execute("CREATE DATABASE zoo").await?;
        cluster.govern("zoo", &[]).await?;
        let names = [
            "datestyle",
            "intervalstyle",
            "extra_float_digits",
            "bytea_output",
            "timezone",
            "xmloption",
            "array_nulls",
        ];
        for (name, value) in names.iter().zip(settings) {
            client.batch_execute(&format!("ALTER DATABASE zoo SET {name} = {value}")).await?;
        }
    }
    let (from, to) = (pinned(&source).await?, pinned(&target).await?);
    let there = available(&to).await?;
    let here = available(&from).await?;
    let mut tables: Vec<Table> = Vec::new();
    let mut add = |sql_type: &str, keyed: bool, values: &[&str]| {
        let name = format!("public.zoo_{}", tables.len());
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        tables.push(Table { name, sql_type: sql_type.into(), keyed, values });
    };
    // Some builds come without XML.
    let xml = from.batch_execute("SELECT '<a/>'::xml").await.is_ok()
        && to.batch_execute("SELECT '<a/>'::xml").await.is_ok();
    for (sql_type, keyed, values) in ZOO.iter().filter(|(sql_type, ..)| xml || *sql_type != "xml") {
        add(sql_type, *keyed, values);
    }
    from.batch_execute(MADE).await?;
    for (extension, sql_type, keyed, values) in EXTENSIONS {
        let known = |list: &[String]| list.iter().any(|name| name == extension);
        if known(&here) && known(&there) {
            from.batch_execute(&format!("CREATE EXTENSION {extension} SCHEMA public")).await?;
            add(sql_type, *keyed, values);
        }
    }
    for table in &tables {
        from.batch_execute(&table.create()).await.with_context(|| table.sql_type.clone())?;
    }
    for table in &tables {
        from.batch_execute(&table.insert(0)).await.with_context(|| table.sql_type.clone())?;
    }

    replicator::fence::install(&from, "zoo", 1).await?;
    replicator::fence::install(&to, "zoo", 1).await?;
    // Some builds are servers only; a newer pg_dump reads what an older one does.
    let programs =
        [18, 17, 16, 15].into_iter().filter_map(bin_directory).find(|bin| bin.join("pg_dump").exists());
    let end = LocalEnd::Source {
        dsn: source.config("zoo"),
        bin: programs,
        spill: Spill::default(),
        copy: CopyOptions::default(),
    };
    let peer = LocalPeer::new(LocalEnd::Target { dsn: target.config("zoo") }, Options::default());
    let stream = Running::start(&peer, end);
    stream.wait(|status| status.phase == Phase::Streaming).await?;
    for table in &tables {
        for name in table.all() {
            let (left, right) = (hash(&from, &name).await?, hash(&to, &name).await?);
            ensure!(left == right, "copy of {}: {name} differs: {left:?} {right:?}", table.sql_type);
        }
    }
    for table in &tables {
        // One transaction each: a group that is brought down to what it comes to.
        from.batch_execute(&table.insert(1)).await.with_context(|| table.sql_type.clone())?;
        from.batch_execute(&table.changes()).await.with_context(|| table.sql_type.clone())?;
    }
    let now = wal_position(&from).await?;
    stream.wait(|status| status.applied_lsn >= now).await.context("catch up")?;
    let mut rows = 0;
    for table in &tables {
        for name in table.all() {
            let (left, right) = (hash(&from, &name).await?, hash(&to, &name).await?);
            ensure!(left == right, "stream of {}: {name} differs: {left:?} {right:?}", table.sql_type);
            rows += left.0;
        }
    }
    println!("{} types, {rows} rows: equal by hash", tables.len());
    ensure!(stream.status.borrow().changes > 2_000, "too little went through the stream");
    stream.stop().await
}

struct Running {
    status: watch::Receiver<StreamStatus>,
    cancel: CancellationToken,
    task: AbortOnDropHandle<Result<(), replicator::Error>>,
}

impl Running {
    fn start(peer: &Arc<LocalPeer>, end: LocalEnd) -> Self {
        let spec = StreamSpec {
            resource: "zoo".into(),
            generation: 1,
            slot: slot::slot_name("zoo", 1),
            publication: slot::publication_name("zoo"),
            origin: slot::origin_name("zoo"),
            source_zone: "a".into(),
            target_zone: "b".into(),
            synchronous: false,
        };
        let (sender, status) = watch::channel(StreamStatus::default());
        let cancel = CancellationToken::new();
        let (stop, peer) = (cancel.clone(), Arc::clone(peer));
        let task = tokio::spawn(async move { maintain(&*peer, &spec, &end, &sender, &stop).await });
        Self { status, cancel, task: AbortOnDropHandle::new(task) }
    }

    async fn wait(&self, holds: impl Fn(&StreamStatus) -> bool) -> Result<()> {
        let mut status = self.status.clone();
        let wanted = status.wait_for(|status| holds(status) || matches!(&status.phase, Phase::Failed { .. }));
        match tokio::time::timeout(PATIENCE, wanted).await {
            Ok(Ok(status)) if holds(&status) => Ok(()),
            _ => bail!("never came to be; last: {:?}", *self.status.borrow()),
        }
    }

    async fn stop(self) -> Result<()> {
        self.cancel.cancel();
        Ok(self.task.await??)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_arrives_as_it_was() -> Result<()> {
    round_trip(15, 15).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_arrives_upwards() -> Result<()> {
    round_trip(15, other_major()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_arrives_downwards() -> Result<()> {
    round_trip(other_major(), 15).await
}

/// The majors between, where their servers are: `make test-versions`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL 16 and 17: make test-versions"]
async fn every_type_arrives_from_and_at_the_majors_between() -> Result<()> {
    for (source, target) in [(15, 16), (16, 17), (17, 16), (17, other_major()), (other_major(), 17), (16, 15)]
    {
        println!("{source} → {target}");
        round_trip(source, target).await.with_context(|| format!("{source} → {target}"))?;
    }
    Ok(())
}
