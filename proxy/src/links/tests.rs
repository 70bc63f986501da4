use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use replicator::link::quic::Identity;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::config::samples;
use crate::pki;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A new authority, with certificates for both nodes.
fn make(folder: &Path) {
    pki::make(folder, &["near", "far"]).unwrap();
}

fn identity(folder: &Path, node: &str) -> Identity {
    let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
    Identity {
        certificate: read(&format!("{node}.pem")),
        key: read(&format!("{node}.key")),
        authority: read("ca.pem"),
        scoped: false,
    }
}

#[tokio::test]
async fn who_only_measures_the_way_is_not_refused() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let far = identity(folder.path(), "far");
    let listener = Listener::bind(&far, LOOPBACK, &["near".into()]).unwrap();
    let address = listener.local_address().unwrap().to_string();
    let connector = Connector::new(&identity(folder.path(), "near"), &address, "far").unwrap();
    for _ in 0..10 {
        let answered = async { listener.accept().await.unwrap().finish().await };
        let (measured, answered) = tokio::join!(connector.measure(), answered);
        assert!(measured.is_ok(), "{measured:?}");
        let none = answered.map(|link| link.is_none()).map_err(chain);
        assert_eq!(none, Ok(true));
    }
    // Who hangs up without a word is.
    let answered = async { listener.accept().await.unwrap().finish().await };
    let hang_up = async { connector.connect().await.map(drop) };
    let (hung_up, answered) = tokio::join!(hang_up, answered);
    assert!(hung_up.is_ok() && answered.is_err());
}

/// Between what opens links and what takes them reads the files.
#[tokio::test]
async fn certificates_that_are_replaced_while_the_node_starts_are_used_for_all_links() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("pki");
    make(&files);
    let far = Listener::bind(&identity(&files, "far"), LOOPBACK, &["near".into()]).unwrap();
    let text = format!(
        "node: {{ name: near, zone: near, state: s, link: {{ listen: \"127.0.0.1:0\", \
         tls: {{ cert: pki/near.pem, key: pki/near.key, ca: pki/ca.pem }} }} }}\n\
         zones: {{ near: {{}}, far: {{ node: far, link: \"{}\" }} }}\n",
        far.local_address().unwrap()
    );
    let text = samples::ORDERS.lines().skip(2).fold(text, |text, line| text + line + "\n");
    let config = crate::config::load(&samples::write(folder.path(), &text)).unwrap();
    let links = Links::new(&config).unwrap();

    // Files are told apart by when they were written, which has its grain.
    tokio::time::sleep(Duration::from_millis(50)).await;
    std::fs::remove_dir_all(&files).unwrap();
    make(&files);
    far.renew(&identity(&files, "far")).unwrap();
    let _answers = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(incoming) = far.accept().await {
            tokio::spawn(incoming.finish());
        }
    }));
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    links.listen(&config, &tasks, &stop).unwrap();
    let opened = async {
        while links.connector("far").unwrap().measure().await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), opened).await.expect("the new authority vouches");
    stop.cancel();
}
