//! What a service manager hears of a node.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::demo::zone::Playground;

use crate::leader::{Leader, PATIENCE, options};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_ready_when_its_front_takes_connections_and_says_when_it_stops() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(PATIENCE))?;
    let socket = path.to_str().context("a path in UTF-8")?;
    let leader = Leader::start(&playground, &[("NOTIFY_SOCKET", socket)])?;
    let mut message = [0; 64];
    let length = manager.recv(&mut message).context("the node did not say that it is ready")?;
    ensure!(&message[..length] == b"READY=1", "{:?}", &message[..length]);
    std::net::TcpStream::connect_timeout(&playground.front, Duration::from_secs(1))
        .context("ready, and its front takes no connection")?;
    drop(leader);
    let length = manager.recv(&mut message).context("the node did not say that it stops")?;
    ensure!(&message[..length] == b"STOPPING=1", "{:?}", &message[..length]);
    Ok(())
}
