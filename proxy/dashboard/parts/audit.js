// Loaded when it is opened. What was asked for, decided and done, as the node's audit has it.
import { useEffect } from '../vendor/preact-hooks.js';
import { get } from '../api.js';
import { ms, words } from '../format.js';
import { Badge, Failure, Table, Time, html, useAction } from '../ui.js';

/** Read each time it is opened. */
export function Records({ view, times }) {
  const [state, read] = useAction(() => get(`/api/v1/audit?limit=100&resource=${encodeURIComponent(view.name)}`));
  useEffect(() => void read(), [times]);
  return html`<${Failure} error=${state.error} />
    ${state.result
      ? html`<${Table} label="Audit" head=${['When', 'Kind', 'What', 'Who']} empty="no record yet"
          rows=${state.result.map((record) => [html`<${Time} at=${Date.parse(record.at)} />`, kind(record), said(record), record.who?.name ?? record.by ?? record.trigger ?? ''])} />`
      : ''}`;
}

const kind = (record) => html`<${Badge} kind=${record.kind === 'refused' || record.error ? 'bad' : ''}>${record.kind}<//>`;

function said(record) {
  if (record.kind === 'call') return `${record.method} ${record.path}${record.query ? `?${new URLSearchParams(record.query)}` : ''}${record.body ? ` ${JSON.stringify(record.body)}` : ''}`;
  if (record.kind === 'outcome') return `${record.status}${record.answer?.detail ? `: ${record.answer.detail}` : ''}`;
  if (record.kind === 'refused') return `${record.method} ${record.path}: ${record.why}`;
  if (record.kind === 'decision') return `${record.verdict}: ${record.because}`;
  if (record.kind === 'changed') return `${record.section}: ${JSON.stringify(record.before)} → ${JSON.stringify(record.after)}`;
  if (record.kind === 'schema') return record.done.join('; ');
  if (record.kind === 'step') return `${words(record.before)} → ${words(record.after)} (${record.event}), ${record.primary} serves`;
  if (record.kind === 'effect') return `${words(record.effect)}, ${ms(record.spent_ms)}${record.error ? `: ${record.error}` : ''}`;
  return '';
}
