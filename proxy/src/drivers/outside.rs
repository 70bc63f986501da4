//! A driver outside of this process, whatever carries the contract to it: one operation at a time, each done once.
//!
//! A ledger in the state directory says which operations were done and where the placement can be reached, so that a
//! repeated one is answered without asking again. Where the outside did the work and its answer was lost, it is asked
//! again under the same id: that the second time does nothing is its part of the contract.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::contract::{Outcome, Placement, Request, outside};
use super::error::io;
use super::ledger::{Action, Ledger, Maker};
use super::{
    DriverError, DriverErrorKind, Endpoint, Operation, PlacementStatus, Plan, Provisioning, Wanted,
    to_the_end, within,
};

/// How long a question may take.
const QUESTION: Duration = Duration::from_secs(30);

/// Carries one request and brings its answer.
#[async_trait]
pub trait Carrier: Send + Sync + 'static {
    /// The program or service, for messages.
    fn name(&self) -> String;

    /// Asks once, or until the request's deadline. Errors are those of the outside, or of the way to it.
    async fn ask(&self, request: &Request) -> Result<Outcome, DriverError>;

    /// What there is becomes the placement's as it is; `request` is the question for its status.
    async fn adopt(&self, request: &Request) -> Result<Outcome, DriverError> {
        self.ask(request).await
    }
}

/// A driver whose work is done outside.
pub struct Outside {
    shared: Arc<Shared>,
    pace: Duration,
}

struct Shared {
    carrier: Box<dyn Carrier>,
    placement: Placement,
    parameters: serde_json::Value,
    /// Of the ledger.
    directory: PathBuf,
    maker: OnceLock<Maker>,
    turn: Mutex<()>,
}

impl Outside {
    /// The driver of `placement`; its ledger is in `directory`, which is made when there is something to remember.
    pub fn new(
        carrier: Box<dyn Carrier>,
        placement: Placement,
        parameters: serde_json::Value,
        directory: PathBuf,
        pace: Duration,
    ) -> Self {
        let (maker, turn) = (OnceLock::new(), Mutex::default());
        let shared = Shared { carrier, placement, parameters, directory, maker, turn };
        Self { shared: Arc::new(shared), pace }
    }

    /// The same under its name: what a ledger has of another driver is not asked of it.
    #[must_use]
    pub fn named(self, maker: Maker) -> Self {
        // It has no name yet.
        let _ = self.shared.maker.set(maker);
        self
    }

    async fn question(&self, verb: &str) -> Result<Outcome, DriverError> {
        let shared = &self.shared;
        let request = Request::asking(verb, &shared.placement, &shared.parameters, QUESTION);
        shared.carrier.ask(&request).await
    }

    async fn operate(
        &self,
        action: Action,
        operation: &Operation,
        wanted: &Wanted,
    ) -> Result<PlacementStatus, DriverError> {
        let (shared, asked, wanted) = (self.shared.clone(), operation.clone(), wanted.clone());
        let work = to_the_end(async move {
            let _turn = shared.turn.lock().await;
            shared.operate(action, &asked, &wanted).await
        });
        within(operation, work).await
    }
}

impl Shared {
    async fn operate(
        &self,
        action: Action,
        operation: &Operation,
        wanted: &Wanted,
    ) -> Result<PlacementStatus, DriverError> {
        let mut ledger = match (Ledger::read(&self.directory)?, action) {
            (Some(ledger), _) => ledger,
            (None, Action::Provision) => Ledger::new(),
            // What was never provisioned here is not ours to change.
            (None, _) => return Err(DriverError::NotProvisioned { directory: self.directory.clone() }),
        };
        // What is to end may not have ended yet.
        if ledger.capacity.is_some() || action == Action::Deprovision {
            self.check_maker(&ledger)?;
        }
        let capacity = if action == Action::Deprovision { 0 } else { wanted.capacity };
        if ledger.did(&operation.id, action, capacity)? {
            tracing::debug!(operation = operation.id, "done before");
            return Ok(PlacementStatus {
                ready: capacity,
                capacity,
                database: action != Action::Deprovision,
            });
        }
        if action == Action::Scale && ledger.capacity.is_none() {
            return Err(DriverError::NotProvisioned { directory: self.directory.clone() });
        }
        // First what is wanted, then the work: what is ours is known even if we die while it is made.
        ledger.capacity = (action != Action::Deprovision).then_some(capacity);
        ledger.driver = self.maker.get().cloned();
        self.write(&ledger)?;
        let request = Request::doing(action, operation, wanted, &self.placement, &self.parameters);
        let outcome = self.carrier.ask(&request).await?;
        let status = match action {
            Action::Deprovision => PlacementStatus::default(),
            Action::Provision | Action::Scale => self.judged(outcome.status())?,
        };
        if action != Action::Deprovision && status.ready < capacity {
            let what =
                format!("{} says that {} of {capacity} workers are ready", self.carrier.name(), status.ready);
            return Err(outside(DriverErrorKind::NotReady, what));
        }
        let endpoint = self.judged(outcome.endpoint())?;
        if action == Action::Deprovision {
            (ledger.endpoint, ledger.driver) = (None, None);
        } else if endpoint != Endpoint::default() {
            ledger.endpoint = Some(endpoint);
        }
        ledger.note(&operation.id, action, capacity);
        self.write(&ledger)?;
        Ok(status)
    }

