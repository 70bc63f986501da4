-- What others may do with what a role makes from now on: whose, whether ours may act for it, which, the rights, and the SQL that sets them where none are
-- set, and that takes them away. What everybody gets anyway is no row.
SELECT r.rolname::text AS role, pg_catalog.pg_has_role(r.oid, 'MEMBER') AS mine,
       format('role %I%s: new %s', r.rolname, ' in schema ' || quote_ident(n.nspname), lower(w.what)) AS name, coalesce(x.rights, 'none') AS rights,
       concat_ws('; ', format('%s REVOKE ALL ON %s FROM PUBLIC', v.verb, w.what), x.grants) AS sql,
       concat_ws('; ', y.revokes, format('%s GRANT ', v.verb) || u.usual || format(' ON %s TO PUBLIC', w.what)) AS undo
FROM pg_catalog.pg_default_acl d JOIN pg_catalog.pg_roles r ON r.oid = d.defaclrole LEFT JOIN pg_catalog.pg_namespace n ON n.oid = d.defaclnamespace
JOIN (VALUES ('r'::"char", 'TABLES'), ('S', 'SEQUENCES'), ('f', 'FUNCTIONS'), ('T', 'TYPES'), ('n', 'SCHEMAS')) w(of, what) ON w.of = d.defaclobjtype,
LATERAL (SELECT format('ALTER DEFAULT PRIVILEGES FOR ROLE %I%s', r.rolname, ' IN SCHEMA ' || quote_ident(n.nspname)) AS verb) v,
LATERAL (SELECT CASE WHEN n.oid IS NULL THEN CASE w.of WHEN 'f' THEN 'EXECUTE' WHEN 'T' THEN 'USAGE' END END AS usual) u,
LATERAL (
  SELECT string_agg(format('%s to %s', e.privilege_type, g.whom), ', ' ORDER BY e.privilege_type, g.whom) AS rights,
         string_agg(format('%s GRANT %s ON %s TO %s', v.verb, e.privilege_type, w.what, g.whom), '; ' ORDER BY e.privilege_type, g.whom) AS grants
  FROM pg_catalog.aclexplode(d.defaclacl) e, LATERAL (
    SELECT CASE e.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_catalog.pg_get_userbyid(e.grantee)) END
           || CASE WHEN e.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS whom) g
  WHERE e.grantee <> d.defaclrole AND e.privilege_type <> 'MAINTAIN') x,
LATERAL (
  SELECT string_agg(format('%s REVOKE %s ON %s FROM %s', v.verb, e.privileges, w.what,
           CASE e.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_catalog.pg_get_userbyid(e.grantee)) END), '; ' ORDER BY e.grantee) AS revokes
  FROM (SELECT grantee, string_agg(DISTINCT privilege_type, ', ') AS privileges FROM pg_catalog.aclexplode(d.defaclacl)
        WHERE grantee <> d.defaclrole AND privilege_type <> 'MAINTAIN' GROUP BY grantee) e) y
WHERE coalesce(x.rights, 'none') <> coalesce(u.usual || ' to PUBLIC', 'none')
