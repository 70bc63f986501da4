//! `godwit pki init`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

/// Makes what is missing and prints the files that were made.
pub(super) fn init(directory: &Path, nodes: &[String]) -> Result<ExitCode> {
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    for path in crate::pki::make(directory, &names)? {
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}
