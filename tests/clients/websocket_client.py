"""websockets: see README.md. Argument: the URL."""

import asyncio
import sys

from playing import PACE, PATIENCE, Play
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

RESTART = 1012


async def main():
    play = Play()
    while not play.over.is_set():
        async with connect(sys.argv[1], open_timeout=PATIENCE) as socket:
            try:
                while not play.over.is_set():
                    await socket.send(str(play.rounds))
                    zone, number = (await asyncio.wait_for(socket.recv(), PATIENCE)).split()
                    assert number == str(play.rounds), number
                    play.round()
                    await asyncio.sleep(PACE)
            except ConnectionClosed as closed:
                assert closed.rcvd is not None and closed.rcvd.code == RESTART, closed
                play.ended(RESTART)
    play.done()


asyncio.run(main())
