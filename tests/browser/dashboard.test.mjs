// The dashboard in a real Chromium against a real node with two zones under load.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { findings, launch, open } from './browser.mjs';
import { guarded, start, way } from './playground.mjs';

/** Bytes that the page may weigh as it is sent, compressed. */
const WEIGHT = 60_000;
const HOLD = ['held', 'drained', 'fenced', 'caught up', 'sequenced', 'committed', 'swapped'];

let node;
let browser;

before(async () => {
  [node, browser] = await Promise.all([start(), launch()]);
});
after(async () => {
  await browser?.close();
  assert.equal(await node?.stop(), 0, 'the playground ends well');
});

/** The page of the resource, live, with its first measurements drawn. */
async function resource({ url = node.url, ...options } = {}) {
  const page = await open(browser, url, options);
  await page.locator('[data-link=live]').waitFor();
  await page.locator('#latency canvas').first().waitFor();
  await page.locator('#zones svg .place').first().waitFor();
  return page;
}

/** Parts whose route a node may not have are not shown: the browser notes the 404, and that is all. */
const OPTIONAL = /404.*\/api\/v1\/resources\/[^/]+\/(forecast|history\S*)\)$/;

const steps = (page) => page.locator('.steps [data-phase]').evaluateAll((all) => all.map((one) => one.dataset.phase));

async function close(page) {
  assert.deepEqual(page.wrong.filter((what) => !OPTIONAL.test(what)), [], 'nothing went wrong in the page');
  await page.context().close();
}

/** What a node answers that cannot now. */
const problem = (detail) => ({ status: 503, contentType: 'application/problem+json', body: JSON.stringify({ type: 'about:blank#busy', status: 503, detail }) });

const shadowing = () => node.until((view) => view.phase === 'shadowing' && !view.migration);

