//! The admin listener: where it listens, under which names, and who may use it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::listeners::Listeners;
use super::load::Surroundings;
use super::model::{Admin, AdminTls, ClientRule};
use super::oidc;
use super::walk::{Item, Section};
use crate::admin::access::{Role, Scope};
use crate::feeds::external::egress::Egress;

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9900);

/// What a node has that says nothing of it.
pub(super) fn by_default<'a>(node: &Item<'a>, listeners: &mut Listeners<'a>) -> Admin {
    listeners.add(node, LISTEN, "the admin listener");
    Admin { listen: LISTEN, hosts: Vec::new(), required: false, tls: None, clients: Vec::new(), oidc: None }
}

/// `{listen, hosts, access, tls, clients, oidc}`.
pub(super) fn read<'a>(
    item: &Item<'a>,
    around: &Surroundings<'_>,
    egress: Option<&Egress>,
    listeners: &mut Listeners<'a>,
) -> Option<Admin> {
    let mut section = item.section()?;
    let listen = section.required("listen", "listen: 127.0.0.1:9900");
    let hosts = match section.optional("hosts") {
        Some(item) => {
            item.list("host names").and_then(|names| names.iter().map(Item::host).collect::<Option<Vec<_>>>())
        }
        None => Some(Vec::new()),
    };
    let access = section.optional("access");
    let has_tls = section.has("tls");
    let tls = section.optional("tls").map(|item| tls(&item, around));
    let clients = section.optional("clients");
    let oidc = section.optional("oidc").map(|item| oidc::read(&item, around, egress));
    section.finish();

    let listen = listen?;
    let address = listen.address()?;
    listeners.add(&listen, address, "the admin listener");
    let loopback = address.ip().is_loopback();
    let required = match &access {
        Some(item) => item.choice(&[("open", false), ("required", true)]),
        None => Some(!loopback || has_tls),
    };
    if !loopback && !has_tls {
        let right = "tls: {cert: FILE, key: FILE} beside it, or 127.0.0.1".to_owned();
        listen.wrong("is not loopback and has no TLS: tokens would be readable on the way", right);
        return None;
    }
    if let (Some(item), Some(false), false) = (&access, required, loopback) {
        item.wrong(
            "would let everybody who reaches this address move services",
            "required, or listen on 127.0.0.1",
        );
        return None;
    }
    let tls = match tls {
        Some(tls) => Some(tls?),
        None => None,
    };
    let authority = tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let rules = match &clients {
        Some(item) => {
            item.list("{name, role}").and_then(|rules| rules.iter().map(client).collect::<Option<Vec<_>>>())
        }
        None => Some(Vec::new()),
    };
    if let Some(item) = clients.filter(|_| !authority) {
        item.wrong_key("needs an authority that signs the clients' certificates", "add tls.client_ca: FILE");
        return None;
    }
    Some(Admin {
        listen: address,
        hosts: hosts?,
        required: required?,
        tls,
        clients: rules?,
        oidc: oidc.map_or(Some(None), |oidc| oidc.map(Some))?,
    })
}

/// `{cert, key, client_ca}`.
fn tls(item: &Item<'_>, around: &Surroundings<'_>) -> Option<AdminTls> {
    let mut section = item.section()?;
    let mut file = |name: &'static str| {
        section.required(name, &format!("{name}: FILE (PEM)")).and_then(|item| item.path(around.folder))
    };
    let (cert, key) = (file("cert"), file("key"));
    let client_ca = section.optional("client_ca").map(|item| item.path(around.folder));
    section.finish();
    Some(AdminTls { cert: cert?, key: key?, client_ca: client_ca.map_or(Some(None), |path| path.map(Some))? })
}

/// `{name, role, resources}`.
fn client(item: &Item<'_>) -> Option<ClientRule> {
    let mut section = item.section()?;
    let name = section.required("name", "name: a DNS name of the certificate").and_then(|item| item.host());
    let role = section.required("role", "role: viewer, operator or admin").and_then(|item| role(&item));
    let scope = scope(&mut section);
    section.finish();
    Some(ClientRule { name: name?, role: role?, scope: scope? })
}

pub(super) fn role(item: &Item<'_>) -> Option<Role> {
    item.choice(&Role::ALL.map(|role| (role.name(), role)))
}

/// The resources that a rule is for.
pub(super) fn scope(section: &mut Section<'_>) -> Option<Scope> {
    let Some(item) = section.optional("resources") else { return Some(Scope::All) };
    let names = item.list("names of resources")?;
    if names.is_empty() {
        item.wrong("is empty: it would be for nothing", "one at least, or leave it out: all");
        return None;
    }
    let names = names.iter().map(|item| item.name().map(str::to_owned)).collect::<Option<BTreeSet<_>>>()?;
    Some(Scope::Resources(names))
}
