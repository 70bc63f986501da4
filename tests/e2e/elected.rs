//! Several nodes of which one leads: another goes on when it is gone, whatever it was in the middle of.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit::admin::{LeadView, SectionView};

use godwit::cli::client::Client;
use godwit::controller::view::{MigrationView, ResourceView};

use godwit::demo::load::Outcome;
use godwit::demo::node::Node;
use godwit::demo::relay::{Path as RelayPath, Relay};
use godwit::demo::zone::{AGENT, GODWIT_ROLE, LEADER, Playground, RESOURCE};
use godwit::leading::comparison::ConfigView;
use godwit_tests::postgres::{copy_files, free_port};
use godwit_tests::waiting::until;
use http::Method;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use replicator::fence;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::installing::READ_ALL;
use crate::leader::{Leader, PATIENCE, PROGRAM, connect, load, of_node, options, superuser, until_answer};
use crate::takeover::take_over;

const LEASE: &str = "lease: 3s";

/// What one of the nodes is started with.
struct Member<'a> {
    playground: &'a Playground,
    config: PathBuf,
    admin: SocketAddr,
}

impl<'a> Member<'a> {
    /// With the playground's configuration but for its own name, state directory and admin listener, and what is replaced.
    fn new(playground: &'a Playground, name: &str, replaced: &[(String, String)]) -> Result<Self> {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut text = of_node(playground, LEASE)?
            .replacen(&format!("name: {LEADER}"), &format!("name: {name}"), 1)
            .replace(&format!("/state/{LEADER}"), &format!("/state/{name}"))
            .replace(&playground.admin.to_string(), &admin.to_string());
        for (old, new) in replaced {
            ensure!(text.contains(old), "no {old} in {text}");
            text = text.replace(old, new);
        }
        let config = playground.config.with_file_name(format!("{name}.yaml"));
        std::fs::write(&config, text)?;
        Ok(Self { playground, config, admin })
    }

    fn start(&self, environment: &[(&str, &str)]) -> Result<Leader<'a>> {
        let node = Node::start(Path::new(PROGRAM), &self.config, environment)?;
        Ok(Leader { node, client: Client::new(&self.admin.to_string()), playground: self.playground })
    }
}

/// Waits until the node says that it leads, or that it does not, and why.
async fn says(node: &mut Leader<'_>, what: &str, told: impl Fn(&LeadView) -> bool) -> Result<LeadView> {
    until_answer(&mut node.node, &node.client, "/api/v1/lead", what, told).await
}

async fn stands_by(node: &mut Leader<'_>, of: &str) -> Result<()> {
    let why = format!("node {of} on ");
    let told = |view: &LeadView| view.why.as_ref().is_some_and(|told| told.starts_with(&why));
    says(node, &format!("it stands by: {why}"), told).await.map(drop)
}

async fn leads(node: &mut Leader<'_>) -> Result<()> {
    says(node, "it leads", |view| view.leads).await.map(drop)
}

