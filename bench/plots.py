"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.measuring import Sample
from bench.plan import CALLERS, CALLERS_EACH, PROCESSES, SMALL, YCSB
from bench.results import ACKORD, Results
from bench.workloads import Work

COLORS = {
    ACKORD: "#d62728",
    "etcd": "#1f77b4",
    "ZooKeeper": "#2ca02c",
    "PostgreSQL": "#9467bd",
    "Redis": "#ff7f0e",
}
Pick = Callable[[Sample], float]
Column = tuple[str, Work]

_GROUPS = [(f"{callers}", callers, 1) for callers in CALLERS] + [
    (f"{PROCESSES} x {CALLERS_EACH}", CALLERS_EACH, PROCESSES)
]
PUTS: list[Column] = [(label, Work("put", SMALL, callers, count)) for label, callers, count in _GROUPS]
GETS: list[Column] = [(label, Work("get", SMALL, callers, count)) for label, callers, count in _GROUPS]
MIXES: list[Column] = [
    *((f"YCSB {kind[-1].upper()}", Work(kind, SMALL, 64)) for kind in YCSB),
    ("compare-\nand-set", Work("rmw", SMALL, 64)),
]
RANGES: list[Column] = [
    ("batches\nof 100", Work("batch", SMALL, 16)),
    ("scans\nof 100", Work("scan", SMALL, 16)),
]


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Returns the files; a picture of which nothing was measured is left out."""
    rates: Pick = lambda sample: sample.rows_per_s  # noqa: E731 - a name for a column of a table
    cpu: Pick = lambda sample: sample.client_cpu_us + sample.server_cpu_us  # noqa: E731
    pictures = [
        ("rates", "rows per second", "linear", rates, {"puts, callers": PUTS, "gets, callers": GETS}),
        (
            "mixes",
            "operations or rows per second",
            "linear",
            rates,
            {"64 callers": MIXES, "16 callers": RANGES},
        ),
        (
            "latency",
            "p99, ms",
            "log",
            lambda sample: sample.p99_ms,
            {"puts, callers": PUTS, "gets, callers": GETS},
        ),
        (
            "cpu",
            "CPU of client and servers per row, µs",
            "log",
            cpu,
            {"puts, callers": PUTS, "gets, callers": GETS},
        ),
    ]
    written = []
    for name, unit, scale, pick, panels in pictures:
        path = folder / f"{name}.svg"
        if _draw(results, path, unit, scale, pick, panels):
            written.append(path)
    return written


def _draw(
    results: Results, path: Path, unit: str, scale: str, pick: Pick, panels: Mapping[str, Sequence[Column]]
) -> bool:
    shown = {
        title: [(label, work) for label, work in panel if results.samples.get(work.name)]
        for title, panel in panels.items()
    }
    shown = {title: panel for title, panel in shown.items() if panel}
    if not shown:
        return False
    widths = [len(panel) for panel in shown.values()]
    figure, axes = plt.subplots(
        1, len(shown), figsize=(12, 4.2), width_ratios=widths, layout="constrained", squeeze=False
    )
    for one, (title, panel) in zip(axes[0], shown.items(), strict=True):
        _bars(one, results, panel, pick)
        one.set_title(title, fontsize="medium")
        one.set_yscale(scale)
        one.set_ylabel(unit)
        one.grid(axis="y", alpha=0.3)
    axes[0][0].legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True


def _bars(axes: Axes, results: Results, panel: Sequence[Column], pick: Pick) -> None:
    """Groups of bars, one for each system, with a line from the worst round to the best."""
    systems = list(results.systems)
    width = 0.8 / len(systems)
    for number, system in enumerate(systems):
        at, heights, low, high = [], [], [], []
        for place, (_, work) in enumerate(panel):
            samples = results.samples[work.name].get(system)
            if not samples:
                continue
            values = [pick(sample) for sample in samples]
            middle = pick(results.medians(work.name)[system])
            at.append(place + (number - (len(systems) - 1) / 2) * width)
            heights.append(middle)
            low.append(max(middle - min(values), 0.0))
            high.append(max(max(values) - middle, 0.0))
        axes.bar(
            at,
            heights,
            width,
            yerr=(low, high),
            error_kw={"lw": 0.8, "alpha": 0.6},
            label=system,
            color=COLORS.get(system, "#7f7f7f"),
        )
    axes.set_xticks(range(len(panel)), [label for label, _ in panel])
