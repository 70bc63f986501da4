// The Migration Score against what it needs, its terms, and why nothing moves now.
import { fixed, ms, signed } from '../format.js';
import { Badge, Card, Figure, Table, html, useWidth } from '../ui.js';

const TERMS = { latency: 'var(--term-0)', cost: 'var(--term-1)', utilization: 'var(--term-2)' };
const colour = (name) => TERMS[name] ?? 'var(--term-3)';

export function Score({ view }) {
  const { decision } = view;
  if (!decision) {
    return html`<${Card} id="score" title="Migration score"><p class="waiting">nothing was measured yet</p><//>`;
  }
  const { score, lower, needed, guards } = decision;
  const failed = guards.filter((guard) => !guard.passed);
  const label = `Score ${fixed(score, 2)}, lower bound ${fixed(lower, 2)}, needs above ${fixed(needed, 2)}; ` +
    decision.terms.map((term) => `${term.name} ${signed(term.points)}`).join(', ');
  return html`<${Card} id="score" title="Migration score">
    <p class="figure-line">
      <span class="big">${fixed(lower, 2)}</span>
      <span class="muted">lower bound; needs more than <b>${fixed(needed, 2)}</b>; best estimate ${fixed(score, 2)}</span>
    </p>
    <${Figure} id="score-chart" label="the score's terms" note="points for moving, by term"
      chart=${() => html`<${Bar} decision=${decision} label=${label} />`} table=${() => terms(decision)} />
    <div class="verdict">
      <h3>${decision.verdict === 'stay' ? 'Why not now' : decision.verdict === 'move' ? 'Moving' : 'Proposed'}</h3>
      <p>${decision.because}</p>
    </div>
    <details open=${failed.length > 0}>
      <summary>${guards.length - failed.length} of ${guards.length} guards pass</summary>
      <${Guards} guards=${[...failed, ...guards.filter((guard) => guard.passed)]} />
    </details>
  <//>`;
}

export function Guards({ guards }) {
  const mark = (passed) => html`<${Badge} kind=${passed ? 'ok' : 'bad'}>${passed ? '✓' : '✗'}<span class="sr">${passed ? ' passes' : ' fails'}</span><//>`;
  return html`<${Table} label="Guards" head=${[html`<span class="sr">Passes</span>`, 'Guard', 'Is', 'Needs']}
    rows=${guards.map((guard) => [mark(guard.passed), guard.name, guard.value, guard.limit])} />`;
}

function terms({ terms: all, score, lower }) {
  const rows = all.map((term) => [
    term.name,
    term.raw === null ? 'unknown' : signed(term.raw, 3),
    String(term.weight),
    signed(term.points, 3),
    signed(term.points_lower, 3),
    term.age_ms === null ? '–' : ms(term.age_ms),
    [term.source, term.detail].filter(Boolean).join(': '),
  ]);
  rows.push(['sum', '', '', signed(score, 3), signed(lower, 3), '', '']);
  return { head: ['Term', 'Raw', 'Weight', 'Points', 'At least', 'Age', 'From'], rows, numbers: [1, 2, 3, 4, 5] };
}

/** What speaks for moving is stacked to the right of zero, what speaks against it to the left. */
function Bar({ decision, label }) {
  const [box, width] = useWidth();
  const { terms: all, lower, score, needed } = decision;
  const sum = (sign) => all.reduce((total, { points }) => total + Math.max(0, points * sign), 0);
  const high = Math.max(needed * 1.4, sum(1) * 1.1, lower, 0.1);
  const low = Math.min(-sum(-1) * 1.1, lower, -high * 0.08);
  const edge = 10;
  const x = (points) => edge + ((points - low) / (high - low)) * (width - 2 * edge);
  const ends = { 1: 0, '-1': 0 };
  const pieces = all.map((term) => {
    const sign = Math.sign(term.points) || 1;
    const from = ends[sign];
    ends[sign] += term.points;
    const [left, right] = [x(from), x(ends[sign])].sort((a, b) => a - b);
    return html`<rect x=${left} y="26" width=${Math.max(0, right - left)} height="30" fill=${colour(term.name)}><title>${term.name} ${signed(term.points)}</title></rect>`;
  });
  const anchor = (at) => (at > width - 90 ? 'end' : at < 60 ? 'start' : 'middle');
  return html`<div ref=${box}>
    <svg class="bar" width=${width} height="92" role="img" aria-label=${label}>
      <rect x=${x(needed)} y="26" width=${Math.max(0, width - x(needed))} height="30" class="goal" />
      ${pieces}
      <line class="axis" x1=${x(0)} x2=${x(0)} y1="20" y2="62" />
      ${x(needed) - x(0) > 70 ? html`<text class="tick" x=${x(0)} y="13" text-anchor="middle">0</text>` : ''}
      <line class="threshold" x1=${x(needed)} x2=${x(needed)} y1="18" y2="62" />
      <text x=${x(needed)} y="12" text-anchor=${anchor(x(needed))}>needs ${fixed(needed, 2)}</text>
      <line class="marker-line" x1=${x(lower)} x2=${x(score)} y1="66" y2="66" />
      <path class="marker" d=${`M${x(lower)} 58l6 11h-12z`} />
      <text class="tick" x=${x(lower)} y="84" text-anchor=${anchor(x(lower))}>at least ${fixed(lower, 2)}</text>
    </svg>
    <ul class="legend">
      ${all.map((term) => html`<li><i class="key area solid" style=${{ color: colour(term.name) }} aria-hidden="true"></i>${term.name} ${term.raw === null ? '(unknown)' : signed(term.points)}</li>`)}
    </ul>
  </div>`;
}
