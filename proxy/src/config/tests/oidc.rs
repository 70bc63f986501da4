//! The issuer of the admin API's tokens.

use super::{BASE, load, with};

#[test]
fn the_issuer_is_read_and_checked() {
    let node = |oidc: &str| format!("name: edge-1\n  admin: {{ listen: 127.0.0.1:9900, oidc: {oidc} }}");
    let least =
        "{ issuer: \"https://login.example/ops\", audience: [godwit], roles: [{ group: sre, role: admin }] }";
    let config = load(&BASE.replacen("name: edge-1", &node(least), 1)).expect("valid");
    insta::assert_debug_snapshot!(config.node.admin.oidc);
    let whole = least.replace("roles: [", "keys: https://login.example/keys, ca: ca.pem, clients: [cli], algorithms: [PS256], \
         groups: realm_access.roles, name: email, leeway: 0s, refresh: 5m, keep: 7d, roles: [{ group: shop, role: operator, \
         resources: [orders] }, ");
    let config = load(&BASE.replacen("name: edge-1", &node(&whole), 1)).expect("valid");
    insta::assert_debug_snapshot!(config.node.admin.oidc);
    let edits = [
        ("issuer: \"https://login.example/ops\", ", ""),
        ("https://login.example/ops", "http://login.example/ops"),
        ("https://login.example/ops", "https://127.0.0.1/ops"),
        ("https://login.example/ops", "login.example"),
        ("https://login.example/ops", "https://login.example/?tenant=ops"),
        ("audience: [godwit], ", ""),
        ("[godwit]", "[]"),
        ("[godwit]", "godwit"),
        ("roles: [{ group: sre, role: admin }]", "roles: []"),
        ("role: admin", "role: root"),
        ("group: sre, ", ""),
        ("role: admin", "role: admin, resources: []"),
        ("roles:", "algorithms: [none, HS256, RS256], roles:"),
        ("roles:", "algorithms: [], roles:"),
        ("roles:", "leeway: 10m, refresh: 1s, keep: 30d, roles:"),
        ("roles:", "refresh: 3h, keep: 1h, roles:"),
        ("roles:", "jwks: https://login.example/keys, roles:"),
    ];
    let said = edits.map(|(from, to)| {
        assert!(least.contains(from), "{from}");
        let oidc = least.replacen(from, to, 1);
        format!("{to:?}\n{}\n", with(&[("name: edge-1", &node(&oidc))]))
    });
    insta::assert_snapshot!(said.join("\n"));
}
