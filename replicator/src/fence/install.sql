-- What Godwit keeps in each database: tables, trigger function, and the server's half of close, guard and open.
-- Runs as one simple query, so as one transaction. Safe to repeat and to run from several nodes at once.
-- What the client calls takes and returns jsonb, so that its signature never changes between versions. A helper's result never changes either: a
-- new result gets a new name. A DROP before its CREATE OR REPLACE would do for the newer program only; the older one's script would fail.
-- SQLSTATE ZG001: an operator must change something. ZG002: fenced off by a newer generation. ZG003: a newer attempt has taken over.
SET LOCAL client_min_messages = warning;
SET LOCAL search_path = pg_catalog;
SET LOCAL synchronous_commit = local;
-- Event triggers are for the application's own DDL: what they write may be fenced, and what they forbid is not this.
DO $$ BEGIN
  PERFORM set_config('session_replication_role', 'replica', true);
EXCEPTION WHEN insufficient_privilege THEN
  NULL;
END $$;
-- Nobody waits for ever here: the session would stay when its client has given up. For another node that does the same; then, less, for who
-- uses Godwit's tables: everybody else waits behind this one.
SET LOCAL lock_timeout = '5s';
SELECT pg_advisory_xact_lock(7221037481926144001);
SET LOCAL lock_timeout = '1s';

CREATE SCHEMA IF NOT EXISTS godwit;
REVOKE ALL ON SCHEMA godwit FROM PUBLIC;

CREATE TABLE IF NOT EXISTS godwit.epoch (
  resource text PRIMARY KEY,
  generation bigint NOT NULL,
  fenced boolean NOT NULL,
  marker_lsn pg_lsn,
  tables integer,
  run text,
  updated_at timestamptz NOT NULL DEFAULT now()
);

-- Who leads a resource where several nodes may: a lease, by this server's clock; and what that node leaves to the next. What keeps nodes apart are generation and run; a lease only
-- says who begins a move.
CREATE TABLE IF NOT EXISTS godwit.leader (
  resource text PRIMARY KEY,
  holder text NOT NULL,
  node text NOT NULL,
  until timestamptz NOT NULL,
  legacy text
) WITH (fillfactor = 50);

-- Runs that were undone: what one of them sends late is refused.
CREATE TABLE IF NOT EXISTS godwit.undone (run text PRIMARY KEY, at timestamptz NOT NULL DEFAULT now());

-- What a shadow's extensions are to act on once it is the primary: the statements that say so to them, as of this generation.
CREATE TABLE IF NOT EXISTS godwit.parked (resource text PRIMARY KEY, generation bigint NOT NULL, statements text NOT NULL);

-- The run that the slots of the way back belong to, and when it began by the clock of its node: an earlier one neither claims nor drops them.
CREATE TABLE IF NOT EXISTS godwit.way_back (resource text PRIMARY KEY, run text NOT NULL, begun_ms bigint NOT NULL);
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'godwit.way_back'::regclass AND attname = 'holder') THEN
    ALTER TABLE godwit.way_back ADD COLUMN generation bigint, ADD COLUMN holder text;
  END IF;
END $$;

-- source_system, source_timeline: the cluster whose WAL applied_lsn is a position in. NULL: not known yet.
CREATE TABLE IF NOT EXISTS godwit.progress (
  stream text PRIMARY KEY,
  applied_lsn pg_lsn NOT NULL,
  marker_generation bigint,
  copied boolean NOT NULL DEFAULT false,
  generation bigint NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  source_system bigint,
  source_timeline bigint
);

-- A copy that has begun and not ended: which try it is, and the schema that it loaded.
CREATE TABLE IF NOT EXISTS godwit.copying (
  stream text PRIMARY KEY,
  attempt bigint NOT NULL,
  pre_data text NOT NULL
);

-- Parts of tables that such a copy has written, and the position of the snapshot that they are of. After the copy: tables
-- whose changes up to there are skipped. source_table: the source's, where it was filled beside a stream: what comes from before may call it otherwise.
CREATE TABLE IF NOT EXISTS godwit.copied_parts (
  stream text NOT NULL,
  schema_name text NOT NULL,
  table_name text NOT NULL,
  part bigint NOT NULL,
  parts bigint NOT NULL,
  position pg_lsn NOT NULL,
  rows bigint NOT NULL,
  bytes bigint NOT NULL,
  source_table oid,
  PRIMARY KEY (stream, schema_name, table_name, part)
);

-- Takes part in a copy: what follows in this transaction commits only while this is its newest attempt.
CREATE OR REPLACE FUNCTION godwit.take_part(wanted_stream text, wanted_attempt bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM godwit.copying c WHERE c.stream = wanted_stream AND c.attempt = wanted_attempt FOR SHARE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'a newer copy has begun' USING ERRCODE = 'ZG003';
  END IF;
END $$;

-- Statements after the rows: done, or to be done once the tables are at one point.
CREATE TABLE IF NOT EXISTS godwit.copied_statements (
  stream text NOT NULL,
  place bigint NOT NULL,
  statement text NOT NULL,
  done boolean NOT NULL
);

-- Which table and column of the source is which here, whatever they are called: a line for each name that it had there. Column 0: the table; -1: a value of an
-- enum, by its number in pg_enum.
CREATE TABLE IF NOT EXISTS godwit.identities (
  source_table oid NOT NULL,
  source_column smallint NOT NULL,
  target_table oid NOT NULL,
  target_column smallint NOT NULL,
  name text NOT NULL,
  PRIMARY KEY (source_table, source_column, name)
);

-- In which file (relfilenode) the rows of each table here were when the other side was last seen to have all of its columns; and what a table was
-- called when a copy of all of them began.
CREATE TABLE IF NOT EXISTS godwit.files (
  of oid PRIMARY KEY,
  file oid NOT NULL,
  named text
);

-- Tables of the source's that changes are of which could not be applied here, and how the stream describes them. Those that are gone there get a
-- position in copied_parts, under no name: what came before that is skipped.
CREATE TABLE IF NOT EXISTS godwit.stands_at (
  stream text NOT NULL,
  source_table oid NOT NULL,
  name text NOT NULL,
  described jsonb,
  PRIMARY KEY (stream, source_table)
);

-- What these lack that came later. Only where it is lacking, IF NOT EXISTS is not enough: the lock comes first, and waits for whoever uses the table (a
-- dump, the applier), with everybody else behind it. Full identity: so that it can be written where a publication has all tables.
DO $$
DECLARE
  lacks record;
  held_by text;
BEGIN
  FOR lacks IN
    SELECT c.tbl, format('ALTER TABLE %s %s', c.tbl, c.change) AS change
    FROM (VALUES
      ('godwit.epoch'::regclass, 'run', 'ADD COLUMN run text'),
      ('godwit.progress', 'source_system', 'ADD COLUMN source_system bigint, ADD COLUMN source_timeline bigint'),
      ('godwit.copied_parts', 'source_table', 'ADD COLUMN source_table oid'),
      ('godwit.files', 'named', 'ADD COLUMN named text'),
      ('godwit.stands_at', 'described', 'ADD COLUMN described jsonb')
    ) c (tbl, name, change)
    WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.tbl AND a.attname = c.name)
    UNION ALL
    SELECT c.oid::regclass, format('ALTER TABLE %s REPLICA IDENTITY FULL', c.oid::regclass)
    FROM pg_class c WHERE c.oid = 'godwit.copied_statements'::regclass AND c.relreplident <> 'f'
    UNION ALL
    SELECT 'godwit.identities', 'CREATE INDEX identities_target ON godwit.identities (target_table)'
    WHERE to_regclass('godwit.identities_target') IS NULL
  LOOP
    BEGIN
      EXECUTE lacks.change;
    EXCEPTION WHEN lock_not_available THEN
      SELECT string_agg(format('pid %s (%s, application %s)', l.pid, coalesce(a.usename, '?'), quote_literal(coalesce(a.application_name, ''))), ', ')
      INTO held_by FROM (SELECT DISTINCT pid FROM pg_locks WHERE relation = lacks.tbl AND granted AND pid <> pg_backend_pid()
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) l
      LEFT JOIN pg_stat_activity a USING (pid);
      RAISE EXCEPTION 'table % stayed locked', lacks.tbl USING
        ERRCODE = 'lock_not_available', DETAIL = format('held by %s; wanted for: %s', coalesce(held_by, 'a session that has gone'), lacks.change);
    END;
  END LOOP;
