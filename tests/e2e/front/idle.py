"""Opens as many connections as it is told to, makes one request on each, says so, and keeps them until its input ends."""

import socket
import sys

port, count = int(sys.argv[1]), int(sys.argv[2])
kept = []
for _ in range(count):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    kept.append(connection)
print("ready", flush=True)
sys.stdin.read()
