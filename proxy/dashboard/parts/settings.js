// Loaded when it is opened. What can be changed while the resource is led: its shadow, its replication, its size, and whether it may move at all.
import { useEffect, useState } from '../vendor/preact-hooks.js';
import { ask, at, exchange, get, mayOperate, post } from '../api.js';
import { now } from '../store.js';
import { Badge, Failure, Time, html, useAction } from '../ui.js';

const HOUR = 3_600_000;
const list = (text) => text.split(/[\s,]+/).filter(Boolean);

/** Fields of a section: where the value is, what it is called, how it is typed. */
const SHADOW = () => [
  { path: ['enabled'], label: 'A shadow is kept', kind: 'checkbox' },
  { path: ['capacity'], label: 'Share of the primary\'s workers', hint: '20% to 50%' },
];
const REPLICATION = () => [
  { path: ['mode'], label: 'Commits wait for the shadow', options: [['async', 'never'], ['sync', 'always'], ['hybrid', 'those of critical tables']] },
  { path: ['critical'], label: 'Critical tables', hint: 'schema.table, …', show: (value) => value.join(', '), read: list },
  { path: ['fallback', 'after'], label: 'They stop waiting after', hint: '5s' },
  { path: ['fallback', 'back'], label: 'and wait again after', hint: '30s' },
  { path: ['slot', 'budget'], label: 'WAL that may be kept', hint: '8GiB' },
  { path: ['copy', 'sessions'], label: 'Sessions of a copy', kind: 'number' },
];
const SCALING = (value) =>
  Object.keys(value.capacity).map((zone) => ({ path: ['capacity', zone], label: `Workers in ${zone}`, kind: 'number' }));

export function Forms({ view, times }) {
  return html`<div class="settings">
    <${Section} view=${view} name="shadow" title="Shadow" fields=${SHADOW} />
    <${Section} view=${view} name="replication" title="Replication" fields=${REPLICATION} from="replication/parameters" />
    <${Section} view=${view} name="scaling" title="Scaling" fields=${SCALING} />
    <${Freeze} view=${view} times=${times} />
  </div>`;
}

const pick = (value, path) => path.reduce((part, key) => part?.[key], value);

function placed(value, [key, ...rest], next) {
  return { ...value, [key]: rest.length ? placed(value[key] ?? {}, rest, next) : next };
}

function Section({ view, name, title, fields, from = name }) {
  // What is typed belongs to what was seen when it was: its tag is what a change is asked for with.
  const [{ seen, draft }, hold] = useState({});
  const look = () => exchange('GET', at(view.name, `/${from}`));
  const send = (method, body) => exchange(method, at(view.name, `/${name}`), body, { 'If-Match': seen.tag });
  const [asked, order] = useAction(async (answered) => hold({ seen: await answered() }));
  // Somebody else, or a move, may have changed it. What was typed before the answer came is not lost by it.
  const [reading, read] = useAction(async () => {
    const answer = await look();
    hold((held) => (held.draft ? held : { seen: answer }));
  });
  useEffect(() => void (draft ?? read()), [view.name, view.generation, view.phase]);
  if (!seen) return html`<div class="part"><h3>${title}</h3><${Failure} error=${reading.error} /></div>`;
  const { origin, changed_ms, zone, ...value } = draft ?? seen.value;
  const busy = asked.busy || !mayOperate();
  const submit = (event) => {
    event.preventDefault();
    order(() => send('PUT', value));
  };
  const change = (field, target) => {
    const typed = field.kind === 'checkbox' ? target.checked : field.kind === 'number' ? Number(target.value) : target.value;
    hold({ seen, draft: placed(draft ?? seen.value, field.path, field.read ? field.read(typed) : typed) });
  };
  return html`<form class="part" aria-labelledby=${`settings-${name}`} onSubmit=${submit}>
    <h3 id=${`settings-${name}`}>${title}${zone ? ` in ${zone}` : ''}</h3>
    ${fields(value).map((field) => html`<${Field} field=${field} value=${pick(value, field.path)} busy=${busy} onChange=${(target) => change(field, target)} />`)}
    <p class="detail">says ${origin}${changed_ms ? html`, <${Time} at=${changed_ms} />` : ''}</p>
    <${Failure} error=${asked.error ?? reading.error} />
    ${mayOperate()
      ? html`<div class="tools">
          <button type="submit" disabled=${busy || !draft}>Save<span class="sr"> ${title}</span></button>
          ${draft || asked.error ? html`<button type="button" class="quiet" disabled=${busy} onClick=${() => order(look)}>Read again</button>` : ''}
          ${changed_ms && !draft ? html`<button type="button" class="quiet" disabled=${busy} onClick=${() => order(() => send('DELETE'))}>Back to the policy's</button>` : ''}
        </div>`
      : ''}
  </form>`;
}

