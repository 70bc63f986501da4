//! The configuration: read → spanned raw → validated [`model`]; every problem at once.

pub mod model;
