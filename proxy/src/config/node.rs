//! This process, and the places it knows.

use std::path::PathBuf;
use std::time::Duration;

use migration::units::ByteCount;
use migration::zones::Location;
use replicator::spill::Spill;

use super::error::counted;
use super::feeds::{absolute, headers};
use super::listeners::Listeners;
use super::load::Surroundings;
use super::model::{AuditFiles, HoldLimits, LinkTls, Node, NodeLink, Zone};
use super::walk::{Item, Section};
use super::{admin, catalogue, egress};
use crate::feeds::external::egress::Egress;
use crate::history::{Resolution, Retention};
use crate::traces;

const STATE: &str = "/var/lib/godwit";
/// Shorter, a server that is busy for a moment would change who leads; longer, nobody would wait for it.
const LEASE: std::ops::RangeInclusive<Duration> = Duration::from_secs(3)..=Duration::from_secs(300);

/// Under the state directory: where open transactions go that outgrow the memory.
const SPILL: &str = "spill";
const SPILL_LEAST: u64 = 1 << 20;
/// Under the state directory: the audit.
const AUDIT: &str = "audit";
const AUDIT_ROTATE: ByteCount = ByteCount(64 << 20);
const AUDIT_LEAST: ByteCount = ByteCount(64 << 10);

/// What a node holds unless it is told otherwise.
const HOLD: HoldLimits = HoldLimits { requests: 10_000, bytes: 16 << 20, time: Duration::from_secs(10) };

/// `node`, with the items that are checked against the rest of the file.
pub(super) struct ReadNode<'a> {
    pub(super) node: Option<Node>,
    pub(super) zone: Option<Item<'a>>,
    /// Whether the key is there, right or wrong.
    pub(super) link: bool,
    pub(super) hold_time: Option<Duration>,
    pub(super) lease: Option<Item<'a>>,
    pub(super) egress: Option<Egress>,
}

/// `{name, zone, state, lease, admin, audit, link, egress, threads, hold, spill, history, traces}`.
pub(super) fn read<'a>(
    item: &Item<'a>,
    around: &Surroundings<'_>,
    listeners: &mut Listeners<'a>,
) -> Option<ReadNode<'a>> {
    let mut section = item.section()?;
    let name = section.required("name", "name: NAME, unique among the nodes");
    let name = name.and_then(|item| item.name());
    let zone = section.required("zone", "zone: ZONE, one of zones");
    let state = match section.optional("state") {
        Some(item) => item.path(around.folder),
        None => Some(PathBuf::from(STATE)),
    };
    let lease_item = section.optional("lease");
    let lease = lease_item.as_ref().map(|item| {
        item.duration().filter(|lease| {
            let fits = LEASE.contains(lease);
            if !fits {
                item.wrong("is no time after which another node should lead", "between 3s and 5m");
            }
            fits
        })
    });
    let egress = match section.optional("egress") {
        Some(item) => egress::read(&item),
        None => Some(Egress::default()),
    };
    let admin = if let Some(item) = section.optional("admin") {
        admin::read(&item, around, egress.as_ref(), listeners)
    } else {
        Some(admin::by_default(item, listeners))
    };
    let link = section.optional("link").map(|item| link(&item, around));
    let threads = match section.optional("threads") {
        Some(item) => item.count(1, 1024).map(|threads| threads as usize),
        None => Some(std::thread::available_parallelism().map_or(2, usize::from)),
    };
    let hold = match section.optional("hold") {
        Some(item) => hold(&item),
        None => Some(HOLD),
    };
    let spill = match section.optional("spill") {
        Some(item) => spill(&item, around, state.clone()),
        None => state.clone().map(|state| Spill::new(state.join(SPILL))),
    };
    let audit = match section.optional("audit") {
        Some(item) => audit(&item, around, state.clone()),
        None => state.clone().map(|state| AuditFiles { directory: state.join(AUDIT), rotate: AUDIT_ROTATE }),
    };
    let history = match section.optional("history") {
        Some(item) => history(&item),
        None => Some(Retention::default()),
    };
    let traces = section.optional("traces").map(|item| traces(&item, around));
    let has_link = section.has("link");
    section.finish();

    let zone_name = zone.as_ref().and_then(|zone| zone.text("the name of a zone"));
    let node = || {
        Some(Node {
            name: name?.to_owned(),
            zone: zone_name?.to_owned(),
            state: state?,
            lease: match lease {
                Some(lease) => Some(lease?),
                None => None,
            },
            admin: admin?,
            audit: audit?,
            link: match link {
                Some(link) => Some(link?),
                None => None,
            },
            egress: egress.clone()?,
            threads: threads?,
            hold: hold?,
            spill: spill?,
            history: history?,
            traces: match traces {
                Some(traces) => Some(traces?),
                None => None,
            },
        })
    };
    let node = node();
    Some(ReadNode {
        node,
        zone,
        link: has_link,
        hold_time: hold.map(|hold| hold.time),
        lease: lease_item,
        egress,
    })
}

