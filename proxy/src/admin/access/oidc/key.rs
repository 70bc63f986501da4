//! The issuer's public keys (JWK Set, RFC 7517), and what they signed: pure.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use serde::Deserialize;

use super::jws::Algorithm;

/// Most keys of a set that are looked at.
const MOST: usize = 100;

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    id: Option<String>,
    /// The only algorithm that it is for; none: every one of its kind.
    only: Option<Algorithm>,
    material: Material,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Material {
    /// Modulus and exponent, big-endian.
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// Points, uncompressed (SEC 1, section 2.3.3).
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// A key as it is written. What else a key may say is of no concern here.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// Every key of the issuer that can check a signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeySet(Vec<Key>);

impl KeySet {
    /// Reads a JWK Set. Keys for other things, and of kinds that are not known, are left out (RFC 7517, section 5); a set without
    /// any other is an error: it would lock everybody out.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(bytes)
            .map_err(|error| format!("what it gives is no set of keys: {error}"))?;
        let read = |value| serde_json::from_value::<Jwk>(value).ok().and_then(Key::of);
        let keys: Vec<Key> = set.keys.into_iter().take(MOST).filter_map(read).collect();
        if keys.is_empty() {
            return Err(
                "none of its keys can check a signature (RSA from 2048 bits, P-256, P-384, Ed25519)".into()
            );
        }
        Ok(Self(keys))
    }

    /// The keys that may have signed this. A token without `kid` counts only where there is no choice (OpenID Connect Core,
    /// section 10.1).
    pub(super) fn of(&self, kid: Option<&str>, algorithm: Algorithm) -> Vec<Key> {
        let fitting = self.0.iter().filter(|key| key.fits(algorithm));
        match kid {
            Some(kid) => fitting.filter(|key| key.id.as_deref() == Some(kid)).cloned().collect(),
            None => {
                let all: Vec<Key> = fitting.cloned().collect();
                if all.len() == 1 { all } else { Vec::new() }
            }
        }
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Key {
    fn of(jwk: Jwk) -> Option<Self> {
        let signs = jwk.purpose.as_deref().is_none_or(|purpose| purpose == "sig")
            && jwk.key_ops.as_ref().is_none_or(|uses| uses.iter().any(|one| one == "verify"));
        if !signs {
            return None;
        }
        // An algorithm that is not known here, such as one for encryption, makes the key one for something else.
        let only = match &jwk.alg {
            Some(name) => Some(Algorithm::from_name(name)?),
            None => None,
        };
        let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
        let point = |length: usize| {
            let (x, y) = (bytes(&jwk.x)?, bytes(&jwk.y)?);
            // Exactly as long as the curve's field (RFC 7518, section 6.2.1.2).
            (x.len() == length && y.len() == length).then(|| [&[4], x.as_slice(), y.as_slice()].concat())
        };
        let material = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => {
                let without_zeros =
                    |bytes: Vec<u8>| bytes.into_iter().skip_while(|byte| *byte == 0).collect();
                let (n, e): (Vec<u8>, Vec<u8>) =
                    (without_zeros(bytes(&jwk.n)?), without_zeros(bytes(&jwk.e)?));
                // What ring checks with: 2048 to 8192 bits.
                if !(256..=1024).contains(&n.len()) {
                    return None;
                }
                Material::Rsa { n, e }
            }
            ("EC", Some("P-256")) => Material::P256(point(32)?),
            ("EC", Some("P-384")) => Material::P384(point(48)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes(&jwk.x).filter(|x| x.len() == 32)?),
            _ => return None,
        };
        let key = Self { id: jwk.kid, only, material };
        only.is_none_or(|algorithm| key.is_of(algorithm)).then_some(key)
    }

    /// Whether its kind is the algorithm's.
    fn is_of(&self, algorithm: Algorithm) -> bool {
        match &self.material {
            Material::Rsa { .. } => rsa(algorithm).is_some(),
            Material::P256(_) => algorithm == Algorithm::Es256,
            Material::P384(_) => algorithm == Algorithm::Es384,
            Material::Ed25519(_) => algorithm == Algorithm::EdDsa,
        }
    }

    fn fits(&self, algorithm: Algorithm) -> bool {
        self.only.is_none_or(|only| only == algorithm) && self.is_of(algorithm)
    }

    /// Whether it signed `message` by this algorithm.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], given: &[u8]) -> bool {
        let signed = |how: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(how, key).verify(message, given).is_ok()
        };
        self.fits(algorithm)
            && match &self.material {
                Material::Rsa { n, e } => rsa(algorithm)
                    .is_some_and(|how| RsaPublicKeyComponents { n, e }.verify(how, message, given).is_ok()),
                Material::P256(key) => signed(&signature::ECDSA_P256_SHA256_FIXED, key),
                Material::P384(key) => signed(&signature::ECDSA_P384_SHA384_FIXED, key),
                Material::Ed25519(key) => signed(&signature::ED25519, key),
            }
    }
}

