"""What the figures rest on, without a proxy: python3 -m unittest discover -s bench -p 'test_*.py'"""

import os
import sys
import tempfile
import time
import unittest
from pathlib import Path

import peers
import procs
import report
import rows
import stats


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
        self.assertEqual(stats.verdict(clear, 1.0), "met")
        self.assertEqual(stats.verdict(touching, 1.0), "met, within the noise")
        self.assertEqual(stats.verdict(beyond, 1.0), "NOT met")

    def test_few_rounds_prove_nothing(self):
        self.assertTrue(stats.verdict([0.1] * 5, 1.0).startswith("unclear"))

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
        samples["haproxy"] = [rows.Sample(value) for value in [10.0] * 9]
        samples["nginx"] = [rows.Sample(value) for value in [12.0] * 9]
        samples["epoll"] = [rows.Sample(value) for value in [10.2] * 8] + [None]
        written = report.text(self.results, [], [], True)
        row = next(line for line in written.splitlines() if "keepalive64: epoll / haproxy" in line)
        self.assertIn("1.020", row)
        self.assertIn("| met", row)


class Truth(unittest.TestCase):
    def test_the_engine_is_found_wherever_the_status_has_it(self):
        self.assertEqual(peers._engine_in({"a": [1], "io": {"engine": "uring"}}), "uring")
        self.assertEqual(peers._engine_in({"engine": {"name": "epoll", "reason": ""}}), "epoll")
        self.assertIsNone(peers._engine_in({"engines": 2}))


if __name__ == "__main__":
    unittest.main()
