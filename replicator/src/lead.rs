//! Which of several nodes leads a resource: a lease in its databases, each by its own server's clock.
//!
//! The lease where clients may write decides; a node holds the others so that it keeps it when it moves there. It is no fence
//! (*How to do distributed locking*, M. Kleppmann, 2016): a node that was stopped for a while may believe that it still leads. What it does then is
//! refused by generation and run, and a fence is raised by the holder only ([`crate::fence::FenceSpec::holder`]).

use std::time::Duration;

use tokio_postgres::Client;

use crate::error::Error;
use crate::fence;

/// What a database says of who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The epoch row, if Godwit was ever here for this resource: the newest generation, and whether clients may write.
    pub epoch: Option<(u64, bool)>,
    /// Who holds it, unless it is over.
    pub holder: Option<Holder>,
}

/// Who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Of one state directory; one that was copied has the same, on a node of another name.
    pub id: String,
    /// The node's name.
    pub node: String,
    /// For how long, if it does not renew it.
    pub left: Duration,
}

impl Holder {
    /// Whether it is this node, and not one with a copy of its state directory.
    pub fn is(&self, node: &Candidate) -> bool {
        (&self.id, &self.node) == (&node.id, &node.node)
    }
}

impl Lease {
    /// Why this database is not, or not for long, the shadow of `node` in `generation`; none: it still is, as far as it knows.
    pub fn another_leads(&self, generation: u64, node: &Candidate) -> Option<String> {
        let moved =
            |(newest, is_open): &(u64, bool)| *newest > generation || *is_open && *newest == generation;
        if let Some((newest, _)) = self.epoch.filter(moved) {
            return Some(format!("generation {newest} was there, and {generation} is this node's"));
        }
        let holder = self.holder.as_ref().filter(|holder| !holder.is(node))?;
        Some(format!("node {} leads there", holder.node))
    }
}

/// A node that may lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// See [`Holder::id`].
    pub id: String,
    /// The node's name.
    pub node: String,
    /// How long its lease is.
    pub within: Duration,
}

/// Who leads, by this database. One round trip.
///
/// # Errors
/// [`Error::Database`].
pub async fn look(client: &Client, resource: &str) -> Result<Lease, Error> {
    let sql = "SELECT e.generation, NOT e.fenced, l.holder, l.node, \
                 greatest(pg_catalog.date_part('epoch', l.until - pg_catalog.clock_timestamp()), 0)::float8 \
               FROM (SELECT $1::text AS resource) r LEFT JOIN godwit.epoch e USING (resource) LEFT JOIN godwit.leader l USING (resource)";
    let row = match client.query_one(sql, &[&resource]).await {
        Ok(row) => row,
        // Godwit was never here, or a version without leases.
        Err(error) if fence::not_installed(&error) => {
            return Ok(Lease { epoch: None, holder: None });
        }
        Err(error) => return Err(Error::database("ask who leads")(error)),
    };
    let generation = row.get::<_, Option<i64>>(0).and_then(|generation| u64::try_from(generation).ok());
    let left = row.get::<_, Option<f64>>(4).map(Duration::from_secs_f64).filter(|left| !left.is_zero());
    let holder = left.map(|left| Holder { id: row.get(2), node: row.get(3), left });
    Ok(Lease { epoch: generation.map(|generation| (generation, row.get(1))), holder })
}

/// Takes the lease, or renews it, from now on; false: another holds it. Needs [`crate::fence::install_schema`].
///
/// `leads`: the generation of the primary whose lease the node has; a lease in that one's shadow is then another's no more, over or not.
///
/// # Errors
/// [`Error::Database`].
pub async fn take(
    client: &Client,
    resource: &str,
    node: &Candidate,
    leads: Option<u64>,
) -> Result<bool, Error> {
    let Candidate { id, node, within } = node;
    let leads = leads.map(fence::sql_generation).transpose()?;
    let sql = "INSERT INTO godwit.leader AS l (resource, holder, node, until) \
                 VALUES ($1, $2, $3, pg_catalog.clock_timestamp() + $4::float8 * interval '1 second') \
               ON CONFLICT (resource) DO UPDATE SET holder = EXCLUDED.holder, node = EXCLUDED.node, until = EXCLUDED.until \
               WHERE (l.holder, l.node) = (EXCLUDED.holder, EXCLUDED.node) OR l.until <= pg_catalog.clock_timestamp() OR EXISTS ( \
                 SELECT FROM godwit.epoch e WHERE e.resource = EXCLUDED.resource AND e.fenced AND e.generation <= $5::bigint)";
    let taken = client.execute(sql, &[&resource, &id, &node, &within.as_secs_f64(), &leads]).await;
    taken.map(|rows| rows == 1).map_err(Error::database("take the lease of who leads"))
}

/// Ends the lease of `node`, if it has it: another may take it at once.
///
/// # Errors
/// [`Error::Database`].
pub async fn give_up(client: &Client, resource: &str, node: &Candidate) -> Result<(), Error> {
    let sql = "UPDATE godwit.leader SET until = pg_catalog.clock_timestamp() WHERE resource = $1 AND (holder, node) = ($2, $3)";
    let ended = client.execute(sql, &[&resource, &node.id, &node.node]).await;
    ended.map(drop).map_err(Error::database("end the lease of who leads"))
}

/// What the last holder leaves to the next: that one's id, and what it has left.
///
/// # Errors
/// [`Error::Database`].
pub async fn legacy(client: &Client, resource: &str) -> Result<Option<(String, String)>, Error> {
    let sql = "SELECT holder, legacy FROM godwit.leader WHERE resource = $1 AND legacy IS NOT NULL";
    match client.query_opt(sql, &[&resource]).await {
        Ok(row) => Ok(row.map(|row| (row.get(0), row.get(1)))),
        Err(error) if fence::not_installed(&error) => Ok(None),
        Err(error) => Err(Error::database("read what the last leader left")(error)),
    }
}

/// Leaves this to the next holder, while `node` has the lease; false: it does not.
///
/// # Errors
/// [`Error::Database`].
pub async fn leave(client: &Client, resource: &str, node: &Candidate, legacy: &str) -> Result<bool, Error> {
    let sql = "UPDATE godwit.leader SET legacy = $4 \
               WHERE resource = $1 AND (holder, node) = ($2, $3) AND until > pg_catalog.clock_timestamp()";
    let left = client.execute(sql, &[&resource, &node.id, &node.node, &legacy]).await;
    left.map(|rows| rows == 1).map_err(Error::database("leave something to the next leader"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shadow_is_another_nodes_when_that_one_leads_or_has_moved_there() {
        let [this, other] = ["this", "other"].map(|node| Candidate {
            id: "a".into(),
            node: node.into(),
            within: Duration::from_secs(10),
        });
        let holder = |node: &Candidate| {
            Some(Holder { id: node.id.clone(), node: node.node.clone(), left: Duration::from_secs(1) })
        };
        let lease = |epoch, holder| Lease { epoch, holder }.another_leads(5, &this);
        for epoch in [None, Some((4, false)), Some((5, false)), Some((4, true))] {
            assert_eq!(lease(epoch, None), None, "{epoch:?}");
            assert_eq!(lease(epoch, holder(&this)), None, "{epoch:?}");
            assert_eq!(lease(epoch, holder(&other)).as_deref(), Some("node other leads there"), "{epoch:?}");
        }
        for epoch in [(5, true), (6, true), (6, false)] {
            assert!(
                lease(Some(epoch), holder(&this)).is_some_and(|why| why.starts_with("generation ")),
                "{epoch:?}"
            );
        }
    }
}