function Field({ field, value, busy, onChange }) {
  const { kind, label, hint, options, show } = field;
  const input = (event) => onChange(event.currentTarget);
  if (kind === 'checkbox') {
    return html`<label class="tick"><input type="checkbox" checked=${value} disabled=${busy} onChange=${input} /> ${label}</label>`;
  }
  if (options) {
    return html`<label>${label}
      <select value=${value} disabled=${busy} onChange=${input}>${options.map(([name, said]) => html`<option value=${name}>${name}: ${said}</option>`)}</select>
    </label>`;
  }
  // What a list was typed as is only taken apart when it is left.
  const typed = show ? { defaultValue: show(value), onChange: input, key: show(value) } : { value, onInput: input };
  return html`<label>${label}
    <input type=${kind ?? 'text'} min=${kind === 'number' ? 0 : undefined} placeholder=${hint} disabled=${busy} autocomplete="off" spellcheck="false" ...${typed} />
  </label>`;
}

/** Those of a resource itself, to compare: what is lifted with it. */
const own = (freezes) => JSON.stringify(freezes.filter(({ resource }) => resource));

function Freeze({ view, times }) {
  const [seen, hold] = useState(null);
  const ours = (all) => all.filter(({ resource }) => !resource || resource === view.name);
  const freezes = seen?.filter(({ until_ms }) => !until_ms || until_ms > now());
  const [reading, read] = useAction(async () => hold(ours(await get('/api/v1/freezes'))));
  const [ordering, order] = useAction(async (body) => hold(ours(await post(at(view.name, '/freeze'), body))));
  const [lifting, lift] = useAction(async () => {
    const present = ours(await get('/api/v1/freezes'));
    hold(present);
    if (own(present) !== own(freezes)) throw new Error('what is frozen has changed since you saw it: nothing was lifted');
    hold(ours(await ask('DELETE', at(view.name, '/freeze'))));
  });
  // Others freeze and lift as well; how long a freeze still lasts is no change.
  const guard = view.decision?.guards.find(({ name }) => name === 'not frozen')?.value.replace(/for \d+ s more/g, '');
  useEffect(() => void read(), [view.name, times, guard]);
  const submit = async (event) => {
    event.preventDefault();
    const form = event.currentTarget;
    const hours = Number(form.elements.hours.value);
    const { error } = await order({ why: form.elements.why.value, ...(hours ? { for_ms: hours * HOUR } : {}) });
    if (!error) form.reset();
  };
  return html`<form class="part" aria-labelledby="settings-freeze" onSubmit=${submit}>
    <h3 id="settings-freeze">Freeze</h3>
    ${freezes?.map((freeze) => html`<p><${Badge} kind="warn">${freeze.resource ? 'frozen' : 'all frozen'}<//> ${freeze.why}, says ${freeze.by}${freeze.until_ms ? html`, until <${Time} at=${freeze.until_ms} />` : ', until it is lifted'}</p>`)}
    ${freezes?.length === 0 ? html`<p class="muted">It may move.</p>` : ''}
    <${Failure} error=${ordering.error ?? lifting.error ?? reading.error} />
    ${mayOperate()
      ? html`<label>Why <input name="why" required autocomplete="off" /></label>
          <label>For <select name="hours"><option value="1">an hour</option><option value="24">a day</option><option value="">until it is lifted</option></select></label>
          <div class="tools">
            <button type="submit" disabled=${ordering.busy}>Freeze</button>
            ${freezes?.some(({ resource }) => resource) ? html`<button type="button" disabled=${lifting.busy} onClick=${() => lift()}>Lift</button>` : ''}
          </div>`
      : ''}
  </form>`;
}
