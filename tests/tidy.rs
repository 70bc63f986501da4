//! The crate graph and the tree, checked.