async fn lost_nothing(playground: &Playground, primary: &str, outcome: &Outcome) -> Result<()> {
    let zone = playground.zones.iter().find(|zone| zone.name == primary).context("the primary")?;
    let report = outcome.check(&connect(zone).await?).await?;
    ensure!(report.acknowledged > 0 && report.clean(), "{report}: {report:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_leads_when_the_first_is_gone() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let members = [Member::new(&playground, "one", &[])?, Member::new(&playground, "other", &[])?];
    let mut one = members[0].start(&[])?;
    one.ready().await?;
    let mut other = members[1].start(&[])?;
    stands_by(&mut other, "one").await?;
    let refused = other.view().await.err().context("it knows no resource")?.to_string();
    ensure!(refused.contains("this node stands by: node one on "), "{refused}");
    let refused = other.client.fetch::<Vec<ResourceView>>("/api/v1/resources").await.err();
    ensure!(refused.is_some_and(|refused| refused.to_string().contains("stands by")), "it leads nothing");
    let refused = other.client.send("/api/v1/freezes", &json!({ "why": "a sale" })).await.err();
    ensure!(refused.is_some_and(|refused| refused.to_string().contains("stands by")), "it freezes nothing");

    let load = load(&playground, 60.0, "elected");
    one.until("the load runs", |_| load.snapshot().acknowledged > 20).await?;
    // What people decided and did there goes with the lead.
    let orders = |about: &str| format!("/api/v1/resources/{RESOURCE}/{about}");
    let aborted = one.migrate(&far.name).await?;
    one.client.send(&orders(&format!("migrations/{aborted}/abort")), &json!({})).await?;
    one.ready().await?;
    let (_, tag) = one.client.fetch_tagged::<Value>(&orders("scaling")).await?;
    let less = json!({ "capacity": { &near.name: 1, &far.name: 2 } });
    let scaling: SectionView = one.client.replace(&orders("scaling"), &less, &tag).await?;
    one.client.send(&orders("freeze"), &json!({ "why": "a sale" })).await?;
    let primary = connect(near).await?;
    until("it is left to the next one", async || {
        let left = "SELECT EXISTS (SELECT FROM godwit.leader WHERE legacy ~ 'a sale')";
        Ok(primary.query_one(left, &[]).await?.get::<_, bool>(0))
    })
    .await?;
    // Killed, so that its lease has to run out.
    one.node.signal(Signal::KILL)?;
    leads(&mut other).await?;
    let view = other.until("it follows", |view| view.phase == "shadowing").await?;
    ensure!(view.primary == near.name && view.generation == 1, "{view:#?}");
    let served = load.snapshot().acknowledged;
    other.until("it serves", |_| load.snapshot().acknowledged > served + 20).await?;
    let now: SectionView = other.client.fetch(&orders("scaling")).await?;
    ensure!(now.value == scaling.value && now.changed_ms == scaling.changed_ms, "{now:?}, after {scaling:?}");
    let run: MigrationView = other.client.fetch(&orders(&format!("migrations/{aborted}"))).await?;
    ensure!(run.state == "aborted", "{run:#?}");
    let frozen = other.ask_to_migrate(&far.name).await.err().context("it is frozen")?.to_string();
    ensure!(frozen.contains("a sale"), "{frozen}");
    other.client.call_with(Method::DELETE, &orders("freeze"), None, &[]).await?;
    other.ready().await?;
    let mut one = members[0].start(&[])?;
    stands_by(&mut one, "other").await?;
    // Its program replaced, it goes on to lead.
    let failed = load.snapshot().failed;
    let begun = |node: &Node| node.tail(2000).matches("this node leads").count();
    let before = begun(&other.node);
    other.node.signal(Signal::QUIT)?;
    until("it is replaced", async || Ok(begun(&other.node) > before)).await?;
    leads(&mut other).await?;
    other.ready().await?;
    stands_by(&mut one, "other").await?;
    ensure!(load.snapshot().failed == failed, "{:#?}", load.failures());
    other.migrate(&far.name).await?;
    other.until("it moves", |view| view.primary == far.name && view.phase == "shadowing").await?;

    // Told to end, it gives up its lease, and leaves what was decided a moment ago. The journal of the one that leads next knows of no move.
    other.client.send(&orders("freeze"), &json!({ "why": "at the last moment" })).await?;
    other.node.signal(Signal::TERM)?;
    leads(&mut one).await?;
    let frozen: Value = one.client.fetch("/api/v1/freezes").await?;
    ensure!(frozen.to_string().contains("at the last moment"), "{frozen}");
    one.client.call_with(Method::DELETE, &orders("freeze"), None, &[]).await?;
    let view = one.ready().await?;
    ensure!(view.primary == far.name && view.generation == 2, "{view:#?}");
    one.migrate(&near.name).await?;
    one.until("it moves back", |view| view.primary == near.name && view.phase == "shadowing").await?;
    let outcome = load.stop().await;
    let answered = outcome.failures.iter().find(|failure| failure.status.is_some());
    ensure!(answered.is_none(), "{answered:?}: only connections may fail, while nobody listens");
    lost_nothing(&playground, &near.name, &outcome).await
}

/// As an upgrade of the package does it: a service manager does not start again what ended in good order.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stands_by_becomes_the_next_program() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let members = [Member::new(&playground, "one", &[])?, Member::new(&playground, "other", &[])?];
    let mut one = members[0].start(&[])?;
    leads(&mut one).await?;
    let mut other = members[1].start(&[])?;
    stands_by(&mut other, "one").await?;
    let logged = async |node: &mut Leader<'_>, what: &str| {
        until(what, async || {
            node.node.check()?;
            Ok(node.node.tail(1000).contains(what))
        })
        .await
    };
    let config = std::fs::read_to_string(&members[1].config)?;
    std::fs::write(&members[1].config, config.replacen(LEASE, "lease: never", 1))?;
    other.node.signal(Signal::QUIT)?;
    logged(&mut other, "the program is not replaced now").await?;
    stands_by(&mut other, "one").await?;
    std::fs::write(&members[1].config, &config)?;
    other.node.signal(Signal::QUIT)?;
    logged(&mut other, "the sockets of the program before are taken over").await?;
    stands_by(&mut other, "one").await?;
    one.node.signal(Signal::KILL)?;
    leads(&mut other).await
}

