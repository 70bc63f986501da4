// The request path: what came, what is forecast, and what was forecast some steps earlier for the same moments.
import { useEffect, useState } from '../vendor/preact-hooks.js';
import { at, optional } from '../api.js';
import { skew, zoneColour } from '../store.js';
import { ms, time } from '../format.js';
import { Figure, html } from '../ui.js';
import { Chart } from '../chart.js';

/** How many steps earlier the past forecasts were made: one of the distances that the node keeps. */
const EARLIER = 16;
/** Steps that are drawn, and rows that may be asked for. */
const [STEPS, ROWS] = [240, 10_000];
const ACTUAL = 'request_p95_ms';
const earlier = (level) => `forecast_p${level}_ms_${EARLIER}`;
const SERIES = [ACTUAL, earlier('05'), earlier('50'), earlier('95')];

/** Reads the history once, then what is new after each decision; null where the node keeps none. */
function usePast(view) {
  const [past, setPast] = useState({ points: [], forecast: null });
  const decided = view.decision?.at_ms;
  useEffect(() => {
    let gone = false;
    const read = async () => {
      const forecast = await optional(at(view.name, '/forecast'));
      if (!forecast || gone) return;
      const step = forecast.step_ms || 1000;
      // What was missed for longer than is drawn is not asked for: there may be more of it than one answer has.
      const since = Math.max(past.points.at(-1)?.made_ms ?? 0, Date.now() + skew.peek() - (STEPS + EARLIER) * step);
      const path = `/history?series=${SERIES.join()}&resolution=fine&limit=${ROWS}&from=${Math.round(since)}`;
      const page = await optional(at(view.name, path));
      if (!gone) setPast((old) => ({ points: merged(old.points, page, step), forecast }));
    };
    read().catch(() => {});
    return () => (gone = true);
  }, [view.name, decided]);
  return past;
}

/** Rows of several series become points by the step they belong to. */
function merged(points, page, step) {
  const by = new Map(points.map((point) => [point.made_ms, point]));
  for (const row of page?.rows ?? []) {
    const { name, zone } = page.series[row.series];
    by.set(row.at_ms, { ...by.get(row.at_ms), made_ms: row.at_ms, zone, [name]: row.mean });
  }
  return [...by.values()].sort((a, b) => a.made_ms - b.made_ms).slice(-(STEPS + EARLIER));
}

const COLUMNS = ['actual', 'then05', 'then50', 'then95', 'f05', 'f25', 'f50', 'f75', 'f95'];

/** One row for each moment: what came and what had been forecast for it; then what is forecast now. */
function moments(points, forecast) {
  const step = forecast.step_ms;
  const rows = points.map((point, nth) => {
    const row = { at_ms: point.made_ms, actual: point[ACTUAL] };
    const then = points[nth - EARLIER];
    const ago = then && point.made_ms - then.made_ms;
    // Of the same zone's request path, and with no gap between: a move begins a new series.
    if (then?.zone === point.zone && Math.abs(ago - EARLIER * step) < 2 * step) {
      [row.then05, row.then50, row.then95] = [then[earlier('05')], then[earlier('50')], then[earlier('95')]];
    }
    return row;
  });
  for (const { ahead, p05_ms, p25_ms, p50_ms, p75_ms, p95_ms } of forecast.steps) {
    rows.push({ at_ms: forecast.at_ms + ahead * step, f05: p05_ms, f25: p25_ms, f50: p50_ms, f75: p75_ms, f95: p95_ms });
  }
  return rows.sort((one, other) => one.at_ms - other.at_ms);
}

export function Fan({ view, marks }) {
  const { points, forecast } = usePast(view);
  if (!forecast) return null;
  const rows = moments(points, forecast);
  const own = zoneColour(view, forecast.zone || view.primary);
  const data = [rows.map((row) => row.at_ms / 1000), ...COLUMNS.map((name) => rows.map((row) => row[name] ?? null))];
  const series = [
    { label: 'p95 of requests', colour: own, width: 2.5 },
    { colour: 'var(--muted)', width: 0 },
    { label: `forecast ${ms(EARLIER * forecast.step_ms)} earlier`, colour: 'var(--muted)', dash: [3, 3] },
    { colour: 'var(--muted)', width: 0 },
    { colour: own, width: 0 }, { colour: own, width: 0 },
    { label: 'forecast', colour: own, dash: [6, 4], width: 2 },
    { colour: own, width: 0 }, { colour: own, width: 0 },
  ];
  const bands = [[4, 2, 'var(--muted)', '5–95 % then'], [9, 5, own, '5–95 % now'], [8, 6, own]];
  const next = forecast.steps.at(-1);
  const actual = rows.findLast((row) => row.actual !== undefined)?.actual;
  const label = `Request latency p95 ${ms(actual)}` +
    (next ? `; forecast in ${ms(next.ahead * forecast.step_ms)}: ${ms(next.p50_ms)}, between ${ms(next.p05_ms)} and ${ms(next.p95_ms)}` : '');
  const note = forecast.abstained ? `no forecast: ${forecast.abstained.why}` : `p95 of what users wait for in ${forecast.zone}`;
  return html`<${Figure} id="fan-chart" label="the request path and its forecast" note=${note}
      chart=${() => html`<${Chart} data=${data} series=${series} bands=${bands} label=${label} values=${(value) => ms(value)} height=${260}
        marks=${[...marks, { at: forecast.at_ms / 1000, label: 'now' }]} />`}
      table=${() => ({
        head: ['Time', 'Measured', `Forecast ${ms(EARLIER * forecast.step_ms)} earlier`, 'Forecast', '5 %', '95 %'],
        numbers: [1, 2, 3, 4, 5],
        rows: rows.slice(-80).reverse().map((row) => [time(row.at_ms), ms(row.actual), ms(row.then50), ms(row.f50), ms(row.f05), ms(row.f95)]),
      })} />
    <${Trust} forecast=${forecast} />`;
}

/** What the forecasts were worth: said plainly. */
function Trust({ forecast }) {
  const judged = forecast.trust.ahead.filter((quality) => quality.coverage !== null);
  const far = judged.findLast((quality) => quality.ahead <= EARLIER) ?? judged.at(-1);
  if (!far) return null;
  const worth = far.against_last_value;
  return html`<p class="detail">${Math.round(far.coverage * 100)} % of what came lay inside the 5–95 % band, ${far.ahead} steps ahead${
    worth === null ? '' : `; loss ${worth.toFixed(2)} of repeating the last value`
  } (${forecast.trust.steps} steps judged).</p>`;
}
