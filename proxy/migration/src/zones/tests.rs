use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn known(value: f64) -> Fact<f64> {
    Fact::known(value, Duration::ZERO, "test")
}

fn candidate(zone: &str, location: (f64, f64), country: &str, grid: &str) -> Candidate {
    Candidate {
        place: Place {
            zone: zone.into(),
            provider: Some("aws".into()),
            region: Some(format!("r-{zone}")),
            country: Some(country.into()),
            grid: Some(grid.into()),
            location: Location::new(location.0, location.1),
        },
        latency_ms: known(20.0),
        spikes_per_day: known(1.0),
        cost: known(0.4),
    }
}

fn dublin() -> Candidate {
    candidate("dublin", (53.35, -6.26), "IE", "SEM")
}

fn frankfurt() -> Candidate {
    candidate("frankfurt", (50.11, 8.68), "DE", "Amprion")
}

fn refusals(choice: &Choice, zone: &str) -> Vec<String> {
    let judged = choice.0.iter().find(|one| *one.zone.0 == *zone).expect("named");
    match &judged.verdict {
        Verdict::Refused(why) => why.clone(),
        other => panic!("{zone} is not refused: {other:?}"),
    }
}

#[test]
fn distances_are_those_of_the_globe() {
    // From another formula (Vincenty, 1975, on the sphere).
    for ((a, b), km) in [
        (((53.35, -6.26), (50.11, 8.68)), 1087.7),
        (((39.04, -77.49), (45.84, -119.70)), 3502.5),
        (((-33.87, 151.21), (51.51, -0.13)), 16_994.1),
        (((0.0, 179.5), (0.0, -179.5)), 111.2),
        (((10.0, 20.0), (10.0, 20.0)), 0.0),
        (((0.0, 0.0), (0.0, 180.0)), 20_015.1),
    ] {
        let [from, to] = [a, b].map(|(lat, lon)| Location::new(lat, lon).expect("on the globe"));
        let found = from.distance_km(to);
        assert!((found - km).abs() < 0.1, "{a:?} {b:?}: {found} instead of {km}");
    }
    assert_eq!(Location::new(91.0, 0.0), None);
    assert_eq!(Location::new(f64::NAN, 0.0), None);
}

#[test]
fn each_filter_refuses_and_says_why() {
    let mut wicklow = candidate("wicklow", (52.98, -6.37), "IE", "SEM");
    wicklow.place.region = dublin().place.region;
    let mut unknown = candidate("unknown", (0.0, 0.0), "", "");
    unknown.place =
        Place { country: None, grid: None, location: None, provider: None, region: None, ..unknown.place };
    let paris = candidate("paris", (48.86, 2.35), "FR", "RTE");
    let virginia = candidate("virginia", (39.04, -77.49), "US", "PJM");
    let rules = Rules {
        deny: vec!["aws/r-paris".into()],
        allow: vec!["aws/*".into()],
        residency: vec!["ie".into(), "DE".into(), "FR".into()],
        ..Rules::default()
    };
    let choice = choose(&rules, &dublin(), &[unknown, virginia, paris, wicklow, frankfurt(), dublin()]);
    assert_eq!(choice.chosen(), Some(&"frankfurt".into()));
    assert_eq!(choice.0.len(), 5, "the primary is no candidate");
    assert_eq!(refusals(&choice, "paris"), ["denied by `aws/r-paris`"]);
    assert_eq!(refusals(&choice, "virginia"), ["data may not live in US"]);
    assert_eq!(
        refusals(&choice, "wicklow"),
        [
            "42 km away, at least 100 wanted",
            "the same region as the primary",
            "the same electricity grid as the primary, SEM"
        ]
    );
    assert_eq!(
        refusals(&choice, "unknown"),
        [
            "not among the allowed: aws/*",
            "its country is not known, and data may live in some only",
            "its distance is not known, at least 100 km wanted",
            "its electricity grid is not known"
        ]
    );
}

#[test]
fn who_lost_learns_by_how_much_and_in_what() {
    let mut paris = candidate("paris", (48.86, 2.35), "FR", "RTE");
    paris.spikes_per_day = known(9.0);
    let choice = choose(&Rules::default(), &dublin(), &[paris, frankfurt()]);
    let [best, other] = choice.0.as_slice() else { panic!("two") };
    assert_eq!((&*best.zone.0, &best.verdict), ("frankfurt", &Verdict::Chosen));
    let Verdict::Lost { to, by, most_in } = &other.verdict else { panic!("{other:?}") };
    assert_eq!((&*to.0, *most_in), ("frankfurt", "history"));
    assert!((by - (other.burden - best.burden)).abs() < 1e-12 && *by > 0.0);
    assert_eq!(other.terms[1].detail, "20.0 ms against 20.0; 9.0 spikes a day");
}

