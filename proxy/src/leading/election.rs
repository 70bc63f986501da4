//! Which of several nodes leads: the one that holds the lease in its resources' databases ([`replicator::lead`]); the others stand by.
//!
//! A lease is taken or renewed for `node.lease`, and looked at by the others ten times as often, and once a second at least. A node that leads and
//! can reach no database goes on: nobody else can take the lease of one that it cannot reach either, and requests may not need it. It ends when it sees that
//! another leads: also one that cannot reach the primary any more, since who has the primary's lease takes the shadow's whoever has it. Nothing depends on that being at once: a fence is raised by the holder only, and a run that another node left under its
//! fence is undone or carried on by what the databases say (`remembered`).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::join_all;
use replicator::lead::{self, Candidate, Lease};
use replicator::postgres::Dsn;
use replicator::{Error, fence};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::holder;
use super::standing::{Standing, Why};
use crate::causes::chain;
use crate::clock;
use crate::config::model::Config;
use crate::store::{Legacy, Unreadable};

/// What the server shows in `pg_stat_activity`.
const APPLICATION: &str = "godwit-lead";
/// How long a database may take to answer, and at the end of the process all of them.
const ANSWER: Duration = Duration::from_secs(2);
/// In how many parts of a lease it is renewed, and looked at by who stands by.
const RENEWALS: u32 = 5;
const LOOKS: u32 = 10;
/// How soon who stands by sees that a lease was ended, however long it was.
const LOOK: Duration = Duration::from_secs(1);
/// How often what moves were worth is left while nothing else changes.
const WORTH_EVERY: Duration = Duration::from_mins(1);

/// What is said of another node that the databases know by the same id.
const COPIED: &str = "it has this node's holder id: one state directory is a copy of the other, or this node had that name before";

/// One database's lease.
struct Seat {
    zone: String,
    dsn: Dsn,
    client: Option<Client>,
    installed: bool,
}

/// One resource's leases.
struct Kept {
    resource: String,
    /// The configured primary.
    primary: String,
    seats: Vec<Seat>,
    /// What each of them said when it was looked at.
    seen: Vec<Seen>,
}

/// What a database said last of its lease.
#[derive(Clone, Debug)]
struct Seen {
    zone: String,
    lease: Result<Lease, String>,
    /// Until then nobody else can have taken it.
    mine_until: Option<Instant>,
}

impl Seen {
    /// How long another one yet has it by this node's id.
    fn copied(&self, me: &Candidate) -> Option<Duration> {
        let holder = self.lease.as_ref().ok()?.holder.as_ref()?;
        (holder.id == me.id && holder.node != me.node).then_some(holder.left)
    }

    /// It may be silent for a moment: that changes nothing while nobody else can have taken the lease.
    fn hear(&mut self, news: Self, now: Instant) {
        let holds = self.mine_until.is_some_and(|until| now < until);
        if news.lease.is_ok() || !holds {
            *self = news;
        }
    }
}

/// A node among those that may lead.
pub struct Election {
    /// This one; its id is of the state directory.
    pub me: Candidate,
    /// Where its id is kept.
    state: PathBuf,
    resources: Vec<Kept>,
    /// The number of what was left last.
    serial: u64,
}

/// What a node has that leads, besides the journal of its moves.
pub trait Estate: Send + Sync {
    /// What it leaves now.
    ///
    /// # Errors
    /// In words.
    fn leaves(&self) -> Result<Legacy, String>;
    /// What another node left is this one's.
    ///
    /// # Errors
    /// In words.
    fn inherits(&self, legacy: &Legacy) -> Result<(), String>;
    /// The number of what it left or inherited last; none: it does not know of any.
    ///
    /// # Errors
    /// In words.
    fn serial(&self) -> Result<Option<u64>, String>;
    /// It has what was left by this number, or leaves it next.
    ///
    /// # Errors
    /// In words: it is not to be left.
    fn note_serial(&self, serial: u64) -> Result<(), String>;
    /// The generation at which it leads the resource; none: that is being found out.
    fn generation(&self, resource: &str) -> Option<u64>;
}