    fn judged<T>(&self, read: Result<T, String>) -> Result<T, DriverError> {
        read.map_err(|why| {
            outside(DriverErrorKind::Failed, format!("the answer of {} {why}", self.carrier.name()))
        })
    }

    fn check_maker(&self, ledger: &Ledger) -> Result<(), DriverError> {
        ledger.check_maker(&self.directory, self.maker.get())
    }

    fn write(&self, ledger: &Ledger) -> Result<(), DriverError> {
        std::fs::create_dir_all(&self.directory)
            .map_err(|source| io(format!("create {}", self.directory.display()), source))?;
        ledger.write(&self.directory)
    }
}

#[async_trait]
impl Provisioning for Outside {
    async fn plan(&self, action: Action, wanted: &Wanted) -> Result<Plan, DriverError> {
        let shared = &self.shared;
        let mut request = Request::asking("plan", &shared.placement, &shared.parameters, QUESTION);
        request.of = Some(action.verb().to_owned());
        request.capacity = (action != Action::Deprovision).then_some(wanted.capacity);
        request.settings.clone_from(&wanted.settings);
        Ok(Plan { steps: shared.carrier.ask(&request).await?.steps })
    }

    async fn provision(
        &self,
        operation: &Operation,
        wanted: &Wanted,
    ) -> Result<PlacementStatus, DriverError> {
        self.operate(Action::Provision, operation, wanted).await
    }

    /// Whoever runs it there decides how large it is: its status is asked for, and no more.
    async fn adopt(&self, _: &Operation, capacity: u32) -> Result<PlacementStatus, DriverError> {
        let shared = &self.shared;
        {
            let _turn = shared.turn.lock().await;
            let mut ledger = Ledger::read(&shared.directory)?.unwrap_or_default();
            if ledger.capacity.is_some() {
                shared.check_maker(&ledger)?;
            }
            let maker = shared.maker.get();
            if ledger.capacity.is_none() || ledger.driver.as_ref() != maker {
                ledger.capacity.get_or_insert(capacity);
                ledger.driver = maker.cloned();
                shared.write(&ledger)?;
            }
        }
        let request = Request::asking("status", &shared.placement, &shared.parameters, QUESTION);
        shared.judged(shared.carrier.adopt(&request).await?.status())
    }

    async fn scale(&self, operation: &Operation, capacity: u32) -> Result<PlacementStatus, DriverError> {
        self.operate(Action::Scale, operation, &capacity.into()).await
    }

    async fn status(&self) -> Result<PlacementStatus, DriverError> {
        if !self.provisioned()? {
            return Ok(PlacementStatus::default());
        }
        let outcome = self.question("status").await?;
        self.shared.judged(outcome.status())
    }

    async fn endpoint(&self) -> Result<Endpoint, DriverError> {
        let outcome = self.question("endpoint").await?;
        let endpoint = self.shared.judged(outcome.endpoint())?;
        let _turn = self.shared.turn.lock().await;
        if endpoint != Endpoint::default()
            && let Some(mut ledger) = Ledger::read(&self.shared.directory)?
            && ledger.endpoint.as_ref() != Some(&endpoint)
        {
            ledger.endpoint = Some(endpoint.clone());
            ledger.write(&self.shared.directory)?;
        }
        Ok(endpoint)
    }

    fn provisioned(&self) -> Result<bool, DriverError> {
        let ledger = Ledger::read(&self.shared.directory)?.filter(|ledger| ledger.capacity.is_some());
        ledger.map_or(Ok(false), |ledger| self.shared.check_maker(&ledger).map(|()| true))
    }

    async fn deprovision(&self, operation: &Operation) -> Result<(), DriverError> {
        self.operate(Action::Deprovision, operation, &Wanted::default()).await.map(drop)
    }

    fn pace(&self) -> Duration {
        self.pace
    }

