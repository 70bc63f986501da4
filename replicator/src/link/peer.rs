//! Who is at the other end of a link, and what its certificate lets it take part in. Pure.
//!
//! A certificate names its node (DNS name) and may say for which zones and resources it is, as URIs among its subject
//! alternative names: `godwit:zone/eu-west`, `godwit:resource/orders`. Each side checks the other's before a byte of a stream
//! travels: whoever has the key of one node gets no more than that node had.

use rustls_pki_types::CertificateDer;

use crate::error::Error;

const ZONE: &str = "godwit:zone/";
const RESOURCE: &str = "godwit:resource/";

/// The authenticated other side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The one of its certificate's DNS names that is known here.
    pub name: String,
    /// Zones that its certificate is for; none: it does not say.
    pub zones: Vec<String>,
    /// Resources that its certificate is for; none: it does not say.
    pub resources: Vec<String>,
}

/// What of a certificate counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) dns: Vec<String>,
    zones: Vec<String>,
    resources: Vec<String>,
}

impl Names {
    pub(super) fn read(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let certificate = webpki::EndEntityCert::try_from(certificate)
            .map_err(|error| Error::Link(format!("certificate: {error}")))?;
        let mut names =
            Self { dns: certificate.valid_dns_names().map(str::to_owned).collect(), ..Self::default() };
        for uri in certificate.valid_uri_names() {
            if let Some(zone) = uri.strip_prefix(ZONE) {
                names.zones.push(zone.to_owned());
            } else if let Some(resource) = uri.strip_prefix(RESOURCE) {
                names.resources.push(resource.to_owned());
            }
        }
        Ok(names)
    }

    pub(super) fn into_peer(self, name: String) -> Peer {
        Peer { name, zones: self.zones, resources: self.resources }
    }
}

impl Peer {
    /// Whether it may run the half of a stream of `resource` that is in `zone`; the error is for both sides' people.
    ///
    /// With `scoped`, a certificate that does not say for which zones and resources it is may nothing.
    pub fn may(&self, resource: &str, zone: &str, scoped: bool) -> Result<(), String> {
        for (what, wanted, listed) in [("zone", zone, &self.zones), ("resource", resource, &self.resources)] {
            if listed.is_empty() && scoped {
                return Err(format!(
                    "the certificate of {} does not say for which {what}s it is (godwit:{what}/…), and \
                     node.link.scoped asks for that",
                    self.name
                ));
            }
            if !listed.is_empty() && !listed.iter().any(|listed| listed == wanted) {
                return Err(format!(
                    "the certificate of {} is for {what} {}, not for {wanted}",
                    self.name,
                    listed.join(", ")
                ));
            }
        }
        Ok(())
    }
}

/// The URI in a certificate for this zone.
pub fn zone_uri(zone: &str) -> String {
    format!("{ZONE}{zone}")
}

/// The URI in a certificate for this resource.
pub fn resource_uri(resource: &str) -> String {
    format!("{RESOURCE}{resource}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(zones: &[&str], resources: &[&str]) -> Peer {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Peer { name: "edge-1".into(), zones: owned(zones), resources: owned(resources) }
    }

    #[test]
    fn a_certificate_limits_what_it_names() {
        assert_eq!(peer(&[], &[]).may("orders", "west", false), Ok(()), "it limits nothing");
        assert_eq!(peer(&["west", "east"], &["orders"]).may("orders", "east", true), Ok(()));
        let refusal = |peer: Peer, scoped| peer.may("orders", "west", scoped).expect_err("refused");
        insta::assert_snapshot!([
            refusal(peer(&["east", "north"], &[]), false),
            refusal(peer(&[], &["payments"]), false),
            refusal(peer(&[], &["orders"]), true),
            refusal(peer(&["west"], &[]), true),
        ].join("\n"), @r"
        the certificate of edge-1 is for zone east, north, not for west
        the certificate of edge-1 is for resource payments, not for orders
        the certificate of edge-1 does not say for which zones it is (godwit:zone/…), and node.link.scoped asks for that
        the certificate of edge-1 does not say for which resources it is (godwit:resource/…), and node.link.scoped asks for that
        ");
    }

    #[test]
    fn names_come_out_of_a_certificate_as_they_went_in() {
        let mut params = rcgen::CertificateParams::new(vec!["edge-1".to_owned()]).expect("name");
        for uri in [zone_uri("west"), resource_uri("orders"), "https://elsewhere.example/x".to_owned()] {
            params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().expect("ASCII")));
        }
        let key = rcgen::KeyPair::generate().expect("key");
        let certificate = params.self_signed(&key).expect("certificate");
        let names = Names::read(certificate.der()).expect("readable");
        assert_eq!(names.dns, ["edge-1"]);
        assert_eq!(names.into_peer("edge-1".into()), peer(&["west"], &["orders"]));
    }
}
