-- Empties a shadow, a part in each run; see reseed.rs. Runs as one simple query, so as one transaction. Says last whether anything is left.
-- SQLSTATE ZG001: an operator must change something. ZG002: fenced off by a newer generation.
SET LOCAL client_min_messages = warning;
SET LOCAL search_path = pg_catalog;
SET LOCAL synchronous_commit = local;
SET LOCAL lock_timeout = '10s';
SELECT pg_advisory_xact_lock(7221037481926144001);

DO $godwit$
DECLARE
  epoch_row godwit.epoch;
  object record;
  named record;
  -- Schemas that stay, and what is in them goes.
  kept oid[] := ARRAY(SELECT n.oid FROM pg_namespace n WHERE n.nspname = 'public');
  -- Schemas that go.
  going oid[];
  -- What is dropped keeps its locks until the transaction ends: a table with its indexes, constraints and types fifteen and more.
  most CONSTANT bigint := greatest(10, least(200, {{locks}} / 100));
  dropped bigint := 0;
BEGIN
  SELECT e.* INTO epoch_row FROM godwit.epoch e WHERE e.resource = {{resource}} FOR UPDATE;
  IF epoch_row.generation > {{generation}} THEN
    RAISE EXCEPTION 'generation % is over: this database is at generation %', {{generation}}, epoch_row.generation
      USING ERRCODE = 'ZG002';
  END IF;
    -- A primary is not fenced; a database that somebody else filled has no copy of ours. An old primary whose way back was lost has none
  -- either, nor has one that was lost and is back: they are fenced for the generation that replaced them. What was emptied and waits for its copy
  -- has nothing that was there before.
  IF NOT EXISTS (SELECT FROM godwit.copying WHERE stream = {{stream}})
     AND NOT coalesce(epoch_row.fenced AND (epoch_row.generation = {{generation}}
       OR EXISTS (SELECT FROM godwit.progress WHERE stream = {{stream}} AND copied)), false)
     AND NOT EXISTS (SELECT FROM godwit.progress WHERE stream = {{stream}} AND NOT copied AND generation = {{generation}})
     AND EXISTS (SELECT FROM godwit.user_tables()) THEN
    RAISE EXCEPTION 'this database does not say that it is the shadow of %', {{resource}} USING
      ERRCODE = 'ZG001', DETAIL = 'it is not fenced, or holds no copy; use an empty database, or drop its tables';
  END IF;
  -- What is just being made of the schema, or filled, would come after all that.
  PERFORM pg_terminate_backend(a.pid, 5000) FROM pg_stat_activity a
    WHERE a.application_name = {{schema}} AND a.datname = current_database() AND a.usename = current_user AND a.pid <> pg_backend_pid();
  PERFORM pg_terminate_backend(l.pid, 5000) FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
      AND l.classid = ({{fills}} >> 32)::oid AND l.objid = ({{fills}} & 4294967295)::oid AND l.objsubid = 1 AND l.granted;
  -- One that an extension was put into, or that a superuser made beforehand, could not be made again.
  kept := kept || ARRAY(SELECT n.oid FROM pg_namespace n
    WHERE n.nspname <> ALL ('{pg_catalog,information_schema,godwit,public}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'
      AND (NOT pg_has_role(n.nspowner, 'USAGE') OR EXISTS (SELECT FROM pg_extension e WHERE e.extnamespace = n.oid)));
  going := ARRAY(SELECT n.oid FROM pg_namespace n
    WHERE n.nspname <> ALL ('{pg_catalog,information_schema,godwit,public}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')
      AND n.oid <> ALL (kept) ORDER BY n.nspname);
  -- One by one, and those last that take others with them: partitions, or who refers to them.
  FOR object IN
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S') AND (n.oid = ANY (going) OR n.oid = ANY (kept) AND pg_has_role(c.relowner, 'USAGE'))
      AND NOT EXISTS (SELECT FROM pg_depend d
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype IN ('e', 'i'))
    ORDER BY c.relkind = 'S', c.relkind IN ('v', 'm'), c.oid IN (SELECT i.inhparent FROM pg_inherits i),
      c.oid IN (SELECT k.confrelid FROM pg_constraint k WHERE k.contype = 'f' AND k.confrelid <> k.conrelid), c.oid
  LOOP
    EXIT WHEN dropped >= most;
    SELECT i.type, i.identity INTO named FROM pg_identify_object('pg_class'::regclass, object.oid, 0) i;
    -- Some went with another.
    CONTINUE WHEN named.identity IS NULL;
    BEGIN
      EXECUTE format('DROP %s IF EXISTS %s CASCADE', named.type, named.identity);
      dropped := dropped + 1;
    EXCEPTION WHEN insufficient_privilege THEN
      -- Of a schema that goes: its owner may drop it with all that is in it, and is told where not.
    END;
  END LOOP;
  FOR object IN SELECT n.nspname FROM pg_namespace n WHERE n.oid = ANY (going) ORDER BY n.nspname LOOP
    EXIT WHEN dropped >= most;
    EXECUTE format('DROP SCHEMA %I CASCADE', object.nspname);
    dropped := dropped + 1;
  END LOOP;
  -- What is in those that stay goes, tables first and sequences last: those of identity columns go with their table. Extensions stay, and so does
  -- what is a superuser's.
  FOR object IN
    SELECT o.classid, o.objid, coalesce(c.relkind IN ('r', 'p', 'f'), false) AS is_table, coalesce(c.relkind = 'S', false) AS is_sequence
    FROM (
      SELECT d.classid, d.objid FROM pg_depend d
      WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = ANY (kept) AND d.deptype = 'n'
      UNION SELECT 'pg_foreign_server'::regclass, s.oid FROM pg_foreign_server s
      UNION SELECT 'pg_event_trigger'::regclass, t.oid FROM pg_event_trigger t
      UNION SELECT 'pg_cast'::regclass, c.oid FROM pg_cast c WHERE c.oid >= 16384
    ) o LEFT JOIN pg_class c ON o.classid = 'pg_class'::regclass AND c.oid = o.objid
    WHERE o.classid <> 'pg_extension'::regclass
      AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = o.classid AND e.objid = o.objid AND e.deptype = 'e')
      -- A schema's owner may drop what is another's there, but not make it again. (Of the first superuser's nothing is written down, nor of casts.)
      AND (o.classid = 'pg_cast'::regclass OR (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user)
        OR EXISTS (SELECT FROM pg_shdepend s WHERE s.dbid = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
          AND s.classid = o.classid AND s.objid = o.objid AND s.deptype = 'o' AND pg_has_role(s.refobjid, 'USAGE')))
    ORDER BY is_table DESC, is_sequence, o.classid, o.objid
  LOOP
    EXIT WHEN dropped >= most;
    SELECT i.type, i.identity INTO named FROM pg_identify_object(object.classid, object.objid, 0) i;
    -- Some went with another.
    CONTINUE WHEN named.identity IS NULL;
    BEGIN
      EXECUTE format('DROP %s IF EXISTS %s CASCADE', named.type, named.identity);
      dropped := dropped + 1;
    EXCEPTION WHEN insufficient_privilege THEN
      -- The copy leaves it, too.
    END;
  END LOOP;
  DELETE FROM godwit.copying WHERE stream = {{stream}};
  -- Nothing of an earlier copy may count as there. (An older Godwit has not made these.)
  IF to_regclass('godwit.copied_parts') IS NOT NULL THEN
    DELETE FROM godwit.copied_parts WHERE stream = {{stream}};
    DELETE FROM godwit.copied_statements WHERE stream = {{stream}};
  END IF;
  IF to_regclass('godwit.identities') IS NOT NULL THEN
    DELETE FROM godwit.identities;
  END IF;
  IF to_regclass('godwit.worded') IS NOT NULL THEN
    DELETE FROM godwit.worded;
  END IF;
  IF to_regclass('godwit.unfilled') IS NOT NULL THEN
    DELETE FROM godwit.unfilled;
  END IF;
    -- Large objects stay, and are compared anew, each of them: to drop many at once takes more locks than there are.
  IF to_regclass('godwit.large_objects') IS NOT NULL THEN
    DELETE FROM godwit.large_objects WHERE resource = {{resource}};
  END IF;
  DELETE FROM godwit.progress WHERE stream = {{critical}};
  INSERT INTO godwit.progress AS p (stream, applied_lsn, copied, generation) VALUES ({{stream}}, '0/0', false, {{generation}})
  ON CONFLICT (stream) DO UPDATE SET applied_lsn = '0/0', copied = false, generation = EXCLUDED.generation,
    marker_generation = NULL, source_system = NULL, source_timeline = NULL, updated_at = now();
  -- An old primary whose marker is there has all that it had.
  UPDATE godwit.epoch e SET marker_lsn = NULL, tables = NULL, updated_at = now() WHERE e.resource = {{resource}};
  -- Nobody may write what is dropped next: the fence stays until nothing is left.
  IF dropped < most THEN
    UPDATE godwit.epoch e SET generation = {{generation}}, fenced = false WHERE e.resource = {{resource}};
  END IF;
  PERFORM set_config('godwit.is_left', (dropped >= most)::text, true);
END $godwit$;
SELECT current_setting('godwit.is_left')
