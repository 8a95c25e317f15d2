"""What the figures rest on, without a proxy: python3 -m unittest discover -s bench -p 'test_*.py'"""

import gzip
import http.server
import os
import socket
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import footprint
import load
import peers
import procs
import report
import rows
import run
import settings
import stats
from measure import Sample
from stats import Bar


class Intervals(unittest.TestCase):
    def test_nine_rounds_leave_out_one_value_at_each_end(self):
        self.assertEqual(stats.interval([9, 1, 5, 3, 7, 2, 8, 4, 6]), (2, 8))

    def test_too_few_rounds_use_the_whole_range(self):
        self.assertEqual(stats.interval([3, 1, 2, 5, 4]), (1, 5))
        self.assertEqual(stats.interval([1]), (1, 1))

    def test_twenty_rounds_leave_out_five(self):
        self.assertEqual(stats.interval(list(range(1, 21))), (6, 15))


class Verdicts(unittest.TestCase):
    def test_met_when_the_interval_reaches_the_bar(self):
        clear, touching, beyond = [0.9] * 9, [0.9, 0.95, *[1.1] * 7], [0.9, *[1.1] * 8]
        self.assertEqual(stats.verdict(clear, Bar(1.0)), "met")
        self.assertEqual(stats.verdict(touching, Bar(1.0)), "met, within the noise")
        self.assertEqual(stats.verdict(beyond, Bar(1.0)), "NOT met")

    def test_a_lower_bar_is_reached_from_above(self):
        bar = Bar(0.95, at_least=True)
        self.assertEqual(stats.verdict([0.97] * 9, bar), "met")
        self.assertEqual(stats.verdict([0.96, 0.95, *[0.9] * 7], bar), "met, within the noise")
        self.assertEqual(stats.verdict([0.9] * 9, bar), "NOT met")
        self.assertEqual(str(bar), "≥ 0.95")

    def test_one_round_breaks_a_promise(self):
        promise = Bar(8, always=True)
        self.assertEqual(stats.verdict([8] * 9, promise), "met")
        self.assertEqual(stats.verdict([9] + [8] * 8, promise), "NOT met")
        self.assertEqual(stats.verdict([9], promise), "NOT met")

    def test_few_rounds_prove_nothing(self):
        self.assertTrue(stats.verdict([0.1] * 5, Bar(1.0)).startswith("unclear"))

    def test_a_round_without_a_value_takes_no_part(self):
        self.assertEqual(stats.ratios([2.0, None, 3.0, 4.0], [1.0, 1.0, None, 2.0]), [2.0, 2.0])

    def test_the_best_peer_is_the_one_of_the_lower_median(self):
        self.assertEqual(stats.best({"haproxy": [1, 9, 9], "nginx": [5, 5, None]}), "nginx")
        self.assertIsNone(stats.best({"haproxy": [], "nginx": [None]}))


class Weighing(unittest.TestCase):
    def test_cpu_time_is_that_of_proc_stat_and_includes_children(self):
        burn = "import time\nwhile time.process_time() < 0.3: pass\n"
        code = f"import os, time\nos.fork()\n{burn}time.sleep(30)"
        with tempfile.TemporaryDirectory() as directory:
            group = procs.Group("burner", [sys.executable, "-c", code], os.sched_getaffinity(0), Path(directory) / "log")
            try:
                nothing = procs.Cpu([])
                deadline = time.monotonic() + 20
                while True:
                    pids = group.pids()
                    by_clock = sum(group.cpu().nanoseconds.values()) / 1e9
                    if (len(pids) == 2 and by_clock >= 0.6) or time.monotonic() > deadline:
                        break
                    time.sleep(0.01)
                time.sleep(0.1)
                by_clock = sum(group.cpu().nanoseconds.values()) / 1e9
                by_stat = sum(procs.stat_seconds(pid) for pid in pids)
                self.assertEqual(len(pids), 2)
                self.assertAlmostEqual(by_clock, by_stat, delta=0.06)
                with self.assertRaises(procs.Unmeasured):
                    group.cpu().seconds_since(nothing)
            finally:
                group.stop()
            self.assertEqual(group.pids(), [])


