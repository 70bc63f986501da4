//! Godwit's cutover, model checked (docs/model.md): the production `step()` between a journal, effects and answers that fail
//! in every order, two databases that check generations, and clients that count their acknowledged writes.
//!
//! - [`database`] what PostgreSQL and `install.sql` do;
//! - [`node`] what the controller does with `step()`, in its order;
//! - [`system`] both with clients and faults: what can happen next;
//! - `taking_over` a primary that is lost, and an operator who says so;
//! - [`properties`] what must hold of every state;
//! - [`bugs`] mistakes switched on one by one, to see that they are caught;
//! - [`run`] looks at every state within a bound and reports.

pub mod bugs;
pub mod database;
pub mod node;
pub mod properties;
pub mod run;
pub mod system;
mod taking_over;
