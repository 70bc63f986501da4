//! Signatures of inbound webhooks: HMAC-SHA256 over the moment and the body, compared in constant time.
//!
//! `Godwit-Signature: t=UNIX_SECONDS,v1=HEX`, where HEX signs `UNIX_SECONDS.BODY`. A moment that is off by more than
//! five minutes, or before that of the last accepted post, is refused: what was sent once cannot be sent again.

use std::fmt::Write as _;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use migration::units::Timestamp;
use sha2::Sha256;

use super::Secret;

/// The header.
pub const HEADER: &str = "godwit-signature";
/// How far the sender's clock may be off.
pub(super) const SKEW: Duration = Duration::from_secs(5 * 60);

/// The value of the header for `body` at `now`.
pub fn sign(secret: &Secret, body: &[u8], now: Timestamp) -> String {
    let seconds = (now.0 / 1000).to_string();
    let digest = mac(secret, &seconds, body).finalize().into_bytes();
    let mut header = format!("t={seconds},v1=");
    for byte in digest {
        // Writing to a text cannot fail.
        let _ = write!(header, "{byte:02x}");
    }
    header
}

/// Checks `header`; gives back the moment it was signed at. `last`: that of the last accepted post.
pub fn verify(
    secret: &Secret,
    header: Option<&str>,
    body: &[u8],
    last: Option<Timestamp>,
    now: Timestamp,
) -> Result<Timestamp, String> {
    let header = header.ok_or("the header Godwit-Signature is missing: t=UNIX_SECONDS,v1=HEX")?;
    let part = |name: &str| header.split(',').find_map(|part| part.trim().strip_prefix(name));
    let (Some(seconds), Some(hex)) = (part("t="), part("v1=")) else {
        return Err("Godwit-Signature is not t=UNIX_SECONDS,v1=HEX".into());
    };
    let digest = bytes_of(hex).ok_or("the signature is not hexadecimal")?;
    // Before anything else of the header is believed.
    mac(secret, seconds, body)
        .verify_slice(&digest)
        .map_err(|_| "the signature is not that of this body with this feed's secret".to_owned())?;
    let signed = seconds.parse::<u64>().map_err(|_| "the moment of the signature is no number")?;
    let signed = Timestamp(signed.saturating_mul(1000));
    let off = signed.since(now).max(now.since(signed));
    if off > SKEW {
        return Err(format!(
            "it was signed {} s from now; at most {} s are allowed",
            off.as_secs(),
            SKEW.as_secs()
        ));
    }
    if last.is_some_and(|last| signed <= last) {
        return Err("it was signed no later than the last accepted post".into());
    }
    Ok(signed)
}

fn mac(secret: &Secret, seconds: &str, body: &[u8]) -> Hmac<Sha256> {
    #[allow(clippy::expect_used, reason = "HMAC takes a key of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.0.as_bytes()).expect("a key of any length");
    mac.update(seconds.as_bytes());
    mac.update(b".");
    mac.update(body);
    mac
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) || !hex.is_ascii() {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_650_000_000);

    #[test]
    fn a_right_signature_passes_once() {
        let secret = Secret("s3cret".into());
        let header = sign(&secret, b"{}", NOW);
        // From `printf '1795650000.{}' | openssl dgst -sha256 -hmac s3cret`.
        assert_eq!(
            header,
            "t=1795650000,v1=eb99d31dfa240cd1a113c7060e2f6d27140d74efafc06ee317305bc5fb6cf969"
        );
        let signed = verify(&secret, Some(&header), b"{}", None, NOW).unwrap();
        assert_eq!(signed, NOW);
        let again = verify(&secret, Some(&header), b"{}", Some(signed), NOW).unwrap_err();
        assert_eq!(again, "it was signed no later than the last accepted post");
    }

    #[test]
    fn wrong_signatures_say_why() {
        let secret = Secret("s3cret".into());
        let header = sign(&secret, b"{}", NOW);
        let why = |header: Option<&str>, body: &[u8], now: Timestamp| {
            verify(&secret, header, body, None, now).unwrap_err()
        };
        assert!(why(None, b"{}", NOW).contains("missing"));
        assert!(why(Some("v1=00"), b"{}", NOW).contains("is not t="));
        assert!(why(Some("t=1,v1=0g"), b"{}", NOW).contains("hexadecimal"));
        assert!(why(Some("t=1,v1=é0"), b"{}", NOW).contains("hexadecimal"));
        assert!(why(Some(&header), b"{} ", NOW).contains("not that of this body"));
        assert!(why(Some(&sign(&Secret("other".into()), b"{}", NOW)), b"{}", NOW).contains("not that of"));
        let late = NOW.after(Duration::from_secs(301));
        assert!(why(Some(&header), b"{}", late).contains("301 s from now"));
        // The moment is signed, too.
        let moved = header.replace("t=1795650000", "t=1795650300");
        assert!(why(Some(&moved), b"{}", late).contains("not that of"));
    }
}