/// How RSA is used by an algorithm; none: it is not.
fn rsa(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
        Algorithm::Es256 | Algorithm::Es384 | Algorithm::EdDsa => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::jws;
    use super::*;

    /// RFC 7515, appendices A.2 and A.3; RFC 8037, appendix A.4: what others signed.
    const RSA: &str = r#"{"kty":"RSA","kid":"r","e":"AQAB","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"}"#;
    const RSA_SIGNED: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    const P256: &str = r#"{"kty":"EC","crv":"P-256","kid":"p","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
    const P256_SIGNED: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    const ED: &str =
        r#"{"kty":"OKP","crv":"Ed25519","kid":"e","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    const ED_SIGNED: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";

    fn set(keys: &[&str]) -> Result<KeySet, String> {
        KeySet::parse(format!(r#"{{"keys":[{}]}}"#, keys.join(",")).as_bytes())
    }

    #[test]
    fn what_others_signed_is_verified_and_nothing_else() {
        let keys = set(&[RSA, P256, ED]).expect("a set");
        for (kid, token) in [("r", RSA_SIGNED), ("p", P256_SIGNED), ("e", ED_SIGNED)] {
            let jws = jws::parse(token).expect("a token");
            let algorithm = Algorithm::from_name(&jws.header.alg).expect("an algorithm");
            let key = keys.of(Some(kid), algorithm).pop().expect("the key");
            assert!(key.verifies(algorithm, jws.signed, &jws.signature), "{kid}");
            for at in [0, jws.signed.len() / 2, jws.signed.len() - 1] {
                let mut other = jws.signed.to_vec();
                other[at] ^= 1;
                assert!(!key.verifies(algorithm, &other, &jws.signature), "{kid}: {at}");
            }
            for (_, wrong) in Algorithm::ALL.iter().filter(|(_, wrong)| *wrong != algorithm) {
                assert!(!key.verifies(*wrong, jws.signed, &jws.signature), "{kid}: {wrong:?}");
            }
            assert!(!key.verifies(algorithm, jws.signed, &[]), "{kid}: no signature");
            assert!(!key.verifies(algorithm, jws.signed, &vec![0; jws.signature.len()]), "{kid}: zeros");
        }
    }

    #[test]
    fn a_key_is_found_by_its_id_and_kind() {
        let keys = set(&[RSA, P256, ED]).expect("a set");
        assert_eq!(keys.of(Some("r"), Algorithm::Ps512).len(), 1);
        assert_eq!(keys.of(Some("r"), Algorithm::Es256).len(), 0, "an RSA key is no curve's");
        assert_eq!(keys.of(Some("x"), Algorithm::Es256).len(), 0);
        assert_eq!(keys.of(None, Algorithm::Es256).len(), 1, "there is no choice");
        let other = P256.replace("\"p\"", "\"q\"");
        let two = set(&[P256, &other]).expect("a set");
        assert_eq!(two.of(None, Algorithm::Es256).len(), 0, "a token that names none of two");
        let only = set(&[&RSA.replace("\"kid\"", "\"alg\":\"PS256\",\"kid\"")]).expect("a set");
        assert_eq!(only.of(Some("r"), Algorithm::Rs256).len(), 0, "the key is for PS256 only");
    }

    #[test]
    fn keys_for_other_things_are_left_out() {
        let odd = [
            r#"{"kty":"oct","kid":"s","k":"c2VjcmV0","alg":"HS256"}"#.to_owned(),
            RSA.replace("\"kid\"", "\"use\":\"enc\",\"kid\""),
            RSA.replace("\"kid\"", "\"alg\":\"RSA-OAEP\",\"kid\""),
            RSA.replace("\"kid\"", "\"alg\":\"ES256\",\"kid\""),
            RSA.replace("\"kid\"", "\"key_ops\":[\"encrypt\"],\"kid\""),
            r#"{"kty":"RSA","kid":"short","e":"AQAB","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTY"}"#
                .to_owned(),
            P256.replace("P-256", "P-384"),
            P256.replace("P-256", "secp256k1"),
            ED.replace("Ed25519", "X25519"),
            r#"{"kty":17}"#.to_owned(),
            "null".to_owned(),
        ];
        for key in &odd {
            assert!(set(&[key]).is_err(), "{key}");
        }
        let mut all: Vec<&str> = odd.iter().map(String::as_str).collect();
        all.push(ED);
        assert_eq!(set(&all).expect("one is left").len(), 1);
        for text in ["", "[]", "{}", r#"{"keys":{}}"#] {
            assert!(KeySet::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
