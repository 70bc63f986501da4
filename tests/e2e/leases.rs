//! What a database grants to the node that leads, and to no other one.

use std::time::Duration;

use anyhow::Result;
use replicator::error::Error;
use replicator::fence;
use replicator::lead::{self, Candidate};
use replicator::postgres::slot::create_slot;

use crate::fence::{Setup, both};

fn node(id: &str) -> Candidate {
    Candidate { id: id.into(), node: format!("node-{id}"), within: Duration::from_mins(1) }
}

/// A node that led the generation before has not heard of it: the slot that it would take for its own is the stream's.
#[tokio::test(flavor = "multi_thread")]
async fn the_way_back_is_of_the_node_that_leads_and_of_no_generation_that_is_over() -> Result<()> {
    both(|major| async move {
        let setup = Setup::new(major).await?;
        let (admin, slots) = (&setup.admin, ["godwit_orders_g2".to_owned()]);
        let claim = async |generation, run, begun_ms, holder| {
            fence::claim_way_back(admin, "orders", generation, (run, begun_ms), Some(holder)).await
        };
        let owner = async || setup.count("SELECT substr(run, 2)::bigint FROM godwit.way_back").await;
        let stale = |found: Result<(), Error>| assert!(matches!(found, Err(Error::Fenced(_))), "{found:?}");
        fence::guard(admin, "orders", 1).await?;
        assert!(lead::take(admin, "orders", &node("a"), None).await?);
        stale(claim(2, "m9", 1000, "b").await);
        claim(2, "m1", 5000, "a").await?;
        lead::give_up(admin, "orders", &node("a")).await?;
        assert!(lead::take(admin, "orders", &node("b"), None).await?);
        stale(claim(2, "m1", 5000, "a").await);
        // Its clock is behind the other's.
        claim(2, "m2", 1000, "b").await?;
        assert_eq!(owner().await?, 2);
        create_slot(admin, &slots[0]).await?;
        fence::open_committed(admin, "orders", 2, "m2", None, Some(&node("b"))).await?;
        // The slot is of the stream that begins here.
        stale(claim(2, "m3", 9000, "b").await);
        assert!(!fence::drop_way_back(admin, "orders", 2, "m2", &slots).await?);
        let there = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'godwit_orders_g2'";
        assert_eq!(setup.count(there).await?, 1);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_primarys_lease_has_its_shadows_and_who_moves_leads_on() -> Result<()> {
    both(|major| async move {
        let setup = Setup::new(major).await?;
        let admin = &setup.admin;
        let leads = async || anyhow::Ok(lead::look(admin, "orders").await?.holder.map(|holder| holder.node));
        assert!(lead::take(admin, "orders", &node("cut-off"), None).await?);
        assert!(lead::leave(admin, "orders", &node("cut-off"), "old").await?);
        // It is open: this lease decides.
        assert!(!lead::take(admin, "orders", &node("next"), Some(1)).await?);
        fence::guard(admin, "orders", 1).await?;
        assert!(!lead::take(admin, "orders", &node("next"), None).await?);
        assert!(!lead::take(admin, "orders", &node("older"), Some(0)).await?);
        assert!(lead::take(admin, "orders", &node("next"), Some(1)).await?);
        assert_eq!(leads().await?.as_deref(), Some("node-next"));
        // The other one again, before the move.
        assert!(lead::take(admin, "orders", &node("cut-off"), Some(1)).await?);
        fence::open_committed(admin, "orders", 2, "m1", None, Some(&node("next"))).await?;
        assert_eq!(leads().await?.as_deref(), Some("node-next"));
        assert_eq!(lead::legacy(admin, "orders").await?, None, "what the other one left is not its own");
        assert!(!lead::take(admin, "orders", &node("cut-off"), Some(2)).await?);
        Ok(())
    })
    .await
}

/// The machine was cloned, or its disk is another one's backup: both know themselves by the same id.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_copy_of_the_leaders_state_directory_has_not_its_lease() -> Result<()> {
    both(|major| async move {
        let setup = Setup::new(major).await?;
        let admin = &setup.admin;
        let [first, copy] = ["first", "copy"].map(|name| Candidate { node: name.into(), ..node("a") });
        assert!(lead::take(admin, "orders", &first, None).await?);
        assert!(!lead::take(admin, "orders", &copy, None).await?);
        assert!(!lead::leave(admin, "orders", &copy, "old").await?);
        lead::give_up(admin, "orders", &copy).await?;
        assert!(lead::look(admin, "orders").await?.holder.is_some_and(|holder| holder.is(&first)));
        assert!(lead::leave(admin, "orders", &first, "new").await?);
        // When it is over, it is as free as any other one's; so it is for a node that was started again under another name.
        lead::give_up(admin, "orders", &first).await?;
        assert!(lead::take(admin, "orders", &copy, None).await?);
        assert!(!lead::take(admin, "orders", &first, None).await?);
        Ok(())
    })
    .await
}
