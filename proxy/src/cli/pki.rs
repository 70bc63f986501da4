//! `godwit pki init`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::pki::Holder;

/// Makes what is missing and prints the files that were made.
pub(super) fn init(directory: &Path, nodes: &[String], resources: &[String]) -> Result<ExitCode> {
    let holders: Vec<Holder<'_>> =
        nodes.iter().map(|node| Holder { resources, ..Holder::from(node.as_str()) }).collect();
    for path in crate::pki::make(directory, &holders)? {
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}
