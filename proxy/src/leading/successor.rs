//! Whether a program that starts with the files as they are now would lead what this node leads: asked before anything ends for it. What only the
//! journal knows, and who listens where, no other process can see.

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context, Result, bail};

use super::comparison::Comparison;
use super::known::{self, Known};
use super::{holder, placing, renamed};
use crate::clock;
use crate::config::model::{Config, Resource};
use crate::fronts::sockets::Sockets;
use crate::store::Journal;

/// What a node has that its successor needs.
#[derive(Clone)]
pub struct Inheritance {
    /// The files.
    pub comparison: std::sync::Arc<Comparison>,
    /// Where each resource stands.
    pub journal: std::sync::Arc<Journal>,
    /// What is listened on.
    pub sockets: std::sync::Arc<Sockets>,
    /// Where its link listens (UDP): that socket is not handed over.
    pub link: Option<SocketAddr>,
    /// By which name it has leases, if it has.
    pub node: Option<String>,
}

impl Inheritance {
    /// Whether the next program would start with it. Blocks while databases are asked.
    ///
    /// # Errors
    /// Why it would not.
    pub fn suffices(&self) -> Result<()> {
        let config = match self.comparison.written() {
            Ok(config) => config,
            Err(errors) => {
                // Another version has accepted them: they may have keys that only that one knows.
                tracing::warn!(%errors, "this version cannot read the configuration: it is not looked whether it fits the journal");
                return Ok(());
            }
        };
        for resource in config.resources.values().filter(|resource| resource.has_front()) {
            leads(&config, resource, &self.journal)?;
        }
        let addresses = listens(&config);
        let wanted: Vec<SocketAddr> = addresses.iter().map(|(address, _)| *address).collect();
        for (address, key) in addresses {
            self.sockets.may_listen(address, &wanted).with_context(|| key)?;
        }
        if let Some(link) = &config.node.link
            && self.link.is_none_or(|own| own.port() != link.listen.port())
        {
            UdpSocket::bind(link.listen)
                .map(drop)
                .with_context(|| format!("node.link.listen: {}", link.listen))?;
        }
        let node = holder::name(&config);
        if let Some(own) = self.node.as_ref().filter(|own| config.node.lease.is_some() && **own != node) {
            bail!(
                "its leases are those of \"{own}\", and the next program would be \"{node}\", and stand by until they are over: stop it, and start it again"
            );
        }
        Ok(())
    }
}

/// What of [`super::lead_all`] can be said without changing anything.
fn leads(config: &Config, resource: &Resource, journal: &Journal) -> Result<()> {
    let Known { state, placed, zones: [primary, shadow], .. } =
        known::read(config, resource, journal, clock::now())?;
    placing::settle(config, resource, &primary, &shadow)?;
    if state.is_none() && placed.is_none() {
        renamed::refuse(config, resource, &primary)?;
    }
    Ok(())
}

/// Every address where TCP is accepted, with its key.
fn listens(config: &Config) -> Vec<(SocketAddr, String)> {
    let node = &config.node;
    let own = std::iter::once((node.admin.listen, "node.admin.listen".to_owned()));
    config.resources.values().flat_map(Resource::listens).chain(own).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;

    use migration::cutover::{Phase, State};
    use migration::units::Timestamp;

    use super::*;
    use crate::config::samples;
    use crate::store::OverlayFile;

    #[test]
    fn a_program_that_would_not_lead_is_known_before_it_is_executed() {
        let folder = tempfile::tempdir().unwrap();
        let file = samples::write(folder.path(), samples::ORDERS);
        let state = folder.path().join("s");
        let overlay = Arc::new(OverlayFile::open(&state).unwrap());
        let journal = Arc::new(Journal::open(&state).unwrap());
        let node = Inheritance {
            comparison: Arc::new(Comparison::new(file.clone(), overlay)),
            journal,
            sockets: Arc::default(),
            link: None,
            node: None,
        };
        let free = |text: &str| {
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            let at = socket.local_addr().unwrap().to_string();
            let text = text.replace("127.0.0.1:1\"", &format!("{at}\""));
            text.replace("state: s }", "state: s, admin: { listen: \"127.0.0.1:0\" } }")
        };
        let written = |text: &str| {
            samples::write(folder.path(), text);
            node.suffices().map_err(|error| format!("{error:#}"))
        };
        let text = free(samples::ORDERS);
        assert_eq!(written(&text), Ok(()), "never led");
        let stands = State {
            phase: Phase::Shadowing,
            ..State::first("orders", "near".into(), "far".into(), Timestamp(1))
        };
        node.journal.append(&stands, "Tested", Timestamp(1), None).unwrap();
        assert_eq!(written(&text), Ok(()));
        assert_eq!(written(&text.replace("far: {", "third: {")), Ok(()), "another shadow is begun with");
        assert_eq!(node.journal.latest("orders").unwrap().as_ref(), Some(&stands), "nothing is changed");
        let error = written(&text.replace("near", "third")).unwrap_err();
        assert!(error.contains("served in near"), "{error}");

        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap();
        let error = written(
            &samples::ORDERS
                .replace("127.0.0.1:1\"", &format!("{at}\""))
                .replace("state: s }", "state: s, admin: { listen: \"127.0.0.1:0\" } }"),
        )
        .unwrap_err();
        assert!(error.starts_with("resources.orders.fronts.http.listen"), "{error}");
    }
}
