// How soon the dashboard shows something: node tests/browser/paint.mjs URL RESOURCE TIMES. Started by `godwit-bench api --page`.
// Each time a new profile: nothing is cached; without the page's policy, which forbids what is waited with. Milliseconds since the navigation began, as the page itself counts them.
import { launch } from './browser.mjs';

const [url, resource, times] = process.argv.slice(2);
const count = (await (await fetch(new URL('/api/v1/resources?limit=250', url))).json()).length;

/** What is waited for on each of the two pages. */
const PAGES = {
  overview: ['', `document.querySelectorAll('#resources tbody tr').length === ${count}`],
  resource: [`#/${resource}`, `document.querySelector('#fan-chart canvas') && document.querySelector('#zones svg .place')`],
};

const median = (values) => values.toSorted((one, other) => one - other)[Math.floor(values.length / 2)];
const browser = await launch();
try {
  for (const [name, [fragment, whole]] of Object.entries(PAGES)) {
    const seen = { paint: [], whole: [] };
    for (let time = 0; time <= Number(times); time++) {
      const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, bypassCSP: true });
      const page = await context.newPage();
      await page.goto(url + fragment);
      const all = await page.waitForFunction(`${whole} ? performance.now() : false`, undefined, { polling: 'raf', timeout: 60_000 });
      const paint = await page.evaluate(() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime);
      // The first warms up the browser and the node.
      if (time > 0) {
        seen.paint.push(paint);
        seen.whole.push(await all.jsonValue());
      }
      await context.close();
    }
    const [first, last] = [seen.paint, seen.whole].map((values) => `${median(values).toFixed(0)} ms (longest ${Math.max(...values).toFixed(0)})`);
    console.log(`${name}: first paint ${first}, all of it ${last}, ${times} times`);
  }
} finally {
  await browser.close();
}
