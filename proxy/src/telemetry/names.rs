//! Every metric and every label, in one place.

/// Histogram, seconds: a segment of a request. Labels: resource, zone, route, code, segment.
pub const REQUEST_DURATION: &str = "godwit_request_duration_seconds";
/// Counter: requests. Labels: resource, zone, route, code (class of the status, `cancelled` or `aborted`; of a database's statements: 2xx, 5xx for errors of the server or the connection, 4xx for all others).
pub const REQUESTS: &str = "godwit_requests_total";
/// Counter: requests of which no sample could be kept.
pub const REQUEST_SAMPLES_LOST: &str = "godwit_request_samples_lost_total";
/// Gauge: long streams that are open (WebSocket, server-sent events, gRPC). Label: resource.
pub const STREAMS: &str = "godwit_streams";
/// Counter: requests that were sent again. Label: resource.
pub const RETRIES: &str = "godwit_request_retries_total";
/// Counter: requests that would have been sent again, had the budget allowed it. Label: resource.
pub const RETRIES_REFUSED: &str = "godwit_request_retries_refused_total";
/// Counter: health checks that failed. Labels: resource, zone.
pub const HEALTH_FAILURES: &str = "godwit_health_check_failures_total";
/// Counter: lines of the access log that were lost.
pub const ACCESS_LINES_LOST: &str = "godwit_access_log_lines_lost_total";
/// Gauge: requests that the gate holds now. Label: resource.
pub const HELD_REQUESTS: &str = "godwit_held_requests";
/// Histogram, seconds: how long a held request was held. Label: resource.
pub const HOLD_DURATION: &str = "godwit_hold_duration_seconds";

/// Gauge: connections of clients to the PostgreSQL front. Label: resource.
pub const POSTGRES_SESSIONS: &str = "godwit_postgres_sessions";
/// Gauge: sessions of the PostgreSQL front whose client waits for a move to end. Label: resource.
pub const POSTGRES_HELD: &str = "godwit_postgres_held_sessions";
/// Counter: connections that the PostgreSQL front tried to make to databases. Labels: resource, zone, outcome (`connected`, `failed`).
pub const POSTGRES_CONNECTS: &str = "godwit_postgres_connects_total";
/// Counter: sessions that came out of a hold. Labels: resource, outcome (`carried`: to another database with all they had,
/// `kept`: where they were, `ended`: something could not be carried).
pub const POSTGRES_MOVED: &str = "godwit_postgres_moved_sessions_total";
/// Gauge: connections to the database that clients of the PostgreSQL front share. Labels: resource, state (`used`: somebody has it,
/// `idle`: nobody, `pinned`: those of the used ones that a client keeps for what it has there).
pub const POSTGRES_POOL_CONNECTIONS: &str = "godwit_postgres_pool_connections";
/// Gauge: clients of the PostgreSQL front that wait for a shared connection. Label: resource.
pub const POSTGRES_POOL_WAITING: &str = "godwit_postgres_pool_waiting";
/// Histogram, seconds: from a statement (or batch) sent to its last answer, without time held. Labels: resource, zone.
pub const POSTGRES_STATEMENT_DURATION: &str = "godwit_postgres_statement_duration_seconds";