/// One is put back from a backup, and another node has a copy of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_state_directory_and_a_copied_one_undo_no_decision() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let members = [Member::new(&playground, "one", &[])?, Member::new(&playground, "other", &[])?];
    let states = playground.directory.join("state");
    let (state, backup) = (states.join("one"), states.join("backup"));
    let mut one = members[0].start(&[])?;
    one.ready().await?;
    drop(one);
    for copy in [&backup, &states.join("other")] {
        copy_files(&state, copy)?;
    }
    let mut one = members[0].start(&[])?;
    one.ready().await?;
    let mut other = members[1].start(&[])?;
    stands_by(&mut other, "one").await?;
    let id = |node: &str| std::fs::read_to_string(states.join(node).join("holder"));
    // The databases would refuse to neither what they refuse to the other.
    until("it takes another number", async || Ok(id("one")? != id("other")?)).await?;
    one.client.send(&format!("/api/v1/resources/{RESOURCE}/freeze"), &json!({ "why": "a sale" })).await?;
    let primary = connect(near).await?;
    until("it is left to the next one", async || {
        let left = "SELECT EXISTS (SELECT FROM godwit.leader WHERE legacy ~ 'a sale')";
        Ok(primary.query_one(left, &[]).await?.get::<_, bool>(0))
    })
    .await?;
    drop((other, one));
    std::fs::remove_dir_all(&state)?;
    copy_files(&backup, &state)?;
    let mut one = members[0].start(&[])?;
    one.until("it follows", |view| view.phase == "shadowing").await?;
    let frozen = one.ask_to_migrate(&far.name).await.err().context("it is frozen")?.to_string();
    ensure!(frozen.contains("a sale"), "{frozen}");
    Ok(())
}

/// A dump keeps them for as long as it takes.
#[tokio::test(flavor = "multi_thread")]
async fn another_node_leads_while_somebody_reads_all_of_godwits_tables() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let members = [Member::new(&playground, "one", &[])?, Member::new(&playground, "other", &[])?];
    let mut one = members[0].start(&[])?;
    one.ready().await?;
    let mut other = members[1].start(&[])?;
    stands_by(&mut other, "one").await?;
    let mut readers = Vec::new();
    for zone in &playground.zones {
        let reader = superuser(zone).await?;
        reader.batch_execute(READ_ALL).await?;
        readers.push(reader);
    }
    one.node.signal(Signal::KILL)?;
    leads(&mut other).await?;
    other.ready().await?;
    for reader in &readers {
        // They are there until now.
        reader.batch_execute("COMMIT").await?;
    }
    Ok(())
}

