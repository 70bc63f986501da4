//! Replays a policy on recorded history with the forecaster and the decision that a node uses. Pure: equal data, policy and seed
//! give an equal report.
//!
//! What the data cannot tell is assumed: every move is carried out in the next step and succeeds, every proposal is approved, the
//! shadow always keeps up, and what users wait for in a zone is the latency recorded for it.

pub mod data;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use migration::cutover::{Phase, State};
use migration::decide::{DAY, decide, guarded};
use migration::policy::{GuardedFact, Mode, Policy};
use migration::report::Verdict;
use migration::units::{Generation, Timestamp, Zone};
use migration::world::Undone;
use serde::Serialize;

use crate::config::freeze::FreezeWindow;
use crate::controller::signals::{Fed, Measured, Moves, Signals};
use data::History;

/// One move of the replay.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Move {
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// From where.
    pub from: String,
    /// Where to.
    pub to: String,
    /// The lower bound of the score.
    pub score_lower: f64,
    /// Mean latency from here to the next move or the end, milliseconds; none: nothing was recorded.
    pub realised_ms: Option<f64>,
    /// Mean latency of the zone that was left, over the same time.
    pub never_moved_ms: Option<f64>,
}

/// What a way of serving would have meant.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Way {
    /// Mean latency, milliseconds; none: no step has that of both zones.
    pub latency_ms: Option<f64>,
    /// Mean cost per hour; none: not recorded for every step.
    pub cost: Option<f64>,
    /// Moves.
    pub moves: u32,
}

/// The report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The policy.
    pub policy: String,
    /// The seed.
    pub seed: u64,
    /// Primary at the beginning, then the other zone.
    pub zones: [String; 2],
    /// Steps replayed.
    pub steps: usize,
    /// Steps in which both zones have a latency: only they count below.
    pub counted: usize,
    /// The first and last moment, Unix milliseconds.
    pub span_ms: [u64; 2],
    /// Every move.
    pub moves: Vec<Move>,
    /// By guard: in how many steps it was the first that failed.
    pub kept_by: BTreeMap<&'static str, usize>,
    /// Facts of the policy's guards that no step knows: such a guard never passes.
    pub never_known: Vec<&'static str>,
    /// Moves back within twice the cooldown.
    pub flaps: u32,
    /// With the policy.
    pub with_policy: Way,
    /// Had it never moved.
    pub never_moved: Way,
    /// The best way in hindsight under the policy's cooldown.
    pub best: Way,
    /// Milliseconds by which the policy was worse than never moving; below zero: better. None: nothing can be compared.
    pub regret_never_ms: Option<f64>,
    /// Milliseconds by which it was worse than the best way in hindsight.
    pub regret_best_ms: Option<f64>,
}

/// The two zones of the history, the first as the primary at the beginning.
///
/// # Errors
/// There are not two, or the named ones are not among them.
pub fn choose(history: &History, primary: Option<&str>, shadow: Option<&str>) -> Result<[usize; 2], String> {
    let known = history.zones.join(", ");
    let find = |name: &str| {
        let found = history.zones.iter().position(|zone| zone == name);
        found.ok_or_else(|| format!("the data has no zone {name}; it has {known}"))
    };
    let first = primary.map_or(Ok(0), find)?;
    let others: Vec<usize> = (0..history.zones.len()).filter(|zone| *zone != first).collect();
    let second = match (shadow, &others[..]) {
        (Some(name), _) => find(name)?,
        (None, [only]) => *only,
        (None, _) => return Err(format!("name two zones (--primary, --shadow) of {known}")),
    };
    if first == second { Err("a zone cannot be its own shadow".into()) } else { Ok([first, second]) }
}

