//! Commands that ask no node, as a process of its own.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::leader::PROGRAM;

/// A user that is not root, and owns nothing.
const OTHER: u32 = 65_534;

/// A service without a database.
const CONFIG: &str = "\
node: { name: edge, zone: near, state: state }
zones: { near: {}, far: {} }
resources:
  shop:
    fronts: { http: { listen: 127.0.0.1:1 } }
    primary: near
    policy: p
    placements: { near: { http: [127.0.0.1:2] }, far: { http: [127.0.0.1:3] } }
";

fn said(command: &mut Command) -> Result<(Option<i32>, String)> {
    let output = command.output()?;
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok((output.status.code(), text.concat()))
}

fn create(state: &Path, name: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["token", "create", "--state"]).arg(state).args(["--", name]);
    command
}

#[test]
fn the_file_of_a_token_is_no_matter_of_a_command_that_asks_no_node() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let program = || {
        let mut command = Command::new(PROGRAM);
        command.env("GODWIT_TOKEN_FILE", folder.path().join("nowhere"));
        command
    };
    let config = folder.path().join("godwit.yaml");
    std::fs::create_dir(folder.path().join("policies"))?;
    std::fs::write(folder.path().join("policies/p.yaml"), "mode: observe\n")?;
    std::fs::write(&config, CONFIG)?;
    for arguments in [&["completions", "bash"][..], &["zones", "--catalogue"]] {
        let (code, text) = said(program().args(arguments))?;
        ensure!(code == Some(0), "{arguments:?}: {text}");
    }
    let (code, text) = said(program().arg("check").arg(config))?;
    ensure!(code == Some(0), "{text}");
    let (code, text) = said(program().args(["-o", "json", "status"]))?;
    let is_json = text.contains("\"detail\": \"cannot read");
    ensure!(code == Some(1) && is_json && text.contains("GODWIT_TOKEN_FILE"), "{text}");
    Ok(())
}

/// The program that is replaced asks its successor so: without its certificates that would end, and the service with it.
#[test]
fn certificates_of_the_link_that_cannot_be_read_are_refused_where_a_node_is_to_start() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("godwit.yaml");
    std::fs::create_dir(folder.path().join("policies"))?;
    std::fs::write(folder.path().join("policies/p.yaml"), "mode: observe\n")?;
    let link = "state: state, link: { listen: 127.0.0.1:9443, tls: { cert: a.pem, key: a.key, ca: ca.pem } }";
    std::fs::write(&config, CONFIG.replace("state: state", link))?;
    let (code, text) = said(Command::new(PROGRAM).arg("check").arg(&config))?;
    ensure!(code == Some(0) && text.contains("warning: node.link.tls.cert"), "{text}");
    let asked = [("GODWIT_CHECK_STARTS", "1")];
    let (code, text) = said(Command::new(PROGRAM).arg("check").arg(&config).envs(asked))?;
    ensure!(code == Some(3) && text.contains("warning: node.link.tls.cert"), "{text}");
    Ok(())
}

#[test]
fn a_token_that_root_makes_can_be_taken_back_by_the_user_of_the_node() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let state = folder.path();
    for name in ["", " ", "a\nb"] {
        let (code, text) = said(&mut create(state, name))?;
        ensure!(code == Some(1) && text.contains("printable"), "{name:?}: {text}");
    }
    if std::fs::metadata(state)?.uid() != 0 {
        return Ok(());
    }
    // As one of a package: root's own commands have no business in it.
    chown(state, Some(OTHER), Some(OTHER))?;
    let (code, text) = said(&mut create(state, "ann"))?;
    ensure!(code == Some(0), "{text}");
    let (code, text) = said(create(state, "bob").uid(OTHER).gid(OTHER))?;
    ensure!(code == Some(0), "{text}");
    // As it was made by root before.
    let file = state.join("tokens.db");
    chown(&file, Some(0), Some(0))?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644))?;
    let (code, text) = said(create(state, "eve").uid(OTHER).gid(OTHER))?;
    ensure!(code == Some(1) && text.contains("belongs to user 0") && text.contains("chown"), "{text}");
    Ok(())
}
