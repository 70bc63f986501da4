use super::*;

fn side(rows: &[(&str, &str, &str, &str, Option<&str>)]) -> Fingerprint {
    let thing = |row: &(&str, &str, &str, &str, Option<&str>)| {
        let shape = Shape { definition: row.3.into(), sql: row.4.map(str::to_owned), undo: None };
        ((row.0.into(), row.1.into(), row.2.into()), shape)
    };
    Fingerprint {
        things: rows.iter().map(thing).collect(),
        major: 15,
        role: "godwit".into(),
        ..Fingerprint::default()
    }
}

#[test]
fn every_difference_is_named_with_what_mends_it() {
    let source = side(&[
        ("table", "public.orders", "", "plain", None),
        ("column", "public.orders", "id", "bigint NOT NULL", None),
        ("column", "public.orders", "note", "text", Some("ALTER TABLE public.orders ADD COLUMN note text")),
        ("column", "public.orders", "stamp", "uuid DEFAULT gen_random_uuid()", None),
        ("column", "public.orders", "total", "numeric NOT NULL", None),
        (
            "index",
            "public.orders",
            "by_note",
            "CREATE INDEX",
            Some("CREATE INDEX by_note ON public.orders (note)"),
        ),
        ("table", "public.new", "", "plain", None),
        ("column", "public.new", "id", "bigint", None),
        ("table", "public.days", "", "partitioned by RANGE (day)", None),
        ("table", "public.new_day", "", "plain", None),
        (
            "partition of",
            "public.new_day",
            "public.days",
            "DEFAULT",
            Some("ALTER TABLE public.days ATTACH PARTITION public.new_day DEFAULT"),
        ),
        ("column", "public.days", "relaxed", "text", None),
        ("constraint", "public.days", "strict", "CHECK (true)", Some("ALTER TABLE public.days ADD …")),
        ("type", "public.mood", "", "enum", None),
        ("enum value", "public.mood", "calm", "present", Some("ALTER TYPE public.mood ADD VALUE 'calm'")),
        ("type", "public.color", "", "enum", Some("CREATE TYPE public.color AS ENUM ('red')")),
        ("enum value", "public.color", "red", "present", Some("ALTER TYPE public.color ADD VALUE 'red'")),
        (
            "function",
            "public.f(integer)",
            "",
            "body 1",
            Some("CREATE OR REPLACE FUNCTION public.f(integer) …"),
        ),
        ("owner", "public.f(integer)", "", "clerk", Some("ALTER FUNCTION public.f(integer) OWNER TO clerk")),
        ("function", "public.g()", "", "body 1", Some("CREATE OR REPLACE FUNCTION public.g() …")),
        (
            "right on function",
            "public.g()",
            "EXECUTE to PUBLIC",
            "granted",
            Some("GRANT EXECUTE ON FUNCTION public.g() TO PUBLIC"),
        ),
        ("view", "public.open", "", "(id bigint)", Some("CREATE OR REPLACE VIEW public.open AS SELECT 1")),
        ("query", "public.open", "", "SELECT 1", Some("CREATE OR REPLACE VIEW public.open AS SELECT 1")),
        (
            "materialized view",
            "public.sums",
            "",
            "(id bigint)",
            Some("CREATE MATERIALIZED VIEW public.sums AS SELECT 2"),
        ),
        ("query", "public.sums", "", "SELECT 2", Some("CREATE MATERIALIZED VIEW public.sums AS SELECT 2")),
        (
            "sequence",
            "public.numbers",
            "",
            "INCREMENT BY 2",
            Some("CREATE SEQUENCE public.numbers INCREMENT BY 2"),
        ),
        (
            "own state of trigger",
            "public.new_day",
            "stamps",
            "disabled",
            Some("ALTER TABLE ONLY public.new_day DISABLE TRIGGER stamps"),
        ),
        (
            "right on table",
            "public.orders",
            "SELECT to app",
            "granted",
            Some("GRANT SELECT ON TABLE public.orders TO app"),
        ),
    ]);
    let shadow = side(&[
        ("table", "public.orders", "", "plain", None),
        ("column", "public.orders", "id", "integer NOT NULL", None),
        ("column", "public.orders", "total", "numeric", None),
        ("column", "public.orders", "old", "text", None),
        ("table", "public.gone", "", "plain", None),
        ("column", "public.gone", "id", "bigint", None),
        ("table", "public.days", "", "partitioned by RANGE (day)", None),
        ("table", "public.new_day", "", "plain", None),
        ("own state of trigger", "public.new_day", "stamps", "always", None),
        ("table", "public.old_day", "", "plain", None),
        ("partition of", "public.old_day", "public.days", "DEFAULT", None),
        ("column", "public.days", "relaxed", "text NOT NULL", None),
        ("column", "public.days", "demanded", "text NOT NULL", None),
        ("column", "public.days", "made", "text DEFAULT 'x' NOT NULL", None),
        ("constraint", "public.days", "lenient", "CHECK (false)", None),
        ("type", "public.mood", "", "enum", None),
        ("function", "public.f(integer)", "", "body 2", None),
        ("owner", "public.f(integer)", "", "postgres", None),
        ("function", "public.of_a_person()", "", "body 1", None),
        ("function", "public.was_on_both()", "", "body 1", None),
        ("view", "public.open", "", "(id bigint)", None),
        ("query", "public.open", "", "SELECT 0", None),
        ("materialized view", "public.sums", "", "(id bigint)", None),
        ("query", "public.sums", "", "SELECT 1", None),
        ("sequence", "public.numbers", "", "INCREMENT BY 1", None),
        ("right on table", "public.orders", "SELECT to everybody", "granted", None),
        ("right on table", "public.orders", "SELECT to godwit_there", "granted", None),
        ("trigger", "public.orders", "spy", "CREATE TRIGGER", None),
        ("statistics", "public.orders", "both", "CREATE STATISTICS ON id, total FROM public.orders", None),
        ("owner", "public.orders", "of statistics both", "postgres", None),
    ]);
    let seen = ("function".into(), "public.was_on_both()".into(), String::new());
    let pairs = Some([(seen, (String::new(), String::new()))].into());
    let shadow = Fingerprint { role: "godwit_there".into(), pairs, ..shadow };
    let found = compare(&source, &shadow, ["eu-west", "eu-central"]);
    let text: Vec<String> = found
        .iter()
        .map(|found| {
            let when = if found.when == When::Now { "" } else { ", caught up" };
            format!("{}: {}  [{:?}{when}]", found.subject, found.what, found.mend)
        })
        .collect();
    insta::assert_snapshot!(text.join("\n"));
    let other_major = Fingerprint { major: 18, ..shadow.clone() };
    let words = compare(&source, &other_major, ["eu-west", "eu-central"]);
    assert!(words.iter().all(|difference| !difference.what.starts_with("query")), "{words:#?}");
    assert!(compare(&source, &source, ["a", "b"]).is_empty());
    assert_eq!(whose("SELECT to app"), Some(("SELECT", "app")));
    assert_eq!(whose(r#"SELECT ("up to") to "to to""#), Some((r#"SELECT ("up to")"#, r#""to to""#)));
    assert_eq!(whose(r#"SELECT ("a) to b") to app"#), Some((r#"SELECT ("a) to b")"#, "app")));
}

#[test]
fn a_right_that_a_server_does_not_know_is_no_difference() {
    let right = |role: &str| {
        let sql = format!("GRANT MAINTAIN ON TABLE public.t TO {role}");
        let name = format!("MAINTAIN to {role}");
        side(&[
            ("table", "public.t", "", "plain", None),
            ("right on table", "public.t", &name, "granted", Some(&sql)),
        ])
    };
    let told = |majors: [u32; 2]| {
        let [source, shadow] = [("app", majors[0]), ("clerk", majors[1])]
            .map(|(role, major)| Fingerprint { major, ..right(role) });
        compare(&source, &shadow, ["a", "b"]).into_iter().map(|found| found.mend).collect::<Vec<_>>()
    };
    let both = [
        Mend::Add("GRANT MAINTAIN ON TABLE public.t TO app".into()),
        Mend::Add("REVOKE MAINTAIN ON TABLE public.t FROM clerk".into()),
    ];
    assert_eq!(told([17, 18]), both);
    assert_eq!((told([18, 15]), told([15, 18])), (vec![], vec![]));
}

#[test]
fn what_is_taken_away_goes_before_what_is_left_is_given() {
    let found = |source: Fingerprint, shadow: Fingerprint| {
        let found = compare(&source, &shadow, ["near", "far"]);
        found.into_iter().map(|difference| difference.mend).collect::<Vec<_>>()
    };
    let right = |definition: &str, sql: &str| {
        let table = ("table", "s.t", "", "plain", None);
        side(&[table, ("right on table", "s.t", "SELECT (id) to app", definition, Some(sql))])
    };
    let [with, without] = [right("granted with grant option", "GRANT … OPTION"), right("granted", "GRANT …")];
    let taken = "REVOKE GRANT OPTION FOR SELECT (id) ON TABLE s.t FROM app CASCADE";
    assert_eq!(found(without.clone(), with.clone()), [Mend::Add(taken.into())]);
    assert_eq!(found(with, without), [Mend::Add("GRANT … OPTION".into())]);
    // An aggregate is called otherwise where it is granted.
    let right = |definition: &str, sql: &str| {
        let function = ("function", "s.f(*)", "", "", None);
        side(&[function, ("right on function", "s.f(*)", "EXECUTE to app", definition, Some(sql))])
    };
    let granted = "GRANT EXECUTE ON FUNCTION s.f() TO app";
    let with = right("granted with grant option", &format!("{granted} WITH GRANT OPTION"));
    let none = side(&[("function", "s.f(*)", "", "", None)]);
    assert_eq!(found(none, with.clone()), [Mend::Add("REVOKE EXECUTE ON FUNCTION s.f() FROM app".into())]);
    let option = "REVOKE GRANT OPTION FOR EXECUTE ON FUNCTION s.f() FROM app CASCADE";
    assert_eq!(found(right("granted", granted), with), [Mend::Add(option.into())]);

    let privileges = |rights: &str, sql: &str, undo: &str| {
        let mut side = side(&[("default privileges", "role app: new tables", "", rights, Some(sql))]);
        side.things.values_mut().for_each(|shape| shape.undo = Some(undo.into()));
        side
    };
    let [fewer, more] = [privileges("SELECT to b", "GIVE b", "TAKE b"), privileges("…", "GIVE", "TAKE a, b")];
    assert_eq!(found(fewer, more.clone()), [Mend::Add("TAKE a, b; GIVE b".into())]);
    assert_eq!(found(side(&[]), more), [Mend::Add("TAKE a, b".into())]);
}

#[test]
fn the_columns_of_a_typed_table_are_its_types() {
    let ty = |attributes: &str, columns: &[(&str, &str)], of: Option<&str>| {
        let columns =
            columns.iter().map(|(name, kind)| ("column", "s.t", *name, *kind, Some("ALTER TABLE …")));
        let of = of.map(|of| ("row type", "s.t", "", of, Some("ALTER TABLE s.t OF s.c")));
        let whole = [("table", "s.t", "", "plain", None), ("type", "s.c", "", attributes, None)];
        side(&whole.into_iter().chain(columns).chain(of).collect::<Vec<_>>())
    };
    let found = |source: &Fingerprint, shadow: &Fingerprint| {
        let found = compare(source, shadow, ["near", "far"]);
        found.into_iter().map(|difference| (difference.subject, difference.mend)).collect::<Vec<_>>()
    };
    let [one, plain] = [Some("s.c"), None].map(|of| ty("(a integer)", &[("a", "integer")], of));
    let more = ty("(a integer, b text)", &[("a", "integer"), ("b", "text")], Some("s.c"));
    let sql = |sql: &str| Mend::Add(sql.into());
    let added = "ALTER TYPE s.c ADD ATTRIBUTE b text CASCADE";
    assert_eq!(found(&more, &one), [("s.c".to_owned(), sql(added))]);
    let dropped = Mend::Drop("ALTER TYPE s.c DROP ATTRIBUTE b CASCADE".into());
    assert_eq!(found(&one, &more), [("s.c".to_owned(), dropped)]);
    let wider = ty("(a bigint)", &[("a", "bigint")], Some("s.c"));
    assert_eq!(found(&wider, &one), [("s.c".to_owned(), Mend::Person(None))]);
    assert_eq!(found(&one, &plain), [("s.t".to_owned(), sql("ALTER TABLE s.t OF s.c"))]);
    assert_eq!(found(&plain, &one), [("s.t".to_owned(), sql("ALTER TABLE s.t NOT OF"))]);
}

/// Rows of a parent come of it as well.
#[test]
fn a_foreign_table_that_is_gone_is_no_child_any_more() {
    let table = ("table", "s.mother", "", "plain", None);
    let shadow = side(&[
        table,
        ("foreign table", "s.t", "", "of server afar", None),
        ("column", "s.t", "id", "integer", None),
        ("child of", "s.t", "s.mother", "it", None),
    ]);
    let found = compare(&side(&[table]), &shadow, ["near", "far"]);
    let mends: Vec<_> = found.into_iter().map(|difference| difference.mend).collect();
    assert_eq!(mends, [Mend::Add("ALTER TABLE s.t NO INHERIT s.mother".into())]);
}

#[test]
fn a_table_that_is_logged_by_now_is_made_so_and_holds_nothing() {
    let [logged, unlogged] = ["plain", "plain unlogged"].map(|how| side(&[("table", "s.t", "", how, None)]));
    let found = |source: &Fingerprint, shadow: &Fingerprint| {
        let found = compare(source, shadow, ["near", "far"]);
        found.into_iter().map(|difference| difference.mend).collect::<Vec<_>>()
    };
    let made = Mend::Add("DELETE FROM ONLY s.t; ALTER TABLE s.t SET LOGGED".into());
    assert_eq!(found(&logged, &unlogged), [made]);
    // PostgreSQL refuses that of a table that is published.
    assert_eq!(found(&unlogged, &logged), [Mend::Person(None)]);
}