/// Who leads a resource, by what its databases say.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Mine,
    Free,
    Held(String, Duration),
    Unknown(String),
}

impl Election {
    /// Where the configuration has several nodes: with the databases that it names.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn of(config: &Config) -> Result<Option<Self>> {
        let Some(within) = config.node.lease else { return Ok(None) };
        let fronted = config.resources.values().filter(|resource| resource.could_keep_a_lease());

        let resources = fronted.map(|resource| Kept {
            resource: resource.name.clone(),
            primary: resource.primary.clone(),
            seats: resource
                .placements
                .values()
                .filter_map(|placement| {
                    let dsn = placement.postgres.as_ref()?.dsn.clone();
                    Some(Seat { zone: placement.zone.clone(), dsn, client: None, installed: false })
                })
                .collect(),
            seen: Vec::new(),
        });
        let resources = resources.collect();
        let state = config.node.state.clone();
        let id = holder::id(&state).context("who this node is cannot be kept in node.state")?;
        Ok(Some(Self {
            me: Candidate { id, node: holder::name(config), within },
            state,
            resources,
            serial: 0,
        }))
    }

    /// Waits until this node leads, and has what the one before left.
    pub async fn stand(&mut self, standing: &Standing, estate: &dyn Estate) {
        let mut told = standing.told();
        // Where nobody could be asked: a leader that could not either renews its lease first.
        let mut not_before = clock::monotonic();
        loop {
            let without_primary = *told.borrow_and_update();
            match self.try_to_lead(without_primary, &mut not_before, estate).await {
                Ok(()) => return,
                Err(why) => standing.say(why),
            }
            // What it is told, it does at once.
            let _ = tokio::time::timeout(looks_after(self.me.within), told.changed()).await;
        }
    }

    /// Takes every lease that can be had, if the ones that decide are free; the error says who has them.
    async fn try_to_lead(
        &mut self,
        without_primary: bool,
        not_before: &mut Instant,
        estate: &dyn Estate,
    ) -> Result<(), Why> {
        let before = self.copied();
        let verdicts = self.look().await;
        // Only who lives renews it: this node may have had that name before.
        if self.copied().iter().any(|(of, left)| before.get(of).is_some_and(|before| left > before)) {
            // What the databases refuse to the other one they are to refuse to it alone.
            self.me.id = holder::another(&self.state).map_err(|why| format!("{COPIED}: {why:#}"))?;
            tracing::warn!("{COPIED}: this node has another id now");
        }
        if let Some((node, left)) = verdicts.iter().find_map(|(_, verdict)| match verdict {
            Verdict::Held(node, left) => Some((node, left)),
            _ => None,
        }) {
            tracing::debug!(node, left = left.as_secs_f64(), "another node leads");
            return Err(Why::Led(node.clone()));
        }
        let unknown = verdicts.iter().find_map(|(resource, verdict)| match verdict {
            Verdict::Unknown(why) => Some(format!("nobody knows who leads {resource}: {why}")),
            _ => None,
        });
        if let Some(why) = unknown.filter(|_| !without_primary) {
            *not_before = clock::monotonic() + self.me.within / RENEWALS * 2;
            return Err(why.into());
        }
        let mine = verdicts.iter().all(|(_, verdict)| *verdict == Verdict::Mine);
        if !mine && clock::monotonic() < *not_before {
            let why = "the databases are there again: the node that led may renew its lease";
            return Err(why.to_owned().into());
        }
        self.inherit(estate).await?;
        let taken = self.take().await;
        // Two may have seen that they are free.
        let mine = |verdict: &Verdict| match verdict {
            Verdict::Mine => true,
            Verdict::Unknown(_) => without_primary,
            Verdict::Free | Verdict::Held(..) => false,
        };
        if self.look().await.iter().all(|(_, verdict)| mine(verdict)) {
            return Ok(());
        }
        self.resign().await;
        taken.map_err(|why| format!("the lease cannot be taken: {why}"))?;
        Err("another node was faster".to_owned().into())
    }

    /// The leases that another one has by this node's id, and for how long yet.
    fn copied(&self) -> HashMap<(String, String), Duration> {
        let seen = self.resources.iter().flat_map(|one| one.seen.iter().map(|seen| (&one.resource, seen)));
        seen.filter_map(|(of, seen)| Some(((of.clone(), seen.zone.clone()), seen.copied(&self.me)?)))
            .collect()
    }

    /// Takes over what the last leader left, before there is a lease that says that it was this one.
    async fn inherit(&mut self, estate: &dyn Estate) -> Result<(), String> {
        let reading = self
            .resources
            .iter_mut()
            .map(async |one| join_all(one.seats.iter_mut().map(|seat| seat.legacy(&one.resource))).await);
        let found: Vec<_> = join_all(reading).await.into_iter().flatten().flatten().collect();
        let own = estate.serial()?;
        let (serial, legacy) = newest(&self.me.id, own, &found)?;
        self.serial = self.serial.max(serial).max(own.unwrap_or_default());
        let Some(legacy) = legacy else { return Ok(()) };
        estate.inherits(&legacy).map_err(|why| format!("what the last leader left cannot be kept: {why}"))
    }

    /// Renews the leases until another node leads; returns why this one does no more. Each database at its own pace: one that does not answer keeps
    /// no other waiting. What they said when it took the lead counts until each has said something else.
    pub async fn keep(&mut self, estate: &dyn Estate) -> String {
        let (text, _) = watch::channel(Arc::from(""));
        let (tell, mut told) = mpsc::unbounded_channel();
        let mut renewals = JoinSet::new();
        let mut leads = Vec::new();
        for (at, one) in self.resources.iter_mut().enumerate() {
            leads.push(watch::Sender::new(leads_at(&one.primary, &one.seen)));
            for (number, seat) in one.seats.iter_mut().enumerate() {
                let tell = tell.clone();
                let renewal = Renewal {
                    seat: seat.moved(),
                    resource: one.resource.clone(),
                    me: self.me.clone(),
                    leads: leads[at].subscribe(),
                    text: text.subscribe(),
                };
                renewals.spawn(renewal.run(move |seen| {
                    // Nobody listens any more when it ends.
                    let _ = tell.send((at, number, seen));
                }));
            }
        }
        let mut left: Option<(Legacy, Instant)> = None;
        let mut pace = tokio::time::interval(self.me.within / RENEWALS);
        loop {
            tokio::select! {
                Some((at, number, news)) = told.recv() => {
                    let Kept { resource, primary, seen, .. } = &mut self.resources[at];
                    seen[number].hear(news, clock::monotonic());
                    if let Verdict::Held(node, _) = judge(primary, &self.me, seen) {
                        return format!("node {node} leads now");
                    }
                    if let Some(why) = outrun(resource, seen, || estate.generation(resource)) {
                        return why;
                    }
                    leads[at].send_replace(leads_at(primary, seen));
                }
                _ = pace.tick() => match self.leaves_anew(estate, left.as_ref()) {
                    Ok(Some(now)) => {
                        text.send_replace(now.clone().numbered(self.serial).text().into());
                        left = Some((now, clock::monotonic()));
                    }
                    Ok(None) => {}
                    Err(why) => tracing::warn!(why, "nothing is left to the next leader"),
                },
            }
        }
    }

    /// What is to be left now by the next number, if it is not what was left before. The state directory has that number first: one with a lower number
    /// than what was left from it is older.
    fn leaves_anew(
        &mut self,
        estate: &dyn Estate,
        left: Option<&(Legacy, Instant)>,
    ) -> Result<Option<Legacy>, String> {
        let now = estate.leaves()?;
        if !is_left_anew(left, &now, clock::monotonic()) {
            return Ok(None);
        }
        estate.note_serial(self.serial + 1)?;
        self.serial += 1;
        Ok(Some(now))
    }

    /// Ends what leases this node has: another may lead at once.
    pub async fn resign(&mut self) {
        self.end_leases(None).await;
    }

    /// The same of a node that leads, which leaves before what has changed since it last did.
    pub async fn hand_over(&mut self, estate: &dyn Estate) {
        let left = self.leaves_anew(estate, None).unwrap_or_else(|why| {
            tracing::warn!(why, "what changed last is not left to the next leader");
            None
        });
        let text = left.map(|left| left.numbered(self.serial).text());
        self.end_leases(text.as_deref()).await;
    }

    /// Leaves this first.
    async fn end_leases(&mut self, left: Option<&str>) {
        let me = &self.me;
        let ending = self.resources.iter_mut().map(async |Kept { resource, seats, .. }| {
            let each = seats.iter_mut().map(async |seat| {
                if let Some(left) = left {
                    seat.leave(resource, me, left).await;
                }
                seat.give_up(resource, me).await;
            });
            join_all(each).await
        });
        join_all(ending).await;
    }

    /// Who leads each resource.
    async fn look(&mut self) -> Vec<(String, Verdict)> {
        let me = &self.me;
        let looking = self.resources.iter_mut().map(async |one| {
            one.seen = join_all(one.seats.iter_mut().map(|seat| seat.look(&one.resource, me))).await;
            (one.resource.clone(), judge(&one.primary, me, &one.seen))
        });
        join_all(looking).await
    }

    /// The error is of one that cannot be taken.
    async fn take(&mut self) -> Result<(), String> {
        let me = &self.me;
        let taking = self.resources.iter_mut().map(async |one| {
            join_all(one.seats.iter_mut().map(|seat| seat.take(&one.resource, me, None))).await
        });
        join_all(taking).await.into_iter().flatten().collect()
    }
}

