//! The link's identity and its certificates: who may take part in which stream, and renewing them under a running one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::demo::node::Node;
use godwit::demo::zone::{AGENT, LEADER, Playground, RESOURCE};
use godwit::pki::{self, Holder};
use godwit_tests::network::{Network, Weather};
use godwit_tests::postgres::other_major;
use replicator::link::quic::{Connector, Identity, Listener};
use replicator::link::{resource_uri, zone_uri};
use replicator::status::{Phase, StreamStatus};
use tokio_util::sync::CancellationToken;

use crate::leader::{Leader, PATIENCE, agent as agent_node, connect, options};
use crate::stream::{Authority, Pair, Running, agent, hard_changes, load, seed_rows, spec};

fn streaming(status: &StreamStatus) -> bool {
    status.phase == Phase::Streaming
}

fn breaks(status: &StreamStatus) -> u64 {
    status.failures.values().sum()
}

/// Both authorities vouch.
fn bundled(identity: Identity, other: &Identity) -> Identity {
    let authority = [identity.authority.as_slice(), other.authority.as_slice()].concat();
    Identity { authority, ..identity }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_authority_are_replaced_under_a_running_stream() -> Result<()> {
    let (old, new) = (Authority::new()?, Authority::new()?);
    let (here, there) = (old.identity("edge-a")?, old.identity("edge-b")?);
    let pair = Pair::start(15, 15).await?;
    seed_rows(&pair.from).await?;
    let listener = Listener::bind(&there, ([127, 0, 0, 1], 0).into(), &["edge-a".into()])?;
    let network =
        Network::start(listener.local_address()?, Weather::delay(Duration::from_millis(1)), 7).await?;
    let _agent = agent(listener.clone(), pair.target_end());
    let connector = Arc::new(Connector::new(&here, &network.listen().to_string(), "edge-b")?);
    let stop = CancellationToken::new();
    let writers = load(&pair, 1, &stop);
    let stream = Running::start(connector.clone(), spec(1), pair.source_end());
    let before = stream.wait(|status| streaming(status) && status.transactions > 20).await?;

    // Both vouch, then the new certificates, then only the new one vouches: at each step transactions go on, on the same link.
    let (here_new, there_new) = (new.identity("edge-a")?, new.identity("edge-b")?);
    let steps = [
        (bundled(here.clone(), &here_new), bundled(there.clone(), &there_new)),
        (bundled(here_new.clone(), &here), bundled(there_new.clone(), &there)),
        (here_new.clone(), there_new),
    ];
    for (step, (dialing, answering)) in steps.iter().enumerate() {
        connector.renew(dialing)?;
        listener.renew(answering)?;
        let goal = stream.status.borrow().transactions + 20;
        let after =
            stream.wait(|status| status.transactions > goal).await.with_context(|| format!("step {step}"))?;
        ensure!(breaks(&after) == breaks(&before), "step {step} broke the link: {:?}", after.failures);
        // A new link of its own works at each step as well.
        drop(connector.connect().await.with_context(|| format!("a new link at step {step}"))?);
    }

    // Whoever still has the old identity stays outside; the stream itself comes back with the new one.
    let late = Connector::new(&here, &network.listen().to_string(), "edge-b")?;
    ensure!(late.connect().await.is_err(), "the old authority still vouches");
    network.both(|weather| weather.black_hole = true);
    stream.wait(|status| breaks(status) > breaks(&before)).await.context("nobody noticed the cut")?;
    network.both(|weather| weather.black_hole = false);
    stream.wait(streaming).await.context("not resumed with the new certificates")?;
    stop.cancel();
    for writer in writers {
        writer.await??;
    }
    pair.caught_up(&stream).await?;
    stream.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_for_other_zones_or_resources_is_refused_on_both_sides() -> Result<()> {
    let authority = Authority::new()?;
    let pair = Pair::start(15, 15).await?;
    seed_rows(&pair.from).await?;
    let of = |name: &str, zone: &str, resource: &str| {
        authority.identity_for(name, &[zone_uri(zone), resource_uri(resource)])
    };
    let scoped = |identity: Identity| Identity { scoped: true, ..identity };
    let (good_here, good_there) = (of("edge-a", "a", "shop")?, of("edge-b", "b", "shop")?);
    let plain = authority.identity("edge-a")?;
    let cases = [
        (
            of("edge-a", "c", "shop")?,
            good_there.clone(),
            "other side refuses: the certificate of edge-a is for zone c, not for a",
        ),
        (
            of("edge-a", "a", "till")?,
            good_there.clone(),
            "other side refuses: the certificate of edge-a is for resource till",
        ),
        (
            good_here.clone(),
            of("edge-b", "c", "shop")?,
            "refused here: the certificate of edge-b is for zone c, not for b",
        ),
        (
            good_here.clone(),
            of("edge-b", "b", "till")?,
            "refused here: the certificate of edge-b is for resource till",
        ),
        (
            plain.clone(),
            scoped(good_there.clone()),
            "other side refuses: the certificate of edge-a does not say",
        ),
        (
            scoped(good_here.clone()),
            authority.identity("edge-b")?,
            "refused here: the certificate of edge-b does not say",
        ),
    ];
    for (here, there, refusal) in cases {
        let listener = Listener::bind(&there, ([127, 0, 0, 1], 0).into(), &["edge-a".into()])?;
        let address = listener.local_address()?.to_string();
        let _agent = agent(listener, pair.target_end());
        let stream =
            Running::start(Arc::new(Connector::new(&here, &address, "edge-b")?), spec(1), pair.source_end());
        let refused = |status: &StreamStatus| matches!(&status.phase, Phase::Failed { error, .. } if error.contains(refusal));
        stream.wait(refused).await.with_context(|| refusal.to_owned())?;
        ensure!(
            pair.to.query_opt("SELECT FROM godwit.progress WHERE copied", &[]).await?.is_none(),
            "copied"
        );
    }
    let listener = Listener::bind(&scoped(good_there), ([127, 0, 0, 1], 0).into(), &["edge-a".into()])?;
    let address = listener.local_address()?.to_string();
    let _agent = agent(listener, pair.target_end());
    let connector = Connector::new(&scoped(good_here), &address, "edge-b")?;
    let stream = Running::start(Arc::new(connector), spec(1), pair.source_end());
    stream.wait(streaming).await?;
    pair.caught_up(&stream).await?;
    stream.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_the_world_away_a_stream_is_copied_catches_up_and_keeps_up() -> Result<()> {
    let authority = Authority::new()?;
    let (here, there) = (authority.identity("edge-a")?, authority.identity("edge-b")?);
    let pair = Pair::start(15, other_major()).await?;
    seed_rows(&pair.from).await?;
    let listener = Listener::bind(&there, ([127, 0, 0, 1], 0).into(), &["edge-a".into()])?;
    // 200 ms there and back, and one datagram of two hundred lost each way.
    let far = Weather { loss: 0.005, ..Weather::delay(Duration::from_millis(100)) };
    let network = Network::start(listener.local_address()?, far, 7).await?;
    let _agent = agent(listener, pair.target_end());
    let connector = Arc::new(Connector::new(&here, &network.listen().to_string(), "edge-b")?);
    let stop = CancellationToken::new();
    let writers = load(&pair, 1, &stop);
    let stream = Running::start(connector.clone(), spec(1), pair.source_end());
    stream
        .wait(|status| streaming(status) && status.transactions > 50)
        .await
        .context("copied and followed")?;
    hard_changes(&pair.from).await?;
    stop.cancel();
    for writer in writers {
        writer.await??;
    }
    // More than a window of it, that does not compress.
    pair.from
        .batch_execute(
            "INSERT INTO documents SELECT g, 0, (SELECT string_agg(md5(random()::text || g || i), '') FROM generate_series(1, 250) i) \
             FROM generate_series(5000, 9999) g",
        )
        .await?;
    pair.caught_up(&stream).await?;
    let transports = connector.transports();
    let (_, way) = transports.last().context("an open link")?;
    ensure!(way.round_trip >= Duration::from_millis(200), "{way:?}");
    // QUIC gives up on more than the network loses: what its own bursts overflow, and what comes too late.
    ensure!((1..way.sent_packets / 2).contains(&way.lost_packets), "one in two hundred is lost: {way:?}");
    ensure!(breaks(&stream.status.borrow()) == 0, "it broke: {:?}", stream.status.borrow().failures);
    stream.stop().await
}

/// Certificates of a new authority, put over those that the nodes read; `also` is vouched for as well.
fn replace(playground: &Playground, also: &[u8]) -> Result<Vec<u8>> {
    let fresh = tempfile::tempdir()?;
    let resources = [RESOURCE.to_owned()];
    let [near, far] = &playground.zones;
    let names = [near, far].map(|zone| zone.name.as_str());
    let holders = [(LEADER, &names[..1]), (AGENT, &names[1..])].map(|(node, zones)| Holder {
        node,
        zones,
        resources: &resources,
    });
    pki::make(fresh.path(), &holders)?;
    let authority = std::fs::read(fresh.path().join("ca.pem"))?;
    let pki = playground.directory.join("pki");
    std::fs::write(pki.join("ca.pem"), [&authority, also].concat())?;
    for file in ["leader.key", "leader.pem", "agent.key", "agent.pem"] {
        std::fs::copy(fresh.path().join(file), pki.join(file))?;
    }
    Ok(authority)
}

/// How often a node has logged this.
fn logged(node: &Node, text: &str) -> usize {
    node.tail(usize::MAX).matches(text).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_read_renewed_files_and_the_stream_goes_on() -> Result<()> {
    const BROKE: &str = "stream broke; it will be resumed";
    let playground = Playground::start(&options(true)?).await?;
    let mut second = agent_node(&playground)?.context("an agent")?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let primary = connect(&playground.zones[0]).await?;
    let write = "UPDATE customers SET balance = balance WHERE id = 1";
    let breaks = logged(&leader.node, BROKE);
    let before = leader.view().await?.replication.changes;

    let old = std::fs::read(playground.directory.join("pki/ca.pem"))?;
    let new = replace(&playground, &old)?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for node in [&mut leader.node, &mut second] {
        while logged(node, "new links use the new certificates") == 0 {
            node.check()?;
            ensure!(tokio::time::Instant::now() < deadline, "the files were not read:\n{}", node.tail(20));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    primary.batch_execute(write).await?;
    leader.until("changes go on", |view| view.replication.changes > before).await?;
    ensure!(logged(&leader.node, BROKE) == breaks, "the stream broke:\n{}", leader.node.tail(20));

    // The old authority is gone for good; a node that starts anew is let in by the new one.
    std::fs::write(playground.directory.join("pki/ca.pem"), &new)?;
    drop(second);
    leader.until("the stream breaks without the agent", |view| view.replication.state == "failed").await?;
    let _second = agent_node(&playground)?.context("an agent")?;
    leader.until("the stream comes back", |view| view.replication.state == "streaming").await?;
    let before = leader.view().await?.replication.changes;
    primary.batch_execute(write).await?;
    leader.until("changes go on", |view| view.replication.changes > before).await?;
    Ok(())
}