END $$;

-- What both servers said of a thing when the one here was like the source's, as digests: of what versions word otherwise.
CREATE TABLE IF NOT EXISTS godwit.worded (
  kind text NOT NULL,
  owner text NOT NULL,
  name text NOT NULL,
  source text NOT NULL,
  target text NOT NULL,
  PRIMARY KEY (kind, owner, name)
);

-- Which large objects of its source a shadow has: those that a snapshot showed whose oldest running transaction was `horizon`. What its own
-- clients write of them, once it has taken over, is of transactions from `own` on.
CREATE TABLE IF NOT EXISTS godwit.large_objects (
  resource text PRIMARY KEY,
  generation bigint NOT NULL,
  horizon bigint NOT NULL,
  own bigint NOT NULL
);

-- How the primary of a generation numbers changes for clients: its own positions and `ahead` more. What the generation before wrote ends at
-- before_end, as its zone's server numbers it, and clients see before_ahead more there; here it begins at start. Prepared on a shadow, without
-- start, and completed by what opens it. A shadow that takes over has no before.
CREATE TABLE IF NOT EXISTS godwit.change_positions (
  resource text PRIMARY KEY,
  generation bigint NOT NULL,
  ahead bigint NOT NULL,
  before_zone text,
  before_ahead bigint,
  before_end pg_lsn,
  start pg_lsn
);

-- Where this server's log was when it was opened as the primary of a generation: what clients have written since comes after.
CREATE TABLE IF NOT EXISTS godwit.opened (
  resource text PRIMARY KEY,
  generation bigint NOT NULL,
  at pg_lsn NOT NULL
);

-- Streams that this server was seen not to have all of: it is an older copy of itself. That stays so when its log has grown past what they have.
CREATE TABLE IF NOT EXISTS godwit.fallen_behind (stream text PRIMARY KEY, why text NOT NULL);

-- Slots that somebody reads through the front; by which publications, and whether what the last move left of it at the old primary was read.
CREATE TABLE IF NOT EXISTS godwit.change_streams (
  resource text NOT NULL,
  slot name NOT NULL,
  publications text[] NOT NULL,
  passed boolean NOT NULL DEFAULT true,
  PRIMARY KEY (resource, slot)
);

-- Tables here whose rows are to be copied anew: what they have is not what the source has.
CREATE TABLE IF NOT EXISTS godwit.unfilled (target_table oid PRIMARY KEY);

-- How sequences were when a move was prepared, and whether its fence has told of them since. Lost in a crash: then all are told of.
CREATE UNLOGGED TABLE IF NOT EXISTS godwit.known_sequences (
  id oid PRIMARY KEY,
  run text NOT NULL,
  last_value bigint NOT NULL,
  is_called boolean NOT NULL,
  told boolean NOT NULL DEFAULT false
);

