//! SCRAM-SHA-256 on both sides (RFC 5802, RFC 7677): the server's towards clients, the client's towards databases.
//!
//! The server knows a *verifier* (salt, iterations, StoredKey, ServerKey), not the password. A client that proves itself reveals its
//! ClientKey to who knows StoredKey; with it the front logs in at a database that has the same verifier, and never knows the password.
//! User names are not looked at: PostgreSQL takes the one of the startup packet.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::base64;

/// The mechanism without channel binding.
pub const PLAIN: &str = "SCRAM-SHA-256";
/// The mechanism with.
pub const PLUS: &str = "SCRAM-SHA-256-PLUS";

/// SHA-256's output.
pub type Key = [u8; 32];

/// What a server keeps of a password, as in `pg_authid.rolpassword`.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    /// How often the password is hashed.
    pub iterations: u32,
    /// With what.
    pub salt: Vec<u8>,
    /// Hash of the client's key.
    pub stored_key: Key,
    /// The server's key.
    pub server_key: Key,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

/// A verifier that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no SCRAM-SHA-256 verifier")]
pub struct NoVerifier;

impl std::str::FromStr for Verifier {
    type Err = NoVerifier;

    /// `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`.
    fn from_str(text: &str) -> Result<Self, NoVerifier> {
        let parts = || {
            let rest = text.strip_prefix("SCRAM-SHA-256$")?;
            let (how, keys) = rest.split_once('$')?;
            let (iterations, salt) = how.split_once(':')?;
            let (stored, server) = keys.split_once(':')?;
            let iterations = iterations.parse().ok().filter(|count| *count > 0)?;
            let salt = base64::decode(salt).filter(|salt| !salt.is_empty())?;
            let key = |text| base64::decode(text)?.try_into().ok();
            Some(Self { iterations, salt, stored_key: key(stored)?, server_key: key(server)? })
        };
        parts().ok_or(NoVerifier)
    }
}

/// What proves to a database that one is the client, and shows that the database is the one that knows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// Recovered from a client's proof, or derived from its password.
    pub client_key: Key,
    /// To check the database's answer.
    pub server_key: Key,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

/// How one logs in at a database.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// By what a client's proof revealed; good where the verifier is the same.
    Keys(Box<(Verifier, Keys)>),
    /// By a password.
    Password(Vec<u8>),
    /// Not at all: the database asks nothing.
    None,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keys(_) => "Keys",
            Self::Password(_) => "Password",
            Self::None => "None",
        })
    }
}

/// Why an exchange fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// The other side does not speak it.
    #[error("malformed SCRAM message ({0})")]
    Malformed(&'static str),
    /// The client has another password, or there is none.
    #[error("password authentication failed")]
    Unproven,
    /// The channel is another one: somebody is between.
    #[error("SCRAM channel binding check failed")]
    Channel,
    /// The client could bind and thinks that the server cannot: somebody took the offer away.
    #[error("SCRAM channel binding negotiation error")]
    Downgraded,
    /// The database has another verifier for this role.
    #[error("the verifier of this role differs between the front and the database")]
    OtherVerifier,
    /// It did not prove that it knows the client.
    #[error("the database did not prove that it knows the role's password")]
    Impostor,
    /// Channel binding is demanded, and not to be had.
    #[error(
        "channel_binding=require, and the database asks for something else than SCRAM-SHA-256-PLUS, or there is no TLS to bind to"
    )]
    Unbound,
}

/// The server's side. Give it the client's first message, then its final one.
pub struct Server<'v> {
    verifier: &'v Verifier,
    /// The verifier is made up: nobody gets in.
    doomed: bool,
    header: String,
    binding: Vec<u8>,
    first_bare: String,
    answer: String,
    nonce: String,
}

