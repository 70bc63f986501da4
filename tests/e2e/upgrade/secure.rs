//! Clients that an upgrade could lose in more places than those who speak HTTP/1.1 in the clear: in the handshake of TLS, and in one of the
//! streams of HTTP/2.

use bytes::Bytes;
use godwit_tests::tls::connector;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;
use crate::leader::listening;

const NAME: &str = "orders.example";
/// Requests at a time on a connection of HTTP/2.
const STREAMS: usize = 4;

/// A secure way to the front.
fn door(at: SocketAddr, authority: &Path, protocol: &[u8]) -> Result<Door> {
    Ok(Door { at, tls: Some((connector(authority, &[protocol])?, ServerName::try_from(NAME)?)) })
}

/// What became of a request on a stream.
enum Asked {
    Answered,
    /// The server says that it has not begun with it (RFC 9113, section 6.8): it is safe to ask again, on another connection.
    Untouched,
}

async fn ask(mut connection: SendRequest<Empty<Bytes>>) -> Result<Asked> {
    let request = Request::get(format!("https://{NAME}/healthz")).body(Empty::new())?;
    if connection.ready().await.is_err() {
        return Ok(Asked::Untouched);
    }
    let answer = match connection.try_send_request(request).await {
        Ok(answer) => answer,
        // It was not sent at all.
        Err(failed) if failed.message().is_some() => return Ok(Asked::Untouched),
        Err(failed) => {
            let error = failed.into_error();
            let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<h2::Error>());
            let untouched = cause.is_some_and(|cause| {
                cause.is_remote()
                    && (cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR)
                        || cause.reason() == Some(h2::Reason::REFUSED_STREAM))
            });
            return if untouched { Ok(Asked::Untouched) } else { Err(error.into()) };
        }
    };
    ensure!(answer.status() == StatusCode::OK, "status {}", answer.status());
    answer.into_body().collect().await?;
    Ok(Asked::Answered)
}

/// [`STREAMS`] requests at a time on one connection for as long as the server keeps it, then on the next one. How often it connected.
async fn keeps_streams(door: Door, ended: Arc<AtomicBool>) -> Result<usize> {
    let mut connections = 0;
    while !ended.load(Ordering::Acquire) {
        let socket = TokioIo::new(door.open().await?);
        let (requests, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), socket).await?;
        let driven = tokio::spawn(connection);
        connections += 1;
        let mut kept = true;
        while kept && !ended.load(Ordering::Acquire) {
            let asked = (0..STREAMS).map(|_| ask(requests.clone()));
            for asked in futures_util::future::join_all(asked).await {
                kept &=
                    matches!(asked.with_context(|| format!("connection {connections}"))?, Asked::Answered);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        driven.abort();
    }
    Ok(connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_tls_and_of_http2_do_not_notice() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let pki = playground.directory.join("front");
    godwit::pki::make(&pki, &[NAME])?;
    let tls = format!("tls: {{certificates: [{{cert: {0}.pem, key: {0}.key}}]}}", pki.join(NAME).display());
    std::fs::write(&playground.config, listening(&playground, &tls)?)?;

    let installed = Installed::new()?;
    let mut leader = installed.leader(&playground)?;
    leader.ready().await?;
    let ended = Arc::new(AtomicBool::new(false));
    let authority = pki.join("ca.pem");
    let one = door(playground.front, &authority, b"http/1.1")?;
    let two = door(playground.front, &authority, b"h2")?;
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(("HTTP/1.1, kept", tokio::spawn(keeps_its_connection(one.clone(), ended.clone()))));
        clients.push(("HTTP/1.1, new", tokio::spawn(never_keeps_one(one.clone(), ended.clone()))));
        clients.push(("HTTP/2", tokio::spawn(keeps_streams(two.clone(), ended.clone()))));
    }
    for turn in 1..=3 {
        installed.link(&format!("{turn}"))?;
        replaced(&mut leader, turn).await?;
    }
    ended.store(true, Ordering::Release);
    for (name, client) in clients {
        let connections = client.await?.with_context(|| format!("{name}: {}", leader.node.tail(40)))?;
        println!("{name}: {connections} connections");
        ensure!(connections > 3, "{name}: each upgrade ends its connection: {connections}");
    }
    Ok(())
}

/// Long streams on one connection of HTTP/2, more than there are connections: whoever else has a request is waited for all the same.
#[tokio::test(flavor = "multi_thread")]
async fn streams_on_one_connection_cut_off_no_request_on_another() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let routes = "h2c: true, routes: [{ name: feed, path: /lists, stream: true }]";
    std::fs::write(&playground.config, listening(&playground, routes)?)?;
    let installed = Installed::new()?;
    let mut leader = installed.leader(&playground)?;
    leader.ready().await?;

    let socket = TokioIo::new(TcpStream::connect(playground.front).await?);
    let (mut requests, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), socket).await?;
    let _driven = tokio::spawn(connection);
    for _ in 0..3 {
        // The endpoint waits for a body that does not come.
        let body = futures_util::stream::pending::<Result<Frame<Bytes>, std::convert::Infallible>>();
        let stream = Request::post(format!("http://{NAME}/lists")).header("content-type", "application/json");
        requests.ready().await?;
        tokio::spawn(requests.send_request(stream.body(StreamBody::new(body))?));
    }
    // They count as streams.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let request = in_flight(&mut leader).await?;
    leader.node.signal(Signal::QUIT)?;
    logged(&mut leader, "the program is replaced", 1).await?;
    // It could go on at once if nothing was in flight.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let answer = finish(request).await.with_context(|| leader.node.tail(30))?;
    ensure!(answer.last, "it was not told that the connection closes");
    logged(&mut leader, "the sockets of the program before are taken over", 1).await?;
    leader.ready().await.map(drop)
}
