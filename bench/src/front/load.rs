//! A load generator and an upstream, as small as they can be.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const REQUEST: &[u8] =
    b"GET /orders/17 HTTP/1.1\r\nhost: bench.example\r\nuser-agent: bench\r\naccept: */*\r\n\r\n";
/// Bytes of a response's body.
const BODY: usize = 1024;
const DEADLINE: Duration = Duration::from_mins(1);

/// Answers every request with the same response; the address it listens at.
pub(super) async fn upstream() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let mut response =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {BODY}\r\n\r\n");
    response.extend(std::iter::repeat_n('x', BODY));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A connection that breaks is the proxy's to notice.
            let response = response.clone();
            tokio::spawn(async move { answer(stream, response.as_bytes()).await.ok() });
        }
    });
    Ok(address)
}

async fn answer(mut stream: TcpStream, response: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4096);
    while stream.read_buf(&mut buffer).await? > 0 {
        while let Some(end) = header_end(&buffer) {
            buffer.drain(..end);
            stream.write_all(response).await?;
        }
    }
    Ok(())
}

/// Resolves when something listens there.
pub(super) async fn until_listening(address: SocketAddr) -> Result<()> {
    let wait = async {
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.context("the proxy does not listen")
}

/// Sends `requests` over `connections`, one at a time on each.
pub(super) async fn requests(address: SocketAddr, connections: usize, requests: usize) -> Result<()> {
    let mut clients = JoinSet::new();
    for number in 0..connections {
        let share = requests / connections + usize::from(number < requests % connections);
        clients.spawn(client(address, share));
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(())
}

async fn client(address: SocketAddr, requests: usize) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4096);
    for _ in 0..requests {
        stream.write_all(REQUEST).await?;
        buffer.clear();
        loop {
            if stream.read_buf(&mut buffer).await? == 0 {
                bail!("the proxy closed the connection");
            }
            match header_end(&buffer) {
                Some(_) if !buffer.starts_with(b"HTTP/1.1 200") => {
                    bail!("{}", String::from_utf8_lossy(&buffer))
                }
                Some(end) if buffer.len() >= end + BODY => break,
                _ => {}
            }
        }
    }
    Ok(())
}

fn header_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}
