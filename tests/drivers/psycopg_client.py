"""psycopg: see README.md."""

import os
import sys
import threading
from enum import Enum
from itertools import count

import psycopg
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum

HOST, PORT, USER, DATABASE, TABLE = sys.argv[1:6]
PATIENCE = 30


class Mood(Enum):
    glad = "glad"
    sad = "sad"


def connect():
    connection = psycopg.connect(
        host=HOST, port=PORT, user=USER, dbname=DATABASE, password=os.environ["PGPASSWORD"], autocommit=True
    )
    register_enum(EnumInfo.fetch(connection, f"{TABLE}_mood"), connection, Mood)
    register_composite(CompositeInfo.fetch(connection, f"{TABLE}_pair"), connection)
    return connection


def look_at_own_types(worker, number):
    moods = [Mood.glad, Mood.sad]
    for binary in (False, True):
        with worker.cursor(binary=binary) as cursor:
            sql = f"SELECT %s, %s::{TABLE}_mood[], ROW('sad', {number})::{TABLE}_pair"
            mood, both, pair = cursor.execute(sql, (Mood.glad, moods)).fetchone()
            assert (mood, both) == (Mood.glad, moods), (binary, mood, both)
            assert (pair.mood, pair.number) == (Mood.sad, number), (binary, pair)


def play(worker, listener, other, number):
    first = number * 10
    with worker.transaction():
        worker.execute(f"INSERT INTO {TABLE} VALUES (%s, %s, 'new')", (first, number))
        worker.execute(f"UPDATE {TABLE} SET note = 'changed' WHERE id = %s", (first,))
        (note,) = worker.execute(f"SELECT note FROM {TABLE} WHERE id = %s", (first,)).fetchone()
        assert note == "changed", note
    with worker.transaction(force_rollback=True):
        worker.execute(f"INSERT INTO {TABLE} VALUES (%s, %s, 'never')", (first + 9, number))

    found = worker.execute(f"SELECT id, note FROM {TABLE} WHERE id = %s", (first,), prepare=True).fetchall()
    assert found == [(first, "changed")], found

    with worker.cursor() as cursor:
        with cursor.copy(f"COPY {TABLE} FROM STDIN") as copy:
            for row in range(1, 6):
                copy.write_row((first + row, number, "copied"))
        with cursor.copy(f"COPY (SELECT id FROM {TABLE} WHERE round = {number} ORDER BY id) TO STDOUT") as copy:
            ids = [int(row[0]) for row in copy.rows()]
    assert ids == list(range(first, first + 6)), ids

    other.execute("SELECT pg_notify(%s, %s)", (TABLE, str(number)))
    heard = [told.payload for told in listener.notifies(timeout=PATIENCE, stop_after=1)]
    assert heard == [str(number)], heard
    look_at_own_types(worker, number)


def main():
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    one, other, quiet = connect(), connect(), connect()
    one.execute(f"LISTEN {TABLE}")
    for number in count():
        if ended.is_set():
            break
        play((one, quiet)[number % 2], one, other, number)
        print("round", number, flush=True)
    (rows,) = one.execute(f"SELECT count(*) FROM {TABLE}").fetchone()
    assert rows == number * 6, (rows, number)
    for connection in (one, other, quiet):
        connection.close()
    print("done", number, flush=True)


main()
