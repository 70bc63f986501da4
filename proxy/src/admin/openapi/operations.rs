//! Every operation, in the order of the routes.

use axum::http::StatusCode;
use utoipa::openapi::schema::Type::{Boolean, Integer, String as Text};

use super::build::{Line, delete, get, post, put};
use crate::admin::LeadView;
use crate::admin::access_routes::{LogIn, WhoView};
use crate::admin::changes::SectionView;
use crate::admin::history::{HistoryView, LatencyView};
use crate::admin::lead::LeadRequest;
use crate::admin::log::LogRequest;
use crate::admin::routes::{FreezeRequest, MigrateRequest, TakeOverRequest};
use crate::controller::Plan;
use crate::controller::doctor::DoctorView;
use crate::controller::drift::{SchemaView, SyncRequest, TablesRequest};
use crate::controller::forecast::ForecastView;
use crate::controller::freezes::FreezeView;
use crate::controller::verification::{Request as VerifyRequest, VerificationView};
use crate::controller::view::{DecisionView, MigrationView, ReplicationView, ResourceView};
use crate::controller::zones::{ChoiceView, ZoneView};
use crate::feeds::external::view::FeedView;
use crate::leading::changes::{Reloaded, Reservation};
use crate::leading::comparison::ConfigView;
use crate::store::{Issued, NewToken, TokenView};
use crate::telemetry::logging::LogView;

const OK: StatusCode = StatusCode::OK;
const CREATED: StatusCode = StatusCode::CREATED;
const ACCEPTED: StatusCode = StatusCode::ACCEPTED;
const NO_CONTENT: StatusCode = StatusCode::NO_CONTENT;
const CONFLICT: StatusCode = StatusCode::CONFLICT;
const UNPROCESSABLE: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;
const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
const DRIVER: StatusCode = StatusCode::BAD_GATEWAY;
const INTERNAL: StatusCode = StatusCode::INTERNAL_SERVER_ERROR;

const WHERE: (&str, &str) = ("Location", "The migration.");
const TAG: (&str, &str) = ("ETag", "Names this state of the section.");

pub(super) fn all() -> Vec<Line> {
    let mut all = resources();
    all.extend(sections());
    all.extend(measured());
    all.extend(checks());
    all.extend(migrations());
    all.extend(freezes());
    all.extend(node());
    all.extend(callers());
    all.extend(pages());
    all
}

fn resources() -> Vec<Line> {
    vec![
        get("/api/v1/resources", "resources", "Every resource that the caller may know of, by name")
            .asks(
                "limit",
                Integer,
                "At most so many, 1 to 250; left out: 100. A Link header names the next page.",
            )
            .asks("after", Text, "Only those whose names sort behind this one.")
            .lists::<ResourceView>()
            .with("Link", "Where the next page is (rel=next, RFC 8288); missing on the last."),
        post(
            "/api/v1/resources",
            "reserve",
            "Reserves a resource: what `resources.NAME` would be in the file, and `name`",
        )
        .takes_object("docs/reservations.md")
        .asks("dry_run", Boolean, "Only say where it would be, and what the driver would do.")
        .hears(
            "Idempotency-Key",
            "1 to 200 visible letters: a second request gets the first one's answer for a day.",
        )
        .gives::<Reservation>(OK)
        .gives::<Reservation>(CREATED)
        .with("Location", "The resource.")
        .refuses(&[CONFLICT, UNPROCESSABLE, DRIVER, INTERNAL]),
        get("/api/v1/resources/{id}", "resource", "One, with placements, stream, gate and problems")
            .gives::<ResourceView>(OK),
        delete("/api/v1/resources/{id}", "release", "Drops a resource that was reserved")
            .done(NO_CONTENT)
            .refuses(&[CONFLICT, DRIVER, UNPROCESSABLE]),
    ]
}