/// Histogram, seconds: how long a gate was closed. Label: resource.
pub const GATE_CLOSED: &str = "godwit_gate_closed_seconds";
/// Gauge, bytes: how far the shadow is behind; while the stream is down, what the primary keeps for it, as of when it last answered. NaN: not known. Label: resource.
pub const LAG_BYTES: &str = "godwit_replication_lag_bytes";
/// Gauge, seconds: age of the oldest change not applied; while the stream is down, since the shadow was last known to have caught up. NaN: not since this node started. Label: resource.
pub const LAG_SECONDS: &str = "godwit_replication_lag_seconds";
/// Gauge: 1 while a stream copies to the shadow or follows the primary, 0 while none does. NaN: there is no shadow. Label: resource.
pub const REPLICATION_UP: &str = "godwit_replication_up";
/// Gauge: 1 for the replication mode in effect, 0 for the others. Labels: resource, mode.
pub const REPLICATION_MODE: &str = "godwit_replication_mode";
/// Gauge, bytes: WAL that the resource's slot keeps in a zone, the slot that keeps most. NaN: its database did not answer the last look. Labels: resource, zone.
pub const SLOT_RETAINED: &str = "godwit_slot_retained_wal_bytes";
/// Gauge, bytes: WAL that the primary has written since what a reader of changes has confirmed; NaN: there is no such slot any more. Labels: resource, slot.
pub const CHANGE_STREAM_BEHIND: &str = "godwit_change_stream_behind_bytes";
/// Gauge: whether somebody reads changes by a slot now; NaN: there is no such slot any more. Labels: resource, slot.
pub const CHANGE_STREAM_ACTIVE: &str = "godwit_change_stream_active";
/// Gauge, bytes: changes of transactions of the source that have not ended yet. NaN: no stream runs. Labels: resource, place (`memory`, `disk`).
pub const OPEN_BYTES: &str = "godwit_replication_open_bytes";
/// Counter: how often the stream to the shadow broke. Labels: resource, cause (see `replicator::error::Cause`).
pub const STREAM_FAILURES: &str = "godwit_replication_failures_total";
/// Gauge, rows: rows that the last verification of the shadow has looked at. NaN: there was none. Label: resource.
pub const VERIFIED_ROWS: &str = "godwit_verification_rows";
/// Gauge: what verifications found to differ; only one of all tables, at its end, lowers it. NaN: not known of this shadow. Label: resource.
pub const VERIFICATION_DIFFERENCES: &str = "godwit_verification_differences";
/// Gauge, seconds since the epoch: when all tables of the shadow were last verified to the end. NaN: never. Label: resource.
pub const VERIFIED_AT: &str = "godwit_verification_completed_timestamp_seconds";
/// Histogram, seconds: phases that probes completed. Labels: zone, probe (`http`, `sql`, `heartbeat`), phase (`dns`, `connect`, `tls`, `first_byte`, `body`, `total`; `query`; `write`).
pub const PROBE: &str = "godwit_probe_duration_seconds";
/// Counter: probes that failed. Labels: zone, probe, phase (the one it failed in).
pub const PROBE_FAILURES: &str = "godwit_probe_failures_total";
/// Counter: reads that the shadow was asked as well. Labels: resource, outcome (`same`, `different` status, `failed`, `dropped`).
pub const MIRRORED: &str = "godwit_mirrored_reads_total";
/// Histogram, seconds: how long the shadow took until the header of its answer to them was there. Labels: resource, zone.
pub const MIRRORED_DURATION: &str = "godwit_mirrored_read_duration_seconds";
/// Gauge: 1 if the configuration's files were readable when they were read last, at the start or by a reload.
pub const CONFIG_RELOADED: &str = "godwit_config_last_reload_successful";
/// Gauge, seconds: how old what a feed said last is. Label: feed.
pub const FEED_AGE: &str = "godwit_feed_age_seconds";
/// Counter: runs of a feed that failed, and posts that were refused. Labels: feed, reason.
pub const FEED_FAILURES: &str = "godwit_feed_failures_total";
/// Gauge, seconds: forecast of the request path's p95. Labels: resource, zone, quantile, step (`first`, `last`).
pub const FORECAST: &str = "godwit_forecast_latency_seconds";
/// Gauge: share of values that the 90 % band covered, of the last 720 forecasts that were judged; NaN: none was. Labels: resource, zone, step (1, 4, 16, 48 ahead).
pub const FORECAST_COVERAGE: &str = "godwit_forecast_coverage_ratio";
/// Gauge: quantile loss of the last 720 forecasts that were judged, as a share of the last value's; NaN: none was, or that never missed. Labels: resource, zone, step.
pub const FORECAST_LOSS: &str = "godwit_forecast_loss_ratio";
/// Counter: steps without a forecast. Labels: resource, zone, reason (`too_few`, `stale`, `other`).
pub const FORECAST_ABSTENTIONS: &str = "godwit_forecast_abstentions_total";
/// Gauge: share of the last 720 steps without a forecast. Labels: resource, zone, reason.
pub const FORECAST_ABSTAINED: &str = "godwit_forecast_abstained_ratio";
/// Gauge: probability that the median of the next steps is worse than now; NaN: nothing is foreseen. Labels: resource, zone, step (12, 48).
pub const FORECAST_WORSE: &str = "godwit_forecast_worse_probability";
/// Gauge: loss of the network trained here as a share of the shipped one's.
pub const TRAINING_LOSS: &str = "godwit_forecast_training_loss_ratio";
/// Counter: times the network trained here was thrown away.
pub const TRAINING_ROLLBACKS: &str = "godwit_forecast_training_rollbacks_total";
/// Counter: entries that the history could not keep. Label: cause (`queue`, `full`, `error`).
pub const HISTORY_DROPPED: &str = "godwit_history_dropped_total";
/// Gauge, bytes: the file of the history.
pub const HISTORY_BYTES: &str = "godwit_history_bytes";
/// Gauge: points of the score. Labels: resource, term (the three terms, `total`, `lower_bound`).
pub const SCORE: &str = "godwit_migration_score";
/// Gauge: what the score's lower bound must clear. Label: resource.
pub const THRESHOLD: &str = "godwit_migration_threshold";
/// Gauge: 1 where a guard (all guards of one fact together) lets a move through, 0 where it does not; NaN: the policy does not have it any more. Labels: resource, guard.
pub const GUARD: &str = "godwit_migration_guard_passed";
/// Counter: ended migrations. Labels: resource, outcome.
pub const MIGRATIONS: &str = "godwit_migrations_total";
/// Gauge, seconds: how long a migration under way has been in its phase; 0 outside one and while it soaks. Labels: resource, step.
pub const PHASE_AGE: &str = "godwit_migration_phase_seconds";
/// Gauge: what `godwit status` names as a problem. Label: resource.
pub const PROBLEMS: &str = "godwit_problems";
/// Histogram, seconds: phases of migrations. Label: step.
pub const STEP_DURATION: &str = "godwit_migration_step_duration_seconds";

