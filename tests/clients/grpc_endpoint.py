"""A gRPC server: see README.md. Argument: the zone it is in. Messages are bytes as they are, the zone first."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

ZONE = sys.argv[1].encode()
STEP = 0.03
PIECES = 10


def say(request, _):
    return ZONE + b" " + request


def count(_, context):
    for number in range(PIECES):
        yield ZONE + b" %d" % number
        time.sleep(STEP)


def watch(_, context):
    number = 0
    while context.is_active():
        yield ZONE + b" %d" % number
        number += 1
        time.sleep(STEP)


METHODS = {
    "Say": grpc.unary_unary_rpc_method_handler(say),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Watch": grpc.unary_stream_rpc_method_handler(watch),
}


server = grpc.server(
    ThreadPoolExecutor(16), handlers=(grpc.method_handlers_generic_handler("godwit.test.Echo", METHODS),)
)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
# Whoever still watches is not waited for.
os._exit(0)