/// They are read when it is told to, and in any case when it leads.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_leads_with_what_its_files_say_by_then() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let members = [Member::new(&playground, "one", &[])?, Member::new(&playground, "other", &[])?];
    let mut one = members[0].start(&[])?;
    one.ready().await?;
    let mut other = members[1].start(&[])?;
    stands_by(&mut other, "one").await?;
    let policy = playground.config.with_file_name("policies").join("playground.yaml");
    let before = std::fs::read_to_string(&policy)?;
    for (mode, said) in [("brave", "the old one stays"), ("advise", "configuration read anew")] {
        std::fs::write(&policy, before.replace("mode: observe", &format!("mode: {mode}")))?;
        other.node.signal(Signal::HUP)?;
        until("it has read its files", async || {
            other.node.check()?;
            Ok(other.node.tail(100).contains(said))
        })
        .await?;
    }
    stands_by(&mut other, "one").await?;
    one.node.signal(Signal::KILL)?;
    leads(&mut other).await?;
    other.until("another policy is in force", |view| view.mode == "advise").await?;
    let config: ConfigView = other.client.fetch("/api/v1/config").await?;
    ensure!(config.differences.is_empty(), "{:?}", config.differences);

    // What nobody could start with keeps no node from leading.
    let mut one = members[0].start(&[])?;
    stands_by(&mut one, "other").await?;
    std::fs::write(&policy, before.replace("mode: observe", "mode: brave"))?;
    other.node.signal(Signal::KILL)?;
    leads(&mut one).await?;
    one.until("it leads with the old ones", |view| view.mode == "advise").await?;
    let config: ConfigView = one.client.fetch("/api/v1/config").await?;
    ensure!(config.invalid.is_some(), "{:?}", config.differences);
    Ok(())
}

/// Where it is the machine that stands still and not the program, it comes back in the belief that it leads, and does what it was about to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stood_still_in_a_move_begins_anew() -> Result<()> {
    let mut options = options(false)?;
    // Nothing of it is over when the other one leads.
    options.policy = options.policy.replace("max_hold: 2s", "max_hold: 9s");
    let playground = Playground::start(&options).await?;
    let front = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let elsewhere = (format!("listen: \"{}\"", playground.front), format!("listen: \"{front}\""));
    let members = [Member::new(&playground, "one", &[])?, Member::new(&playground, "other", &[elsewhere])?];
    let stops = playground.directory.join("stops");
    std::fs::create_dir(&stops)?;
    let mut one = members[0].start(&[("GODWIT_TEST_STOPS", &stops.to_string_lossy())])?;
    one.ready().await?;
    let load = load(&playground, 60.0, "stopped");
    // Before its fence; under it; committed in its own journal only; committed.
    for (phase, undone) in [("drained", true), ("fenced", true), ("committed", true), ("swapped", false)] {
        let context = || format!("stopped when it was {phase}");
        let before = one.ready().await.with_context(context)?;
        let mut other = members[1].start(&[])?;
        stands_by(&mut other, "one").await?;
        let (asked, reached) = (stops.join(phase), stops.join(format!("{phase}.reached")));
        std::fs::write(&asked, "")?;
        one.migrate(&before.shadow).await?;
        until("it is there", async || Ok(reached.exists())).await.with_context(context)?;
        one.node.signal(Signal::STOP)?;
        leads(&mut other).await.with_context(context)?;
        let serves = other.ready().await.with_context(context)?;
        let expected = if undone {
            (&before.primary, before.generation)
        } else {
            (&before.shadow, before.generation + 1)
        };
        ensure!((&serves.primary, serves.generation) == expected, "{phase}: {serves:#?}");
        std::fs::remove_file(&reached)?;
        one.node.signal(Signal::CONT)?;
        stands_by(&mut one, "other").await.with_context(context)?;
        ensure!(one.node.ended()?.is_none(), "it goes on as the same process");
        let now = other.ready().await.with_context(context)?;
        ensure!((&now.primary, now.generation) == expected, "{phase}: {now:#?}");
        other.node.signal(Signal::TERM)?;
        leads(&mut one).await.with_context(context)?;
    }
    let view = one.ready().await?;
    let served = load.snapshot().acknowledged;
    one.until("it serves", |_| load.snapshot().acknowledged > served + 20).await?;
    let outcome = load.stop().await;
    lost_nothing(&playground, &view.primary, &outcome).await?;
    one.migrate(&view.shadow).await?;
    one.until("it moves", |now| now.primary == view.shadow && now.phase == "shadowing").await?;
    lost_nothing(&playground, &view.shadow, &outcome).await
}

