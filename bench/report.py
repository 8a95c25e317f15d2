"""The tables: one text, printed and written, readable as Markdown and in a terminal alike."""

import os
import platform
import shlex
import sys
from statistics import median

import stats

NOISY = 0.05  # share of the proxy's core used by others above which the reader is told
PEERS = ("haproxy", "nginx")  # whom tidegate is compared with
ENGINES = ("epoll", "uring")


class Results:
    """Every sample: [row key][peer name] -> list over rounds, None where a round gave no value."""

    def __init__(self, rows, peers):
        self.rows, self.peers = rows, peers
        self.samples = {row.key: {peer.name: [] for peer in peers} for row in rows}
        self.failures = []  # (row key, peer name, round, why)

    def values(self, row, name):
        return [sample.value if sample else None for sample in self.samples[row.key].get(name, [])]

    def median_of(self, row, name, what):
        """Median over the rounds of `what(sample)`; None if no round has it."""
        found = stats.present(what(sample) for sample in self.samples[row.key].get(name, []) if sample)
        return median(found) if found else None


def text(results, setup, notes, finished):
    parts = ["# Tidegate beside its peers", "", *_costs(results), *_bars(results), *_information(results)]
    parts += _rounds(results) + _machine(results, setup) + _notes(results, notes, finished)
    return "\n".join(parts) + "\n"


def _costs(results):
    table = [["cost (median of the rounds)", "unit", *(peer.name for peer in results.peers)]]
    for row in results.rows:
        table.append([row.title, row.unit, *(_number(results.median_of(row, peer.name, lambda s: s.value)) for peer in results.peers)])
    return ["CPU time of the proxy's process alone, or its memory; lower is better, where not said otherwise.", "", *_table(table), ""]


def _bars(results):
    table = [["bar", "measured", "95 % interval", "bar is", "verdict"]]
    for what, values, bar in _judged(results):
        if values:
            low, high = stats.interval(values)
            table.append([what, f"{median(values):.3f}", f"{low:.3f} – {high:.3f}", str(bar), stats.verdict(values, bar)])
        else:
            table.append([what, "", "", str(bar), "not measured"])
    return ["## Bars", "", *_table(table), ""]


def _judged(results):
    """(what, values round by round, bar) for every bar of every row that was asked for."""
    for row in results.rows:
        mine = {engine: results.values(row, engine) for engine in ENGINES}
        if row.vs_best:
            theirs = {name: results.values(row, name) for name in PEERS}
            best = stats.best(theirs)
            for engine in ENGINES:
                yield (f"{row.key}: {engine} / {best or 'best of haproxy, nginx'}",
                       stats.ratios(mine[engine], theirs[best]) if best else [], row.vs_best)
        if row.vs_envoy:
            for engine in ENGINES:
                yield f"{row.key}: {engine} / envoy", stats.ratios(mine[engine], results.values(row, "envoy")), row.vs_envoy
        if row.vs_epoll:
            yield f"{row.key}: uring / epoll", stats.ratios(mine["uring"], mine["epoll"]), row.vs_epoll
        for what, number, bar in row.itself:
            for engine in ENGINES:
                samples = [sample for sample in results.samples[row.key].get(engine, []) if sample]
                yield f"{row.key}: {engine}, {what}", stats.present(map(number, samples)), bar


def _information(results):
    table = [["for information", "peer", "per second", "p50 µs", "p99 µs", "proxy's core", "others on it", "stolen", "also"]]
    for row in results.rows:
        for peer in results.peers:
            get = lambda what: results.median_of(row, peer.name, what)
            samples = [s for s in results.samples[row.key][peer.name] if s]
            if not samples:
                continue
            facts = {key: get(lambda s: s.facts.get(key)) for key in samples[0].facts}
            also = ", ".join(f"{key} {_number(fact)}" for key, fact in facts.items() if fact is not None)
            table.append([
                row.key, peer.name, _number(get(lambda s: s.rate)), _number(get(lambda s: s.p50_us)), _number(get(lambda s: s.p99_us)),
                _percent(get(lambda s: s.core)), _percent(get(lambda s: s.foreign)), _percent(get(lambda s: s.stolen)), also,
            ])
    return ["## Rate and latency", "", *_table(table), ""]


def _rounds(results):
    table = [["round values", "peer", "in the order measured"]]
    for row in results.rows:
        for peer in results.peers:
            values = results.values(row, peer.name)
            if stats.present(values):
                table.append([row.key, peer.name, " ".join(_number(value) or "–" for value in values)])
    return ["## Every round", "", *_table(table), ""]


def _machine(results, setup):
    lines = [f"- {os.cpu_count()} cores ({_cpu_model()}), kernel {platform.release()}, Python {platform.python_version()}"]
    lines += [f"- {what}" for what in setup]
    lines += [f"- {peer.name}: {peer.version()}" for peer in results.peers if peer.binary and peer.version()]
    return ["## Machine and command", "", *lines, "", f"    {shlex.join(['python3', *sys.argv])}", ""]


def _notes(results, notes, finished):
    lines = [] if finished else ["**Interrupted: what follows from fewer rounds than asked for is only that.**"]
    lines += notes + [peer.missing for peer in results.peers if peer.missing]
    for row in results.rows:
        foreign = stats.present(results.median_of(row, peer.name, lambda s: s.foreign) for peer in results.peers)
        if foreign and max(foreign) > NOISY:
            lines.append(f"{row.key}: others used {min(foreign):.0%} to {max(foreign):.0%} of the proxy's core; the figures are noisy")
    lines += [f"{key}, {name}, round {n}: no value: {why}" for key, name, n, why in results.failures]
    return ["## Notes", "", *(f"- {line}" for line in lines or ["none"])]


def _table(rows):
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _number(value):
    if value is None:
        return ""
    if value >= 1000:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def _percent(value):
    return "" if value is None else f"{value:.0%}"


def _cpu_model():
    with open("/proc/cpuinfo") as info:
        return next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.machine())
