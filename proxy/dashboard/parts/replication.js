// How far the shadow is behind, where the stream stands, and which commits wait for it.
import { trails } from '../store.js';
import { bytes, count, ms, time } from '../format.js';
import { Badge, Card, Figure, Table, Time, html } from '../ui.js';
import { Chart } from '../chart.js';

const LAGS = [
  { label: 'bytes behind', colour: 'var(--term-0)', fill: true, scale: 'bytes', pick: (point) => point.lag_bytes },
  { label: 'time behind', colour: 'var(--term-1)', scale: 'ms', pick: (point) => point.lag_ms },
];
const value = (number, scale) => (scale === 'bytes' ? bytes(number) : ms(number));

export function Replication({ view, marks }) {
  const { replication: stream } = view;
  const trail = trails.value[view.name] ?? [];
  const data = [trail.map((point) => point.at_ms / 1000), ...LAGS.map(({ pick }) => trail.map(pick))];
  const label = `The shadow is ${bytes(stream.lag_bytes)} and ${ms(stream.lag_ms)} behind`;
  const { mode } = stream;
  return html`<${Card} id="replication" title="Replication" tools=${html`<${Badge} kind=${stream.state === 'streaming' ? 'ok' : 'warn'}>${stream.state}<//>`}>
    ${stream.detail ? html`<p class="detail">${stream.detail}</p>` : ''}
    <${Figure} id="replication-chart" label="replication lag" note="behind, since this page was opened"
      chart=${() => html`<${Chart} data=${data} series=${LAGS} label=${label} values=${value} height=${170} marks=${marks} />`}
      table=${() => ({
        head: ['Time', 'Bytes behind', 'Time behind'],
        numbers: [1, 2],
        rows: trail.slice(-60).reverse().map((point) => [time(point.at_ms), bytes(point.lag_bytes), ms(point.lag_ms)]),
      })} />
    <dl class="facts">
      <div><dt>From</dt><dd>${stream.source || '–'}</dd></div>
      <div><dt>To</dt><dd>${stream.target || '–'}</dd></div>
      <div><dt>Source at</dt><dd class="mono">${stream.source_lsn || '–'}</dd></div>
      <div><dt>Applied</dt><dd class="mono">${stream.applied_lsn || '–'}</dd></div>
      <div><dt>Transactions</dt><dd>${count(stream.transactions)}</dd></div>
      <div><dt>Row changes</dt><dd>${count(stream.changes)}</dd></div>
      <div><dt>Commits wait</dt><dd>${mode.effective}${mode.effective === mode.wanted ? '' : html` <span class="warn-text">(wanted: ${mode.wanted})</span>`}</dd></div>
      ${mode.waiting ? html`<div><dt>Waiting now</dt><dd>${count(mode.waiting)}</dd></div>` : ''}
    </dl>
    ${mode.why ? html`<p class="detail">${mode.why}</p>` : ''}
    ${stream.lanes.length
      ? html`<${Table} label="Lanes" head=${['Lane', 'State', 'Bytes behind', 'Time behind', 'Applied']} numbers=${[2, 3]}
          rows=${stream.lanes.map((lane) => [lane.name, lane.state, bytes(lane.lag_bytes), ms(lane.lag_ms), lane.applied_lsn])} />`
      : ''}
    ${mode.changes.length > 1
      ? html`<details><summary>changes of the mode</summary>
          <${Table} label="Changes of the mode" head=${['Since', 'Mode', 'Why']}
            rows=${[...mode.changes].reverse().map((change) => [html`<${Time} at=${change.at_ms} />`, change.mode, change.why])} /></details>`
      : ''}
  <//>`;
}