class Listening(unittest.TestCase):
    def test_an_answer_is_believed_only_from_the_group_asked(self):
        code = "import socket, time\ns = socket.create_server(('127.0.0.1', 0))\nprint(s.getsockname()[1], flush=True)\ntime.sleep(30)"
        with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as ours:
            log = Path(directory) / "log"
            group = procs.Group("listener", [sys.executable, "-c", code], os.sched_getaffinity(0), log)
            try:
                deadline = time.monotonic() + 20
                while not log.read_text().endswith("\n") and time.monotonic() < deadline:
                    time.sleep(0.01)
                port = int(log.read_text())
                self.assertTrue(group.listens(("127.0.0.1", port)))
                self.assertFalse(group.listens(ours.getsockname()))
                self.assertFalse(group.listens(("127.0.0.2", port)))
            finally:
                group.stop()

    def test_two_runs_have_different_addresses(self):
        (one, first), (other, second) = run.own_net(), run.own_net()
        with first, second:
            self.assertNotEqual(one, other)


class Tables(unittest.TestCase):
    def setUp(self):
        self.peers = peers.known(None, "/nonexistent")
        self.results = report.Results(rows.ROWS[:1], self.peers)

    def test_a_peer_that_is_missing_has_an_empty_column_and_is_named(self):
        written = report.text(self.results, [], [], True)
        self.assertIn("epoll: not found", written)
        self.assertIn("not measured", written)

    def test_a_ratio_is_taken_round_by_round_and_judged(self):
        samples = self.results.samples["keepalive64"]
        samples["haproxy"] = [Sample(value) for value in [10.0] * 9]
        samples["nginx"] = [Sample(value) for value in [12.0] * 9]
        samples["epoll"] = [Sample(value) for value in [10.2] * 8] + [None]
        written = report.text(self.results, [], [], True)
        row = next(line for line in written.splitlines() if "keepalive64: epoll / haproxy" in line)
        self.assertIn("1.020", row)
        self.assertIn("| met", row)


    def test_envoy_and_the_number_itself_have_bars_of_their_own(self):
        http, overload = (next(row for row in rows.ROWS if row.key == key) for key in ("http64", "overload"))
        results = report.Results([http, overload], self.peers)
        results.samples["http64"]["envoy"] = [Sample(40.0)] * 9
        results.samples["http64"]["uring"] = [Sample(24.0)] * 9
        results.samples["overload"]["none"] = [Sample(0.0, 0.0)] * 9
        results.samples["overload"]["epoll"] = [Sample(0.97, 388, 43_000, facts={"most in progress": 8})] * 8 + [None]
        written = report.text(results, [], [], True)
        line = lambda start: next(line for line in written.splitlines() if start in line)
        self.assertRegex(line("http64: uring / envoy"), r"0\.600 .*≤ 0\.50 +\| NOT met")
        self.assertRegex(line("overload: epoll, goodput"), r"0\.970 .*≥ 0\.95 +\| met")
        self.assertRegex(line("overload: epoll, served p50"), r"43\.000 .*\| met")
        self.assertIn("not measured", line("overload: uring, served p50"))


class Settings(unittest.TestCase):
    def setUp(self):
        at = lambda port: ("127.0.10.1", port)
        self.place = peers.Place(Path("/x"), at(1), at(2), at(3), [at(4), at(5), at(6)], 100)

    def test_a_limit_with_a_queue_is_no_limit_that_refuses_at_once(self):
        queue, refuse = settings.Duty("http", limit=8, queue=8), settings.Duty("http", limit=1)
        self.assertIn(" maxconn 8\n", settings.haproxy(self.place, queue))
        self.assertNotIn("return status 503", settings.haproxy(self.place, queue))
        self.assertIn("srv_conn(bench/app) ge 1", settings.haproxy(self.place, refuse))
        self.assertIn('"max_pending_requests": 8', settings.envoy(self.place, queue))
        self.assertIn('"max_requests": 1\n', settings.envoy(self.place, refuse))
        self.assertIn("limit_conn all 1;", settings.nginx(self.place, refuse, None))

    def test_tidegate_has_admission_on_in_every_row(self):
        for row in rows.ROWS:
            words = settings.tidegate(self.place, getattr(row, "duty", settings.Duty()), "epoll")
            self.assertEqual(words[words.index("--limit") + 1], "100000")
        words = settings.tidegate(self.place, settings.Duty("h2", limit=1), "epoll")
        self.assertEqual([words[words.index(flag) + 1] for flag in ("--protocol", "--limit", "--queue-length")], ["http", "1", "0"])


