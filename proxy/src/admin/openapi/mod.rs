//! The API's description (OpenAPI 3.1), from the types that are served and a line for each route ([`operations`]).
//!
//! What a route needs comes from the table that the guard uses; a test fails where a route has no line here or a line no
//! route, and another where `docs/openapi.json` is not what is served.

mod build;
mod operations;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder, PathItem, PathsBuilder};

use super::access::session::COOKIE;
use super::access::table::Table;
use super::routes;
use build::Problems;

/// A probe's result: microseconds, or why it failed.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "stands for Result<u64, String> in the description")]
pub(crate) enum Probe {
    /// Microseconds.
    Ok(u64),
    /// Why it failed.
    Err(String),
}

/// The whole description.
pub(crate) fn document() -> OpenApi {
    let (_, table) = routes::routes().finish();
    of(&table)
}

fn of(table: &Table) -> OpenApi {
    let mut items: BTreeMap<&'static str, PathItem> = BTreeMap::new();
    let mut schemas = BTreeMap::new();
    schemas.extend(Problems::schemas());
    for operation in operations::all() {
        let needs = table
            .get(operation.path)
            .and_then(|methods| methods.iter().find(|(method, _)| *method == operation.method))
            .and_then(|(_, permission)| permission.role());
        schemas.extend(operation.schemas.iter().cloned());
        let (path, method) = (operation.path, operation.http_method());
        let item = PathItem::new(method, operation.build(needs));
        match items.entry(path) {
            std::collections::btree_map::Entry::Vacant(place) => _ = place.insert(item),
            std::collections::btree_map::Entry::Occupied(mut place) => place.get_mut().merge_operations(item),
        }
    }
    let paths = items.into_iter().fold(PathsBuilder::new(), |paths, (path, item)| {
        // What axum calls a wildcard is a parameter like any other here.
        paths.path(path.replace("{*", "{"), item)
    });
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "A token of `godwit token create`, or a JWT of the OpenID Connect issuer that the node knows (`node.admin.oidc`).",
        ))
        .build();
    let cookie = ApiKey::Cookie(ApiKeyValue::with_description(
        COOKIE,
        "What `POST /api/v1/session` gives for a token: for browsers.",
    ));
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas)
        .security_scheme("token", SecurityScheme::Http(token))
        .security_scheme("session", SecurityScheme::ApiKey(cookie))
        .build();
    let info = InfoBuilder::new()
        .title("Godwit")
        .version("v1")
        .description(Some(
            "The admin API of a Godwit node. Moments are Unix milliseconds (`_ms`), sizes bytes (`_bytes`). What is refused is \
             answered with a problem document (RFC 9457). Each operation names the role it needs (`x-role`); a node without \
             access control asks nobody.",
        ))
        .build();
    OpenApiBuilder::new().info(info).paths(paths.build()).components(Some(components)).build()
}

static TEXT: LazyLock<String> = LazyLock::new(|| {
    document().to_pretty_json().unwrap_or_else(|error| format!("{{\"error\": \"{error}\"}}"))
});

/// `GET /api/v1/openapi.json`.
pub(super) async fn served() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str())
}

#[cfg(test)]
mod tests;