fn link(item: &Item<'_>, around: &Surroundings<'_>) -> Option<NodeLink> {
    let mut section = item.section()?;
    let listen = section.required("listen", "listen: 0.0.0.0:9443").and_then(|item| item.address());
    let tls = section.required("tls", "tls: {cert: FILE, key: FILE, ca: FILE}");
    let scoped = section.optional("scoped").map_or(Some(false), |item| item.boolean());
    section.finish();
    let mut tls: Section<'_> = tls?.section()?;
    let mut file = |name: &'static str| {
        tls.required(name, &format!("{name}: FILE (PEM)")).and_then(|item| item.path(around.folder))
    };
    let (cert, key, ca) = (file("cert"), file("key"), file("ca"));
    tls.finish();
    Some(NodeLink { listen: listen?, tls: LinkTls { cert: cert?, key: key?, ca: ca? }, scoped: scoped? })
}

fn traces(item: &Item<'_>, around: &Surroundings<'_>) -> Option<traces::Settings> {
    let mut section = item.section()?;
    let url = section.required("url", "url: https://HOST:4318/v1/traces");
    let url = url.and_then(|item| absolute(&item, item.text("the URL of an OTLP receiver")?));
    let headers = headers(&mut section, around);
    let sample = section.required("sample", "sample: 1%, the share of requests that is traced");
    let sample = sample.and_then(|item| item.ratio());
    section.finish();
    if !traces::SUPPORTED {
        item.wrong("this build sends no traces", "a build with --features otlp");
        return None;
    }
    Some(traces::Settings { endpoint: url?, headers: headers?, sample: sample? })
}

fn hold(item: &Item<'_>) -> Option<HoldLimits> {
    let mut section = item.section()?;
    let requests = match section.optional("requests") {
        Some(item) => item.count(1, 10_000_000).map(|requests| requests as usize),
        None => Some(HOLD.requests),
    };
    let bytes = match section.optional("bytes") {
        Some(item) => item.bytes().and_then(|bytes| {
            let enough = bytes.0 >= 1024;
            if !enough {
                item.wrong(format!("{bytes} would hold no request"), "at least 1KiB");
            }
            usize::try_from(bytes.0).ok().filter(|_| enough)
        }),
        None => Some(HOLD.bytes),
    };
    let time = match section.optional("time") {
        Some(item) => item.duration().filter(|time| {
            let enough = *time >= Duration::from_millis(100);
            if !enough {
                item.wrong("is too short to hold a request across a swap", "at least 100ms");
            }
            enough
        }),
        None => Some(HOLD.time),
    };
    section.finish();
    Some(HoldLimits { requests: requests?, bytes: bytes?, time: time? })
}

/// `{directory, rotate}`.
fn audit(item: &Item<'_>, around: &Surroundings<'_>, state: Option<PathBuf>) -> Option<AuditFiles> {
    let mut section = item.section()?;
    let directory = match section.optional("directory") {
        Some(item) => item.path(around.folder),
        None => state.map(|state| state.join(AUDIT)),
    };
    let rotate = match section.optional("rotate") {
        Some(item) => item.bytes().filter(|bytes| {
            let enough = *bytes >= AUDIT_LEAST;
            if !enough {
                item.wrong("would make a file of nearly every record", "at least 64KiB");
            }
            enough
        }),
        None => Some(AUDIT_ROTATE),
    };
    section.finish();
    Some(AuditFiles { directory: directory?, rotate: rotate? })
}

/// `{memory, directory}`.
fn spill(item: &Item<'_>, around: &Surroundings<'_>, state: Option<PathBuf>) -> Option<Spill> {
    let mut section = item.section()?;
    let memory = match section.optional("memory") {
        Some(item) => item.bytes().map(|bytes| bytes.0).filter(|bytes| {
            let enough = *bytes >= SPILL_LEAST;
            if !enough {
                item.wrong("is less than one stream needs", "at least 1MiB");
            }
            enough
        }),
        None => Some(Spill::MEMORY),
    };
    let directory = match section.optional("directory") {
        Some(item) => item.path(around.folder),
        None => state.map(|state| state.join(SPILL)),
    };
    section.finish();
    Some(Spill { directory: directory?, memory: memory? })
}

/// `{fine, medium, coarse}`: how long each is kept; none shorter than the one before.
fn history(item: &Item<'_>) -> Option<Retention> {
    const DAY: Duration = Duration::from_hours(24);
    let mut section = item.section()?;
    let default = Retention::default();
    let mut least = (Duration::ZERO, "");
    let mut kept = |tier: Resolution, low: (Duration, &'static str), high: (Duration, &'static str)| {
        let name = tier.name();
        let span = match section.optional(name) {
            None => default.of(tier).max(least.0),
            Some(item) => {
                let span = item.duration()?;
                if span < low.0 {
                    item.wrong("is too short", format!("at least {}", low.1));
                    return None;
                }
                if span > high.0 {
                    item.wrong("is too long", format!("at most {}", high.1));
                    return None;
                }
                if span < least.0 {
                    item.wrong(format!("is shorter than {} is kept", least.1), "at least as long");
                    return None;
                }
                span
            }
        };
        least = (span, name);
        Some(span)
    };
    let fine = kept(Resolution::Fine, (Duration::from_hours(1), "1h"), (31 * DAY, "31d"));
    let medium = kept(Resolution::Medium, (DAY, "1d"), (366 * DAY, "366d"));
    let coarse = kept(Resolution::Coarse, (DAY, "1d"), (3_660 * DAY, "3660d"));
    section.finish();
    Some(Retention { fine: fine?, medium: medium?, coarse: coarse? })
}

