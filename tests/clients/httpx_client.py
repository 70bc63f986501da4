"""httpx: see README.md. Arguments: the front's URL, a prefix for the keys of orders."""

import asyncio
import sys

import httpx
from playing import PACE, PATIENCE, Play

FRONT, KEYS = sys.argv[1:3]


async def turn(client, version, number):
    order = {"key": f"{KEYS}-{version}-{number}", "customer": 7, "amount": "1.25"}
    answers = await asyncio.gather(
        client.get("/customers/7"), client.post("/orders", json=order), client.get("/customers/8")
    )
    for answer, status in zip(answers, (200, 201, 200)):
        assert answer.status_code == status, (answer.status_code, answer.text)
        assert answer.http_version == version, answer.http_version
    assert answers[1].json()["key"] == order["key"], answers[1].text


async def main():
    play = Play()
    kept = {"base_url": FRONT, "timeout": PATIENCE}
    async with httpx.AsyncClient(**kept) as one, httpx.AsyncClient(http1=False, http2=True, **kept) as two:
        while not play.over.is_set():
            await asyncio.gather(turn(one, "HTTP/1.1", play.rounds), turn(two, "HTTP/2", play.rounds))
            play.round()
            await asyncio.sleep(PACE)
    play.done()


asyncio.run(main())
