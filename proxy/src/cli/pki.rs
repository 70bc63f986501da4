//! `godwit pki init`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::pki::Holder;

/// Makes what is missing and prints the files that were made.
pub(super) fn init(directory: &Path, nodes: &[String], resources: &[String]) -> Result<ExitCode> {
    let holders: Vec<Holder<'_>> =
        nodes.iter().map(|node| Holder { resources, ..Holder::from(node.as_str()) }).collect();
    let made = crate::pki::make(directory, &holders)?;
    for holder in &holders {
        let path = directory.join(format!("{}.pem", holder.node));
        if !made.contains(&path) {
            eprintln!(
                "{} is kept as it is, with the zone and the resources that it was made for: remove it with its key to have another",
                path.display()
            );
        }
    }
    for path in made {
        super::out(format!("{}\n", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
