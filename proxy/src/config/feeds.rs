//! `feeds`: facts from outside, by name.

mod path;

use std::collections::BTreeMap;
use std::time::Duration;

use http::HeaderName;
use url::Url;

use super::error::suggest;
use super::load::Surroundings;
use super::model::{Resource, Zone};
use super::raw::Value;
use super::secret;
use super::walk::{Item, Section};
use crate::feeds::external::decode::Decode;
use crate::feeds::external::egress::Egress;
use crate::feeds::external::fetch::http::Request;
use crate::feeds::external::fetch::path::How;
use crate::feeds::external::fetch::postgres::{ACTIVITY, Databases};
use crate::feeds::external::map::Program;
use crate::feeds::external::places::{Place, Places};
use crate::feeds::external::preset::{PATHS, PRESETS, Preset};
use crate::feeds::external::{Feed, Secret, Source, Use};

/// How long one run may take, unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer, unless a preset or the configuration says otherwise.
const MAX_BYTES: u64 = 1 << 20;
/// A feed is stale after so many times it should have been asked, unless told otherwise.
const STALE: u32 = 3;
/// What a number means, where no map says.
const NUMBER: &str = "{value: .}";
/// What the answers of databases mean, where no map says.
const BY_ZONE: &str = "[to_entries[] | {zone: .key, value: .value}]";

/// What feeds may refer to. `None`: that part was unreadable, so that references to it are not judged.
pub(super) struct Known<'k> {
    pub(super) zones: Option<Vec<&'k str>>,
    /// Zones that were understood.
    pub(super) zones_read: &'k BTreeMap<String, Zone>,
    pub(super) resources: Option<Vec<&'k str>>,
    /// Resources that were understood.
    pub(super) resources_read: &'k BTreeMap<String, Resource>,
    /// `None`: it was not understood.
    pub(super) egress: Option<&'k Egress>,
}

/// `{preset, url | file | exec | postgres | webhook | ping | trace | link, query, headers, bearer, ca, decode, map, zone, zones, resource, use, every,
/// stale_after, timeout, max_bytes}`.
pub(super) fn read(
    name: &str,
    item: &Item<'_>,
    known: &Known<'_>,
    around: &Surroundings<'_>,
) -> Option<Feed> {
    let mut section = item.section()?;
    let preset = match section.optional("preset") {
        Some(item) => Some(preset(&item)?),
        // What is measured here is understood without one.
        None => PATHS.iter().find(|path| section.has(path.name)),
    };
    let places = places(&mut section, known);
    let resource = section.optional("resource").map(|item| match &known.resources {
        Some(names) => item.reference("resource", names.iter().copied()),
        None => item.text("the name of a resource"),
    });
    let wanted = Wanted { preset, places: places.as_ref(), resource: resource.flatten() };
    let source = source(&mut section, &wanted, known, around);
    let decode = match section.optional("decode") {
        Some(item) => item.choice(&Decode::ALL),
        None => Some(preset.map_or(Decode::Json, |preset| preset.decode)),
    };
    let map = program(&mut section, preset, decode);
    let serves = serves(&mut section, preset);
    let posted = section.has("webhook");
    let (every, stale_after) = pace(&mut section, preset, posted);
    let timeout = match section.optional("timeout") {
        Some(item) => at_least(&item, Duration::from_millis(100), "100ms")
            .and_then(|time| at_most(&item, time, Duration::from_secs(300), "5m")),
        None => Some(TIMEOUT),
    };
    let max_bytes = match section.optional("max_bytes") {
        Some(item) => item.bytes().map(|bytes| bytes.0).filter(|bytes| {
            let fits = (1 << 10..=64 << 20).contains(bytes);
            if !fits {
                item.wrong("is out of range", "from 1KiB to 64MiB");
            }
            fits
        }),
        None => Some(preset.map_or(MAX_BYTES, |preset| preset.max_bytes)),
    };
    section.finish();
    Some(Feed {
        name: name.to_owned(),
        preset: preset.map(|preset| preset.name),
        source: source?,
        decode: decode?,
        map: map?,
        serves: serves?,
        places: places?,
        resource: resource.map_or(Some(None), |name| name.map(|name| Some(name.to_owned())))?,
        every: every?,
        stale_after: stale_after?,
        timeout: timeout?,
        max_bytes: max_bytes?,
    })
}