/// The one that undid its move has led and gone meanwhile: nobody has the lease, and the database that was to be opened refuses that for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_committed_move_was_undone_while_it_stood_still_begins_anew() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let near = &playground.zones[0];
    let front = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let elsewhere = (format!("listen: \"{}\"", playground.front), format!("listen: \"{front}\""));
    let members = [Member::new(&playground, "one", &[])?, Member::new(&playground, "other", &[elsewhere])?];
    let stops = playground.directory.join("stops");
    std::fs::create_dir(&stops)?;
    std::fs::write(stops.join("committed"), "")?;
    let mut one = members[0].start(&[("GODWIT_TEST_STOPS", &stops.to_string_lossy())])?;
    let before = one.ready().await?;
    let mut other = members[1].start(&[])?;
    stands_by(&mut other, "one").await?;
    one.migrate(&before.shadow).await?;
    until("it is committed", async || Ok(stops.join("committed.reached").exists())).await?;
    one.node.signal(Signal::STOP)?;
    leads(&mut other).await?;
    other.ready().await?;
    drop(other);
    std::fs::remove_file(stops.join("committed.reached"))?;
    one.node.signal(Signal::CONT)?;
    let serves = |view: &ResourceView| view.primary == near.name && view.phase == "shadowing";
    let view = one.until("it goes on from what was undone", serves).await?;
    ensure!(view.generation == before.generation, "{view:#?}");
    let load = load(&playground, 60.0, "undone");
    one.until("it serves", |_| load.snapshot().acknowledged > 20).await?;
    lost_nothing(&playground, &near.name, &load.stop().await).await
}

/// Committed in the journal of a node that was lost before it began, a takeover is what nobody else goes on with, nor that one once another has led:
/// the primary is there, and acknowledges.
#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_that_never_began_is_undone_where_the_primary_answers() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let members = [Member::new(&playground, "one", &[])?, Member::new(&playground, "other", &[])?];
    let stops = playground.directory.join("stops");
    std::fs::create_dir(&stops)?;
    std::fs::write(stops.join("committed"), "")?;
    let mut one = members[0].start(&[("GODWIT_TEST_STOPS", &stops.to_string_lossy())])?;
    one.ready().await?;
    let said = json!({ "accept_loss": true, "primary_answers": true });
    tokio::select! {
        answer = take_over(&one, &said) => bail!("it was answered: {answer:?}"),
        committed = until("it is committed", async || Ok(stops.join("committed.reached").exists())) => committed?,
    }
    one.node.signal(Signal::KILL)?;
    // It may have left by then that it was done.
    let leave = "UPDATE godwit.leader SET legacy = jsonb_set(legacy::jsonb, '{tables,placed}', $1::text::jsonb)::text";
    let placed = json!([{ "resource": RESOURCE, "primary_zone": far.name, "shadow_zone": near.name, "generation": 2 }]);
    for zone in &playground.zones {
        connect(zone).await?.execute(leave, &[&placed.to_string()]).await?;
    }
    let mut other = members[1].start(&[])?;
    leads(&mut other).await?;
    let view = other.ready().await?;
    ensure!((&view.primary, view.generation) == (&near.name, 1), "{view:#?}");
    let load = load(&playground, 60.0, "not begun");
    other.until("it serves", |_| load.snapshot().acknowledged > 20).await?;
    other.node.signal(Signal::TERM)?;
    let mut one = members[0].start(&[])?;
    leads(&mut one).await?;
    let view = one.ready().await?;
    ensure!((&view.primary, view.generation) == (&near.name, 1), "{view:#?}");
    let runs = format!("/api/v1/resources/{RESOURCE}/migrations");
    let runs: Vec<MigrationView> = one.client.fetch(&runs).await?;
    let [MigrationView { id, state, .. }] = &runs[..] else { bail!("{runs:#?}") };
    ensure!(state == "aborted", "{runs:#?}");
    let shadow = connect(far).await?;
    ensure!(fence::is_undone(&shadow, id).await?, "it could begin late");
    let late = fence::guard_to_take_over(&shadow, RESOURCE, 2, id, None).await;
    ensure!(late.is_err(), "it begins late");
    let served = load.snapshot().acknowledged;
    one.until("it serves", |_| load.snapshot().acknowledged > served + 20).await?;
    let outcome = load.stop().await;
    lost_nothing(&playground, &near.name, &outcome).await?;
    one.ready().await?;
    one.migrate(&far.name).await?;
    one.until("it moves", |now| now.primary == far.name && now.phase == "shadowing").await?;
    lost_nothing(&playground, &far.name, &outcome).await
}

