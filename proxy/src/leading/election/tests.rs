use replicator::lead::Holder;

use super::*;

fn me() -> Candidate {
    Candidate { id: "me".into(), node: "node-me".into(), within: Duration::from_secs(1) }
}

fn lease(epoch: Option<(u64, bool)>, holder: &str) -> Lease {
    let holder = (!holder.is_empty()).then(|| Holder {
        id: holder.into(),
        node: format!("node-{holder}"),
        left: Duration::from_secs(1),
    });
    Lease { epoch, holder }
}

fn said(zone: &str, lease: Option<Lease>) -> Seen {
    let mine = lease.as_ref().and_then(|lease| lease.holder.as_ref()).filter(|holder| holder.id == "me");
    let mine_until = mine.map(|holder| clock::monotonic() + holder.left);
    Seen { zone: zone.into(), lease: lease.ok_or_else(|| "refused".to_owned()), mine_until }
}

fn verdict(near: Option<Lease>, far: Option<Lease>) -> Verdict {
    judge("near", &me(), &[said("near", near), said("far", far)])
}

#[test]
fn the_lease_of_the_database_that_is_written_to_decides() {
    let held = |who: &str| Verdict::Held(format!("node-{who}"), Duration::from_secs(1));
    let lease = |epoch, holder| Some(lease(epoch, holder));
    let silent = || None;
    for (near, far, expected) in [
        // A first start; the shadow may not be there yet.
        (lease(None, ""), silent(), Verdict::Free),
        (lease(None, "you"), lease(None, ""), held("you")),
        (lease(Some((1, true)), ""), lease(None, "you"), Verdict::Free),
        // Before the shadow is guarded it is open, too.
        (lease(Some((1, true)), "me"), lease(Some((1, true)), "you"), Verdict::Mine),
        (lease(Some((1, true)), "you"), lease(Some((1, true)), "me"), held("you")),
        // After a move.
        (lease(Some((2, false)), "you"), lease(Some((2, true)), ""), Verdict::Free),
        (lease(Some((2, false)), "me"), lease(Some((2, true)), "you"), held("you")),
        (silent(), lease(Some((2, true)), "you"), held("you")),
        (silent(), lease(Some((2, true)), "me"), Verdict::Mine),
        // In the middle of one.
        (lease(Some((2, false)), ""), lease(Some((1, false)), "me"), Verdict::Free),
        // Who is cut off from the primary renews the shadow's for ever.
        (lease(Some((2, false)), ""), lease(Some((1, false)), "you"), Verdict::Free),
        (lease(Some((2, false)), "me"), lease(Some((1, false)), "you"), Verdict::Mine),
        (silent(), lease(Some((1, false)), "you"), held("you")),
        (lease(Some((2, false)), ""), silent(), Verdict::Unknown("far does not answer: refused".into())),
        (lease(Some((1, false)), ""), lease(Some((1, false)), "you"), held("you")),
        (lease(Some((2, false)), "you"), lease(Some((1, false)), ""), held("you")),
        (lease(Some((2, false)), "me"), lease(Some((1, false)), "me"), Verdict::Mine),
    ] {
        assert_eq!(verdict(near.clone(), far.clone()), expected, "{near:?} {far:?}");
    }
    for far in [lease(Some((1, false)), ""), lease(None, "me"), silent()] {
        assert!(matches!(verdict(silent(), far.clone()), Verdict::Unknown(_)), "{far:?}");
    }
}

#[test]
fn a_node_with_a_copy_of_this_ones_state_directory_is_another_node() {
    let of = |node: &str| {
        let mut lease = lease(Some((1, true)), "me");
        lease.holder.as_mut().unwrap().node = node.into();
        verdict(Some(lease), None)
    };
    assert_eq!(of("node-me"), Verdict::Mine);
    let Verdict::Held(said, left) = of("node-clone") else { panic!("both would lead") };
    assert_eq!((said.split(' ').next(), left), (Some("node-clone"), Duration::from_secs(1)));
    assert!(said.contains("is a copy"), "{said}");
}

#[test]
fn what_a_newer_program_left_is_not_led_without() {
    let left = |version: u32, serial: u64| {
        format!(
            r#"{{"version": {version}, "serial": {serial}, "tables": {{}}, "overlay": {{"version": 1}}}}"#
        )
    };
    let newest_for = |own, found: &[(&str, String)]| {
        let found: Vec<_> = found.iter().map(|(who, text)| ((*who).to_owned(), text.clone())).collect();
        newest("me", own, &found).map(|(highest, legacy)| (highest, legacy.map(|legacy| legacy.serial)))
    };
    let newest = |found: &[(&str, String)]| newest_for(Some(7), found);
    let refused = newest(&[("you", left(1, 6)), ("you", left(2, 7))]).unwrap_err();
    assert!(refused.contains("version 2"), "{refused}");
    // Someone has led with it since; or it is this node's own, whose state directory has it all.
    assert_eq!(newest(&[("you", left(2, 7)), ("they", left(1, 8))]), Ok((8, Some(8))));
    assert_eq!(newest(&[("they", left(1, 6)), ("me", left(2, 7))]), Ok((7, None)));
    // The state directory is one from a backup: it has not all of what was left from it since.
    for (own, inherited) in [(Some(5), Some(7)), (Some(7), None), (Some(8), None), (None, None)] {
        let found = [("they", left(1, 6)), ("me", left(1, 7))];
        assert_eq!(newest_for(own, &found), Ok((7, inherited)), "{own:?}");
    }
    assert!(newest_for(Some(5), &[("me", left(2, 7))]).is_err(), "by a newer program");
    // Whatever is wrong with it, what comes next has a higher number.
    let broken = r#"{"version": 1, "serial": 9}"#.to_owned();
    assert_eq!(newest(&[("you", broken), ("they", left(1, 3))]), Ok((9, Some(3))));
    assert_eq!(newest(&[("you", "{".into())]), Ok((0, None)));
    assert_eq!(newest(&[]), Ok((0, None)));
}

