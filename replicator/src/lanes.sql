-- What a database with critical tables needs. Runs as one simple query, so as one transaction; safe to repeat.
SET LOCAL client_min_messages = warning;
SET LOCAL search_path = pg_catalog;
SET LOCAL synchronous_commit = local;
SELECT pg_advisory_xact_lock(7221037481926144001);

-- The trigger on critical tables. synchronous_commit is read when the transaction commits; a level that waits for more is
-- kept. Runs with the writer's rights: anybody may set it.
CREATE OR REPLACE FUNCTION godwit.wait_for_shadow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF pg_catalog.current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
    PERFORM pg_catalog.set_config('synchronous_commit', 'on', true);
  END IF;
  RETURN NULL;
END $$;

-- The database's own default of synchronous_commit, before Godwit set it to local; NULL: it had none.
CREATE TABLE IF NOT EXISTS godwit.database_default (
  parameter text PRIMARY KEY,
  before text
);

CREATE OR REPLACE FUNCTION godwit.default_of_database(parameter text) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT substr(s, length(parameter) + 2)
  FROM pg_catalog.pg_db_role_setting r, unnest(r.setconfig) s
  WHERE r.setrole = 0 AND r.setdatabase = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
    AND s LIKE parameter || '=%'
$$;

CREATE OR REPLACE FUNCTION godwit.commit_locally() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  now_is text := godwit.default_of_database('synchronous_commit');
BEGIN
  IF now_is IN ('local', 'off') THEN
    RETURN;
  END IF;
  INSERT INTO godwit.database_default VALUES ('synchronous_commit', now_is) ON CONFLICT DO NOTHING;
  EXECUTE format('ALTER DATABASE %I SET synchronous_commit = local', current_database());
END $$;

-- Only what we set ourselves: an operator who has changed it since keeps that.
CREATE OR REPLACE FUNCTION godwit.commit_as_before() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  held godwit.database_default;
BEGIN
  DELETE FROM godwit.database_default WHERE parameter = 'synchronous_commit' RETURNING * INTO held;
  IF held.parameter IS NULL OR godwit.default_of_database('synchronous_commit') IS DISTINCT FROM 'local' THEN
    RETURN;
  END IF;
  IF held.before IS NULL THEN
    EXECUTE format('ALTER DATABASE %I RESET synchronous_commit', current_database());
  ELSE
    EXECUTE format('ALTER DATABASE %I SET synchronous_commit = %L', current_database(), held.before);
  END IF;
END $$;
