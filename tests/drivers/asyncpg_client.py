"""asyncpg: see README.md."""

import asyncio
import io
import os
import sys
import threading
from itertools import count

import asyncpg

HOST, PORT, USER, DATABASE, TABLE = sys.argv[1:6]
PATIENCE = 30


class Undone(Exception):
    """Rolls its transaction back."""


def connect():
    return asyncpg.connect(host=HOST, port=int(PORT), user=USER, database=DATABASE, password=os.environ["PGPASSWORD"])


async def play(worker, prepared, other, heard, number):
    first = number * 10
    async with worker.transaction():
        await worker.execute(f"INSERT INTO {TABLE} VALUES ($1, $2, 'new')", first, number)
        await worker.execute(f"UPDATE {TABLE} SET note = 'changed' WHERE id = $1", first)
        note = await worker.fetchval(f"SELECT note FROM {TABLE} WHERE id = $1", first)
        assert note == "changed", note
    try:
        async with worker.transaction():
            await worker.execute(f"INSERT INTO {TABLE} VALUES ($1, $2, 'never')", first + 9, number)
            raise Undone
    except Undone:
        pass

    found = [tuple(row) for row in await prepared.fetch(first)]
    assert found == [(first, "changed")], found

    await worker.copy_records_to_table(TABLE, records=[(first + row, number, "copied") for row in range(1, 6)])
    out = io.BytesIO()
    await worker.copy_from_query(f"SELECT id FROM {TABLE} WHERE round = $1 ORDER BY id", number, output=out)
    ids = [int(line) for line in out.getvalue().split()]
    assert ids == list(range(first, first + 6)), ids

    await other.execute("SELECT pg_notify($1, $2)", TABLE, str(number))
    payload = await asyncio.wait_for(heard.get(), PATIENCE)
    assert payload == str(number), payload
    await look_at_own_types(worker, number)


async def look_at_own_types(worker, number):
    moods = ["glad", "sad"]
    # The second text is another one each time: it is prepared anew.
    for sql in (f"SELECT $1::{TABLE}_mood, $2::{TABLE}_mood[], $3::{TABLE}_pair", f"SELECT $1::{TABLE}_mood, $2::{TABLE}_mood[], $3::{TABLE}_pair -- {number}"):
        mood, both, pair = await worker.fetchrow(sql, "glad", moods, ("sad", number))
        assert (mood, both) == ("glad", moods), (mood, both)
        assert (pair["mood"], pair["number"]) == ("sad", number), pair


async def main():
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    one, other, quiet = await connect(), await connect(), await connect()
    heard = asyncio.Queue()
    await one.add_listener(TABLE, lambda _connection, _pid, _channel, payload: heard.put_nowait(payload))
    look = f"SELECT id, note FROM {TABLE} WHERE id = $1"
    workers = [(worker, await worker.prepare(look)) for worker in (one, quiet)]
    for number in count():
        if ended.is_set():
            break
        await play(*workers[number % 2], other, heard, number)
        print("round", number, flush=True)
    rows = await one.fetchval(f"SELECT count(*) FROM {TABLE}")
    assert rows == number * 6, (rows, number)
    for connection in (one, other, quiet):
        await connection.close()
    print("done", number, flush=True)


asyncio.run(main())