impl<'v> Server<'v> {
    /// Takes the client's first message; `answer()` is what to send. `plus`: the client chose channel binding, to `end_point`;
    /// `nonce` is fresh and printable without commas.
    pub fn begin(
        verifier: &'v Verifier,
        doomed: bool,
        first: &[u8],
        plus: bool,
        end_point: Option<&[u8]>,
        nonce: &str,
    ) -> Result<Self, Failed> {
        let first = std::str::from_utf8(first).map_err(|_| Failed::Malformed("not UTF-8"))?;
        let (flag, rest) = first.split_once(',').ok_or(Failed::Malformed("no header"))?;
        let (who, bare) = rest.split_once(',').ok_or(Failed::Malformed("no header"))?;
        if !who.is_empty() {
            return Err(Failed::Malformed("an authorization identity"));
        }
        match (flag, plus, end_point) {
            ("p=tls-server-end-point", true, Some(_)) | ("n", false, _) | ("y", false, None) => {}
            ("y", false, Some(_)) => return Err(Failed::Downgraded),
            (_, true, _) => return Err(Failed::Malformed("an unsupported channel binding")),
            _ => return Err(Failed::Malformed("an unexpected channel binding")),
        }
        let mut fields = bare.split(',');
        if fields.next().is_none_or(|name| !name.starts_with("n=")) {
            return Err(Failed::Malformed("no user name, or an extension"));
        }
        let theirs = fields.next().and_then(|field| field.strip_prefix("r="));
        let theirs =
            theirs.filter(|nonce| !nonce.is_empty() && nonce.bytes().all(|byte| byte.is_ascii_graphic()));
        let nonce = format!("{}{nonce}", theirs.ok_or(Failed::Malformed("no nonce"))?);
        let answer = format!("r={nonce},s={},i={}", base64::encode(&verifier.salt), verifier.iterations);
        Ok(Self {
            verifier,
            doomed,
            header: format!("{flag},,"),
            binding: if plus { end_point.unwrap_or_default().to_vec() } else { Vec::new() },
            first_bare: bare.to_owned(),
            answer,
            nonce,
        })
    }

    /// What to send after the first message.
    pub fn answer(&self) -> &str {
        &self.answer
    }

    /// Takes the client's final message: what to send, and what its proof revealed.
    pub fn finish(self, last: &[u8]) -> Result<(String, Keys), Failed> {
        let last = std::str::from_utf8(last).map_err(|_| Failed::Malformed("not UTF-8"))?;
        let (without_proof, proof) = last.rsplit_once(",p=").ok_or(Failed::Malformed("no proof"))?;
        let mut fields = without_proof.split(',');
        let binding = fields.next().and_then(|field| field.strip_prefix("c="));
        let binding = binding.and_then(base64::decode).ok_or(Failed::Malformed("no channel binding"))?;
        let expected = [self.header.as_bytes(), &self.binding].concat();
        if !bool::from(binding[..].ct_eq(&expected[..])) {
            return Err(Failed::Channel);
        }
        if fields.next().and_then(|field| field.strip_prefix("r=")) != Some(&self.nonce) {
            return Err(Failed::Malformed("another nonce"));
        }
        let proof: Key = base64::decode(proof)
            .and_then(|proof| proof.try_into().ok())
            .ok_or(Failed::Malformed("no proof"))?;
        let exchange = format!("{},{},{without_proof}", self.first_bare, self.answer);
        let client_key = xor(proof, hmac(&self.verifier.stored_key, exchange.as_bytes()));
        let stored: Key = Sha256::digest(client_key).into();
        let proven = stored[..].ct_eq(&self.verifier.stored_key[..]);
        if self.doomed || !bool::from(proven) {
            return Err(Failed::Unproven);
        }
        let signature = hmac(&self.verifier.server_key, exchange.as_bytes());
        let keys = Keys { client_key, server_key: self.verifier.server_key };
        Ok((format!("v={}", base64::encode(&signature)), keys))
    }
}

/// The client's side.
pub struct Client<'s> {
    secret: &'s Secret,
    /// With its final comma.
    header: &'static str,
    binding: Vec<u8>,
    nonce: String,
    exchange: String,
    server_key: Key,
}

impl<'s> Client<'s> {
    /// `end_point`: bind to it; `could_bind`: we could, and the server does not offer it.
    pub fn new(secret: &'s Secret, end_point: Option<&[u8]>, could_bind: bool, nonce: String) -> Self {
        let header = match (end_point, could_bind) {
            (Some(_), _) => "p=tls-server-end-point,,",
            (None, true) => "y,,",
            (None, false) => "n,,",
        };
        let binding = end_point.unwrap_or_default().to_vec();
        Self { secret, header, binding, nonce, exchange: String::new(), server_key: [0; 32] }
    }

    /// The first message.
    pub fn first(&self) -> String {
        format!("{}n=,r={}", self.header, self.nonce)
    }

