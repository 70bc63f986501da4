//! docs/failures.md has the table as the tests have it. `UPDATE_DOCS=1` writes it.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};

use super::rows::{End, ROWS, STEPS};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/failures.md");
const MARKS: [&str; 2] =
    ["<!-- table: made by the test the_page_of_failures -->\n", "<!-- end of table -->\n"];

fn table() -> String {
    let mut text = String::from("| fault |");
    for step in STEPS {
        let _ = write!(text, " {step} |");
    }
    let _ = writeln!(text, " test |\n|---|{}---|", "---|".repeat(STEPS.len()));
    for row in ROWS {
        let _ = write!(text, "| {} |", row.name);
        for step in STEPS {
            let end = row.steps.iter().find(|(phase, _)| *phase == step).map(|(_, end)| end);
            let word = match end {
                None => "–",
                Some(End::Aborts) => "undone",
                Some(End::Finishes) => "goes on",
                Some(End::Either) => "either",
            };
            let often = if row.telling.contains(&step) { "**" } else { "" };
            let _ = write!(text, " {often}{word}{often} |");
        }
        let _ = writeln!(text, " `faults::{}` |", row.test);
    }
    text
}

#[test]
fn the_page_of_failures() -> Result<()> {
    let page = std::fs::read_to_string(PAGE).context("docs/failures.md")?;
    let (before, rest) = page.split_once(MARKS[0]).context("the table's first mark")?;
    let (old, after) = rest.split_once(MARKS[1]).context("its last mark")?;
    let new = table();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PAGE, format!("{before}{}{new}{}{after}", MARKS[0], MARKS[1]))?;
    } else {
        ensure!(
            old == new,
            "docs/failures.md is old: UPDATE_DOCS=1 cargo test -p godwit-tests the_page_of_failures"
        );
    }
    for row in ROWS {
        for step in row.telling {
            ensure!(
                row.steps.iter().any(|(phase, _)| phase == step),
                "{}: {step} is no step of it",
                row.name
            );
        }
    }
    Ok(())
}