/// Replays `policy` from `zones[0]`; `progress` is told the step.
pub fn replay(
    policy: &Policy,
    windows: &[FreezeWindow],
    history: &History,
    zones: [usize; 2],
    seed: u64,
    mut progress: impl FnMut(usize),
) -> Report {
    let mut parts = (**policy).clone();
    parts.mode = Mode::Auto;
    // The mode is no part of what is checked.
    let policy = Policy::new(parts).unwrap_or_else(|_| policy.clone());
    let mut signals = Signals::new(seed, policy.step, None);
    let names = zones.map(|zone| Zone::from(history.zones[zone].as_str()));
    let mut state = State::first("backtest", names[0].clone(), names[1].clone(), Timestamp(history.from_ms));
    state.phase = Phase::Shadowing;
    let (mut served, mut moves): (Vec<usize>, Vec<Move>) = (Vec::new(), Vec::new());
    let mut kept_by = BTreeMap::new();
    let mut never_known = GuardedFact::ALL.to_vec();
    never_known.retain(|fact| policy.guards.iter().any(|guard| guard.fact == *fact));
    let mut primary = 0;
    for (step, cells) in history.steps.iter().enumerate() {
        progress(step);
        served.push(primary);
        let now = Timestamp(history.from_ms + step as u64 * history.step_ms + history.step_ms);
        signals.observe(&state.primary.0, measured(history, cells, zones, zones[primary]), false, now);
        let freezes = windows.iter().filter_map(|window| window.at(now)).collect();
        let world = signals.world(&policy, &state, moves_at(&moves, now), freezes, Duration::ZERO, now);
        never_known.retain(|fact| guarded(*fact, &world).value().is_none());
        let report = decide(&policy, &world, now);
        if let Some(guard) = report.guards.iter().find(|guard| !guard.passed) {
            *kept_by.entry(guard.name).or_default() += 1;
        }
        if report.verdict == Verdict::Stay {
            continue;
        }
        moves.push(Move {
            at_ms: now.0,
            from: state.primary.to_string(),
            to: state.shadow.to_string(),
            score_lower: report.score.lower,
            realised_ms: None,
            never_moved_ms: None,
        });
        primary = 1 - primary;
        std::mem::swap(&mut state.primary, &mut state.shadow);
        state.generation = Generation(state.generation.0 + 1);
    }
    let never_known = never_known.into_iter().map(GuardedFact::name).collect();
    Report { kept_by, never_known, ..account(&policy, history, zones, seed, &served, moves) }
}

fn measured(history: &History, cells: &[data::Cell], zones: [usize; 2], primary: usize) -> Measured {
    let by_zone = |read: &dyn Fn(usize) -> Option<f64>| -> BTreeMap<String, Option<f64>> {
        zones.iter().map(|zone| (history.zones[*zone].clone(), read(*zone))).collect()
    };
    let other = |zone| if zone == zones[0] { zones[1] } else { zones[0] };
    // What a node counts itself is the share of the workers that are busy, none where nobody was served from. On paper another zone may serve.
    let served = |zone: usize| cells[zone].served;
    let counted = served(other(primary)) && !served(primary) && cells[primary].utilization == Some(0.0);
    let busy = |zone| if counted { other(zone) } else { zone };
    let or_why = |values: BTreeMap<String, Option<f64>>| {
        let why = |zone: &String| format!("not recorded for {zone}");
        values.into_iter().map(|(zone, value)| (zone.clone(), value.ok_or_else(|| why(&zone)))).collect()
    };
    Measured {
        heartbeat_ms: None,
        request_p95_ms: cells[primary].latency_ms,
        // Who asked, and how many, nobody recorded.
        answers: migration::aftermath::Answers::default(),
        probes_ms: or_why(by_zone(&|zone| cells[zone].latency_ms)),
        probes_fail: BTreeSet::new(),
        probed_by_sql: false,
        utilization: or_why(by_zone(&|zone| cells[busy(zone)].utilization)),
        cost: by_zone(&|zone| cells[zone].cost),
        mirrored: None,
        mirrored_different: None,
        lag: Some(Ok(0)),
        blockers: Vec::new(),
        shadow_service: None,
        fed: Fed::default(),
    }
}

fn moves_at(moves: &[Move], now: Timestamp) -> Moves {
    let all = moves.iter().map(|done| Timestamp(done.at_ms));
    Moves {
        last: all.clone().next_back(),
        last_day: all.filter(|at| now.since(*at) < DAY).collect(),
        // Nothing fails on paper.
        undone: Undone::default(),
    }
}