    /// Takes the server's first message; returns the final one.
    pub fn last(&mut self, first: &[u8]) -> Result<String, Failed> {
        let first = std::str::from_utf8(first).map_err(|_| Failed::Malformed("not UTF-8"))?;
        let mut fields = first.split(',');
        let mut field = |name| fields.next().and_then(|field| field.strip_prefix(name));
        let (nonce, salt, iterations) = (field("r="), field("s="), field("i="));
        let nonce = nonce.filter(|nonce| nonce.len() > self.nonce.len() && nonce.starts_with(&self.nonce));
        let nonce = nonce.ok_or(Failed::Malformed("another nonce"))?;
        let salt = salt.and_then(base64::decode).ok_or(Failed::Malformed("no salt"))?;
        let iterations = iterations.and_then(|count| count.parse().ok()).filter(|count| *count > 0);
        let iterations: u32 = iterations.ok_or(Failed::Malformed("no iterations"))?;
        let keys = match self.secret {
            Secret::Password(password) => derive(password, &salt, iterations)?,
            Secret::Keys(known) if known.0.salt == salt && known.0.iterations == iterations => {
                known.1.clone()
            }
            Secret::Keys(_) | Secret::None => return Err(Failed::OtherVerifier),
        };
        let binding = base64::encode(&[self.header.as_bytes(), &self.binding].concat());
        let without_proof = format!("c={binding},r={nonce}");
        self.exchange = format!("n=,r={},{first},{without_proof}", self.nonce);
        self.server_key = keys.server_key;
        let stored: Key = Sha256::digest(keys.client_key).into();
        let proof = xor(keys.client_key, hmac(&stored, self.exchange.as_bytes()));
        Ok(format!("{without_proof},p={}", base64::encode(&proof)))
    }

    /// Takes the server's final message.
    pub fn finish(&self, last: &[u8]) -> Result<(), Failed> {
        let signature = std::str::from_utf8(last).ok().and_then(|text| text.strip_prefix("v="));
        let signature = signature.and_then(base64::decode).ok_or(Failed::Impostor)?;
        let expected = hmac(&self.server_key, self.exchange.as_bytes());
        if bool::from(signature[..].ct_eq(&expected[..])) { Ok(()) } else { Err(Failed::Impostor) }
    }
}

/// More iterations than this would keep a thread busy for the database's pleasure.
const MOST_ITERATIONS: u32 = 1_000_000;

/// The keys of a password. It is taken as it is: where SASLprep would change it, the database must know it so changed.
fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Result<Keys, Failed> {
    if iterations > MOST_ITERATIONS {
        return Err(Failed::Malformed("too many iterations"));
    }
    let mut step = hmac(password, &[salt, &[0, 0, 0, 1]].concat());
    let mut salted = step;
    for _ in 1..iterations {
        step = hmac(password, &step);
        salted = xor(salted, step);
    }
    Ok(Keys { client_key: hmac(&salted, b"Client Key"), server_key: hmac(&salted, b"Server Key") })
}

/// The verifier of a password.
pub fn verifier(password: &[u8], salt: &[u8], iterations: u32) -> Result<Verifier, Failed> {
    let keys = derive(password, salt, iterations)?;
    let stored_key = Sha256::digest(keys.client_key).into();
    Ok(Verifier { iterations, salt: salt.to_vec(), stored_key, server_key: keys.server_key })
}

/// What a client of an unknown role is asked, so that it cannot tell: the same salt for the same name each time.
pub fn made_up(secret: &[u8], user: &str) -> Verifier {
    let salt = hmac(secret, user.as_bytes())[..16].to_vec();
    Verifier { iterations: 4096, salt, stored_key: [0; 32], server_key: [0; 32] }
}

