// One migration: the whole of it, and below it the hold, magnified: what clients waited for.
import { useEffect, useState } from '../vendor/preact-hooks.js';
import { signal } from '../vendor/signals.js';
import { ABORTABLE, HOLDS, skew } from '../store.js';
import { ms, time, words } from '../format.js';
import { Badge, Card, Figure, Time, html, useWidth } from '../ui.js';

/** The migration that somebody asked to see, by resource, until a newer one begins; none: the newest. */
export const picked = signal({});

const POINT = 'point of no return';
const LIVE = 100;

export function Timeline({ view, runs, unread }) {
  const current = runs.find((run) => run.id === view.migration);
  const { id, newest } = picked.value[view.name] ?? {};
  const run = (newest === runs[0]?.id && runs.find((one) => one.id === id)) || current || runs[0];
  const ticking = run && run === current && view.phase !== 'soaking';
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    if (!ticking) return undefined;
    const timer = setInterval(() => setNow(Date.now()), LIVE);
    return () => clearInterval(timer);
  }, [ticking]);
  if (!run) {
    return html`<${Card} id="timeline" title="Migration" span="wide"><p class="waiting">${unread || `${view.name} has not moved yet`}</p><//>`;
  }
  const parts = spans(run, Math.max(now, Date.now()) + skew.value);
  const held = hold(run, parts);
  const kind = run.state === 'aborted' || run.state === 'aborting' ? 'bad' : run.ended_ms ? 'ok' : 'info';
  const label = `Migration from ${run.from} to ${run.to}, ${words(run.state)}: ` +
    `${parts.map((part) => `${words(part.phase)} ${ms(part.ms)}`).join(', ')}${held ? `; clients were held ${ms(held.ms)}` : ''}`;
  return html`<${Card} id="timeline" title="Migration" span="wide" tools=${html`<${Badge} kind=${kind}>${words(run.state)}<//>`}>
    <p class="figure-line">
      <span class="big">${held ? ms(held.ms) : '–'}</span>
      <span class="muted">held · <b>${run.from} → ${run.to}</b> · by ${run.trigger} · <${Time} at=${run.started_ms} />
        ${run.reason ? html` · <span class="bad-text">${run.reason}</span>` : ''}</span>
    </p>
    <${Figure} id="timeline-chart" label="the migration's steps" note=${held ? 'the whole migration, and the hold magnified' : 'the whole migration'}
      chart=${() => html`<${Strips} run=${run} parts=${parts} held=${held} label=${label} />`}
      table=${() => ({
        head: ['Step', 'Began', 'Took', 'Clients wait'],
        numbers: [2],
        rows: parts.map((part) => [words(part.phase), time(part.from), ms(part.ms), part.holds ? 'yes' : 'no']),
      })} />
    <ol class="steps" aria-label="Steps">${parts.map((part) => html`<${Step} part=${part} />`)}</ol>
    <dl class="facts">
      <div><dt>Id</dt><dd class="mono">${run.id}</dd></div>
      <div><dt>Generation</dt><dd>${run.generation}</dd></div>
      <div><dt>End marker</dt><dd class="mono">${run.fence_lsn ?? '–'}</dd></div>
      <div><dt>Compared</dt><dd>${run.verified === null ? 'not yet' : run.verified ? html`<${Badge} kind="ok">equal<//>` : html`<${Badge} kind="bad">different<//>`}</dd></div>
    </dl>
    ${run.comparison ? html`<p class="detail">${run.comparison}</p>` : ''}
  <//>`;
}

function Step({ part }) {
  const classes = [part.holds && 'hold', part.running && 'running'].filter(Boolean).join(' ');
  return html`${part.phase === 'committed' ? html`<li class="point">${POINT}</li>` : ''}
    <li class=${classes} data-phase=${part.phase}><span>${words(part.phase)}</span> <b>${ms(part.ms)}</b></li>`;
}

