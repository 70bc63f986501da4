//! Histories that must be refused, one of each kind; and any that a serial executor makes, which must not.

use proptest::prelude::*;

use super::{Fate, History, Kind, Op, Transaction, check};

fn append(list: u64, value: u64) -> Op {
    Op::Append { list, value }
}

fn read(list: u64, seen: &[u64]) -> Op {
    Op::Read { list, seen: Some(seen.to_vec()) }
}

/// All at once, so that nothing is known from the clients' clocks.
fn together(transactions: &[&[Op]]) -> History {
    let one =
        |ops: &&[Op]| Transaction { began: 0, ended: Some(10), fate: Fate::Committed, ops: ops.to_vec() };
    History { transactions: transactions.iter().map(one).collect() }
}

/// One after the other.
fn in_turn(transactions: &[&[Op]]) -> History {
    let mut history = together(transactions);
    for (at, transaction) in history.transactions.iter_mut().enumerate() {
        (transaction.began, transaction.ended) = (10 * at as u64, Some(10 * at as u64 + 5));
    }
    history
}

fn kinds(history: &History) -> Vec<Kind> {
    check(history).anomalies.iter().map(|anomaly| anomaly.kind).collect()
}

#[test]
fn good_histories_are_accepted() {
    let history = in_turn(&[
        &[append(1, 1), append(2, 2)],
        &[read(1, &[1]), append(1, 3), read(1, &[1, 3])],
        &[read(2, &[2]), read(1, &[1, 3])],
        &[append(3, 4), append(3, 5), read(3, &[4, 5])],
        &[read(3, &[4, 5]), read(4, &[])],
    ]);
    assert_eq!(kinds(&history), []);
    // Of unknown fate: seen or not, both may be.
    let mut history = in_turn(&[&[append(1, 1)], &[append(1, 2)], &[read(1, &[1])], &[read(1, &[1])]]);
    history.transactions[1].fate = Fate::Unknown;
    assert_eq!(kinds(&history), []);
    history.transactions[3].ops = vec![read(1, &[1, 2])];
    assert_eq!(kinds(&history), []);
    // Aborted and never seen.
    history.transactions[1].fate = Fate::Aborted;
    history.transactions[3].ops = vec![read(1, &[1])];
    assert_eq!(kinds(&history), []);
    // Before an answer arrived both orders may be.
    assert_eq!(kinds(&together(&[&[append(1, 1)], &[read(1, &[])], &[read(1, &[1])]])), []);
}

#[test]
fn a_lost_write_is_found() {
    assert_eq!(kinds(&in_turn(&[&[append(1, 1)], &[append(1, 2)], &[read(1, &[2])]])), [Kind::Lost]);
    // The whole list is gone.
    assert_eq!(kinds(&in_turn(&[&[append(1, 1)], &[read(1, &[])]])), [Kind::Lost]);
}

#[test]
fn a_stale_read_is_found() {
    let history = in_turn(&[&[append(1, 1)], &[append(1, 2)], &[read(1, &[1])], &[read(1, &[1, 2])]]);
    assert!(check(&history).has(Kind::Stale), "{}", check(&history));
}

#[test]
fn a_duplicate_is_found() {
    assert!(
        check(&in_turn(&[&[append(1, 1)], &[append(1, 2)], &[read(1, &[1, 2, 1])]])).has(Kind::Duplicate)
    );
}

#[test]
fn a_value_from_nowhere_is_found() {
    assert_eq!(kinds(&in_turn(&[&[append(1, 1)], &[read(1, &[1, 9])]])), [Kind::Garbage]);
}

#[test]
fn orders_that_do_not_fit_are_found() {
    let history = together(&[&[append(1, 1)], &[append(1, 2)], &[read(1, &[1, 2])], &[read(1, &[2, 1])]]);
    assert!(check(&history).has(Kind::IncompatibleOrders));
}

#[test]
fn what_a_transaction_sees_of_itself_must_hold() {
    assert_eq!(kinds(&together(&[&[append(1, 1), read(1, &[])]])), [Kind::Internal]);
    let history = together(&[&[append(1, 1)], &[read(1, &[]), read(1, &[1])]]);
    assert!(check(&history).has(Kind::Internal));
}

#[test]
fn g1a_is_found() {
    let mut history = together(&[&[append(1, 1)], &[read(1, &[1])]]);
    history.transactions[0].fate = Fate::Aborted;
    assert_eq!(kinds(&history), [Kind::AbortedRead]);
}

