// Small parts that every view is made of.
import { h } from './vendor/preact.js';
import { useEffect, useLayoutEffect, useRef, useState } from './vendor/preact-hooks.js';
import htm from './vendor/htm.js';
import { iso, moment } from './format.js';

export const html = htm.bind(h);

/** A section of the page with its heading; `tools` stand at the right of it. */
export function Card({ id, title, tools, span, children }) {
  return html`<section class=${`card ${span ?? ''}`} id=${id} aria-labelledby=${`${id}-title`}>
    <div class="card-head"><h2 id=${`${id}-title`}>${title}</h2><div class="tools">${tools}</div></div>
    ${children}
  </section>`;
}

/** Rows of texts or elements under headings. Wide ones scroll inside, also by keyboard. */
export function Table({ label, head, rows, numbers = [], empty = 'none' }) {
  const kind = (column) => (numbers.includes(column) ? 'number' : '');
  return html`<div class="scroll" role="region" tabindex="0" aria-label=${`${label}, table`}>
    <table>
      <thead><tr>${head.map((name, i) => html`<th scope="col" class=${kind(i)}>${name}</th>`)}</tr></thead>
      <tbody>
        ${rows.map((row) => html`<tr>${row.map((cell, i) => html`<td class=${kind(i)}>${cell}</td>`)}</tr>`)}
        ${rows.length ? '' : html`<tr><td colspan=${head.length} class="muted">${empty}</td></tr>`}
      </tbody>
    </table>
  </div>`;
}

/** A chart and the same as a table: a button changes between them. */
export function Figure({ id, label, chart, table, note }) {
  const [asTable, setAsTable] = useState(false);
  return html`<figure class="figure" id=${id}>
    <figcaption>
      <span>${note}</span>
      <button type="button" class="quiet" aria-pressed=${asTable} data-table onClick=${() => setAsTable(!asTable)}>
        ${asTable ? 'Chart' : 'Table'}<span class="sr"> of ${label}</span>
      </button>
    </figcaption>
    ${asTable ? html`<${Table} label=${label} ...${table()} />` : chart()}
  </figure>`;
}

/** The width of an element, pixels, as it changes. */
export function useWidth() {
  const ref = useRef(null);
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const measure = () => ref.current && setWidth(Math.floor(ref.current.clientWidth));
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(ref.current);
    return () => observer.disconnect();
  }, []);
  return [ref, width];
}

export const Time = ({ at }) => html`<time datetime=${iso(at)}>${moment(at)}</time>`;
export const Badge = ({ kind, children }) => html`<span class=${`badge ${kind ?? ''}`}>${children}</span>`;
export const Zone = ({ name, colour }) =>
  html`<span class="zone"><i class="dot" style=${{ background: colour }} aria-hidden="true"></i>${name}</span>`;
export const Failure = ({ error }) => (error ? html`<p class="failure" role="alert">${error.message ?? error}</p>` : null);

/** Does something on the node; what went wrong is kept for the place of the button. */
export function useAction(action) {
  const [state, setState] = useState({ busy: false, error: null, result: null });
  const alive = useRef(true);
  useEffect(() => () => (alive.current = false), []);
  const run = async (...args) => {
    setState((old) => ({ ...old, busy: true, error: null }));
    let next;
    try {
      next = { busy: false, error: null, result: (await action(...args)) ?? true };
    } catch (error) {
      next = { busy: false, error, result: null };
    }
    if (alive.current) setState(next);
    return next;
  };
  return [state, run];
}

/** What most who look at the page do not open: what it takes to is asked for when they do. */
export function Later({ id, kind, title, load, view }) {
  const [asked, ask] = useAction(load);
  const [times, setTimes] = useState(0);
  const open = ({ target }) => {
    if (!target.open) return;
    setTimes(times + 1);
    asked.result || ask();
  };
  return html`<details class=${kind} id=${id} onToggle=${open}>
    <summary>${title}</summary>
    <${Failure} error=${asked.error} />
    ${asked.result ? html`<${asked.result} view=${view} times=${times} />` : ''}
  </details>`;
}

/** A modal dialogue: the browser keeps the focus inside and gives it back. */
export function Dialog({ title, onClose, children }) {
  const ref = useRef(null);
  useEffect(() => {
    ref.current.showModal();
  }, []);
  return html`<dialog ref=${ref} aria-labelledby="dialog-title" onClose=${onClose}>
    <div class="card-head">
      <h2 id="dialog-title">${title}</h2>
      <button type="button" class="quiet" onClick=${() => ref.current.close()}>Close</button>
    </div>
    ${children}
  </dialog>`;
}