/// `{provider, region, country, grid, location, cost, link, node, standbys}`; the catalogue fills in what is left out.
pub(super) fn zone(item: &Item<'_>) -> Option<Zone> {
    let mut section = item.section()?;
    let provider = section.optional("provider").map(|item| item.text("the name of a provider"));
    let region = section.optional("region").map(|item| item.text("the name of a region"));
    let country = section.optional("country").map(|item| country_code(&item));
    let grid = section.optional("grid").map(|item| item.text("who balances the electricity there"));
    let location = section.optional("location").map(|item| coordinates(&item));
    let cost = section.optional("cost").map(|item| item.cost_per_hour());
    let link = section.optional("link").map(|item| item.endpoint());
    let node = section.optional("node").map(|item| item.name());
    let standbys = match section.optional("standbys") {
        Some(item) => item.list("names of nodes").and_then(|names| {
            names.iter().map(|item| item.name().map(str::to_owned)).collect::<Option<Vec<_>>>()
        }),
        None => Some(Vec::new()),
    };
    if section.has("link") && !section.has("node") {
        section.item.wrong("has a link but no node", "add node: NAME, the name in that node's certificate");
    }
    section.finish();
    let text = |text: Option<Option<&str>>| text.map_or(Some(None), |text| text.map(|t| Some(t.to_owned())));
    let (provider, region) = (text(provider)?, text(region)?);
    let known = provider.as_ref().zip(region.as_ref()).and_then(|(provider, region)| {
        catalogue::built_in().get(provider).and_then(|regions| regions.get(region))
    });
    let known_location = known.and_then(|known| Location::new(known.location.0, known.location.1));
    Some(Zone {
        country: text(country)?.or_else(|| known.map(|known| known.country.clone())),
        grid: text(grid)?.or_else(|| known.map(|known| known.grid.clone())),
        location: location.map_or(Some(known_location), |location| location.map(Some))?,
        cost_per_hour: cost.map_or(Some(None), |cost| cost.map(Some))?,
        provider,
        region,
        link: link.map_or(Some(None), |link| link.map(Some))?,
        node: text(node)?,
        standbys: standbys?,
    })
}

pub(super) fn country_code<'a>(item: &Item<'a>) -> Option<&'a str> {
    let right = "two capital letters of ISO 3166-1, such as DE; \"NO\" in quotes";
    let text = item.text(right)?;
    let fits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_uppercase());
    if !fits {
        item.wrong(format!("`{text}` is not a country code"), right);
    }
    fits.then_some(text)
}

fn coordinates(item: &Item<'_>) -> Option<Location> {
    let right = "[latitude, longitude] in degrees, such as [50.11, 8.68]";
    let list = item.list("two numbers, [latitude, longitude]")?;
    let [latitude, longitude] = list.as_slice() else {
        item.wrong(format!("has {}", counted(list.len(), "element")), right);
        return None;
    };
    let degrees = |item: &Item<'_>, most: f64| {
        let value = item.number("a number of degrees")?;
        let fits = value.abs() <= most;
        if !fits {
            item.wrong(format!("{value} is out of range"), format!("from -{most} to {most} degrees"));
        }
        fits.then_some(value)
    };
    let (latitude, longitude) = (degrees(latitude, 90.0), degrees(longitude, 180.0));
    Location::new(latitude?, longitude?)
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{BASE, load};
    use crate::traces;

    fn with(section: &str) -> Result<Option<traces::Settings>, String> {
        let text = BASE.replacen("  zone: west\n", &format!("  zone: west\n  traces: {section}\n"), 1);
        load(&text).map(|config| config.node.traces)
    }

    #[test]
    fn where_traces_go() {
        let whole =
            "{ url: \"http://127.0.0.1:4318/v1/traces\", headers: { x-key: { file: secret } }, sample: 1% }";
        if !traces::SUPPORTED {
            let refused = with(whole).expect_err("refused");
            assert!(refused.contains("this build sends no traces"), "{refused}");
            return;
        }
        let settings = with(whole).expect("valid").expect("there");
        assert_eq!(settings.endpoint.as_str(), "http://127.0.0.1:4318/v1/traces");
        assert_eq!((settings.headers.len(), settings.sample.get()), (1, 0.01));
        for (wrong, said) in [
            ("{ url: \"ftp://x.example/\", sample: 1% }", "neither http nor https"),
            ("{ url: \"https://x.example/v1/traces\" }", "sample"),
            ("{ url: \"https://x.example/v1/traces\", sample: 2 }", "sample"),
            ("{ url: \"https://me:secret@x.example/\", sample: 1% }", "a user or a password"),
        ] {
            let refused = with(wrong).expect_err(wrong);
            assert!(refused.contains(said), "{wrong}: {refused}");
        }
    }
}
