//! Known services: where they answer, how the answer is read, what it means. See `docs/feeds.md`.

use std::time::Duration;

use super::Use;
use super::decode::Decode;

/// What a preset fills in where the configuration is silent.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Its name in files.
    pub name: &'static str,
    /// The service itself, where there is only one.
    pub base: Option<&'static str>,
    /// Path and query, where the URL has none. `{query}`, `{latitude}` and `{longitude}` are filled in.
    pub path: &'static str,
    /// How the answer is read.
    pub decode: Decode,
    /// The jq program.
    pub map: &'static str,
    /// What it is for; none: the configuration must say.
    pub serves: Option<Use>,
    /// How often it is asked.
    pub every: Duration,
    /// Longest answer, bytes.
    pub max_bytes: u64,
}

impl Preset {
    /// Whether the configuration must give a `query`.
    pub fn asks_query(&self) -> bool {
        self.path.contains("{query}")
    }

    /// Whether the zones must have a location.
    pub fn asks_location(&self) -> bool {
        self.path.contains("{latitude}")
    }

    /// The preset of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|preset| preset.name == name)
    }
}

const MIB: u64 = 1 << 20;

/// Every preset.
pub const PRESETS: [Preset; 9] = [
    Preset {
        name: "opencost",
        base: None,
        path: "/allocation?window=1h&aggregate=cluster",
        decode: Decode::Json,
        map: include_str!("presets/opencost.jq"),
        serves: Some(Use::Cost),
        every: Duration::from_secs(5 * 60),
        max_bytes: 4 * MIB,
    },
    Preset {
        name: "prometheus",
        base: None,
        path: "/api/v1/query?query={query}",
        decode: Decode::Json,
        map: include_str!("presets/prometheus.jq"),
        serves: None,
        every: Duration::from_secs(15),
        max_bytes: MIB,
    },
    Preset {
        name: "open-meteo",
        base: Some("https://api.open-meteo.com"),
        path: "/v1/forecast?latitude={latitude}&longitude={longitude}\
               &hourly=temperature_2m,dew_point_2m,relative_humidity_2m,wind_speed_10m,wind_gusts_10m,precipitation,\
               pressure_msl,visibility&forecast_days=2&timeformat=unixtime&timezone=GMT",
        decode: Decode::Json,
        map: include_str!("presets/open-meteo.jq"),
        serves: Some(Use::Weather),
        every: Duration::from_secs(30 * 60),
        max_bytes: MIB,
    },
    Preset {
        name: "gdelt-timeline",
        base: Some("https://api.gdeltproject.org"),
        path: "/api/v2/doc/doc?query={query}&mode=timelinevol&timespan=1d&format=json",
        decode: Decode::Json,
        map: include_str!("presets/gdelt-timeline.jq"),
        serves: Some(Use::Events),
        every: Duration::from_secs(15 * 60),
        max_bytes: MIB,
    },
    Preset {
        name: "cloudflare-radar-outages",
        base: Some("https://api.cloudflare.com"),
        path: "/client/v4/radar/annotations/outages?dateRange=7d&limit=100&format=json",
        decode: Decode::Json,
        map: include_str!("presets/cloudflare-radar-outages.jq"),
        serves: Some(Use::Events),
        every: Duration::from_secs(10 * 60),
        max_bytes: 4 * MIB,
    },
    Preset {
        name: "statuspage",
        base: None,
        path: "/api/v2/scheduled-maintenances.json",
        decode: Decode::Json,
        map: include_str!("presets/statuspage.jq"),
        serves: Some(Use::Maintenance),
        every: Duration::from_secs(5 * 60),
        max_bytes: 4 * MIB,
    },
    Preset {
        name: "gcp-incidents",
        base: Some("https://status.cloud.google.com"),
        path: "/incidents.json",
        decode: Decode::Json,
        map: include_str!("presets/gcp-incidents.jq"),
        serves: Some(Use::Events),
        every: Duration::from_secs(5 * 60),
        max_bytes: 32 * MIB,
    },
    Preset {
        name: "rss",
        base: None,
        path: "/",
        decode: Decode::Feed,
        map: include_str!("presets/rss.jq"),
        serves: Some(Use::Events),
        every: Duration::from_secs(5 * 60),
        max_bytes: 4 * MIB,
    },
    Preset {
        name: "ical",
        base: None,
        path: "/",
        decode: Decode::Calendar,
        map: include_str!("presets/ical.jq"),
        serves: Some(Use::Maintenance),
        every: Duration::from_secs(15 * 60),
        max_bytes: 4 * MIB,
    },
];

/// What the ways of measuring the path fill in, by the key of their source.
pub const PATHS: [Preset; 3] = [
    path("ping", include_str!("presets/ping.jq"), 5),
    path("trace", include_str!("presets/trace.jq"), 60),
    path("link", include_str!("presets/link.jq"), 5),
];

const fn path(name: &'static str, map: &'static str, every: u64) -> Preset {
    Preset {
        name,
        base: None,
        path: "/",
        decode: Decode::Json,
        map,
        serves: Some(Use::Path),
        every: Duration::from_secs(every),
        max_bytes: MIB,
    }
}
