// Every resource on one line each.
import { resources, zoneColour } from '../store.js';
import { bytes, fixed, words } from '../format.js';
import { Badge, Card, Table, Zone, html } from '../ui.js';

export function Overview() {
  const views = Object.values(resources.value);
  const row = (view) => [
    html`<a href=${`#/${encodeURIComponent(view.name)}`}>${view.name}</a>`,
    html`<${Zone} name=${view.primary} colour=${zoneColour(view, view.primary)} />`,
    html`<${Zone} name=${view.shadow} colour=${zoneColour(view, view.shadow)} />`,
    words(view.phase),
    view.decision ? `${fixed(view.decision.lower, 2)} of ${fixed(view.decision.needed, 2)}` : '–',
    view.replication.state === 'streaming' ? bytes(view.replication.lag_bytes) : view.replication.state,
    view.problems.length ? html`<${Badge} kind="bad">${view.problems.length}<//>` : html`<${Badge} kind="ok">none<//>`,
  ];
  return html`<h1 class="sr">Resources</h1>
    <${Card} id="resources" title="Resources" span="wide">
      <${Table} label="Resources" numbers=${[4, 5]} rows=${views.map(row)}
        head=${['Resource', 'Serves', 'Follows', 'Phase', 'Score', 'Behind', 'Problems']} />
    <//>`;
}
