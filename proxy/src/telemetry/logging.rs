//! Log lines: for people on a terminal, JSON otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging to standard error. `GODWIT_LOG` filters (default `info`, pingora's and QUIC's own chatter at `warn`).
pub fn start() {
    let filter = EnvFilter::try_from_env("GODWIT_LOG").unwrap_or_else(|_| {
        EnvFilter::new(
            "info,pingora=warn,pingora_core=warn,pingora_proxy=warn,quinn=warn,tokio_postgres=warn",
        )
    });
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start, as in tests that run several nodes in one process, changes nothing.
    let started = if std::io::stderr().is_terminal() {
        builder.with_ansi(std::env::var_os("NO_COLOR").is_none()).try_init()
    } else {
        builder.json().try_init()
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
}
