//! `godwit token`: through a running node, or on its state directory, which is how the first one is made.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Subcommand;

use super::client::{Client, percent};
use super::render;
use super::verbs::{done, show};
use super::{Output, out, some_time};
use crate::admin::access::Role;
use crate::clock;
use crate::store::{Issued, NewToken, TokenView, Tokens};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a token; it is shown this once.
    Create {
        /// Who or what it is for.
        name: String,
        /// What it may do: viewer reads, operator also moves, takes over, freezes and seeds anew, admin also reserves, reloads and gives rights.
        #[arg(long, value_parser = role, default_value = "viewer", value_name = "ROLE")]
        role: Role,
        /// Only for this resource; may be repeated. Default: all.
        #[arg(long = "resource", value_name = "RESOURCE")]
        resources: Vec<String>,
        /// How long it lives, such as 90d. Default: until it is revoked.
        #[arg(long, value_parser = some_time, value_name = "DURATION")]
        expires: Option<std::time::Duration>,
        #[command(flatten)]
        on: On,
    },
    /// List tokens: never their secrets.
    List {
        #[command(flatten)]
        on: On,
    },
    /// Take a token back, with the sessions it opened.
    Revoke {
        /// Its id, as `list` shows it.
        id: String,
        #[command(flatten)]
        on: On,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct On {
    /// Work on the state directory of a node (node.state) instead of asking it: for the first token. Needs the right to
    /// write there, as the node's user has it.
    #[arg(long, value_name = "DIRECTORY")]
    state: Option<PathBuf>,
}

fn role(text: &str) -> Result<Role, String> {
    Role::from_name(text).ok_or_else(|| "viewer, operator or admin".to_owned())
}

pub(super) fn run(client: &Client, command: Command, output: Output) -> Result<ExitCode> {
    match command {
        Command::Create { name, role, resources, expires, on } => {
            let resources = (!resources.is_empty()).then(|| resources.into_iter().collect());
            let new =
                NewToken { name, role, resources, expires_s: expires.map(|life| life.as_secs().max(1)) };
            let issued: Issued = match &on.state {
                Some(_) => {
                    new.check().map_err(anyhow::Error::msg)?;
                    on.open()?.create(new, &whoever(), clock::now())?
                }
                None => serde_json::from_slice(&client.post("/api/v1/tokens", &serde_json::to_value(new)?)?)?,
            };
            match output {
                Output::Json => out(serde_json::to_string_pretty(&issued)? + "\n")?,
                // Only the token on standard output, for scripts.
                Output::Table => {
                    eprintln!(
                        "token {} for {}, {}. It is not shown again:",
                        issued.view.id, issued.view.name, issued.view.role
                    );
                    out(format!("{}\n", issued.token))?
                }
            };
        }
        Command::List { on } => {
            let tokens: Vec<TokenView> = match &on.state {
                Some(_) => on.open()?.list()?,
                None => client.get("/api/v1/tokens")?,
            };
            show(output, &tokens, |tokens| render::tokens(tokens, clock::now()))?;
        }
        Command::Revoke { id, on } => {
            match &on.state {
                Some(_) if !on.open()?.revoke(&id, &whoever(), clock::now())? => {
                    bail!("there is no token {id:?} that counts")
                }
                Some(_) => {}
                None => drop(client.delete(&format!("/api/v1/tokens/{}", percent(&id)))?),
            }
            return done(output, &serde_json::json!({ "id": id }), &format!("token {id} is revoked"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl On {
    fn open(&self) -> Result<Tokens> {
        let Some(state) = &self.state else { bail!("no state directory is named") };
        if !state.is_dir() {
            bail!("{} is not a directory: name what node.state has", state.display());
        }
        Ok(Tokens::open(state)?)
    }
}

fn whoever() -> String {
    std::env::var("USER").unwrap_or_else(|_| "godwit token".to_owned())
}
