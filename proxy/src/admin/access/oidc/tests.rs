//! Against an issuer on loopback that serves its description and its keys, over HTTP or TLS, or is down.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::super::{Role, Scope};
use super::*;
use crate::admin::Listener;
use crate::config::model::{Admin, AdminTls, GroupRule};
use crate::feeds::external::egress::Network;
use crate::pki;

/// As long as by default; tests that need no pause shorten it.
pub(in crate::admin) const TIMES: KeyTimes = KeyTimes {
    refresh: Duration::from_secs(3600),
    keep: Duration::from_secs(86_400),
    pause: Duration::from_secs(10),
};

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A key of an issuer.
pub(in crate::admin) struct Signer {
    kid: String,
    secret: Secret,
}

enum Secret {
    Ed(Ed25519KeyPair),
    P256(EcdsaKeyPair),
    Rsa(Box<RsaKeyPair>),
}

/// The key of RFC 7515, appendix A.2: ring makes none.
const RSA: [&str; 8] = [
    "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
    "AQAB",
    "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ",
    "4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc",
    "uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-TnBA-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc",
    "BwKfV3Akq5_MFZDFZCnW-wzl-CCo83WoZvnLQwCTeDv8uzluRSnm71I3QCLdhrqE2e9YkxvuxdBfpT_PI7Yz-FOKnu1R6HsJeDCjn12Sk3vmAktV2zb34MCdy7cpdTh_YVr7tss2u6vneTwrA86rZtu5Mbr1C1XsmvkxHQAdYo0",
    "h_96-mK1R_7glhsum81dZxjTnYynPbZpHziZjeeHcXYsXaaMwkOlODsWa7I9xXDoRwbKgB719rrmI2oKr6N3Do9U0ajaHF-NKJnwgjMd2w9cjz3_-kyNlxAr2v4IKhGNpmM5iIgOS1VZnOZ68m6_pbLBSp3nssTdlqvd0tIiTHU",
    "IYd7DHOhrWvxkwPQsRM2tOgrjbcrfvtQJipd-DlcxyVuuM9sQLdgjVk2oy26F0EmpScGLq2MowX7fhd_QJQ3ydy5cY7YIBi87w93IKLEdfnbJtoOPLUW0ITrJReOgo1cq9SbsxYawBgfp_gh6A5603k2-ZQwVK0JKSHuLFkuQ3U",
];

impl Signer {
    pub(in crate::admin) fn ed(kid: &str) -> Self {
        let secret = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("luck");
        let secret = Ed25519KeyPair::from_pkcs8(secret.as_ref()).expect("a key");
        Self { kid: kid.into(), secret: Secret::Ed(secret) }
    }

    fn p256(kid: &str) -> Self {
        let (how, luck) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let secret = EcdsaKeyPair::generate_pkcs8(how, &luck).expect("luck");
        let secret = EcdsaKeyPair::from_pkcs8(how, secret.as_ref(), &luck).expect("a key");
        Self { kid: kid.into(), secret: Secret::P256(secret) }
    }

    fn rsa(kid: &str) -> Self {
        let [n, e, private, prime, other, exponent, other_exponent, coefficient] =
            RSA.map(|text| URL_SAFE_NO_PAD.decode(text).expect("base64url"));
        let parts = KeyPairComponents {
            public_key: PublicKeyComponents { n, e },
            d: private,
            p: prime,
            q: other,
            dP: exponent,
            dQ: other_exponent,
            qInv: coefficient,
        };
        Self {
            kid: kid.into(),
            secret: Secret::Rsa(Box::new(RsaKeyPair::from_components(&parts).expect("a key"))),
        }
    }

