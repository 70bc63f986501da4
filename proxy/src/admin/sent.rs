//! Large answers: the list of resources and its pages, and the configuration. What is in them is replaced whole, and read by every
//! dashboard and scraper in between: each piece is encoded once.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use serde::Serialize;

use crate::controller::view::ResourceView;
use crate::leading::comparison::ConfigView;
use crate::lock::lock;

/// A value and its JSON.
type Encoded<T> = Option<(Arc<T>, Bytes)>;

/// What was sent last.
#[derive(Default)]
pub struct Sent {
    /// By resource.
    resources: Mutex<HashMap<String, Encoded<ResourceView>>>,
    config: Mutex<Encoded<ConfigView>>,
}

impl Sent {
    /// A JSON array of these views; `present` says which resources there are.
    ///
    /// # Errors
    /// One cannot be encoded.
    pub(super) fn resources(
        &self,
        views: Vec<(&str, Arc<ResourceView>)>,
        present: &BTreeMap<String, impl Sized>,
    ) -> serde_json::Result<Bytes> {
        let mut known = lock(&self.resources);
        if known.len() > present.len() {
            known.retain(|name, _| present.contains_key(name));
        }
        let mut pieces = Vec::with_capacity(views.len());
        for (name, view) in views {
            let piece = match known.get_mut(name) {
                Some(known) => json(known, view)?,
                None => json(known.entry(name.to_owned()).or_default(), view)?,
            };
            pieces.push(piece);
        }
        drop(known);
        let length = pieces.iter().map(|piece| piece.len() + 1).sum::<usize>();
        let mut text = Vec::with_capacity(length + 2);
        text.push(b'[');
        for (place, piece) in pieces.iter().enumerate() {
            if place > 0 {
                text.push(b',');
            }
            text.extend_from_slice(piece);
        }
        text.push(b']');
        Ok(text.into())
    }

    /// The JSON of the configuration.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub(super) fn config(&self, view: Arc<ConfigView>) -> serde_json::Result<Bytes> {
        json(&mut lock(&self.config), view)
    }
}

/// The JSON of `value`, made anew unless it is what is known.
fn json<T: Serialize>(known: &mut Encoded<T>, value: Arc<T>) -> serde_json::Result<Bytes> {
    if let Some((of, json)) = known
        && Arc::ptr_eq(of, &value)
    {
        return Ok(json.clone());
    }
    let json = Bytes::from(serde_json::to_vec(&*value)?);
    *known = Some((value, json.clone()));
    Ok(json)
}

/// At most `limit` of those that are `known` behind the name `after`, and whether there are more.
pub(super) fn page<'a, T>(
    all: &'a BTreeMap<String, T>,
    after: Option<&str>,
    limit: usize,
    known: impl Fn(&str) -> bool,
) -> (Vec<(&'a str, &'a T)>, bool) {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut found = all.range::<str, _>((from, Bound::Unbounded)).filter(|(name, _)| known(name));
    let page = found.by_ref().take(limit).map(|(name, one)| (name.as_str(), one)).collect();
    (page, found.next().is_some())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn view(phase: &str) -> Arc<ResourceView> {
        Arc::new(ResourceView { phase: phase.into(), ..ResourceView::default() })
    }

    fn phases(json: &Bytes) -> Vec<String> {
        let views: Vec<ResourceView> = serde_json::from_slice(json).unwrap();
        views.into_iter().map(|view| view.phase).collect()
    }

    #[test]
    fn pages_follow_each_other() {
        let all: BTreeMap<String, u8> =
            ["a", "b", "c", "d", "e"].into_iter().map(|name| (name.into(), 0)).collect();
        let names = |after, limit| {
            let (page, more) = page(&all, after, limit, |name| name != "c");
            (page.iter().map(|(name, _)| *name).collect::<String>(), more)
        };
        assert_eq!(names(None, usize::MAX), ("abde".into(), false));
        assert_eq!(names(None, 2), ("ab".into(), true));
        assert_eq!(names(Some("b"), 2), ("de".into(), false));
        // It need not be there any more.
        assert_eq!(names(Some("ccc"), 1), ("d".into(), true));
        assert_eq!(names(Some("e"), 1), (String::new(), false));
    }

    #[test]
    fn what_is_new_is_encoded_anew() {
        let (sent, mut present) = (Sent::default(), BTreeMap::from([("a".into(), 1), ("b".into(), 2)]));
        assert_eq!(&sent.resources(vec![], &present).unwrap()[..], b"[]");
        let (one, other) = (view("idle"), view("shadowing"));
        let both = sent.resources(vec![("a", one.clone()), ("b", other)], &present).unwrap();
        assert_eq!(phases(&both), ["idle", "shadowing"]);
        let again = sent.resources(vec![("a", one.clone()), ("b", view("seeding"))], &present).unwrap();
        assert_eq!(phases(&again), ["idle", "seeding"]);
        present.remove("b");
        sent.resources(vec![("a", one)], &present).unwrap();
        assert_eq!(sent.resources.lock().unwrap().len(), 1, "who has left is forgotten");
    }
}