/// Keeps the lease of one database.
struct Renewal {
    seat: Seat,
    resource: String,
    me: Candidate,
    /// See [`leads_at`].
    leads: watch::Receiver<Option<Decides>>,
    /// What is left to the next leader.
    text: watch::Receiver<Arc<str>>,
}

impl Renewal {
    async fn run(mut self, tell: impl Fn(Seen)) {
        let mut left: Arc<str> = Arc::from("");
        loop {
            let (resource, me) = (self.resource.as_str(), &self.me);
            let leads = takes_by(self.leads.borrow().as_ref(), &self.seat.zone, clock::monotonic());
            if let Err(why) = self.seat.take(resource, me, leads).await {
                tracing::debug!(resource, why, "the lease cannot be renewed now");
            }
            let seen = self.seat.look(resource, me).await;
            if seen.mine_until.is_none() {
                // Another one may have left something else there.
                left = Arc::from("");
            }
            tell(seen);
            let text = self.text.borrow_and_update().clone();
            if text != left && self.seat.leave(resource, me, &text).await {
                left = text;
            }
            let _ = tokio::time::timeout(me.within / RENEWALS, self.text.changed()).await;
        }
    }
}

impl Seat {
    async fn look(&mut self, resource: &str, me: &Candidate) -> Seen {
        let asked = clock::monotonic();
        let lease = self.ask(async |client| lead::look(client, resource).await).await;
        let holder = lease.as_ref().ok().and_then(|lease| lease.holder.as_ref());
        let mine_until = holder.filter(|holder| holder.is(me)).map(|holder| asked + holder.left);
        Seen { zone: self.zone.clone(), lease, mine_until }
    }

