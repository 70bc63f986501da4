// A time series on a canvas, by uPlot; its colours are those of the style sheet, in light and dark.
import uPlot from './vendor/uplot.js';
import { useEffect, useRef } from './vendor/preact-hooks.js';
import { html, useWidth } from './ui.js';
import { theme } from './theme.js';
import { time } from './format.js';

const resolve = (colour) => {
  const name = /^var\((.*)\)$/.exec(colour)?.[1];
  return name ? getComputedStyle(document.documentElement).getPropertyValue(name).trim() : colour;
};

/** With less opacity: for areas. */
const faint = (colour, alpha) => {
  const hex = resolve(colour).replace('#', '');
  const [r, g, b] = [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${r}, ${g}, ${b}, ${alpha})`;
};

/**
 * `series`: `{label, colour, width?, dash?, fill?, points?, scale?}`, one for each column of `data` after the first, which
 * is Unix seconds. `bands`: `[upper, lower, colour]` by column. `values`: formats a value by scale. `marks`: `[{at, label}]`.
 */
export function Chart({ data, series, bands = [], values, height = 220, label, marks = [] }) {
  const [box, width] = useWidth();
  const plot = useRef(null);
  const latest = useRef(marks);
  latest.current = marks;
  const shape = JSON.stringify([series, bands, height, theme.value]);
  const ready = width > 0 && data[0].length > 1;
  useEffect(() => {
    if (!ready) return undefined;
    const options = settings({ series, bands, values, height, width, marks: () => latest.current });
    plot.current = new uPlot(options, data, box.current);
    return () => {
      plot.current.destroy();
      plot.current = null;
    };
  }, [shape, ready]);
  useEffect(() => plot.current?.setSize({ width, height }), [width]);
  useEffect(() => plot.current?.setData(data), [data]);
  return html`<div>
    <div class="plot" ref=${box} role="img" aria-label=${label} style=${{ height: `${height}px` }}>
      ${ready ? '' : html`<p class="waiting">waiting for the second measurement</p>`}
    </div>
    <ul class="legend">
      ${series.filter((one) => one.label).map(
        (one) => html`<li><i class=${`key ${one.dash ? 'dashed' : ''}`} style=${{ color: one.colour }} aria-hidden="true"></i>${one.label}</li>`,
      )}
      ${bands.filter(([, , , name]) => name).map(
        ([, , colour, name]) => html`<li><i class="key area" style=${{ color: colour }} aria-hidden="true"></i>${name}</li>`,
      )}
    </ul>
  </div>`;
}

/** Distances of the time axis' ticks. */
const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];

const BYTES = Array.from({ length: 44 }, (_, power) => 2 ** power);

function settings({ series, bands, values, height, width, marks }) {
  const [text, line] = [resolve('var(--muted)'), resolve('var(--line)')];
  const font = '12px system-ui, sans-serif';
  const axis = { stroke: text, font, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1, size: 4 } };
  const scales = [...new Set(series.map((one) => one.scale ?? 'y'))];
  return {
    width,
    height,
    legend: { show: false },
    cursor: { drag: { x: false, y: false }, points: { size: 6 } },
    padding: [8, scales.length > 1 ? 0 : 30, 0, 0],
    scales: Object.fromEntries([
      ['x', { time: true }],
      ...scales.map((name) => [name, { range: (_, low, high) => [Math.min(0, low ?? 0), Math.max((high ?? 0) * 1.1, name === 'bytes' ? 1024 : 1)] }]),
    ]),
    axes: [
      { ...axis, size: 30, values: (_, ticks) => ticks.map((at) => time(at * 1000)), space: 76, incrs: SECONDS },
      ...scales.map((scale, nth) => ({
        ...axis,
        scale,
        side: nth ? 1 : 3,
        size: 62,
        ...(scale === 'bytes' ? { incrs: BYTES } : {}),
        grid: nth ? { show: false } : axis.grid,
        values: (_, ticks) => ticks.map((value) => values(value, scale)),
      })),
    ],
    series: [
      {},
      ...series.map(({ colour, width: thick = 1.5, dash, fill, points, scale = 'y' }) => ({
        scale,
        stroke: resolve(colour),
        width: thick,
        dash,
        fill: fill ? faint(colour, 0.12) : undefined,
        points: { show: Boolean(points), size: 5 },
        spanGaps: false,
      })),
    ],
    bands: bands.map(([upper, lower, colour]) => ({ series: [upper, lower], fill: faint(colour, 0.18) })),
    hooks: { draw: [(u) => drawMarks(u, marks(), text)] },
  };
}

function drawMarks(u, marks, colour) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.strokeStyle = colour;
  ctx.fillStyle = colour;
  ctx.lineWidth = devicePixelRatio;
  [ctx.textAlign, ctx.textBaseline] = ['left', 'alphabetic'];
  ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  for (const { at, label } of marks) {
    const x = Math.round(u.valToPos(at, 'x', true));
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    const wide = ctx.measureText(label).width;
    const room = x + wide + 8 * devicePixelRatio < bbox.left + bbox.width;
    ctx.fillText(label, room ? x + 4 * devicePixelRatio : x - wide - 4 * devicePixelRatio, bbox.top + 10 * devicePixelRatio);
  }
  ctx.restore();
}
