use bytes::Bytes;

use super::*;
use crate::apply::postgres::catalog::{TargetColumn, Transport};
use crate::change::{Column, ReplicaIdentity};

fn relation(id: u32, identity: ReplicaIdentity) -> Arc<Relation> {
    let column = |name: &str, key| Column { name: name.into(), key, type_oid: 0, type_modifier: -1 };
    Arc::new(Relation {
        id,
        schema: "public".into(),
        name: format!("t{id}"),
        identity,
        columns: vec![column("id", true), column("v", false)],
    })
}

fn table(relation: &Arc<Relation>, key: Vec<usize>) -> Table {
    let column = |name: &str, type_name: &str, transport| TargetColumn {
        sql_name: format!("\"{name}\""),
        type_name: type_name.into(),
        transport,
        equals: "OPERATOR(pg_catalog.=)".into(),
        always_identity: false,
        by_input: false,
    };
    Table {
        sql_name: format!("public.{}", relation.name),
        label: format!("public.{}", relation.name),
        columns: vec![
            column("id", "pg_catalog.int4", Transport::Int4),
            column("v", "pg_catalog.text", Transport::Text),
        ],
        key,
        others: Vec::new(),
        watched: false,
        partitioned: false,
        relation: Arc::clone(relation),
    }
}

fn text(value: &str) -> Cell {
    Cell::Text(Bytes::copy_from_slice(value.as_bytes()))
}

fn insert(relation: &Arc<Relation>, id: &str) -> Change {
    Change::Insert { relation: Arc::clone(relation), new: vec![text(id), text("v")] }
}

fn update(relation: &Arc<Relation>, id: &str, v: Cell) -> Change {
    Change::Update { relation: Arc::clone(relation), old: None, new: vec![text(id), v] }
}

fn rekey(relation: &Arc<Relation>, from: &str, to: &str, v: Cell) -> Change {
    let old = Some(OldRow::Key(vec![text(from), Cell::Null]));
    Change::Update { relation: Arc::clone(relation), old, new: vec![text(to), v] }
}

fn delete(relation: &Arc<Relation>, id: &str) -> Change {
    Change::Delete { relation: Arc::clone(relation), old: OldRow::Key(vec![text(id), Cell::Null]) }
}

fn planned(changes: &[Change], order: Order, tables: Vec<Table>) -> Vec<Statement> {
    let mut known = Tables::default();
    for table in tables {
        known.know(Arc::new(table));
    }
    let items: Vec<Item<'_>> = changes.iter().map(|change| (Lsn(2), change)).collect();
    plan(&items, order, &known).expect("plannable")
}

