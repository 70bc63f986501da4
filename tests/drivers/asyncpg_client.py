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


async def play(one, other, prepared, heard, number):
    first = number * 10
    async with one.transaction():
        await one.execute(f"INSERT INTO {TABLE} VALUES ($1, $2, 'new')", first, number)
        await one.execute(f"UPDATE {TABLE} SET note = 'changed' WHERE id = $1", first)
        note = await one.fetchval(f"SELECT note FROM {TABLE} WHERE id = $1", first)
        assert note == "changed", note
    try:
        async with one.transaction():
            await one.execute(f"INSERT INTO {TABLE} VALUES ($1, $2, 'never')", first + 9, number)
            raise Undone
    except Undone:
        pass

    found = [tuple(row) for row in await prepared.fetch(first)]
    assert found == [(first, "changed")], found

    await one.copy_records_to_table(TABLE, records=[(first + row, number, "copied") for row in range(1, 6)])
    out = io.BytesIO()
    await one.copy_from_query(f"SELECT id FROM {TABLE} WHERE round = $1 ORDER BY id", number, output=out)
    ids = [int(line) for line in out.getvalue().split()]
    assert ids == list(range(first, first + 6)), ids

    await other.execute("SELECT pg_notify($1, $2)", TABLE, str(number))
    payload = await asyncio.wait_for(heard.get(), PATIENCE)
    assert payload == str(number), payload


async def main():
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    one, other = await connect(), await connect()
    heard = asyncio.Queue()
    await one.add_listener(TABLE, lambda _connection, _pid, _channel, payload: heard.put_nowait(payload))
    prepared = await one.prepare(f"SELECT id, note FROM {TABLE} WHERE id = $1")
    for number in count():
        if ended.is_set():
            break
        await play(one, other, prepared, heard, number)
        print("round", number, flush=True)
    rows = await one.fetchval(f"SELECT count(*) FROM {TABLE}")
    assert rows == number * 6, (rows, number)
    await one.close()
    await other.close()
    print("done", number, flush=True)


asyncio.run(main())
