-- Large objects: number, owner, rights, comment, pages, and a digest of their pages. `AND` and what follows says which.
SELECT m.oid, pg_catalog.pg_get_userbyid(m.lomowner)::text,
  (SELECT coalesce(pg_catalog.jsonb_agg(DISTINCT pg_catalog.jsonb_build_array(
       CASE WHEN a.grantee <> 0 THEN pg_catalog.pg_get_userbyid(a.grantee) END, a.privilege_type, a.is_grantable)), '[]')::text
   FROM pg_catalog.aclexplode(coalesce(m.lomacl, pg_catalog.acldefault('L', m.lomowner))) a),
  pg_catalog.obj_description(m.oid, 'pg_largeobject'), p.pages, p.digest
FROM pg_catalog.pg_largeobject_metadata m CROSS JOIN LATERAL (
  SELECT count(*) AS pages, pg_catalog.md5(pg_catalog.string_agg(
    pg_catalog.concat_ws(':', l.pageno, pg_catalog.md5(l.data)), ',' ORDER BY l.pageno)) AS digest
  FROM pg_catalog.pg_largeobject l WHERE l.loid = m.oid
) p
