// Every request goes through here: one place for headers, errors, and what happens when nobody is logged in.
import { signal } from './vendor/signals.js';

/** Who we are, from `whoami`: null until asked, undefined where the node has no access control. */
export const who = signal(null);
/** The node asks for a token. */
export const locked = signal(false);

/** What the API answered instead of doing what was asked: a problem document (RFC 9457). */
export class Refusal extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `the node answered ${status}`);
    this.status = status;
    this.problem = problem;
  }
}

export const EVENTS = '/api/v1/events';

/** Asks `path`; the parsed body, or null. Throws a Refusal, or an Error when nobody answers. */
export const ask = async (...what) => (await exchange(...what)).value;

/** The same with the tag of what is there, for whoever is about to change it. */
export async function exchange(method, path, body, headers = {}) {
  const init = { method, headers: { Accept: 'application/json', ...headers }, credentials: 'same-origin' };
  // Who is asked nothing else is known by this; where callers prove who they are it counts for nothing.
  if (method !== 'GET') init.headers['X-Godwit-Operator'] = 'dashboard';
  if (body !== undefined) {
    init.headers['Content-Type'] = 'application/json';
    init.body = JSON.stringify(body);
  }
  // The databases are examined in up to 20 s. What the browser has no connection for is never sent.
  const most = path.endsWith('/doctor') ? 30 : 10;
  init.signal = AbortSignal.timeout(most * 1000);
  let response;
  let text;
  try {
    response = await fetch(path, init);
    // Of a stream only this is asked: whether there is one.
    text = response.ok && path === EVENTS ? void response.body.cancel() : await response.text();
  } catch (why) {
    throw new Error(why.name === 'TimeoutError' ? `no answer within ${most} s: look at the state before you try again, and close other tabs of this node` : 'the node does not answer');
  }
  let parsed = null;
  try {
    parsed = text ? JSON.parse(text) : null;
  } catch {
    parsed = { detail: text.slice(0, 300) };
  }
  if (response.ok) return { value: parsed, tag: response.headers.get('etag') };
  if (response.status === 401 && !path.endsWith('/session')) locked.value = true;
  throw new Refusal(response.status, parsed || {});
}

export const get = (path) => ask('GET', path);
/** Every page of a list of what has a name. */
export async function all(path) {
  const found = [];
  for (let page; !page || page.length === 250; found.push(...page)) page = await get(`${path}?limit=250&after=${found.at(-1)?.name ?? ''}`);
  return found;
}

export const post = (path, body) => ask('POST', path, body);

/** Routes that this node does not have, or does not let us use: not asked again until the page is loaded anew. */
const absent = new Set();

/** GET; null where the node has no such route, or does not let us. */
export async function optional(path) {
  const [route] = path.split('?');
  if (absent.has(route)) return null;
  try {
    return await get(path);
  } catch (refusal) {
    if (![403, 404, 405].includes(refusal.status)) throw refusal;
    absent.add(route);
    return null;
  }
}

/** Somebody else may be let in where the one before was not. */
export const forget = () => absent.clear();

export const at = (resource, rest = '') => `/api/v1/resources/${encodeURIComponent(resource)}${rest}`;

export async function login(token) {
  await ask('POST', '/api/v1/session', { token });
  forget();
  locked.value = false;
}

export async function logout() {
  await ask('DELETE', '/api/v1/session');
  locked.value = true;
}

/** May we change anything? Where there is no access control everybody may. */
export const mayOperate = () => !who.value || who.value.role !== 'viewer';
