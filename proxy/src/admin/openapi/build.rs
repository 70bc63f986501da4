//! One operation, said briefly, and what follows for each: parameters of its path, what any route may refuse.

use axum::http::{Method, StatusCode};
use utoipa::ToSchema;
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::header::Header;
use utoipa::openapi::path::{
    HttpMethod, Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Type};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Required, ResponseBuilder, Schema};

use crate::admin::Problem;
use crate::admin::access::Role;

const JSON: &str = "application/json";
const PROBLEM: &str = "application/problem+json";

type Named = (String, RefOr<Schema>);

/// What is refused.
pub(super) struct Problems;

impl Problems {
    pub(super) fn schemas() -> Vec<Named> {
        schemas::<Problem>()
    }
}

fn schemas<T: ToSchema>() -> Vec<Named> {
    let mut all = vec![(T::name().into_owned(), T::schema())];
    T::schemas(&mut all);
    all
}

fn reference<T: ToSchema>() -> RefOr<Schema> {
    Ref::from_schema_name(T::name()).into()
}

enum Body {
    Json(Box<RefOr<Schema>>),
    Text(&'static str),
    Nothing,
}

struct Given {
    status: StatusCode,
    body: Body,
    headers: Vec<(&'static str, &'static str)>,
}

/// An operation under construction.
pub(super) struct Line {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) schemas: Vec<Named>,
    id: &'static str,
    summary: &'static str,
    parameters: Vec<Parameter>,
    body: Option<(RefOr<Schema>, bool)>,
    given: Vec<Given>,
    refused: Vec<StatusCode>,
}

/// `method path`, called `id`.
pub(super) fn on(method: Method, path: &'static str, id: &'static str, summary: &'static str) -> Line {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameters = names.map(|name| parameter(name.trim_start_matches('*'), ParameterIn::Path)).collect();
    Line {
        method,
        path,
        schemas: Vec::new(),
        id,
        summary,
        parameters,
        body: None,
        given: Vec::new(),
        refused: Vec::new(),
    }
}

pub(super) fn get(path: &'static str, id: &'static str, summary: &'static str) -> Line {
    on(Method::GET, path, id, summary)
}

pub(super) fn post(path: &'static str, id: &'static str, summary: &'static str) -> Line {
    on(Method::POST, path, id, summary)
}

pub(super) fn put(path: &'static str, id: &'static str, summary: &'static str) -> Line {
    on(Method::PUT, path, id, summary)
}

pub(super) fn delete(path: &'static str, id: &'static str, summary: &'static str) -> Line {
    on(Method::DELETE, path, id, summary)
}

fn string() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).into()
}

fn parameter(name: &str, place: ParameterIn) -> Parameter {
    let required = if place == ParameterIn::Path { Required::True } else { Required::False };
    ParameterBuilder::new().name(name).parameter_in(place).required(required).schema(Some(string())).build()
}

impl Line {
    fn answer(mut self, status: StatusCode, body: Body) -> Self {
        self.given.push(Given { status, body, headers: Vec::new() });
        self
    }

    /// Answers with a `T`.
    pub(super) fn gives<T: ToSchema>(mut self, status: StatusCode) -> Self {
        self.schemas.extend(schemas::<T>());
        self.answer(status, Body::Json(Box::new(reference::<T>())))
    }

    /// Answers with a list of `T`.
    pub(super) fn lists<T: ToSchema>(mut self) -> Self {
        self.schemas.extend(schemas::<T>());
        let list = ArrayBuilder::new().items(reference::<T>()).into();
        self.answer(StatusCode::OK, Body::Json(Box::new(list)))
    }

    /// Answers with JSON objects of any shape: one, or a list of them.
    pub(super) fn gives_objects(self, status: StatusCode, list: bool) -> Self {
        let object = ObjectBuilder::new().schema_type(Type::Object);
        let body = if list { ArrayBuilder::new().items(object).into() } else { object.into() };
        self.answer(status, Body::Json(Box::new(body)))
    }

    /// Answers with text of a media type.
    pub(super) fn says(self, status: StatusCode, kind: &'static str) -> Self {
        self.answer(status, Body::Text(kind))
    }

    /// Answers without a body.
    pub(super) fn done(self, status: StatusCode) -> Self {
        self.answer(status, Body::Nothing)
    }

    /// The last answer has this header.
    pub(super) fn with(mut self, name: &'static str, what: &'static str) -> Self {
        if let Some(last) = self.given.last_mut() {
            last.headers.push((name, what));
        }
        self
    }

    /// Takes a `T`; without one the defaults count, unless it is required.
    pub(super) fn takes<T: ToSchema>(mut self, required: bool) -> Self {
        self.schemas.extend(schemas::<T>());
        self.body = Some((reference::<T>(), required));
        self
    }