describe('the page', { concurrency: false }, () => {
  test('is light, cached, and needs nothing from elsewhere', async () => {
    const sent = [];
    const page = await open(browser, node.url, {
      before: (fresh) => fresh.on('requestfinished', (request) => sent.push(request)),
    });
    await page.locator('#latency canvas').first().waitFor();
    const origin = new URL(node.url).origin;
    const files = sent.filter((request) => !new URL(request.url()).pathname.startsWith('/api/'));
    assert.deepEqual(sent.filter((request) => new URL(request.url()).origin !== origin).map((request) => request.url()), []);
    let weight = 0;
    for (const file of files) weight += (await file.sizes()).responseBodySize;
    console.log(`page weight: ${weight} bytes in ${files.length} files`);
    assert.ok(weight > 30_000 && weight <= WEIGHT, `${weight} bytes`);

    const first = await fetch(node.url);
    assert.match(first.headers.get('content-security-policy'), /default-src 'self'.*frame-ancestors 'none'/);
    assert.equal(first.headers.get('x-content-type-options'), 'nosniff');
    assert.equal(first.headers.get('referrer-policy'), 'no-referrer');
    const again = await fetch(node.url, { headers: { 'if-none-match': first.headers.get('etag') } });
    assert.equal(again.status, 304);
    await close(page);
  });

  test('shows what the API says', async () => {
    const page = await resource();
    const view = await node.get('/api/v1/resources/orders');
    assert.match(await page.locator('.lead').innerText(), new RegExp(`^${view.primary} serves; the shadow follows`));
    assert.match(await page.locator('.placement.primary').innerText(), new RegExp(view.primary));
    assert.match(await page.locator('.placement.shadow').innerText(), new RegExp(view.shadow));
    // Value and threshold of the same decision.
    await page.waitForFunction(async () => {
      const { decision } = await (await fetch('/api/v1/resources/orders')).json();
      const shown = document.querySelector('#score .big').textContent.replace('\u2212', '-');
      return Number(shown).toFixed(2) === decision.lower.toFixed(2);
    });
    assert.match(await page.locator('#score .figure-line').innerText(), /needs more than 0\.30/);
    assert.ok((await page.locator('#score .verdict p').innerText()).length > 0, 'why not now');
    // 4 workers of 0.40 and 2 of 0.32; 4 of 0.32 and 2 of 0.40.
    assert.match(await page.locator('#cost .figure-line').innerText(), /2\.24\/h\s*now; after a move 2\.08\/h/);
    assert.match(await page.locator('#zones').innerText(), /1087 km between/);
    await close(page);
  });

  test('draws what is forecast and what was, where the node tells it', async () => {
    const page = await resource();
    const told = (await fetch(new URL('/api/v1/resources/orders/forecast', node.url))).ok;
    if (told) {
      await page.locator('#fan-chart canvas').waitFor();
      await page.locator('#fan-chart button[data-table]').click();
      // Something measured beside what had been forecast for it, and something that is yet to come.
      const filled = (...columns) => page.waitForFunction((wanted) =>
        [...document.querySelectorAll('#fan-chart tbody tr')].some((row) => wanted.every((nth) => row.cells[nth].innerText !== '–')), columns);
      await filled(1, 2);
      await filled(3, 4, 5);
    } else {
      assert.equal(await page.locator('#fan-chart').count(), 0);
    }
    await close(page);
  });

  test('has each chart as a table too', async () => {
    const page = await resource();
    // At one moment: a chart may come while they are counted.
    const [charts, buttons] = await page.evaluate(() =>
      ['figure', 'button[data-table]'].map((what) => document.querySelectorAll(what).length),
    );
    assert.equal(buttons, charts);
    for (let nth = 0; nth < charts; nth++) {
      const figure = page.locator('figure').nth(nth);
      assert.ok((await figure.locator('[role=img]').getAttribute('aria-label')).length > 10);
      await figure.locator('button[data-table]').press('Enter');
      await figure.locator('tbody tr').first().waitFor();
      assert.ok((await figure.locator('thead th').count()) >= 3);
      assert.equal(await figure.locator('[role=img]').count(), 0);
    }
    assert.deepEqual(await findings(page), []);
    await close(page);
  });

  for (const colorScheme of ['light', 'dark']) {
    for (const width of [375, 1920]) {
      test(`is accessible and fits: ${colorScheme}, ${width} px`, async () => {
        const page = await resource({ width, colorScheme });
        assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), colorScheme);
        assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), 'no sideways scrolling');
        await page.locator('details').first().evaluate((details) => (details.open = true));
        assert.deepEqual(await findings(page), []);
        await page.getByRole('button', { name: 'Migrate…' }).click();
        await page.getByRole('button', { name: /^Migrate to/ }).waitFor();
        assert.deepEqual(await findings(page), []);
        await page.getByRole('button', { name: 'Close' }).click();
        await page.getByRole('button', { name: 'Examine' }).click();
        await page.locator('#checks').getByText(/GO/).waitFor();
        assert.deepEqual(await findings(page), []);
        await close(page);
      });
    }
  }

  test('fits a 4K screen', async () => {
    const page = await resource({ width: 3840, height: 2160 });
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
    const [first, third] = await Promise.all(['#score', '#zones'].map((id) => page.locator(id).boundingBox()));
    assert.ok(third.x > first.x + first.width, 'three columns');
    await close(page);
  });
});