/// Cut off from the primary alone, it could go on for ever by the shadow's lease, and have the next move's target.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_from_the_primary_alone_stands_by() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    // The other one is far away from it, so that the shadow answers first.
    let (cut, slow) = (RelayPath::new(Duration::ZERO), RelayPath::new(Duration::from_millis(60)));
    let mut relays = Vec::new();
    let mut through = Vec::new();
    for path in [&cut, &slow] {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let relay = Relay::tcp(listen, near.database, path.clone()).await?;
        through
            .push((format!("{GODWIT_ROLE}@{}", near.database), format!("{GODWIT_ROLE}@{}", relay.listen())));
        relays.push(relay);
    }
    let front = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let elsewhere = (format!("listen: \"{}\"", playground.front), format!("listen: \"{front}\""));
    let members = [
        Member::new(&playground, "one", &through[..1])?,
        Member::new(&playground, "other", &[through[1].clone(), elsewhere])?,
    ];
    let mut one = members[0].start(&[])?;
    one.ready().await?;
    let mut other = members[1].start(&[])?;
    stands_by(&mut other, "one").await?;
    cut.cut();
    cut.reset_connections();
    leads(&mut other).await?;
    stands_by(&mut one, "other").await?;
    let view = other.ready().await?;
    ensure!((&view.primary, view.generation) == (&near.name, 1), "{view:#?}");
    other.migrate(&far.name).await?;
    other.until("it moves", |view| view.primary == far.name && view.phase == "shadowing").await?;
    let begun = other.node.tail(5000).matches("this node leads").count();
    ensure!(begun == 1, "it began to lead {begun} times");
    stands_by(&mut one, "other").await?;
    cut.restore();
    other.node.signal(Signal::TERM)?;
    leads(&mut one).await?;
    let view = one.ready().await?;
    ensure!((&view.primary, view.generation) == (&far.name, 2), "{view:#?}");
    Ok(())
}

/// By then another node may have moved the service back there, and this one does not hear of it.
#[tokio::test(flavor = "multi_thread")]
async fn no_worker_is_taken_from_a_zone_whose_database_does_not_say_who_leads() -> Result<()> {
    let mut options = options(false)?;
    options.policy = options.policy.replace("retire: {after: 100ms", "retire: {after: 10h");
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    let cut = RelayPath::new(Duration::ZERO);
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let relay = Relay::tcp(listen, near.database, cut.clone()).await?;
    let through = [near.database, relay.listen()].map(|address| format!("{GODWIT_ROLE}@{address}"));
    let mut one = Member::new(&playground, "one", &[through.into()])?.start(&[])?;
    one.ready().await?;
    let id = one.migrate(&far.name).await?;
    let equal = |run: &MigrationView| run.verified == Some(true);
    one.until_answer(&format!("migrations/{id}"), "both sides were compared", equal).await?;
    cut.cut();
    cut.reset_connections();
    one.client.send(&format!("/api/v1/resources/{RESOURCE}/migrations/{id}/retire"), &json!({})).await?;
    let workers = |view: &ResourceView| {
        let old = view.placements.iter().find(|placement| placement.zone == near.name);
        old.map(|old| (old.capacity, old.capacity_full, old.capacity_shadow))
    };
    let nobody_knows = format!("nobody knows who leads {}", near.name);
    let view = one
        .until("it is not scaled down", |view| view.problems.iter().any(|it| it.contains(&nobody_knows)))
        .await?;
    ensure!(view.soak.is_some() && workers(&view) == Some((Some(2), 2, 1)), "{view:#?}");
    cut.restore();
    one.until("it is", |view| view.soak.is_none() && workers(view) == Some((Some(1), 2, 1))).await?;
    ensure!(one.migration(&id).await?.state == "retired");
    Ok(())
}