    /// Takes a JSON object that is described elsewhere.
    pub(super) fn takes_object(mut self, described: &'static str) -> Self {
        let object = ObjectBuilder::new().schema_type(Type::Object).description(Some(described));
        self.body = Some((object.into(), true));
        self
    }

    /// Has a parameter after the question mark: text, unless `kind` says otherwise.
    pub(super) fn asks(mut self, name: &'static str, kind: Type, what: &'static str) -> Self {
        let schema: Schema = if kind == Type::Integer {
            ObjectBuilder::new().schema_type(kind).minimum(Some(0)).into()
        } else {
            ObjectBuilder::new().schema_type(kind).into()
        };
        self.parameters.push(
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Query)
                .required(Required::False)
                .description(Some(what))
                .schema(Some(schema))
                .build(),
        );
        self
    }

    /// Takes a header.
    pub(super) fn hears(mut self, name: &'static str, what: &'static str) -> Self {
        let mut header = parameter(name, ParameterIn::Header);
        header.description = Some(what.to_owned());
        self.parameters.push(header);
        self
    }

    /// Changes something that was seen before: the tag of that is needed.
    pub(super) fn conditional(self) -> Self {
        self.hears("If-Match", "The ETag of what was seen; `*` for whatever is there.")
            .refuses(&[StatusCode::PRECONDITION_FAILED, StatusCode::PRECONDITION_REQUIRED])
    }

    /// Refuses with these, beside what every route refuses with.
    pub(super) fn refuses(mut self, statuses: &[StatusCode]) -> Self {
        self.refused.extend(statuses);
        self
    }

    pub(super) fn http_method(&self) -> HttpMethod {
        match self.method {
            Method::PUT => HttpMethod::Put,
            Method::POST => HttpMethod::Post,
            Method::DELETE => HttpMethod::Delete,
            _ => HttpMethod::Get,
        }
    }

    /// With what everybody who needs a role is refused with.
    pub(super) fn build(mut self, needs: Option<Role>) -> Operation {
        // A request without a Host, or with another one; a body or a query that is none.
        self.refused.extend([StatusCode::BAD_REQUEST, StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS]);
        if needs.is_some() {
            // Nor can it be told who asks while there is no disk, or no key of the issuer.
            self.refused.extend([StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE]);
        }
        if self.path.contains('{') {
            self.refused.push(StatusCode::NOT_FOUND);
        }
        if self.method != Method::GET {
            // The audit cannot be written.
            self.refused.extend([StatusCode::SERVICE_UNAVAILABLE, StatusCode::PAYLOAD_TOO_LARGE]);
        }
        self.refused.sort_unstable();
        self.refused.dedup();
        let mut operation = OperationBuilder::new()
            .operation_id(Some(self.id))
            .summary(Some(self.summary))
            .tag(tag(self.path))
            .parameters(Some(self.parameters));
        if let Some((schema, required)) = self.body {
            let required = if required { Required::True } else { Required::False };
            let content = ContentBuilder::new().schema(Some(schema)).build();
            let body = RequestBodyBuilder::new().content(JSON, content).required(Some(required)).build();
            operation = operation.request_body(Some(body));
        }
        for given in self.given {
            let mut response = ResponseBuilder::new().description(reason(given.status));
            match given.body {
                Body::Json(schema) => {
                    response = response.content(JSON, ContentBuilder::new().schema(Some(*schema)).build());
                }
                Body::Text(kind) => {
                    response = response.content(kind, ContentBuilder::new().schema(Some(string())).build());
                }
                Body::Nothing => {}
            }
            for (name, what) in given.headers {
                let mut header = Header::new(string());
                header.description = Some(what.to_owned());
                response = response.header(name, header);
            }
            operation = operation.response(given.status.as_str(), response.build());
        }
        for status in self.refused {
            let problem = ContentBuilder::new().schema(Some(reference::<Problem>())).build();
            let response = ResponseBuilder::new().description(reason(status)).content(PROBLEM, problem);
            operation = operation.response(status.as_str(), response.build());
        }
        if let Some(role) = needs {
            let nothing = || std::iter::empty::<String>();
            operation = operation
                .security(SecurityRequirement::new("token", nothing()))
                .security(SecurityRequirement::new("session", nothing()))
                .extensions(Some(ExtensionsBuilder::new().add("x-role", role.name()).build()));
        }
        operation.build()
    }
}

fn reason(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("answer")
}

/// What the operation is about: the third part of a path of the API below resources, else the second.
fn tag(path: &str) -> &str {
    let named = |part: &&str| !part.is_empty() && !part.starts_with('{');
    let mut parts = path.trim_start_matches("/api/v1/").split('/').filter(named);
    let first = parts.next().unwrap_or("dashboard");
    parts.next().unwrap_or(first)
}
