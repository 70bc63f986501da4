//! Reads a database after a run and says whether every acknowledged write is there, once, whole.

use std::collections::HashMap;
use std::fmt;

use tokio_postgres::Client;

use super::load::{Acknowledged, Outcome};

/// Examples kept of each kind of loss.
const EXAMPLES: i64 = 20;

/// What the database says about a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Acknowledged writes that were looked for.
    pub acknowledged: u64,
    /// Keys that were acknowledged and are not in the database.
    pub missing: Vec<String>,
    /// Keys whose order has another number, customer or amount than was acknowledged.
    pub altered: Vec<String>,
    /// Keys with more than one order.
    pub duplicated: Vec<String>,
    /// Order numbers that two acknowledged keys got.
    pub numbers_given_twice: Vec<i64>,
    /// Orders without exactly one payment of the same amount.
    pub wrongly_paid: Vec<i64>,
    /// Payments of no order.
    pub payments_without_order: Vec<i64>,
    /// Customers whose balance is not the sum of their orders.
    pub unbalanced: Vec<i64>,
    /// Tables whose sequence would give a number that is taken.
    pub sequences_behind: Vec<String>,
    /// Writes that failed and were committed all the same: their outcome was unknown. No fault.
    pub committed_unacknowledged: u64,
}

impl CheckReport {
    /// Nothing lost, doubled, altered or inconsistent.
    pub fn clean(&self) -> bool {
        self.faults() == 0
    }

    /// Findings, each kind capped at what is listed.
    pub fn faults(&self) -> usize {
        self.missing.len()
            + self.altered.len()
            + self.duplicated.len()
            + self.numbers_given_twice.len()
            + self.wrongly_paid.len()
            + self.payments_without_order.len()
            + self.unbalanced.len()
            + self.sequences_behind.len()
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} acknowledged writes: {} missing, {} altered, {} duplicated, {} numbers given twice; {} orders wrongly paid, \
             {} payments without order, {} customers unbalanced, {} sequences behind; {} committed without an answer",
            self.acknowledged,
            self.missing.len(),
            self.altered.len(),
            self.duplicated.len(),
            self.numbers_given_twice.len(),
            self.wrongly_paid.len(),
            self.payments_without_order.len(),
            self.unbalanced.len(),
            self.sequences_behind.len(),
            self.committed_unacknowledged,
        )
    }
}

impl Outcome {
    /// Checks the database that is primary now; the load must have stopped. `client` may read everything.
    pub async fn check(&self, client: &Client) -> Result<CheckReport, tokio_postgres::Error> {
        let mut report = CheckReport {
            acknowledged: self.acknowledged.len() as u64,
            numbers_given_twice: given_twice(&self.acknowledged),
            ..CheckReport::default()
        };
        let rows = client
            .query(
                "SELECT key, id, customer_id, (amount * 100)::bigint FROM orders WHERE starts_with(key, $1)",
                &[&format!("{}-", self.run)],
            )
            .await?;
        let mut orders: HashMap<&str, Vec<(i64, i64, i64)>> = HashMap::with_capacity(rows.len());
        for row in &rows {
            let order = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            orders.entry(row.try_get(0)?).or_default().push(order);
        }
        for write in &self.acknowledged {
            match orders.remove(write.key.as_str()).as_deref() {
                None => report.missing.push(write.key.clone()),
                Some([(id, customer, cents)]) => {
                    let same = *id == write.order
                        && *customer == write.customer
                        && u64::try_from(*cents) == Ok(write.cents);
                    if !same {
                        report.altered.push(write.key.clone());
                    }
                }
                Some(_) => report.duplicated.push(write.key.clone()),
            }
        }
        // What is left was never acknowledged.
        for (key, found) in orders {
            if found.len() > 1 {
                report.duplicated.push(key.to_owned());
            } else {
                report.committed_unacknowledged += 1;
            }
        }
        consistency(client, &mut report).await?;
        Ok(report)
    }
}

/// What must hold in the whole database, the seeded rows included.
async fn consistency(client: &Client, report: &mut CheckReport) -> Result<(), tokio_postgres::Error> {
    let ids = async |sql: &str| -> Result<Vec<i64>, tokio_postgres::Error> {
        client.query(sql, &[&EXAMPLES]).await?.iter().map(|row| row.try_get(0)).collect()
    };
    report.wrongly_paid = ids(
        "SELECT o.id FROM orders o LEFT JOIN payments p ON p.order_id = o.id
         GROUP BY o.id, o.amount HAVING count(p.id) <> 1 OR sum(p.amount) <> o.amount ORDER BY o.id LIMIT $1",
    )
    .await?;
    report.payments_without_order = ids("SELECT p.id FROM payments p LEFT JOIN orders o ON o.id = p.order_id
         WHERE o.id IS NULL ORDER BY p.id LIMIT $1")
    .await?;
    report.unbalanced = ids("SELECT c.id FROM customers c LEFT JOIN orders o ON o.customer_id = c.id
         GROUP BY c.id, c.balance HAVING c.balance <> coalesce(sum(o.amount), 0) ORDER BY c.id LIMIT $1")
    .await?;
    for table in ["customers", "orders", "payments"] {
        let sequence = client.query_one("SELECT pg_get_serial_sequence($1, 'id')", &[&table]).await?;
        let Some(sequence) = sequence.try_get::<_, Option<String>>(0)? else {
            report.sequences_behind.push(format!("{table}: no sequence"));
            continue;
        };
        // The name comes quoted from the server.
        let sql = format!(
            "SELECT last_value + is_called::int <= (SELECT coalesce(max(id), 0) FROM {table}) FROM {sequence}"
        );
        if client.query_one(&sql, &[]).await?.try_get(0)? {
            report.sequences_behind.push(table.to_owned());
        }
    }
    Ok(())
}

fn given_twice(acknowledged: &[Acknowledged]) -> Vec<i64> {
    let mut numbers: Vec<i64> = acknowledged.iter().map(|write| write.order).collect();
    numbers.sort_unstable();
    let mut twice: Vec<i64> =
        numbers.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    twice.dedup();
    twice
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_number_given_twice_is_a_fault() {
        let write = |key: &str, order| Acknowledged { key: key.into(), order, customer: 1, cents: 1 };
        assert!(given_twice(&[write("a", 1), write("b", 2)]).is_empty());
        assert_eq!(given_twice(&[write("a", 2), write("b", 1), write("c", 2), write("d", 2)]), [2]);
    }
}
