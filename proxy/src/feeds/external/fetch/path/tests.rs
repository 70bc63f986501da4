//! The way to this machine itself, through the whole feed: measured, mapped, on the board, as facts of a decision.

use std::sync::Arc;
use std::time::Duration;

use migration::world::Fact;

use super::*;
use crate::feeds::external::board::FeedBoard;
use crate::feeds::external::egress::Network;
use crate::feeds::external::finding::Finding;
use crate::feeds::external::map::Program;
use crate::feeds::external::preset::PATHS;
use crate::feeds::external::tests::feed;
use crate::feeds::external::trial::{self, Trial};
use crate::feeds::external::{Feed, Source, Use};

fn host(name: &str) -> Host {
    Host { zone: "west".into(), name: name.into(), port: 1 }
}

fn measuring(how: How) -> Feed {
    let preset = PATHS.iter().find(|preset| preset.name == how.kind()).unwrap();
    Feed {
        serves: Use::Path,
        map: Program::new(preset.map).unwrap(),
        source: Source::Path(Measured::new(how)),
        ..feed("way")
    }
}

fn loopback() -> Reach {
    let networks = vec![Network::parse("127.0.0.0/8").unwrap()];
    Reach { egress: Egress { networks, ..Egress::default() }, links: None }
}

async fn tried(feed: &Feed, reach: &Reach) -> Trial {
    trial::run(&Arc::new(feed.clone()), reach, None, clock::now()).await
}

fn board(feed: &Feed, readings: Vec<Finding>, at: Timestamp) -> FeedBoard {
    let board = FeedBoard::new([feed.clone()]);
    let understood = crate::feeds::external::Understood { findings: readings, ..Default::default() };
    board.change(&feed.name, |state| state.succeeded(understood.clone(), 1, at));
    board
}

#[tokio::test]
async fn a_ping_becomes_facts_that_grow_old() {
    let feed = measuring(How::Ping(vec![host("127.0.0.1")]));
    let trial = tried(&feed, &loopback()).await;
    assert_eq!(trial.error, None, "{trial:?}");
    let now = clock::now();
    let board = board(&feed, trial.readings, now);
    let path = board.path("orders", "west", now);
    assert!(path.rtt_ms.value().is_some_and(|rtt| *rtt > 0.0 && *rtt < 1000.0), "{path:?}");
    assert_eq!(path.loss.value(), Some(&0.0));
    assert_eq!(path.route_age_ms, Fact::unknown("feed way says nothing of route_age of west"));
    assert!(matches!(board.path("orders", "central", now).loss, Fact::Unknown { .. }));
    let old = board.path("orders", "west", now.after(Duration::from_secs(601)));
    assert_eq!(
        old.loss,
        Fact::unknown("the newest of feed way is 10 min old, 10 min are allowed"),
        "stale is unknown, never 0"
    );
}

#[tokio::test]
async fn where_icmp_is_not_allowed_the_reading_says_what_would_allow_it() {
    let feed = measuring(How::Ping(vec![host("127.0.0.1")]));
    let trial = tried(&feed, &loopback()).await;
    let told = trial.readings.iter().find_map(|reading| match reading {
        Finding::Event(event) => Some(event.title.as_str()),
        Finding::Value(_) => None,
    });
    match icmp::Icmp::open([127, 0, 0, 1].into()) {
        Ok(_) => assert_eq!(told, None),
        Err(_) => assert!(told.is_some_and(|why| why.contains("net.ipv4.ping_group_range")), "{told:?}"),
    }
}

#[tokio::test]
async fn a_trace_becomes_hops_and_an_age() {
    let feed = measuring(How::Trace(vec![host("127.0.0.1")]));
    let trial = tried(&feed, &loopback()).await;
    if icmp::Icmp::raw([127, 0, 0, 1].into()).is_err() {
        let error = trial.error.unwrap();
        assert!(error.what.contains("CAP_NET_RAW"), "{error:?}");
        return;
    }
    assert_eq!(trial.error, None);
    let number = |trial: &Trial, name: &str| {
        trial.readings.iter().find_map(|reading| match reading {
            Finding::Value(value) if value.name.as_deref() == Some(name) => Some(value.value),
            _ => None,
        })
    };
    assert_eq!((number(&trial, "hops"), number(&trial, "route_age")), (Some(1.0), Some(0.0)));
    // Later runs remember when the first one looked: were it forgotten, the age would be 0 for ever.
    let mut again = trial;
    for _ in 0..1000 {
        if number(&again, "route_age") > Some(0.0) {
            break;
        }
        again = tried(&feed, &loopback()).await;
    }
    let now = clock::now();
    let age = board(&feed, again.readings, now).path("orders", "west", now).route_age_ms;
    assert!(age.value().is_some_and(|age| *age > 0.0), "{age:?}");
}