fn account(
    policy: &Policy,
    history: &History,
    zones: [usize; 2],
    seed: u64,
    served: &[usize],
    mut moves: Vec<Move>,
) -> Report {
    // Latencies of both zones, where both are known.
    let known: Vec<Option<[f64; 2]>> = history
        .steps
        .iter()
        .map(|cells| Some([cells[zones[0]].latency_ms?, cells[zones[1]].latency_ms?]))
        .collect();
    let counted = known.iter().flatten().count();
    let cost = |served: &dyn Fn(usize) -> usize| -> Option<f64> {
        let costs: Option<Vec<f64>> =
            history.steps.iter().enumerate().map(|(step, cells)| cells[zones[served(step)]].cost).collect();
        costs.map(|costs| costs.iter().sum::<f64>() / costs.len().max(1) as f64)
    };
    let way = |served: &dyn Fn(usize) -> usize, moves: usize| Way {
        latency_ms: mean(known.iter().enumerate().filter_map(|(at, both)| Some((*both)?[served(at)]))),
        cost: cost(served),
        moves: moves as u32,
    };
    let with_policy = way(&|at| served[at], moves.len());
    let never_moved = way(&|_| 0, 0);
    let cooldown = (policy.cooldown.as_millis() as u64).div_ceil(history.step_ms).max(1) as usize;
    let best_served = best(&known, cooldown);
    let changes = best_served.windows(2).filter(|pair| pair[0] != pair[1]).count();
    let best = way(&|at| best_served[at], changes);
    value_moves(history, zones, &mut moves);
    let soon = policy.cooldown.saturating_mul(2);
    let flaps = moves
        .windows(2)
        .filter(|pair| Timestamp(pair[1].at_ms).since(Timestamp(pair[0].at_ms)) <= soon)
        .count();
    let end = history.from_ms + history.steps.len() as u64 * history.step_ms;
    let worse = |than: &Way| Some(with_policy.latency_ms? - than.latency_ms?);
    Report {
        policy: policy.name.clone(),
        seed,
        zones: zones.map(|zone| history.zones[zone].clone()),
        steps: history.steps.len(),
        counted,
        span_ms: [history.from_ms, end],
        flaps: flaps as u32,
        kept_by: BTreeMap::new(),
        never_known: Vec::new(),
        regret_never_ms: worse(&never_moved),
        regret_best_ms: worse(&best),
        with_policy,
        never_moved,
        best,
        moves,
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_u64), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// For each move what came of it, and what staying would have been, until the next one.
fn value_moves(history: &History, zones: [usize; 2], moves: &mut [Move]) {
    let step_of = |at_ms: u64| ((at_ms - history.from_ms) / history.step_ms) as usize;
    let ends: Vec<usize> =
        moves.iter().skip(1).map(|next| step_of(next.at_ms)).chain([history.steps.len()]).collect();
    for (done, end) in moves.iter_mut().zip(ends) {
        let begin = step_of(done.at_ms).min(end);
        let over = |name: &str| {
            let zone = zones.into_iter().find(|zone| history.zones[*zone] == name)?;
            mean(history.steps[begin..end].iter().filter_map(|cells| cells[zone].latency_ms))
        };
        (done.realised_ms, done.never_moved_ms) = (over(&done.to), over(&done.from));
    }
}

/// Who serves in each step on the way with the least latency in sum, when after a move the next has to wait for
/// `cooldown` steps. The beginning is in the first zone; a step without data weighs nothing.
fn best(known: &[Option<[f64; 2]>], cooldown: usize) -> Vec<usize> {
    let steps = known.len();
    // Sums of the first `at` steps, by zone.
    let mut sums = vec![[0.0; 2]; steps + 1];
    for (at, both) in known.iter().enumerate() {
        let both = both.unwrap_or([0.0; 2]);
        sums[at + 1] = [sums[at][0] + both[0], sums[at][1] + both[1]];
    }
    // Least sum of the first `at` steps with the zone free to be left; and where its last move was, if it has one.
    let mut least = vec![[f64::INFINITY; 2]; steps + 1];
    let mut moved: Vec<[Option<usize>; 2]> = vec![[None; 2]; steps + 1];
    least[0] = [0.0, f64::INFINITY];
    for at in 1..=steps {
        for zone in 0..2 {
            least[at][zone] = least[at - 1][zone] + sums[at][zone] - sums[at - 1][zone];
            // The last move may be younger than the cooldown only at the end.
            let froms = if at == steps {
                at.saturating_sub(cooldown)..at
            } else {
                at.saturating_sub(cooldown)..at.saturating_sub(cooldown) + usize::from(at >= cooldown)
            };
            for from in froms {
                let through = least[from][1 - zone] + sums[at][zone] - sums[from][zone];
                if through < least[at][zone] {
                    (least[at][zone], moved[at][zone]) = (through, Some(from));
                }
            }
        }
    }
    let mut served = vec![0; steps];
    let mut zone = usize::from(least[steps][1] < least[steps][0]);
    let mut at = steps;
    while at > 0 {
        match moved[at][zone] {
            Some(from) => {
                served[from..at].fill(zone);
                (at, zone) = (from, 1 - zone);
            }
            None => {
                served[at - 1] = zone;
                at -= 1;
            }
        }
    }
    served
}

#[cfg(test)]
mod tests {
    use migration::policy::{Bound, ExtraGuard, PolicyParts};

    use super::*;

    /// `a` is slow from step 300 to 600 of 900; a little noise that depends on nothing but the step.
    fn episode() -> History {
        let noise = |step: usize| ((step * 7919) % 100) as f64 / 100.0;
        let mut text = String::from("time,zone,latency_ms,cost\n");
        for step in 0..900 {
            let slow = if (300..600).contains(&step) { 60.0 } else { 0.0 };
            let at = step * 10_000;
            text.push_str(&format!(
                "{at},a,{},1\n{at},b,{},2\n",
                10.0 + slow + noise(step),
                18.0 + noise(step + 31)
            ));
        }
        data::read(&text, 10_000).expect("valid")
    }

    fn policy() -> Policy {
        Policy::new(parts()).expect("valid")
    }

    fn parts() -> PolicyParts {
        PolicyParts {
            name: "tested".into(),
            sustain: Duration::from_secs(60),
            cooldown: Duration::from_secs(600),
            max_moves_per_day: 10,
            horizon: Duration::from_secs(300),
            ..PolicyParts::default()
        }
    }

    #[test]
    fn an_episode_is_escaped_and_the_sums_are_right() {
        let history = episode();
        let zones = choose(&history, Some("a"), None).expect("two zones");
        let report = replay(&policy(), &[], &history, zones, 1, |_| {});
        let first = report.moves.first().expect("it moves");
        let at = first.at_ms / 10_000;
        assert!((300..360).contains(&at), "the first move is in step {at}");
        assert_eq!((first.from.as_str(), first.to.as_str()), ("a", "b"));
        assert!(first.never_moved_ms > first.realised_ms, "{first:?}");
        assert!(report.regret_never_ms.is_some_and(|ms| ms < -10.0), "{report:?}");
        assert!(report.regret_best_ms.is_some_and(|ms| ms > 0.0), "{report:?}");
        assert!(report.best.latency_ms <= report.never_moved.latency_ms);
        assert_eq!(report.kept_by.values().sum::<usize>() + report.moves.len(), 900);
        assert!(report.kept_by["score"] > 500 && report.never_known.is_empty(), "{:?}", report.kept_by);
        assert_eq!((report.counted, report.best.moves), (900, 2));
        // By hand: 300 steps of about 70.5 and 600 of about 10.5.
        for (way, by_hand) in [(&report.never_moved, 30.5), (&report.best, 13.16)] {
            assert!(way.latency_ms.is_some_and(|ms| (ms - by_hand).abs() < 0.1), "{way:?}");
        }
        assert_eq!(replay(&policy(), &[], &history, zones, 1, |_| {}), report);
    }

    #[test]
    fn frozen_it_stays() {
        let history = episode();
        let zones = choose(&history, Some("a"), None).expect("two zones");
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("frozen.yaml");
        let text = "score: { sustain: 1m, horizon: 5m }\nlimits: { freeze: [{ from: \"* * * * *\", for: 1h, why: always }] }\n";
        std::fs::write(&file, text).expect("written");
        let (frozen, windows) = crate::config::load_policy(&file).expect("valid");
        let report = replay(&frozen, &windows, &history, zones, 1, |_| {});
        assert_eq!((report.moves.len(), report.regret_never_ms), (0, Some(0.0)));
        assert!(report.kept_by["no freeze window"] > 0, "{:?}", report.kept_by);
        assert!(!replay(&frozen, &[], &history, zones, 1, |_| {}).moves.is_empty());
    }

    #[test]
    fn what_the_data_cannot_judge_is_said() {
        let history = episode();
        let zones = choose(&history, Some("a"), None).expect("two zones");
        let guard = |fact, bound| ExtraGuard { fact, bound, binds_operator: false };
        let guards = vec![
            guard(GuardedFact::ShadowLoss, Bound::Below(0.01)),
            guard(GuardedFact::ShadowCost, Bound::Below(9.0)),
        ];
        let guarded = Policy::new(PolicyParts { guards, ..parts() }).expect("valid");
        let report = replay(&guarded, &[], &history, zones, 1, |_| {});
        assert_eq!((report.moves.len(), &report.never_known[..]), (0, &["shadow_loss"][..]));
        assert!(report.kept_by["shadow_loss"] > 100, "{:?}", report.kept_by);
        let mut apart = String::from("time,zone,latency_ms\n");
        for step in 0..40 {
            apart.push_str(&format!("{},{},10\n", step * 10_000, ["a", "b"][step % 2]));
        }
        let history = data::read(&apart, 10_000).expect("valid");
        let report = replay(&policy(), &[], &history, zones, 1, |_| {});
        assert_eq!((report.counted, report.with_policy.latency_ms, report.regret_best_ms), (0, None, None));
    }

    #[test]
    fn who_serves_on_paper_is_as_busy_as_who_served() {
        let busy = |far: f64, primary: usize| {
            let export = format!(
                "series_id,t,value\nrequest_p95_ms/a,10,4\nutilization/a,10,0.9\nutilization/b,10,{far}\n"
            );
            let history = data::read(&export, 10_000).expect("valid");
            let found = measured(&history, &history.steps[0], [0, 1], primary).utilization;
            ["a", "b"].map(|zone| found[zone].clone().expect("known").to_string())
        };
        assert_eq!(busy(0.0, 0), ["0.9", "0"]);
        assert_eq!(busy(0.0, 1), ["0", "0.9"]);
        assert_eq!(busy(0.2, 1), ["0.9", "0.2"], "a feed says so, whoever serves");
    }

    /// Every way of serving, by trying them all.
    #[test]
    fn the_best_way_is_the_best() {
        let luck = |seed: usize| ((seed * 2_654_435_761) >> 7) % 10;
        for case in 0..40 {
            let known: Vec<Option<[f64; 2]>> = (0..9)
                .map(|step| {
                    let at = case * 100 + step;
                    (luck(at) > 0).then(|| [luck(at * 3 + 1) as f64, luck(at * 5 + 2) as f64])
                })
                .collect();
            let cooldown = 1 + case % 4;
            let sum = |served: &[usize]| -> f64 {
                known.iter().zip(served).filter_map(|(both, zone)| Some((*both)?[*zone])).sum()
            };
            // A move at the very beginning is one, too.
            let legal = |served: &[usize]| {
                let from_start = [&[0], served].concat();
                let moves: Vec<usize> =
                    (1..from_start.len()).filter(|at| from_start[*at] != from_start[at - 1]).collect();
                moves.windows(2).all(|pair| pair[1] - pair[0] >= cooldown)
            };
            let least = (0..512_usize)
                .map(|bits| (0..9).map(|at| bits >> at & 1).collect::<Vec<usize>>())
                .filter(|served| legal(served))
                .map(|served| sum(&served))
                .fold(f64::INFINITY, f64::min);
            let found = best(&known, cooldown);
            assert!(legal(&found), "case {case}: {found:?}");
            assert!((sum(&found) - least).abs() < 1e-9, "case {case}: {} instead of {least}", sum(&found));
        }
    }
}
