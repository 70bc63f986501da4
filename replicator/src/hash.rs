//! The maps of the hot path: a hash that is quick for short keys, seeded at random per process and map.
//!
//! It does not withstand somebody who can watch timings and choose keys; keys here come from a database that its owner
//! replicates.

/// [`std::collections::HashMap`] with that hash; make one by `default()`.
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;