fn preset(item: &Item<'_>) -> Option<&'static Preset> {
    let names = PRESETS.map(|preset| (preset.name, preset.name));
    item.choice(&names).and_then(Preset::named)
}

fn at_least(item: &Item<'_>, least: Duration, shown: &str) -> Option<Duration> {
    item.duration().filter(|time| {
        let enough = *time >= least;
        if !enough {
            item.wrong("is too short", format!("at least {shown}"));
        }
        enough
    })
}

fn at_most(item: &Item<'_>, time: Duration, most: Duration, shown: &str) -> Option<Duration> {
    if time > most {
        item.wrong("is too long", format!("at most {shown}"));
    }
    (time <= most).then_some(time)
}

fn pace(
    section: &mut Section<'_>,
    preset: Option<&Preset>,
    posted: bool,
) -> (Option<Duration>, Option<Duration>) {
    let second = Duration::from_secs(1);
    let every = if posted {
        section.unsupported("every", "a webhook is not asked", "leave it out");
        None
    } else if let Some(preset) = preset {
        match section.optional("every") {
            Some(item) => at_least(&item, second, "1s"),
            None => Some(preset.every),
        }
    } else {
        section
            .required("every", "every: 1m, how often it is asked")
            .and_then(|item| at_least(&item, second, "1s"))
    };
    let stale_after = if posted {
        section
            .required("stale_after", "stale_after: 15m, how old what was posted last may be")
            .and_then(|item| at_least(&item, second, "1s"))
    } else {
        match section.optional("stale_after") {
            Some(item) => item.duration().filter(|stale| {
                let enough = every.is_none_or(|every| *stale >= every);
                if !enough {
                    item.wrong(
                        "is shorter than `every`: it would be unknown most of the time",
                        "twice `every` or more",
                    );
                }
                enough
            }),
            None => every.map(|every| every * STALE),
        }
    };
    (if posted { stale_after } else { every }, stale_after)
}

fn program(section: &mut Section<'_>, preset: Option<&Preset>, decode: Option<Decode>) -> Option<Program> {
    let given = section.optional("map");
    let Some(item) = given else {
        let text = match (preset, decode?) {
            (Some(preset), _) => preset.map,
            (None, Decode::Number) => NUMBER,
            (None, _) if section.has("postgres") => BY_ZONE,
            (None, _) => {
                if !section.has("map") {
                    section.item.wrong(
                        "has neither a preset nor a map",
                        "map: a jq program such as '{value: .price}'",
                    );
                }
                return None;
            }
        };
        return Program::new(text).ok();
    };
    let text = item.text("a jq program such as '{value: .price}'")?;
    Program::new(text).map_err(|error| item.wrong(error.to_string(), "a jq program that compiles")).ok()
}

fn serves(section: &mut Section<'_>, preset: Option<&Preset>) -> Option<Use> {
    match (section.optional("use"), preset.and_then(|preset| preset.serves)) {
        (Some(item), _) => item.choice(&Use::ALL),
        (None, Some(serves)) => Some(serves),
        (None, None) => {
            section.required("use", "use: cost, utilization, weather, events, maintenance or path");
            None
        }
    }
}

/// `zone: ZONE`, `zones: [ZONE, …]`, `zones: {ZONE: NAME or [NAME, …]}`, or every zone.
fn places(section: &mut Section<'_>, known: &Known<'_>) -> Option<Places> {
    let one = section.optional("zone");
    let several = section.optional("zones");
    if let (Some(_), Some(item)) = (&one, &several) {
        item.wrong_key("is given beside `zone`", "one of the two");
        return None;
    }
    let reference = |item: &Item<'_>| match &known.zones {
        Some(zones) => item.reference("zone", zones.iter().copied()).map(str::to_owned),
        None => item.text("the name of a zone").map(str::to_owned),
    };
    if let Some(item) = one {
        return reference(&item).map(|zone| Places::One(place(&zone, known)));
    }
    let Some(item) = several else {
        return Some(Places::Named(known.zones_read.keys().map(|zone| place(zone, known)).collect()));
    };
    let mut found = Vec::new();
    if let Value::Map(_) = item.value() {
        let entries = item.named("the feed's names of it")?;
        for (zone, names) in &entries {
            if let Some(zones) = &known.zones
                && !zones.contains(zone)
            {
                names.wrong_key(format!("there is no zone `{zone}`"), suggest(zone, zones.iter().copied()));
                return None;
            }
            let mut place = place(zone, known);
            let listed = match names.value() {
                Value::List(_) => names.list("names")?,
                _ => vec![names.clone()],
            };
            for name in &listed {
                place.names.push(
                    name.text("a name that the feed gives this zone; * stands for anything")?.to_lowercase(),
                );
            }
            found.push(place);
        }
    } else {
        for item in item.list("zones, or a mapping from zones to the feed's names")? {
            found.push(place(&reference(&item)?, known));
        }
    }
    if found.is_empty() {
        item.wrong("names no zone", "at least one, or leave it out for every zone");
        return None;
    }
    Some(Places::Named(found))
}

