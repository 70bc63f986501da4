//! Secrets: values `{file: …}` or `{env: …}`, read once at load; their text appears in no message.

use std::path::Path;

use super::load::Surroundings;
use super::raw::Value;
use super::walk::Item;

const RIGHT: &str = "{file: PATH} or {env: NAME}";

/// The secret that the value points at.
pub(super) fn read(item: &Item<'_>, around: &Surroundings<'_>) -> Option<String> {
    if !matches!(item.value(), Value::Map(_)) {
        item.wrong("secrets are not written into this file", RIGHT);
        return None;
    }
    let mut section = item.section()?;
    let file = section.optional("file");
    let variable = section.optional("env");
    let both_or_none = section.has("file") == section.has("env");
    if both_or_none {
        let what = if section.has("file") { "has both file and env" } else { "has neither file nor env" };
        item.wrong(what, format!("one of {RIGHT}"));
    }
    section.finish();
    if both_or_none {
        return None;
    }
    match (file, variable) {
        (Some(file), _) => from_file(&file, &file.path(around.folder)?, around),
        (None, Some(variable)) => {
            let name = variable.text("the name of an environment variable")?;
            match (around.variable)(name) {
                Some(value) if !value.is_empty() => Some(value),
                Some(_) => {
                    variable.wrong(format!("the variable {name} is empty"), "set it to the secret");
                    None
                }
                None => {
                    let what = format!("the variable {name} is not set");
                    variable.wrong(what, "set it in the environment of this process");
                    None
                }
            }
        }
        (None, None) => None,
    }
}

fn from_file(item: &Item<'_>, path: &Path, around: &Surroundings<'_>) -> Option<String> {
    match (around.read)(path) {
        Ok(text) => {
            let secret = in_file(&text);
            if secret.is_empty() {
                item.wrong(format!("{} is empty", path.display()), "a file that holds the secret");
                return None;
            }
            Some(secret.to_owned())
        }
        Err(error) => {
            let what = format!("cannot read {}: {}", path.display(), reason(&error));
            item.wrong(what, "a file that this process may read");
            None
        }
    }
}

/// Editors end a file with a newline; the secret does not have one.
pub(super) fn in_file(text: &str) -> &str {
    text.trim_end_matches(['\n', '\r'])
}

/// The system's words without the number, which differs between systems.
pub(super) fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}
