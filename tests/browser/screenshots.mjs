// Pictures of the dashboard for the README, taken of a node that has just moved: docs/images/*.png.
import { mkdirSync, statSync } from 'node:fs';
import { launch, open } from './browser.mjs';
import { start } from './playground.mjs';

const FOLDER = new URL('../../docs/images/', import.meta.url).pathname;
const MOST = 200_000;
/** Decisions to wait for before the picture: the charts are to have something in them. */
const DECISIONS = 60;

mkdirSync(FOLDER, { recursive: true });
const [node, browser] = await Promise.all([start('--rate', '120'), launch()]);

async function save(page, name) {
  const path = `${FOLDER}${name}.png`;
  await page.screenshot({ path, animations: 'disabled' });
  const { size } = statSync(path);
  console.log(`${path} ${size} bytes`);
  if (size > MOST) throw new Error(`${path} has ${size} bytes: more than ${MOST}`);
}

/** Returns after so many decisions. */
const decisions = (page, count) =>
  page.evaluate((wanted) => new Promise((resolve) => {
    let seen = 0;
    const events = new EventSource('/api/v1/events');
    events.addEventListener('decision', () => ++seen >= wanted && resolve(events.close()));
  }), count);

try {
  const [light, dark, phone] = await Promise.all([
    open(browser, node.url, { width: 1440, height: 1210 }),
    open(browser, node.url, { width: 1440, height: 1210, colorScheme: 'dark' }),
    open(browser, node.url, { width: 390, height: 1400 }),
  ]);
  await decisions(light, DECISIONS);
  await light.getByRole('button', { name: 'Migrate…' }).click();
  await light.getByLabel(/^Type/).fill('orders');
  await light.getByRole('button', { name: /^Migrate to/ }).click();
  await light.locator('#timeline .badge').filter({ hasText: 'retired' }).waitFor();
  await decisions(light, DECISIONS / 2);
  await save(light, 'dashboard');
  await save(dark, 'dashboard-dark');
  await save(phone, 'dashboard-phone');
} finally {
  await browser.close();
  await node.stop();
}