/// The sections of a resource that can be changed.
fn sections() -> Vec<Line> {
    let seen = |line: Line| line.gives::<SectionView>(OK).with(TAG.0, TAG.1).refuses(&[INTERNAL]);
    let changed = |line: Line| seen(line).conditional().refuses(&[CONFLICT, UNPROCESSABLE, DRIVER]);
    let body = "The section, as GET shows it: docs/reservations.md";
    vec![
        seen(get("/api/v1/resources/{id}/shadow", "shadow", "The shadow's parameters")),
        changed(
            put("/api/v1/resources/{id}/shadow", "putShadow", "Enables, disables or sizes the shadow")
                .takes_object(body),
        ),
        changed(delete("/api/v1/resources/{id}/shadow", "resetShadow", "The shadow as the policy has it")),
        seen(get("/api/v1/resources/{id}/scaling", "scaling", "Workers by zone")),
        changed(
            put("/api/v1/resources/{id}/scaling", "putScaling", "Changes the workers by zone")
                .takes_object(body),
        ),
        changed(delete(
            "/api/v1/resources/{id}/scaling",
            "resetScaling",
            "Workers as the configuration has them",
        )),
        seen(get(
            "/api/v1/resources/{id}/replication/parameters",
            "replicationParameters",
            "How it is replicated",
        )),
        changed(
            put("/api/v1/resources/{id}/replication", "putReplication", "Changes how it is replicated")
                .takes_object(body),
        ),
        changed(delete(
            "/api/v1/resources/{id}/replication",
            "resetReplication",
            "Replication as the policy has it",
        )),
    ]
}

fn measured() -> Vec<Line> {
    vec![
        get("/api/v1/resources/{id}/score", "score", "The last decision: terms, guards, why not now")
            .gives::<DecisionView>(OK)
            .refuses(&[UNAVAILABLE]),
        get(
            "/api/v1/resources/{id}/forecast",
            "forecast",
            "The present fan by step, or why it abstains; how far to trust it",
        )
        .gives::<ForecastView>(OK),
        get("/api/v1/resources/{id}/latency", "latency", "Quantiles of the request path by segment and zone")
            .asks("from", Text, "A moment: RFC 3339, Unix milliseconds, or a span before now such as `1h`.")
            .asks("to", Text, "Likewise; default: now.")
            .asks("step", Text, "Width of a bucket, a multiple of `10s`.")
            .gives::<LatencyView>(OK)
            .refuses(&[UNAVAILABLE]),
        get("/api/v1/resources/{id}/history", "series", "What was measured, decided and forecast")
            .asks("series", Text, "Names, with commas; default: all.")
            .asks("resolution", Text, "`fine`, `medium` or `coarse`.")
            .asks("from", Text, "A moment.")
            .asks("to", Text, "A moment; default: now.")
            .asks("limit", Integer, "Rows of the page, 1 to 10,000.")
            .asks("cursor", Text, "From the page before.")
            .gives::<HistoryView>(OK)
            .refuses(&[UNAVAILABLE]),
        get("/api/v1/resources/{id}/replication", "replication", "The stream to the shadow")
            .gives::<ReplicationView>(OK)
            .with(TAG.0, "Names the state of its parameters.")
            .refuses(&[INTERNAL]),
        get(
            "/api/v1/resources/{id}/zones",
            "choice",
            "Which zone its shadow should live in: every candidate with its terms",
        )
        .gives::<ChoiceView>(OK),
    ]
}

fn checks() -> Vec<Line> {
    vec![
        get(
            "/api/v1/resources/{id}/verification",
            "verification",
            "The last verification: progress, differences",
        )
        .gives::<VerificationView>(OK),
        post("/api/v1/resources/{id}/verification", "verify", "Compares shadow and primary row by row")
            .takes::<VerifyRequest>(false)
            .gives::<VerificationView>(ACCEPTED)
            .refuses(&[CONFLICT, DRIVER]),
        delete(
            "/api/v1/resources/{id}/verification",
            "stopVerification",
            "Stops the one that runs; it can be resumed",
        )
        .gives::<VerificationView>(OK)
        .refuses(&[CONFLICT]),
        get(
            "/api/v1/resources/{id}/doctor",
            "doctor",
            "GO or NO-GO: what is wrong with its databases, and what mends it",
        )
        .gives::<DoctorView>(OK),
        post("/api/v1/resources/{id}/reseed", "reseed", "Empties the shadow and copies again")
            .done(ACCEPTED)
            .refuses(&[CONFLICT, DRIVER]),
        post(
            "/api/v1/resources/{id}/reseed/tables",
            "reseedTables",
            "Copies some of the shadow's tables again, beside the stream",
        )
        .takes::<TablesRequest>(true)
        .gives::<SchemaView>(OK)
        .refuses(&[CONFLICT, DRIVER]),
        get(
            "/api/v1/resources/{id}/schema",
            "schema",
            "In what the shadow's schema differs from its primary's",
        )
        .gives::<SchemaView>(OK)
        .refuses(&[CONFLICT, DRIVER]),
        post("/api/v1/resources/{id}/schema/sync", "syncSchema", "Makes on the shadow what only adds")
            .takes::<SyncRequest>(false)
            .gives::<SchemaView>(OK)
            .refuses(&[CONFLICT, DRIVER]),
    ]
}