#[tokio::test]
async fn only_what_egress_allows_is_asked() {
    let feed = measuring(How::Ping(vec![host("127.0.0.1")]));
    let trial = tried(&feed, &Reach::default()).await;
    let error = trial.error.unwrap();
    assert_eq!(error.reason, "egress");
    assert!(error.what.contains("west: 127.0.0.1: 127.0.0.1 is this machine"), "{error:?}");
    let Reach { egress, .. } = loopback();
    let named = Reach::from(Egress { hosts: vec!["edge-2.example".into()], ..egress });
    let local = measuring(How::Ping(vec![host("localhost")]));
    assert_eq!(
        tried(&local, &named).await.error.unwrap().what,
        "west: localhost is not in node.egress.allow"
    );
}

#[tokio::test]
async fn a_zone_that_cannot_be_measured_leaves_the_others_alone() {
    let nowhere = Host { zone: "central".into(), ..host("nowhere.invalid") };
    let feed = measuring(How::Ping(vec![nowhere, host("127.0.0.1")]));
    let trial = tried(&feed, &loopback()).await;
    assert_eq!(trial.error, None);
    assert!(trial.readings.iter().all(|reading| reading.zones() == ["west"]), "{trial:?}");
}

#[tokio::test]
async fn without_a_link_the_reason_is_said() {
    let trial = tried(&measuring(How::Link(vec!["west".into()])), &loopback()).await;
    assert_eq!(trial.error.unwrap().what, "west: this process has no links");
}

#[test]
fn a_changed_route_is_an_event() {
    let way = |last: u8| trace::Way {
        hops: vec![Some([10, 0, 0, 1].into()), Some([10, 0, 0, last].into())],
        reached: true,
    };
    let mut known = trace::Known::first(way(2), Timestamp(1_000));
    known.see(way(3), Timestamp(61_000));
    known.see(way(3), Timestamp(121_000));
    let bytes = json!({ "west": described(&known, Timestamp(181_000)) }).to_string();
    let found =
        measuring(How::Trace(vec![host("h")])).understand(bytes.as_bytes(), Timestamp(181_000)).unwrap();
    let shown: Vec<String> = found
        .findings
        .iter()
        .map(|finding| match finding {
            Finding::Value(value) => format!("{} {}", value.name.clone().unwrap_or_default(), value.value),
            Finding::Event(event) => format!("{}: {} at {}", event.kind, event.title, event.starts.0),
        })
        .collect();
    assert_eq!(shown, ["hops 2", "route_age 120", "route change: hop 2: 10.0.0.3, before 10.0.0.2 at 61000"]);
}

#[test]
fn a_host_of_several_addresses_has_one_way_while_its_address_is_there() {
    let address = |last: u8| std::net::IpAddr::from([192, 0, 2, last]);
    let way = |last: u8| trace::Way { hops: vec![Some(address(last))], reached: true };
    let mut memory = Memory::default();
    let mut run = |addresses: &[IpAddr], at: u64| {
        let to = chosen(addresses, memory.ways.get("west").map(|(to, _)| *to)).unwrap();
        let last = if to == address(1) { 1 } else { 2 };
        let known = memory.way("west", to, way(last), Timestamp(at));
        (to, known.since.0, known.before.is_some())
    };
    let (one, other) = (address(1), address(2));
    assert_eq!(run(&[one, other], 1_000), (one, 1_000, false));
    assert_eq!(run(&[other, one], 2_000), (one, 1_000, false), "it is still there");
    assert_eq!(run(&[other, one], 3_000), (one, 1_000, false));
    assert_eq!(run(&[other], 4_000), (other, 4_000, false), "a way of its own, and no change of the other");
    assert_eq!(run(&[one, other], 5_000), (other, 4_000, false));
}
