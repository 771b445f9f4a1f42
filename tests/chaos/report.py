"""report.json, report.md and the picture of a run."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from tests.chaos.figures import by_second, costs, outcomes
from tests.chaos.lag import quantile
from tests.chaos.picture import draw, label
from tests.chaos.run import Outcome
from tests.support.cluster import REPO

PACKAGES = ("aiohttp", "aiozk", "msgpack", "rocksdict", "uvloop")
PROBLEM_CHARS_MAX = 4000


def write_report(outcome: Outcome) -> dict[str, Any]:
    """Into the run's folder; prints the end of it."""
    folder = outcome.order.folder
    report = make_report(outcome)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    text = _markdown(report)
    (folder / "report.md").write_text(text)
    seconds = by_second(outcome.load.ops, outcome.duration_s)
    title = f"Ackord, {report['nodes']} nodes, seed {report['seed']}: {report['verdict']}"
    draw(folder / "picture.png", seconds, outcome.stage.bands, title)
    print(f"\n{text}\nEverything is in {folder}", flush=True)
    return report


def make_report(outcome: Outcome) -> dict[str, Any]:
    order, stage, load, lag = outcome.order, outcome.stage, outcome.load, outcome.lag
    times = [[at - load.began_at for at in tablet] for tablet in load.pulse.times]
    return {
        "verdict": _verdict(outcome),
        "problems": [problem[:PROBLEM_CHARS_MAX] for problem in outcome.problems],
        "seed": order.seed,
        "nodes": order.nodes_count,
        "minutes": order.minutes,
        "only": list(order.only),
        "work": order.work or "all",
        "duration_s": round(outcome.duration_s, 1),
        "in_sync_at_the_end_after_s": outcome.healed_s and round(outcome.healed_s, 1),
        "faults": {
            kind: {name: round(value, 2) for name, value in asdict(cost).items()}
            for kind, cost in costs(stage.bands, times, outcome.duration_s).items()
        },
        "faults_missing": outcome.kinds_missing,
        "operations": outcomes(load.ops),
        "operations_count": sum(1 for _ in load.ops),
        "works": {work.name: work.tell() for work in load.works},
        "pulse_acknowledged": load.pulse.acks_count,
        "flips": stage.flips,
        "exits": [asdict(one) for one in stage.exits],
        "loop_lag": {
            "probes": lag.blocked.total(),
            "blocked_p99_ms": quantile(lag.blocked, 0.99) * 1000,
            "blocked_p999_ms": quantile(lag.blocked, 0.999) * 1000,
            "blocked_worst_ms_at_most": {name: worst * 1000 for name, worst in sorted(lag.worst_s.items())},
            "blocked_over_50_ms": lag.late[:200],
            "p99_ms": quantile(lag.lag, 0.99) * 1000,
            "of_the_chaos_process_worst_ms": round(max(lag.own_s, default=0.0) * 1000),
        },
        "bands": [{**band.to_json(), "label": label(band)} for band in stage.bands],
        "versions": versions(),
    }


def _verdict(outcome: Outcome) -> str:
    if outcome.is_broken_off:
        return f"broken off, {len(outcome.problems)} problems"
    return "passed" if outcome.is_passed else f"FAILED, {len(outcome.problems)} problems"


def versions() -> dict[str, str]:
    found = {name: version(name) for name in PACKAGES}
    done = subprocess.run(
        ["git", "-C", str(REPO), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    found["ackord"] = done.stdout.strip() or "unknown"
    found["python"] = platform.python_version()
    found["kernel"] = platform.release()
    return found


def _markdown(report: dict[str, Any]) -> str:
    return "\n".join([*_head(report), *_faults(report), *_operations(report), *_rest(report), ""])


def _head(report: dict[str, Any]) -> list[str]:
    lines = [
        f"# Chaos: {report['verdict']}",
        "",
        f"Seed {report['seed']}, {report['nodes']} nodes, work: {report['work']}, {report['duration_s']} s;"
        " everything in sync"
        f" {report['in_sync_at_the_end_after_s']} s after the last fault.",
    ]
    for problem in report["problems"]:
        lines += ["", "```", problem, "```"]
    if report["faults_missing"]:
        lines += ["", f"Never came: {', '.join(report['faults_missing'])}."]
    return lines


def _faults(report: dict[str, Any]) -> list[str]:
    lines = [
        "",
        "| fault | times | longest gap of a tablet, s | longest until in sync, s |",
        "|---|---|---|---|",
    ]
    for kind, cost in report["faults"].items():
        lines.append(f"| {kind} | {cost['count']:.0f} | {cost['gap_s']} | {cost['whole_s']} |")
    return lines


def _operations(report: dict[str, Any]) -> list[str]:
    lines = ["", "| operation | ok | conflict | failed | unknown |", "|---|---|---|---|---|"]
    for kind, counts in report["operations"].items():
        cells = " | ".join(str(counts.get(name, 0)) for name in ("ok", "conflict", "failed", "unknown"))
        lines.append(f"| {kind} | {cells} |")
    return lines


def _rest(report: dict[str, Any]) -> list[str]:
    lag = report["loop_lag"]
    lines = [
        "",
        f"{report['operations_count']} operations and {report['pulse_acknowledged']} pulses checked.",
        "",
    ]
    lines += [f"- {name}: {told}" for name, told in report["works"].items()]
    fates = report["flips"]
    counts = [f"{fates.count(fate)} times {fate}" for fate in sorted(set(fates))]
    lines.append(f"- flipped bits: {', '.join(counts) or 'none'}")
    unexpected = sum(not one["was_expected"] for one in report["exits"])
    lines.append(
        f"- nodes that ended by themselves: {len(report['exits'])}, {unexpected} of them without reason"
    )
    lines.append(
        f"- event loops blocked by the nodes themselves: p99 at most {lag['blocked_p99_ms']:g} ms, p99.9 at most"
        f" {lag['blocked_p999_ms']:g} ms, worst at most {max(lag['blocked_worst_ms_at_most'].values(), default=0):g} ms"
        f" of {lag['probes']} probes; with what the machine took: p99 at most {lag['p99_ms']:g} ms"
    )
    lines.append(
        "- versions: " + ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    )
    return lines