fn migrations() -> Vec<Line> {
    let listed = |line: Line| {
        line.asks("limit", Integer, "At most so many, newest first.")
            .asks("resource", Text, "Only those of this one.")
            .lists::<MigrationView>()
            .refuses(&[UNAVAILABLE])
    };
    vec![
        listed(get("/api/v1/resources/{id}/migrations", "migrations", "Its migrations, newest first")),
        post("/api/v1/resources/{id}/migrations", "migrate", "Moves it, or only says what would happen")
            .takes::<MigrateRequest>(false)
            .gives::<Plan>(OK)
            .gives::<Plan>(ACCEPTED)
            .with(WHERE.0, WHERE.1)
            .refuses(&[CONFLICT, DRIVER]),
        post(
            "/api/v1/resources/{id}/takeover",
            "takeOver",
            "Its primary is lost: the shadow takes over, or it is only said what would happen",
        )
        .takes::<TakeOverRequest>(false)
        .gives::<Plan>(OK)
        .gives::<Plan>(ACCEPTED)
        .with(WHERE.0, WHERE.1)
        .refuses(&[CONFLICT, DRIVER]),
        get(
            "/api/v1/resources/{id}/migrations/{mid}",
            "migration",
            "State, steps, hold, fence position, verification",
        )
        .gives::<MigrationView>(OK)
        .refuses(&[UNAVAILABLE]),
        post("/api/v1/resources/{id}/migrations/{mid}/abort", "abort", "Undoes it, before the commit")
            .done(ACCEPTED)
            .refuses(&[CONFLICT, DRIVER]),
        post(
            "/api/v1/resources/{id}/migrations/{mid}/retire",
            "retire",
            "Its old primary soaks no longer: it is retired once both sides have compared equal",
        )
        .done(ACCEPTED)
        .refuses(&[CONFLICT, DRIVER]),
        post("/api/v1/resources/{id}/proposals/{pid}/approve", "approve", "The proposed move begins")
            .gives::<Plan>(ACCEPTED)
            .with(WHERE.0, WHERE.1)
            .refuses(&[CONFLICT, DRIVER]),
        listed(get("/api/v1/history", "history", "Migrations of all resources, newest first")),
    ]
}

fn freezes() -> Vec<Line> {
    let frozen = |line: Line| line.lists::<FreezeView>().refuses(&[CONFLICT]);
    vec![
        frozen(
            post("/api/v1/resources/{id}/freeze", "freeze", "No moves of it").takes::<FreezeRequest>(true),
        ),
        frozen(delete("/api/v1/resources/{id}/freeze", "unfreeze", "Lifts that")),
        get("/api/v1/freezes", "freezes", "Those in effect").lists::<FreezeView>(),
        frozen(post("/api/v1/freezes", "freezeAll", "No moves at all").takes::<FreezeRequest>(true)),
        frozen(delete("/api/v1/freezes", "unfreezeAll", "Lifts that")),
    ]
}

