// The page of one resource: what is true now first, then why, then what was.
import { useEffect } from '../vendor/preact-hooks.js';
import { Failure, html, useAction } from '../ui.js';
import { runs } from '../store.js';
import { readRuns } from '../live.js';
import { State } from './state.js';
import { Score } from './score.js';
import { Latency } from './latency.js';
import { Replication } from './replication.js';
import { Timeline } from './timeline.js';
import { Zones } from './zones.js';
import { Cost } from './cost.js';
import { Checks } from './checks.js';
import { History } from './history.js';

/** Most who look at the page change nothing: what it takes to is asked for when it is opened. */
function Settings({ view }) {
  const [asked, load] = useAction(async () => (await import('/dashboard/parts/settings.js')).Forms);
  const open = ({ target }) => target.open && !asked.result && load();
  return html`<details class="card wide" id="settings" onToggle=${open}>
    <summary>Settings</summary>
    <${Failure} error=${asked.error} />
    ${asked.result ? html`<${asked.result} view=${view} />` : ''}
  </details>`;
}

export function Resource({ view }) {
  const read = runs.value[view.name];
  useEffect(() => void (read || readRuns(view.name).catch(() => {})), [view.name, !read]);
  const list = read ?? [];
  const marks = list.filter((run) => run.committed_ms).map((run) => ({ at: run.committed_ms / 1000, label: `→ ${run.to}` }));
  return html`<div class="grid">
    <${State} view=${view} run=${list.find((run) => run.id === view.migration)} />
    <${Timeline} view=${view} runs=${list} />
    <div class="column"><${Score} view=${view} /><${Cost} view=${view} /></div>
    <div class="column"><${Latency} view=${view} marks=${marks} /><${Replication} view=${view} marks=${marks} /></div>
    <div class="column pair"><${Zones} view=${view} /><${Checks} view=${view} /></div>
    <${Settings} view=${view} />
    <${History} view=${view} runs=${list} />
  </div>`;
}