class Clients(unittest.TestCase):
    H2LOAD = "finished in 1.00s\nrequests: 9 total, 9 started, 9 done, {} succeeded, {} failed, {} errored, 0 timeout\n"
    STORM = {"served": 400, "refused": 0, "retry_after": 0, "gave_up": 3, "unconnected": 1, "broken": 1, "served_ever": 500,
             "micros": 1_000_000, "served_p50": 40, "served_p99": 50, "refused_p50": 0, "refused_p99": 0, "late_p99": 100}

    def test_h2load_is_believed_without_errors_only(self):
        log = [f"1\t200\t{micros}\n" for micros in (30, 10, 20)]
        said = load.h2load_said(self.H2LOAD.format(9, 0, 0), 1, log)
        self.assertEqual((said.count, said.p50_us), (9, 20))
        for broken in (self.H2LOAD.format(8, 1, 0), self.H2LOAD.format(0, 0, 9), "nothing"):
            with self.assertRaises(procs.Unmeasured):
                load.h2load_said(broken, 1, log)

    def test_a_time_nobody_took_is_no_time(self):
        fared = load.storm_said(self.STORM)
        self.assertEqual((fared.served_p50, fared.refused_p99, fared.broken, fared.all), (40, None, 2, 405))

    def test_clients_that_come_late_prove_nothing(self):
        with self.assertRaises(procs.Unmeasured):
            load.storm_said(self.STORM | {"late_p99": 11_000})


class Truth(unittest.TestCase):
    def test_the_engine_is_found_wherever_the_status_has_it(self):
        self.assertEqual(peers._engine_in({"a": [1], "io": {"engine": "uring"}}), "uring")
        self.assertEqual(peers._engine_in({"engine": {"name": "epoll", "reason": ""}}), "epoll")
        self.assertIsNone(peers._engine_in({"engines": 2}))


class Footprint(unittest.TestCase):
    def test_a_program_is_as_large_as_gzip_finds_it(self):
        content = b"".join(bytes([n % 251]) * (n % 97) for n in range(60_000))  # more than one block
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            plain, packed = footprint.size(file.name)
        self.assertEqual(plain, len(content))
        self.assertAlmostEqual(packed, len(gzip.compress(content, 6)), delta=100)
        self.assertGreater(plain, 1 << 20)

    def test_ready_is_the_first_200_and_nothing_before(self):
        asked = []

        class Probe(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                self.send_response(503 if len(asked) < 5 else 200)
                self.end_headers()

            def log_message(self, *_):
                pass

        with http.server.HTTPServer(("127.0.0.1", 0), Probe) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                ready = footprint.until_ready(server.server_address, lambda: True)
                self.assertEqual(asked, ["/readyz"] * 5)
                self.assertLessEqual(ready, time.monotonic())
            finally:
                server.shutdown()

    def test_who_has_died_does_not_become_ready(self):
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            with self.assertRaises(procs.Unmeasured):
                footprint.until_ready(nobody.getsockname(), lambda: False)

    def test_an_answer_without_a_patch_is_none(self):
        class Answer:
            status = 200

            def request(self, *_):
                pass

            def getresponse(self):
                return self

            def read(self):
                return self.said

        client = Answer()
        client.said = b'{"response": {"allowed": true, "patch": "W10="}}'
        footprint.patched(client, 1)
        for client.said in (b'{"response": {"allowed": true}}', b"{}"):
            with self.assertRaises(SystemExit):
                footprint.patched(client, 1)

    def test_a_spread_is_told_with_its_median(self):
        self.assertEqual(footprint.spread([3.0, 1.0, 2.0], "ms"), "2.0 ms (median of 3, 1.0 to 3.0)")


if __name__ == "__main__":
    unittest.main()