/** Each phase with where it begins and how long it took so far. */
function spans(run, now) {
  return run.steps.map((step, nth) => {
    const running = step.ended_ms === null && !run.ended_ms && nth === run.steps.length - 1;
    const to = step.ended_ms ?? run.ended_ms ?? Math.max(now, step.started_ms);
    return { phase: step.phase, from: step.started_ms, to, ms: to - step.started_ms, running, holds: HOLDS.includes(step.phase) };
  });
}

function hold(run, parts) {
  const waited = parts.filter((part) => part.holds);
  if (!waited.length) return null;
  const [from, to] = [waited[0].from, waited.at(-1).to];
  return { from, to, ms: run.held_ms ?? to - from, parts: waited };
}

const PHASE = (part) =>
  part.phase === 'aborting' ? 'var(--bad)' : part.holds ? 'var(--hold)' : ABORTABLE.includes(part.phase) ? 'var(--before)' : 'var(--after)';

function Strips({ run, parts, held, label }) {
  const [box, width] = useWidth();
  // A day of soaking would leave no room for anything else.
  const shown = parts.filter((part) => part.phase !== 'soaking');
  const drawn = shown.length ? shown : parts;
  const [from, to] = [drawn[0].from, Math.max(drawn.at(-1).to, drawn[0].from + 1)];
  const x = (at) => ((at - from) / (to - from)) * width;
  const height = held ? 158 : 44;
  return html`<div ref=${box}>
    <svg class="strips" width=${width} height=${height} role="img" aria-label=${label}>
      <${Strip} parts=${drawn} x=${x} y=${4} height=${30} />
      ${held ? html`<${Magnified} run=${run} held=${held} x=${x} width=${width} />` : ''}
    </svg>
  </div>`;
}

function Strip({ parts, x, y, height, milliseconds }) {
  return parts.map((part) => {
    const [left, right] = [x(part.from), x(part.to)];
    const wide = right - left;
    const text = words(part.phase);
    const fits = wide > text.length * 7.2 + 10;
    return html`<g>
      <rect x=${left} y=${y} width=${Math.max(1.5, wide - 1)} height=${height} rx="2" fill=${PHASE(part)}><title>${text} ${ms(part.ms)}</title></rect>
      ${fits ? html`<text class="on" x=${left + wide / 2} y=${y + height / 2 + (milliseconds ? -2 : 4)} text-anchor="middle">${text}</text>` : ''}
      ${fits && milliseconds ? html`<text class="on strong" x=${left + wide / 2} y=${y + height / 2 + 13} text-anchor="middle">${ms(part.ms)}</text>` : ''}
    </g>`;
  });
}

function Magnified({ run, held, x, width }) {
  const length = Math.max(held.to - held.from, 1);
  const zoomed = (at) => ((at - held.from) / length) * width;
  const [left, right] = [x(held.from), Math.max(x(held.to), x(held.from) + 2)];
  const commit = run.committed_ms === null ? null : zoomed(run.committed_ms);
  const anchor = commit > width - 70 ? 'end' : commit < 70 ? 'start' : 'middle';
  return html`<path class="fan" d=${`M${left} 34L0 66H${width}L${right} 34z`} />
    <${Strip} parts=${held.parts} x=${zoomed} y=${66} height=${44} milliseconds />
    <rect class="outline" x="1" y="66" width=${Math.max(0, width - 2)} height="44" rx="2" />
    ${commit === null
      ? ''
      : html`<line class="no-return" x1=${commit} x2=${commit} y1="58" y2="122" />
          <text class="no-return-text" x=${commit} y="136" text-anchor=${anchor}>${POINT}</text>`}
    <text class="tick" x="0" y="152">gate closed</text>
    <text class="tick" x=${width} y="152" text-anchor="end">${held.parts.at(-1).running ? 'now' : `open after ${ms(held.ms)}`}</text>`;
}