    /// The same, with the session if there is one.
    fn moved(&mut self) -> Self {
        let client = self.client.take();
        Self { zone: self.zone.clone(), dsn: self.dsn.clone(), client, installed: self.installed }
    }

    async fn take(&mut self, resource: &str, me: &Candidate, leads: Option<u64>) -> Result<(), String> {
        let installed = self.installed;
        let taken = self.ask(async |client| {
            if !installed {
                fence::install_schema(client).await?;
            }
            lead::take(client, resource, me, leads).await
        });
        let taken = taken.await;
        self.installed = taken.is_ok();
        taken.map(drop).map_err(|why| format!("{resource} in {}: {why}", self.zone))
    }

    /// Who left something there, and what.
    async fn legacy(&mut self, resource: &str) -> Option<(String, String)> {
        self.ask(async |client| lead::legacy(client, resource).await).await.ok()?
    }

    /// False: it is not there, and is to be tried again.
    async fn leave(&mut self, resource: &str, me: &Candidate, text: &str) -> bool {
        let left = self.ask(async |client| lead::leave(client, resource, me, text).await).await;
        left.unwrap_or_else(|why| {
            tracing::debug!(resource, zone = self.zone, why, "nothing is left there now");
            false
        })
    }

    async fn give_up(&mut self, resource: &str, me: &Candidate) {
        if let Err(why) = self.ask(async |client| lead::give_up(client, resource, me).await).await {
            tracing::debug!(resource, zone = self.zone, why, "the lease ends by itself only");
        }
    }

