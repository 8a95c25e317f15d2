"""Tornado's own WebSocket tests: a line `outcome name` for each; what went wrong goes to stderr.

    python tornado_websocket_tests.py                      as they come: client and server meet directly
    python tornado_websocket_tests.py APP=GATEWAY …        each server has one of the APP ports, and who
                                                           connects to it is led to that GATEWAY port
"""

import logging
import socket
import sys
import unittest

SUITE = "tornado.test.websocket_test"


def lead_through(pairs):
    """A server that asks for any port gets the next of ours; a client of that port dials its gateway."""
    gateway_of = {int(app): int(gateway) for app, gateway in (pair.split("=") for pair in pairs)}
    unused = iter(gateway_of)
    bind, connect = socket.socket.bind, socket.socket.connect

    def bind_to_ours(self, address):
        if self.type == socket.SOCK_STREAM and address == ("127.0.0.1", 0):
            address = ("127.0.0.1", next(unused))
        return bind(self, address)

    def connect_to_its_gateway(self, address):
        if isinstance(address, tuple) and address[1] in gateway_of:
            address = ("127.0.0.1", gateway_of[address[1]])
        return connect(self, address)

    socket.socket.bind, socket.socket.connect = bind_to_ours, connect_to_its_gateway


class Books(unittest.TextTestResult):
    """Prints each outcome when it is known."""

    def enter(self, outcome, test):
        print(outcome, test.id().removeprefix(SUITE + "."), flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.enter("passed", test)

    def addError(self, test, err):
        super().addError(test, err)
        self.enter("failed", test)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.enter("failed", test)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.enter("skipped", test)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        lead_through(sys.argv[1:])
    logging.getLogger("tornado.access").setLevel(logging.CRITICAL)  # the tests allow no lines in the log
    tests = unittest.defaultTestLoader.loadTestsFromName(SUITE)
    unittest.TextTestRunner(stream=sys.stderr, resultclass=Books).run(tests)
