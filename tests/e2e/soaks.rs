//! An old primary soaks until the policy says, or until a person ends that.

use anyhow::{Context, Result, ensure};
use godwit::controller::verification::{Standing, VerificationView};
use godwit::controller::view::ResourceView;
use godwit::demo::zone::{Playground, RESOURCE};
use serde_json::json;

use crate::history::godwit;
use crate::leader::{Leader, options};

#[tokio::test(flavor = "multi_thread")]
async fn a_soak_is_ended_by_a_person_and_follows_the_policy() -> Result<()> {
    let mut options = options(false)?;
    options.policy = options.policy.replace("retire: {after: 100ms", "retire: {after: 10h");
    ensure!(options.policy.contains("10h"), "{}", options.policy);
    let playground = Playground::start(&options).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let view = leader.ready().await?;
    let (old, new) = (view.primary, view.shadow);
    let (code, _, said) = godwit(&leader, &["retire", RESOURCE]).await?;
    ensure!(
        code != Some(0) && said.contains("no old primary of orders soaks: the resource is shadowing"),
        "{said}"
    );

    let id = leader.migrate(&new).await?;
    let soaks = leader.until("the old primary soaks", |view| view.soak.is_some()).await?;
    let until = soaks.soak.unwrap_or_default().until_ms;
    ensure!(until == soaks.since_ms + 10 * 3_600_000, "since {}, until {until}", soaks.since_ms);
    let (_, status, _) = godwit(&leader, &["status", RESOURCE]).await?;
    ensure!(status.contains(&format!("{id}: {old} soaks until ")), "{status}");

    // Whoever soaks follows, and may be compared; what may not be done says what ends it.
    let (code, equal, said) = godwit(&leader, &["verify", RESOURCE, "--share", "1"]).await?;
    ensure!(code == Some(0) && equal.contains(": equal: "), "{equal} {said}");
    let (code, _, said) = godwit(&leader, &["shadow", "disable", RESOURCE]).await?;
    ensure!(code == Some(4) && said.contains(&format!("godwit retire {RESOURCE} ends that")), "{said}");

    // Another policy is that of a soak under way, too, also where it was changed while nobody ran.
    let file = playground.config.with_file_name("policies").join("playground.yaml");
    let soaks_for = |hours: u64| {
        move |view: &ResourceView| {
            view.soak.as_ref().is_some_and(|soak| soak.until_ms == view.since_ms + hours * 3_600_000)
        }
    };
    let change = |from: &str, to: &str| -> Result<()> {
        Ok(std::fs::write(&file, std::fs::read_to_string(&file)?.replace(from, to))?)
    };
    change("after: 10h", "after: 20h")?;
    leader.client.send("/api/v1/config/reload", &json!({})).await?;
    leader.until("it soaks longer", soaks_for(20)).await?;
    drop(leader);
    change("after: 20h", "after: 30h")?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.until("it soaks even longer", soaks_for(30)).await?;

    // The next move ends a verification as any does.
    leader.until("it follows", |view| view.replication.state == "streaming").await?;
    let (code, _, said) = godwit(&leader, &["verify", RESOURCE, "--rate", "20", "--detach"]).await?;
    ensure!(code == Some(0), "{said}");
    let next = leader.migrate(&old).await?;
    let ended = leader
        .until_answer("verification", "it ends", |view: &VerificationView| view.state != Standing::Running)
        .await?;
    ensure!(ended.why.contains(&next), "{ended:#?}");
    leader.until("the other soaks", |view| view.primary == old && view.soak.is_some()).await?;
    ensure!(leader.migration(&id).await?.state == "superseded");
    let (id, old) = (next, new);

    let (code, said, _) = godwit(&leader, &["retire", RESOURCE]).await?;
    ensure!(code == Some(0) && said.starts_with(&format!("{old} is ")), "{said}");
    leader.until("it is the shadow", |view| view.phase == "shadowing" && view.soak.is_none()).await?;
    let run = leader.migration(&id).await?;
    ensure!(run.state == "retired" && run.verified == Some(true), "{run:#?}");
    let again = format!("/api/v1/resources/{RESOURCE}/migrations/{id}/retire");
    ensure!(leader.client.send(&again, &json!({})).await.is_err(), "it is retired");
    Ok(())
}

/// Steps may be minutes apart: what is asked in between is answered by what is so then.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_the_next_step() -> Result<()> {
    let mut options = options(false)?;
    options.policy = options
        .policy
        .replace("step: 200ms", "step: 30m")
        .replace("horizon: 10s", "horizon: 3h")
        .replace("sustain: 3s", "sustain: 1h");
    ensure!(options.policy.contains("30m") && options.policy.contains("3h"), "{}", options.policy);
    let playground = Playground::start(&options).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let view = leader.ready().await?;
    for to in [&view.shadow, &view.primary] {
        let id = leader.migrate(to).await?;
        leader.until("it moved", |view| view.primary == *to && view.phase == "shadowing").await?;
        ensure!(leader.migration(&id).await?.state == "retired");
        leader.until("it follows", |view| view.replication.state == "streaming").await?;
        leader.ready().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_ends_a_soak_goes_by_the_clock_of_now() -> Result<()> {
    const HOUR_MS: u64 = 3_600_000;
    let mut options = options(false)?;
    options.policy = options.policy.replace("retire: {after: 100ms", "retire: {after: 10h");
    let playground = Playground::start(&options).await?;
    let clock = playground.directory.join("clock");
    std::fs::write(&clock, "0")?;
    let mut leader = Leader::start(&playground, &[("GODWIT_TEST_CLOCK", &clock.display().to_string())])?;
    let view = leader.ready().await?;
    let committed = async |leader: &Leader<'_>, id: &str| {
        leader.migration(id).await?.committed_ms.context("it is committed")
    };
    let there = leader.migrate(&view.shadow).await?;
    leader.until("the old primary soaks", |now| now.soak.is_some()).await?;
    let before = committed(&leader, &there).await?;
    // It was an hour behind, and is set.
    std::fs::write(&clock, HOUR_MS.to_string())?;
    leader
        .until("the clock is another one", |now| {
            let at = now.decision.as_ref().map_or(0, |decision| decision.at_ms);
            at >= before + HOUR_MS && now.replication.state == "streaming" && now.soak.is_some()
        })
        .await?;
    let back = leader.migrate(&view.primary).await?;
    leader.until("the other soaks", |now| now.primary == view.primary && now.soak.is_some()).await?;
    let after = committed(&leader, &back).await?;
    ensure!(after >= before + HOUR_MS, "the cooldown counts from {after}, the move before was at {before}");
    Ok(())
}