-- What heartbeats write on the primary: a row each for a resource. Of no publication; a shadow's stays as the last move left it.
CREATE TABLE IF NOT EXISTS godwit.heartbeat (
  resource text PRIMARY KEY,
  generation bigint NOT NULL,
  beats bigint NOT NULL,
  at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- CONNECT grants that a fence took away (given = false) or added for Godwit's own role (given = true).
-- grantee is NULL for PUBLIC; place is the order in which they are given back.
CREATE TABLE IF NOT EXISTS godwit.connect_grants (
  place bigint PRIMARY KEY,
  grantee name,
  grantor name NOT NULL,
  grantable boolean NOT NULL,
  given boolean NOT NULL DEFAULT false
);

-- What every fence trigger calls: one switch for all tables. It reads no table, so writers need no rights here. Made once: it may be up now.
DO $$ BEGIN
  IF to_regprocedure('godwit.fence()') IS NULL THEN
    CREATE FUNCTION godwit.fence() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
  END IF;
END $$;

-- Whether it refuses.
CREATE OR REPLACE FUNCTION godwit.fence_is_up() RETURNS boolean LANGUAGE sql STABLE AS $$
  SELECT prosrc LIKE '%RAISE%' FROM pg_catalog.pg_proc WHERE oid = 'godwit.fence()'::regprocedure
$$;

-- Turns the switch, for everybody at once when this transaction commits: a session looks at what a function is whenever it has got a lock on a
-- table. Without a resource it lets pass.
CREATE OR REPLACE FUNCTION godwit.turn_fence(resource text, generation bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  body text := 'BEGIN RETURN NULL; END';
BEGIN
  IF resource IS NOT NULL THEN
    body := format('BEGIN
  RAISE EXCEPTION %L USING
    ERRCODE = ''25006'',
    DETAIL = format(''resource %%s, table %%s.%%s'', %L, TG_TABLE_SCHEMA, TG_TABLE_NAME),
    HINT = ''Reconnect through the proxy: the writable database is in another zone.'';
END', 'this database is fenced by godwit: generation ' || generation, resource);
  END IF;
  IF EXISTS (SELECT FROM pg_catalog.pg_proc WHERE oid = 'godwit.fence()'::regprocedure AND prosrc <> body) THEN
    EXECUTE format('CREATE OR REPLACE FUNCTION godwit.fence() RETURNS trigger LANGUAGE plpgsql AS %L', body);
  END IF;
END $$;

-- Every table a client could write: plain tables, leaf partitions and partitioned parents, unlogged ones too.
-- A table of an extension counts only where this role may put a trigger on it.
CREATE OR REPLACE FUNCTION godwit.user_tables() RETURNS TABLE (id oid, schema name, name name)
LANGUAGE sql STABLE AS $$
  SELECT c.oid, n.nspname, c.relname
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
    AND n.nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'
    AND (pg_catalog.pg_has_role(c.relowner, 'USAGE') OR NOT EXISTS (
      SELECT FROM pg_catalog.pg_depend d
      WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
  ORDER BY n.nspname, c.relname
$$;

-- Exact state of every user sequence, identity and serial ones included (pg_sequences loses is_called).
DO $$ BEGIN
  IF EXISTS (SELECT FROM pg_proc WHERE oid = to_regprocedure('godwit.sequence_states()') AND NOT 'id' = ANY (proargnames)) THEN
    DROP FUNCTION godwit.sequence_states();
  END IF;
END $$;
CREATE OR REPLACE FUNCTION godwit.sequence_states()
RETURNS TABLE (id oid, schema name, name name, last_value bigint, is_called boolean) LANGUAGE plpgsql AS $$
BEGIN
  FOR id, schema, name, last_value IN
    SELECT c.oid, n.nspname, c.relname, pg_catalog.pg_sequence_last_value(c.oid)
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'S' AND c.relpersistence <> 't'
      AND n.nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'
      AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY n.nspname, c.relname
  LOOP
    is_called := last_value IS NOT NULL;
    IF NOT is_called THEN
      EXECUTE format('SELECT s.last_value, s.is_called FROM %I.%I s', schema, name) INTO last_value, is_called;
    END IF;
    RETURN NEXT;
  END LOOP;
END $$;

-- Those that are not as they were when this run was prepared, and those that the fence has told of already.
CREATE OR REPLACE FUNCTION godwit.changed_sequences(wanted_run text) RETURNS jsonb LANGUAGE sql AS $$
  WITH changed AS MATERIALIZED (
    SELECT s.* FROM godwit.sequence_states() s LEFT JOIN godwit.known_sequences k ON k.id = s.id AND k.run = wanted_run
    WHERE k.id IS NULL OR k.told OR (k.last_value, k.is_called) IS DISTINCT FROM (s.last_value, s.is_called)
  ), told AS (
    UPDATE godwit.known_sequences k SET told = true FROM changed c WHERE k.id = c.id AND k.run = wanted_run AND NOT k.told
  )
  SELECT coalesce(jsonb_agg(jsonb_build_object('schema', schema, 'name', name, 'last_value', last_value, 'is_called', is_called)), '[]')
  FROM changed
$$;

-- How many large objects there are, the oldest transaction that runs, whether this role may read them, and which of them transactions from `since` on
-- have written, or their comments: what took one away is not seen. What has gone round counts as new.
CREATE OR REPLACE FUNCTION godwit.large_objects_since(since bigint, OUT objects bigint, OUT horizon bigint, OUT readable boolean, OUT written oid[])
LANGUAGE plpgsql STABLE AS $$
DECLARE
  upto bigint := pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
BEGIN
  SELECT count(*) INTO objects FROM pg_catalog.pg_largeobject_metadata;
  horizon := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
  readable := has_table_privilege('pg_catalog.pg_largeobject', 'SELECT');
  IF since IS NULL OR objects > 0 AND NOT readable THEN
    RETURN;
  ELSIF objects = 0 THEN
    written := '{}';
    RETURN;
  END IF;
  SELECT coalesce(array_agg(w.id ORDER BY w.id), '{}') INTO written FROM (
    SELECT l.loid AS id FROM pg_catalog.pg_largeobject l WHERE (upto - l.xmin::text::bigint) & 4294967295 <= upto - since
    UNION SELECT m.oid FROM pg_catalog.pg_largeobject_metadata m WHERE (upto - m.xmin::text::bigint) & 4294967295 <= upto - since
    UNION SELECT d.objoid FROM pg_catalog.pg_description d
      WHERE d.classoid = 'pg_catalog.pg_largeobject'::regclass AND (upto - d.xmin::text::bigint) & 4294967295 <= upto - since
  ) w;
END $$;

-- CONNECT grants on this database, in the order of its access list.
CREATE OR REPLACE FUNCTION godwit.connect_acl()
RETURNS TABLE (place bigint, grantee oid, grantor oid, grantable boolean, owner oid) LANGUAGE sql STABLE AS $$
  SELECT a.ordinality, a.grantee, a.grantor, a.is_grantable, d.datdba
  FROM pg_catalog.pg_database d,
       pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba)))
         WITH ORDINALITY a (grantor, grantee, privilege_type, is_grantable, ordinality)
  WHERE d.datname = pg_catalog.current_database() AND a.privilege_type = 'CONNECT'
$$;

-- Which of these grants let an application in. app_roles empty: every one but those of superusers (who need none),
-- of replication roles and of our own. Otherwise PUBLIC, the named roles and the groups they are in.
CREATE OR REPLACE FUNCTION godwit.connect_acl_of_apps(app_roles text[])
RETURNS TABLE (place bigint, grantee oid, grantor oid, grantable boolean, owner oid) LANGUAGE sql STABLE AS $$
  SELECT a.* FROM godwit.connect_acl() a LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
  WHERE a.grantee = 0
     OR (r.rolname <> current_user AND NOT r.rolsuper AND CASE
           WHEN a.grantor <> a.owner THEN true
           WHEN cardinality(app_roles) = 0 THEN NOT (r.rolreplication OR r.oid IN (SELECT m.member FROM pg_catalog.pg_auth_members m
             JOIN pg_catalog.pg_roles g ON g.oid = m.roleid WHERE g.rolname = 'rds_replication'))
           ELSE r.rolname = ANY (app_roles::name[]) OR EXISTS (
             SELECT FROM pg_catalog.pg_roles app
             WHERE app.rolname = ANY (app_roles::name[]) AND pg_catalog.pg_has_role(app.oid, r.oid, 'MEMBER'))
         END)
$$;

-- Gives or takes one CONNECT grant in the name of its grantor.
CREATE OR REPLACE FUNCTION godwit.change_connect(statement text, grantor name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF grantor IN (SELECT r.rolname FROM pg_catalog.pg_database d JOIN pg_catalog.pg_roles r ON r.oid = d.datdba
                 WHERE d.datname = current_database()) THEN
    EXECUTE statement;
    RETURN;
  END IF;
  DECLARE
    before text := current_setting('role');
  BEGIN
    EXECUTE format('SET LOCAL ROLE %I', grantor);
    EXECUTE statement;
    PERFORM set_config('role', before, true);
  END;
END $$;

CREATE OR REPLACE FUNCTION godwit.revoke_connect(app_roles text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  base bigint := coalesce((SELECT max(place) FROM godwit.connect_grants), 0);
  held record;
  left_over text;
BEGIN
  -- Our own role may hold CONNECT through PUBLIC or a group only: it gets its own grant first.
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = current_user AND rolsuper)
     AND NOT EXISTS (SELECT FROM godwit.connect_acl() a
                     WHERE pg_get_userbyid(a.grantee) = current_user AND a.grantor = a.owner) THEN
    INSERT INTO godwit.connect_grants
    SELECT base + 1, current_user, pg_get_userbyid(d.datdba), false, true
    FROM pg_catalog.pg_database d WHERE d.datname = current_database();
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), current_user);
    base := base + 1;
  END IF;
  -- Last first: a grant made by another grantee goes before the one it depends on.
  FOR held IN
    SELECT a.place, r.rolname AS grantee, o.rolname AS grantor, a.grantable
    FROM godwit.connect_acl_of_apps(app_roles) a
    LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee JOIN pg_catalog.pg_roles o ON o.oid = a.grantor
    ORDER BY a.place DESC
  LOOP
    INSERT INTO godwit.connect_grants VALUES (base + held.place, held.grantee, held.grantor, held.grantable);
    PERFORM godwit.change_connect(
      format('REVOKE CONNECT ON DATABASE %I FROM %s', current_database(),
             coalesce(quote_ident(held.grantee), 'PUBLIC')), held.grantor);
  END LOOP;
  SELECT string_agg(DISTINCT coalesce(r.rolname, 'PUBLIC'), ', ') INTO left_over
  FROM godwit.connect_acl_of_apps(app_roles) a LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee;
  IF left_over IS NOT NULL THEN
    RAISE EXCEPTION 'CONNECT could not be taken from %', left_over USING
      ERRCODE = 'ZG001', DETAIL = format('role %I does not own database %I', current_user, current_database());
  END IF;
END $$;

-- Exactly what revoke_connect changed, in the old order. A role dropped since then is passed over.
CREATE OR REPLACE FUNCTION godwit.restore_connect() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  held record;
BEGIN
  FOR held IN
    SELECT g.* FROM godwit.connect_grants g
    WHERE (g.grantee IS NULL OR EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = g.grantee))
      AND EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = g.grantor)
    ORDER BY g.given, g.place
  LOOP
    IF held.given THEN
      EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM %I', current_database(), held.grantee);
    ELSE
      PERFORM godwit.change_connect(
        format('GRANT CONNECT ON DATABASE %I TO %s%s', current_database(),
               coalesce(quote_ident(held.grantee), 'PUBLIC'),
               CASE WHEN held.grantable THEN ' WITH GRANT OPTION' ELSE '' END), held.grantor);
    END IF;
  END LOOP;
  DELETE FROM godwit.connect_grants;