/// Counter: records of the audit. Label: kind.
pub const AUDIT_RECORDS: &str = "godwit_audit_records_total";
/// Counter: records of the audit that were lost.
pub const AUDIT_LOST: &str = "godwit_audit_lost_total";
/// Gauge: 1 while this node leads its resources, 0 while it stands by, where several may lead.
pub const LEADS: &str = "godwit_leads";
/// Gauge: 1 while the audit cannot be written and changes are refused.
pub const AUDIT_FAILING: &str = "godwit_audit_failing";
/// Gauge: number of the record of the last checkpoint.
pub const AUDIT_CHECKPOINT: &str = "godwit_audit_checkpoint_sequence";
/// Gauge: the first 48 bits of that record's hash.
pub const AUDIT_CHECKPOINT_HASH: &str = "godwit_audit_checkpoint_hash";

/// Counter: tokens of the OpenID Connect issuer that were shown. Label: outcome (`accepted`, or why not: `expired`, `signature`, …).
pub const OIDC_TOKENS: &str = "godwit_oidc_tokens_total";
/// Counter: inquiries for the issuer's keys. Label: outcome (`read`, `failed`).
pub const OIDC_INQUIRIES: &str = "godwit_oidc_key_inquiries_total";
/// Gauge, seconds since the epoch: when the issuer's keys were last read.
pub const OIDC_KEYS_AT: &str = "godwit_oidc_keys_read_timestamp_seconds";

