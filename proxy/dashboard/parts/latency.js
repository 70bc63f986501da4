// What was measured and what is forecast.
import { trails, zoneColour } from '../store.js';
import { ms, time } from '../format.js';
import { Card, Figure, html } from '../ui.js';
import { Chart } from '../chart.js';
import { Fan } from './fan.js';

export function Latency({ view, marks }) {
  const trail = trails.value[view.name] ?? [];
  const zones = view.placements.map((placement) => placement.zone).sort();
  const columns = zones.flatMap((zone) => [
    { label: `${zone}, probe`, colour: zoneColour(view, zone), width: 2, pick: (point) => point.probes[zone] ?? null },
    { label: `${zone}, forecast`, colour: zoneColour(view, zone), dash: [5, 4], pick: (point) => point.forecasts[zone] ?? null },
  ]);
  const data = [trail.map((point) => point.at_ms / 1000), ...columns.map(({ pick }) => trail.map(pick))];
  const last = trail.at(-1);
  const label = last
    ? `Latency of the probes: ${zones.map((zone) => `${zone} ${ms(last.probes[zone])}, forecast ${ms(last.forecasts[zone])}`).join('; ')}`
    : 'Latency of the probes';
  return html`<${Card} id="latency" title="Latency">
    <${Fan} view=${view} marks=${marks} />
    <${Figure} id="latency-chart" label="the probes" note="probes of both zones, and their forecast, since this page was opened"
      chart=${() => html`<${Chart} data=${data} series=${columns} label=${label} values=${(value) => ms(value)} height=${190} marks=${marks} />`}
      table=${() => ({
        head: ['Time', ...columns.map((column) => column.label)],
        numbers: columns.map((_, nth) => nth + 1),
        rows: trail.slice(-60).reverse().map((point) => [time(point.at_ms), ...columns.map(({ pick }) => ms(pick(point)))]),
      })} />
  <//>`;
}
