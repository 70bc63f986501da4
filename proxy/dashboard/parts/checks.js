// Is the shadow equal to its primary (verification), and could the databases move (doctor)?
import { useEffect, useState } from '../vendor/preact-hooks.js';
import { ask, at, get, mayOperate, optional, post } from '../api.js';
import { count, words } from '../format.js';
import { now } from '../store.js';
import { Badge, Card, Failure, Table, Time, html, useAction } from '../ui.js';

/** How often a verification is asked how far it is while it runs, and whether there is another one, ms. */
const [PACE, REST] = [1000, 60_000];

export function Checks({ view }) {
  return html`<${Card} id="checks" title="Checks">
    <${Verification} view=${view} />
    <${Doctor} view=${view} />
  <//>`;
}

function Verification({ view }) {
  const path = at(view.name, '/verification');
  const [last, setLast] = useState(null);
  // Each answer, and each that did not come, has the next one asked for.
  const read = () => optional(path).then(setLast, () => setLast((old) => ({ ...old })));
  useEffect(() => void read(), [view.name, view.migration]);
  useEffect(() => {
    const timer = setTimeout(read, last?.state === 'running' ? PACE : REST);
    return () => clearTimeout(timer);
  }, [last]);
  const [starting, start] = useAction(async (resume) => setLast(await post(path, { resume })));
  const [stopping, stop] = useAction(async () => setLast(await ask('DELETE', path)));
  if (!last?.state) return null;
  const { state, progress } = last;
  const running = state === 'running';
  const share = progress.rows_estimate ? Math.min(1, progress.rows / progress.rows_estimate) : 0;
  return html`<div class="part">
    <div class="card-head"><h3>Verification</h3>
      <div class="tools">
        ${!mayOperate() ? '' : running
          ? html`<button type="button" disabled=${stopping.busy} onClick=${() => stop()}>Stop</button>`
          : html`${['stopped', 'failed'].includes(state) ? html`<button type="button" disabled=${starting.busy} onClick=${() => start(true)}>Resume</button>` : ''}
              <button type="button" disabled=${starting.busy} onClick=${() => start(false)}>Verify</button>`}
      </div>
    </div>
    <p role="status">${verdict(last)}</p>
    <${Failure} error=${starting.error ?? stopping.error} />
    ${running ? html`<progress max="1" value=${share} aria-label="Rows compared"></progress>` : ''}
    ${state === 'none' ? '' : html`<p class="detail">${count(progress.rows)} rows, ${progress.tables_done} of ${progress.tables} tables, ${last.source} → ${last.target},
      by ${last.by}, <${Time} at=${last.ended_ms ?? last.started_ms} /></p>`}
    ${last.differences.length
      ? html`<${Table} label="Differences" head=${['Table', 'Key', 'What', 'Columns']}
          rows=${last.differences.slice(0, 50).map((found) => [found.table, found.key.map(([name, value]) => `${name}=${value}`).join(', '), words(found.kind), found.columns.map((column) => column.column ?? column.name).join(', ')])} />`
      : ''}
    ${last.notes.map((note) => html`<p class="detail">${note}</p>`)}
  </div>`;
}

function verdict({ state, why, progress }) {
  if (state === 'none') return 'never verified';
  if (state === 'running') return `comparing${progress.table ? ` ${progress.table}` : ''}…`;
  if (state === 'done') {
    return progress.differences
      ? html`<${Badge} kind="bad">${count(progress.differences)} differences<//>`
      : html`<${Badge} kind="ok">equal<//>`;
  }
  return html`<${Badge} kind="warn">${state}<//> ${why}`;
}

function Doctor({ view }) {
  const { generation } = view;
  const [state, examine] = useAction(async () => ({ found: await get(at(view.name, '/doctor')), at_ms: now(), generation }));
  // After a move it is about other databases.
  const { found, at_ms } = state.result?.generation === generation ? state.result : {};
  return html`<div class="part">
    <div class="card-head"><h3>Doctor</h3>
      <div class="tools"><button type="button" disabled=${state.busy} onClick=${() => examine()}>${state.busy ? 'Examining…' : 'Examine'}</button></div>
    </div>
    <${Failure} error=${state.error} />
    <div role="status">
      ${found
        ? html`<p><${Badge} kind=${found.go ? 'ok' : 'bad'}>${found.go ? 'GO' : 'NO-GO'}<//> ${found.findings.length ? `${found.findings.length} findings` : 'nothing is wrong'}, examined at <${Time} at=${at_ms} /></p>`
        : html`<p class="muted">Are both databases ready to move, and what mends them?</p>`}
    </div>
    ${found
      ? html`<ul class="findings">${found.findings.map(
          (finding) => html`<li><${Badge} kind=${finding.severity === 'blocker' ? 'bad' : 'warn'}>${finding.severity}<//> ${finding.zone}: <b>${finding.subject}</b>: ${finding.problem}
            ${finding.remedy ? html`<pre tabindex="0">${finding.remedy}</pre>` : ''}</li>`,
        )}</ul>`
      : ''}
  </div>`;
}
