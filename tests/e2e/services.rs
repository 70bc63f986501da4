//! The process driver and the order service, with real processes and a real database.