#[test]
fn what_is_not_known_counts_as_the_worst_and_is_named() {
    let mut blank = frankfurt();
    blank.place.zone = "blank".into();
    blank.latency_ms = Fact::unknown("nothing runs there");
    blank.spikes_per_day = Fact::unknown("nothing runs there");
    blank.cost = known(f64::NAN);
    let choice = choose(&Rules::default(), &dublin(), &[blank, frankfurt()]);
    assert_eq!(choice.chosen(), Some(&"frankfurt".into()));
    let blank = &choice.0[1];
    assert!((blank.terms[1].burden - 1.0).abs() < 1e-12 && (blank.terms[2].burden - 1.0).abs() < 1e-12);
    assert_eq!(blank.terms[2].detail, "price unknown: test says NaN");
    assert_eq!(
        blank.terms[1].detail,
        "latency unknown: nothing runs there; spikes unknown: nothing runs there"
    );
}

fn any_fact() -> impl Strategy<Value = Fact<f64>> {
    prop_oneof![4 => (0.0..1e6f64).prop_map(known), 1 => Just(Fact::unknown("none"))]
}

prop_compose! {
    fn any_candidate()(
        name in "[a-h]", latitude in -90.0..90.0f64, longitude in -180.0..180.0f64, grid in "[xyz]", country in "[AB]",
        latency_ms in any_fact(), spikes_per_day in any_fact(), cost in any_fact(),
    ) -> Candidate {
        let place = candidate(&name, (latitude, longitude), &country, &grid).place;
        Candidate { place, latency_ms, spikes_per_day, cost }
    }
}

fn distinct(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    candidates.sort_by(|a, b| a.place.zone.cmp(&b.place.zone));
    candidates.dedup_by(|a, b| a.place.zone == b.place.zone);
    candidates
}

proptest! {
    #[test]
    fn the_order_given_does_not_matter(list in prop::collection::vec(any_candidate(), 0..8), turn in 0usize..8) {
        let list = distinct(list);
        let mut turned = list.clone();
        turned.rotate_left(turn % list.len().max(1));
        prop_assert_eq!(choose(&Rules::default(), &dublin(), &list), choose(&Rules::default(), &dublin(), &turned));
    }

    #[test]
    fn the_chosen_one_breaks_no_filter_and_has_the_least_burden(list in prop::collection::vec(any_candidate(), 0..8)) {
        let rules = Rules { residency: vec!["A".into()], ..Rules::default() };
        let list = distinct(list);
        let choice = choose(&rules, &dublin(), &list);
        let fits = |place: &Place| {
            place.country.as_deref() == Some("A")
                && place.location.unwrap().distance_km(dublin().place.location.unwrap()) >= 100.0
        };
        let best = choice.0.iter()
            .filter(|one| list.iter().any(|c| c.place.zone == one.zone && fits(&c.place)))
            .map(|one| one.burden).reduce(f64::min);
        let chosen = choice.chosen().map(|zone| choice.0.iter().find(|one| one.zone == *zone).unwrap().burden);
        prop_assert_eq!(chosen, best);
        for one in &choice.0 {
            prop_assert!((0.0..=1.0).contains(&one.burden));
        }
    }

    #[test]
    fn one_more_candidate_does_not_reorder_the_rest(list in prop::collection::vec(any_candidate(), 1..8)) {
        let list = distinct(list);
        let order = |choice: &Choice, without: &Zone| -> Vec<Zone> {
            choice.0.iter().map(|one| one.zone.clone()).filter(|zone| zone != without).collect()
        };
        let last = list.last().unwrap().place.zone.clone();
        let all = choose(&Rules::default(), &dublin(), &list);
        let fewer = choose(&Rules::default(), &dublin(), &list[..list.len() - 1]);
        prop_assert_eq!(order(&all, &last), order(&fewer, &last));
    }

    #[test]
    fn cheaper_never_ranks_lower(list in prop::collection::vec(any_candidate(), 2..8), price in 0.0..1.0f64) {
        let list = distinct(list);
        let zone = list[0].place.zone.clone();
        let rank = |choice: Choice| choice.0.iter().position(|one| one.zone == zone).unwrap();
        let before = rank(choose(&Rules::default(), &dublin(), &list));
        let mut cheaper = list.clone();
        cheaper[0].cost = known(list[0].cost.value().map_or(price, |now| now * price));
        prop_assert!(rank(choose(&Rules::default(), &dublin(), &cheaper)) <= before);
    }
}