/// Label: the kind of a record of the audit.
pub const KIND: &str = "kind";
/// Label: a configured resource, or `none`.
pub const RESOURCE: &str = "resource";
/// Label: a configured zone, or `none`.
pub const ZONE: &str = "zone";
/// Label: a configured route, or `other`.
pub const ROUTE: &str = "route";
/// Label: a segment of a request.
pub const SEGMENT: &str = "segment";
/// Label: how a request ended.
pub const CODE: &str = "code";
/// Label: a term of the score.
pub const TERM: &str = "term";
/// Label: a condition of a decision.
pub const GUARD_NAME: &str = "guard";
/// Label: `memory` or `disk`.
pub const PLACE: &str = "place";
/// Label: why a stream broke, or an entry of the history was lost.
pub const CAUSE: &str = "cause";
/// Label: why there was no forecast.
/// Label: a configured feed.
pub const FEED: &str = "feed";
/// Label: why a feed failed (see `feeds::external::Reason`).
pub const REASON: &str = "reason";
/// Label: how a migration ended.
pub const OUTCOME: &str = "outcome";
/// Label: who has a shared connection: `used`, `idle` or `pinned`.
pub const STATE: &str = "state";
/// Label: a phase of a migration, or a step of a forecast.
pub const STEP: &str = "step";
/// Label: a quantile of a forecast.
pub const QUANTILE: &str = "quantile";
/// Label: `http`, `sql` or `heartbeat`.
pub const PROBE_KIND: &str = "probe";
/// Label: a replication slot.
pub const SLOT: &str = "slot";
/// Label: `async`, `sync` or `hybrid`.
pub const MODE: &str = "mode";
/// Label: a phase of a probe.
pub const PHASE: &str = "phase";

