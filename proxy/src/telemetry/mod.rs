//! What Godwit tells about itself.

pub mod names;