END $$;

-- Who holds a lock on this table that a trigger's lock must wait for.
CREATE OR REPLACE FUNCTION godwit.holders(tbl oid) RETURNS TABLE (pid integer) LANGUAGE sql AS $$
  SELECT DISTINCT l.pid FROM pg_catalog.pg_locks l
  WHERE l.locktype = 'relation' AND l.relation = tbl AND l.granted
    AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
    AND l.mode <> ALL ('{AccessShareLock,RowShareLock}') AND l.pid IS DISTINCT FROM pg_backend_pid()
$$;

CREATE OR REPLACE FUNCTION godwit.blockers(tbl oid) RETURNS text LANGUAGE sql AS $$
  SELECT coalesce(string_agg(CASE
      WHEN l.pid IS NULL THEN 'a prepared transaction'
      ELSE format('pid %s (%s, application %s, %s for %s s)', l.pid, coalesce(a.usename, a.backend_type, '?'),
                  coalesce(nullif(quote_literal(a.application_name), ''''''), 'unnamed'), coalesce(a.state, 'active'),
                  coalesce(round(extract(epoch FROM clock_timestamp() - a.state_change)::numeric, 1)::text, '?'))
    END, ', '), 'a session that has gone')
  FROM godwit.holders(tbl) l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
$$;

-- Tables that cannot be many for what a fence waits for: their triggers come and go with it. Of more, a move puts the triggers there before anybody
-- is held, and drops them when nobody is any more.
CREATE OR REPLACE FUNCTION godwit.few() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 100::bigint';

CREATE OR REPLACE FUNCTION godwit.put_trigger(schema name, name name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('CREATE OR REPLACE TRIGGER godwit_fence BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %I.%I '
                 'FOR EACH STATEMENT EXECUTE FUNCTION godwit.fence()', schema, name);
END $$;

-- Every user table, and whether it has the trigger.
CREATE OR REPLACE FUNCTION godwit.fenced_tables() RETURNS TABLE (id oid, schema name, name name, done boolean) LANGUAGE sql STABLE AS $$
  SELECT u.*, coalesce(t.tgenabled = 'O' AND t.tgfoid = 'godwit.fence()'::regprocedure, false)
  FROM godwit.user_tables() u LEFT JOIN pg_catalog.pg_trigger t ON t.tgrelid = u.id AND t.tgname = 'godwit_fence'
$$;

-- The fence trigger on every user table, within budget_ms in all, and the switch turned. The trigger's lock, or one like it, is the drain
-- barrier: once held, every earlier writer of the table has committed or rolled back. On a timeout nothing is left behind.
CREATE OR REPLACE FUNCTION godwit.put_fence(resource text, generation bigint, budget_ms bigint) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
  deadline timestamptz := clock_timestamp() + budget_ms * interval '1 millisecond';
  tables integer := 0;
  up boolean := godwit.fence_is_up();
  next record;
  one text;
  stuck record;
BEGIN
  -- An autovacuum worker's lock conflicts as well, and it would give way only after deadlock_timeout.
  BEGIN
    PERFORM pg_cancel_backend(a.pid) FROM pg_catalog.pg_stat_activity a
    WHERE a.datname = current_database() AND a.backend_type = 'autovacuum worker';
  EXCEPTION WHEN insufficient_privilege THEN
    NULL;
  END;
  -- Without superuser it cannot be told to: then it gives way to whoever has waited for deadlock_timeout. Should it come to a
  -- deadlock with the application, it is the fence that gives up.
  BEGIN
    PERFORM set_config('deadlock_timeout', '20ms', true);
  EXCEPTION WHEN insufficient_privilege THEN
    NULL;
  END;
  -- A table without it gets it; the others are locked many at a time, unless nobody may write them as it is.
  FOR next IN
    SELECT f.done, CASE WHEN f.done THEN f.place / 100 ELSE -f.place END AS part, array_agg(f.id) AS ids,
           min(f.schema) AS schema, min(f.name) AS name, array_agg(format('ONLY %I.%I', f.schema, f.name) ORDER BY f.place) AS listed
    FROM (SELECT t.*, row_number() OVER () AS place FROM godwit.fenced_tables() t) f GROUP BY 1, 2 ORDER BY min(f.place)
  LOOP
    CONTINUE WHEN next.done AND up;
    IF next.done THEN
      -- lock_timeout counts anew for each table of a statement: those that cannot be had at once are awaited one by one.
      BEGIN
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE NOWAIT', array_to_string(next.listed, ', '));
        CONTINUE;
      EXCEPTION WHEN lock_not_available THEN
        NULL;
      END;
    END IF;
    FOREACH one IN ARRAY next.listed LOOP
      PERFORM set_config('lock_timeout',
        greatest(1, ceil(extract(epoch FROM deadline - clock_timestamp()) * 1000))::bigint::text, true);
      IF next.done THEN
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', one);
      ELSE
        PERFORM godwit.put_trigger(next.schema, next.name);
      END IF;
    END LOOP;
  END LOOP;
  -- Who held a table until its lock was had may have switched its trigger off, or have made a table. No more than some 20 ms for ten thousand tables.
  FOR next IN
    SELECT ARRAY[f.id] AS ids, f.schema, f.name, f.done, count(*) OVER ()::integer AS tables FROM godwit.fenced_tables() f ORDER BY f.done
  LOOP
    tables := next.tables;
    EXIT WHEN next.done;
    PERFORM set_config('lock_timeout',
      greatest(1, ceil(extract(epoch FROM deadline - clock_timestamp()) * 1000))::bigint::text, true);
    PERFORM godwit.put_trigger(next.schema, next.name);
  END LOOP;
  PERFORM godwit.turn_fence(resource, generation);
  RETURN tables;
EXCEPTION WHEN lock_not_available THEN
  SELECT format('%s.%s', u.schema, u.name) AS named, godwit.blockers(u.id) AS blockers INTO stuck
  FROM godwit.user_tables() u WHERE u.id = ANY (next.ids)
  ORDER BY EXISTS (SELECT FROM godwit.holders(u.id)) DESC, u.schema, u.name LIMIT 1;
  RAISE EXCEPTION 'table % stayed locked for more than % ms', stuck.named, budget_ms USING
    ERRCODE = 'lock_not_available', DETAIL = 'held by ' || stuck.blockers;
END $$;

-- Drops fence triggers, where nobody holds the table: dropping needs a lock that shuts readers out. One that stays lets pass whoever the switch
-- does, but those that earlier versions made.
CREATE OR REPLACE FUNCTION godwit.drop_fence() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  tbl record;
  many boolean := (SELECT count(*) > godwit.few() FROM pg_catalog.pg_trigger WHERE tgname = 'godwit_fence');
BEGIN
  FOR tbl IN
    SELECT c.oid AS id, n.nspname AS schema, c.relname AS name, t.tgfoid <> 'godwit.fence()'::regprocedure AS earlier
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE t.tgname = 'godwit_fence' AND (NOT many OR t.tgfoid <> 'godwit.fence()'::regprocedure)
    ORDER BY n.nspname, c.relname
  LOOP
    BEGIN
      EXECUTE format('LOCK TABLE ONLY %I.%I IN ACCESS EXCLUSIVE MODE NOWAIT', tbl.schema, tbl.name);
      EXECUTE format('DROP TRIGGER godwit_fence ON %I.%I', tbl.schema, tbl.name);
    EXCEPTION WHEN lock_not_available THEN
      IF tbl.earlier THEN
        BEGIN
          PERFORM godwit.put_trigger(tbl.schema, tbl.name);
        EXCEPTION WHEN lock_not_available THEN
          RAISE EXCEPTION 'table %.% stayed locked', tbl.schema, tbl.name USING
            ERRCODE = 'lock_not_available', DETAIL = 'held by ' || godwit.blockers(tbl.id);
        END;
      END IF;
    END;
  END LOOP;
END $$;

-- Puts the trigger on the tables of an open database (arm), or drops it there: a few tables at a time, each time only while it is open. Nobody's lock is
-- waited for, but at the end for a moment each, with no other lock in hand. What it does not get stays as it is.
CREATE OR REPLACE PROCEDURE godwit.change_triggers(wanted_resource text, arm boolean) LANGUAGE plpgsql AS $$
DECLARE
  todo oid[];
  left_over oid[] := '{}';
  tbl record;
  at_once integer := 20;
  done integer := 0;
  open boolean;
BEGIN
  IF NOT arm THEN
    SELECT array_agg(t.tgrelid) INTO todo FROM pg_catalog.pg_trigger t WHERE t.tgname = 'godwit_fence';
  ELSIF (SELECT count(*) > godwit.few() FROM godwit.user_tables()) THEN
    SELECT array_agg(f.id) INTO todo FROM godwit.fenced_tables() f WHERE NOT f.done;
  END IF;
  WHILE done < coalesce(cardinality(todo), 0) LOOP
    PERFORM set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '5ms', true);
    SELECT NOT e.fenced INTO open FROM godwit.epoch e WHERE e.resource = wanted_resource FOR SHARE;
    EXIT WHEN open IS NOT TRUE;
    FOR tbl IN
      SELECT c.oid AS id, n.nspname AS schema, c.relname AS name FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE c.oid = ANY (todo[done + 1 : done + at_once])
    LOOP
      BEGIN
        EXECUTE format('LOCK TABLE ONLY %I.%I IN %s MODE %s', tbl.schema, tbl.name,
          CASE WHEN arm THEN 'SHARE ROW EXCLUSIVE' ELSE 'ACCESS EXCLUSIVE' END, CASE WHEN at_once > 1 THEN 'NOWAIT' ELSE '' END);
        IF arm THEN
          PERFORM godwit.put_trigger(tbl.schema, tbl.name);
        ELSE
          EXECUTE format('DROP TRIGGER IF EXISTS godwit_fence ON %I.%I', tbl.schema, tbl.name);
        END IF;
      EXCEPTION WHEN lock_not_available THEN
        left_over := left_over || tbl.id;
      WHEN undefined_table THEN
        NULL;
      END;
    END LOOP;
    COMMIT;
    done := done + at_once;
    IF at_once > 1 AND done >= cardinality(todo) THEN
      todo := left_over;
      done := 0;
      at_once := 1;
    END IF;
  END LOOP;
