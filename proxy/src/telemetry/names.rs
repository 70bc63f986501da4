//! Every metric and every label, in one place.

/// Histogram, seconds: a segment of a request. Labels: resource, zone, segment.
pub const REQUEST_DURATION: &str = "godwit_request_duration_seconds";
/// Counter: requests. Labels: resource, zone, code (class of the status, `cancelled` or `aborted`).
pub const REQUESTS: &str = "godwit_requests_total";
/// Counter: requests of which no sample could be kept.
pub const REQUEST_SAMPLES_LOST: &str = "godwit_request_samples_lost_total";
/// Gauge: requests that the gate holds now. Label: resource.
pub const HELD_REQUESTS: &str = "godwit_held_requests";
/// Histogram, seconds: how long a held request was held. Label: resource.
pub const HOLD_DURATION: &str = "godwit_hold_duration_seconds";

/// Label: a configured resource, or `none`.
pub const RESOURCE: &str = "resource";
/// Label: a configured zone, or `none`.
pub const ZONE: &str = "zone";
/// Label: a segment of a request.
pub const SEGMENT: &str = "segment";
/// Label: how a request ended.
pub const CODE: &str = "code";