describe('the connection', { concurrency: false }, () => {
  /** Remembers the page's streams; what comes on them is not heard while `window.deaf`. */
  async function listening(page) {
    await page.clock.install();
    await page.addInitScript(() => {
      window.sources = [];
      window.EventSource = class extends EventSource {
        constructor(...what) {
          super(...what);
          window.sources.push(this);
        }
        addEventListener(name, then) {
          super.addEventListener(name, (event) => (window.deaf && event.isTrusted) || then(event));
        }
      };
    });
  }

  test('that is silent is given up for another', async () => {
    const page = await resource({ before: listening });
    await page.evaluate(() => (window.deaf = true));
    await page.clock.fastForward(41_000);
    await page.waitForFunction(() => window.sources.length > 1 && window.sources[0].readyState === EventSource.CLOSED);
    await page.evaluate(() => (window.deaf = false));
    await page.locator('[data-link=live]').waitFor();
    await close(page);
  });

  test('is left to others while nobody sees the page', async () => {
    const page = await resource({ before: listening });
    const seen = (hidden) => page.evaluate((value) => {
      Object.defineProperty(document, 'hidden', { value, configurable: true });
      document.dispatchEvent(new Event('visibilitychange', { bubbles: true }));
    }, hidden);
    await seen(true);
    await page.clock.fastForward(11_000);
    await page.waitForFunction(() => window.sources[0].readyState === EventSource.CLOSED);
    await seen(false);
    await page.locator('[data-link=live]').waitFor();
    assert.equal(await page.evaluate(() => window.sources.length), 2);
    await close(page);
  });

  test('is left to others where nobody has seen the page yet', async () => {
    const page = await resource({
      before: async (fresh) => {
        await listening(fresh);
        await fresh.addInitScript(() => Object.defineProperty(document, 'hidden', { value: true, configurable: true }));
      },
    });
    await page.clock.fastForward(11_000);
    await page.waitForFunction(() => window.sources[0].readyState === EventSource.CLOSED);
    await page.evaluate(() => {
      Object.defineProperty(document, 'hidden', { value: false, configurable: true });
      document.dispatchEvent(new Event('visibilitychange', { bubbles: true }));
    });
    await page.locator('[data-link=live]').waitFor();
    assert.equal(await page.evaluate(() => window.sources.length), 2);
    await close(page);
  });

  test('that is refused says why', async () => {
    const page = await open(browser, node.url, {
      before: (fresh) => fresh.route('**/api/v1/events', (route) => route.fulfill(problem('as many listen as may'))),
    });
    await page.locator('.link').filter({ hasText: 'as many listen as may' }).waitFor();
    await page.unroute('**/api/v1/events');
    await page.locator('[data-link=live]').waitFor();
    page.wrong = page.wrong.filter((what) => !what.includes('503'));
    await close(page);
  });

  test('over which a read fails says why and reads again', async () => {
    const failed = new Set();
    const once = async (route) => {
      const { pathname } = new URL(route.request().url());
      if (failed.has(pathname)) return route.continue();
      failed.add(pathname);
      return route.fulfill(problem(`${pathname} is busy`));
    };
    const page = await open(browser, node.url, {
      before: async (fresh) => {
        await fresh.route('**/api/v1/resources?*', once);
        await fresh.route('**/orders/migrations?*', once);
      },
    });
    await page.locator('.link').filter({ hasText: 'resources is busy' }).waitFor();
    await page.locator('#timeline').getByText('migrations is busy').waitFor();
    await page.locator('[data-link=live]').waitFor();
    await page.locator('#timeline').getByText(/has not moved yet|held ·/).waitFor();
    page.wrong = page.wrong.filter((what) => !what.includes('503'));
    await close(page);
  });

  test('over which the progress of a verification is lost once goes on asking', async () => {
    const last = await node.get('/api/v1/resources/orders/verification');
    const answers = [
      { json: { ...last, state: 'running', differences: [], notes: [], started_ms: 1, ended_ms: null } },
      problem('busy'),
    ];
    const page = await resource({
      before: (fresh) => fresh.route('**/verification', (route) => (answers.length ? route.fulfill(answers.shift()) : route.continue())),
    });
    await page.locator('#checks').getByRole('button', { name: 'Verify' }).waitFor();
    assert.equal(answers.length, 0);
    page.wrong = page.wrong.filter((what) => !what.includes('503'));
    await close(page);
  });

  test('on which nothing is said of a verification has it read each minute', async () => {
    const last = await node.get('/api/v1/resources/orders/verification');
    const page = await resource({ before: (fresh) => fresh.clock.install() });
    await page.locator('#checks').getByRole('button', { name: 'Verify' }).waitFor();
    const stopped = { ...last, state: 'stopped', why: 'stopped by ann', differences: [], notes: [], started_ms: 1, ended_ms: 2 };
    await page.route('**/verification', (route) => route.fulfill({ json: stopped }));
    await page.clock.fastForward(61_000);
    await page.locator('#checks').getByText('stopped by ann').waitFor();
    await close(page);
  });

  test('over which nothing is answered says so', async () => {
    const page = await resource();
    const kept = [];
    await page.route('**/migrations', (route) => kept.push(route));
    await page.getByRole('button', { name: 'Migrate…' }).click();
    await page.locator('dialog').getByRole('alert').filter({ hasText: 'no answer within 10 s' }).waitFor();
    assert.equal(kept.length, 1);
    await close(page);
  });

  test('over which migrations are read anew where more is said meanwhile', async () => {
    const other = { id: 'of-meanwhile', resource: 'orders', from: 'a', to: 'b', trigger: 'test', generation: 1 };
    let asked = 0;
    const page = await resource({
      url: `${node.url}#/orders`,
      before: async (fresh) => {
        await listening(fresh);
        await fresh.route('**/orders/migrations?*', async (route) => {
          asked += 1;
          // Said while the first answer, which does not have it, is on its way.
          if (asked === 1) {
            await fresh.evaluate((event) => {
              const data = JSON.stringify({ ...event, phase: 'requested', at_ms: 1 });
              window.sources[0].dispatchEvent(new MessageEvent('migration', { data }));
            }, other);
          }
          return route.continue();
        });
      },
    });
    await page.locator('#timeline').getByText(/has not moved yet|held ·/).waitFor();
    assert.ok(asked > 1, `asked ${asked} times`);
    await close(page);
  });

  test('tells of a resource whose name is none', async () => {
    const page = await open(browser, `${node.url}#/%`);
    await page.getByText('There is no resource “%” here').waitFor();
    await close(page);
  });

  test('tells of a resource that is gone', async () => {
    const page = await resource({ url: `${node.url}#/orders`, before: listening });
    await page.evaluate(() => {
      window.deaf = true;
      window.sources[0].dispatchEvent(new MessageEvent('gone', { data: '{"resource":"orders","at_ms":1}' }));
    });
    await page.getByText('There is no resource “orders” here').waitFor();
    await close(page);
  });
});

