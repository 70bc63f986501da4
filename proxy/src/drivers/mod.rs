//! Effects out: what Godwit does to the world.

pub mod process;