#[test]
fn a_primary_that_is_silent_for_a_moment_leaves_the_lead_where_it_is() {
    let mut seen = [said("near", Some(lease(Some((1, true)), "me"))), said("far", None)];
    let before = clock::monotonic();
    let until = before + Duration::from_secs(1);
    seen[0].mine_until = Some(until);
    // The one that led before has the shadow's lease for a while.
    seen[1].hear(said("far", Some(lease(Some((1, false)), "you"))), before);
    assert_eq!(judge("near", &me(), &seen), Verdict::Mine, "the primary was not asked since");
    let decides = |generation| Some(Decides { zone: "near".into(), generation, until });
    assert_eq!(leads_at("near", &seen), decides(1));
    seen[0].hear(said("near", None), before);
    assert_eq!(judge("near", &me(), &seen), Verdict::Mine);
    seen[0].hear(said("near", None), until);
    assert!(matches!(judge("near", &me(), &seen), Verdict::Held(..)), "its lease is over");
    assert_eq!(leads_at("near", &seen), None);
    seen[0].hear(said("near", Some(lease(Some((1, true)), "me"))), until);
    assert_eq!(judge("near", &me(), &seen), Verdict::Mine);
    seen[0].hear(said("near", Some(lease(Some((1, true)), "you"))), until);
    assert!(matches!(judge("near", &me(), &seen), Verdict::Held(..)), "it is another's");
    assert_eq!(leads_at("near", &seen), None);
    // The fence is up: the shadow's lease goes with that of the database that was fenced.
    let mut seen = [
        said("near", Some(lease(Some((2, false)), "me"))),
        said("far", Some(lease(Some((1, false)), "you"))),
    ];
    seen[0].mine_until = Some(until);
    let leads = leads_at("near", &seen);
    assert_eq!(leads, decides(2));
    let taken = |zone, now| takes_by(leads.as_ref(), zone, now);
    assert_eq!([taken("near", before), taken("far", before), taken("far", until)], [None, Some(2), None]);
    seen[0].mine_until = None;
    assert_eq!(leads_at("near", &seen), None);
}

#[test]
fn a_node_that_led_an_older_generation_leads_no_more() {
    let outrun = |near, far, leads| {
        let lease = |epoch| Some(lease(epoch, "me"));
        outrun("orders", &[said("near", lease(near)), said("far", lease(far))], || leads)
    };
    assert_eq!(outrun(Some((8, true)), Some((8, false)), Some(8)), None);
    // A move: the old primary is fenced as the next generation, and may be opened again.
    assert_eq!(outrun(Some((9, false)), Some((8, false)), Some(8)), None);
    // Its own, written down before that.
    assert_eq!(outrun(Some((9, false)), Some((9, true)), Some(9)), None);
    assert_eq!(outrun(Some((9, false)), Some((9, true)), None), None, "it is being found out");
    assert_eq!(
        outrun(Some((9, false)), Some((9, true)), Some(8)).as_deref(),
        Some("orders is served in far at generation 9, and this node led it at 8")
    );
}

#[test]
fn that_a_lease_was_ended_is_seen_within_a_second() {
    let after = |within| looks_after(Duration::from_secs(within)).as_millis();
    assert_eq!([3, 10, 300].map(after), [300, 1000, 1000]);
}

#[test]
fn what_moves_were_worth_is_not_left_at_each_tick() {
    let legacy = |worth: u32, frozen: &str| {
        let text = format!(
            r#"{{"version": 1, "serial": 0, "overlay": {{"version": 1}}, "tables": {{
                "ledger": [{{"run": "m1", "steps": {worth}}}], "freeze": [{{"scope": "{frozen}"}}]}}}}"#
        );
        Legacy::read(&text).unwrap()
    };
    let begun = clock::monotonic();
    let left = (legacy(1, "orders"), begun);
    let anew = |now: &Legacy, later| is_left_anew(Some(&left), now, begun + later);
    let (soon, later) = (Duration::from_secs(59), WORTH_EVERY);
    assert!(is_left_anew(None, &left.0, begun));
    assert!(!anew(&left.0, soon) && !anew(&left.0, later));
    assert!(!anew(&legacy(2, "orders"), soon) && anew(&legacy(2, "orders"), later));
    assert!(anew(&legacy(1, "cart"), Duration::ZERO) && anew(&legacy(2, "cart"), Duration::ZERO));
}

#[test]
fn a_state_directory_keeps_who_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let first = holder::id(directory.path()).unwrap();
    assert_eq!(holder::id(directory.path()).unwrap(), first);
    let other = tempfile::tempdir().unwrap();
    assert_ne!(holder::id(other.path()).unwrap(), first);
}