    fn alg(&self) -> &'static str {
        match self.secret {
            Secret::Ed(_) => "EdDSA",
            Secret::P256(_) => "ES256",
            Secret::Rsa(_) => "RS256",
        }
    }

    fn public(&self) -> Value {
        let mut jwk = match &self.secret {
            Secret::Ed(key) => json!({ "kty": "OKP", "crv": "Ed25519", "x": base64(key.public_key()) }),
            Secret::P256(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({ "kty": "EC", "crv": "P-256", "x": base64(x), "y": base64(y) })
            }
            Secret::Rsa(_) => json!({ "kty": "RSA", "n": RSA[0], "e": RSA[1] }),
        };
        jwk["kid"] = self.kid.clone().into();
        jwk["use"] = "sig".into();
        jwk
    }

    fn raw(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
        let luck = SystemRandom::new();
        let signature = match &self.secret {
            Secret::Ed(key) => key.sign(signed.as_bytes()).as_ref().to_vec(),
            Secret::P256(key) => key.sign(&luck, signed.as_bytes()).expect("luck").as_ref().to_vec(),
            Secret::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &luck, signed.as_bytes(), &mut signature).expect("luck");
                signature
            }
        };
        format!("{signed}.{}", base64(signature))
    }

    pub(in crate::admin) fn sign(&self, claims: &Value) -> String {
        self.raw(&json!({ "alg": self.alg(), "kid": self.kid, "typ": "JWT" }), claims)
    }
}

#[derive(Default)]
struct Served {
    keys: Mutex<Value>,
    /// In place of the issuer's own description.
    described: Mutex<Option<Value>>,
    asked: AtomicU32,
}

/// An issuer.
pub(in crate::admin) struct Issuer {
    address: SocketAddr,
    scheme: &'static str,
    served: Arc<Served>,
    running: Option<CancellationToken>,
}