#[test]
fn g1b_is_found() {
    let history = together(&[&[append(1, 1), append(1, 2)], &[read(1, &[1])], &[read(1, &[1, 2])]]);
    assert!(check(&history).has(Kind::IntermediateRead));
}

#[test]
fn g0_is_found() {
    let history = together(&[
        &[append(1, 1), append(2, 1)],
        &[append(1, 2), append(2, 2)],
        &[read(1, &[1, 2])],
        &[read(2, &[2, 1])],
    ]);
    assert_eq!(kinds(&history), [Kind::G0]);
}

#[test]
fn g1c_is_found() {
    let history = together(&[&[append(1, 1), read(2, &[2])], &[append(2, 2), read(1, &[1])]]);
    assert_eq!(kinds(&history), [Kind::G1c]);
}

#[test]
fn g_single_is_found() {
    // Read skew: list 1 before the other's write, list 2 after it.
    let skew = together(&[&[append(1, 1), append(2, 2)], &[read(1, &[]), read(2, &[2])], &[read(1, &[1])]]);
    assert_eq!(kinds(&skew), [Kind::GSingle]);
    // Lost update: both read the same version and append to it.
    let update =
        together(&[&[read(1, &[]), append(1, 1)], &[read(1, &[]), append(1, 2)], &[read(1, &[1, 2])]]);
    assert_eq!(kinds(&update), [Kind::GSingle]);
}

#[test]
fn g2_is_found() {
    let skew = together(&[
        &[read(1, &[]), append(2, 2)],
        &[read(2, &[]), append(1, 1)],
        &[read(1, &[1]), read(2, &[2])],
    ]);
    assert_eq!(kinds(&skew), [Kind::G2]);
}

#[test]
fn what_was_seen_and_goes_is_found_though_nobody_acknowledged_it() {
    let mut history = in_turn(&[&[append(1, 1)], &[read(1, &[1])], &[read(1, &[])]]);
    (history.transactions[0].fate, history.transactions[0].ended) = (Fate::Unknown, None);
    assert_eq!(kinds(&history), [Kind::RealTime], "{}", check(&history));
    // Nothing is wrong as long as the two reads overlap.
    history.transactions[2].began = history.transactions[1].began;
    assert_eq!(kinds(&history), []);
}

#[test]
fn appends_in_the_wrong_order_are_found() {
    let history = in_turn(&[&[append(1, 1)], &[append(1, 2)], &[read(1, &[2, 1])]]);
    assert_eq!(kinds(&history), [Kind::RealTime]);
}

#[test]
fn a_value_given_twice_proves_nothing() {
    assert!(check(&together(&[&[append(1, 1)], &[append(1, 1)]])).has(Kind::BadTest));
}

/// What one transaction is to do, what becomes of it, and how long before and after its moment its client waited.
type Plan = (Vec<(bool, u64)>, u8, u64, u64);

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let ops = prop::collection::vec((any::<bool>(), 0..6_u64), 1..5);
    prop::collection::vec((ops, 0..20_u8, 0..50_u64, 0..50_u64), 1..80)
}

/// Runs them one after the other. Their clients see them overlap; in the end everything is read.
fn serial(plans: &[Plan]) -> History {
    let mut lists: std::collections::BTreeMap<u64, Vec<u64>> = std::collections::BTreeMap::new();
    let (mut history, mut value) = (History::default(), 0);
    for (number, (ops, luck, before, after)) in plans.iter().enumerate() {
        let moment = 1_000 + 10 * number as u64;
        let mut now = lists.clone();
        let mut done = Vec::new();
        for (write, list) in ops {
            if *write {
                value += 1;
                now.entry(*list).or_default().push(value);
                done.push(append(*list, value));
            } else {
                done.push(read(*list, now.get(list).map_or(&[], Vec::as_slice)));
            }
        }
        let (fate, committed) = match luck {
            0 => (Fate::Aborted, false),
            1 => (Fate::Unknown, false),
            2 => (Fate::Unknown, true),
            _ => (Fate::Committed, true),
        };
        if committed {
            lists = now;
        }
        let ended = (fate != Fate::Unknown).then_some(moment + after);
        history.transactions.push(Transaction { began: moment - before, ended, fate, ops: done });
    }
    let end = 2_000 + 10 * plans.len() as u64;
    let everything = (0..6).map(|list| read(list, lists.get(&list).map_or(&[], Vec::as_slice))).collect();
    let last = Transaction { began: end, ended: Some(end + 1), fate: Fate::Committed, ops: everything };
    history.transactions.push(last);
    history
}