    async fn ask<T>(&mut self, what: impl AsyncFnOnce(&Client) -> Result<T, Error>) -> Result<T, String> {
        let asking = async {
            let client = match self.client.take() {
                Some(client) if !client.is_closed() => client,
                _ => replicator::postgres::connect(&self.dsn, APPLICATION).await.map_err(chain)?,
            };
            let said = what(&client).await.map_err(chain)?;
            Ok((said, client))
        };
        let asked = tokio::time::timeout(ANSWER, asking).await;
        // A session that failed is made anew.
        let (said, client) =
            asked.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs())))?;
        self.client = Some(client);
        Ok(said)
    }
}

/// The highest number of what leaders left (who, and what), and what the newest of them did, unless this node (`mine`) has all of it: it left that
/// itself, and its state directory is not older (`own` is the number in there; none: an earlier program kept none).
///
/// # Errors
/// A newer program left it: who leads without it has none of its decisions, and leaves its own over them.
fn newest(mine: &str, own: Option<u64>, found: &[(String, String)]) -> Result<(u64, Option<Legacy>), String> {
    let mut all: Vec<_> = found
        .iter()
        .map(|(holder, text)| (Legacy::serial_of(text).unwrap_or_default(), holder, text))
        .collect();
    all.sort_by_key(|(serial, ..)| std::cmp::Reverse(*serial));
    let highest = all.first().map_or(0, |(serial, ..)| *serial);
    for (serial, holder, text) in all {
        if holder == mine && own.is_none_or(|own| serial <= own) {
            break;
        }
        match Legacy::read(text) {
            Ok(legacy) => return Ok((highest, Some(legacy))),
            Err(why @ Unreadable::Newer(_)) => {
                return Err(format!(
                    "what the last leader left cannot be read: {why}; a node of that version can lead"
                ));
            }
            Err(Unreadable::Broken(why)) => tracing::warn!(why, "what a leader left cannot be read"),
        }
    }
    Ok((highest, None))
}

/// When who stands by looks again.
fn looks_after(within: Duration) -> Duration {
    (within / LOOKS).min(LOOK)
}

/// Whether all of it goes to every database again: what is measured for a day after each move changes every few seconds, and can wait.
fn is_left_anew(left: Option<&(Legacy, Instant)>, now: &Legacy, at: Instant) -> bool {
    left.is_none_or(|(before, since)| {
        before != now && (!before.differs_only_in_worth(now) || at.duration_since(*since) >= WORTH_EVERY)
    })
}

/// The database that clients may write to, of the newest generation, and that one.
fn open<'a>(primary: &str, seen: &'a [Seen]) -> Option<(u64, &'a Seen)> {
    let open = seen.iter().filter_map(|seen| match seen.lease.as_ref().ok()?.epoch? {
        (generation, true) => Some((generation, seen)),
        (_, false) => None,
    });
    open.max_by_key(|(generation, seen)| (*generation, seen.zone == primary))
}

