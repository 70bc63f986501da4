use super::*;
use crate::apply::postgres::catalog::TargetColumn;
use crate::change::{Column, PgTimestamp, Relation, ReplicaIdentity};

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

fn table(relation: &Relation, key: Vec<usize>, always: bool) -> Arc<Table> {
    let column = |name: &str, type_name: &str, always_identity| TargetColumn {
        sql_name: format!("\"{name}\""),
        type_name: type_name.into(),
        always_identity,
    };
    Arc::new(Table {
        sql_name: format!("public.{}", relation.name),
        label: format!("public.{}", relation.name),
        columns: vec![column("id", "integer", always), column("v", "text", false)],
        key,
        relation: Arc::new(relation.clone()),
    })
}

fn text(value: &str) -> Cell {
    Cell::Text(Bytes::copy_from_slice(value.as_bytes()))
}

fn insert(relation: &Arc<Relation>, id: &str) -> Change {
    Change::Insert { relation: relation.clone(), new: vec![text(id), text("v")] }
}

fn show(changes: Vec<Change>, order: Order, tables: &[Arc<Table>]) -> String {
    let group = [Transaction {
        xid: 1,
        commit_lsn: Lsn(1),
        end_lsn: Lsn(2),
        commit_time: PgTimestamp(0),
        origin: None,
        changes,
    }];
    let find = |relation: &Relation| tables.iter().find(|table| table.relation.id == relation.id).cloned();
    plan(&group, order, find)
        .expect("plannable")
        .iter()
        .map(|statement| {
            let rows = statement.parameters.first().map_or(0, Vec::len);
            format!("{rows} × {}", statement.sql)
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn runs_become_one_statement_and_tables_do_not_disturb_each_other() {
    let (a, b) = (relation(1, ReplicaIdentity::Default), relation(2, ReplicaIdentity::Default));
    let tables = [table(&a, vec![0], false), table(&b, vec![0], false)];
    let changes = vec![
        insert(&a, "1"),
        insert(&b, "1"),
        insert(&a, "2"),
        insert(&b, "2"),
        Change::Update { relation: a.clone(), old: None, new: vec![text("1"), text("x")] },
        Change::Update { relation: a.clone(), old: None, new: vec![text("2"), text("x")] },
        Change::Update { relation: a.clone(), old: None, new: vec![text("1"), text("again")] },
        Change::Delete { relation: a.clone(), old: OldRow::Key(vec![text("1"), Cell::Null]) },
        Change::Truncate { relations: vec![b.clone()], cascade: true, restart_identity: false },
        insert(&b, "1"),
    ];
    insta::assert_snapshot!(show(changes.clone(), Order::Lanes, &tables));
    assert_eq!(show(changes, Order::Rows, &tables).lines().count(), 10);
}

#[test]
fn what_cannot_be_batched_stands_alone() {
    let a = relation(1, ReplicaIdentity::Default);
    let tables = [table(&a, vec![0], true)];
    let changes = vec![
        Change::Update { relation: a.clone(), old: None, new: vec![text("1"), Cell::Unchanged] },
        Change::Update {
            relation: a.clone(),
            old: Some(OldRow::Key(vec![text("1"), Cell::Null])),
            new: vec![text("2"), Cell::Unchanged],
        },
    ];
    let keyed = show(changes, Order::Lanes, &tables);
    let full = relation(1, ReplicaIdentity::Full);
    let tables = [table(&full, vec![], false)];
    let old = vec![text("1"), Cell::Null];
    let changes = vec![
        Change::Update {
            relation: full.clone(),
            old: Some(OldRow::Full(old.clone())),
            new: vec![text("2"), text("x")],
        },
        Change::Delete { relation: full.clone(), old: OldRow::Full(old.clone()) },
        Change::Delete { relation: full, old: OldRow::Full(old) },
    ];
    insta::assert_snapshot!(format!("{keyed}\n{}", show(changes, Order::Lanes, &tables)));
}