fn show(changes: &[Change], order: Order, tables: Vec<Table>) -> String {
    planned(changes, order, tables)
        .iter()
        .map(|statement| format!("{} × {}   -- {}", statement.rows, statement.sql, statement.key))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Rows and first words of what one keyed table's changes come to.
fn brief(changes: &[Change], relation: &Arc<Relation>) -> Vec<String> {
    planned(changes, Order::Net, vec![table(relation, vec![0])])
        .iter()
        .map(|statement| {
            let verb =
                ["DELETE", "UPDATE", "INSERT", "COPY"].into_iter().find(|verb| statement.sql.contains(verb));
            format!("{} {}", verb.unwrap_or("?"), statement.rows)
        })
        .collect()
}

#[test]
fn each_row_is_written_once_and_tables_do_not_disturb_each_other() {
    let (a, b) = (relation(1, ReplicaIdentity::Default), relation(2, ReplicaIdentity::Default));
    let changes = [
        insert(&a, "1"),
        insert(&b, "1"),
        insert(&a, "2"),
        update(&a, "1", text("x")),
        update(&a, "3", text("x")),
        update(&a, "3", text("again")),
        delete(&a, "4"),
        delete(&a, "2"),
        Change::Truncate { relations: vec![Arc::clone(&b)], cascade: true, restart_identity: true },
        insert(&b, "1"),
    ];
    let tables = || vec![table(&a, vec![0]), table(&b, vec![0])];
    insta::assert_snapshot!(show(&changes, Order::Net, tables()));
    assert_eq!(planned(&changes, Order::Rows, tables()).len(), changes.len());
}

#[test]
fn what_changes_of_one_key_come_to() {
    let a = &relation(1, ReplicaIdentity::Default);
    for (changes, expected) in [
        (vec![insert(a, "1"), delete(a, "1")], vec![]),
        (vec![insert(a, "1"), update(a, "1", text("x"))], vec!["INSERT 1"]),
        (vec![update(a, "1", text("x")), delete(a, "1")], vec!["DELETE 1"]),
        (vec![delete(a, "1"), insert(a, "1")], vec!["DELETE 1", "INSERT 1"]),
        (vec![delete(a, "1"), insert(a, "1"), delete(a, "1")], vec!["DELETE 1"]),
        (vec![insert(a, "1"), delete(a, "1"), insert(a, "1")], vec!["INSERT 1"]),
        // Keys that change places.
        (
            vec![rekey(a, "1", "0", text("x")), rekey(a, "2", "1", text("y")), rekey(a, "0", "2", text("x"))],
            vec!["DELETE 2", "INSERT 2"],
        ),
        // What the source cannot have done is left for the database to judge.
        (vec![insert(a, "1"), insert(a, "1")], vec!["INSERT 1", "INSERT 1"]),
        (vec![delete(a, "1"), delete(a, "1")], vec!["DELETE 1", "DELETE 1"]),
        (vec![delete(a, "1"), update(a, "1", text("x"))], vec!["DELETE 1", "UPDATE 1"]),
        (
            vec![update(a, "2", text("x")), rekey(a, "1", "2", text("x"))],
            vec!["UPDATE 1", "DELETE 1", "INSERT 1"],
        ),
    ] {
        assert_eq!(brief(&changes, a), expected, "{changes:?}");
    }
}

#[test]
fn values_that_were_not_sent() {
    let a = relation(1, ReplicaIdentity::Default);
    let known = [insert(&a, "1"), rekey(&a, "1", "2", Cell::Unchanged)];
    let unknown = [rekey(&a, "1", "2", Cell::Unchanged), delete(&a, "2")];
    let apart = [update(&a, "1", Cell::Unchanged), update(&a, "2", text("x")), update(&a, "1", text("y"))];
    let shown: Vec<String> = [&known[..], &unknown[..], &apart[..]]
        .map(|changes| show(changes, Order::Net, vec![table(&a, vec![0])]))
        .into();
    insta::assert_snapshot!(shown.join("\n\n"));
}

#[test]
fn rows_without_a_key_are_counted() {
    let a = relation(1, ReplicaIdentity::Full);
    let full = |v: &str| OldRow::Full(vec![text("1"), text(v)]);
    let changes = [
        Change::Update {
            relation: Arc::clone(&a),
            old: Some(full("x")),
            new: vec![text("1"), Cell::Unchanged],
        },
        Change::Delete { relation: Arc::clone(&a), old: full("y") },
        Change::Delete { relation: Arc::clone(&a), old: full("y") },
        Change::Update { relation: Arc::clone(&a), old: Some(full("y")), new: vec![text("2"), Cell::Null] },
        insert(&a, "7"),
        Change::Delete { relation: Arc::clone(&a), old: OldRow::Full(vec![text("7"), text("v")]) },
    ];
    let net = show(&changes, Order::Net, vec![table(&a, vec![])]);
    // With a column that the stream does not bring, a row must be updated where it is.
    let partial = Table { others: vec!["\"own\"".into()], ..table(&a, vec![]) };
    insta::assert_snapshot!(format!("{net}\n\n{}", show(&changes[3..4], Order::Net, vec![partial])));
}

#[test]
fn a_watched_table_sees_every_change_in_order() {
    let (a, b) = (relation(1, ReplicaIdentity::Default), relation(2, ReplicaIdentity::Default));
    let watched = Table { watched: true, ..table(&b, vec![0]) };
    let changes =
        [insert(&a, "1"), insert(&b, "1"), insert(&a, "2"), rekey(&b, "1", "2", text("x")), delete(&b, "2")];
    let found: Vec<String> = planned(&changes, Order::Net, vec![table(&a, vec![0]), watched])
        .iter()
        .map(|statement| format!("{} {}", statement.table, statement.key))
        .collect();
    assert_eq!(
        found,
        [
            "public.t1 (id)=(1)",
            "public.t2 (id)=(1)",
            "public.t1 (id)=(2)",
            "public.t2 (id)=(1)",
            "public.t2 (id)=(2)"
        ]
    );
}

#[test]
fn many_rows_go_by_copy() {
    let a = relation(1, ReplicaIdentity::Default);
    let changes: Vec<Change> = (0..40).map(|id| insert(&a, &id.to_string())).collect();
    let statements = planned(&changes, Order::Net, vec![table(&a, vec![0])]);
    assert_eq!(statements.len(), 1);
    assert!(matches!(&statements[0].data, Data::Copy(rows) if rows.concat().starts_with(b"0\tv\n1\tv\n")));
}

#[test]
fn a_row_that_is_made_anew_for_its_identity_keeps_what_only_the_target_has() {
    let a = relation(1, ReplicaIdentity::Default);
    let mut partial = Table { others: vec!["\"own\"".into()], ..table(&a, vec![0]) };
    partial.columns[1].always_identity = true;
    let sql = sql::statement(&partial, &Kind::Replace(vec![1]));
    assert!(sql.contains("(\"id\", \"v\", \"own\") OVERRIDING SYSTEM VALUE SELECT d.\"id\", "), "{sql}");
    assert!(sql.contains(", d.\"own\" FROM d JOIN "), "{sql}");
}

#[test]
fn a_row_with_a_number_that_no_update_can_set_is_updated_where_it_has_that() {
    let a = relation(1, ReplicaIdentity::Default);
    let mut numbered = table(&a, vec![0]);
    numbered.columns[1].always_identity = true;
    let sql = sql::statement(&numbered, &Kind::Replace(vec![1]));
    let same = "t.\"v\" OPERATOR(pg_catalog.=) u.a1::pg_catalog.text";
    assert!(sql.contains(&format!(" AND {same} FOR UPDATE OF t)")), "{sql}");
    assert!(sql.contains(&format!(" AND ({same}) IS NOT TRUE RETURNING t.*)")), "{sql}");
}

/// The source has dropped the index by which the target tells rows apart. What the rows come to must not hide that from the target's.
#[test]
fn rows_that_share_a_key_of_the_targets_alone_are_not_taken_for_one() {
    let a = relation(1, ReplicaIdentity::Full);
    let row = |v: &str| vec![text("1"), text(v)];
    let insert = |v: &str| Change::Insert { relation: Arc::clone(&a), new: row(v) };
    let delete = |v: &str| Change::Delete { relation: Arc::clone(&a), old: OldRow::Full(row(v)) };
    let update = |from: &str, to: &str| {
        let old = Some(OldRow::Full(row(from)));
        Change::Update { relation: Arc::clone(&a), old, new: row(to) }
    };
    assert_eq!(brief(&[insert("b"), delete("b")], &a), [""; 0]);
    assert_eq!(brief(&[insert("b"), update("b", "c"), delete("c")], &a), [""; 0]);
    assert_eq!(brief(&[insert("b"), delete("a")], &a), ["INSERT 1", "DELETE 1"]);
    assert_eq!(brief(&[insert("b"), update("a", "c")], &a), ["INSERT 1", "UPDATE 1"]);
    assert_eq!(
        brief(&[update("a", "c"), insert("b"), delete("c")], &a),
        ["UPDATE 1", "INSERT 1", "DELETE 1"]
    );
}

#[test]
fn a_key_that_is_null_joins_no_rows() {
    let a = relation(1, ReplicaIdentity::Full);
    let change = Change::Insert { relation: Arc::clone(&a), new: vec![Cell::Null, text("x")] };
    let mut known = Tables::default();
    known.know(Arc::new(table(&a, vec![0])));
    let error = plan(&[(Lsn(2), &change)], Order::Net, &known).unwrap_err();
    assert!(error.to_string().contains("column id of the key is NULL"), "{error}");
}
