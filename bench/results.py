"""What a run has measured, and how it goes into a file and comes back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measuring import Sample, median
from bench.workloads import Work

ACKORD = "Ackord"


@dataclass(slots=True)
class Results:
    """``samples``: by cell and system, one for each round. ``failures``: what went wrong, in words."""

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    systems: dict[str, dict[str, str]] = field(default_factory=dict)
    disk: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, cell: str, system: str, sample: Sample) -> None:
        self.samples.setdefault(cell, {}).setdefault(system, []).append(sample)

    def medians(self, cell: str) -> dict[str, Sample]:
        """By system."""
        return {name: median(found) for name, found in self.samples.get(cell, {}).items() if found}

    def median(self, work: Work, system: str = ACKORD) -> Sample | None:
        return self.medians(work.name).get(system)

    def peers(self, work: Work) -> dict[str, Sample]:
        """The other systems' medians."""
        return {name: found for name, found in self.medians(work.name).items() if name != ACKORD}

    def rate_max(self, system: str, kind: str = "put") -> float:
        """The highest median rate of all cells of this work in which callers make single-row calls."""
        rates = [
            self.medians(cell)[system].rows_per_s
            for cell, found in self.samples.items()
            if cell.startswith(f"{kind}, ") and ", paced," not in cell and system in found
        ]
        return max(rates, default=0.0)

    # -------------------------------------------------------------------------------- on disk

    def save(self, path: Path) -> None:
        content = {
            "machine": self.machine,
            "options": self.options,
            "systems": self.systems,
            "disk_bytes": self.disk,
            "failures": self.failures,
            "samples": {
                cell: {system: [sample.to_json() for sample in found] for system, found in by_system.items()}
                for cell, by_system in self.samples.items()
            },
        }
        path.write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        content = json.loads(path.read_text())
        samples = {
            cell: {system: [Sample(**sample) for sample in found] for system, found in by_system.items()}
            for cell, by_system in content["samples"].items()
        }
        return cls(
            samples,
            content["failures"],
            content["machine"],
            content["options"],
            content["systems"],
            content["disk_bytes"],
        )
