//! What follows beside the stream, since no logical decoding carries it: between which databases, and when that may still be written.

use tokio_postgres::Client;

use crate::error::Error;
use crate::fence::{literal, sql_generation};

/// From where to where something is carried beside the stream of a generation.
#[derive(Clone, Copy, Debug)]
pub struct Sides<'a> {
    /// The primary's database.
    pub source: &'a Client,
    /// The shadow's, fenced for `generation`.
    pub shadow: &'a Client,
    /// The resource.
    pub resource: &'a str,
    /// The stream's generation.
    pub generation: u64,
}

impl Sides<'_> {
    /// SQL that goes before what is written on the shadow: the database is the shadow of this generation until the transaction ends, or it
    /// fails. So nothing that comes late writes where a primary is.
    pub(crate) fn guard_sql(self) -> Result<String, Error> {
        let (resource, generation) = (literal(self.resource), sql_generation(self.generation)?);
        Ok(format!(
            "SET LOCAL synchronous_commit = local; DO $godwit$ BEGIN \
             PERFORM FROM godwit.epoch WHERE resource = {resource} AND generation = {generation} AND fenced FOR SHARE; \
             IF NOT FOUND THEN RAISE EXCEPTION 'the database is not the shadow of generation {generation}' USING ERRCODE = 'ZG002'; END IF; \
             END $godwit$;\n"
        ))
    }
}
