//! What a node that stands by says of why it does, and what it may be told.

use tokio::sync::watch;

/// Why a node does not lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// This node does.
    Led(String),
    /// Anything else: it may name resources, zones and what databases said.
    Other(String),
}

impl From<String> for Why {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

impl Why {
    /// In words, for who may read everything.
    fn whole(&self) -> String {
        match self {
            Self::Led(node) => format!("node {node} leads"),
            Self::Other(why) => why.clone(),
        }
    }
}

/// What a node that stands by says, and what it may be told.
pub struct Standing {
    why: watch::Sender<Why>,
    without_primary: watch::Sender<bool>,
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            why: watch::Sender::new(Why::Other("starts".into())),
            without_primary: watch::Sender::new(false),
        }
    }
}

impl Standing {
    /// Why it does not lead, for who may read everything.
    pub fn says(&self) -> String {
        self.why.borrow().whole()
    }

    /// The same for anybody: who leads, or that it is not known.
    pub fn says_to_anybody(&self) -> String {
        match &*self.why.borrow() {
            why @ Why::Led(_) => why.whole(),
            Why::Other(_) => "it is not known who leads".to_owned(),
        }
    }

    /// Waits until there is another one that leads, or may.
    pub async fn stands_by(&self) {
        // Its sender is here.
        let _ = self.why.subscribe().changed().await;
    }

    /// From now on it leads although no primary's database answers, unless another node does.
    pub fn lead_without_primary(&self) {
        self.without_primary.send_replace(true);
    }

    /// What it is told.
    pub(super) fn told(&self) -> watch::Receiver<bool> {
        self.without_primary.subscribe()
    }

    pub(crate) fn say(&self, what: impl Into<Why>) {
        let what = what.into();
        self.why.send_if_modified(|said| {
            let news = *said != what;
            if news {
                tracing::info!(why = what.whole(), "stands by");
                *said = what;
            }
            news
        });
    }
}
