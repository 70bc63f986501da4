#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use super::endpoint::SKIP_AFTER_REFUSAL;
use super::*;
use crate::fronts::http::settings::Upstream;
use crate::fronts::now;

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn reaching(weights: &[u32], limit: Option<usize>) -> ActivePool {
    let addresses: Vec<_> = (1..=weights.len()).map(|port| address(port as u16)).collect();
    let names: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let upstream = Upstream { weights: weights.to_vec(), limit, ..Upstream::default() };
    let reach = Reach::new(&upstream, &names, &addresses).unwrap();
    ActivePool::reaching(Pool::new(1, "a", &addresses), HashMap::from([("a".into(), Arc::new(reach))]))
}

/// How many of `picks` are at each of the first `count` ports.
fn by_port(picks: &[Pick], count: u16) -> Vec<usize> {
    (1..=count).map(|port| picks.iter().filter(|pick| pick.address() == address(port)).count()).collect()
}

#[test]
fn spreads_over_the_less_busy() {
    let active = ActivePool::new(Pool::new(1, "a", &[address(1), address(2), address(3), address(2)]));
    assert_eq!(active.load().upstreams().len(), 3);
    let picks: Vec<_> = (0..300).map(|_| active.pick(&[], now()).unwrap()).collect();
    let spread = by_port(&picks, 3);
    assert!(spread.iter().all(|count| (90..=110).contains(count)), "{spread:?}");
    drop(picks);
    assert!(active.load().endpoints().iter().all(|endpoint| endpoint.in_flight() == 0));
}

#[test]
fn spreads_by_weight() {
    let active = reaching(&[3, 1], None);
    let busy: Vec<_> = (0..400).map(|_| active.pick(&[], now()).unwrap()).collect();
    let spread = by_port(&busy, 2);
    assert!((270..=330).contains(&spread[0]), "{spread:?}");
    drop(busy);
    let at_rest = (0..4000).filter(|_| active.pick(&[], now()).unwrap().address() == address(1)).count();
    assert!((2700..=3300).contains(&at_rest), "{at_rest} of 4000");
}

#[test]
fn prefers_the_faster() {
    let active = ActivePool::new(Pool::new(1, "a", &[address(1), address(2)]));
    let start = now();
    for (port, took) in [(1, 40), (2, 4)] {
        let pick = active.pick(&[address(3 - port)], start).unwrap();
        pick.answered(Duration::from_millis(took), true, None, start + Duration::from_millis(took));
    }
    let at = start + Duration::from_millis(50);
    let picks: Vec<_> = (0..55).map(|_| active.pick(&[], at).unwrap()).collect();
    // Until ten share the fast one it is the cheaper; then one in eleven.
    let spread = by_port(&picks, 2);
    assert!((3..=6).contains(&spread[0]), "{spread:?}");
}

#[test]
fn the_limit_is_for_the_whole_placement() {
    let active = reaching(&[1, 1], Some(3));
    let mut picks: Vec<_> = (0..3).map(|_| active.pick(&[], now()).unwrap()).collect();
    assert_eq!(active.pick(&[], now()).err(), Some(NoPick::Full));
    picks.pop();
    picks.push(active.pick(&[], now()).unwrap());
    assert_eq!(active.pick(&[], now()).err(), Some(NoPick::Full));
}

/// Where two ask for the last place at once, one of them gets it.
#[test]
fn who_asks_at_the_same_moment_keeps_nobody_out_who_fits() {
    const ROUNDS: usize = 2_000;
    let active = reaching(&[1, 1], Some(3));
    let _others: Vec<_> = (0..2).map(|_| active.pick(&[], now()).unwrap()).collect();
    let (arrived, admitted, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    // Both go on within nanoseconds of each other, which a barrier that sleeps would not do.
    let meet = |meeting: usize| {
        arrived.fetch_add(1, SeqCst);
        for turn in 0_u32.. {
            if arrived.load(SeqCst) >= 2 * meeting {
                return;
            }
            if turn % 1_000 == 999 {
                std::thread::yield_now();
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let now = now();
                for round in 0..ROUNDS {
                    meet(2 * round + 1);
                    let pick = active.pick(&[], now);
                    admitted.fetch_add(usize::from(pick.is_ok()), SeqCst);
                    meet(2 * round + 2);
                    wrong.fetch_add(usize::from(admitted.load(SeqCst) != round + 1), SeqCst);
                }
            });
        }
    });
    assert_eq!(wrong.into_inner(), 0);
}

/// A bound of the placement is one whatever its endpoints are by then.
#[test]
fn the_limit_counts_on_when_endpoints_are_replaced() {
    let active = reaching(&[1, 1], Some(2));
    let first = active.pick(&[address(2)], now()).unwrap();
    active.set_upstreams(1, &[address(2)]).unwrap();
    let second = active.pick(&[], now()).unwrap();
    assert_eq!(active.pick(&[], now()).err(), Some(NoPick::Full));
    // Another placement has a bound of its own, or none; the way back finds the first one's.
    active.swap(Pool::new(2, "b", &[address(3)])).unwrap();
    let there: Vec<_> = (0..5).map(|_| active.pick(&[], now()).unwrap()).collect();
    active.swap(Pool::new(3, "a", &[address(1)])).unwrap();
    assert_eq!(active.pick(&[], now()).err(), Some(NoPick::Full));
    drop((first, second, there));
    let _both: Vec<_> = (0..2).map(|_| active.pick(&[], now()).unwrap()).collect();
    assert_eq!(active.pick(&[], now()).err(), Some(NoPick::Full));
}

