// The node's events: the only thing that moves the page. A `reset` says that something was missed: then all is read anew.
import { effect } from './vendor/signals.js';
import { EVENTS, all, at, forget, get, locked, optional, who } from './api.js';
import { link, resources, runs, skew, trails, withDecision, withPoint, withProblems, withResource, withStep, without } from './store.js';

/** Longer than the node is silent: ms. */
const SILENCE = 40_000;
/** How long the page may be out of sight before its connection is given to others: a browser has six to a node. */
const UNSEEN = 10_000;

let source, silence, unseen;
/** What is said while everything is read: its answer may be older. */
let held;
/** How often something was said of migrations that are not there yet. */
let missed = 0;

/** Connects; again after the browser gave up, or after a login. */
export function connect() {
  source?.close();
  source = new EventSource(EVENTS);
  heard();
  look();
  const on = (name, then) => source.addEventListener(name, ({ data }) => {
    heard();
    const said = () => then(JSON.parse(data));
    if (held && name !== 'reset') held.push(said);
    else said();
  });
  on('alive', () => {});
  on('reset', reload);
  on('resource', (view) => {
    resources.value = withResource(resources.peek(), view);
    trail(view);
  });
  on('decision', (decision) => {
    skew.value = decision.at_ms - Date.now();
    resources.value = withDecision(resources.peek(), decision);
  });
  on('problem', (problem) => (resources.value = withProblems(resources.peek(), problem)));
  on('migration', migration);
  on('gone', ({ resource }) => {
    // One that is reserved under this name again may have what this one had not.
    forget();
    for (const kept of [resources, runs, trails]) kept.value = without(kept.peek(), resource);
  });
  source.onopen = () => (link.value = 'live');
  source.onerror = async ({ target }) => {
    link.value = 'lost';
    // The browser tries again by itself unless it was refused: then it is to be found out why.
    if (target.readyState !== EventSource.CLOSED) return;
    await get(EVENTS).catch((why) => (link.value = why.message));
    again(connect, target);
  };
}

/** Nothing says that the other end of a connection is gone. */
function heard() {
  clearTimeout(silence);
  silence = setTimeout(() => {
    link.value = 'lost';
    connect();
  }, SILENCE);
}

/** In a while, unless there is another connection by then, or none is wanted. */
function again(what, of) {
  setTimeout(() => source === of && what(), 2000);
}

function leave() {
  source?.close();
  clearTimeout(silence);
  source = null;
  link.value = 'connecting';
}

/** A page that was never seen has no turn to be hidden. */
function look() {
  clearTimeout(unseen);
  if (document.hidden) unseen = setTimeout(leave, UNSEEN);
}

addEventListener('visibilitychange', () => {
  look();
  if (!document.hidden && !source && !locked.peek()) connect();
});

/** Whoever is not let in any more sees nothing of what was there before. */
effect(() => {
  if (!locked.value) return;
  leave();
  resources.value = null;
  [runs.value, trails.value] = [{}, {}];
});

function trail(view) {
  const old = trails.peek();
  trails.value = { ...old, [view.name]: withPoint(old[view.name], view, Date.now() + skew.peek()) };
}

/** Reads everything. */
async function reload() {
  const of = source;
  const later = (held = []);
  try {
    who.value = (await optional('/api/v1/whoami')) ?? undefined;
    const views = await all('/api/v1/resources');
    if (held !== later) return;
    resources.value = Object.fromEntries(views.map((view) => [view.name, view]));
    views.forEach(trail);
    runs.value = {};
    missed += 1;
    if (source?.readyState === EventSource.OPEN) link.value = 'live';
  } catch (why) {
    link.value = why.message;
    again(reload, of);
  }
  if (held !== later) return;
  held = null;
  later.forEach((said) => said());
}

/** For the page of this resource: others' are not kept. An answer may be older than what was said while it was waited for. */
export async function readRuns(resource) {
  let before, list;
  do {
    before = missed;
    list = await get(at(resource, '/migrations?limit=50'));
  } while (missed !== before);
  // Where it was asked for twice, events go on from the answer that came first.
  if (!runs.peek()[resource]) runs.value = { ...runs.peek(), [resource]: list };
}

function migration(event) {
  const list = runs.peek()[event.resource];
  if (!list) return void (missed += 1);
  const known = list.some((run) => run.id === event.id);
  runs.value = { ...runs.peek(), [event.resource]: withStep(list, event) };
  // What is written down beside the steps: the hold, the marker, the comparison; and steps from before we listened.
  const more = event.outcome || event.verified || ['released', 'watching', 'soaking'].includes(event.phase);
  if (more || (!known && event.left)) record(event);
}

async function record({ resource, id }) {
  const run = await get(at(resource, `/migrations/${encodeURIComponent(id)}`)).catch(() => null);
  const list = runs.peek()[resource];
  const old = list?.find((one) => one.id === id);
  // An answer that is older than what the events have said meanwhile counts for nothing.
  if (!run || !old || run.steps.length < old.steps.length || (old.ended_ms && !run.ended_ms)) return;
  runs.value = { ...runs.peek(), [resource]: list.map((one) => (one === old ? run : one)) };
}