END $$;

-- The part of a fence that needs nobody held: triggers where there are many tables, and how sequences are now.
CREATE OR REPLACE PROCEDURE godwit.prepare_fence(args jsonb, INOUT report jsonb) LANGUAGE plpgsql AS $$
BEGIN
  CALL godwit.change_triggers(args ->> 'resource', true);
  PERFORM set_config('synchronous_commit', 'off', true);
  DELETE FROM godwit.known_sequences;
  INSERT INTO godwit.known_sequences SELECT s.id, args ->> 'run', s.last_value, s.is_called FROM godwit.sequence_states() s;
  SELECT coalesce(jsonb_agg(jsonb_build_object('schema', n.nspname, 'name', c.relname, 'last_value', k.last_value, 'is_called', k.is_called)), '[]')
  INTO report FROM godwit.known_sequences k JOIN pg_catalog.pg_class c ON c.oid = k.id JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace;
END $$;

-- Changes with every DDL on a user's table, type, sequence, view, function, trigger, policy, schema, foreign table or server, with whose they are and
-- who may do what with them, and with nothing else: how many rows the catalogs have about them, which transactions wrote those, and what is said of
-- relations. Some 20 ms of a core for a thousand tables with two indexes each, most of that for their columns.
CREATE OR REPLACE FUNCTION godwit.schema_stamp() RETURNS text LANGUAGE sql STABLE AS $$
  WITH schemas AS MATERIALIZED (
    SELECT n.oid, n.xmin FROM pg_catalog.pg_namespace n
    WHERE n.nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'
  ), ours AS MATERIALIZED (
    SELECT c.oid FROM pg_catalog.pg_class c
    WHERE c.relkind IN ('r', 'p', 'c', 'v', 'f') AND c.relpersistence <> 't' AND c.relnamespace IN (SELECT oid FROM schemas)
  ), types AS MATERIALIZED (
    SELECT y.oid, y.xmin FROM pg_catalog.pg_type y
    WHERE (y.typtype IN ('e', 'd', 'r') OR y.typrelid IN (SELECT oid FROM ours)) AND y.typnamespace IN (SELECT oid FROM schemas)
  ), publications AS MATERIALIZED (
    -- Godwit's own among them: what was not published for a while is missing in the shadow.
    SELECT p.oid, p.xmin FROM pg_catalog.pg_publication p
  ), written AS (
    SELECT 1 AS of, a.xmin::text::bigint AS writer FROM pg_catalog.pg_attribute a WHERE a.attnum > 0 AND a.attrelid IN (SELECT oid FROM ours)
    UNION ALL SELECT 2, d.xmin::text::bigint FROM pg_catalog.pg_attrdef d WHERE d.adrelid IN (SELECT oid FROM ours)
    UNION ALL SELECT 3, k.xmin::text::bigint FROM pg_catalog.pg_constraint k WHERE k.conrelid IN (SELECT oid FROM ours)
    UNION ALL SELECT 4, i.xmin::text::bigint FROM pg_catalog.pg_index i WHERE i.indrelid IN (SELECT oid FROM ours)
    UNION ALL SELECT 5, e.xmin::text::bigint FROM pg_catalog.pg_enum e
    UNION ALL SELECT 6, p.xmin::text::bigint FROM pg_catalog.pg_proc p WHERE p.pronamespace IN (SELECT oid FROM schemas)
    UNION ALL SELECT 7, r.xmin::text::bigint FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
      WHERE c.relnamespace IN (SELECT oid FROM schemas)
    -- The fence's own come and go.
    UNION ALL SELECT 8, g.xmin::text::bigint FROM pg_catalog.pg_trigger g
      WHERE NOT g.tgisinternal AND g.tgname !~ '^godwit_' AND g.tgrelid IN (SELECT oid FROM ours)
    UNION ALL SELECT 9, p.xmin::text::bigint FROM pg_catalog.pg_policy p WHERE p.polrelid IN (SELECT oid FROM ours)
    UNION ALL SELECT 10, y.xmin::text::bigint FROM types y
    UNION ALL SELECT 11, k.xmin::text::bigint FROM pg_catalog.pg_constraint k WHERE k.contypid IN (SELECT oid FROM types)
    UNION ALL SELECT 12, q.xmin::text::bigint FROM pg_catalog.pg_sequence q JOIN pg_catalog.pg_class c ON c.oid = q.seqrelid
      WHERE c.relnamespace IN (SELECT oid FROM schemas)
    -- Their rows are written for other reasons, too.
    UNION ALL SELECT 13, hashtext(format('%s.%s %s %s %s %s %s %s %s', c.relnamespace, c.relname, c.relowner, c.relacl, c.relrowsecurity, c.relforcerowsecurity,
      c.relpersistence, c.relreplident, CASE WHEN c.relkind IN ('v', 'm') THEN c.reloptions END))
      FROM pg_catalog.pg_class c WHERE c.relnamespace IN (SELECT oid FROM schemas)
    UNION ALL SELECT 14, p.xmin::text::bigint FROM publications p
    UNION ALL SELECT 15, r.xmin::text::bigint FROM pg_catalog.pg_publication_rel r WHERE r.prpubid IN (SELECT oid FROM publications)
    UNION ALL SELECT 16, n.xmin::text::bigint FROM schemas n
    UNION ALL SELECT 17, d.xmin::text::bigint FROM pg_catalog.pg_default_acl d
    UNION ALL SELECT 18, s.xmin::text::bigint FROM pg_catalog.pg_foreign_server s
    UNION ALL SELECT 19, f.xmin::text::bigint FROM pg_catalog.pg_foreign_table f
  )
  SELECT coalesce(string_agg(stamp, ' ' ORDER BY of), '')
  FROM (SELECT of, count(*) || '/' || sum(writer) AS stamp FROM written GROUP BY of) s
