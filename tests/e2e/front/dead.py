"""An endpoint whose kept connection dies unseen.

Answers the first request of its first connection. From then on the kernel throws away whatever arrives on that connection
(a socket filter), so nothing that is sent there is taken. At a line on standard input it sends the end of that connection.
Later connections are answered for ever. Writes its port first, then a line for each request that it has read.
"""

import ctypes
import socket
import struct
import sys
import threading

SO_ATTACH_FILTER = 26
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def read(connection):
    data = b""
    while b"\r\n\r\n" not in data or (data.startswith(b"POST") and not data.endswith(b"body")):
        more = connection.recv(65536)
        if not more:
            return False
        data += more
    print("request", flush=True)
    return True


def deafen(connection):
    # One instruction: return 0, that is, keep nothing of any packet.
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))


def serve(connection):
    while read(connection):
        connection.sendall(ANSWER)


listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
first, _ = listener.accept()
read(first)
first.sendall(ANSWER)
deafen(first)
print("deaf", flush=True)


def later():
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


threading.Thread(target=later, daemon=True).start()
sys.stdin.readline()
first.shutdown(socket.SHUT_WR)
sys.stdin.readline()