describe('a migration', { concurrency: false }, () => {
  test('is started with the keyboard alone and followed live', async () => {
    await shadowing();
    const page = await resource();
    // Every phase as it comes on the page, with the moment: a reload would begin anew.
    await page.evaluate(() => {
      window.seen = [];
      new MutationObserver(() => {
        const running = document.querySelector('.steps .running')?.dataset.phase;
        if (running && window.seen.at(-1) !== running) window.seen.push(running);
      }).observe(document.querySelector('#timeline').parentElement, { subtree: true, childList: true, attributes: true, characterData: true });
    });
    const focused = () => page.evaluate(() => document.activeElement.textContent || document.activeElement.tagName);
    const tabTo = async (wanted, most = 30) => {
      for (let presses = 0; presses < most; presses++) {
        if (wanted.test(await focused())) return;
        await page.keyboard.press('Tab');
      }
      assert.fail(`not reached with Tab: ${wanted}`);
    };
    await tabTo(/^Migrate…$/);
    await page.keyboard.press('Enter');
    await page.locator('dialog[open] .plan li').nth(5).waitFor();
    // Escape leaves, and the focus is where it was.
    await page.keyboard.press('Escape');
    await page.locator('dialog').waitFor({ state: 'detached' });
    assert.equal(await focused(), 'Migrate…');

    await page.keyboard.press('Enter');
    const begin = page.getByRole('button', { name: /^Migrate to/ });
    await begin.waitFor();
    assert.ok(await begin.isDisabled(), 'not before the name is typed');
    await tabTo(/INPUT/);
    await page.keyboard.type('order');
    assert.ok(await begin.isDisabled(), 'not with a part of the name');
    await page.keyboard.type('s');
    await tabTo(/^Migrate to/);
    await page.keyboard.press('Enter');
    await page.locator('dialog').waitFor({ state: 'detached' });

    await page.locator('.steps [data-phase=released]').waitFor();
    assert.match(await page.locator('.steps .point').innerText(), /point of no return/);
    assert.match(await page.locator('.strips .no-return-text').textContent(), /point of no return/);
    const bold = await page.locator('.steps .hold').evaluateAll((all) => all.map((one) => [one.innerText.replace(/ [\d.]+ m?s$/, ''), Number(getComputedStyle(one).fontWeight)]));
    assert.deepEqual(bold.map(([name]) => name), HOLD.filter((name) => bold.some(([shown]) => shown === name)));
    assert.ok(bold.length >= 5 && bold.every(([, weight]) => weight >= 600), JSON.stringify(bold));
    const seen = await page.evaluate(() => window.seen);
    assert.ok(seen.includes('requested') || seen.includes('warm'), `followed before the commit: ${seen}`);
    assert.ok(seen.indexOf('released') > 0, `followed to the release: ${seen}`);

    // The same as the history has it.
    await shadowing();
    await page.locator('#timeline .badge').filter({ hasText: 'retired' }).waitFor();
    await page.locator('#timeline').getByText('equal', { exact: true }).waitFor();
    const [run] = await node.get('/api/v1/resources/orders/migrations');
    assert.equal(run.state, 'retired');
    assert.equal(await page.locator('#timeline .big').innerText(), `${run.held_ms} ms`);
    assert.deepEqual(await steps(page), run.steps.map((step) => step.phase));
    assert.match(await page.locator('.lead').innerText(), new RegExp(`^${run.to} serves`));
    assert.match(await page.locator('#history tbody').innerText(), /retired/);
    assert.deepEqual(await findings(page), []);
    await close(page);
  });

  test('is aborted from the page, and the old primary stays', async () => {
    const { primary } = await shadowing();
    const page = await resource();
    const migrated = await fetch(new URL('/api/v1/resources/orders/migrations', node.url), { method: 'POST' });
    assert.equal(migrated.status, 202);
    await page.getByRole('button', { name: 'Abort the migration' }).click();
    await page.locator('#timeline .badge').filter({ hasText: 'aborted' }).waitFor();
    const view = await shadowing();
    assert.equal(view.primary, primary);
    await page.locator('.lead').filter({ hasText: `${primary} serves` }).waitFor();
    const [run] = await node.get('/api/v1/resources/orders/migrations');
    assert.match(run.reason, /dashboard/, 'the history knows who');
    await page.locator('#audit summary').click();
    await page.locator('#audit tbody tr').filter({ hasText: `/migrations/${run.id}/abort` }).filter({ hasText: 'dashboard' }).waitFor();
    await page.locator('#audit tbody tr').filter({ hasText: '→ aborting' }).waitFor();
    assert.deepEqual(await findings(page), []);
    await close(page);
  });

  test('that soaks lets the way back begin and an older one be looked at', async () => {
    await shadowing();
    const [older] = await node.get('/api/v1/resources/orders/migrations');
    const page = await resource();
    await page.locator('#history').getByRole('button', { name: `Show ${older.id}` }).waitFor();
    const [button, badge, timeline] = ['button.primary', '#state-title .badge', '#timeline'];
    // All at one moment: the demo's soak lasts some seconds.
    const soaking = page.waitForFunction(([id, ...where]) => {
      const [way, phase, shown] = where.map((one) => document.querySelector(one));
      if (phase.textContent !== 'soaking') return false;
      if (shown.textContent.includes(id)) return { disabled: way.disabled };
      [...document.querySelectorAll('#history button')].find((one) => one.textContent.includes(id)).click();
      return false;
    }, [older.id, button, badge, timeline], { polling: 'raf' });
    const migrated = await fetch(new URL('/api/v1/resources/orders/migrations', node.url), { method: 'POST' });
    const { id } = await migrated.json();
    assert.deepEqual(await (await soaking).jsonValue(), { disabled: false });
    await shadowing();
    // What begins then is shown.
    const back = await fetch(new URL('/api/v1/resources/orders/migrations', node.url), { method: 'POST' });
    const { id: next } = await back.json();
    assert.notEqual(next, id);
    await page.locator('#timeline').getByText(next).waitFor();
    await shadowing();
    await close(page);
  });

  test('that is refused says why, where it was asked for', async () => {
    const page = await resource();
    const detail = 'replication lag: 20MiB (needs at most 16MiB)';
    await page.route('**/migrations', (route) => {
      if (route.request().method() !== 'POST' || route.request().postData().includes('dry_run')) return route.continue();
      return route.fulfill({ status: 409, contentType: 'application/problem+json', body: JSON.stringify({ type: 'about:blank#guard', status: 409, detail }) });
    });
    await page.getByRole('button', { name: 'Migrate…' }).click();
    await page.getByLabel(/^Type/).fill('orders');
    await page.getByRole('button', { name: /^Migrate to/ }).click();
    assert.equal(await page.locator('dialog [role=alert]').innerText(), detail);
    page.wrong = page.wrong.filter((what) => !what.includes('409'));
    await close(page);
  });
});

