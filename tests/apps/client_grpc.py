"""A grpcio client. `python client_grpc.py HOST:PORT calls|storm [N [SEED]]`; exit 0 when all was as it should be.

calls: each kind of call, with what is particular to it. storm: N calls of all kinds, 16 at a time, many of
them cancelled or past their deadline; refused is all right, broken is not. Prints how many ended how.
"""

import collections
import itertools
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

FINE = {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}


class Calls:
    def __init__(self, channel):
        self.unary = channel.unary_unary("/test.Calls/Unary")
        self.server_stream = channel.unary_stream("/test.Calls/ServerStream")
        self.client_stream = channel.stream_unary("/test.Calls/ClientStream")
        self.bidi = channel.stream_stream("/test.Calls/Bidi")


def connect(target):
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.insecure_channel(target, options)
    grpc.channel_ready_future(channel).result(10)
    return channel


def calls(target):
    with connect(target) as channel:
        kinds = Calls(channel)
        assert kinds.unary(b"0", timeout=10) == b"0"
        assert list(kinds.server_stream(b"5 1", timeout=10)) == [b"0", b"1", b"2", b"3", b"4"]
        parts = [bytes(100_000)] * 20
        assert kinds.client_stream(iter(parts), timeout=20) == b"2000000"
        assert list(kinds.bidi(iter(parts), timeout=20)) == parts
        ping_pong(kinds)
        try:
            kinds.unary(b"3000", timeout=0.2)
            raise AssertionError("the deadline has passed")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        try:
            channel.unary_unary("/test.Calls/Nothing")(b"", timeout=10)
            raise AssertionError("there is no such call")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error


def ping_pong(kinds):
    """Each message is sent only when the one before has come back."""
    back = threading.Semaphore(1)

    def ask():
        for number in range(50):
            assert back.acquire(timeout=10)
            yield b"%d" % number

    for number, message in enumerate(kinds.bidi(ask(), timeout=20)):
        assert message == b"%d" % number
        back.release()


def storm(target, count, seed):
    rng = random.Random(seed)
    turns = [(rng.randrange(4), rng.random(), rng.random() * 0.08) for _ in range(count)]
    with connect(target) as channel, ThreadPoolExecutor(16) as pool:
        kinds = Calls(channel)
        ends = collections.Counter(pool.map(lambda turn: stormy(kinds, *turn), turns))
    print(*(f"{end.name}={number}" for end, number in ends.items()))
    assert set(ends) <= FINE, ends
    assert ends[grpc.StatusCode.OK] > 0, ends


def stormy(kinds, kind, luck, after):
    slowly = lambda: (time.sleep(0.005) or b"x" for _ in range(8))
    timeout = after if luck < 0.2 else 20
    call = [
        lambda: kinds.unary.future(b"20", timeout=timeout),
        lambda: kinds.server_stream(b"5 5", timeout=timeout),
        lambda: kinds.client_stream.future(slowly(), timeout=timeout),
        lambda: kinds.bidi(slowly(), timeout=timeout),
    ][kind]()
    if 0.2 < luck < 0.5:
        threading.Timer(after, call.cancel).start()
    try:
        if kind in (0, 2):
            call.result()
        else:
            collections.deque(call, maxlen=0)
    except grpc.FutureCancelledError:
        return grpc.StatusCode.CANCELLED
    except grpc.RpcError as error:
        return error.code()
    return call.code()


def hold(target, count):
    """Opens `count` bidi streams, exchanges a message on each, says so, and ends them at a line from stdin."""
    with connect(target) as channel:
        over = threading.Event()
        kinds, held = Calls(channel), []
        for _ in range(count):
            call = kinds.bidi(itertools.chain([b"hello"], (b"bye" for _ in [0] if over.wait(60))))
            assert next(call) == b"hello"
            held.append(call)
        print("held", flush=True)
        sys.stdin.readline()
        over.set()
        for call in held:
            assert list(call) == [b"bye"], call
    print("done", flush=True)


if __name__ == "__main__":
    target, what, *rest = sys.argv[1:]
    if what == "calls":
        calls(target)
    elif what == "hold":
        hold(target, int(rest[0]))
    else:
        storm(target, int(rest[0]), int(rest[1]))