/// All requests that were under way at a worker that is started again fail at once: that is one ejection.
#[test]
fn what_was_under_way_at_an_endpoint_ejects_it_once() {
    let active = reaching(&[1, 1, 1, 1], None);
    let (rules, start) = (Ejection::default(), now());
    let others: Vec<_> = (2..=4).map(address).collect();
    let under_way: Vec<_> = (0..45).map(|_| active.pick(&others, start).unwrap()).collect();
    for pick in &under_way {
        pick.failed(&rules, start);
    }
    let endpoint = under_way[0].endpoint();
    assert!(endpoint.is_ejected(start) && !endpoint.is_ejected(start + rules.time));
}

#[test]
fn what_fails_is_left_out_but_never_too_much_of_it() {
    let rules =
        Ejection { failures: 1, most: migration::units::Ratio::new(0.5).unwrap(), ..Ejection::default() };
    let active = ActivePool::new(Pool::new(1, "a", &[address(1), address(2), address(3)]));
    let start = now();
    let fail = |port: u16| {
        let others: Vec<_> = (1..=3).filter(|other| *other != port).map(address).collect();
        active.pick(&others, start).unwrap().failed(&rules, start);
    };
    fail(1);
    let others: Vec<_> = (0..50).map(|_| active.pick(&[], start).unwrap()).collect();
    assert_eq!(by_port(&others, 1), [0]);
    fail(2);
    let two = active.load().endpoints().iter().filter(|endpoint| endpoint.is_ejected(start)).count();
    assert_eq!(two, 1, "half of three is one");
    assert!((0..50).any(|_| active.pick(&[], start + rules.time).unwrap().address() == address(1)));
}

#[test]
fn skips_one_that_refused_unless_all_did() {
    let active = ActivePool::new(Pool::new(1, "a", &[address(1), address(2)]));
    let now = now();
    let pick = active.pick(&[address(2)], now).unwrap();
    assert_eq!(pick.address(), address(1));
    pick.refused(now);
    drop(pick);
    for _ in 0..4 {
        assert_eq!(active.pick(&[], now).unwrap().address(), address(2));
    }
    assert_eq!(active.pick(&[address(2)], now).unwrap().address(), address(1));
    assert_eq!(active.pick(&[address(1), address(2)], now).err(), Some(NoPick::None));
    let later = now + SKIP_AFTER_REFUSAL;
    let seen: Vec<_> = (0..64).map(|_| active.pick(&[], later).unwrap().address()).collect();
    assert!(seen.contains(&address(1)));
}

#[test]
fn refuses_an_older_generation_and_takes_a_repeat() {
    let active = ActivePool::new(Pool::new(3, "a", &[address(1)]));
    assert_eq!(active.swap(Pool::new(2, "b", &[address(2)])).err().unwrap().active, 3);
    assert!(active.swap(Pool::new(3, "b", &[address(2)])).is_err());
    assert_eq!(active.swap(Pool::new(4, "b", &[address(2)])).unwrap().generation, 3);
    assert!(active.swap(Pool::new(4, "b", &[address(2), address(3)])).is_ok());
    assert_eq!(active.load().upstreams(), [address(2), address(3)]);
    assert!(active.set_upstreams(3, &[address(1)]).is_err());
}

#[tokio::test]
async fn what_goes_is_idle_once_its_requests_are_done() {
    let active = ActivePool::new(Pool::new(1, "a", &[address(1), address(2)]));
    let now = now();
    let pick = active.pick(&[address(2)], now).unwrap();
    let gone = active.set_upstreams(1, &[address(2)]).unwrap();
    assert_eq!(gone.iter().map(|endpoint| endpoint.address()).collect::<Vec<_>>(), [address(1)]);
    let mut idle = Box::pin(gone[0].idle());
    assert!(futures_util::poll!(&mut idle).is_pending());
    assert_eq!(active.pick(&[], now).unwrap().address(), address(2));
    drop(pick);
    idle.await;
    let old = active.swap(Pool::new(2, "b", &[])).unwrap();
    old.idle().await;
    assert!(active.pick(&[], now).is_err());
}

/// Once a replaced pool was idle nothing is at it, however many were picking: more threads than cores, so that some
/// are stopped between reading the pool and counting themselves.
#[test]
fn nothing_is_sent_to_a_replaced_pool_that_was_idle() {
    let active = ActivePool::new(Pool::new(0, "z", &[address(1), address(2)]));
    let (stop, floor) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let now = now();
                    while !stop.load(SeqCst) {
                        let pick = active.pick(&[], now).unwrap();
                        assert!(pick.generation() >= floor.load(SeqCst));
                    }
                })
            })
            .collect();
        for generation in 1..200 {
            let old = active.swap(Pool::new(generation, "z", &[address(1), address(2)])).unwrap();
            while old.endpoints().iter().any(|endpoint| endpoint.in_flight() != 0) {
                std::thread::yield_now();
            }
            floor.store(generation, SeqCst);
            std::thread::yield_now();
            if threads.iter().any(std::thread::ScopedJoinHandle::is_finished) {
                break;
            }
        }
        stop.store(true, SeqCst);
    });
}