describe('a setting', { concurrency: false }, () => {
  const shadow = () => node.get('/api/v1/resources/orders/shadow');

  async function settings() {
    const page = await resource();
    await page.locator('#settings > summary').click();
    return page;
  }

  test('is changed from the page, says who did it, and is taken back', async () => {
    await shadowing();
    const page = await settings();
    const form = page.getByRole('form', { name: /^Shadow in/ });
    await form.getByText('says policy').waitFor();
    await form.getByLabel(/^Share of/).fill('25%');
    await form.getByRole('button', { name: 'Save' }).click();
    await form.getByText('says dashboard').waitFor();
    assert.equal((await shadow()).capacity, '25%');
    assert.deepEqual(await findings(page), []);
    await form.getByRole('button', { name: /^Back to/ }).click();
    await form.getByText('says policy').waitFor();
    assert.equal((await shadow()).capacity, '50%');
    // Nobody waits for its record.
    const recorded = ({ kind, after }) => kind === 'changed' && after?.capacity === '50%';
    while (!(await node.get('/api/v1/audit?resource=orders')).some(recorded));
    await page.locator('#audit summary').click();
    const changes = page.locator('#audit tbody tr').filter({ hasText: /shadow: \{.*"25%".*→.*"50%"/ });
    await changes.filter({ hasText: 'dashboard' }).waitFor();
    await close(page);
  });

  test('that makes no sense, or that somebody else changed, is refused in words', async () => {
    await shadowing();
    const page = await settings();
    const form = page.getByRole('form', { name: /^Shadow in/ });
    await form.getByLabel(/^Share of/).fill('plenty');
    await form.getByRole('button', { name: 'Save' }).click();
    await form.getByRole('alert').filter({ hasText: '/capacity' }).waitFor();
    await form.getByRole('button', { name: 'Read again' }).click();
    await form.getByRole('alert').waitFor({ state: 'detached' });
    await form.getByLabel(/^Share of/).fill('30%');
    const path = new URL('/api/v1/resources/orders/shadow', node.url);
    const put = await fetch(path, { method: 'PUT', headers: { 'If-Match': '*' }, body: '{"enabled": true, "capacity": "40%"}' });
    assert.equal(put.status, 200);
    await form.getByRole('button', { name: 'Save' }).click();
    await form.getByRole('alert').filter({ hasText: 'changed since you saw it' }).waitFor();
    assert.equal((await shadow()).capacity, '40%');
    await form.getByRole('button', { name: 'Read again' }).click();
    await form.getByRole('button', { name: /^Back to/ }).click();
    await form.getByText('says policy').waitFor();
    page.wrong = page.wrong.filter((what) => !/4(12|22)/.test(what));
    await close(page);
  });

  test('that is typed while it is read again is not lost', async () => {
    await shadowing();
    const page = await settings();
    const form = page.getByRole('form', { name: /^Shadow in/ });
    await form.getByText('says policy').waitFor();
    // A move makes the page read it again; the answers are kept back until something has been typed.
    const kept = [];
    await page.route('**/orders/shadow', (route) => (route.request().method() === 'GET' ? kept.push(route) : route.continue()));
    const asked = page.waitForRequest((request) => request.url().endsWith('/orders/shadow'));
    const moving = await fetch(new URL('/api/v1/resources/orders/migrations', node.url), { method: 'POST' });
    assert.equal(moving.status, 202);
    await asked;
    await form.getByLabel(/^Share of/).fill('30%');
    for (const route of kept) {
      const answered = page.waitForEvent('requestfinished', (request) => request === route.request());
      await route.continue();
      await answered;
    }
    await page.evaluate(() => new Promise((painted) => requestAnimationFrame(() => requestAnimationFrame(painted))));
    assert.equal(await form.getByLabel(/^Share of/).inputValue(), '30%');
    await close(page);
  });

  test('freezes the resource until it is lifted', async () => {
    await shadowing();
    const page = await resource();
    await page.route('**/api/v1/freezes', (route) => route.fulfill(problem('busy')), { times: 1 });
    await page.locator('#settings > summary').click();
    const form = page.getByRole('form', { name: 'Freeze' });
    await form.getByRole('alert').filter({ hasText: 'busy' }).waitFor();
    assert.equal(await form.getByText('It may move.').count(), 0, 'nobody knows');
    await form.getByLabel('Why').fill('quarter end');
    await form.getByRole('button', { name: 'Freeze' }).click();
    await form.getByText('quarter end, says dashboard').waitFor();
    const migrated = await fetch(new URL('/api/v1/resources/orders/migrations', node.url), { method: 'POST' });
    assert.equal(migrated.status, 409);
    const path = new URL('/api/v1/resources/orders/freeze', node.url);
    const ordered = await fetch(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: '{"why": "year end"}' });
    assert.equal(ordered.status, 200);
    await form.getByText('year end, says').waitFor();
    // Another one comes just when it is lifted: nobody has seen that.
    let nth = 0;
    await page.route('**/api/v1/freezes', (route) => {
      nth += 1;
      return route.fulfill({ json: [{ resource: 'orders', by: 'ann', why: `reason ${nth}`, at_ms: 1, until_ms: null }] });
    });
    const lift = form.getByRole('button', { name: 'Lift' });
    await lift.click();
    await form.getByRole('alert').filter({ hasText: 'changed since you saw it' }).waitFor();
    await form.getByText(/reason \d+, says ann/).waitFor();
    await page.unroute('**/api/v1/freezes');
    await lift.click();
    await form.getByText('year end, says').waitFor();
    assert.equal((await node.get('/api/v1/freezes')).length, 2);
    await lift.click();
    await form.getByText('It may move.').waitFor();
    // One that is over is no freeze any more.
    await page.route('**/api/v1/freezes', (route) => route.fulfill({ json: [{ resource: 'orders', by: 'ann', why: 'over', at_ms: 1, until_ms: 2 }] }));
    const answered = page.waitForResponse('**/api/v1/freezes');
    await page.locator('#settings > summary').click();
    await page.locator('#settings > summary').click();
    await answered;
    await page.evaluate(() => new Promise((painted) => requestAnimationFrame(() => requestAnimationFrame(painted))));
    assert.ok(await form.getByText('It may move.').isVisible());
    page.wrong = page.wrong.filter((what) => !what.includes('503'));
    await close(page);
  });
});