/// Tells the recorder what the metrics mean: the HELP lines of `/metrics`.
pub fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    let seconds = Unit::Seconds;
    describe_histogram!(REQUEST_DURATION, seconds, "A segment of a request");
    describe_counter!(REQUESTS, "Requests by class of their status");
    describe_counter!(REQUEST_SAMPLES_LOST, "Requests of which no sample could be kept");
    describe_counter!(AUDIT_RECORDS, "Records of the audit by kind");
    describe_counter!(AUDIT_LOST, "Records of the audit that were lost");
    describe_gauge!(LEADS, "1 while this node leads its resources, 0 while it stands by");
    describe_gauge!(AUDIT_FAILING, "1 while the audit cannot be written and changes are refused");
    describe_gauge!(AUDIT_CHECKPOINT, "Number of the record of the audit's last checkpoint");
    describe_gauge!(AUDIT_CHECKPOINT_HASH, "First 48 bits of the hash of that record");
    describe_counter!(OIDC_TOKENS, "Tokens of the OpenID Connect issuer that were shown, by outcome");
    describe_counter!(OIDC_INQUIRIES, "Inquiries for the issuer's keys, by outcome");
    describe_gauge!(OIDC_KEYS_AT, seconds, "When the issuer's keys were last read, Unix time");
    describe_gauge!(STREAMS, "Long streams that are open");
    describe_counter!(RETRIES, "Requests that were sent again");
    describe_counter!(RETRIES_REFUSED, "Requests that were not sent again because the budget was spent");
    describe_counter!(HEALTH_FAILURES, "Health checks that failed");
    describe_counter!(ACCESS_LINES_LOST, "Lines of the access log that were lost");
    describe_gauge!(HELD_REQUESTS, "Requests that the gate holds now");
    describe_gauge!(POSTGRES_SESSIONS, "Connections of clients to the PostgreSQL front");
    describe_gauge!(POSTGRES_HELD, "Sessions of the PostgreSQL front whose client waits for a move to end");
    describe_counter!(POSTGRES_CONNECTS, "Connections that the PostgreSQL front tried to make to databases");
    describe_counter!(POSTGRES_MOVED, "Sessions that came out of a hold");
    describe_gauge!(POSTGRES_POOL_CONNECTIONS, "Connections that clients of the PostgreSQL front share");
    describe_gauge!(POSTGRES_POOL_WAITING, "Clients that wait for a shared connection");
    describe_histogram!(POSTGRES_STATEMENT_DURATION, seconds, "From a statement sent to its last answer");
    describe_histogram!(HOLD_DURATION, seconds, "How long a held request was held");
    describe_histogram!(GATE_CLOSED, seconds, "How long a gate was closed");
    describe_gauge!(LAG_BYTES, Unit::Bytes, "How far the shadow is behind");
    describe_gauge!(LAG_SECONDS, seconds, "Age of the oldest change not applied on the shadow");
    describe_gauge!(REPLICATION_UP, "1 while a stream copies to the shadow or follows the primary");
    describe_gauge!(SLOT_RETAINED, Unit::Bytes, "WAL that the resource's slots keep on a server's disk");
    describe_gauge!(
        CHANGE_STREAM_BEHIND,
        Unit::Bytes,
        "WAL written since what a reader of changes has confirmed"
    );
    describe_gauge!(CHANGE_STREAM_ACTIVE, "Whether somebody reads changes by a slot now");
    describe_gauge!(REPLICATION_MODE, "1 for the replication mode in effect");
    describe_gauge!(
        OPEN_BYTES,
        Unit::Bytes,
        "Changes of the source's open transactions, in memory and on disk"
    );
    describe_counter!(STREAM_FAILURES, "How often the stream to the shadow broke, by cause");
    describe_gauge!(VERIFIED_ROWS, "Rows that the last verification of the shadow has looked at");
    describe_gauge!(VERIFICATION_DIFFERENCES, "What verifications of the shadow found to differ");
    describe_gauge!(VERIFIED_AT, seconds, "When all tables of the shadow were last verified, Unix time");
    describe_histogram!(PROBE, seconds, "Phases of active probes");
    describe_counter!(PROBE_FAILURES, "Active probes that failed, by the phase that they failed in");
    describe_counter!(MIRRORED, "Reads that the shadow was asked as well, by outcome");
    describe_histogram!(
        MIRRORED_DURATION,
        seconds,
        "How long the shadow took until the header of its answer to a mirrored read was there"
    );
    describe_gauge!(CONFIG_RELOADED, "1 if the configuration was readable when it was read last");
    describe_gauge!(FEED_AGE, seconds, "How old what a feed said last is");
    describe_counter!(FEED_FAILURES, "Runs of a feed that failed, and posts that were refused, by reason");
    describe_gauge!(FORECAST, seconds, "Forecast of the request path's p95");
    describe_gauge!(FORECAST_COVERAGE, "Share of values that the 90 % band of the forecast covered of late");
    describe_gauge!(FORECAST_LOSS, "Recent quantile loss of the forecast as a share of the last value's");
    describe_counter!(FORECAST_ABSTENTIONS, "Steps without a forecast");
    describe_gauge!(FORECAST_ABSTAINED, "Share of the last 720 steps without a forecast, by reason");
    describe_gauge!(FORECAST_WORSE, "Probability that the median of the next steps is worse than now");
    describe_gauge!(TRAINING_LOSS, "Loss of the network trained here as a share of the shipped one's");
    describe_counter!(TRAINING_ROLLBACKS, "Times the network trained here was thrown away");
    describe_counter!(HISTORY_DROPPED, "Entries that the history could not keep, by cause");
    describe_gauge!(HISTORY_BYTES, Unit::Bytes, "The file of the history");
    describe_gauge!(SCORE, "Points of the Migration Score by term");
    describe_gauge!(THRESHOLD, "What the score's lower bound must clear");
    describe_gauge!(GUARD, "Whether a guard lets a move through");
    describe_counter!(MIGRATIONS, "Ended migrations");
    describe_gauge!(PHASE_AGE, seconds, "How long a migration under way has been in its phase");
    describe_gauge!(PROBLEMS, "What `godwit status` names as a problem");
    describe_histogram!(STEP_DURATION, seconds, "Phases of migrations");
}
