"""One picture of a run: throughput and latency over time, with the faults marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from tests.chaos.faults import KINDS
from tests.chaos.figures import Second
from tests.chaos.stage import Band

INCHES_PER_MINUTE = 2.2
COLORS = ("#d62728", "#9467bd", "#8c564b", "#e377c2", "#ff7f0e", "#17becf", "#bcbd22", "#7f7f7f")


def draw(path: Path, seconds: Sequence[Second], bands: Sequence[Band], title: str) -> None:
    """Rows of the picture: the faults' names, writes and reads by second, latency (p50, p99) of both."""
    duration_s = len(seconds)
    width = min(120.0, max(12.0, INCHES_PER_MINUTE * duration_s / 60))
    figure, (names, rate, latency) = plt.subplots(
        3, 1, sharex=True, figsize=(width, 8), height_ratios=(1, 2, 2), layout="constrained"
    )
    figure.suptitle(title)
    _draw_names(names, bands, duration_s)
    at = range(duration_s)
    rate.plot(at, [second.writes for second in seconds], color="#1f77b4", label="writes acknowledged")
    rate.plot(at, [second.reads for second in seconds], color="#2ca02c", label="reads answered")
    rate.plot(at, [second.failed for second in seconds], color="#d62728", label="failed or unknown")
    rate.set_ylabel("operations per second")
    rate.set_ylim(bottom=0)
    for kind, color in (("write", "#1f77b4"), ("read", "#2ca02c")):
        for share, style in ((0.5, "-"), (0.99, ":")):
            values = [second.latency_ms(kind, share) for second in seconds]
            latency.plot(at, values, style, color=color, label=f"{kind} p{share * 100:.0f}")
    latency.set_yscale("log")
    latency.set_ylabel("latency, ms")
    latency.set_xlabel("seconds; dark: the fault, light: until every replica was in sync again")
    for axes in (rate, latency):
        _mark(axes, bands)
        axes.legend(loc="upper right", ncols=4, fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def label(band: Band) -> str:
    return " + ".join(KINDS[kind].label for kind in band.parts or [band.kind])


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _mark(axes: Axes, bands: Sequence[Band]) -> None:
    for number, band in enumerate(bands):
        ended_s = band.ended_s or band.began_s
        axes.axvspan(band.began_s, ended_s, color=_color(number), alpha=0.25, linewidth=0)
        if band.whole_s is not None:
            axes.axvspan(ended_s, band.whole_s, color=_color(number), alpha=0.08, linewidth=0)


def _draw_names(axes: Axes, bands: Sequence[Band], duration_s: float) -> None:
    axes.set_ylim(0, 1)
    axes.set_xlim(0, duration_s)
    axes.axis("off")
    for number, band in enumerate(bands):
        axes.axvspan(band.began_s, band.ended_s or band.began_s, 0, 0.06, color=_color(number))
        axes.text(
            band.began_s,
            0.09,
            label(band),
            rotation=60,
            fontsize="small",
            color=_color(number),
            ha="left",
            va="bottom",
        )
