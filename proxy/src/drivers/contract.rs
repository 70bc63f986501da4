//! What Godwit and a driver outside of it say to each other: JSON, the same for `exec` and `webhook` (docs/drivers.md).
//!
//! Pure. A request is one object. An answer is one object with `result` or `error`; before it there may be any number of
//! objects with `progress`. What an answer has beside the known keys is ignored, what lacks is an error.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Action, DriverError, DriverErrorKind, Endpoint, Operation, PlacementStatus, Wanted};

/// The version of the contract.
pub const VERSION: u32 = 1;
/// Longest answer, bytes, progress included.
pub const LONGEST: u64 = 1 << 20;
/// Longest message that is passed on, characters.
const MESSAGE: usize = 500;
/// Most endpoints of a placement.
const ENDPOINTS: usize = 10_000;

/// Which placement an outside driver is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The resource.
    pub resource: String,
    /// The zone.
    pub zone: String,
    /// Workers at full capacity.
    pub full: u32,
    /// The database that a placement made by the driver must have; none: the resource has no database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseNames>,
}

/// Names in the primary's database that the shadow's must have, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseNames {
    /// The database.
    pub name: String,
    /// The role that Godwit uses.
    pub role: String,
    /// Roles of the applications.
    pub app_roles: Vec<String>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub contract: u32,
    /// `plan`, `provision`, `scale`, `status`, `endpoint`, `deprovision`.
    pub verb: String,
    /// Of a plan: what would be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// The same for every attempt at the same thing; none: nothing is to be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// How long it may take.
    pub deadline_ms: u64,
    /// Which placement.
    #[serde(flatten)]
    pub placement: Placement,
    /// Workers wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
    /// Settings of the primary's PostgreSQL that a new database must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
    /// What the configuration gives for this driver.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub parameters: serde_json::Value,
}

impl Request {
    /// A question: nothing is to be changed.
    pub fn asking(
        verb: &str,
        placement: &Placement,
        parameters: &serde_json::Value,
        within: Duration,
    ) -> Self {
        Self {
            contract: VERSION,
            verb: verb.to_owned(),
            of: None,
            operation: None,
            deadline_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
            placement: placement.clone(),
            capacity: None,
            settings: BTreeMap::new(),
            parameters: parameters.clone(),
        }
    }

    /// An operation.
    pub fn doing(
        action: Action,
        operation: &Operation,
        wanted: &Wanted,
        placement: &Placement,
        parameters: &serde_json::Value,
    ) -> Self {
        Self {
            operation: Some(operation.id.clone()),
            capacity: (action != Action::Deprovision).then_some(wanted.capacity),
            settings: wanted.settings.clone(),
            ..Self::asking(action.verb(), placement, parameters, operation.deadline)
        }
    }

    /// How long it may take.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }
}

/// How far an operation is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to 1; none: not known.
    #[serde(default)]
    pub done: Option<f64>,
    /// What it does.
    #[serde(default)]
    pub message: String,
}

/// What a driver says at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Outcome {
    /// Workers that are ready.
    pub ready: Option<u32>,
    /// Workers that were asked for last.
    pub capacity: Option<u32>,
    /// The database accepts connections.
    pub database: Option<bool>,
    /// Endpoints, where the driver decides them.
    #[serde(default)]
    pub http: Vec<String>,
    /// Connection string of the database, without a password.
    pub dsn: Option<String>,
    /// Of a plan.
    #[serde(default)]
    pub steps: Vec<String>,
}

/// One object of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Not the end yet.
    Progress(Progress),
    /// Done.
    Result(Outcome),
    /// Not done.
    Error(DriverErrorKind, String),
}

#[derive(Deserialize)]
struct Raw {
    progress: Option<Progress>,
    result: Option<Outcome>,
    error: Option<RawError>,
}

#[derive(Deserialize)]
struct RawError {
    kind: String,
    #[serde(default)]
    message: String,
}

/// One object of an answer, or in words why it is none.
pub fn parse(bytes: &[u8]) -> Result<Said, String> {
    let raw: Raw =
        serde_json::from_slice(bytes).map_err(|error| format!("is not of the contract: {error}"))?;
    match (raw.result, raw.error, raw.progress) {
        (Some(result), None, None) => Ok(Said::Result(result)),
        (None, Some(error), None) => {
            let kind = DriverErrorKind::ALL.iter().find(|(name, _)| *name == error.kind);
            let (_, kind) = kind.ok_or_else(|| {
                let names = DriverErrorKind::ALL.map(|(name, _)| name).join(", ");
                format!("has an error of the kind {:?}; there are {names}", short(&error.kind))
            })?;
            Ok(Said::Error(*kind, short(&error.message)))
        }
        (None, None, Some(progress)) => {
            Ok(Said::Progress(Progress { message: short(&progress.message), ..progress }))
        }
        _ => Err("has not exactly one of progress, result and error".to_owned()),
    }
}

impl Outcome {
    /// As the status of a placement.
    pub fn status(&self) -> Result<PlacementStatus, String> {
        let lacks = |what: &str| format!("has a result without {what}");
        Ok(PlacementStatus {
            ready: self.ready.ok_or_else(|| lacks("ready"))?,
            capacity: self.capacity.ok_or_else(|| lacks("capacity"))?,
            database: self.database.ok_or_else(|| lacks("database"))?,
        })
    }

