//! Where the regions of clouds are: `config/zones.yaml`, built in.
//!
//! It fills in what a zone of the configuration leaves out; what the configuration says wins.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// A region of a provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// The town.
    pub place: String,
    /// ISO 3166-1 alpha-2.
    pub country: String,
    /// Who balances the electricity there.
    pub grid: String,
    /// Latitude and longitude, degrees.
    pub location: (f64, f64),
}

/// Regions by name, by provider.
pub type Catalogue = BTreeMap<String, BTreeMap<String, Region>>;

static BUILT_IN: LazyLock<Catalogue> = LazyLock::new(|| {
    // A test reads it: it cannot fail in a build that passed.
    serde_saphyr::from_str(include_str!("../../../config/zones.yaml")).expect("config/zones.yaml is valid")
});

/// The built-in catalogue.
pub fn built_in() -> &'static Catalogue {
    &BUILT_IN
}

#[cfg(test)]
mod tests {
    use migration::zones::Location;

    use super::built_in;

    #[test]
    fn every_region_is_on_the_globe() {
        let providers: Vec<&str> = built_in().keys().map(String::as_str).collect();
        assert_eq!(providers, ["aws", "azure", "digitalocean", "gcp", "hetzner", "ovh"]);
        for (provider, regions) in built_in() {
            for (name, region) in regions {
                let (latitude, longitude) = region.location;
                assert!(Location::new(latitude, longitude).is_some(), "{provider}/{name}");
                assert!(region.country.len() == 2 && !region.grid.is_empty(), "{provider}/{name}");
            }
        }
    }

    #[test]
    fn one_town_is_described_alike_everywhere() {
        let all: Vec<_> = built_in().values().flat_map(|regions| regions.values()).collect();
        for one in &all {
            for other in
                all.iter().filter(|other| (&other.place, &other.country) == (&one.place, &one.country))
            {
                assert_eq!((&one.grid, one.location), (&other.grid, other.location), "{}", one.place);
            }
        }
    }

    /// Towns of one electricity grid are near each other, and a country's too: a slipped digit or sign shows.
    #[test]
    fn nobody_is_far_from_the_own_grid() {
        let all: Vec<_> = built_in().values().flat_map(|regions| regions.values()).collect();
        for one in &all {
            for other in all.iter().filter(|other| other.grid == one.grid) {
                assert_eq!(one.country, other.country, "{} and {}", one.place, other.place);
                let at =
                    |region: &super::Region| Location::new(region.location.0, region.location.1).unwrap();
                let km = at(one).distance_km(at(other));
                assert!(km < 1_500.0, "{} and {} are {km:.0} km apart", one.place, other.place);
            }
        }
    }
}
