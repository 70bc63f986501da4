//! The newest events, bounded in number and bytes. Pure.

use std::collections::VecDeque;
use std::sync::Arc;

/// What an event is about; the name is that of the SSE event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A resource's view.
    Resource,
    /// A decision.
    Decision,
    /// A step of a migration.
    Migration,
    /// The list of what is wrong.
    Problem,
    /// The resource is not led any more, and not configured.
    Released,
}

impl Kind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Resource => "resource",
            Self::Decision => "decision",
            Self::Migration => "migration",
            Self::Problem => "problem",
            Self::Released => "gone",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// One higher than the event's before.
    pub id: u64,
    /// What it is about.
    pub kind: Kind,
    /// Whose it is.
    pub resource: String,
    /// JSON.
    pub data: String,
}

impl Event {
    fn bytes(&self) -> usize {
        self.resource.len() + self.data.len() + size_of::<Self>()
    }
}

/// What was asked for is not kept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The oldest that is.
    pub oldest: u64,
    /// The newest.
    pub newest: u64,
}

/// The newest events.
#[derive(Debug)]
pub struct Ring {
    newest: u64,
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    most_events: usize,
    most_bytes: usize,
}

impl Ring {
    /// Empty; the first event will be `newest + 1`. The newest event is kept whatever its size.
    pub fn new(newest: u64, most_events: usize, most_bytes: usize) -> Self {
        Self { newest, events: VecDeque::new(), bytes: 0, most_events, most_bytes }
    }

    /// Number of the newest event, or where the numbers begin.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Number of the oldest event that is kept, or of the next one.
    pub fn oldest(&self) -> u64 {
        self.events.front().map_or(self.newest + 1, |event| event.id)
    }

    /// Takes an event and gives its number.
    pub fn append(&mut self, kind: Kind, resource: &str, data: String) -> u64 {
        self.newest += 1;
        let event = Event { id: self.newest, kind, resource: resource.to_owned(), data };
        self.bytes += event.bytes();
        self.events.push_back(Arc::new(event));
        while self.events.len() > 1 && (self.events.len() > self.most_events || self.bytes > self.most_bytes)
        {
            let oldest = self.events.pop_front();
            self.bytes -= oldest.map_or(0, |event| event.bytes());
        }
        self.newest
    }

    /// At most `limit` events after this one, oldest first.
    pub fn after(&self, id: u64, limit: usize) -> Result<Vec<Arc<Event>>, Gone> {
        let oldest = self.oldest();
        if id.saturating_add(1) < oldest || id > self.newest {
            return Err(Gone { oldest, newest: self.newest });
        }
        let first = usize::try_from(id + 1 - oldest).unwrap_or(usize::MAX);
        Ok(self.events.iter().skip(first).take(limit).cloned().collect())
    }
}
