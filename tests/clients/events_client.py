"""Server-sent events and downloads by httpx: see README.md. Argument: the front's URL."""

import asyncio
import sys

import httpx
from playing import PATIENCE, Play

PIECES = 10


async def listen(client, play, heard):
    """One stream after the other; the end of one has to be the regular end of its body, which httpx insists on."""
    while True:
        async with client.stream("GET", "/events", headers={"accept": "text/event-stream"}) as answer:
            assert answer.status_code == 200, answer.status_code
            zone = None
            async for line in answer.aiter_lines():
                if line:
                    name, zone, _ = line.split()
                    assert name == "data:", line
                    heard.set()
        play.ended(zone)


async def main():
    play, heard = Play(), asyncio.Event()
    async with httpx.AsyncClient(base_url=sys.argv[1], timeout=PATIENCE) as client:
        listening = asyncio.create_task(listen(client, play, heard))
        while not play.over.is_set():
            answer = await client.get("/export")
            assert answer.status_code == 200, answer.status_code
            lines = answer.text.splitlines()
            assert len(lines) == PIECES and len({line.split()[0] for line in lines}) == 1, lines
            heard.clear()
            hearing = asyncio.create_task(heard.wait())
            done, _ = await asyncio.wait(
                {listening, hearing}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED
            )
            if listening in done:
                listening.result()
            assert hearing in done, "no event"
            play.round()
        listening.cancel()
    play.done()


asyncio.run(main())