$$;

-- Client sessions on this database that are not Godwit's. Walsenders and background workers are not among them.
-- app_roles empty: all. Otherwise those roles, and every other role that is no superuser.
CREATE OR REPLACE FUNCTION godwit.app_sessions(app_roles text[]) RETURNS TABLE (pid integer, described text)
LANGUAGE sql AS $$
  SELECT a.pid, format('pid %s (%s, application %s)', a.pid, a.usename,
                       coalesce(nullif(quote_literal(a.application_name), ''''''), 'unnamed'))
  FROM pg_catalog.pg_stat_activity a LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid
  WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
    -- backend_type is hidden from a role without pg_read_all_stats.
    AND coalesce(a.backend_type = 'client backend', a.usesysid IS NOT NULL)
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_get_wal_senders() w WHERE w.pid = a.pid)
    AND (coalesce(a.usename <> current_user AND a.usename = ANY (app_roles::name[]), false) OR NOT (
          coalesce(a.application_name, '') LIKE 'godwit%'
          OR (a.usename = current_user AND a.application_name <> ''
              AND a.application_name = current_setting('application_name'))))
    AND (cardinality(app_roles) = 0 OR a.usename = ANY (app_roles::name[]) OR NOT coalesce(r.rolsuper, false))
$$;

-- Only the run that fenced a generation may fence it again, and none that was undone.
CREATE OR REPLACE FUNCTION godwit.refuse_close(epoch_row godwit.epoch, wanted bigint, wanted_run text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  IF epoch_row.generation > wanted THEN
    RAISE EXCEPTION 'generation % is over: this database is at generation %', wanted, epoch_row.generation
      USING ERRCODE = 'ZG002';
  ELSIF epoch_row.generation = wanted AND epoch_row.fenced AND epoch_row.run IS DISTINCT FROM wanted_run THEN
    RAISE EXCEPTION 'generation % is fenced already, not by migration %', wanted, wanted_run USING ERRCODE = 'ZG002';
  ELSIF EXISTS (SELECT FROM godwit.undone u WHERE u.run = wanted_run) THEN
    RAISE EXCEPTION 'migration % was undone', wanted_run USING ERRCODE = 'ZG002';
  END IF;
END $$;

-- Only the node that leads may fence. Its lease stays as it is until this transaction is over: who takes it then sees the fence.
CREATE OR REPLACE FUNCTION godwit.refuse_node(wanted_resource text, caller text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  lease godwit.leader;
BEGIN
  SELECT l.* INTO lease FROM godwit.leader l WHERE l.resource = wanted_resource FOR SHARE;
  IF FOUND AND lease.holder IS DISTINCT FROM caller AND (caller IS NOT NULL OR lease.until > clock_timestamp()) THEN
    RAISE EXCEPTION 'node % leads %', lease.node, wanted_resource USING ERRCODE = 'ZG002';
  END IF;
END $$;

CREATE OR REPLACE PROCEDURE godwit.close_fence(args jsonb, INOUT report jsonb) LANGUAGE plpgsql AS $$
DECLARE
  wanted_resource text := args ->> 'resource';
  wanted bigint := (args ->> 'generation')::bigint;
  wanted_run text := args ->> 'run';
  app_roles text[] := ARRAY(SELECT jsonb_array_elements_text(args -> 'app_roles'));
  budget_ms bigint := (args ->> 'lock_timeout_ms')::bigint;
  epoch_row godwit.epoch;
  marker pg_lsn;
  fenced_tables integer;
  failure text;
  failure_state text;
  failure_detail text;
BEGIN
  SELECT string_agg(quote_literal(p.gid), ', ' ORDER BY p.gid) INTO failure
  FROM pg_catalog.pg_prepared_xacts p WHERE p.database = current_database();
  IF failure IS NOT NULL THEN
    RAISE EXCEPTION 'prepared transactions exist: %', failure USING
      ERRCODE = 'ZG001', DETAIL = 'they block the fence and outlive it: COMMIT PREPARED or ROLLBACK PREPARED each';
  END IF;

  -- Doors shut first. This commit needs no flush of its own: the next one flushes it as well.
  PERFORM set_config('synchronous_commit', 'off', true), set_config('lock_timeout', budget_ms::text, true);
  SELECT e.* INTO epoch_row FROM godwit.epoch e WHERE e.resource = wanted_resource FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'resource % is not installed in this database', wanted_resource USING ERRCODE = 'ZG001';
  END IF;
  PERFORM godwit.refuse_close(epoch_row, wanted, wanted_run), godwit.refuse_node(wanted_resource, args ->> 'holder');
  PERFORM godwit.revoke_connect(app_roles);
  COMMIT;

  PERFORM set_config('synchronous_commit', 'local', true);
  IF epoch_row.generation = wanted AND epoch_row.fenced AND epoch_row.marker_lsn IS NOT NULL THEN
    -- Closed before: a repeated call, perhaps after a crash between the triggers and here.
    marker := epoch_row.marker_lsn;
    fenced_tables := epoch_row.tables;
  ELSE
    BEGIN
      PERFORM set_config('lock_timeout', budget_ms::text, true);
      SELECT e.* INTO epoch_row FROM godwit.epoch e WHERE e.resource = wanted_resource FOR UPDATE;
      PERFORM godwit.refuse_close(epoch_row, wanted, wanted_run), godwit.refuse_node(wanted_resource, args ->> 'holder');
      fenced_tables := godwit.put_fence(wanted_resource, wanted, budget_ms);
      marker := pg_logical_emit_message(true, 'godwit.fence', wanted::text);
      UPDATE godwit.epoch e SET generation = wanted, fenced = true, marker_lsn = marker,
        tables = fenced_tables, run = wanted_run, updated_at = now() WHERE e.resource = wanted_resource;
    EXCEPTION WHEN OTHERS THEN
      GET STACKED DIAGNOSTICS failure = MESSAGE_TEXT, failure_state = RETURNED_SQLSTATE,
        failure_detail = PG_EXCEPTION_DETAIL;
    END;
    IF failure IS NOT NULL THEN
      IF NOT epoch_row.fenced THEN
        PERFORM godwit.restore_connect();
      END IF;
      COMMIT;
      RAISE EXCEPTION '%', failure USING ERRCODE = failure_state, DETAIL = failure_detail;
    END IF;
    COMMIT;
  END IF;

  report := jsonb_build_object('marker', marker::text, 'tables', fenced_tables, 'sequences', godwit.changed_sequences(wanted_run));
END $$;

-- The second half of a fence: nobody writes any more; now nobody is connected any more. Sequences, and what was written of large objects, are
-- read after the last session ended. Does nothing where the first half did not succeed.
CREATE OR REPLACE FUNCTION godwit.end_sessions(args jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  app_roles text[] := ARRAY(SELECT jsonb_array_elements_text(args -> 'app_roles'));
  kill_ms bigint := (args ->> 'kill_timeout_ms')::bigint;
  kill_deadline timestamptz := clock_timestamp() + kill_ms * interval '1 millisecond';
  ended integer[] := '{}';
  session record;
  remaining text;
  marker pg_lsn;
  send_deadline timestamptz := clock_timestamp() + interval '20 milliseconds';
BEGIN
  SELECT e.marker_lsn INTO marker FROM godwit.epoch e WHERE e.resource = args ->> 'resource' AND e.fenced
    AND e.generation = (args ->> 'generation')::bigint;
  IF marker IS NULL THEN
    RAISE EXCEPTION 'the fence is not up' USING ERRCODE = 'ZG001';
  END IF;
  -- The marker leaves first: ending many sessions at once takes the CPU that the WAL sender needs for it.
  WHILE clock_timestamp() < send_deadline
    AND EXISTS (SELECT FROM pg_catalog.pg_stat_get_wal_senders() w WHERE w.state = 'streaming' AND w.sent_lsn <= marker)
  LOOP
    PERFORM pg_sleep(0.001);
  END LOOP;
  LOOP
    PERFORM pg_stat_clear_snapshot();
    remaining := NULL;
    -- A few at a time: the same work in all, but whoever carries the marker gets its turn.
    FOR session IN
      SELECT s.*, coalesce(a.wait_event = 'SyncRep', false) AS committed
      FROM godwit.app_sessions(app_roles) s LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.pid
      ORDER BY committed, s.pid LIMIT 4
    LOOP
      remaining := concat_ws(', ', remaining, session.described);
      -- It has committed, and the marker behind it goes to the same standby: its client gets a true answer if it may wait for
      -- that; one that is ended would not know.
      CONTINUE WHEN session.committed AND clock_timestamp() < kill_deadline - kill_ms * interval '0.5 millisecond';
      PERFORM pg_terminate_backend(session.pid);
      IF session.pid <> ALL (ended) THEN
        ended := ended || session.pid;
      END IF;
    END LOOP;
    EXIT WHEN remaining IS NULL;
    IF clock_timestamp() > kill_deadline THEN
      RAISE EXCEPTION 'sessions did not end within % ms; the triggers stay', kill_ms
        USING ERRCODE = 'object_in_use', DETAIL = remaining;
    END IF;
    PERFORM pg_sleep(0.001);
  END LOOP;
    RETURN jsonb_build_object('terminated', cardinality(ended),
        'large_objects', (SELECT jsonb_build_object('objects', o.objects, 'written', cardinality(o.written))
      FROM godwit.large_objects_since((args ->> 'large_objects')::bigint) o),
    'schema', godwit.schema_stamp(), 'sequences', godwit.changed_sequences(args ->> 'run'));
END $$;

CREATE OR REPLACE FUNCTION godwit.guard_fence(args jsonb) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
  wanted bigint := (args ->> 'generation')::bigint;
  budget_ms bigint := (args ->> 'lock_timeout_ms')::bigint;
  epoch_row godwit.epoch;
  fenced_tables integer;
BEGIN
  PERFORM set_config('synchronous_commit', 'local', true), set_config('lock_timeout', budget_ms::text, true);
  SELECT e.* INTO epoch_row FROM godwit.epoch e WHERE e.resource = args ->> 'resource' FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'resource % is not installed in this database', args ->> 'resource' USING ERRCODE = 'ZG001';
  ELSIF epoch_row.generation > wanted THEN
    RAISE EXCEPTION 'generation % is over: this database is at generation %', wanted, epoch_row.generation
      USING ERRCODE = 'ZG002';
  ELSIF (args ->> 'takes_over')::boolean THEN
    -- A node that stood still meanwhile takes nothing over, and a call that was held up does not close what the next one has opened.
    PERFORM godwit.refuse_node(args ->> 'resource', args ->> 'holder');
    IF epoch_row.generation = wanted AND NOT epoch_row.fenced THEN
      RAISE EXCEPTION 'this database has taken over: it is open at generation %', wanted USING ERRCODE = 'ZG002';
    ELSIF EXISTS (SELECT FROM godwit.undone u WHERE u.run = args ->> 'run') THEN
      RAISE EXCEPTION 'migration % was undone', args ->> 'run' USING ERRCODE = 'ZG002';
    END IF;
  END IF;
  fenced_tables := godwit.put_fence(args ->> 'resource', wanted, budget_ms);
  PERFORM godwit.restore_connect();
  UPDATE godwit.epoch e SET generation = wanted, fenced = true, tables = fenced_tables, run = NULL, updated_at = now(),
    marker_lsn = CASE WHEN epoch_row.generation = wanted THEN e.marker_lsn END
  WHERE e.resource = args ->> 'resource';
  RETURN fenced_tables;
END $$;

-- Makes sure that this run is not committed by opening this database; false: it was. Then it can be undone on the other side.
CREATE OR REPLACE FUNCTION godwit.forestall(args jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  wanted bigint := (args ->> 'generation')::bigint;
  epoch_row godwit.epoch;
BEGIN
  PERFORM set_config('synchronous_commit', 'local', true), set_config('lock_timeout', args ->> 'lock_timeout_ms', true);
  SELECT e.* INTO epoch_row FROM godwit.epoch e WHERE e.resource = args ->> 'resource' FOR UPDATE;
  IF epoch_row.generation >= wanted THEN
    RETURN false;
  END IF;
  INSERT INTO godwit.undone (run) VALUES (args ->> 'run') ON CONFLICT DO NOTHING;
  RETURN true;
END $$;

-- Slots of others that were to go with the primary, if a move has made some here that nobody has opened.
CREATE OR REPLACE FUNCTION godwit.drop_carried(wanted text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM godwit.change_positions p WHERE p.resource = wanted AND p.start IS NULL) THEN
    PERFORM pg_drop_replication_slot(s.slot_name)
    FROM pg_catalog.pg_replication_slots s JOIN godwit.change_streams c ON c.slot = s.slot_name
    WHERE c.resource = wanted AND s.active_pid IS NULL;
    DELETE FROM godwit.change_streams c WHERE c.resource = wanted;
    DELETE FROM godwit.change_positions p WHERE p.resource = wanted;
  END IF;
END $$;

CREATE OR REPLACE FUNCTION godwit.open_fence(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  wanted bigint := (args ->> 'generation')::bigint;
  undo text := args ->> 'undo';
  epoch_row godwit.epoch;
BEGIN
  PERFORM set_config('synchronous_commit', 'local', true), set_config('lock_timeout', args ->> 'lock_timeout_ms', true);
  SELECT e.* INTO epoch_row FROM godwit.epoch e WHERE e.resource = args ->> 'resource' FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'resource % is not installed in this database', args ->> 'resource' USING ERRCODE = 'ZG001';
  ELSIF epoch_row.generation > wanted
    AND NOT coalesce(epoch_row.fenced AND epoch_row.generation = wanted + 1 AND epoch_row.run = undo, false) THEN
    RAISE EXCEPTION 'generation % is over: this database is at generation %', wanted, epoch_row.generation
      USING ERRCODE = 'ZG002';
  ELSIF EXISTS (SELECT FROM godwit.undone u WHERE u.run = args ->> 'run') THEN
    RAISE EXCEPTION 'migration % was undone', args ->> 'run' USING ERRCODE = 'ZG002';
  END IF;
  IF undo IS NOT NULL THEN
    DELETE FROM godwit.undone u WHERE u.at < now() - interval '7 days';
    INSERT INTO godwit.undone (run) VALUES (undo) ON CONFLICT DO NOTHING;
  ELSE
    INSERT INTO godwit.opened AS o (resource, generation, at) VALUES (args ->> 'resource', wanted, pg_current_wal_insert_lsn())
    ON CONFLICT (resource) DO UPDATE SET generation = EXCLUDED.generation, at = EXCLUDED.at WHERE o.generation < EXCLUDED.generation;
  END IF;
    -- Who takes over after a move has all of the large objects that its source had; whoever opens it by hand does not say so.
  IF (args ->> 'moved')::boolean THEN
    UPDATE godwit.large_objects l SET generation = wanted WHERE l.resource = args ->> 'resource' AND l.generation = wanted - 1;
  END IF;
  -- Everything of the generation before is in this server's log, and nothing of this one's is. Numbers that clients have seen only grow, and
  -- after a first move are greater than any server's own: Debezium demands that of its slot's restart_lsn, which it reads by SQL.
  UPDATE godwit.change_positions p SET before_end = (args ->> 'before_end')::pg_lsn, start = here.now,
    ahead = greatest(1::bigint << 48, ((args ->> 'before_end')::pg_lsn - '0/0') + p.before_ahead - (here.now - '0/0'))
  FROM (SELECT pg_current_wal_insert_lsn() AS now) here
  WHERE p.resource = args ->> 'resource' AND p.generation = wanted AND p.start IS NULL AND args ->> 'before_end' IS NOT NULL;
  IF (args ->> 'moved')::boolean THEN
    -- Of a time when this was the primary before.
    DELETE FROM godwit.change_positions p WHERE p.resource = args ->> 'resource' AND p.generation < wanted;
  END IF;
  -- Where the old primary is lost, nobody knows what was read of its changes: slots that were to follow do not, and numbers begin far ahead.
  IF (args ->> 'taken_over')::boolean AND NOT EXISTS (SELECT FROM godwit.change_positions p
    WHERE p.resource = args ->> 'resource' AND p.generation = wanted AND p.start IS NOT NULL)
  THEN
    PERFORM godwit.drop_carried(args ->> 'resource');
    INSERT INTO godwit.change_positions AS p (resource, generation, ahead, start)
    VALUES (args ->> 'resource', wanted, least(wanted, 32767) << 48, pg_current_wal_insert_lsn())
    ON CONFLICT (resource) DO UPDATE SET generation = EXCLUDED.generation, ahead = EXCLUDED.ahead, start = EXCLUDED.start,
      before_zone = NULL, before_ahead = NULL, before_end = NULL;
  END IF;
  -- Whose move it is leads on: from here on this database says so. What another node has left here is not this one's.
  IF args ->> 'node' IS NOT NULL THEN
    UPDATE godwit.leader l SET holder = args ->> 'holder', node = args ->> 'node',
      until = clock_timestamp() + (args ->> 'lease_ms')::bigint * interval '1 millisecond',
      legacy = CASE WHEN l.holder = args ->> 'holder' THEN l.legacy END
    WHERE l.resource = args ->> 'resource';
  END IF;
  PERFORM godwit.turn_fence(NULL, NULL), godwit.drop_fence();
  PERFORM godwit.restore_connect();
  UPDATE godwit.epoch e SET generation = wanted, fenced = false, marker_lsn = NULL, tables = NULL, run = NULL,
    updated_at = now()
  WHERE e.resource = args ->> 'resource';
END $$;

-- The slots of the way back, which is of this generation, are the run's, unless a later one of the same node has them: what another node began is
-- over, whatever its clock says. Not of a node that does not lead, or that has not heard of who serves by now: its slots would be the stream's.
CREATE OR REPLACE FUNCTION godwit.claim_way_back(args jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  wanted bigint := (args ->> 'generation')::bigint;
  known bigint;
BEGIN
  PERFORM godwit.refuse_node(args ->> 'resource', args ->> 'holder');
  SELECT e.generation INTO known FROM godwit.epoch e WHERE e.resource = args ->> 'resource' FOR SHARE;
  IF known >= wanted THEN
    RAISE EXCEPTION 'generation % is over: this database is at generation %', wanted - 1, known USING ERRCODE = 'ZG002';
  END IF;
  INSERT INTO godwit.way_back AS w (resource, run, begun_ms, generation, holder)
  VALUES (args ->> 'resource', args ->> 'run', (args ->> 'begun_ms')::bigint, wanted, args ->> 'holder')
  ON CONFLICT (resource) DO UPDATE
    SET run = EXCLUDED.run, begun_ms = EXCLUDED.begun_ms, generation = EXCLUDED.generation, holder = EXCLUDED.holder
  WHERE w.generation IS NULL OR w.generation < EXCLUDED.generation OR w.holder IS DISTINCT FROM EXCLUDED.holder
    OR w.begun_ms <= EXCLUDED.begun_ms;
END $$;

-- Slots that wait for a stream which will not come; false: a later run has taken them over, or clients write here and the stream has come. Without a
-- run they are whoever's, which the node that leads knows to be over, if it knows of this database's generation. A session that is still making one would bring it to its end, and is ended.
CREATE OR REPLACE FUNCTION godwit.drop_way_back(args jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  slots name[] := ARRAY(SELECT jsonb_array_elements_text(args -> 'slots'))::name[];
  known bigint;
  used text;
BEGIN
  PERFORM FROM godwit.way_back w WHERE w.resource = args ->> 'resource' AND (w.run = args ->> 'run') IS NOT FALSE FOR UPDATE;
  IF args ->> 'run' IS NOT NULL AND (NOT FOUND OR EXISTS (SELECT FROM godwit.epoch e
    WHERE e.resource = args ->> 'resource' AND NOT e.fenced AND e.generation >= (args ->> 'generation')::bigint))
  THEN
    RETURN false;
  ELSIF args ->> 'run' IS NULL THEN
    PERFORM godwit.refuse_node(args ->> 'resource', args ->> 'holder');
    SELECT e.generation INTO known FROM godwit.epoch e WHERE e.resource = args ->> 'resource';
    IF known > (args ->> 'generation')::bigint THEN
      RAISE EXCEPTION 'generation % is over: this database is at generation %', args ->> 'generation', known USING ERRCODE = 'ZG002';
    END IF;
  END IF;
  PERFORM pg_terminate_backend(s.active_pid, 5000) FROM pg_catalog.pg_replication_slots s
  WHERE s.slot_name = ANY (slots) AND s.active_pid <> pg_backend_pid() AND s.confirmed_flush_lsn IS NULL;
  PERFORM pg_drop_replication_slot(s.slot_name) FROM pg_catalog.pg_replication_slots s
  WHERE s.slot_name = ANY (slots) AND s.active_pid IS NULL;
  SELECT string_agg(format('%s (pid %s)', s.slot_name, s.active_pid), ', ') INTO used
  FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = ANY (slots);
  IF used IS NOT NULL THEN
    RAISE EXCEPTION 'in use: %', used USING ERRCODE = 'object_in_use';
  END IF;
  PERFORM godwit.drop_carried(args ->> 'resource');
  RETURN true;
END $$;
