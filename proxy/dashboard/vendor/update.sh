#!/usr/bin/env bash
# Fetches the libraries of the dashboard at the versions named here and writes them beside this script. They are the
# published files but for their imports, which name each other by path: a page without import map keeps a strict CSP.
# Nothing here runs at build time. After a change: make test-browser.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

preact=11.2.0 signals=2.11.4 signals_core=1.14.5 htm=3.1.1 uplot=1.6.32 atlas=2.0.2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fetch() { # NAME@VERSION FOLDER
  mkdir -p "$work/$2"
  (cd "$work" && npm pack --silent "$1" >name && tar xzf "$(tail -n 1 name)" -C "$2" --strip-components=1)
}
fetch "preact@$preact" preact
fetch "@preact/signals@$signals" signals
fetch "@preact/signals-core@$signals_core" signals-core
fetch "htm@$htm" htm
fetch "uplot@$uplot" uplot
fetch "world-atlas@$atlas" atlas

publish() { # FROM TO: imports by path, no source map
  sed -E -e 's#"preact/hooks"#"./preact-hooks.js"#g; s#"preact"#"./preact.js"#g; s#"@preact/signals-core"#"./signals-core.js"#g' \
    -e 's|//# sourceMappingURL=.*||' "$work/$1" >"$2"
}
publish preact/dist/preact.mjs preact.js
publish preact/hooks/dist/hooks.mjs preact-hooks.js
publish signals-core/dist/signals-core.mjs signals-core.js
publish signals/dist/signals.mjs signals.js
publish htm/dist/htm.mjs htm.js
publish uplot/dist/uPlot.iife.min.js uplot.js
printf '\nexport default uPlot;\n' >>uplot.js
cp "$work/uplot/dist/uPlot.min.css" uplot.css
node land.mjs "$work/atlas/land-110m.json" >land.js

for name in preact signals signals-core htm uplot atlas; do cp "$work/$name/LICENSE" "LICENSE-$name"; done