    fn known_endpoint(&self) -> Option<Endpoint> {
        Ledger::read(&self.shared.directory).ok().flatten()?.endpoint
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as Lock;

    use super::*;

    /// Answers from a list, and keeps what it was asked.
    struct Scripted {
        answers: Lock<Vec<Result<Outcome, DriverError>>>,
        asked: Arc<Lock<Vec<Request>>>,
    }

    #[async_trait]
    impl Carrier for Scripted {
        fn name(&self) -> String {
            "the script".into()
        }

        async fn ask(&self, request: &Request) -> Result<Outcome, DriverError> {
            self.asked.lock().unwrap().push(request.clone());
            self.answers.lock().unwrap().remove(0)
        }
    }

    fn done(ready: u32) -> Outcome {
        Outcome {
            ready: Some(ready),
            capacity: Some(ready),
            database: Some(true),
            dsn: Some("postgres://godwit@10.0.0.7/orders".into()),
            http: vec!["10.0.0.7:8000".into()],
            ..Outcome::default()
        }
    }

    type Asked = Arc<Lock<Vec<Request>>>;

    fn driver(home: &std::path::Path, answers: Vec<Result<Outcome, DriverError>>) -> (Outside, Asked) {
        let asked = Asked::default();
        let carrier = Scripted { answers: Lock::new(answers), asked: asked.clone() };
        let placement = Placement { resource: "orders".into(), zone: "b".into(), full: 4, database: None };
        let pace = Duration::from_secs(10);
        (
            Outside::new(Box::new(carrier), placement, serde_json::Value::Null, home.join("driver"), pace),
            asked,
        )
    }

    #[tokio::test]
    async fn a_lost_reply_is_asked_again_under_the_same_id_and_a_done_one_is_not() {
        let home = tempfile::tempdir().unwrap();
        let lost = Err(outside(DriverErrorKind::Failed, "the reply was lost"));
        let (first, asked) = driver(home.path(), vec![lost, Ok(done(1))]);
        let operation = Operation::new("provision-b-1");
        assert!(first.provision(&operation, &1.into()).await.is_err());
        let status = first.provision(&operation, &1.into()).await.unwrap();
        assert_eq!(status, PlacementStatus { ready: 1, capacity: 1, database: true });
        let ids: Vec<_> = asked.lock().unwrap().iter().map(|request| request.operation.clone()).collect();
        assert_eq!(ids, [Some("provision-b-1".to_owned()), Some("provision-b-1".to_owned())]);
        assert_eq!(first.known_endpoint().unwrap().http, ["10.0.0.7:8000"]);

        // Another process after a restart: nothing is asked, and the endpoint is known.
        let (second, asked) = driver(home.path(), vec![]);
        second.provision(&operation, &1.into()).await.unwrap();
        assert!(asked.lock().unwrap().is_empty());
        assert_eq!(
            second.known_endpoint().unwrap().dsn.as_deref(),
            Some("postgres://godwit@10.0.0.7/orders")
        );
        let other_use = second.scale(&operation, 4).await.unwrap_err();
        assert_eq!(other_use.kind(), DriverErrorKind::Refused);
    }

    #[tokio::test]
    async fn what_was_never_provisioned_is_not_ours_to_end() {
        let home = tempfile::tempdir().unwrap();
        let (driver, asked) = driver(home.path(), vec![]);
        assert_eq!(driver.status().await.unwrap(), PlacementStatus::default());
        for error in [
            driver.deprovision(&"end".into()).await.unwrap_err(),
            driver.scale(&"more".into(), 2).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), DriverErrorKind::Refused, "{error}");
        }
        assert!(asked.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_another_driver_made_is_not_asked_of_this_one() {
        let home = tempfile::tempdir().unwrap();
        let maker = |name: &str, kind: &str| Maker { name: name.into(), kind: kind.into() };
        let failed = Err(outside(DriverErrorKind::Failed, "not today"));
        let (first, _) = driver(home.path(), vec![Ok(done(1)), failed, Ok(done(0))]);
        let first = first.named(maker("fleet", "exec"));
        first.provision(&"make".into(), &1.into()).await.unwrap();
        let (second, asked) = driver(home.path(), vec![Ok(done(1))]);
        let second = second.named(maker("cloud", "webhook"));
        for error in [
            second.status().await.unwrap_err(),
            second.provisioned().unwrap_err(),
            second.adopt(&"adopt".into(), 1).await.unwrap_err(),
            second.scale(&"more".into(), 2).await.unwrap_err(),
            second.provision(&"make".into(), &1.into()).await.unwrap_err(),
            second.deprovision(&"end".into()).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), DriverErrorKind::Refused);
            assert!(error.to_string().contains("the exec driver fleet made"), "{error}");
        }
        assert!(second.known_endpoint().is_some(), "it is served from there all the same");
        first.deprovision(&"end".into()).await.unwrap_err();
        second.deprovision(&"end".into()).await.unwrap_err();
        assert!(asked.lock().unwrap().is_empty());
        first.deprovision(&"end".into()).await.unwrap();
        second.provision(&"anew".into(), &1.into()).await.unwrap();
        assert!(second.provisioned().unwrap() && first.provisioned().is_err());
    }

    #[tokio::test]
    async fn a_primary_is_only_looked_at_and_is_the_drivers_from_then_on() {
        let home = tempfile::tempdir().unwrap();
        let (driver, asked) = driver(home.path(), vec![Ok(done(10)), Ok(done(10)), Ok(done(1))]);
        for _start in 0..2 {
            assert_eq!(driver.adopt(&"adopt".into(), 4).await.unwrap().capacity, 10);
        }
        driver.scale(&"less".into(), 1).await.unwrap();
        let verbs: Vec<_> = asked.lock().unwrap().iter().map(|request| request.verb.clone()).collect();
        assert_eq!(verbs, ["status", "status", "scale"]);
        let ledger = Ledger::read(&home.path().join("driver")).unwrap().unwrap();
        assert_eq!(ledger.capacity, Some(1));
    }

    #[tokio::test]
    async fn a_database_that_is_down_is_still_there() {
        let home = tempfile::tempdir().unwrap();
        let down = || Outcome { database: Some(false), ..done(0) };
        let broken = Err(outside(DriverErrorKind::Failed, "half of it is left"));
        let (driver, _) = driver(home.path(), vec![Ok(done(1)), Ok(down()), Ok(down()), broken]);
        assert!(!driver.provisioned().unwrap());
        driver.provision(&"op".into(), &1.into()).await.unwrap();
        driver.scale(&"none".into(), 0).await.unwrap();
        assert_eq!(driver.status().await.unwrap(), PlacementStatus::default());
        assert!(driver.provisioned().unwrap());
        // What is to end is awaited no more, although it is not ended yet.
        assert!(driver.deprovision(&"end".into()).await.is_err());
        assert!(!driver.provisioned().unwrap());
    }

    #[tokio::test]
    async fn too_few_workers_and_wrong_answers_are_not_done() {
        let home = tempfile::tempdir().unwrap();
        let (driver, _) =
            driver(home.path(), vec![Ok(done(1)), Ok(Outcome::default()), Ok(done(2)), Ok(done(0))]);
        let few = driver.provision(&"op".into(), &2.into()).await.unwrap_err();
        assert_eq!(few.kind(), DriverErrorKind::NotReady);
        assert_eq!(few.to_string(), "the script says that 1 of 2 workers are ready");
        let wrong = driver.provision(&"op".into(), &2.into()).await.unwrap_err();
        assert_eq!(wrong.to_string(), "the answer of the script has a result without ready");
        driver.provision(&"op".into(), &2.into()).await.unwrap();
        driver.deprovision(&"end".into()).await.unwrap();
        assert_eq!(driver.status().await.unwrap(), PlacementStatus::default());
        assert_eq!(driver.known_endpoint(), None);
    }

    #[tokio::test]
    async fn a_deadline_is_told_and_the_work_goes_on() {
        struct Slow(Arc<tokio::sync::Notify>);
        #[async_trait]
        impl Carrier for Slow {
            fn name(&self) -> String {
                "the slow one".into()
            }
            async fn ask(&self, _: &Request) -> Result<Outcome, DriverError> {
                self.0.notified().await;
                Ok(done(1))
            }
        }
        let home = tempfile::tempdir().unwrap();
        let gate = Arc::new(tokio::sync::Notify::new());
        let placement = Placement { resource: "orders".into(), zone: "b".into(), full: 4, database: None };
        let directory = home.path().join("driver");
        let driver = Outside::new(
            Box::new(Slow(gate.clone())),
            placement,
            serde_json::Value::Null,
            directory.clone(),
            Duration::from_secs(10),
        );
        let operation = Operation { id: "op".into(), deadline: Duration::from_millis(20) };
        let late = driver.provision(&operation, &1.into()).await.unwrap_err();
        assert_eq!(late.kind(), DriverErrorKind::NotReady);
        gate.notify_one();
        // The same operation again: it waits its turn and finds the work done.
        driver.provision(&Operation::new("op"), &1.into()).await.unwrap();
        assert!(Ledger::read(&directory).unwrap().unwrap().did("op", Action::Provision, 1).unwrap());
    }
}
