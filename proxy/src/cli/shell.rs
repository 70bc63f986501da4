//! What a shell and `man` want to know of the command line.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use super::{Arguments, out};

/// Prints the completions for a shell.
pub(super) fn completions(shell: Shell) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "godwit", &mut text);
    out(text)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the manual page of `godwit`, or writes one for it and for each command into a directory.
pub(super) fn man(directory: Option<&Path>) -> Result<ExitCode> {
    let mut command = without_help(Arguments::command());
    command.build();
    let Some(directory) = directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        out(page)?;
        return Ok(ExitCode::SUCCESS);
    };
    let cannot = || format!("cannot write manual pages into {}", directory.display());
    std::fs::create_dir_all(directory).with_context(cannot)?;
    clap_mangen::generate_to(command, directory).with_context(cannot)?;
    Ok(ExitCode::SUCCESS)
}

/// `help` repeats every command below each, which would all get a page.
fn without_help(command: clap::Command) -> clap::Command {
    let names: Vec<String> = command.get_subcommands().map(|one| one.get_name().to_owned()).collect();
    let command = command.disable_help_subcommand(true);
    names.iter().fold(command, |command, name| command.mut_subcommand(name, without_help))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_shell_gets_completions_with_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "godwit", &mut text);
            let text = String::from_utf8(text).expect("text");
            for name in Arguments::command()
                .get_subcommands()
                .filter(|c| !c.is_hide_set())
                .map(clap::Command::get_name)
            {
                assert!(text.contains(name), "{shell}: {name}");
            }
        }
    }

    #[test]
    fn every_command_has_a_manual_page() {
        let directory = tempfile::tempdir().expect("temporary directory");
        man(Some(directory.path())).expect("written");
        for page in ["godwit.1", "godwit-migrate.1", "godwit-token-create.1", "godwit-audit-verify.1"] {
            let text = std::fs::read_to_string(directory.path().join(page)).expect(page);
            assert!(text.contains(".SH NAME"), "{page}");
        }
        let pages = std::fs::read_dir(directory.path()).expect("there").flatten();
        let of_help: Vec<_> = pages
            .map(|page| page.file_name().to_string_lossy().into_owned())
            .filter(|name| name.contains("help"))
            .collect();
        assert!(of_help.is_empty(), "{of_help:?}");
    }
}
