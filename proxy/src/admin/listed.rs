//! The list of resources: its pages, and their JSON. A view is replaced when something changes and read by every dashboard and scraper in
//! between: each is encoded once.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;

use crate::controller::view::ResourceView;

/// What was encoded last, by resource.
#[derive(Default)]
pub struct Listed(Mutex<HashMap<String, (Arc<ResourceView>, Bytes)>>);

impl Listed {
    /// A JSON array of these views.
    ///
    /// # Errors
    /// One cannot be encoded.
    pub(super) fn json(&self, views: Vec<(&str, Arc<ResourceView>)>) -> serde_json::Result<Bytes> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut encoded = Vec::with_capacity(views.len());
        for (name, view) in views {
            let piece = match known.get(name) {
                Some((of, piece)) if Arc::ptr_eq(of, &view) => piece.clone(),
                _ => {
                    let piece = Bytes::from(serde_json::to_vec(&*view)?);
                    known.insert(name.to_owned(), (view, piece.clone()));
                    piece
                }
            };
            encoded.push(piece);
        }
        drop(known);
        let length = encoded.iter().map(|piece| piece.len() + 1).sum::<usize>();
        let mut text = Vec::with_capacity(length + 2);
        text.push(b'[');
        for (place, piece) in encoded.iter().enumerate() {
            if place > 0 {
                text.push(b',');
            }
            text.extend_from_slice(piece);
        }
        text.push(b']');
        Ok(text.into())
    }

    /// Forgets what is not among `present`.
    pub(super) fn keep(&self, present: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| present(name));
    }
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
        let listed = Listed::default();
        assert_eq!(&listed.json(vec![]).unwrap()[..], b"[]");
        let (one, other) = (view("idle"), view("shadowing"));
        let both = listed.json(vec![("a", one.clone()), ("b", other)]).unwrap();
        assert_eq!(phases(&both), ["idle", "shadowing"]);
        let again = listed.json(vec![("a", one), ("b", view("seeding"))]).unwrap();
        assert_eq!(phases(&again), ["idle", "seeding"]);
        listed.keep(|name| name == "a");
        assert_eq!(listed.0.lock().unwrap().len(), 1);
    }
}