/// A zone goes by its own name, its region's, and its country's.
fn place(zone: &str, known: &Known<'_>) -> Place {
    let about = known.zones_read.get(zone);
    let (region, country) =
        (about.and_then(|zone| zone.region.clone()), about.and_then(|zone| zone.country.clone()));
    Place {
        zone: zone.to_owned(),
        names: region.iter().chain(&country).map(|name| name.to_lowercase()).collect(),
        provider: about.and_then(|zone| zone.provider.clone()),
        location: about.and_then(|zone| zone.location).map(|at| (at.latitude(), at.longitude())),
        region,
        country,
    }
}

/// What a source is built from beside its own keys.
struct Wanted<'w> {
    preset: Option<&'w Preset>,
    places: Option<&'w Places>,
    resource: Option<&'w str>,
}

fn source(
    section: &mut Section<'_>,
    wanted: &Wanted<'_>,
    known: &Known<'_>,
    around: &Surroundings<'_>,
) -> Option<Source> {
    const KINDS: [&str; 8] = ["url", "file", "exec", "postgres", "webhook", "ping", "trace", "link"];
    let Wanted { preset, places, resource } = *wanted;
    let given: Vec<&str> = KINDS.into_iter().filter(|kind| section.has(kind)).collect();
    let base = preset.and_then(|preset| preset.base);
    let asked = given == ["url"] || (given.is_empty() && base.is_some());
    let mut items = KINDS.map(|kind| section.optional(kind));
    let http = if asked {
        http(section, items[0].take(), preset, places, known, around)
    } else {
        for key in ["query", "headers", "bearer", "ca"] {
            section.unsupported(key, "belongs to a feed with a `url`", "leave it out");
        }
        None
    };
    let [_, file, exec, postgres, webhook, ping, trace, link] = items;
    match given.as_slice() {
        ["url"] | [] if asked => http,
        ["file"] => file?.path(around.folder).map(Source::File),
        ["exec"] => {
            let item = exec?;
            let argv: Vec<_> = item.list("a program and its arguments")?;
            if argv.is_empty() {
                item.wrong("has no program", "exec: [/usr/local/bin/cost, --json]");
            }
            let words: Option<Vec<String>> =
                argv.iter().map(|item| item.text("a word of the command").map(str::to_owned)).collect();
            words.filter(|words| !words.is_empty()).map(Source::Exec)
        }
        ["postgres"] => databases(&postgres?, resource, places?, known).map(Source::Postgres),
        ["webhook"] => {
            let mut section = webhook?.section()?;
            let secret = section.required("secret", "secret: {file: PATH} or {env: NAME}");
            section.finish();
            let item = secret?;
            let text = secret::read(&item, around)?;
            if text.len() < 16 {
                item.wrong(
                    "is too short to sign with",
                    "16 characters or more, such as from `openssl rand -hex 32`",
                );
                return None;
            }
            Some(Source::Webhook(Secret(text)))
        }
        ["ping"] => path::hosts(&ping?, known).map(How::Ping).map(path::source),
        ["trace"] => path::hosts(&trace?, known).map(How::Trace).map(path::source),
        ["link"] => path::links(&link?, known).map(How::Link).map(path::source),
        [] => {
            section.item.wrong("has no source", format!("one of {}", KINDS.join(", ")));
            None
        }
        several => {
            section.item.wrong(format!("has {}", several.join(" and ")), "one of them");
            None
        }
    }
}

/// `{query}`: the databases of the feed's resource.
fn databases(
    item: &Item<'_>,
    resource: Option<&str>,
    places: &Places,
    known: &Known<'_>,
) -> Option<Databases> {
    let mut section = item.section()?;
    let query = section.optional("query").map(|item| item.text("SQL that gives one number"));
    section.finish();
    let Some(resource) = resource else {
        item.wrong_key("needs to know whose databases to ask", "resource: NAME beside it");
        return None;
    };
    // A resource that could not be read has noted why.
    let placements = known.resources_read.get(resource)?.placements.values();
    let databases: Vec<_> = placements
        .filter(|placement| places.include(&placement.zone))
        .filter_map(|placement| Some((placement.zone.clone(), placement.postgres.as_ref()?.dsn.clone())))
        .collect();
    if databases.is_empty() {
        item.wrong_key(
            format!("asks databases, and `{resource}` has none"),
            "a resource with postgres: {dsn: …}",
        );
        return None;
    }
    Some(Databases { databases, query: query.map_or(Some(ACTIVITY), |query| query)?.to_owned() })
}

