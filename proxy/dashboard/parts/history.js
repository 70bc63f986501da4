// Every migration that was.
import { ms, words } from '../format.js';
import { who } from '../api.js';
import { Badge, Card, Later, Table, Time, html } from '../ui.js';
import { picked } from './timeline.js';

const KIND = { retired: 'ok', superseded: 'ok', aborted: 'bad', taken_over: 'warn' };

export function History({ view, runs, unread }) {
  const pick = (run) => {
    picked.value = { ...picked.value, [view.name]: { id: run.id, newest: runs[0].id } };
    document.getElementById('timeline').scrollIntoView({ block: 'start' });
  };
  const row = (run) => [
    html`<${Time} at=${run.started_ms} />`,
    html`<span class="nowrap">${run.from} → ${run.to}</span>`,
    run.trigger,
    html`<${Badge} kind=${KIND[run.state] ?? 'info'}>${words(run.state)}<//>`,
    html`<b>${run.held_ms === null ? '–' : ms(run.held_ms)}</b>`,
    run.verified === null ? '–' : run.verified ? 'equal' : html`<b class="bad-text">different</b>`,
    run.reason ?? '',
    html`<button type="button" class="quiet" onClick=${() => pick(run)}>Show<span class="sr"> ${run.id}</span></button>`,
  ];
  return html`<${Card} id="history" title="History" span="wide">
    <${Table} label="Migrations" head=${['Started', 'Move', 'By', 'State', 'Held', 'Compared', 'Reason', html`<span class="sr">Show</span>`]}
      numbers=${[4]} rows=${runs.map(row)} empty=${unread || 'no migration yet'} />
    ${who.value?.role === 'admin' && !who.value.resources
      ? html`<${Later} id="audit" title="Audit: the last 100 records" view=${view} load=${async () => (await import('/dashboard/parts/audit.js')).Records} />`
      : ''}
  <//>`;
}
