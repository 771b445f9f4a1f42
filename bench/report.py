"""Tables of a run: on the terminal, and as a page for docs/benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import goals, machine
from bench.measuring import Sample
from bench.results import ACKORD, Results

HEADINGS = ("", "rows/s", "p50 ms", "p99 ms", "p99.9 ms", "client µs", "servers µs", "of best peer")
Row = Sequence[str]


def cell_rows(results: Results, cell: str) -> list[Row]:
    """One row for each system. The last column: this system's rate against the best of the peers."""
    medians = results.medians(cell)
    peers = [sample.rows_per_s for name, sample in medians.items() if name != ACKORD]
    best = max(peers, default=0.0)
    return [_row(name, sample, best) for name, sample in medians.items()]


def _row(name: str, sample: Sample, best: float) -> Row:
    return (
        name,
        f"{sample.rows_per_s:,.0f}",
        f"{sample.p50_ms:.2f}",
        f"{sample.p99_ms:.2f}",
        f"{sample.p999_ms:.2f}",
        f"{sample.client_cpu_us:.1f}",
        f"{sample.server_cpu_us:.1f}",
        f"{sample.rows_per_s / best:.2f}" if best else "",
    )


def goal_rows(results: Results) -> list[Row]:
    return [
        (
            figure.goal,
            figure.ackord,
            figure.other,
            "-" if figure.ratio is None else f"{figure.ratio:.2f}",
            figure.verdict,
        )
        for figure in goals.figures(results)
    ]


def ratio_rows(results: Results) -> list[Row]:
    """For every cell Ackord's rate against each peer's."""
    peers = [name for name in results.systems if name != ACKORD]
    rows: list[Row] = []
    for cell in results.samples:
        medians = results.medians(cell)
        own = medians.get(ACKORD)
        if own is None:
            continue
        ratios = [
            f"{own.rows_per_s / medians[peer].rows_per_s:.2f}" if peer in medians else "-" for peer in peers
        ]
        rows.append((cell, f"{own.rows_per_s:,.0f}", *ratios))
    return rows


def idle_text(results: Results) -> str:
    shares = [
        sample.idle_cpu_share
        for by_system in results.samples.values()
        for found in by_system.values()
        for sample in found
    ]
    if not shares:
        return ""
    ordered = sorted(shares)
    return (
        f"The servers that were paused while another system was measured took {ordered[len(ordered) // 2]:.1%} "
        f"of one core all together (median of all cells; {ordered[-1]:.1%} at most)."
    )


# ------------------------------------------------------------------------------------- terminal


def columns(headings: Row, rows: Sequence[Row]) -> list[str]:
    """Lines, the first column flush left and the others flush right."""
    lines = [headings, *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(headings))]
    return [
        "  ".join(
            text.ljust(width) if at == 0 else text.rjust(width)
            for at, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def print_all(results: Results) -> None:
    for cell in results.samples:
        print(f"\n{cell}")
        print("\n".join(f"  {line}" for line in columns(HEADINGS, cell_rows(results, cell))))
    if len(results.systems) > 1:
        print("\nAckord's rate against each peer's:\n")
        peers = [name for name in results.systems if name != ACKORD]
        print("\n".join(columns(("", ACKORD, *peers), ratio_rows(results))))
        print("\nGoals:\n")
        print("\n".join(columns(("", ACKORD, "best peer", "ratio", ""), goal_rows(results))))
        print(f"\n{idle_text(results)}")
    for failure in results.failures:
        print(f"failed: {failure}")


# ----------------------------------------------------------------------------------------- page


def table(headings: Row, rows: Sequence[Row]) -> list[str]:
    """A Markdown table."""
    return [
        f"| {' | '.join(headings)} |",
        f"|{'---|' * len(headings)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def page(results: Results, pictures: Sequence[Path]) -> str:
    """The page of a run, its pictures beside it."""
    options = results.options
    lines = [
        "# The last run",
        "",
        "Written by `make bench PUBLISH=1`; [what is measured and how](../benchmarks.md).",
        "",
        machine.sentence(results.machine),
        f"{options['rounds']} rounds, {options['seconds']:g} s for each cell and system in each round.",
        idle_text(results),
        "",
        "## Goals",
        "",
        *table(("goal", ACKORD, "best peer", "ratio", ""), goal_rows(results)),
        "",
        "## Pictures",
        "",
        *(f"![{path.stem.replace('-', ' ')}]({path.name})\n" for path in pictures),
        "## Ackord's rate against each peer's",
        "",
        *table(
            ("cell", f"{ACKORD}, rows/s", *(name for name in results.systems if name != ACKORD)),
            ratio_rows(results),
        ),
        "",
        "## Every cell",
    ]
    for cell in results.samples:
        lines += ["", f"### {cell}", "", *table(HEADINGS, cell_rows(results, cell))]
    lines += ["", "## Bytes on disk, all three servers together", "", *_disk(results)]
    lines += ["", "## Systems", ""]
    for name, about in results.systems.items():
        lines += [f"**{name}**", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    if results.failures:
        lines += ["## What failed", "", *(f"- {failure}" for failure in results.failures)]
    return "\n".join(lines).rstrip() + "\n"


def _disk(results: Results) -> list[str]:
    names = list(results.disk)
    moments = list(dict.fromkeys(moment for found in results.disk.values() for moment in found))
    rows = [
        (moment, *(f"{results.disk[name].get(moment, 0) / (1 << 20):,.0f} MiB" for name in names))
        for moment in moments
    ]
    return table(("", *names), rows)
