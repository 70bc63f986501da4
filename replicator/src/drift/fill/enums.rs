//! Exchanges the enums of a table that is filled anew, where the source's are others by now ([`crate::drift::enums`]).

use tokio_postgres::Client;

use crate::drift::enums::{Value, paired};
use crate::error::Error;
use crate::fence::refused;
use crate::postgres::{quote_ident, quote_literal};

/// Types of a source's table: what each is called, its labels and their numbers, in their order.
const HERE: &str = "\
SELECT format('%I.%I', n.nspname, y.typname), array_agg(e.enumlabel::text ORDER BY e.enumsortorder), array_agg(e.oid ORDER BY e.enumsortorder) \
FROM (SELECT DISTINCT CASE WHEN c.typelem <> 0 AND c.typcategory = 'A' THEN c.typelem ELSE c.oid END AS oid \
      FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type c ON c.oid = a.atttypid \
      WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attinhcount = 0) used \
JOIN pg_catalog.pg_type y USING (oid) JOIN pg_catalog.pg_namespace n ON n.oid = y.typnamespace JOIN pg_catalog.pg_enum e ON e.enumtypid = y.oid \
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend d \
                  WHERE d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = y.oid AND d.deptype = 'e') \
GROUP BY y.oid, n.nspname, y.typname";
/// The shadow's type of this name: labels with the numbers that they have on the source where that is known; its own number, schema and owner.
const THERE: &str = "\
SELECT e.enumlabel::text, (SELECT i.source_table FROM godwit.identities i WHERE i.target_table = e.oid AND i.target_column = -1 LIMIT 1), \
       y.oid, quote_ident(n.nspname), quote_ident(pg_catalog.pg_get_userbyid(y.typowner)) \
FROM pg_catalog.pg_type y JOIN pg_catalog.pg_namespace n ON n.oid = y.typnamespace JOIN pg_catalog.pg_enum e ON e.enumtypid = y.oid \
WHERE y.oid = pg_catalog.to_regtype($1) ORDER BY e.enumsortorder";
/// Domains, ranges and composite types that are made of the type of this number, or of arrays of it.
const MADE_OF: &str = "\
SELECT string_agg(DISTINCT pg_catalog.format_type(coalesce(c.reltype, d.objid), NULL), ', ') \
FROM pg_catalog.pg_type y JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_type'::regclass AND d.refobjid IN (y.oid, y.typarray) \
LEFT JOIN pg_catalog.pg_class c ON d.classid = 'pg_catalog.pg_class'::regclass AND c.oid = d.objid AND c.relkind = 'c' \
WHERE y.oid = $1 AND (c.oid IS NOT NULL OR d.classid = 'pg_catalog.pg_type'::regclass AND d.deptype = 'n')";
/// Takes away those that no table has any more.
const UNUSED: &str = "\
DO $godwit$ DECLARE one text; BEGIN \
  FOR one IN SELECT y.typname FROM pg_catalog.pg_type y \
             WHERE y.typnamespace = 'godwit'::regnamespace AND y.typtype = 'e' AND y.typname ~ '^godwit_[0-9]+$' LOOP \
    BEGIN EXECUTE format('DROP TYPE godwit.%I', one); EXCEPTION WHEN dependent_objects_still_exist THEN NULL; END; \
  END LOOP; END $godwit$";

/// Within the open transaction: where the source's type of a name is another, the shadow's is put aside, with what still has it, and one
/// like the source's is made.
///
/// # Errors
/// [`Error::Unready`] where another type is made of it: that would be one of what was put aside.
pub(super) async fn exchange(shadow: &Client, table: &str, reader: &Client) -> Result<(), Error> {
    let failed = |error| refused(&format!("fill table {table}"))(error);
    for row in reader.query(HERE, &[&table]).await.map_err(failed)? {
        let (of, labels, numbers): (&str, Vec<&str>, Vec<u32>) = (row.get(0), row.get(1), row.get(2));
        let there = shadow.query(THERE, &[&of]).await.map_err(failed)?;
        let ours: Vec<(&str, u32)> = labels.iter().copied().zip(numbers).collect();
        let theirs: Vec<Value<'_>> = there.iter().map(|row| (row.get(0), row.get(1))).collect();
        let pairing = paired(&ours, &theirs);
        let Some(first) = there.first().filter(|_| pairing.is_another || pairing.is_unsure) else { continue };
        let (number, schema, owner): (u32, &str, &str) = (first.get(2), first.get(3), first.get(4));
        let made_of: Option<String> = shadow.query_one(MADE_OF, &[&number]).await.map_err(failed)?.get(0);
        if let Some(others) = made_of {
            return Err(Error::Unready(format!(
                "fill table {table}: enum {of} is another on the source, and {others} is made of it: seed the shadow, all of it, anew"
            )));
        }
        let aside = quote_ident(&format!("godwit_{number}"));
        let labels: Vec<String> = labels.iter().map(|label| quote_literal(label)).collect();
        let sql = format!(
            "ALTER TYPE {of} RENAME TO {aside}; ALTER TYPE {schema}.{aside} SET SCHEMA godwit; \
             CREATE TYPE {of} AS ENUM ({}); ALTER TYPE {of} OWNER TO {owner}",
            labels.join(", ")
        );
        shadow.batch_execute(&sql).await.map_err(failed)?;
    }
    Ok(())
}

/// Within the open transaction: what was put aside goes with the last table that has it.
pub(super) async fn tidy(shadow: &Client) -> Result<(), tokio_postgres::Error> {
    shadow.batch_execute(UNUSED).await
}