fn node() -> Vec<Line> {
    vec![
        get("/api/v1/zones", "zones", "Every zone: where it is, who has a placement there")
            .lists::<ZoneView>(),
        get("/api/v1/feeds", "feeds", "What feeds say: readings, age, source, state, last error")
            .lists::<FeedView>(),
        get("/api/v1/feeds/{name}", "feed", "One of them").gives::<FeedView>(OK),
        post("/api/v1/feeds/{name}", "postFeed", "What somebody else posts to a webhook, signed")
            .takes_object("As the feed's `map` reads it: docs/feeds.md")
            .hears(
                crate::feeds::external::webhook::HEADER,
                "`t=SECONDS,v1=HEX`: when it is posted (Unix time), and the HMAC-SHA256 of `SECONDS.BODY` with the feed's secret (docs/feeds.md).",
            )
            .gives_objects(ACCEPTED, false)
            .refuses(&[UNPROCESSABLE]),
        get("/api/v1/config", "config", "What the node runs with, key by key, and what differs in the files")
            .gives::<ConfigView>(OK)
            .refuses(&[UNAVAILABLE]),
        post("/api/v1/config/reload", "reload", "Reads the files anew: what changed, what needs a restart")
            .gives::<Reloaded>(OK)
            .refuses(&[CONFLICT, UNPROCESSABLE, DRIVER]),
        get("/api/v1/lead", "leads", "Whether this node leads, where several may").gives::<LeadView>(OK),
        post("/api/v1/lead", "lead", "Has a node that stands by lead")
            .takes::<LeadRequest>(false)
            .gives::<LeadView>(ACCEPTED)
            .refuses(&[CONFLICT]),
        get("/api/v1/log", "log", "What the node logs").gives::<LogView>(OK).refuses(&[UNAVAILABLE]),
        put("/api/v1/log", "setLog", "Logs something else from now on, until it ends")
            .takes::<LogRequest>(true)
            .gives::<LogView>(OK)
            .refuses(&[UNPROCESSABLE]),
        delete("/api/v1/log", "resetLog", "Logs what it logged when it started").gives::<LogView>(OK),
        get("/api/v1/audit", "audit", "Records of the audit, newest first: docs/audit.md")
            .asks("limit", Integer, "At most so many, 1 to 1,000.")
            .asks("before", Integer, "Only records before this number.")
            .asks("resource", Text, "Only those about this one.")
            .asks("who", Text, "Only those of this caller: its name, or its id.")
            .gives_objects(OK, true)
            .refuses(&[UNAVAILABLE]),
        get("/api/v1/events", "events", "What changes, as it does: docs/events.md")
            .asks("resource", Text, "Only this one.")
            .hears("Last-Event-ID", "The number of the last event that was seen.")
            .says(OK, "text/event-stream")
            .refuses(&[StatusCode::NOT_FOUND, UNAVAILABLE]),
        get("/api/v1/openapi.json", "openapi", "This description").gives_objects(OK, false),
    ]
}

fn callers() -> Vec<Line> {
    vec![
        get("/api/v1/whoami", "whoami", "Who the caller is, and what it may do").gives::<WhoView>(OK),
        post("/api/v1/session", "logIn", "A cookie that stands for a token")
            .takes::<LogIn>(true)
            .gives::<WhoView>(OK)
            .with("Set-Cookie", "HttpOnly, SameSite=Strict.")
            .refuses(&[StatusCode::UNAUTHORIZED, CONFLICT, INTERNAL]),
        delete("/api/v1/session", "logOut", "Ends what the cookie stands for")
            .done(NO_CONTENT)
            .refuses(&[INTERNAL]),
        get("/api/v1/tokens", "tokens", "Every token, without its secret")
            .lists::<TokenView>()
            .refuses(&[UNAVAILABLE]),
        post("/api/v1/tokens", "createToken", "Makes one; its secret is in this answer only")
            .takes::<NewToken>(true)
            .gives::<Issued>(CREATED),
        delete("/api/v1/tokens/{id}", "revokeToken", "It counts no more").done(NO_CONTENT),
    ]
}

fn pages() -> Vec<Line> {
    vec![
        get("/", "index", "The dashboard").says(OK, "text/html").done(StatusCode::NOT_MODIFIED),
        get("/dashboard/{*path}", "asset", "A file of the dashboard")
            .says(OK, "*/*")
            .done(StatusCode::NOT_MODIFIED),
        get("/metrics", "metrics", "Everything Prometheus scrapes: docs/metrics.md")
            .says(OK, "text/plain")
            .refuses(&[StatusCode::NOT_FOUND]),
        get("/livez", "livez", "The process lives").says(OK, "text/plain"),
        get("/readyz", "readyz", "Every gate is open")
            .asks("leads", Text, "Also ready while it holds requests: not where another node leads.")
            .asks("verbose", Text, "A line for each resource that the caller may read.")
            .says(OK, "text/plain")
            .says(UNAVAILABLE, "text/plain"),
    ]
}