describe('the node', { concurrency: false }, () => {
  test('verifies on demand and says how it went', async () => {
    await shadowing();
    const page = await resource();
    await page.getByRole('button', { name: 'Verify' }).click();
    await page.locator('#checks').getByText('equal', { exact: true }).waitFor();
    assert.equal((await node.get('/api/v1/resources/orders/verification')).state, 'done');
    await close(page);
  });

  test('that went away and came back is seen again, with what happened meanwhile', async () => {
    await shadowing();
    const road = await way(node.url);
    const page = await resource({ url: road.url });
    await page.evaluate(() => (window.loaded = 'once'));
    await page.getByRole('button', { name: 'Examine' }).click();
    const examined = page.locator('#checks').getByText(/GO.*examined at/);
    await examined.waitFor();
    road.cut();
    await page.locator('[data-link=lost]').waitFor();
    assert.deepEqual(await findings(page), []);
    const answer = await fetch(new URL('/api/v1/resources/orders/migrations', node.url), { method: 'POST' });
    const { id, to } = await answer.json();
    await node.until((view) => view.primary === to && !view.migration);
    await road.mend();
    await page.locator('[data-link=live]').waitFor();
    await page.locator('.lead').filter({ hasText: `${to} serves` }).waitFor();
    await examined.waitFor({ state: 'detached' });
    await page.locator('#timeline').getByText(id).waitFor();
    await page.locator('#timeline .badge').filter({ hasText: 'retired' }).waitFor();
    const run = await node.get(`/api/v1/resources/orders/migrations/${id}`);
    assert.deepEqual(await steps(page), run.steps.map((step) => step.phase));
    assert.equal(await page.evaluate(() => window.loaded), 'once');
    page.wrong = page.wrong.filter((what) => !/ERR_CONNECTION|ERR_EMPTY_RESPONSE|ERR_INCOMPLETE/.test(what));
    await close(page);
    road.cut();
  });

  test('that asks for a token gets a login page, and a viewer no buttons', async () => {
    const locked = await guarded();
    try {
      const page = await open(browser, locked.url);
      await page.getByRole('heading', { name: 'Log in' }).waitFor();
      assert.deepEqual(await findings(page), []);
      await page.getByLabel('Token').fill('gdw_wrong_wrong');
      await page.keyboard.press('Enter');
      await page.getByRole('alert').waitFor();
      const enter = async (token) => {
        await page.getByLabel('Token').fill(token);
        await page.keyboard.press('Enter');
        await page.locator('[data-link=live]').waitFor();
        await page.locator('.lead').filter({ hasText: 'here serves' }).waitFor();
      };
      await enter(locked.token('vera', '--role', 'viewer'));
      await page.getByText('vera (viewer)').waitFor();
      // Why, for whoever has no pointer; and what changes each second is read out to nobody.
      await page.locator('.placement .bad-text').filter({ hasText: /^failed: \S/ }).first().waitFor();
      assert.match(await page.locator('.lead [role=status]').innerText(), /^here serves; [^,]+$/);
      assert.match(await page.locator('.lead').innerText(), /, for \d/);
      assert.equal(await page.getByRole('button', { name: 'Migrate…' }).count(), 0);
      assert.deepEqual(await findings(page), []);
      await page.getByRole('button', { name: 'Log out' }).click();
      await page.getByRole('heading', { name: 'Log in' }).waitFor();
      assert.equal(await page.evaluate(async () => (await fetch('/api/v1/resources')).status), 401);
      await enter(locked.token('olaf', '--role', 'operator'));
      await page.getByText('olaf (operator)').waitFor();
      await page.getByRole('button', { name: 'Migrate…' }).waitFor();
      page.wrong = page.wrong.filter((what) => !what.includes('401'));
      await close(page);
    } finally {
      await locked.stop();
    }
  });

  test('that stands by says why it leads nothing', async () => {
    const standby = await guarded('open', ', lease: 10s');
    try {
      const page = await open(browser, standby.url);
      await page.getByRole('status').filter({ hasText: /this node stands by: nobody knows who leads orders: .* does not answer/ }).waitFor();
      assert.deepEqual(await findings(page), []);
      page.wrong = page.wrong.filter((what) => !what.includes('503'));
      await close(page);
    } finally {
      await standby.stop();
    }
  });
});
