//! Commands that ask a running node.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::client::{Client, percent, resource_path};
use super::{Output, out, render};
use crate::admin::LeadView;
use crate::config::catalogue;
use crate::controller::Plan;
use crate::controller::doctor::DoctorView;
use crate::controller::drift::{DifferenceView, FillingView, SchemaView, SyncRequest, TablesRequest};
use crate::controller::forecast::ForecastView;
use crate::controller::freezes::FreezeView;
use crate::controller::view::{DecisionView, MigrationView, ReplicationView, ResourceView};
use crate::controller::zones::{ChoiceView, ZoneView};
use crate::telemetry::logging::LogView;

/// The exit code of what was refused.
pub(super) const REFUSED: u8 = 4;
/// How often it is asked how far a table is.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// The exit code of a move that was rolled back.
const ROLLED_BACK: u8 = 5;

/// Prints an answer; whether anybody reads on.
pub(super) fn show<T: serde::Serialize>(
    output: Output,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<bool> {
    out(match output {
        Output::Json => serde_json::to_string_pretty(value)? + "\n",
        Output::Table => table(value),
    })
}

/// Whether the node takes requests; or, with `live`, whether it runs; or, with `leads`, whether no other one leads.
pub(super) fn ready(client: &Client, live: bool, leads: bool, output: Output) -> Result<ExitCode> {
    let path = if live {
        "/livez"
    } else if leads {
        "/readyz?leads"
    } else {
        "/readyz"
    };
    let answer = client.text(path)?;
    done(output, &serde_json::json!({ "answer": answer.trim_end() }), answer.trim_end())
}

pub(super) fn status(
    client: &Client,
    resource: Option<&str>,
    watch: bool,
    output: Output,
) -> Result<ExitCode> {
    loop {
        let views: Vec<ResourceView> = match resource {
            Some(name) => vec![client.get(&resource_path(name))?],
            None => client.get_all("/api/v1/resources?limit=250")?,
        };
        let read = show(output, &views, |views| render::resources(views))?;
        if !watch || !read {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

pub(super) fn explain(client: &Client, resource: &str, output: Output) -> Result<ExitCode> {
    let decision: DecisionView = client.get(&format!("{}/score", resource_path(resource)))?;
    show(output, &decision, render::decision)?;
    if output == Output::Table {
        let stream: ReplicationView = client.get(&format!("{}/replication", resource_path(resource)))?;
        let forecast: ForecastView = client.get(&format!("{}/forecast", resource_path(resource)))?;
        out(format!("\n{}\n{}", super::history::trust(&forecast), render::mode(&stream.mode)))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn plan(client: &Client, resource: &str, to: Option<&str>, output: Output) -> Result<ExitCode> {
    let body = serde_json::json!({ "to": to, "dry_run": true });
    let answer = client.post(&format!("{}/migrations", resource_path(resource)), &body)?;
    let plan: Plan = serde_json::from_slice(&answer)?;
    planned(&plan, output)
}

/// What would happen, and whether it would be refused.
fn planned(plan: &Plan, output: Output) -> Result<ExitCode> {
    let stopped = plan.guards.iter().any(|guard| guard.binds_operator && !guard.passed);
    show(output, plan, render::plan)?;
    Ok(if stopped { ExitCode::from(REFUSED) } else { ExitCode::SUCCESS })
}

pub(super) fn zones(client: &Client, resource: Option<&str>, output: Output) -> Result<ExitCode> {
    if let Some(resource) = resource {
        let choice: ChoiceView = client.get(&format!("{}/zones", resource_path(resource)))?;
        show(output, &choice, render::choice)?;
    } else {
        let zones: Vec<ZoneView> = client.get("/api/v1/zones")?;
        show(output, &zones, |zones| render::zones(zones))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn doctor(client: &Client, resource: Option<&str>, output: Output) -> Result<ExitCode> {
    let names = match resource {
        Some(name) => vec![name.to_owned()],
        None => {
            let views: Vec<ResourceView> = client.get_all("/api/v1/resources?limit=250")?;
            views.into_iter().map(|view| view.name).collect()
        }
    };
    if names.is_empty() {
        bail!("the node has no resource to examine");
    }
    let found = names
        .iter()
        .map(|name| client.get(&format!("{}/doctor", resource_path(name))))
        .collect::<Result<Vec<DoctorView>>>()?;
    show(output, &found, |found| render::doctor(found))?;
    let go = found.iter().all(|view| view.go);
    Ok(if go { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

pub(super) fn catalogue(output: Output) -> Result<ExitCode> {
    show(output, catalogue::built_in(), render::catalogue)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn migrate(
    client: &Client,
    resource: &str,
    to: &str,
    wait: bool,
    output: Output,
) -> Result<ExitCode> {
    let body = serde_json::json!({ "to": to });
    let answer = client.post(&format!("{}/migrations", resource_path(resource)), &body)?;
    let plan: Plan = serde_json::from_slice(&answer)?;
    if plan.approval.is_some() {
        show(output, &plan, |plan| render::approval(resource, plan))?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(id) = &plan.id else { bail!("the node did not say which migration it started") };
    if !wait {
        show(output, &plan, |plan| format!("migration {id} started: {} → {}\n", plan.from, plan.to))?;
        return Ok(ExitCode::SUCCESS);
    }
    follow(client, resource, id, output)
}

/// A shadow takes over, or it is said what would happen if it did.
pub(super) fn take_over(
    client: &Client,
    resource: &str,
    body: &serde_json::Value,
    wait: bool,
    output: Output,
) -> Result<ExitCode> {
    let answer = client.post(&format!("{}/takeover", resource_path(resource)), body)?;
    let plan: Plan = serde_json::from_slice(&answer)?;
    let Some(id) = &plan.id else { return planned(&plan, output) };
    if wait {
        return follow(client, resource, id, output);
    }
    show(output, &plan, |plan| format!("{} takes over from {} (migration {id})\n", plan.to, plan.from))?;
    Ok(ExitCode::SUCCESS)
}

/// Shows a migration until clients are served again.
fn follow(client: &Client, resource: &str, id: &str, output: Output) -> Result<ExitCode> {
    let path = format!("{}/migrations/{id}", resource_path(resource));
    let mut shown = 0;
    loop {
        let view: MigrationView = client.get(&path)?;
        if output == Output::Table {
            for step in view.steps.iter().skip(shown) {
                eprintln!("{}", step.phase);
            }
            shown = view.steps.len();
        }
        let aborted = view.state == "aborted";
        let served = view.steps.iter().any(|step| step.phase == "watching");
        if aborted || served || view.ended() {
            show(output, &view, render::migration)?;
            return Ok(if aborted { ExitCode::from(ROLLED_BACK) } else { ExitCode::SUCCESS });
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

pub(super) fn approve(client: &Client, resource: &str, id: Option<&str>, output: Output) -> Result<ExitCode> {
    let id = match id {
        Some(id) => id.to_owned(),
        None => {
            let view: ResourceView = client.get(&resource_path(resource))?;
            let Some(proposal) = view.proposal else { bail!("no move of {resource} is proposed") };
            proposal.id
        }
    };
    let path = format!("{}/proposals/{}/approve", resource_path(resource), percent(&id));
    let answer = client.post(&path, &serde_json::json!({}))?;
    let plan: Plan = serde_json::from_slice(&answer)?;
    show(output, &plan, |plan| {
        let Some(id) = &plan.id else { return render::approval(resource, plan) };
        format!("migration {id} started: {} → {}\n", plan.from, plan.to)
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn log(client: &Client, filter: Option<&str>, reset: bool, output: Output) -> Result<ExitCode> {
    let path = "/api/v1/log";
    let view: LogView = match filter {
        Some(filter) => client.put(path, &serde_json::json!({ "filter": filter }), "*")?,
        None if reset => serde_json::from_slice(&client.delete(path)?)?,
        None => client.get(path)?,
    };
    show(output, &view, |view| format!("{}\n", view.filter))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn lead(client: &Client, without_primary: bool, output: Output) -> Result<ExitCode> {
    let path = "/api/v1/lead";
    let view: LeadView = if without_primary {
        serde_json::from_slice(&client.post(path, &serde_json::json!({ "without_primary": true }))?)?
    } else {
        client.get(path)?
    };
    show(output, &view, |view| match &view.why {
        None => "this node leads\n".into(),
        Some(why) => format!("this node stands by: {why}\n"),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn freezes_path(resource: Option<&str>) -> String {
    resource.map_or("/api/v1/freezes".into(), |name| format!("{}/freeze", resource_path(name)))
}

pub(super) fn freeze(
    client: &Client,
    resource: Option<&str>,
    why: &str,
    lasting: Option<Duration>,
    output: Output,
) -> Result<ExitCode> {
    let for_ms = lasting.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
    let body = serde_json::json!({ "why": why, "for_ms": for_ms });
    let answer = client.post(&freezes_path(resource), &body)?;
    let freezes: Vec<FreezeView> = serde_json::from_slice(&answer)?;
    show(output, &freezes, |freezes| render::freezes(freezes))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn freezes(client: &Client, output: Output) -> Result<ExitCode> {
    let freezes: Vec<FreezeView> = client.get("/api/v1/freezes")?;
    show(output, &freezes, |freezes| render::freezes(freezes))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn unfreeze(client: &Client, resource: Option<&str>, output: Output) -> Result<ExitCode> {
    let mut lifted: Vec<FreezeView> = client.get("/api/v1/freezes")?;
    let answer = client.delete(&freezes_path(resource))?;
    let freezes: Vec<FreezeView> = serde_json::from_slice(&answer)?;
    lifted.retain(|freeze| freeze.resource.as_deref() == resource && !freezes.contains(freeze));
    show(output, &freezes, |freezes| render::lifted(&lifted) + &render::freezes(freezes))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn abort(client: &Client, resource: &str, output: Output) -> Result<ExitCode> {
    let view: ResourceView = client.get(&resource_path(resource))?;
    let Some(id) = view.migration else { bail!("no migration of {resource} is under way") };
    client.post(&format!("{}/migrations/{id}/abort", resource_path(resource)), &serde_json::json!({}))?;
    let text = format!("migration {id} is being undone: {} stays the primary", view.primary);
    done(output, &serde_json::json!({ "migration": id, "primary": view.primary }), &text)
}

pub(super) fn retire(client: &Client, resource: &str, output: Output) -> Result<ExitCode> {
    let view: ResourceView = client.get(&resource_path(resource))?;
    let (Some(id), old) = (view.migration, view.shadow) else {
        bail!("no old primary of {resource} soaks: the resource is {}", view.phase)
    };
    client.post(&format!("{}/migrations/{id}/retire", resource_path(resource)), &serde_json::json!({}))?;
    let text = match view.soak {
        Some(soak) if soak.unverified => format!("{old} is retired once both sides compare equal"),
        _ => format!("{old} is being retired"),
    };
    done(output, &serde_json::json!({ "migration": id, "shadow": old }), &text)
}

pub(super) fn schema(client: &Client, resource: &str, output: Output) -> Result<ExitCode> {
    let view: SchemaView = client.get(&format!("{}/schema", resource_path(resource)))?;
    show(output, &view, render::schema)?;
    Ok(if view.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

pub(super) fn sync_schema(
    client: &Client,
    resource: &str,
    request: SyncRequest,
    output: Output,
) -> Result<ExitCode> {
    let body = serde_json::to_value(request)?;
    let mut done = Vec::new();
    let view = loop {
        let answer = client.post(&format!("{}/schema/sync", resource_path(resource)), &body)?;
        let mut view: SchemaView = serde_json::from_slice(&answer)?;
        done.append(&mut view.done);
        if request.dry_run || view.filling.is_none() {
            break SchemaView { done, ..view };
        }
        // What comes after the table is done by another sync.
        done.extend(filled(client, resource, view)?);
    };
    show(output, &view, render::schema)?;
    let done = |difference: &DifferenceView| difference.additive || request.drop && difference.drops;
    let left = view.differences.iter().any(|difference| !(request.dry_run && done(difference)));
    Ok(if left { ExitCode::from(REFUSED) } else { ExitCode::SUCCESS })
}

/// Shows how far a table is, until it is filled; tells which. Nothing of it where standard error is no terminal.
fn filled(client: &Client, resource: &str, mut view: SchemaView) -> Result<Vec<String>> {
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template(
        "{wide_bar} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {msg}",
    )?);
    let mut tables = Vec::new();
    while let Some(FillingView { table, bytes, of }) = view.filling {
        bar.set_length(of);
        bar.set_position(bytes);
        bar.set_message(table.clone());
        if tables.last() != Some(&table) {
            tables.push(table);
        }
        std::thread::sleep(ASK_EVERY);
        view = client.get(&format!("{}/schema", resource_path(resource)))?;
    }
    bar.finish_and_clear();
    // What broke is there again.
    tables.retain(|table| view.differences.iter().all(|left| left.subject != *table));
    Ok(tables
        .into_iter()
        .map(|table| format!("{table}: made, filled beside the stream, published"))
        .collect())
}

pub(super) fn reseed_tables(
    client: &Client,
    resource: &str,
    tables: Vec<String>,
    output: Output,
) -> Result<ExitCode> {
    let body = serde_json::to_value(TablesRequest { tables })?;
    let answer = client.post(&format!("{}/reseed/tables", resource_path(resource)), &body)?;
    let mut view: SchemaView = serde_json::from_slice(&answer)?;
    if view.filling.is_some() {
        let mut done = std::mem::take(&mut view.done);
        done.extend(filled(client, resource, view)?);
        view = client.get(&format!("{}/schema", resource_path(resource)))?;
        view.done = done;
    }
    show(output, &view, render::schema)?;
    Ok(if view.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

pub(super) fn reseed(client: &Client, resource: &str, output: Output) -> Result<ExitCode> {
    client.post(&format!("{}/reseed", resource_path(resource)), &serde_json::json!({}))?;
    let text = format!(
        "the shadow of {resource} is being seeded anew; `godwit status {resource}` shows how far it is"
    );
    done(output, &serde_json::json!({ "resource": resource }), &text)
}

/// What was done, in a line or as JSON.
pub(super) fn done(output: Output, what: &serde_json::Value, text: &str) -> Result<ExitCode> {
    show(output, what, |_| format!("{text}\n"))?;
    Ok(ExitCode::SUCCESS)
}