/// Takes the value out of every read from a moment on.
fn forget(history: &mut History, value: u64, from: u64) {
    for transaction in history.transactions.iter_mut().filter(|transaction| transaction.began >= from) {
        for op in &mut transaction.ops {
            if let Op::Read { seen: Some(seen), .. } = op {
                seen.retain(|other| *other != value);
            }
        }
    }
}

proptest! {
    #[test]
    fn a_serial_execution_is_accepted(plans in plans()) {
        let history = serial(&plans);
        let verdict = check(&history);
        prop_assert!(verdict.accepts(), "{verdict}");
    }

    #[test]
    fn an_acknowledged_write_that_goes_is_missed(plans in plans(), pick in any::<prop::sample::Index>()) {
        let mut history = serial(&plans);
        let acknowledged: Vec<(u64, u64)> = history
            .transactions
            .iter()
            .filter(|transaction| transaction.fate == Fate::Committed)
            .flat_map(|transaction| transaction.ops.iter().map(|op| (op, transaction.ended)))
            .filter_map(|(op, ended)| match op {
                Op::Append { value, .. } => Some((*value, ended.unwrap_or(0))),
                Op::Read { .. } => None,
            })
            .collect();
        prop_assume!(!acknowledged.is_empty());
        let (value, ended) = acknowledged[pick.index(acknowledged.len())];
        forget(&mut history, value, ended);
        prop_assert!(!check(&history).accepts());
    }

    /// Whatever its own client was told.
    #[test]
    fn what_somebody_read_and_goes_is_missed(plans in plans(), pick in any::<prop::sample::Index>()) {
        let mut history = serial(&plans);
        let last = history.transactions.len() - 1;
        let read: Vec<(u64, u64)> = history.transactions[..last]
            .iter()
            .filter(|transaction| transaction.fate == Fate::Committed)
            .flat_map(|transaction| transaction.ops.iter().map(|op| (op, transaction.ended)))
            .filter_map(|(op, ended)| match op {
                Op::Read { seen: Some(seen), .. } => Some((*seen.last()?, ended?)),
                _ => None,
            })
            .collect();
        prop_assume!(!read.is_empty());
        let (value, ended) = read[pick.index(read.len())];
        prop_assume!(ended < history.transactions[last].began);
        forget(&mut history, value, ended + 1);
        prop_assert!(!check(&history).accepts());
    }

    #[test]
    fn a_value_that_comes_twice_is_seen(plans in plans(), pick in any::<prop::sample::Index>()) {
        let mut history = serial(&plans);
        let last = history.transactions.last_mut().expect("the reads at the end");
        let full: Vec<&mut Vec<u64>> = last
            .ops
            .iter_mut()
            .filter_map(|op| match op {
                Op::Read { seen: Some(seen), .. } if !seen.is_empty() => Some(seen),
                _ => None,
            })
            .collect();
        prop_assume!(!full.is_empty());
        let at = pick.index(full.len());
        let seen = full.into_iter().nth(at).expect("within");
        let again = seen[pick.index(seen.len())];
        seen.push(again);
        prop_assert!(check(&history).has(Kind::Duplicate));
    }

    /// Two sides that both take writes: what one acknowledges the other does not have.
    #[test]
    fn two_writers_at_once_are_seen(plans in plans(), at in any::<prop::sample::Index>()) {
        let cut = at.index(plans.len());
        let (near, far) = (serial(&plans[..cut]), serial(&plans[cut..]));
        // The far side began from nothing, with values of its own.
        let shift = 1_000_000;
        let mut history = near;
        history.transactions.pop();
        let end = 2_000 + 10 * cut as u64;
        for mut transaction in far.transactions {
            transaction.began += end;
            transaction.ended = transaction.ended.map(|ended| ended + end);
            for op in &mut transaction.ops {
                match op {
                    Op::Append { value, .. } => *value += shift,
                    Op::Read { seen: Some(seen), .. } => seen.iter_mut().for_each(|value| *value += shift),
                    Op::Read { .. } => {}
                }
            }
            history.transactions.push(transaction);
        }
        let acknowledged = history.transactions[..cut].iter().any(|transaction| {
            transaction.fate == Fate::Committed && transaction.ops.iter().any(|op| matches!(op, Op::Append { .. }))
        });
        prop_assert!(!acknowledged || !check(&history).accepts());
    }
}