/// It took over, as the last leader has left, and its database is empty by now: what there is, the other one has.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_was_made_anew_is_not_led_from() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let members = [Member::new(&playground, "one", &[])?, Member::new(&playground, "other", &[])?];
    let mut one = members[0].start(&[])?;
    one.ready().await?;
    one.node.signal(Signal::KILL)?;
    drop(one);
    let leave = "UPDATE godwit.leader SET legacy = jsonb_set(legacy::jsonb, '{tables,placed}', $1::text::jsonb)::text";
    let placed = json!([{ "resource": RESOURCE, "primary_zone": far.name, "shadow_zone": near.name, "generation": 2 }]);
    connect(near).await?.execute(leave, &[&placed.to_string()]).await?;
    connect(far).await?.batch_execute("DROP SCHEMA godwit CASCADE").await?;
    let mut other = members[1].start(&[])?;
    leads(&mut other).await?;
    other.until("it goes on", |view| (&view.primary, view.generation) == (&near.name, 1)).await?;
    let load = load(&playground, 60.0, "made anew");
    other.until("it serves", |_| load.snapshot().acknowledged > 20).await?;
    let epoch = fence::state(&connect(near).await?, RESOURCE).await?;
    ensure!(epoch.as_ref().is_some_and(|epoch| !epoch.fenced && epoch.generation == 1), "{epoch:?}");
    lost_nothing(&playground, &near.name, &load.stop().await).await
}

/// Killed after any record of its journal, which the next one does not have: `KILLS` of them (`SEED` repeats their order), in replication mode `MODE`.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_leader_was_killed_in_the_next_one_goes_on() -> Result<()> {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    let (seed, kills) = (number("SEED", 5), number("KILLS", 8) as usize);
    println!("SEED={seed}");
    let mut records: Vec<u32> = (1..=15).collect();
    records.shuffle(&mut StdRng::seed_from_u64(seed));
    let mut records = records.iter().cycle();
    let mode = std::env::var("MODE").unwrap_or_else(|_| "async".into());
    let mut options = options(false)?;
    let replication = match &*mode {
        "hybrid" => "{mode: hybrid, critical: [public.orders]}".to_owned(),
        mode => format!("{{mode: {mode}, fallback: {{after: 5s, back: 1s}}}}"),
    };
    options.policy =
        options.policy.replace("replication: {mode: async}", &format!("replication: {replication}"));
    let playground = Playground::start(&options).await?;
    let members = [Member::new(&playground, "one", &[])?, Member::new(&playground, "other", &[])?];
    let mut start = |member: usize| {
        let record = records.next().map_or_else(String::new, u32::to_string);
        Ok::<_, anyhow::Error>((members[member].start(&[("GODWIT_TEST_KILL_AFTER", &record)])?, record))
    };
    let (mut one, mut record) = start(0)?;
    one.ready().await?;
    let load = load(&playground, 50.0, "kills");
    let (mut leader, mut standby) = (one, start(1)?);
    let mut number = 0;
    let mut killed = Vec::new();
    loop {
        // It moves until it is gone.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while leader.node.ended()?.is_none() {
            ensure!(tokio::time::Instant::now() < deadline, "it moves no more\n{}", leader.node.tail(40));
            if let Ok(view) = leader.view().await
                && view.phase == "shadowing"
            {
                let _ = leader.ask_to_migrate(&view.shadow).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        killed.push(record);
        if killed.len() >= kills {
            break;
        }
        (leader, record) = standby;
        let served = load.snapshot().acknowledged;
        // Only then the other one is back: its lease might not be over yet.
        until("the next one serves", async || {
            Ok(load.snapshot().acknowledged > served + 20 || leader.node.ended()?.is_some())
        })
        .await
        .with_context(|| format!("after {killed:?}:\n{}", leader.node.tail(60)))?;
        standby = start(number)?;
        number = 1 - number;
    }
    drop(standby);
    let mut last = members[number].start(&[])?;
    leads(&mut last).await?;
    let view = last.ready().await.with_context(|| format!("{killed:?}"))?;
    let runs = format!("/api/v1/resources/{RESOURCE}/migrations?limit=1000");
    let mut runs: Vec<MigrationView> = last.client.fetch(&runs).await?;
    runs.retain(|run| run.ended_ms.is_none());
    ensure!(runs.is_empty(), "{killed:?}: they never end: {runs:#?}");
    let served = load.snapshot().acknowledged;
    last.until("it serves", |_| load.snapshot().acknowledged > served + 20).await?;
    let outcome = load.stop().await;
    lost_nothing(&playground, &view.primary, &outcome).await.with_context(|| format!("{killed:?}"))?;
    last.migrate(&view.shadow).await?;
    last.until("it moves", |now| now.primary == view.shadow && now.phase == "shadowing").await?;
    lost_nothing(&playground, &view.shadow, &outcome).await.with_context(|| format!("{killed:?}"))
}

