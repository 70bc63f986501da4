//! What mirrored reads say of both zones, whoever their clients are.

use migration::policy::{Credentials, MirrorRules};
use migration::units::Ratio;
use tokio_util::sync::CancellationToken;

use super::streams::header;
use super::*;

/// An endpoint whose answers fit into no buffer.
async fn large() -> SocketAddr {
    const SIZE: usize = 32 << 20;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                header(&mut stream).await;
                let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {SIZE}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                let _ = stream.write_all(&vec![0; SIZE]).await;
            });
        }
    });
    address
}

/// The same endpoint in both zones, and a client that begins to read its answer late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_makes_no_zone_look_slow() {
    const LATE: Duration = Duration::from_secs(2);
    let endpoint = large().await;
    let front = Front::start(&[], WIDE, Pool::new(0, "a", &[endpoint])).await;
    let (mirror, stop) = (Arc::clone(&front.resource.mirror), CancellationToken::new());
    let serving = tokio::spawn(Arc::clone(&mirror).serve(stop.clone()));
    let rules =
        MirrorRules { share: Ratio::new(1.0).unwrap(), paths: Vec::new(), credentials: Credentials::Skip };
    mirror.aim("b", &rules, vec![endpoint], Arc::default());
    let mut client = TcpStream::connect(front.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    tokio::time::sleep(LATE).await;
    let mut answer = Vec::new();
    tokio::time::timeout(DEADLINE, client.read_to_end(&mut answer)).await.unwrap().unwrap();
    until("it is compared", async || mirror.view().compared == 1).await;
    let view = mirror.view();
    for took in [view.primary_p95_ms, view.shadow_p95_ms] {
        assert!(took < Some(LATE.as_secs_f64() * 500.0), "{view:?}");
    }
    stop.cancel();
    serving.await.unwrap();
}
