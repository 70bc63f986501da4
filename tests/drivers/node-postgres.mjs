// node-postgres: see README.md.
import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import pg from 'pg';
import { from as copyFrom, to as copyTo } from 'pg-copy-streams';

const [host, port, user, database, table] = process.argv.slice(2);
const PATIENCE = 30_000;

async function connect() {
  const client = new pg.Client({ host, port: Number(port), user, database, password: process.env.PGPASSWORD });
  await client.connect();
  const moods = await client.query('SELECT oid FROM pg_type WHERE typname = $1', [`${table}_mood`]);
  client.setTypeParser(moods.rows[0].oid, (mood) => ({ mood }));
  return client;
}

/** Payloads, in the order in which they come. */
class Heard {
  #payloads = [];
  #waiting = null;

  tell(payload) {
    this.#payloads.push(payload);
    this.#waiting?.();
  }

  async next() {
    const late = Date.now() + PATIENCE;
    while (this.#payloads.length === 0) {
      assert(Date.now() < late, 'no notification');
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, PATIENCE);
        this.#waiting = () => (clearTimeout(timer), resolve());
      });
    }
    return this.#payloads.shift();
  }
}

async function play(worker, other, heard, number) {
  const first = number * 10;
  await worker.query('BEGIN');
  await worker.query(`INSERT INTO ${table} VALUES ($1, $2, 'new')`, [first, number]);
  await worker.query(`UPDATE ${table} SET note = 'changed' WHERE id = $1`, [first]);
  const read = await worker.query(`SELECT note FROM ${table} WHERE id = $1`, [first]);
  assert.equal(read.rows[0].note, 'changed');
  await worker.query('COMMIT');
  await worker.query('BEGIN');
  await worker.query(`INSERT INTO ${table} VALUES ($1, $2, 'never')`, [first + 9, number]);
  await worker.query('ROLLBACK');

  const found = await worker.query({ name: 'look', text: `SELECT id, note FROM ${table} WHERE id = $1`, values: [first] });
  assert.deepEqual(found.rows, [{ id: String(first), note: 'changed' }]);

  const rows = [1, 2, 3, 4, 5].map((row) => `${first + row}\t${number}\tcopied\n`);
  await pipeline(Readable.from(rows), worker.query(copyFrom(`COPY ${table} FROM STDIN`)));
  const out = worker.query(copyTo(`COPY (SELECT id FROM ${table} WHERE round = ${number} ORDER BY id) TO STDOUT`));
  const ids = (await text(out)).trim().split('\n').map(Number);
  assert.deepEqual(ids, [0, 1, 2, 3, 4, 5].map((row) => first + row));

  await other.query('SELECT pg_notify($1, $2)', [table, String(number)]);
  assert.equal(await heard.next(), String(number));

  const own = await worker.query(`SELECT $1::${table}_mood AS one, $2::${table}_mood[]::text AS both`, ['glad', ['glad', 'sad']]);
  assert.deepEqual(own.rows, [{ one: { mood: 'glad' }, both: '{glad,sad}' }]);
}

let ended = false;
process.stdin.resume().on('end', () => (ended = true));
const [one, other, quiet] = [await connect(), await connect(), await connect()];
const heard = new Heard();
one.on('notification', ({ payload }) => heard.tell(payload));
await one.query(`LISTEN ${table}`);
let number = 0;
for (; !ended; number += 1) {
  await play([one, quiet][number % 2], other, heard, number);
  console.log('round', number);
}
const counted = await one.query(`SELECT count(*) FROM ${table}`);
assert.equal(Number(counted.rows[0].count), number * 6);
for (const connection of [one, other, quiet]) await connection.end();
console.log('done', number);
