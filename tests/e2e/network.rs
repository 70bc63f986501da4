//! A stream over the real QUIC link through a bad network: loss, reordering, repetition, lines that go dead.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit_tests::network::{Network, Weather};
use replicator::link::quic::{Connector, Listener};
use replicator::status::{Phase, StreamStatus};
use tokio_util::sync::CancellationToken;

use crate::stream::{Authority, Pair, Running, agent, hard_changes, load, seed_rows, spec};

const STORM: Weather = Weather {
    delay: Duration::from_millis(5),
    loss: 0.05,
    duplicate: 0.02,
    reorder: 0.1,
    held_back: Duration::from_millis(8),
    bandwidth: None,
    black_hole: false,
};

fn streaming(status: &StreamStatus) -> bool {
    status.phase == Phase::Streaming
}

fn broken(status: &StreamStatus) -> bool {
    matches!(status.phase, Phase::Failed { retrying: true, .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loss_reordering_and_dead_lines_lose_nothing() -> Result<()> {
    let authority = Authority::new()?;
    let (here, there) = (authority.identity("edge-a")?, authority.identity("edge-b")?);
    let pair = Pair::start(15, 15).await?;
    seed_rows(&pair.from).await?;
    let listener = Listener::bind(&there, ([127, 0, 0, 1], 0).into(), &["edge-a".into()])?;
    let network = Network::start(listener.local_address()?, STORM, 7).await?;
    let _agent = agent(listener, pair.target_end());
    let connector = Connector::new(&here, &network.listen().to_string(), "edge-b")?;
    let stop = CancellationToken::new();
    let writers = load(&pair, 1, &stop);

    // Copied and followed through the storm.
    let stream = Running::start(Arc::new(connector), spec(1), pair.source_end());
    stream.wait(|status| streaming(status) && status.transactions > 20).await.context("storm")?;
    hard_changes(&pair.from).await?;

    // The whole line goes dead, then only the way back: each is noticed, and the stream resumes by itself.
    for (what, forth) in [("dead line", true), ("dead way back", false)] {
        network.back(|weather| weather.black_hole = true);
        network.forth(|weather| weather.black_hole = forth);
        stream.wait(broken).await.with_context(|| format!("{what}: nobody noticed"))?;
        network.both(|weather| weather.black_hole = false);
        stream.wait(streaming).await.with_context(|| format!("{what}: not resumed"))?;
    }
    stop.cancel();
    for writer in writers {
        writer.await??;
    }
    pair.caught_up(&stream).await?;
    let (carried, dropped) = network.carried();
    println!("{carried} bytes carried, {dropped} datagrams dropped");
    ensure!(dropped > 0, "the network was too good to prove anything");
    stream.stop().await
}
