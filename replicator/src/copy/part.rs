//! Cuts tables into parts that are read at the same time. Pure.

use std::sync::Arc;

use super::TableToCopy;

/// About how much of a table, on disk, one part is at least, and at most. The smaller they are, the sooner the last session is
/// through after the others, and each costs a transaction at the target.
const PART_BYTES: (u64, u64) = (8 << 20, 64 << 20);

/// Into so many parts everything is cut within these bounds.
const PARTS: u64 = 32;

/// Most parts of one table.
const MOST: u64 = 4_096;

/// What one session copies at a time: a table, or some blocks of a big one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The table.
    pub table: Arc<TableToCopy>,
    /// First block and the one after the last (`None`: to the end); absent for the whole table.
    pub blocks: Option<(u32, Option<u32>)>,
}

impl Part {
    /// The statement that reads it.
    pub fn copy_out_sql(&self) -> String {
        let (name, columns) = (self.table.sql_name(), self.table.sql_columns());
        let format = if self.table.binary { "binary" } else { "text" };
        let what = match self.blocks {
            None if columns.is_empty() => name,
            None => format!("{name} ({columns})"),
            Some((from, to)) => {
                let to = to.map(|to| format!(" AND ctid < '({to},0)'")).unwrap_or_default();
                format!("(SELECT {columns} FROM ONLY {name} WHERE ctid >= '({from},0)'{to})")
            }
        };
        format!("COPY {what} TO STDOUT WITH (FORMAT {format})")
    }
}

/// Cuts `tables`, the biggest first, so that no session is left alone with a big one at the end.
///
/// A table's last part is open: what is appended meanwhile lies behind it, and the snapshot does not show it.
pub fn cut(mut tables: Vec<TableToCopy>) -> Vec<Part> {
    tables
        .sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| (&a.schema, &a.name).cmp(&(&b.schema, &b.name))));
    let all: u64 = tables.iter().map(|table| table.bytes).sum();
    let part_bytes = (all / PARTS).clamp(PART_BYTES.0, PART_BYTES.1);
    let mut parts = Vec::new();
    for table in tables {
        let count = if table.bytes < part_bytes + part_bytes / 2 {
            1
        } else {
            table.bytes.div_ceil(part_bytes).min(u64::from(table.blocks)).clamp(1, MOST)
        };
        let total = u64::from(table.blocks);
        let at = |part: u64| u32::try_from(total * part / count).unwrap_or(u32::MAX);
        let table = Arc::new(table);
        for part in 0..count {
            let to = (part + 1 < count).then(|| at(part + 1));
            let blocks = (count > 1).then(|| (at(part), to));
            parts.push(Part { table: table.clone(), blocks });
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, blocks: u32) -> TableToCopy {
        TableToCopy {
            schema: "s".into(),
            name: name.into(),
            columns: vec!["a".into(), "B".into()],
            rows_estimate: 0,
            binary: true,
            blocks,
            bytes: u64::from(blocks) * 8192,
        }
    }

    #[test]
    fn parts_of_a_table_meet_and_leave_nothing_out() {
        let parts = cut(vec![table("small", 3), table("big", 4_001)]);
        let (small, big) = parts.split_last().unwrap();
        assert_eq!(small.copy_out_sql(), r#"COPY "s"."small" ("a", "B") TO STDOUT WITH (FORMAT binary)"#);
        assert_eq!(big.len(), 4);
        let mut next = Some(0);
        for part in big {
            let (from, to) = part.blocks.unwrap();
            assert_eq!(Some(from), next);
            next = to;
        }
        assert_eq!(next, None);
        assert_eq!(cut(vec![table("medium", 30_001)]).len(), 30, "8 MiB each");
        assert_eq!(cut(vec![table("large", 100_000)]).len(), 32, "a 32nd each");
        assert_eq!(cut(vec![table("huge", 1_000_000)]).len(), 123, "64 MiB each");
        assert_eq!(
            big[1].copy_out_sql(),
            r#"COPY (SELECT "a", "B" FROM ONLY "s"."big" WHERE ctid >= '(1000,0)' AND ctid < '(2000,0)') TO STDOUT WITH (FORMAT binary)"#
        );
    }
}