impl Issuer {
    pub(in crate::admin) async fn start(keys: &[&Signer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut issuer = Self { address, scheme: "http", served: Arc::default(), running: None };
        issuer.give(keys);
        issuer.serve(listener);
        issuer
    }

    fn serve<L: axum::serve::Listener>(&mut self, listener: L)
    where
        L::Addr: std::fmt::Debug,
    {
        let stop = CancellationToken::new();
        let routes = router(self.served.clone(), &self.name());
        let served = stop.clone().run_until_cancelled_owned(async move {
            axum::serve(listener, routes).await.expect("it serves");
        });
        tokio::spawn(served);
        self.running = Some(stop);
    }

    pub(in crate::admin) fn name(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Its keys are these from now on.
    pub(in crate::admin) fn give(&self, keys: &[&Signer]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.public()).collect();
        *self.served.keys.lock().expect("the lock") = json!({ "keys": keys });
    }

    /// Nobody listens there any more.
    pub(in crate::admin) async fn goes_down(&mut self) {
        self.running.take().expect("it runs").cancel();
        while tokio::net::TcpStream::connect(self.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    pub(in crate::admin) async fn comes_up(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("its port");
        self.serve(listener);
    }

    fn asked(&self) -> u32 {
        self.served.asked.load(Ordering::SeqCst)
    }

    pub(in crate::admin) fn rules(&self, times: KeyTimes) -> OidcRules {
        let rule = |group: &str, role, scope| GroupRule { group: group.into(), role, scope };
        let orders = Scope::Resources(["orders".to_owned()].into());
        OidcRules {
            issuer: self.name(),
            keys: None,
            authority: None,
            audiences: vec!["godwit".into()],
            clients: vec![],
            algorithms: vec![jws::Algorithm::Rs256, jws::Algorithm::Es256, jws::Algorithm::EdDsa],
            groups: "groups".into(),
            name: Some("email".into()),
            leeway: Duration::from_secs(30),
            times,
            roles: vec![
                rule("sre", Role::Admin, Scope::All),
                rule("shop", Role::Operator, orders),
                rule("billing", Role::Operator, Scope::Resources(["billing".to_owned()].into())),
            ],
        }
    }

    pub(in crate::admin) fn oidc(&self, times: KeyTimes) -> Oidc {
        Oidc::new(self.rules(times), here())
    }

    /// Claims of somebody in these groups, good for ten minutes.
    pub(in crate::admin) fn claims(&self, groups: &[&str]) -> Value {
        let now_s = clock::now().0 / 1000;
        json!({ "iss": self.name(), "aud": ["godwit", "other"], "sub": "s-1", "email": "ann@example.com", "iat": now_s,
                "exp": now_s + 600, "groups": groups })
    }
}

/// Lets feeds and issuers on this machine be asked.
fn here() -> Egress {
    Egress { hosts: vec![], networks: vec![Network::parse("127.0.0.0/8").expect("a network")] }
}

fn router(served: Arc<Served>, name: &str) -> Router {
    let own = json!({ "issuer": name, "jwks_uri": format!("{name}/keys") });
    let described = move |State(served): State<Arc<Served>>| async move {
        served.asked.fetch_add(1, Ordering::SeqCst);
        Json(served.described.lock().expect("the lock").clone().unwrap_or(own))
    };
    let keys = |State(served): State<Arc<Served>>| async move {
        let keys = served.keys.lock().expect("the lock").clone();
        if keys.is_null() { Err(StatusCode::INTERNAL_SERVER_ERROR) } else { Ok(Json(keys)) }
    };
    Router::new()
        .route("/.well-known/openid-configuration", get(described))
        .route("/keys", get(keys))
        .with_state(served)
}

const NO_PAUSE: KeyTimes = KeyTimes { pause: Duration::ZERO, ..TIMES };

#[tokio::test]
async fn tokens_of_each_kind_of_key_are_believed() {
    let signers = [Signer::ed("e"), Signer::p256("p"), Signer::rsa("r")];
    let issuer = Issuer::start(&signers.each_ref()).await;
    let oidc = issuer.oidc(TIMES);
    for signer in &signers {
        let shown = oidc.shown(&signer.sign(&issuer.claims(&["shop", "other"]))).await;
        let shown = shown.unwrap_or_else(|why| panic!("{}: {why}", signer.alg()));
        let caller = &shown.caller;
        assert_eq!(
            (caller.name.as_str(), caller.role, caller.via),
            ("ann@example.com (s-1)", Role::Operator, Via::Oidc)
        );
        assert!(caller.knows("orders") && !caller.knows("billing"));
    }
    assert_eq!(issuer.asked(), 1, "three tokens, one inquiry");
}

#[tokio::test]
async fn what_is_wrong_is_refused_for_that() {
    let (signer, rsa) = (Signer::ed("e"), Signer::rsa("r"));
    let issuer = Issuer::start(&[&signer, &rsa]).await;
    let oidc = issuer.oidc(TIMES);
    let good = issuer.claims(&["sre"]);
    let changed = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let unsigned = |alg: &str| {
        format!("{}.{}.", base64(json!({ "alg": alg, "kid": "e" }).to_string()), base64(good.to_string()))
    };
    // The public key, which everybody has, as the secret of an HMAC (CVE-2016-5431 and its kin).
    let confused = |secret: &[u8]| {
        let header = json!({ "alg": "HS256", "kid": "r", "typ": "JWT" });
        let signed = format!("{}.{}", base64(header.to_string()), base64(good.to_string()));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
        format!("{signed}.{}", base64(ring::hmac::sign(&key, signed.as_bytes())))
    };
    let stranger = Signer::ed("e");
    let brought = json!({ "alg": "EdDSA", "kid": "e", "jwk": stranger.public() });
    let now_s = clock::now().0 / 1000;
    let (honest, other) = (signer.sign(&good), signer.sign(&changed("groups", json!(["x"]))));
    let (other, _) = other.rsplit_once('.').expect("parts");
    let spliced = format!("{other}.{}", honest.rsplit_once('.').expect("parts").1);
    let cases = [
        ("alg none", unsigned("none")),
        ("alg nOnE", unsigned("nOnE")),
        ("no signature", unsigned("EdDSA")),
        ("HMAC with the modulus", confused(RSA[0].as_bytes())),
        ("HMAC with the key's bytes", confused(&URL_SAFE_NO_PAD.decode(RSA[0]).expect("base64url"))),
        ("another algorithm's name", signer.raw(&json!({ "alg": "RS256", "kid": "e" }), &good)),
        ("an algorithm that is not allowed", signer.raw(&json!({ "alg": "PS256", "kid": "r" }), &good)),
        ("a stranger's key by our name", stranger.sign(&good)),
        ("a key in the token", stranger.raw(&brought, &good)),
        ("another payload under the signature", spliced),
        ("crit", signer.raw(&json!({ "alg": "EdDSA", "kid": "e", "crit": ["exp"] }), &good)),
        ("an unknown key", Signer::ed("x").sign(&good)),
        ("expired", signer.sign(&changed("exp", json!(now_s - 31)))),
        ("not yet", signer.sign(&changed("nbf", json!(now_s + 60)))),
        ("of the future", signer.sign(&changed("iat", json!(now_s + 60)))),
        ("another audience", signer.sign(&changed("aud", json!("other")))),
        ("another issuer", signer.sign(&changed("iss", json!("https://login.example")))),
        ("no role", signer.sign(&changed("groups", json!(["staff"])))),
        ("not JSON", signer.raw(&json!({ "alg": "EdDSA", "kid": "e" }), &json!([1]))),
        ("too long", signer.sign(&changed("more", json!("x".repeat(16 << 10))))),
    ];
    let mut said = Vec::new();
    for (what, token) in &cases {
        let verdict = oidc.shown(token).await.map(|shown| shown.caller.name);
        said.push(match verdict {
            Ok(name) => format!("{what}: {name}"),
            Err(rejected) => format!("{what}: {}: {rejected}", rejected.label()),
        });
    }
    insta::assert_snapshot!(said.join("\n"));
}

#[tokio::test]
async fn keys_are_rotated() {
    let (old, new) = (Signer::ed("old"), Signer::p256("new"));
    let issuer = Issuer::start(&[&old]).await;
    let oidc = issuer.oidc(NO_PAUSE);
    let (by_old, by_new) = (old.sign(&issuer.claims(&["sre"])), new.sign(&issuer.claims(&["sre"])));
    assert!(oidc.shown(&by_old).await.is_ok());
    assert_eq!(oidc.shown(&by_new).await, Err(Rejected::KeyUnknown));
    issuer.give(&[&old, &new]);
    assert!(oidc.shown(&by_new).await.is_ok() && oidc.shown(&by_old).await.is_ok());
    issuer.give(&[&new]);
    // Its key is there until the keys are asked for again: here, since somebody shows a key that is not there.
    assert_eq!(oidc.shown(&Signer::ed("x").sign(&issuer.claims(&["sre"]))).await, Err(Rejected::KeyUnknown));
    assert_eq!(oidc.shown(&by_old).await, Err(Rejected::KeyUnknown));
    assert!(oidc.shown(&by_new).await.is_ok());
}

#[tokio::test]
async fn an_issuer_that_is_down_locks_nobody_out() {
    let (known, other) = (Signer::ed("known"), Signer::ed("other"));
    let mut issuer = Issuer::start(&[&known]).await;
    let (token, with_other) = (known.sign(&issuer.claims(&["sre"])), other.sign(&issuer.claims(&["sre"])));
    issuer.goes_down().await;
    let oidc = issuer.oidc(KeyTimes { refresh: Duration::ZERO, ..NO_PAUSE });
    let Err(Rejected::Unavailable(why)) = oidc.shown(&token).await else { panic!("there are no keys yet") };
    assert!(why.contains("/.well-known/openid-configuration"), "{why}");
    issuer.comes_up().await;
    assert!(oidc.shown(&token).await.is_ok());
    issuer.goes_down().await;
    for _ in 0..3 {
        assert!(oidc.shown(&token).await.is_ok(), "what was known counts on");
    }
    assert!(matches!(oidc.shown(&with_other).await, Err(Rejected::Unavailable(_))), "it may be a new one");
    issuer.give(&[&other]);
    issuer.comes_up().await;
    assert!(oidc.shown(&with_other).await.is_ok());
    assert_eq!(oidc.shown(&token).await, Err(Rejected::KeyUnknown), "taken back");
}

#[tokio::test]
async fn stale_keys_are_asked_for_beside_the_request() {
    let signer = Signer::ed("k");
    let issuer = Issuer::start(&[&signer]).await;
    let oidc = issuer.oidc(KeyTimes { refresh: Duration::ZERO, ..NO_PAUSE });
    let token = signer.sign(&issuer.claims(&["sre"]));
    assert!(oidc.shown(&token).await.is_ok());
    let again = async {
        while issuer.asked() < 2 {
            assert!(oidc.shown(&token).await.is_ok());
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("the issuer is asked again");
}

#[tokio::test]
async fn a_flood_of_made_up_keys_asks_the_issuer_once() {
    let signer = Signer::ed("k");
    let issuer = Issuer::start(&[&signer]).await;
    let oidc = Arc::new(issuer.oidc(TIMES));
    let claims = issuer.claims(&["sre"]);
    let mut flood = tokio::task::JoinSet::new();
    for i in 0..200 {
        let (oidc, token) = (oidc.clone(), Signer::ed(&format!("made up {i}")).sign(&claims));
        flood.spawn(async move { oidc.shown(&token).await });
    }
    let verdicts = flood.join_all().await;
    let unknown = |verdict: &Result<Shown, Rejected>| {
        matches!(verdict, Err(Rejected::KeyUnknown | Rejected::KeyUnseen))
    };
    assert!(verdicts.iter().all(unknown), "{verdicts:?}");
    assert_eq!(issuer.asked(), 1);
    assert!(oidc.shown(&signer.sign(&claims)).await.is_ok(), "who has a good one is not kept out");
}

#[tokio::test]
async fn a_description_that_is_not_the_issuers_gives_no_keys() {
    let signer = Signer::ed("k");
    let issuer = Issuer::start(&[&signer]).await;
    let (name, token) = (issuer.name(), signer.sign(&issuer.claims(&["sre"])));
    let keys = format!("{name}/keys");
    let mut said = Vec::new();
    for described in [
        json!({ "issuer": format!("{name}/"), "jwks_uri": keys }),
        json!({ "issuer": "https://login.example", "jwks_uri": keys }),
        json!({ "issuer": name, "jwks_uri": "https://keys.example/keys" }),
        json!({ "issuer": name, "jwks_uri": "http://169.254.169.254/keys" }),
        json!({ "issuer": name, "jwks_uri": "file:///etc/passwd" }),
        json!({ "issuer": name, "jwks_uri": format!("{name}/elsewhere") }),
        json!({ "issuer": name }),
        json!({ "issuer": name, "jwks_uri": keys, "more": "x".repeat(300 << 10) }),
    ] {
        *issuer.served.described.lock().expect("the lock") = Some(described);
        let oidc = issuer.oidc(NO_PAUSE);
        let Err(Rejected::Unavailable(why)) = oidc.shown(&token).await else { panic!("{said:?}") };
        said.push(why.replace(&name, "ISSUER"));
    }
    insta::assert_snapshot!(said.join("\n"));
    let configured = OidcRules { keys: Some(keys.parse().expect("a URL")), ..issuer.rules(TIMES) };
    assert!(Oidc::new(configured, here()).shown(&token).await.is_ok(), "where they are is configured");
    let oidc = Oidc::new(issuer.rules(TIMES), Egress::default());
    assert!(matches!(oidc.shown(&token).await, Err(Rejected::Unavailable(why)) if why.contains("egress")));
}

#[tokio::test]
async fn an_issuer_over_tls_is_believed_by_its_own_authority_only() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    for authority in ["a", "b"] {
        pki::make(&path(authority), &["localhost"])?;
    }
    let tls = AdminTls { cert: path("a/localhost.pem"), key: path("a/localhost.key"), client_ca: None };
    let settings = Admin {
        listen: "127.0.0.1:0".parse()?,
        hosts: vec![],
        required: true,
        tls: Some(tls),
        clients: vec![],
        oidc: None,
    };
    let stop = CancellationToken::new();
    let listener = Listener::bind(&settings, &stop)?;
    let address = axum::serve::Listener::local_addr(&listener)?.address;
    let name = format!("https://localhost:{}", address.port());
    let signer = Signer::ed("k");
    let served = Arc::new(Served::default());
    *served.keys.lock().expect("the lock") = json!({ "keys": [signer.public()] });
    tokio::spawn(axum::serve(listener, router(served.clone(), &name)).into_future());
    let issuer = Issuer { address, scheme: "https", served, running: None };
    let mut claims = issuer.claims(&["sre"]);
    claims["iss"] = name.clone().into();
    for (authority, believed) in [("a", true), ("b", false)] {
        let rules = OidcRules {
            issuer: name.clone(),
            authority: Some(path(authority).join("ca.pem")),
            ..issuer.rules(TIMES)
        };
        let verdict = Oidc::new(rules, here()).shown(&signer.sign(&claims)).await;
        assert_eq!(verdict.is_ok(), believed, "{verdict:?}");
    }
    stop.cancel();
    Ok(())
}