    /// The endpoint in it, checked; empty: it says none.
    pub fn endpoint(&self) -> Result<Endpoint, String> {
        if self.http.len() > ENDPOINTS {
            return Err(format!("has {} endpoints; at most {ENDPOINTS}", self.http.len()));
        }
        for endpoint in &self.http {
            let port = endpoint.rsplit_once(':').and_then(|(host, port)| {
                (!host.is_empty() && !host.contains(['/', '@', ' '])).then(|| port.parse::<u16>().ok())?
            });
            if port.is_none_or(|port| port == 0) {
                return Err(format!("has the endpoint {:?}, which is not HOST:PORT", short(endpoint)));
            }
        }
        if let Some(dsn) = &self.dsn {
            // Not quoted: it might hold a secret.
            let dsn: replicator::postgres::Dsn =
                dsn.parse().map_err(|_| "has a dsn that is not a connection string".to_owned())?;
            if dsn.get_password().is_some() {
                return Err(
                    "has a dsn with a password: give the driver's `password` in the configuration".into()
                );
            }
            if dsn.get_user().is_none() || dsn.get_dbname().is_none() || dsn.get_hosts().len() != 1 {
                return Err("has a dsn that lacks one of user, host and database".into());
            }
        }
        Ok(Endpoint { http: self.http.clone(), dsn: self.dsn.clone() })
    }
}

/// An error of a driver outside.
pub(super) fn outside(kind: DriverErrorKind, what: impl Into<String>) -> DriverError {
    DriverError::Outside { kind, what: what.into() }
}

/// One line of bounded length.
pub(super) fn short(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE).collect();
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_flat_json() {
        let placement = Placement {
            resource: "orders".into(),
            zone: "eu-central".into(),
            full: 4,
            database: Some(DatabaseNames {
                name: "orders".into(),
                role: "godwit".into(),
                app_roles: vec!["shop".into()],
            }),
        };
        let wanted = Wanted {
            capacity: 1,
            settings: BTreeMap::from([("max_connections".to_owned(), "300".to_owned())]),
        };
        let parameters = serde_json::json!({"size": "db.t4"});
        let request =
            Request::doing(Action::Provision, &Operation::new("op-1"), &wanted, &placement, &parameters);
        insta::assert_snapshot!(serde_json::to_string_pretty(&request).unwrap(), @r#"
        {
          "contract": 1,
          "verb": "provision",
          "operation": "op-1",
          "deadline_ms": 600000,
          "resource": "orders",
          "zone": "eu-central",
          "full": 4,
          "database": {
            "name": "orders",
            "role": "godwit",
            "app_roles": [
              "shop"
            ]
          },
          "capacity": 1,
          "settings": {
            "max_connections": "300"
          },
          "parameters": {
            "size": "db.t4"
          }
        }
        "#);
        let asked = Request::asking("status", &placement, &serde_json::Value::Null, Duration::from_secs(5));
        let text = serde_json::to_string(&asked).unwrap();
        assert!(!text.contains("operation") && !text.contains("settings"), "{text}");
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), asked);
    }

    #[test]
    fn answers_are_understood_or_named() {
        let said = |text: &str| match parse(text.as_bytes()) {
            Ok(said) => format!("{said:?}"),
            Err(why) => why,
        };
        let lines = [
            r#"{"progress": {"done": 0.5, "message": "copies\nfiles"}}"#,
            r#"{"result": {"ready": 1, "capacity": 2, "database": true, "later": "x"}}"#,
            r#"{"error": {"kind": "busy", "message": "another one runs"}}"#,
            r#"{"error": {"kind": "tired"}}"#,
            r#"{"result": {"ready": -1}}"#,
            r#"{"result": {}, "error": {"kind": "busy"}}"#,
            "{}",
            "done",
        ];
        insta::assert_snapshot!(lines.map(said).join("\n"), @r#"
        Progress(Progress { done: Some(0.5), message: "copies files" })
        Result(Outcome { ready: Some(1), capacity: Some(2), database: Some(true), http: [], dsn: None, steps: [] })
        Error(Busy, "another one runs")
        has an error of the kind "tired"; there are refused, busy, not_ready, failed
        is not of the contract: invalid value: integer `-1`, expected u32 at line 1 column 23
        has not exactly one of progress, result and error
        has not exactly one of progress, result and error
        is not of the contract: expected value at line 1 column 1
        "#);
    }

    #[test]
    fn endpoints_are_checked_before_they_are_believed() {
        let endpoint = |http: &[&str], dsn: Option<&str>| {
            let http = http.iter().map(ToString::to_string).collect();
            Outcome { http, dsn: dsn.map(str::to_owned), ..Outcome::default() }.endpoint()
        };
        assert_eq!(endpoint(&[], None), Ok(Endpoint::default()));
        let right =
            endpoint(&["10.0.0.1:8000", "[::1]:80"], Some("postgres://godwit@10.0.0.1/orders")).unwrap();
        assert_eq!(right.http.len(), 2);
        for wrong in ["10.0.0.1", ":80", "host:0", "host:99999", "http://host:80/x", "a b:80"] {
            assert!(endpoint(&[wrong], None).unwrap_err().contains("HOST:PORT"), "{wrong}");
        }
        let secret = endpoint(&[], Some("postgres://godwit:hunter2@10.0.0.1/orders")).unwrap_err();
        assert!(secret.contains("password") && !secret.contains("hunter2"), "{secret}");
        assert!(endpoint(&[], Some("postgres://10.0.0.1")).unwrap_err().contains("lacks"));
        assert!(endpoint(&[], Some("mysql://x")).is_err());
    }
}
