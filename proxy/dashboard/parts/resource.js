// The page of one resource: what is true now first, then why, then what was.
import { useEffect } from '../vendor/preact-hooks.js';
import { Later, html, useAction } from '../ui.js';
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

export function Resource({ view }) {
  const read = runs.value[view.name];
  const [asked, ask] = useAction(() => readRuns(view.name));
  useEffect(() => {
    if (read) return undefined;
    ask();
    const timer = setInterval(ask, 5000);
    return () => clearInterval(timer);
  }, [view.name, !read]);
  const unread = !read && (asked.error?.message ?? 'loading');
  const list = read ?? [];
  const marks = list.filter((run) => run.committed_ms).map((run) => ({ at: run.committed_ms / 1000, label: `→ ${run.to}` }));
  return html`<div class="grid">
    <${State} view=${view} run=${list.find((run) => run.id === view.migration)} />
    <${Timeline} view=${view} runs=${list} unread=${unread} />
    <div class="column"><${Score} view=${view} /><${Cost} view=${view} /></div>
    <div class="column"><${Latency} view=${view} marks=${marks} /><${Replication} view=${view} marks=${marks} /></div>
    <div class="column pair"><${Zones} view=${view} /><${Checks} view=${view} /></div>
    <${Later} id="settings" kind="card wide" title="Settings" view=${view} load=${async () => (await import('/dashboard/parts/settings.js')).Forms} />
    <${History} view=${view} runs=${list} unread=${unread} />
  </div>`;
}