/// Where none is open: the database of the newest generation, which a move has fenced, and that one. None where it may be another: one does not answer.
fn fenced(seen: &[Seen]) -> Option<(u64, &Seen)> {
    if seen.iter().any(|seen| seen.lease.is_err()) {
        return None;
    }
    let generation = |seen: &Seen| Some(seen.lease.as_ref().ok()?.epoch?.0);
    let newest = seen.iter().filter_map(generation).max()?;
    let mut of_it = seen.iter().filter(|seen| generation(seen) == Some(newest));
    of_it.next().filter(|_| of_it.next().is_none()).map(|seen| (newest, seen))
}

/// The lease that decides, while this node has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decides {
    zone: String,
    /// Of the primary there.
    generation: u64,
    /// Nobody else can have it before.
    until: Instant,
}

fn leads_at(primary: &str, seen: &[Seen]) -> Option<Decides> {
    let (generation, seen) = open(primary, seen).or_else(|| fenced(seen))?;
    Some(Decides { zone: seen.zone.clone(), generation, until: seen.mine_until? })
}

/// The generation by which the lease in this zone is this node's, whoever has it. Never that of the one that decides: in the middle of a move its
/// database is fenced, too, and a renewal that was on its way for longer than the lease would take it from the node that leads by then.
fn takes_by(decides: Option<&Decides>, zone: &str, now: Instant) -> Option<u64> {
    decides.filter(|decides| decides.zone != zone && now < decides.until).map(|decides| decides.generation)
}

/// Why a node that leads the resource at a generation does so no more: another one has moved it meanwhile, though the lease is still its own where
/// that could be seen.
fn outrun(resource: &str, seen: &[Seen], leads: impl FnOnce() -> Option<u64>) -> Option<String> {
    let (generation, seen) = open("", seen)?;
    let leads = leads().filter(|leads| *leads < generation)?;
    let zone = &seen.zone;
    Some(format!(
        "{resource} is served in {zone} at generation {generation}, and this node led it at {leads}"
    ))
}

/// The lease of the database that clients may write to decides: of the newest generation, and before the first move of the configured
/// primary. Where none is open (a move was under way), that of the one that was fenced last does, and all of them where that may be one that does
/// not answer.
fn judge(primary: &str, me: &Candidate, seen: &[Seen]) -> Verdict {
    let answers = || seen.iter().filter_map(|seen| Some((&seen.zone, seen.lease.as_ref().ok()?)));
    let silent = seen.iter().find_map(|seen| Some((&seen.zone, seen.lease.as_ref().err()?)));
    let of = |lease: &Lease| match &lease.holder {
        None => Verdict::Free,
        Some(holder) if holder.is(me) => Verdict::Mine,
        Some(holder) if holder.id == me.id => {
            Verdict::Held(format!("{} ({COPIED})", holder.node), holder.left)
        }
        Some(holder) => Verdict::Held(holder.node.clone(), holder.left),
    };
    let first = || answers().find(|(zone, lease)| *zone == primary && lease.epoch.is_none());
    let decides = open(primary, seen).and_then(|(_, seen)| seen.lease.as_ref().ok());
    let fenced = || fenced(seen)?.1.lease.as_ref().ok();
    if let Some(lease) = decides.or_else(|| first().map(|(_, lease)| lease)).or_else(fenced) {
        return of(lease);
    }
    let all: Vec<Verdict> = answers().map(|(_, lease)| of(lease)).collect();
    let mine = !all.is_empty() && all.iter().all(|verdict| *verdict == Verdict::Mine);
    let held = all.into_iter().find(|verdict| matches!(verdict, Verdict::Held(..)));
    let otherwise = || match silent {
        Some((zone, why)) => Verdict::Unknown(format!("{zone} does not answer: {why}")),
        None if mine => Verdict::Mine,
        None => Verdict::Free,
    };
    held.unwrap_or_else(otherwise)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