fn hmac(key: &[u8], message: &[u8]) -> Key {
    #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn xor(mut one: Key, other: Key) -> Key {
    for (byte, with) in one.iter_mut().zip(other) {
        *byte ^= with;
    }
    one
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 7677, section 3.
    #[test]
    fn the_rfcs_example() {
        let secret = Secret::Password(b"pencil".to_vec());
        let mut client = Client::new(&secret, None, false, "rOprNGfwEbeRWgbNEkqO".into());
        assert_eq!(client.first(), "n,,n=,r=rOprNGfwEbeRWgbNEkqO");
        let salt = base64::decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = verifier(b"pencil", &salt, 4096).unwrap();
        let first = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
        let nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let server = Server::begin(&verifier, false, first, false, None, nonce).unwrap();
        assert_eq!(
            server.answer(),
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let last = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let (answer, keys) = server.finish(last).unwrap();
        assert_eq!(answer, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert_eq!(keys, derive(b"pencil", &salt, 4096).unwrap());
        // The client's own run, which has no user name in it.
        let server = Server::begin(&verifier, false, client.first().as_bytes(), false, None, nonce).unwrap();
        let last = client.last(server.answer().as_bytes()).unwrap();
        let (answer, _) = server.finish(last.as_bytes()).unwrap();
        client.finish(answer.as_bytes()).unwrap();
        assert_eq!(client.finish(b"v=AAAA"), Err(Failed::Impostor));
    }

    fn run(client_secret: &Secret, known: &Verifier, bind: Option<(&[u8], &[u8])>) -> Result<Keys, Failed> {
        let mut client = Client::new(client_secret, bind.map(|(mine, _)| mine), false, "abc".into());
        let end_point = bind.map(|(_, theirs)| theirs);
        let first = client.first();
        let server = Server::begin(known, false, first.as_bytes(), bind.is_some(), end_point, "def")?;
        let last = client.last(server.answer().as_bytes())?;
        let (answer, keys) = server.finish(last.as_bytes())?;
        client.finish(answer.as_bytes())?;
        Ok(keys)
    }

    #[test]
    fn what_a_proof_reveals_is_enough_to_log_in() {
        let known = verifier(b"secret", b"salt", 10).unwrap();
        let keys = run(&Secret::Password(b"secret".to_vec()), &known, None).unwrap();
        let again = Secret::Keys(Box::new((known.clone(), keys.clone())));
        assert_eq!(run(&again, &known, None).unwrap(), keys);
        assert_eq!(run(&again, &known, Some((b"certificate", b"certificate"))).unwrap(), keys);
        assert_eq!(run(&again, &known, Some((b"mine", b"theirs"))), Err(Failed::Channel));
        let other = verifier(b"secret", b"other", 10).unwrap();
        assert_eq!(run(&again, &other, None), Err(Failed::OtherVerifier));
        assert_eq!(run(&Secret::Password(b"wrong".to_vec()), &known, None), Err(Failed::Unproven));
        assert_eq!(run(&Secret::None, &known, None), Err(Failed::OtherVerifier));
    }

    #[test]
    fn a_made_up_verifier_lets_nobody_in() {
        let made_up = made_up(b"node", "nobody");
        assert_eq!(made_up, super::made_up(b"node", "nobody"));
        assert_ne!(made_up.salt, super::made_up(b"node", "somebody").salt);
        assert_eq!(run(&Secret::Password(b"x".to_vec()), &made_up, None), Err(Failed::Unproven));
        let known = verifier(b"secret", b"salt", 10).unwrap();
        let server = Server::begin(&known, true, b"n,,n=,r=abc", false, None, "def").unwrap();
        let secret = Secret::Password(b"secret".to_vec());
        let mut client = Client::new(&secret, None, false, "abc".into());
        let last = client.last(server.answer().as_bytes()).unwrap();
        assert_eq!(server.finish(last.as_bytes()).err(), Some(Failed::Unproven));
    }

    #[test]
    fn an_offer_that_was_taken_away_is_found_out() {
        let known = verifier(b"secret", b"salt", 10).unwrap();
        let begin = |first: &str, plus, end_point: Option<&[u8]>| {
            Server::begin(&known, false, first.as_bytes(), plus, end_point, "def").err()
        };
        assert_eq!(begin("y,,n=,r=a", false, Some(b"here")), Some(Failed::Downgraded));
        assert_eq!(begin("y,,n=,r=a", false, None), None);
        for (first, plus) in [
            ("p=tls-unique,,n=,r=a", true),
            ("n,,n=,r=a", true),
            ("p=tls-server-end-point,,n=,r=a", false),
            ("n,a=root,n=,r=a", false),
            ("n,,m=x,n=,r=a", false),
            ("n,,n=,r=", false),
            ("n,,n=", false),
            ("n", false),
        ] {
            assert!(matches!(begin(first, plus, Some(b"here")), Some(Failed::Malformed(_))), "{first}");
        }
    }

    #[test]
    fn verifiers_are_read_or_refused() {
        let text = "SCRAM-SHA-256$4096:c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
        let read: Verifier = text.parse().unwrap();
        assert_eq!((read.iterations, &*read.salt, read.server_key), (4096, &b"salt"[..], [1; 32]));
        assert!(!format!("{read:?}").contains("salt"));
        for wrong in
            ["", "md5abc", "SCRAM-SHA-256$0:c2FsdA==$AA==:AA==", "SCRAM-SHA-256$4096:c2FsdA==$AA==:AA=="]
        {
            assert_eq!(wrong.parse::<Verifier>(), Err(NoVerifier));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_or_refused(first in "\\PC{0,60}", last in "\\PC{0,60}", raw in prop::collection::vec(any::<u8>(), 0..60)) {
            let known = verifier(b"secret", b"salt", 1).unwrap();
            for first in [first.as_bytes(), &raw, b"n,,n=,r=abc"] {
                if let Ok(server) = Server::begin(&known, false, first, false, None, "def") {
                    prop_assert!(server.finish(last.as_bytes()).is_err());
                }
            }
            let secret = Secret::Password(b"x".to_vec());
            let _ = Client::new(&secret, None, false, "abc".into()).last(last.as_bytes());
            let _ = last.parse::<Verifier>();
        }
    }
}
