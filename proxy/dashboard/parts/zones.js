// Where the zones are, and which one the shadow should live in.
import { useEffect, useState } from '../vendor/preact-hooks.js';
import { at, optional } from '../api.js';
import { zoneColour } from '../store.js';
import { GRID, LAND } from '../vendor/land.js';
import { Card, Figure, Table, Zone, html, useWidth } from '../ui.js';
import { fixed } from '../format.js';

export function Zones({ view }) {
  const [zones, setZones] = useState(null);
  const [choice, setChoice] = useState(null);
  useEffect(() => {
    optional('/api/v1/zones').then(setZones, () => setZones(null));
    optional(at(view.name, '/zones')).then(setChoice, () => setChoice(null));
  }, [view.name, view.generation, view.phase === 'shadowing']);
  if (!zones) return null;
  const placed = zones.filter((zone) => zone.location);
  const label = `Map: ${placed.map((zone) => `${zone.name}${role(view, zone.name)}`).join(', ')}`;
  return html`<${Card} id="zones" title="Zones">
    ${placed.length
      ? html`<${Figure} id="zones-map" label="the zones" note=${distance(view, zones)}
          chart=${() => html`<${ZoneMap} view=${view} zones=${placed} label=${label} />`}
          table=${() => ({
            head: ['Zone', 'Role', 'Provider', 'Region', 'Country', 'Latitude', 'Longitude'],
            numbers: [5, 6],
            rows: zones.map((zone) => [zone.name, role(view, zone.name).replace(/^, /, '') || '–', zone.provider ?? '–', zone.region ?? '–',
              zone.country ?? '–', ...(zone.location ?? []).map((degrees) => fixed(degrees, 2))]),
          })} />`
      : ''}
    ${choice ? html`<${Choice} view=${view} choice=${choice} />` : ''}
  <//>`;
}

const role = (view, zone) => (zone === view.primary ? ', primary' : zone === view.shadow ? ', shadow' : '');

function Choice({ view, choice }) {
  const row = (candidate) => [
    html`<${Zone} name=${candidate.zone} colour=${zoneColour(view, candidate.zone)} />`,
    candidate.verdict,
    candidate.verdict === 'refused' ? '–' : fixed(candidate.burden, 3),
    candidate.why.join('; ') || candidate.terms.map((term) => `${term.name}: ${term.detail}`).join('; '),
  ];
  return html`<h3>Where the shadow should live${choice.chosen ? html`: ${choice.chosen}` : ''}</h3>
    <${Table} label="Candidates" head=${['Zone', 'Verdict', 'Burden', 'Why']} numbers=${[2]} rows=${choice.candidates.map(row)} empty="no other zone" />`;
}

const RADIANS = Math.PI / 180;

/** Great-circle kilometres. */
function kilometres([lat1, lon1], [lat2, lon2]) {
  const half = (degrees) => Math.sin((degrees * RADIANS) / 2) ** 2;
  const a = half(lat2 - lat1) + Math.cos(lat1 * RADIANS) * Math.cos(lat2 * RADIANS) * half(lon2 - lon1);
  return 2 * 6371 * Math.asin(Math.sqrt(a));
}

const find = (zones, name) => zones.find((zone) => zone.name === name)?.location;

function distance(view, zones) {
  const [from, to] = [find(zones, view.primary), find(zones, view.shadow)];
  return from && to ? `${Math.round(kilometres(from, to))} km between ${view.primary} and ${view.shadow}` : '';
}

function ZoneMap({ view, zones, label }) {
  const [box, width] = useWidth();
  const height = Math.round(Math.min(300, Math.max(180, width * 0.5)));
  const lats = zones.map((zone) => zone.location[0]);
  const lons = zones.map((zone) => zone.location[1]);
  const middle = (list) => (Math.min(...list) + Math.max(...list)) / 2;
  const [lat, lon] = [middle(lats), middle(lons)];
  const squeeze = Math.max(0.3, Math.cos(lat * RADIANS));
  const reach = (list, least) => Math.max(least, (Math.max(...list) - Math.min(...list)) * 1.7);
  const scale = Math.min(width / (reach(lons, 24) * squeeze), height / reach(lats, 12));
  const x = (degrees) => width / 2 + (degrees - lon) * scale * squeeze;
  const y = (degrees) => height / 2 - (degrees - lat) * scale;
  const land = `translate(${x(0)} ${y(0)}) scale(${(scale * squeeze) / GRID} ${scale / GRID})`;
  const [from, to] = [find(zones, view.primary), find(zones, view.shadow)];
  return html`<div ref=${box}>
    <svg class="map" width=${width} height=${height} role="img" aria-label=${label}>
      ${width ? html`<path class="land" d=${LAND} transform=${land} vector-effect="non-scaling-stroke" />` : ''}
      ${from && to ? html`<path class="arc" d=${arc([x(from[1]), y(from[0])], [x(to[1]), y(to[0])])} />` : ''}
      ${zones.map((zone) => {
        const [px, py] = [x(zone.location[1]), y(zone.location[0])];
        const end = leftwards(zone, px, view, zones, width);
        return html`<g>
          <circle cx=${px} cy=${py} r=${zone.name === view.primary ? 8 : 5.5} fill=${known(view, zone.name) ? zoneColour(view, zone.name) : 'var(--muted)'} class="place" />
          <text class="strong halo" x=${px + (end ? -13 : 13)} y=${py + 1} text-anchor=${end ? 'end' : 'start'}>${zone.name}</text>
          <text class="tick halo" x=${px + (end ? -13 : 13)} y=${py + 15} text-anchor=${end ? 'end' : 'start'}>${role(view, zone.name).replace(/^, /, '') || zone.region}</text>
        </g>`;
      })}
    </svg>
  </div>`;
}

/** On the side that is turned away from the line to the other zone, where there is room. */
function leftwards(zone, px, view, zones, width) {
  const other = find(zones, zone.name === view.primary ? view.shadow : view.primary);
  const room = zone.name.length * 8 + 24;
  const away = other ? other[1] > zone.location[1] : px > width / 2;
  return away ? px > room : px > width - room;
}

const known = (view, zone) => view.placements.some((placement) => placement.zone === zone);

function arc([x1, y1], [x2, y2]) {
  const lift = Math.hypot(x2 - x1, y2 - y1) * 0.18;
  return `M${x1} ${y1}Q${(x1 + x2) / 2} ${(y1 + y2) / 2 - lift} ${x2} ${y2}`;
}
