// What it costs now, of that the shadow, and what it would cost after a move.
import { zoneColour } from '../store.js';
import { signed, span } from '../format.js';
import { Card, Figure, html, useWidth } from '../ui.js';

const money = (value) => `${value.toFixed(2)}/h`;

export function Cost({ view }) {
  const [primary, shadow] = ['primary', 'shadow'].map((role) => view.placements.find((placement) => placement.role === role));
  if (!primary || !shadow) return null;
  const from = ({ zone, cost }) => `${zone}: ${cost.source}${cost.age_ms ? `, ${span(cost.age_ms)} old` : ''}`;
  const said = [primary, shadow].map(from).join('; ');
  if ([primary, shadow].some(({ cost }) => cost.value === null)) return html`<${Card} id="cost" title="Cost"><p class="waiting">${said}</p><//>`;
  const cost = (placement, workers) => ({ zone: placement.zone, workers, value: placement.cost.value * workers });
  const rows = [
    { name: 'now', parts: [cost(primary, primary.capacity ?? primary.capacity_full), cost(shadow, shadow.capacity ?? shadow.capacity_shadow)] },
    { name: 'shadow alone', parts: [cost(shadow, shadow.capacity ?? shadow.capacity_shadow)] },
    { name: 'after a move', parts: [cost(shadow, shadow.capacity_full), cost(primary, primary.capacity_shadow)] },
  ].map((row) => ({ ...row, sum: row.parts.reduce((sum, part) => sum + part.value, 0) }));
  const [now, , after] = rows;
  const label = rows.map((row) => `${row.name} ${money(row.sum)}`).join(', ');
  return html`<${Card} id="cost" title="Cost">
    <p class="figure-line"><span class="big">${money(now.sum)}</span>
      <span class="muted">now; after a move <b>${money(after.sum)}</b> (${signed(after.sum - now.sum)})</span></p>
    <${Figure} id="cost-chart" label="cost" note=${`by zone, per hour; ${said}`}
      chart=${() => html`<${Bars} view=${view} rows=${rows} label=${label} />`}
      table=${() => ({
        head: ['When', 'Zone', 'Workers', 'Each', 'Cost'],
        numbers: [2, 3, 4],
        rows: rows.flatMap((row) => row.parts.map((part) => [row.name, part.zone, String(part.workers), money(part.workers ? part.value / part.workers : 0), money(part.value)])),
      })} />
  <//>`;
}

function Bars({ view, rows, label }) {
  const [box, width] = useWidth();
  const most = Math.max(...rows.map((row) => row.sum), 0.01);
  const room = Math.max(0, width - 64);
  return html`<div ref=${box}>
    <svg width=${width} height=${rows.length * 44} role="img" aria-label=${label}>
      ${rows.map((row, nth) => {
        let left = 0;
        return html`<g>
          <text class="tick" x="0" y=${nth * 44 + 12}>${row.name}</text>
          ${row.parts.map((part) => {
            const wide = (part.value / most) * room;
            const rect = html`<rect x=${left} y=${nth * 44 + 18} width=${Math.max(0, wide - 1)} height="16" rx="2" fill=${zoneColour(view, part.zone)}><title>${part.zone} ${money(part.value)}</title></rect>`;
            left += wide;
            return rect;
          })}
          <text class="strong" x=${left + 6} y=${nth * 44 + 31}>${money(row.sum)}</text>
        </g>`;
      })}
    </svg>
    <ul class="legend">${view.placements.map((placement) => html`<li><i class="key area solid" style=${{ color: zoneColour(view, placement.zone) }} aria-hidden="true"></i>${placement.zone}</li>`)}</ul>
  </div>`;
}
