//! Callers of an OpenID Connect issuer, on the routes.

use super::*;
use crate::admin::access::oidc::tests::{Issuer, Signer, TIMES};

async fn text(response: Response) -> String {
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    String::from_utf8_lossy(&body).into_owned()
}

#[tokio::test]
async fn a_token_of_the_issuer_is_a_caller_with_the_role_of_its_groups() {
    let signer = Signer::ed("k");
    let issuer = Issuer::start(&[&signer]).await;
    let api = Api::with(true, false, Some(issuer.oidc(TIMES)));
    let token = signer.sign(&issuer.claims(&["shop"]));
    let bearer = format!("Bearer {token}");
    let with = [("authorization", bearer.as_str())];
    let (status, who) = api.ask(&Method::GET, "/api/v1/whoami", &with, "").await;
    assert_eq!(status, 200);
    let expected =
        r#"{"name":"ann@example.com (s-1)","role":"operator","resources":["orders"],"via":"oidc"}"#;
    assert_eq!(text(who).await, expected);
    assert_eq!(api.status(&Method::GET, "/api/v1/tokens", Some(&token)).await, 403);
    let others = signer.sign(&issuer.claims(&["billing"]));
    assert_eq!(api.status(&Method::GET, "/api/v1/resources/orders", Some(&others)).await, 404);
    // Its own tokens count beside the issuer's.
    let own = api.token(Role::Viewer, &[]);
    assert_eq!(api.status(&Method::GET, "/api/v1/whoami", Some(&own)).await, 200);
    assert_eq!(api.status(&Method::GET, "/api/v1/whoami", Some("gdw_x_y")).await, 401);
}

#[tokio::test]
async fn the_audit_names_the_subject() {
    let signer = Signer::ed("k");
    let issuer = Issuer::start(&[&signer]).await;
    let api = Api::with(true, false, Some(issuer.oidc(TIMES)));
    let bearer = format!("Bearer {}", signer.sign(&issuer.claims(&["sre"])));
    let with = [("authorization", bearer.as_str())];
    let body = "{\"name\":\"ci\",\"role\":\"viewer\"}";
    assert_eq!(api.ask(&Method::POST, "/api/v1/tokens", &with, body).await.0, 201);
    let (_, answer) = api.ask(&Method::GET, "/api/v1/audit", &with, "").await;
    let records: Vec<serde_json::Value> = serde_json::from_str(&text(answer).await).expect("records");
    let call = records.iter().find(|record| record["kind"] == "call").expect("the call");
    assert_eq!(
        (&call["who"]["name"], &call["who"]["via"]),
        (&"ann@example.com (s-1)".into(), &"oidc".into())
    );
}

#[tokio::test]
async fn a_refusal_says_in_the_challenge_what_was_wrong() {
    let signer = Signer::ed("k");
    let mut issuer = Issuer::start(&[&signer]).await;
    let api = Api::with(true, false, Some(issuer.oidc(TIMES)));
    let mut claims = issuer.claims(&["sre"]);
    claims["exp"] = 1.into();
    let bearer = format!("Bearer {}", signer.sign(&claims));
    let (status, response) = api.ask(&Method::GET, "/api/v1/whoami", &[("authorization", &bearer)], "").await;
    assert_eq!(status, 401);
    assert_eq!(
        response.headers()["www-authenticate"],
        "Bearer realm=\"godwit\", error=\"invalid_token\", error_description=\"the token has expired\""
    );
    let nobody = signer.sign(&issuer.claims(&["staff"]));
    assert_eq!(
        api.status(&Method::GET, "/api/v1/whoami", Some(&nobody)).await,
        403,
        "known, and without a role"
    );
    issuer.goes_down().await;
    let fresh = Api::with(true, false, Some(issuer.oidc(TIMES)));
    let bearer = format!("Bearer {}", signer.sign(&issuer.claims(&["sre"])));
    let (status, response) =
        fresh.ask(&Method::GET, "/api/v1/whoami", &[("authorization", &bearer)], "").await;
    assert_eq!((status, response.headers()["retry-after"].as_bytes()), (503, &b"10"[..]));
    assert!(text(response).await.contains("the issuer's keys are not to be had now"));
}

