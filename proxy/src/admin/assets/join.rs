//! One file out of the dashboard's modules: a browser asks once instead of twenty times, and what is alike in them is
//! compressed once. The modules are written for it, and a test holds them to it: imports on one line and without other
//! names, nothing exported but declarations, and no name at the top of two modules.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// An import: `default` and the names in braces.
#[derive(Debug, Default, PartialEq, Eq)]
struct Import {
    default: Option<String>,
    names: BTreeSet<String>,
}

/// Joins `entry` and all that it imports, each after what it needs itself; imports from `vendor/` stay imports. It exports what
/// those of `later` take from modules that are in it.
pub(super) fn join(entry: &str, later: &[&str], text_of: &impl Fn(&str) -> Option<&'static str>) -> String {
    let mut joined = Joined { text_of, seen: BTreeSet::new(), vendor: BTreeMap::new(), body: String::new() };
    joined.add(entry);
    let mut text = String::new();
    for (path, import) in joined.vendor {
        let names = import.names.into_iter().collect::<Vec<_>>().join(",");
        let braces = (!names.is_empty()).then(|| format!("{{{names}}}"));
        let what = import.default.into_iter().chain(braces).collect::<Vec<_>>().join(",");
        let _ = writeln!(text, "import {what} from './{path}';");
    }
    text += &joined.body;
    let shared: BTreeSet<String> = later.iter().flat_map(|path| taken(path, text_of)).collect();
    if !shared.is_empty() {
        let _ = writeln!(text, "export {{{}}};", shared.into_iter().collect::<Vec<_>>().join(","));
    }
    text
}

/// What a module takes from others that are not `vendor/`.
fn taken(path: &str, text_of: &impl Fn(&str) -> Option<&'static str>) -> Vec<String> {
    let imports = text_of(path).unwrap_or_default().lines().filter_map(import);
    imports
        .filter(|(_, from)| !resolve(path, from).starts_with("vendor/"))
        .flat_map(|(what, _)| names(what).1)
        .collect()
}

/// A module that is loaded later: what it takes from others is in `entry`, which is there by then.
pub(super) fn later(path: &str, entry: &str, text_of: &impl Fn(&str) -> Option<&'static str>) -> String {
    let mut text = format!("import {{{}}} from '/dashboard/{entry}';\n", taken(path, text_of).join(","));
    let own = |line: &&str| import(line).is_none_or(|(_, from)| resolve(path, from).starts_with("vendor/"));
    for line in lean(text_of(path).unwrap_or_default()).lines().filter(own) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

struct Joined<'f, F> {
    text_of: &'f F,
    seen: BTreeSet<String>,
    vendor: BTreeMap<String, Import>,
    body: String,
}

impl<F: Fn(&str) -> Option<&'static str>> Joined<'_, F> {
    fn add(&mut self, path: &str) {
        if !self.seen.insert(path.to_owned()) {
            return;
        }
        let text = (self.text_of)(path).unwrap_or_default();
        for (what, from) in text.lines().filter_map(import) {
            let from = resolve(path, from);
            if from.starts_with("vendor/") {
                let known = self.vendor.entry(from).or_default();
                let (default, names) = names(what);
                known.default = known.default.take().or(default);
                known.names.extend(names);
            } else {
                self.add(&from);
            }
        }
        for line in lean(text).lines().filter(|line| import(line).is_none()) {
            let line = line.strip_prefix("export ").unwrap_or(line);
            self.body.push_str(line);
            self.body.push('\n');
        }
    }
}

/// What is imported, and from where.
fn import(line: &str) -> Option<(&str, &str)> {
    let rest = line.strip_prefix("import ")?.trim_end().strip_suffix("';")?;
    let (what, from) = rest.split_once(" from '")?;
    Some((what, from))
}

fn names(what: &str) -> (Option<String>, Vec<String>) {
    let (default, braces) = what.split_once('{').unwrap_or((what, ""));
    let name = |text: &str| Some(text.trim().to_owned()).filter(|name| !name.is_empty());
    let default = name(default.trim().trim_end_matches(','));
    (default, braces.trim_end_matches('}').split(',').filter_map(name).collect())
}

/// `../a.js`, seen from `parts/b.js`, is `a.js`.
pub(super) fn resolve(at: &str, import: &str) -> String {
    let mut parts: Vec<&str> = at.split('/').collect();
    parts.pop();
    for part in import.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Without indentation, empty lines and comments that have lines of their own: nothing that a browser would see.
pub(super) fn lean(text: &str) -> String {
    let mut lean = String::with_capacity(text.len());
    let mut comment = false;
    for line in text.lines().map(str::trim) {
        comment |= line.starts_with("/*");
        if !comment && !line.is_empty() && !line.starts_with("//") {
            lean.push_str(line);
            lean.push('\n');
        }
        comment &= !line.ends_with("*/");
    }
    lean
}

/// A style sheet without what only people read.
pub(super) fn tight(style: &str) -> String {
    let narrow = [
        ("\n", " "),
        (" {", "{"),
        ("{ ", "{"),
        ("; ", ";"),
        (": ", ":"),
        (", ", ","),
        (" }", "}"),
        ("} ", "}"),
        (";}", "}"),
    ];
    narrow.iter().fold(lean(style), |style, (from, to)| style.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tight_style_says_the_same() {
        let style = "/* Of it. */\na:hover, .b > c {\n  margin: 0 calc(1px - 2px);\n  color: red;\n}\n\n@media (min-width: 9px) {\n  d { top: 0; }\n}\n";
        assert_eq!(
            tight(style),
            "a:hover,.b > c{margin:0 calc(1px - 2px);color:red}@media (min-width:9px){d{top:0}}"
        );
    }

    #[test]
    fn modules_follow_what_they_need_each_once() {
        let text_of = |path: &str| {
            Some(match path {
                "app.js" => {
                    "// Starts.\nimport { b } from './parts/b.js';\nimport { a } from './a.js';\nb(a);\n"
                }
                "parts/b.js" => {
                    "import htm from '../vendor/htm.js';\nimport { a } from '../a.js';\n/** Of it.\n * More. */\n\
                     export function b() {\n  return htm;\n}\n"
                }
                "a.js" => "import { y, x } from './vendor/x.js';\nexport const a = x;\n",
                _ => return None,
            })
        };
        let expected = "import htm from './vendor/htm.js';\nimport {x,y} from './vendor/x.js';\n\
                        const a = x;\nfunction b() {\nreturn htm;\n}\nb(a);\n";
        assert_eq!(join("app.js", &[], &text_of), expected);
    }
}
