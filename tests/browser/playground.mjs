// A real node under load: `godwit demo --calm`, two zones on this machine, until it is told to end.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const PROGRAM = process.env.GODWIT ?? new URL('../../target/debug/godwit', import.meta.url).pathname;
const PATIENCE = 120_000;

/** Starts it, and returns when the shadow follows and the load runs. */
export async function start(...more) {
  const child = spawn(PROGRAM, ['demo', '--calm', ...(more.length ? more : ['--rate', '60'])], { stdio: ['ignore', 'pipe', 'inherit'] });
  const said = [];
  const url = await new Promise((resolve, reject) => {
    let found;
    const late = setTimeout(() => reject(new Error(`not ready in time:\n${said.join('\n')}`)), PATIENCE);
    child.on('error', reject);
    child.on('exit', (code) => reject(new Error(`ended with ${code}:\n${said.join('\n')}`)));
    createInterface({ input: child.stdout }).on('line', (line) => {
      said.push(line);
      found ??= /dashboard: (http\S+)/.exec(line)?.[1];
      if (found && line.includes('nothing moves by itself')) {
        clearTimeout(late);
        resolve(found);
      }
    });
  });
  child.removeAllListeners('exit');
  const get = async (path) => (await fetch(new URL(path, url))).json();
  return {
    url,
    get,
    /** Waits until the resource is as wanted. */
    until: async (wanted) => {
      const deadline = Date.now() + PATIENCE;
      for (;;) {
        const view = await get('/api/v1/resources/orders');
        if (wanted(view)) return view;
        if (Date.now() > deadline) throw new Error(`waited in vain: ${JSON.stringify(view, null, 1)}`);
        await new Promise((again) => setTimeout(again, 50));
      }
    },
    stop: async () => {
      const ended = once(child, 'exit');
      child.kill('SIGINT');
      return (await ended)[0];
    },
  };
}

/** A node that asks for tokens, unless it is told otherwise; its databases do not exist. `token(role, …)` makes one. */
export async function guarded(access = 'required', more = '') {
  const folder = mkdtempSync(join(tmpdir(), 'godwit-browser-'));
  const [admin, front, ...nowhere] = await ports(6);
  const placement = (nth) => `{ http: ["127.0.0.1:${nowhere[nth]}"], postgres: { dsn: "postgres://x@127.0.0.1:${nowhere[nth + 2]}/x" } }`;
  mkdirSync(join(folder, 'policies'));
  writeFileSync(join(folder, 'policies/p.yaml'), 'mode: observe\n');
  writeFileSync(join(folder, 'godwit.yaml'), `
node: { name: n, zone: here, state: ${folder}/state, admin: { listen: 127.0.0.1:${admin}, access: ${access} }${more} }
zones: { here: {}, there: {} }
resources:
  orders:
    fronts: { http: { listen: "127.0.0.1:${front}" } }
    primary: here
    policy: p
    placements: { here: ${placement(0)}, there: ${placement(1)} }
`);
  const token = (...what) =>
    /gdw_\w+/.exec(execFileSync(PROGRAM, ['token', 'create', ...what, '--state', join(folder, 'state')], { encoding: 'utf8' }))[0];
  const log = openSync(join(folder, 'log'), 'w');
  const child = spawn(PROGRAM, ['run', '-c', join(folder, 'godwit.yaml')], { stdio: ['ignore', log, log] });
  const url = `http://127.0.0.1:${admin}/`;
  const deadline = Date.now() + PATIENCE;
  while (!(await fetch(`${url}livez`).catch(() => null))?.ok) {
    if (child.exitCode !== null || Date.now() > deadline) throw new Error(readFileSync(join(folder, 'log'), 'utf8'));
    await new Promise((again) => setTimeout(again, 50));
  }
  return {
    url,
    token,
    stop: async () => {
      const ended = once(child, 'exit');
      child.kill('SIGTERM');
      await ended;
      rmSync(folder, { recursive: true });
    },
  };
}

/** Ports that nobody uses now. */
async function ports(count) {
  const servers = await Promise.all(Array.from({ length: count }, () => new Promise((ready) => {
    const server = createServer();
    server.listen(0, '127.0.0.1', () => ready(server));
  })));
  const found = servers.map((server) => server.address().port);
  await Promise.all(servers.map((server) => new Promise((closed) => server.close(closed))));
  return found;
}

/** A way to the node that can be cut and mended. */
export async function way(url) {
  const target = new URL(url);
  const sockets = new Set();
  const server = createServer((near) => {
    const far = connect(Number(target.port), target.hostname);
    for (const [one, other] of [[near, far], [far, near]]) {
      sockets.add(one);
      one.on('error', () => {}).on('close', () => {
        sockets.delete(one);
        other.destroy();
      });
      one.pipe(other);
    }
  });
  const listen = (port) => new Promise((ready) => server.listen(port, '127.0.0.1', ready));
  await listen(0);
  const { port } = server.address();
  return {
    url: `http://127.0.0.1:${port}/`,
    cut: () => {
      server.close();
      sockets.forEach((socket) => socket.destroy());
    },
    mend: () => listen(port),
  };
}
