-- What synchronous replication keeps in the primary: what the setting was before, and the guard.
-- Runs as one simple query, so as one transaction, after the fence's install.sql.
SET LOCAL client_min_messages = warning;
SET LOCAL search_path = pg_catalog;
SET LOCAL synchronous_commit = local;
SELECT pg_advisory_xact_lock(7221037481926144001);

-- One row for each lane that is, or is about to be, in synchronous_standby_names.
CREATE TABLE IF NOT EXISTS godwit.synchronous (
  slot text PRIMARY KEY,
  before text NOT NULL,           -- the setting without us
  persisted boolean NOT NULL,     -- it stood in postgresql.auto.conf (otherwise: reset)
  joined text NOT NULL,           -- the setting with us
  fell_back text,                 -- why a guard took us out
  updated_at timestamptz NOT NULL DEFAULT now()
);

-- The guard: a loop in a session of its own, which goes on when the client that called it is dead or cut off. It returns when
-- nobody has streamed from the slot, or a commit has waited for it, for longer than after_ms. The caller has sent
-- ALTER SYSTEM behind the call (a function cannot run it): the server reads it when the loop is over, client or not.
-- With "release" it never returns: a second session reloads the configuration, which the first one may not come to, since its
-- second answer to a dead client ends it. Should commits still wait after that, it cancels their wait (they have committed;
-- the client gets a warning), but only where the operator has no standbys that are waited for as well ("alone"), while no other
-- resource's guard watches (commits wait for that one's shadow, and it lets everybody go itself), and for a while: it may be
-- left behind, and what comes to be waited for later is none of its business.
-- It adds up what its rounds took: the server's clock may be set while commits wait.
-- COMMIT in each round: a procedure in one transaction would hold back vacuum.
CREATE OR REPLACE PROCEDURE godwit.guard_synchronous(args jsonb) LANGUAGE plpgsql AS $$
DECLARE
  patience interval := (args ->> 'after_ms')::bigint * interval '1 millisecond';
  pause double precision := least(0.1, (args ->> 'after_ms')::bigint / 10000.0);
  release boolean := (args ->> 'release')::boolean;
  streaming boolean;
  flushed pg_lsn := '0/0';
  silent_since interval;
  sampled pg_lsn[] := '{}';
  sampled_at interval[] := '{}';
  waiting integer[] := '{}';
  waited integer[];
  rounds integer := 0;
  moment interval := '0';
  seen timestamptz := clock_timestamp();
  why text;
BEGIN
  LOOP
    -- No round is shorter than its pause; one that seems to be longer than this is the clock.
    moment := moment + least(greatest(clock_timestamp() - seen, pause * interval '1 second'), patience * 0.5);
    seen := clock_timestamp();
    SELECT w.state = 'streaming', greatest(w.flush_lsn, flushed) INTO streaming, flushed
    FROM (SELECT 1) one LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = args ->> 'slot'
    LEFT JOIN pg_catalog.pg_stat_get_wal_senders() w ON w.pid = s.active_pid;
    silent_since := CASE WHEN streaming THEN NULL ELSE coalesce(silent_since, moment) END;
    PERFORM pg_stat_clear_snapshot();
    waited := waiting;
    waiting := ARRAY(SELECT a.pid FROM pg_catalog.pg_stat_activity a WHERE a.wait_event = 'SyncRep');
    -- Whoever waits now waits for a position that is flushed here: the oldest such position not yet flushed there is
    -- as old as the longest wait.
    IF cardinality(waiting) > 0 THEN
      sampled := sampled || pg_current_wal_flush_lsn();
      sampled_at := sampled_at || moment;
    ELSE
      sampled := '{}';
      sampled_at := '{}';
    END IF;
    WHILE sampled[1] <= flushed LOOP
      sampled := sampled[2:];
      sampled_at := sampled_at[2:];
    END LOOP;
    why := CASE
      WHEN moment - silent_since > patience THEN format('nobody streamed from %s for %s', args ->> 'slot', patience)
      WHEN moment - sampled_at[1] > patience THEN format('a commit waited for %s longer than %s', args ->> 'slot', patience)
    END;
    IF NOT release AND why IS NOT NULL THEN
      UPDATE godwit.synchronous s SET fell_back = why, updated_at = now() WHERE s.slot = args ->> 'slot';
      RETURN;
    ELSIF why IS NOT NULL
       OR EXISTS (SELECT FROM godwit.synchronous s WHERE s.slot = args ->> 'slot' AND s.fell_back IS NOT NULL) THEN
      IF rounds < 50 AND rounds % 3 = 1 THEN
        PERFORM pg_reload_conf();
      END IF;
      IF rounds BETWEEN 21 AND 100 AND why IS NOT NULL AND (args ->> 'alone')::boolean AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_stat_activity a
        WHERE a.application_name LIKE 'godwit guard %' AND a.application_name <> current_setting('application_name')
        AND (a.state = 'disabled' OR a.state = 'active' AND a.query LIKE 'CALL godwit.guard_synchronous(%"release":false%')
      ) THEN
        PERFORM pg_cancel_backend(w) FROM unnest(waiting) w WHERE w = ANY (waited);
      END IF;
      rounds := rounds + 1;
    ELSE
      rounds := 0;
    END IF;
    PERFORM pg_sleep(pause);
    COMMIT;
  END LOOP;
END $$;