#[tokio::test]
async fn a_session_ends_with_the_token_that_opened_it() {
    let signer = Signer::ed("k");
    let issuer = Issuer::start(&[&signer]).await;
    let api = Api::with(true, false, Some(issuer.oidc(TIMES)));
    let body = serde_json::json!({ "token": signer.sign(&issuer.claims(&["sre"])) }).to_string();
    let (status, response) = api.ask(&Method::POST, "/api/v1/session", &[], &body).await;
    assert_eq!(status, 200);
    let cookie = response.headers()["set-cookie"].to_str().expect("text").to_owned();
    let life = cookie.split("Max-Age=").nth(1).and_then(|rest| rest.split(';').next()).expect("an age");
    let life: u64 = life.parse().expect("seconds");
    assert!((540..=600).contains(&life), "{cookie}");
    let pair = cookie.split(';').next().expect("a pair");
    let (status, who) = api.ask(&Method::GET, "/api/v1/whoami", &[("cookie", pair)], "").await;
    assert_eq!(status, 200);
    assert!(text(who).await.contains(r#""role":"admin","resources":null,"via":"session""#));
    let bad = serde_json::json!({ "token": Signer::ed("k").sign(&issuer.claims(&["sre"])) }).to_string();
    assert_eq!(api.ask(&Method::POST, "/api/v1/session", &[], &bad).await.0, 401);
}

#[tokio::test]
async fn who_tries_tokens_has_to_wait_and_nobody_else_at_that_address() {
    let signer = Signer::ed("k");
    let issuer = Issuer::start(&[&signer]).await;
    let api = Api::with(true, false, Some(issuer.oidc(TIMES)));
    let claims = issuer.claims(&["sre"]);
    let ask = async |from: [u8; 4], token: &str| {
        let request = Request::builder().uri("/api/v1/whoami").header("host", "127.0.0.1");
        let request = request.header("authorization", format!("Bearer {token}"));
        let peer = crate::admin::Peer::at((from, 1).into());
        let request =
            request.extension(axum::extract::ConnectInfo(peer)).body(Body::empty()).expect("a request");
        api.router.clone().oneshot(request).await.expect("infallible").status().as_u16()
    };
    let (good, forged) = (signer.sign(&claims), Signer::ed("k").sign(&claims));
    let own = api.token(Role::Viewer, &[]);
    let mut expired = claims.clone();
    expired["exp"] = 1.into();
    let expired = signer.sign(&expired);
    for turn in 0..50 {
        assert_eq!(ask([10, 0, 0, 1], &expired).await, 401, "{turn}: who was let in once does not guess");
    }
    for turn in 0..20 {
        assert_eq!(ask([10, 0, 0, 2], &forged).await, 401, "{turn}");
    }
    for token in [forged.as_str(), "gdw_x_y"] {
        assert_eq!(ask([10, 0, 0, 2], token).await, 429);
    }
    for token in [&good, &own] {
        assert_eq!(ask([10, 0, 0, 2], token).await, 200);
    }
    assert_eq!(ask([10, 0, 0, 2], &expired).await, 401);
    assert_eq!(ask([10, 0, 0, 1], &good).await, 200);
    // Each costs checking a signature: there is an end to that, for tokens of the issuer.
    for _ in 22..1000 {
        assert_eq!(ask([10, 0, 0, 2], &forged).await, 429);
    }
    assert_eq!((ask([10, 0, 0, 2], &good).await, ask([10, 0, 0, 2], &own).await), (429, 200));
}

#[tokio::test]
async fn a_new_key_of_the_issuer_is_no_guess() {
    let (old, new) = (Signer::ed("old"), Signer::ed("new"));
    let issuer = Issuer::start(&[&old]).await;
    let api = Api::with(true, false, Some(issuer.oidc(TIMES)));
    let claims = issuer.claims(&["sre"]);
    let (by_old, by_new) = (old.sign(&claims), new.sign(&claims));
    let ask = async |token: &str| {
        let request = Request::builder().uri("/api/v1/whoami").header("host", "127.0.0.1");
        let request = request.header("authorization", format!("Bearer {token}"));
        let peer = crate::admin::Peer::at(([10, 0, 0, 1], 1).into());
        let request =
            request.extension(axum::extract::ConnectInfo(peer)).body(Body::empty()).expect("a request");
        api.router.clone().oneshot(request).await.expect("infallible").status().as_u16()
    };
    assert_eq!(ask(&by_old).await, 200);
    issuer.give(&[&old, &new]);
    for turn in 0..30 {
        assert_eq!(ask(&by_new).await, 401, "{turn}: the issuer is not asked again yet");
    }
}

#[tokio::test]
async fn one_person_is_one_person_by_whatever_claims() {
    let signer = Signer::ed("k");
    let issuer = Issuer::start(&[&signer]).await;
    let oidc = issuer.oidc(TIMES);
    let named = issuer.claims(&["sre"]);
    let mut bare = named.clone();
    bare.as_object_mut().expect("an object").remove("email");
    let mut seen = Vec::new();
    for claims in [named, bare] {
        let caller = oidc.shown(&signer.sign(&claims)).await.expect("it counts").caller;
        assert_eq!((caller.person.as_str(), caller.id.as_deref()), ("s-1", Some("s-1")));
        seen.push(caller.name);
    }
    assert_eq!(seen, ["ann@example.com (s-1)", "s-1"]);
}
