// The page: header, the resource that is looked at, and its parts. Everything it shows comes from the node's API.
import { render } from './vendor/preact.js';
import { useEffect } from './vendor/preact-hooks.js';
import { signal } from './vendor/signals.js';
import { locked, logout, who } from './api.js';
import { connect } from './live.js';
import { link, resources } from './store.js';
import { choice, choose } from './theme.js';
import { html } from './ui.js';
import { Login } from './parts/login.js';
import { Overview } from './parts/overview.js';
import { Resource } from './parts/resource.js';

/** The name after `#/`; none: the overview. */
const place = signal('');
const read = () => {
  place.value = location.hash.replace(/^#\/?/, '');
  // What is no escape is itself.
  try { place.value = decodeURIComponent(place.value); } catch {}
};
addEventListener('hashchange', read);
read();

function Header() {
  const all = Object.keys(resources.value ?? {});
  const names = all.length > 12 ? all.filter((name) => name === shown()) : all;
  return html`<header class="top">
    <a class="brand" href="#/"><img src="/dashboard/icon.svg" alt="" width="26" height="26" />Godwit</a>
    <nav aria-label="Resources">
      ${names.map(
        (name) => html`<a href=${`#/${encodeURIComponent(name)}`} aria-current=${shown() === name ? 'page' : undefined}>${name}</a>`,
      )}
      ${names === all ? '' : html`<a href="#/">all ${all.length}</a>`}
    </nav>
    <span class="link" role="status" data-link=${link.value}><i class="dot" aria-hidden="true"></i>${link.value === 'lost' ? 'no connection: trying again' : link.value}</span>
    <label class="theme"><span class="sr">Colours</span>
      <select value=${choice.value} onChange=${(event) => choose(event.target.value)}>
        <option value="system">System</option><option value="light">Light</option><option value="dark">Dark</option>
      </select>
    </label>
    ${who.value && who.value.via !== 'open'
      ? html`<span class="who">${who.value.name} (${who.value.role})</span>
          <button type="button" class="quiet" onClick=${logout}>Log out</button>`
      : ''}
  </header>`;
}

/** The only resource needs no overview. */
function shown() {
  const names = Object.keys(resources.value ?? {});
  return place.value || (names.length === 1 ? names[0] : '');
}

function Content() {
  if (locked.value) return html`<${Login} />`;
  if (!resources.value) return html`<h1 class="waiting">loading</h1>`;
  const name = shown();
  document.title = resources.value[name] ? `${name}: ${resources.value[name].primary} serves – Godwit` : 'Godwit';
  if (!name) return html`<${Overview} />`;
  const view = resources.value[name];
  if (!view) return html`<p class="waiting">There is no resource “${name}” here. <a href="#/">All resources</a></p>`;
  return html`<${Resource} key=${name} view=${view} />`;
}

function App() {
  useEffect(connect, []);
  return html`<a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <${Header} />
    <main id="main" tabindex="-1"><${Content} /></main>`;
}

function skip(event) {
  event.preventDefault();
  document.getElementById('main').focus();
}

render(html`<${App} />`, document.body);
