// Turns the coastlines of world-atlas (topojson) into one SVG path, small islands left out:
//   node land.mjs land-110m.json > land.js
import { readFileSync } from 'node:fs';

const topology = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const [scaleX, scaleY] = topology.transform.scale;
const [moveX, moveY] = topology.transform.translate;
/** Units per degree, and how far a point may be from the line that leaves it out, in units. */
const [GRID, OFF] = [2, 1.1];

const arcs = topology.arcs.map((arc) => {
  let [x, y] = [0, 0];
  return arc.map(([dx, dy]) => {
    [x, y] = [x + dx, y + dy];
    return [(x * scaleX + moveX) * GRID, -(y * scaleY + moveY) * GRID];
  });
});
const ring = (indices) =>
  indices.flatMap((index, nth) => {
    const points = index < 0 ? [...arcs[~index]].reverse() : arcs[index];
    return nth === 0 ? points : points.slice(1);
  });
const area = (points) =>
  Math.abs(points.reduce((sum, [x, y], i) => {
    const [nextX, nextY] = points[(i + 1) % points.length];
    return sum + x * nextY - nextX * y;
  }, 0) / 2);

/** Douglas and Peucker's simplification. */
function simple(points) {
  if (points.length < 3) return points;
  const [[x1, y1], [x2, y2]] = [points[0], points.at(-1)];
  const length = Math.hypot(x2 - x1, y2 - y1);
  const off = ([x, y]) => (length ? Math.abs((x2 - x1) * (y1 - y) - (x1 - x) * (y2 - y1)) / length : Math.hypot(x - x1, y - y1));
  let worst = 0;
  for (let i = 1; i < points.length - 1; i++) if (off(points[i]) > off(points[worst] ?? points[0])) worst = i;
  if (!worst || off(points[worst]) < OFF) return [points[0], points.at(-1)];
  return [...simple(points.slice(0, worst + 1)).slice(0, -1), ...simple(points.slice(worst))];
}

const path = topology.objects.land.geometries
  .flatMap((geometry) => (geometry.type === 'MultiPolygon' ? geometry.arcs : [geometry.arcs]))
  .map((rings) => ring(rings[0]))
  .filter((points) => Math.max(...points.map(([, y]) => y)) < 60 * GRID) // no Antarctica
  .filter((points) => area(points) > 3 * GRID * GRID)
  .map((points) => {
    const snapped = simple(points).map((point) => point.map(Math.round));
    let [x, y] = snapped[0];
    let text = `M${x} ${y}l`;
    for (const [nextX, nextY] of snapped.slice(1, -1)) {
      const [dx, dy] = [nextX - x, nextY - y];
      if (!dx && !dy) continue;
      text += `${text.endsWith('l') || dx < 0 ? '' : ' '}${dx}${dy < 0 ? '' : ' '}${dy}`;
      [x, y] = [nextX, nextY];
    }
    return `${text}z`;
  })
  .join('');
// Where it is from is said in README.md: each byte of it is sent.
process.stdout.write(`export const GRID = ${GRID};\nexport const LAND =\n  '${path}';\n`);
