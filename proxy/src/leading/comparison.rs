//! What the node runs with beside what the files say by now: read and compared again only when one of the two has changed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::config::entries::{Difference, Entry, Texts, diff};
use crate::config::model::Config;
use crate::config::overlay::OverlayText;
use crate::config::{ConfigErrors, load_with};
use crate::lock::lock;
use crate::store::OverlayFile;

/// What the node runs with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConfigView {
    /// Every key that is written somewhere.
    pub entries: Vec<Entry>,
    /// Keys whose values in the files are others by now; the values not where a reload would refuse the files.
    pub differences: Vec<Difference>,
    /// Why the files cannot be read now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// Why a reload would refuse them, although they can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid: Option<String>,
}

/// Both sides.
pub struct Comparison {
    file: PathBuf,
    overlay: Arc<OverlayFile>,
    /// As they were at the start.
    first: Option<Texts>,
    /// Key by key; replaced when a key is applied.
    running: Mutex<Arc<Vec<Entry>>>,
    seen: Mutex<Option<Seen>>,
}

/// The texts that were compared last, with what, and what that gave.
struct Seen {
    texts: Texts,
    running: Arc<Vec<Entry>>,
    view: Arc<ConfigView>,
}

impl Comparison {
    /// Of a node that starts with these files as they are.
    pub fn new(file: PathBuf, overlay: Arc<OverlayFile>) -> Self {
        let made = Self { file, overlay, first: None, running: Mutex::default(), seen: Mutex::default() };
        let first = made.texts();
        let running = first.entries().unwrap_or_default();
        Self { running: Mutex::new(Arc::new(running)), first: Some(first), ..made }
    }

