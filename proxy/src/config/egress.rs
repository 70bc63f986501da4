//! `node.egress`: which hosts and networks feeds may ask.

use super::walk::Item;
use crate::feeds::external::egress::{Egress, Network};

const RIGHT: &str = "a host (status.example), a pattern (*.example), or an address or network (10.0.0.0/8)";

/// `{allow: [HOST, …]}`.
pub(super) fn read(item: &Item<'_>) -> Option<Egress> {
    let mut section = item.section()?;
    let allow = section.required("allow", "allow: [status.example, \"*.example\", 10.0.0.0/8]");
    section.finish();
    let mut egress = Egress::default();
    let allow = allow?;
    let entries = allow.list("hosts and networks")?;
    if entries.is_empty() {
        allow.wrong("is empty", "what may be asked, or leave it out: then the hosts of the feeds' own URLs");
        return None;
    }
    let count = entries.len();
    let mut read = 0;
    for item in entries {
        read += usize::from(entry(&item, &mut egress).is_some());
    }
    (read == count).then_some(egress)
}

fn entry(item: &Item<'_>, egress: &mut Egress) -> Option<()> {
    let text = item.text(RIGHT)?;
    if let Some(network) = Network::parse(text) {
        egress.networks.push(network);
        return Some(());
    }
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let host = text.strip_prefix("*.").unwrap_or(text);
    if host.is_empty() || !host.chars().all(named) {
        let right = if text.contains("://") || text.contains(':') {
            "a host without scheme and port, such as status.example"
        } else {
            RIGHT
        };
        item.wrong(format!("`{text}` is neither a host nor a network"), right);
        return None;
    }
    egress.hosts.push(text.to_ascii_lowercase());
    Some(())
}
