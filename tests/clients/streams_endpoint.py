"""An HTTP/1.1 endpoint with long answers: see README.md. Argument: the zone it is in.

WebSocket at /live and /long (each message comes back, with the zone before it), endless events at /events, a download of a
third of a second at /export, and the zone anywhere else.
"""

import asyncio
import sys

from websockets.frames import Opcode
from websockets.server import ServerProtocol

ZONE = sys.argv[1].encode()
STEP = 0.03
PIECES = 10


def head(kind):
    return b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


async def echo(request, reader, writer):
    socket = ServerProtocol()
    socket.receive_data(request)
    (asked,) = socket.events_received()
    socket.send_response(socket.accept(asked))
    while True:
        for data in socket.data_to_send():
            if not data:
                # Both sides have said that it ends.
                return
            writer.write(data)
            await writer.drain()
        data = await reader.read(65536)
        if not data:
            return
        socket.receive_data(data)
        for frame in socket.events_received():
            if frame.opcode is Opcode.TEXT:
                socket.send_text(ZONE + b" " + bytes(frame.data))


async def events(writer):
    writer.write(head(b"text/event-stream"))
    number = 0
    while True:
        writer.write(chunk(b"data: %s %d\n\n" % (ZONE, number)))
        await writer.drain()
        await asyncio.sleep(STEP)
        number += 1


async def export(writer):
    writer.write(head(b"text/plain"))
    for number in range(PIECES):
        writer.write(chunk(b"%s %d\n" % (ZONE, number)))
        await writer.drain()
        await asyncio.sleep(STEP)
    writer.write(chunk(b""))
    await writer.drain()


async def serve(reader, writer):
    try:
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            path = request.split(b" ")[1]
            if path in (b"/live", b"/long"):
                return await echo(request, reader, writer)
            if path == b"/events":
                return await events(writer)
            if path == b"/export":
                await export(writer)
            else:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(ZONE), ZONE))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
