// Who serves, who follows, what is going on, what is wrong; and what can be done about it.
import { useState } from '../vendor/preact-hooks.js';
import { at, mayOperate, post } from '../api.js';
import { ABORTABLE, HOLDS, now, zoneColour } from '../store.js';
import { bytes, count, ms, span, words } from '../format.js';
import { Badge, Failure, html, useAction } from '../ui.js';
import { Migrate } from './migrate.js';

/** What a phase means for whoever looks at it. */
const MEANS = {
  idle: 'no shadow is wanted',
  preparing: 'a shadow is being made',
  shadowing: 'the shadow follows',
  requested: 'the shadow scales up',
  warm: 'guards are checked',
  armed: 'the gate is about to close',
  held: 'requests wait: those in flight end',
  drained: 'requests wait: the fence goes up',
  fenced: 'requests wait: the end marker travels',
  caught_up: 'requests wait: sequences are set',
  sequenced: 'requests wait: about to commit',
  committed: 'past the point of no return',
  swapped: 'requests are about to go on',
  released: 'served by the new primary',
  watching: 'the old primary is watched',
  soaking: 'served by the new primary; the old one waits to be retired',
  aborting: 'going back: the old primary stays',
};

export function State({ view, run }) {
  const [dialog, setDialog] = useState(false);
  const [aborting, abort] = useAction(() => post(at(view.name, `/migrations/${view.migration}/abort`)));
  // While it soaks the next one may begin: the way back.
  const moving = view.migration && view.phase !== 'soaking';
  const kind = HOLDS.includes(view.phase) ? 'warn' : view.phase === 'aborting' ? 'bad' : moving ? 'info' : 'ok';
  return html`<section class="card wide state" aria-labelledby="state-title">
    <div class="card-head">
      <h1 id="state-title">${view.name} <${Badge} kind=${kind}>${words(view.phase)}<//></h1>
      <div class="tools">
        ${mayOperate() && moving && ABORTABLE.includes(view.phase)
          ? html`<button type="button" class="danger" disabled=${aborting.busy} onClick=${() => abort()}>Abort the migration</button>`
          : ''}
        ${mayOperate()
          ? html`<button type="button" class="primary" disabled=${moving} onClick=${() => setDialog(true)}>Migrate…</button>`
          : ''}
      </div>
    </div>
    <p class="lead">
      <span role="status"><strong>${view.primary}</strong> serves; ${MEANS[view.phase] ?? words(view.phase)}${run ? html` (${run.from} → ${run.to})` : ''}</span>,
      for ${span(now() - view.since_ms)}.
    </p>
    <${Failure} error=${aborting.error} />
    ${view.proposal ? html`<${Proposal} view=${view} key=${view.proposal.id} />` : ''}
    <div class="route">
      ${view.placements.map((placement, nth) => [nth ? html`<${Stream} view=${view} />` : '', html`<${Placement} view=${view} placement=${placement} />`])}
    </div>
    <dl class="facts">
      <div><dt>Gate</dt><dd>${view.gate ? html`${view.gate.closed ? html`<b class="warn-text">closed</b>, ${count(view.gate.held)} held` : 'open'}` : 'no front'}</dd></div>
      <div><dt>In flight</dt><dd>${view.gate ? count(view.gate.in_flight) : '–'}</dd></div>
      <div><dt>Generation</dt><dd>${view.generation}</dd></div>
      <div><dt>Policy</dt><dd>${view.policy} (${view.mode})</dd></div>
    </dl>
    ${view.problems.length
      ? html`<ul class="problems" aria-label="Problems">${view.problems.map((problem) => html`<li>${problem}</li>`)}</ul>`
      : ''}
    ${dialog ? html`<${Migrate} view=${view} onClose=${() => setDialog(false)} />` : ''}
  </section>`;
}

/** A move that the score proposes and a person approves. */
function Proposal({ view }) {
  const { id, to, expires_ms, asked_by, approved_by } = view.proposal;
  const [approving, approve] = useAction(() => post(at(view.name, `/proposals/${encodeURIComponent(id)}/approve`)));
  return html`<div class="proposal">
    <p><span role="status">${asked_by ?? 'The score'} proposes a move to <strong>${to}</strong>${approved_by.length ? `, approved by ${approved_by.join(', ')}` : ''}</span>; it can be approved for ${span(Math.max(0, expires_ms - now()))} more.</p>
    ${mayOperate() ? html`<button type="button" class="primary" disabled=${approving.busy} onClick=${() => approve()}>Approve</button>` : ''}
    <${Failure} error=${approving.error} />
  </div>`;
}

function reading(probe, phases = []) {
  if (!probe) return '–';
  if ('Err' in probe) return html`<span class="bad-text">failed: ${probe.Err}</span>`;
  const each = phases.map(({ phase, us }) => `${phase.replace('_', ' ')} ${ms(us / 1000)}`).join(', ');
  return html`<span title=${each}>${ms(probe.Ok / 1000)}</span>`;
}

function Placement({ view, placement }) {
  const workers = placement.ready === null ? '–' : `${placement.ready} of ${placement.capacity}`;
  return html`<div class=${`placement ${placement.role}`} style=${{ '--own': zoneColour(view, placement.zone) }}>
    <p class="role">${placement.role}</p>
    <p class="name">${placement.zone}</p>
    <dl class="facts small">
      <div><dt>HTTP</dt><dd>${reading(placement.http_probe, placement.http_phases)}</dd></div>
      <div><dt>SQL</dt><dd>${reading(placement.sql_probe, placement.sql_phases)}</dd></div>
      ${placement.heartbeat ? html`<div><dt>Write</dt><dd>${reading(placement.heartbeat)}</dd></div>` : ''}
      <div><dt>Workers</dt><dd>${workers}</dd></div>
    </dl>
  </div>`;
}

function Stream({ view }) {
  const { state, lag_bytes, lag_ms } = view.replication;
  const live = state === 'streaming';
  return html`<div class=${`stream ${live ? '' : 'broken'}`}>
    <span>${live ? html`<b>${ms(lag_ms)}</b> behind` : html`<b>${state}</b>`}</span>
    <svg viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">
      <line x1="0" y1="6" x2="100" y2="6" vector-effect="non-scaling-stroke" />
    </svg>
    <span class="muted">${live ? bytes(lag_bytes) : 'no stream'}</span>
  </div>`;
}
