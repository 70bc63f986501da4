"""grpcio: see README.md. Argument: host and port."""

import sys
import threading

import grpc
from playing import PATIENCE, Play

PIECES = 10


def watch(channel, play, heard, stop, wrong):
    """One stream after the other, each until it is ended as the policy says."""
    try:
        while not stop.is_set():
            try:
                for _ in channel.unary_stream("/godwit.test.Echo/Watch")(b""):
                    heard.set()
                    if stop.is_set():
                        return
                raise AssertionError("the stream ended by itself")
            except grpc.RpcError as error:
                what = (error.code(), error.details())
                assert what == (grpc.StatusCode.UNAVAILABLE, "the service has moved; call again"), what
                play.ended(error.code().name)
    except BaseException as error:
        wrong.append(error)
        heard.set()
        raise


def main():
    play, heard, stop, wrong = Play(), threading.Event(), threading.Event(), []
    with grpc.insecure_channel(sys.argv[1], options=(("grpc.enable_retries", 0),)) as channel:
        watching = threading.Thread(target=watch, args=(channel, play, heard, stop, wrong))
        watching.start()
        try:
            while not play.over.is_set():
                zone, said = channel.unary_unary("/godwit.test.Echo/Say")(b"hello", timeout=PATIENCE).split()
                assert said == b"hello", said
                pieces = list(channel.unary_stream("/godwit.test.Echo/Count")(b"", timeout=PATIENCE))
                assert len(pieces) == PIECES and len({piece.split()[0] for piece in pieces}) == 1, pieces
                heard.clear()
                assert heard.wait(PATIENCE) and not wrong, wrong
                play.round()
        finally:
            stop.set()
            watching.join()
    assert not wrong, wrong
    play.done()


main()
