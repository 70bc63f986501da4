-- What the server's slots keep back of the WAL: severity, subject, problem, remedy.
SELECT 'warning', name, 'is unlimited: a stream that stands still keeps WAL until the disk is full',
       'ALTER SYSTEM SET max_slot_wal_keep_size = ''64GB''; SELECT pg_reload_conf()'
FROM pg_settings WHERE name = 'max_slot_wal_keep_size' AND setting::bigint < 0
UNION ALL
-- From 18 on.
SELECT 'warning', name, format('is %s s: a slot that nobody reads for so long is lost, and during a copy nobody reads the slot', setting),
       'ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf()'
FROM pg_settings WHERE name = 'idle_replication_slot_timeout' AND setting::bigint > 0
UNION ALL
SELECT 'warning', slot_name::text,
       CASE wal_status WHEN 'lost' THEN 'the slot is lost: nothing can stream from it any more, whoever did must start anew'
         ELSE 'the slot is about to be lost: it needs WAL over max_slot_wal_keep_size' END,
       -- Only a slot of Godwit's own may be dropped on its word.
       CASE WHEN wal_status = 'unreserved' THEN 'let its reader catch up, or raise max_slot_wal_keep_size'
         WHEN slot_name ~ '^godwit_' THEN format('SELECT pg_drop_replication_slot(%L)', slot_name) END
FROM pg_replication_slots WHERE wal_status IN ('unreserved', 'lost')
