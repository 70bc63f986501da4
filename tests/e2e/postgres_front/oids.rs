//! The database's own types and tables through cutovers: each side numbers them otherwise, and a client goes by the numbers it knows.

use bytes::{BufMut, BytesMut};
use godwit::fronts::postgres::protocol::message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::types::{FromSql, IsNull, Kind, ToSql, Type, to_sql_checked};

use super::*;

/// The same on both sides, made in another order: so each number means something else there, or nothing.
const SIDES: [&str; 2] = [
    "CREATE TYPE color AS ENUM ('red', 'green'); CREATE TYPE size AS ENUM ('big', 'small');
     CREATE TABLE stock (paint color, weight int); CREATE TYPE piece AS (paint color, weight int);
     CREATE DOMAIN paints AS color[]",
    "CREATE TYPE size AS ENUM ('big', 'small'); CREATE TYPE color AS ENUM ('red', 'green');
     CREATE TYPE piece AS (paint color, weight int); CREATE DOMAIN paints AS color[];
     CREATE TABLE filler (); CREATE TABLE stock (paint color, weight int)",
];

async fn setup(pool: bool) -> Setup {
    let pool = pool.then_some(super::pooled::POOL_OF_FIVE);
    let change = |settings: &mut Settings| {
        settings.pool = pool;
        settings.auth = PostgresAuth::Trust;
        settings.passwords.insert("app".into(), PASSWORD.into());
    };
    let setup = Setup::with(HOLD, change, "").await;
    for (cluster, sql) in setup.clusters.iter().zip(SIDES) {
        let client = cluster.connect(DATABASE).await.unwrap();
        client.batch_execute(sql).await.unwrap();
        client.batch_execute("GRANT ALL ON stock TO app").await.unwrap();
    }
    setup
}

/// The type's number on the side that is primary.
async fn number(setup: &Setup, name: &str) -> u32 {
    let client = setup.here().connect(DATABASE).await.unwrap();
    client.query_one("SELECT $1::text::regtype::oid", &[&name]).await.unwrap().get(0)
}

/// Bytes that are sent as they are.
#[derive(Debug, PartialEq)]
struct Raw(Vec<u8>);

