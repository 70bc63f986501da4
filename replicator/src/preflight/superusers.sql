-- What a copy by a role that is no superuser leaves to one, or where it would stop: description, the SQL that makes it (none: as a dump has it), what
-- mends it otherwise, whether the copy leaves it.
WITH owned AS (
{{owned}}
), theirs AS (
  SELECT owned.*, coalesce(r.rolsuper, false) AS super FROM owned JOIN pg_roles r ON r.oid = owned.owner
), made_by_one AS (
  -- Aggregates and what comes with a range type are no functions of C, though they say so.
  SELECT format('function %s', p.oid::regprocedure) AS described, r.rolsuper AS super
  FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang JOIN pg_roles r ON r.oid = p.proowner
  WHERE p.oid >= 16384 AND (NOT l.lanpltrusted AND p.prokind <> 'a' OR p.proleakproof)
    AND p.pronamespace <> ALL (ARRAY(SELECT oid FROM pg_namespace WHERE nspname IN ('godwit', 'pg_catalog', 'information_schema')))
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype IN ('e', 'i'))
  UNION ALL
  SELECT coalesce(o.described, replace(pg_describe_object(o.of, o.oid, 0), ' for access method ', ' using ')), o.super FROM (
    SELECT 'pg_cast'::regclass AS of, c.oid, format('cast (%s as %s)', castsource::regtype, casttarget::regtype) AS described, castmethod = 'b' AS super
    FROM pg_cast c JOIN pg_type s ON s.oid = castsource JOIN pg_type t ON t.oid = casttarget
    WHERE castmethod = 'b' OR NOT pg_has_role(s.typowner, 'USAGE') AND NOT pg_has_role(t.typowner, 'USAGE')
    UNION ALL
    SELECT 'pg_opfamily', f.oid, NULL, rolsuper FROM pg_opfamily f JOIN pg_roles r ON r.oid = opfowner
    UNION ALL
    SELECT 'pg_opclass', c.oid, NULL, rolsuper FROM pg_opclass c JOIN pg_roles r ON r.oid = opcowner WHERE opcfamily < 16384
    UNION ALL
    SELECT 'pg_ts_template', oid, NULL, true FROM pg_ts_template
    UNION ALL
    SELECT 'pg_ts_parser', oid, NULL, true FROM pg_ts_parser
    UNION ALL
    SELECT 'pg_am', oid, NULL, true FROM pg_am
  ) o WHERE o.oid >= 16384 AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.of AND d.objid = o.oid AND d.deptype = 'e')
)
SELECT described, made, CASE WHEN described IN (SELECT o.described FROM made_by_one o) OR described ~ '^foreign data wrapper ' THEN format('DROP %s', described)
         ELSE format('ALTER %s OWNER TO …, a role that is not superuser', described) END, true
FROM theirs WHERE super
UNION
SELECT described, NULL, format(CASE WHEN super THEN 'DROP %1$s' ELSE 'DROP %1$s; or let a superuser own it' END, described), super
FROM made_by_one WHERE described NOT IN (SELECT t.described FROM theirs t WHERE super)