fn http(
    section: &mut Section<'_>,
    url: Option<Item<'_>>,
    preset: Option<&Preset>,
    places: Option<&Places>,
    known: &Known<'_>,
    around: &Surroundings<'_>,
) -> Option<Source> {
    let owner = section.item.clone();
    let query = match preset.filter(|preset| preset.asks_query()) {
        Some(preset) => {
            let item = section.required("query", "query: what to ask for");
            item.and_then(|item| item.text(&format!("what to ask {} for", preset.name)).map(str::to_owned))
        }
        None => {
            section.unsupported("query", "is for presets that ask one", "put it into the url");
            Some(String::new())
        }
    };
    let mut headers = headers(section, around);
    if let Some(item) = section.optional("bearer") {
        let token =
            secret::read(&item, around).and_then(|token| header_value(&item, format!("Bearer {token}")));
        headers = headers.zip(token).map(|(mut headers, token)| {
            headers.push((http::header::AUTHORIZATION, token));
            headers
        });
    }
    let authority = section.optional("ca").map(|item| {
        let path = item.path(around.folder)?;
        if let Err(error) = (around.read)(&path) {
            let what = format!("cannot read {}: {}", path.display(), secret::reason(&error));
            item.wrong(what, "a PEM file that this process may read");
            return None;
        }
        Some(path)
    });
    let at = url.as_ref().unwrap_or(&owner);
    let text = match &url {
        Some(item) => item.text("a URL such as https://status.example")?.to_owned(),
        None => preset?.base?.to_owned(),
    };
    let mut url = absolute(at, &text)?;
    if let Some(preset) = preset.filter(|_| url.path() == "/" && url.query().is_none()) {
        let path = fill(at, preset, &query?, places?)?;
        url = match url.join(&path) {
            Ok(url) => url,
            Err(error) => {
                at.wrong(format!("does not go with the preset: {error}"), "the whole URL");
                return None;
            }
        };
    }
    // What cannot be asked anyhow is better said now. A host's address is only known when it is asked.
    if let Err(why) = known.egress?.host(&url, &url) {
        at.wrong(why, "a host that node.egress allows");
        return None;
    }
    let authority = authority.map_or(Some(None), |path| path.map(Some))?;
    Some(Source::Http(Request { url, headers: headers?, authority }))
}

/// A URL of HTTP, without credentials.
pub(super) fn absolute(item: &Item<'_>, text: &str) -> Option<Url> {
    let right = "a URL such as https://status.example";
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => {
            item.wrong(format!("is not a URL: {error}"), right);
            return None;
        }
    };
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        item.wrong(format!("`{}` is neither http nor https", url.scheme()), right);
        return None;
    }
    if !url.username().is_empty() || url.password().is_some() {
        item.wrong(
            "holds a user or a password",
            "headers: {authorization: {file: PATH}} or bearer: {file: PATH}",
        );
        return None;
    }
    Some(url)
}

/// The preset's path for this query and these zones.
fn fill(item: &Item<'_>, preset: &Preset, query: &str, places: &Places) -> Option<String> {
    let mut path = preset.path.replace("{query}", &encoded(query));
    if preset.asks_location() {
        let (mut latitudes, mut longitudes) = (Vec::new(), Vec::new());
        for place in places.all() {
            let Some((latitude, longitude)) = place.location else {
                item.wrong(
                    format!("asks for the location of zone {}, which has none", place.zone),
                    format!("zones.{}.location, or zones: [those that have one]", place.zone),
                );
                return None;
            };
            latitudes.push(latitude.to_string());
            longitudes.push(longitude.to_string());
        }
        path = path.replace("{latitude}", &latitudes.join(",")).replace("{longitude}", &longitudes.join(","));
    }
    Some(path)
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// Values are text, or secrets.
pub(super) fn headers(
    section: &mut Section<'_>,
    around: &Surroundings<'_>,
) -> Option<Vec<(HeaderName, Secret)>> {
    let Some(item) = section.optional("headers") else { return Some(Vec::new()) };
    let Value::Map(_) = item.value() else {
        item.wrong("is not a mapping from names to values", "headers: {x-api-key: {file: PATH}}");
        return None;
    };
    let mut found = Some(Vec::new());
    for (name, item) in item.named("values")? {
        let value = match item.value() {
            Value::Map(_) => secret::read(&item, around),
            _ => item.text("text, {file: PATH} or {env: NAME}").map(str::to_owned),
        };
        let value = value.and_then(|value| header_value(&item, value));
        let name = HeaderName::try_from(name)
            .map_err(|_| item.wrong_key("is not the name of a header", "a name such as x-api-key"))
            .ok();
        match (&mut found, name, value) {
            (Some(found), Some(name), Some(value)) => found.push((name, value)),
            _ => found = None,
        }
    }
    found
}

fn header_value(item: &Item<'_>, value: String) -> Option<Secret> {
    if http::HeaderValue::from_str(&value).is_err() {
        item.wrong("has a letter that no header may have", "one line of plain text");
        return None;
    }
    Some(Secret(value))
}
