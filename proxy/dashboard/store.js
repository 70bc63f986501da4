// What the node said last: filled once from the API, kept up by its events. Reducers are pure: (old, event) -> new.
import { signal } from './vendor/signals.js';

/** By name. */
export const resources = signal(null);
/** Migrations by resource, newest first. */
export const runs = signal({});
/** Points the events brought since the page was opened, by resource. */
export const trails = signal({});
/** `connecting`, `live`, `lost`, or why this node has nothing to show. */
export const link = signal('connecting');
/** The node's clock less ours, milliseconds. */
export const skew = signal(0);
/** Our clock, renewed each second. */
export const tick = signal(Date.now());
setInterval(() => (tick.value = Date.now()), 1000);

/** The node's time. */
export const now = () => tick.value + skew.value;

const TRAIL = 900;

export function withResource(all, view) {
  const old = all?.[view.name];
  return { ...all, [view.name]: { ...view, decision: view.decision ?? old?.decision ?? null } };
}

export function withDecision(all, { resource, ...decision }) {
  const view = all?.[resource];
  return view ? { ...all, [resource]: { ...view, decision } } : all;
}

/** All but one. */
export function without(all, name) {
  const { [name]: gone, ...others } = all ?? {};
  return others;
}

export function withProblems(all, { resource, problems }) {
  const view = all?.[resource];
  return view ? { ...all, [resource]: { ...view, problems } } : all;
}

/** A point of each series that is drawn: what the view says now. */
export function withPoint(trail, view, at_ms) {
  const probe = ({ http_probe, sql_probe }) => {
    const reading = http_probe ?? sql_probe;
    return reading && 'Ok' in reading ? reading.Ok / 1000 : null;
  };
  const streams = view.replication.state === 'streaming';
  const point = {
    at_ms,
    probes: Object.fromEntries(view.placements.map((p) => [p.zone, probe(p)])),
    forecasts: Object.fromEntries(view.placements.map((p) => [p.zone, p.forecast_ms])),
    lag_bytes: streams ? view.replication.lag_bytes : null,
    lag_ms: streams ? view.replication.lag_ms : null,
  };
  return [...(trail ?? []), point].slice(-TRAIL);
}

/** A migration after one of its steps. */
export function withStep(list, event) {
  const known = list.find((run) => run.id === event.id);
  const run = known ?? {
    ...{ id: event.id, resource: event.resource, from: event.from, to: event.to, trigger: event.trigger },
    ...{ generation: event.generation, started_ms: event.left?.started_ms ?? event.at_ms, steps: [] },
    ...{ reason: null, ended_ms: null, committed_ms: null, held_ms: null, verified: null, fence_lsn: null },
  };
  const next = { ...run, state: event.outcome ?? event.phase, reason: event.reason ?? run.reason };
  if (event.outcome) {
    next.ended_ms = event.at_ms;
    next.steps = closed(run.steps, event.at_ms);
  } else if (run.steps.at(-1)?.phase !== event.phase) {
    const left = event.left && !run.steps.length ? [event.left] : run.steps;
    next.steps = [...closed(left, event.at_ms), { phase: event.phase, started_ms: event.at_ms, ended_ms: null }];
  }
  if (event.committed) next.committed_ms ??= event.at_ms;
  if (event.verified) next.verified = true;
  return known ? list.map((one) => (one === known ? next : one)) : [next, ...list];
}

function closed(steps, at_ms) {
  return steps.map((step, nth) => (nth === steps.length - 1 ? { ...step, ended_ms: step.ended_ms ?? at_ms } : step));
}

/** Phases in which clients wait. */
export const HOLDS = ['held', 'drained', 'fenced', 'caught_up', 'sequenced', 'committed', 'swapped'];
/** Phases from which a migration can go back. */
export const ABORTABLE = ['requested', 'warm', 'armed', 'held', 'drained', 'fenced', 'caught_up', 'sequenced'];

/** The colour of a zone: the same on the whole page, whoever is primary. */
export function zoneColour(view, zone) {
  const names = view.placements.map((placement) => placement.zone).sort();
  return `var(--zone-${Math.max(0, names.indexOf(zone)) % 4})`;
}
