"""CPython's own tests of the network, each with how it went.

    python cpython_tests.py NAME...

Prints a line for each test that ran: its name, `ok`, `failed`, `error`, `skipped` or what else unittest says, and
why. NAME is a module, a class or a single test. What needs the world is left out, as CPython does by default.
"""

import io
import os
import sys
import tempfile
import unittest


class Books(unittest.TestResult):
    """One word for each test; a test with parts (`subTest`) has failed when one of them has."""

    def __init__(self):
        super().__init__()
        self.ends = {}

    def enter(self, test, how, why=""):
        name = getattr(test, "test_case", test).id()
        if self.ends.get(name, ("ok",))[0] == "ok":
            self.ends[name] = how, why

    def why(self, error):
        return f"{error[0].__name__}: {error[1]}".replace("\n", " ")[:200]

    def addSuccess(self, test):
        self.enter(test, "ok")

    def addFailure(self, test, error):
        self.enter(test, "failed", self.why(error))

    def addError(self, test, error):
        self.enter(test, "error", self.why(error))

    def addSkip(self, test, reason):
        self.enter(test, "skipped")

    def addExpectedFailure(self, test, error):
        self.enter(test, "expected failure")

    def addUnexpectedSuccess(self, test):
        self.enter(test, "unexpected success")

    def addSubTest(self, test, part, error):
        if error is not None:
            self.addFailure(test, error)


def classes(suite):
    """The suites of single classes in a tree of suites."""
    for part in suite:
        if isinstance(part, unittest.TestSuite) and any(isinstance(p, unittest.TestSuite) for p in part):
            yield from classes(part)
        elif isinstance(part, unittest.TestSuite):
            yield part
        else:
            yield unittest.TestSuite([part])


# Of no network that could be captured: sockets to the host of a virtual machine, which hang where the host
# does not answer.
LEFT_OUT = ("ThreadedVSOCKSocketStreamTest",)


def main(names):
    out = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr = io.StringIO()  # what the tests say is not what we say
    os.chdir(tempfile.mkdtemp())
    load = unittest.defaultTestLoader.loadTestsFromName
    books = Books()
    for suite in classes(unittest.TestSuite([load(name) for name in names])):
        if not any(name in repr(suite) for name in LEFT_OUT):
            suite.run(books)
    for name, (how, why) in sorted(books.ends.items()):
        print(name, how, why, sep="\t", file=out)


if __name__ == "__main__":
    main(sys.argv[1:])