    /// Reads the files; the parsing is spared where they are what they were.
    pub fn view(&self) -> Arc<ConfigView> {
        let (texts, running) = (self.texts(), Arc::clone(&lock(&self.running)));
        let mut seen = lock(&self.seen);
        if let Some(seen) = &*seen
            && Arc::ptr_eq(&seen.running, &running)
            && seen.texts == texts
        {
            return Arc::clone(&seen.view);
        }
        let (mut differences, unreadable) = match texts.entries() {
            Ok(written) => (diff(&running, &written), None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        let invalid = match &unreadable {
            None => self.written().err().map(|errors| errors.to_string()),
            Some(_) => None,
        };
        if invalid.is_some() {
            differences = differences.into_iter().map(Difference::refused).collect();
        }
        let view = Arc::new(ConfigView { entries: running.to_vec(), differences, unreadable, invalid });
        *seen = Some(Seen { texts, running, view: Arc::clone(&view) });
        view
    }

    /// Whether the files are not what they were at the start; they can be started with.
    ///
    /// # Errors
    /// They are others, and cannot.
    pub fn rewritten(&self) -> Result<bool, ConfigErrors> {
        if self.first.as_ref() == Some(&self.texts()) {
            return Ok(false);
        }
        self.written().map(|_| true)
    }

    /// What a node would start with now.
    ///
    /// # Errors
    /// It could not.
    pub fn written(&self) -> Result<Config, ConfigErrors> {
        load_with(&self.file, Some(&self.overlay_text()))
    }

    /// What differs between the files and what runs.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn differences(&self) -> Result<Vec<Difference>, ConfigErrors> {
        let written = self.texts().entries()?;
        Ok(diff(&lock(&self.running), &written))
    }

    /// The node runs with these keys, given part by part, as they are written now.
    pub fn adopt(&self, which: impl Fn(&[String]) -> bool) {
        let Ok(written) = self.texts().entries() else { return };
        let mut running = lock(&self.running);
        let kept = running.iter().filter(|entry| !which(&entry.parts)).cloned();
        *running = Arc::new(kept.chain(written.into_iter().filter(|entry| which(&entry.parts))).collect());
    }

    fn texts(&self) -> Texts {
        Texts::read(&self.file, Some(self.overlay_text()))
    }

    fn overlay_text(&self) -> OverlayText {
        self.overlay.as_text(&self.overlay.content())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compared_is_what_is_there_now() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("godwit.yaml");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        write("node: { threads: 2 }\n");
        let overlay = Arc::new(OverlayFile::open(folder.path()).unwrap());
        let comparison = Comparison::new(file.clone(), overlay);
        let keys = || comparison.view().differences.iter().map(|one| one.key.clone()).collect::<Vec<_>>();
        let first = comparison.view();
        assert!(Arc::ptr_eq(&first, &comparison.view()), "nothing changed: nothing is made anew");
        assert_eq!((first.entries.len(), first.differences.len()), (1, 0));
        assert!(!comparison.rewritten().unwrap());

        write("node: { threads: 4, name: n }\n");
        assert_eq!(keys(), ["node.name", "node.threads"]);
        std::fs::create_dir(folder.path().join("policies")).unwrap();
        std::fs::write(folder.path().join("policies/p.yaml"), "mode: observe\n").unwrap();
        assert_eq!(keys(), ["node.name", "node.threads", "policies.p.mode"]);
        assert!(comparison.rewritten().is_err(), "there is no resource");
        comparison.adopt(|parts| parts[0] == "policies");
        assert_eq!(keys(), ["node.name", "node.threads"]);

        write("node: {\n");
        let broken = comparison.view();
        assert!(broken.unreadable.as_ref().is_some_and(|why| why.contains("godwit.yaml")), "{broken:?}");
        assert_eq!(broken.entries.len(), 2, "it runs on");
        std::fs::remove_file(&file).unwrap();
        assert_ne!(comparison.view().unreadable, broken.unreadable);
        write("node: { threads: 2 }\n");
        assert_eq!(keys(), Vec::<String>::new());
    }

    #[test]
    fn values_of_a_file_that_is_refused_are_not_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("godwit.yaml");
        crate::config::samples::write(folder.path(), crate::config::samples::ORDERS);
        let comparison = Comparison::new(file.clone(), Arc::new(OverlayFile::open(folder.path()).unwrap()));
        let text = crate::config::samples::ORDERS.replace("127.0.0.1:2", "http://svc:hunter2@10.0.0.5:8000")
            + "drivers: { a: { exec: { argv: [x], pasword: hunter3, password: hunter4 } },\n  \
               b: { webhook: { url: 'https://u:hunter7@x.example/', secret: hunter9 } } }\ndsn: postgres://u:hunter2@h/db\n";
        std::fs::write(&file, text).unwrap();
        let view = comparison.view();
        let told = serde_json::to_string(&*view).unwrap();
        assert!(view.invalid.is_some() && !told.contains("hunter"), "{told}");
        assert!(view.differences.iter().any(|one| one.key == "drivers.a.exec.pasword"), "{told}");
        assert!(view.invalid.as_ref().is_some_and(|why| why.contains("`…` is not an endpoint")), "{told}");
    }

    #[test]
    fn another_secret_is_a_difference_for_which_no_text_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("godwit.yaml");
        let fleet =
            ", drivers: { fleet: { exec: { argv: [\"/bin/false\"], password: { file: pg } } } }, zones";
        let text = format!("{{ {} }}", crate::config::samples::ORDERS.trim_end().replace('\n', ", "));
        std::fs::write(folder.path().join("pg"), "hunter2\n").unwrap();
        crate::config::samples::write(folder.path(), &text.replace(", zones", fleet));
        let overlay = Arc::new(OverlayFile::open(folder.path()).unwrap());
        let comparison = Comparison::new(file, overlay);
        assert!(!comparison.rewritten().unwrap() && comparison.view().differences.is_empty());
        std::fs::write(folder.path().join("pg"), "hunter3\n").unwrap();
        assert!(comparison.rewritten().unwrap(), "a node that leads from now on needs it");
        let seen = comparison.view();
        for found in [&seen.differences, &comparison.differences().unwrap()] {
            let [one] = found.as_slice() else { panic!("{found:?}") };
            let told = serde_json::to_string(one).unwrap();
            assert!(
                one.key == "drivers.fleet.exec.password.file" && !one.live && !told.contains("hunter"),
                "{told}"
            );
        }
        std::fs::write(folder.path().join("pg"), "hunter2").unwrap();
        assert!(comparison.view().differences.is_empty());
    }
}