impl ToSql for Raw {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// And as they come.
impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, bytes: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(bytes.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

fn sized(out: &mut Vec<u8>, value: &[u8]) {
    out.put_i32(value.len().try_into().unwrap());
    out.extend(value);
}

/// An array in binary, as a driver writes it that knows what it is made of.
fn array(of: &Type, values: &[Vec<u8>]) -> Raw {
    let mut out = Vec::new();
    for number in [1, 0, of.oid(), values.len().try_into().unwrap(), 1] {
        out.put_u32(number);
    }
    for value in values {
        sized(&mut out, value);
    }
    Raw(out)
}

/// The same for a `piece`.
fn piece(paint: &Type, color: &str, weight: i32) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_i32(2);
    out.put_u32(paint.oid());
    sized(&mut out, color.as_bytes());
    out.put_u32(Type::INT4.oid());
    sized(&mut out, &weight.to_be_bytes());
    out
}

/// The type of the parameters that an array's is made of.
fn element(array: &Type) -> Type {
    match array.kind() {
        Kind::Array(element) => element.clone(),
        Kind::Domain(base) => element(base),
        kind => panic!("{array} is no array but {kind:?}"),
    }
}

async fn says(client: &Client, typed: &[Type], sql: &str, values: &[&(dyn ToSql + Sync)]) -> String {
    let statement = client.prepare_typed(sql, typed).await.unwrap();
    client.query_one(&statement, values).await.unwrap().get(0)
}

async fn goes_by_the_numbers_that_it_knows(pool: bool) {
    let setup = setup(pool).await;
    let client = setup.connect().await;
    let first = client.prepare("SELECT 'red'::color, s.* FROM stock s").await.unwrap();
    let known: Vec<_> =
        first.columns().iter().map(|it| (it.type_().oid(), it.table_oid(), it.name().to_owned())).collect();
    let color = first.columns()[0].type_().clone();
    assert_eq!(color.oid(), number(&setup, "color").await);
    let text = "SELECT concat_ws(' ', $1::color[], $2::piece, $3::piece[], $4::paints)";
    let prepared = client.prepare(text).await.unwrap();
    let pieces = element(&prepared.params()[2]);
    let (red, green) = (b"red".to_vec(), b"green".to_vec());
    let values = [
        array(&color, &[red.clone(), green.clone()]),
        Raw(piece(&color, "green", 7)),
        array(&pieces, &[piece(&color, "red", 1), piece(&color, "green", 2)]),
        array(&element(&prepared.params()[3]), &[green]),
    ];
    let sent = &values;
    let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value as _).collect();
    let back = "SELECT 0, $1::color[], $2::piece, $3::piece[], $4::paints";
    let prepared_back = client.prepare(back).await.unwrap();
    let expected = r#"{red,green} (green,7) {"(red,1)","(green,2)"} {green}"#;
    let mut numbers = vec![number(&setup, "color").await];
    for _ in 0..3 {
        let row = client.query_one(&prepared, &values).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), expected, "a statement that was prepared before");
        assert_eq!(says(&client, &[], text, &values).await, expected, "one that is prepared now");
        let back = client.prepare(back).await.unwrap();
        for statement in [&prepared_back, &back, &prepared_back] {
            let row = client.query_one(statement, &values).await.unwrap();
            for (place, sent) in sent.iter().enumerate() {
                assert_eq!(row.get::<_, Raw>(place + 1), *sent, "what comes back is what was sent: {place}");
            }
        }
        let (typed, value) = (std::slice::from_ref(&color), Raw(red.clone()));
        let kind = says(&client, typed, "SELECT pg_typeof($1)::text", &[&value]).await;
        assert_eq!(kind, "color", "a type that the client names by its number");
        let again = client.prepare("SELECT 'red'::color, s.* FROM stock s").await.unwrap();
        let now: Vec<_> = again
            .columns()
            .iter()
            .map(|it| (it.type_().oid(), it.table_oid(), it.name().to_owned()))
            .collect();
        assert_eq!(now, known);
        assert_eq!(again.columns()[0].type_().name(), "color");
        setup.cutover().await;
        numbers.push(number(&setup, "color").await);
    }
    assert!(numbers[0] == numbers[2] && numbers[0] != numbers[1], "{numbers:?}");
    // What it has not met yet it asks the catalogue for, where it is now.
    let size = client.prepare("SELECT 'big'::size").await.unwrap();
    assert_eq!(size.columns()[0].type_().name(), "size");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_goes_by_the_numbers_that_it_knows() {
    goes_by_the_numbers_that_it_knows(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_shares_connections_goes_by_the_numbers_that_it_knows() {
    goes_by_the_numbers_that_it_knows(true).await;
}

/// Sends everybody to the other side, where only that one is asked.
async fn take_over(setup: &Setup) {
    let turnstile = &setup.front.turnstile;
    turnstile.close();
    turnstile.end_transactions();
    let (zone, at) = if &*setup.front.active().zone == "a" { ("b", 1) } else { ("a", 0) };
    let there = setup.clusters[at].connect(DATABASE).await.unwrap();
    setup.front.learn_numbers_there(zone, &there).await.unwrap();
    setup.swap().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_of_a_lost_primary_are_exchanged_or_end_their_client() {
    let setup = setup(true).await;
    let (knows, other) = (setup.connect().await, setup.connect().await);
    let color = async |client: &Client| {
        let statement = client.prepare("SELECT 'red'::color").await.unwrap();
        statement.columns()[0].type_().oid()
    };
    let first = color(&knows).await;
    other.query("SELECT * FROM item", &[]).await.unwrap();
    // Nobody has ever asked the lost one.
    take_over(&setup).await;
    assert_ne!(number(&setup, "color").await, first);
    let ended = knows.query("SELECT 'red'::color", &[]).await.unwrap_err();
    let detail = ended.as_db_error().and_then(|told| told.detail()).unwrap_or_default();
    assert!(detail.contains("the numbers of types that its client knows"), "{ended:?}");
    assert_eq!(sqlstate(&ended), "57P01");
    other.query("SELECT * FROM item", &[]).await.unwrap();
    // It was asked as it took over.
    let known = color(&other).await;
    assert_eq!(known, number(&setup, "color").await);
    take_over(&setup).await;
    assert_ne!(number(&setup, "color").await, known);
    assert_eq!(color(&other).await, known);
}

/// A client that asks nothing by itself: it has what the protocol tells.
struct Wire(TcpStream);

impl Wire {
    async fn connect(setup: &Setup) -> Self {
        let mut this = Self(TcpStream::connect(setup.front.settings.listen).await.unwrap());
        let mut out = Vec::new();
        message::startup(&mut out, [("user", "app"), ("database", DATABASE)].into_iter());
        this.0.write_all(&out).await.unwrap();
        this.answer().await;
        this
    }

    /// What is answered: types of messages and their bodies.
    async fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Vec<(u8, Vec<u8>)> {
        let mut out = Vec::new();
        write(&mut out);
        self.0.write_all(&out).await.unwrap();
        self.answer().await
    }

    async fn answer(&mut self) -> Vec<(u8, Vec<u8>)> {
        let mut answer = Vec::new();
        loop {
            let tag = tokio::time::timeout(DEADLINE, self.0.read_u8()).await.expect("an answer").unwrap();
            let mut body = vec![0; self.0.read_u32().await.unwrap() as usize - 4];
            self.0.read_exact(&mut body).await.unwrap();
            match tag {
                b'E' => panic!("{}", String::from_utf8_lossy(&body)),
                b'Z' => return answer,
                _ => answer.push((tag, body)),
            }
        }
    }

    /// The number of the type of a query's only column.
    async fn told(&mut self, sql: &str) -> u32 {
        let answer = self.say(|out| message::query(out, sql.as_bytes())).await;
        let (_, described) = answer.into_iter().find(|(tag, _)| *tag == b'T').unwrap();
        let after_name = 2 + described[2..].iter().position(|byte| *byte == 0).unwrap() + 1;
        u32::from_be_bytes(*described[after_name + 6..].first_chunk().unwrap())
    }
}

/// Drivers look a type up when they connect, and read whatever comes by its number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_that_a_query_told_stay_true() {
    for pool in [false, true] {
        let setup = setup(pool).await;
        let (mut client, mut fresh) = (Wire::connect(&setup).await, Wire::connect(&setup).await);
        let lookup = b"SELECT typname, typarray, oid FROM pg_type WHERE typname = 'size'";
        client.say(|out| message::query(out, lookup)).await;
        let told = number(&setup, "size").await;
        setup.cutover().await;
        let there = number(&setup, "size").await;
        assert_ne!(told, there);
        assert_eq!(client.told("SELECT 'big'::size").await, told);
        assert_eq!(fresh.told("SELECT 'big'::size").await, there, "it knows none");
        setup.cutover().await;
        assert_eq!(client.told("SELECT 'big'::size").await, told);
        assert_eq!(fresh.told("SELECT 'big'::size").await, there, "it was told so");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unnamed_statement_keeps_its_types_over_several_moves() {
    for pool in [false, true] {
        let setup = setup(pool).await;
        let mut client = Wire::connect(&setup).await;
        let color = number(&setup, "color").await;
        let prepare = |out: &mut Vec<u8>| {
            message::parse(out, b"", b"SELECT pg_typeof($1)::text", &[color]);
            message::sync(out);
        };
        client.say(prepare).await;
        for _ in 0..3 {
            setup.cutover().await;
            let run = |out: &mut Vec<u8>| {
                message::bind(out, "", "", &[b"red"]);
                message::execute(out, "");
                message::sync(out);
            };
            let answer = client.say(run).await;
            let row = answer.iter().find(|(tag, _)| *tag == b'D').and_then(|(_, row)| message::row(row));
            assert_eq!(row.unwrap(), [Some(&b"color"[..])]);
        }
    }
}
