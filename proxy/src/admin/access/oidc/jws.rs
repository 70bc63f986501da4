//! The compact serialization of a JWS (RFC 7515, section 7.1), taken apart: pure, and nothing of it is believed yet.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::Rejected;

/// Longest token, bytes. Issuers that put every group into it stay below; a header may not be longer at any rate.
const LONGEST: usize = 16 << 10;
/// Longest `kid`, bytes.
const LONGEST_KID: usize = 256;

/// Signatures that can be checked: asymmetric ones. `none` and the HMACs (`HS256`, …) are not among them, so that
/// no file can turn them on: the issuer's public key would then be the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names of RFC 7518, section 3.1")]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    /// Each with its name in tokens and files.
    pub const ALL: [(&'static str, Self); 9] = [
        ("RS256", Self::Rs256),
        ("RS384", Self::Rs384),
        ("RS512", Self::Rs512),
        ("PS256", Self::Ps256),
        ("PS384", Self::Ps384),
        ("PS512", Self::Ps512),
        ("ES256", Self::Es256),
        ("ES384", Self::Es384),
        ("EdDSA", Self::EdDsa),
    ];

    /// The one of this name; names are case-sensitive. `Ed25519` is the newer name (RFC 9864) of what is `EdDSA` here.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = if name == "Ed25519" { "EdDSA" } else { name };
        Self::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, algorithm)| algorithm)
    }
}

/// What is read of the header.
#[derive(Debug, Deserialize)]
pub struct Header {
    /// The algorithm's name.
    pub alg: String,
    /// Which of the issuer's keys.
    pub kid: Option<String>,
    typ: Option<String>,
    /// Extensions that must be understood: none is.
    crit: Option<serde_json::Value>,
}

/// A token in parts.
#[derive(Debug)]
pub struct Jws<'a> {
    /// Its header.
    pub header: Header,
    /// What the signature is of.
    pub signed: &'a [u8],
    /// The claims' bytes.
    pub payload: Vec<u8>,
    /// The signature.
    pub signature: Vec<u8>,
}

/// Takes `token` apart.
pub fn parse(token: &str) -> Result<Jws<'_>, Rejected> {
    let wrong = Rejected::Malformed;
    if token.len() > LONGEST {
        return Err(wrong("it is longer than 16 KiB"));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(wrong("it has no three parts"))?;
    let (header, payload) = signed.split_once('.').ok_or(wrong("it has no three parts"))?;
    let bytes = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| wrong("a part is not base64url"));
    let header: Header =
        serde_json::from_slice(&bytes(header)?).map_err(|_| wrong("its header is not what RFC 7515 says"))?;
    if header.crit.is_some() {
        return Err(wrong("its header has `crit`, and nothing is understood that would stand there"));
    }
    if header.kid.as_ref().is_some_and(|kid| kid.len() > LONGEST_KID) {
        return Err(wrong("its `kid` is longer than 256 bytes"));
    }
    // What a token of the issuer is for else (logout, security events) must not pass for one that lets somebody in.
    let typ = header.typ.as_deref().unwrap_or("JWT");
    let typ =
        typ.get(..12).filter(|head| head.eq_ignore_ascii_case("application/")).map_or(typ, |_| &typ[12..]);
    if !typ.eq_ignore_ascii_case("JWT") && !typ.eq_ignore_ascii_case("at+jwt") {
        return Err(wrong("its `typ` is neither JWT nor at+jwt"));
    }
    Ok(Jws { signed: signed.as_bytes(), payload: bytes(payload)?, signature: bytes(signature)?, header })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str) -> String {
        format!("{}.{}.AA", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode("{}"))
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let crit = token(r#"{"alg":"ES256","crit":["b64"],"b64":false}"#);
        let typ = token(r#"{"alg":"ES256","typ":"logout+jwt"}"#);
        let kid = token(&format!(r#"{{"alg":"ES256","kid":"{}"}}"#, "k".repeat(257)));
        let twice = token(r#"{"alg":"ES256","alg":"none"}"#);
        let long = format!("{}.AA", token("{}").repeat(1000));
        let cases =
            ["", "a.b", "a.b.c.d", "!!.AA.AA", "e30=.e30.AA", &token("{}"), &crit, &typ, &kid, &twice, &long];
        let said: Vec<String> = cases.iter().map(|case| parse(case).unwrap_err().to_string()).collect();
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn names_of_access_tokens_pass() {
        for typ in ["JWT", "jwt", "at+jwt", "application/at+jwt"] {
            let parsed = token(&format!(r#"{{"alg":"ES256","typ":"{typ}"}}"#));
            assert!(parse(&parsed).is_ok(), "{typ}");
        }
        assert!(
            parse(&token(r#"{"alg":"none"}"#)).is_ok(),
            "whether an algorithm counts is asked afterwards"
        );
    }

    #[test]
    fn neither_none_nor_a_shared_secret_is_an_algorithm() {
        for name in ["none", "None", "NONE", "HS256", "HS384", "HS512", "rs256", "", "ES512", "ES256K"] {
            assert_eq!(Algorithm::from_name(name), None, "{name}");
        }
        assert_eq!(Algorithm::from_name("Ed25519"), Some(Algorithm::EdDsa));
    }
}