/// A node in each zone: the one that stands by does its zone's half of the stream meanwhile, and leads when the other is gone.
#[tokio::test(flavor = "multi_thread")]
async fn the_node_of_the_other_zone_leads() -> Result<()> {
    let playground = Playground::start(&options(true)?).await?;
    let [near, far] = &playground.zones;
    let near_leads = of_node(&playground, LEASE)?;
    let link = near_leads.split("link: {listen: \"").nth(1).and_then(|rest| rest.split('"').next());
    let own = std::fs::read_to_string(playground.agent_config.as_ref().context("an agent")?)?;
    let (own, _) = own.split_once("resources:").context("resources")?;
    let (_, led) = near_leads.split_once("\ndrivers:").context("drivers")?;
    let mut far_leads = own.replacen("\n  threads: 2\n", &format!("\n  threads: 2\n  {LEASE}\n"), 1);
    let known = format!("node: {LEADER}}}");
    ensure!(far_leads.contains(&known), "{far_leads}");
    far_leads =
        far_leads.replacen(&known, &format!("node: {LEADER}, link: \"{}\"}}", link.context("a link")?), 1);
    let config = |name: &str, text: String| {
        let file = playground.config.with_file_name(name);
        std::fs::write(&file, text).map(|()| file)
    };
    let members = [
        Member {
            playground: &playground,
            config: config("near.yaml", near_leads.clone())?,
            admin: playground.admin,
        },
        Member {
            playground: &playground,
            config: config("far.yaml", format!("{far_leads}\ndrivers:{led}"))?,
            admin: playground.agent_admin.context("the agent's listener")?,
        },
    ];
    let mut one = members[0].start(&[])?;
    leads(&mut one).await?;
    let mut other = members[1].start(&[])?;
    stands_by(&mut other, LEADER).await?;
    one.ready().await?;
    let load = load(&playground, 60.0, "zones");
    one.until("the load runs", |_| load.snapshot().acknowledged > 20).await?;
    one.node.signal(Signal::KILL)?;
    leads(&mut other).await?;
    let served = load.snapshot().acknowledged;
    other.until("it serves", |_| load.snapshot().acknowledged > served + 20).await?;
    let mut one = members[0].start(&[])?;
    stands_by(&mut one, AGENT).await?;
    let view = other.ready().await?;
    ensure!(view.primary == near.name && view.replication.state == "streaming", "{view:#?}");
    other.migrate(&far.name).await?;
    other.until("it moves", |view| view.primary == far.name && view.phase == "shadowing").await?;
    other.node.signal(Signal::TERM)?;
    leads(&mut one).await?;
    let mut other = members[1].start(&[])?;
    stands_by(&mut other, LEADER).await?;
    let view = one.ready().await?;
    ensure!(view.primary == far.name && view.generation == 2, "{view:#?}");
    let outcome = load.stop().await;
    lost_nothing(&playground, &far.name, &outcome).await
}
