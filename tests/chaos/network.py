"""The run's network: a bridge, one namespace per machine, and which packets are lost between them.

Packets are lost where they arrive, so each direction of a pair can be cut alone. Faults that overlap add up: a
pair is whole again once every fault that cut it has ended. A cut drops silently, as a broken switch does, or
answers with resets, as a firewall does or a machine whose process died.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.chaos.sandbox import run

BRIDGE = "ackord0"
CLIENT = "client"
SUBNET = "10.77.0"
VERDICTS = {"drop": "drop", "reset": "ip protocol tcp reject with tcp reset"}


@dataclass(frozen=True, order=True, slots=True)
class Cut:
    """What ``source`` sends does not arrive at ``target``."""

    source: str
    target: str
    verdict: str = "drop"


def both_ways(ours: Iterable[str], theirs: Collection[str], verdict: str = "drop") -> list[Cut]:
    """Nothing passes between the two groups."""
    return [
        cut
        for one in ours
        for other in theirs
        for cut in (Cut(one, other, verdict), Cut(other, one, verdict))
    ]


class Network:
    """``names`` become machines; the process that makes it is the machine ``client``, on the bridge itself."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self.addresses = {name: f"{SUBNET}.{number}" for number, name in enumerate(self.names, start=11)}
        self.addresses[CLIENT] = f"{SUBNET}.1"
        self._cuts: Counter[Cut] = Counter()
        self._changing = threading.Lock()

    def create(self) -> None:
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{self.addresses[CLIENT]}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for name in self.names:
            port = f"port-{name}"
            run("ip", "netns", "add", name)
            run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", port, "master", BRIDGE, "up")
            run("ip", "-n", name, "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")

    def wrapper(self, name: str) -> tuple[str, ...]:
        """The command that runs another one on that machine, in its own place (the process id stays)."""
        return ("nsenter", f"--net=/run/netns/{name}")

    @asynccontextmanager
    async def cut(self, cuts: Collection[Cut]) -> AsyncIterator[None]:
        """While the block runs."""
        try:
            await asyncio.to_thread(self._change, cuts, 1)
            yield
        finally:
            await asyncio.to_thread(self._change, cuts, -1)

    def _change(self, cuts: Collection[Cut], by: int) -> None:
        with self._changing:
            for cut in cuts:
                self._cuts[cut] += by
            for name in sorted({self._place(cut) for cut in cuts}):
                run(*self.wrapper(name), "nft", "-f", "-", text=self._rules(name))

    @staticmethod
    def _place(cut: Cut) -> str:
        """The machine whose filter makes the cut; the client has none."""
        return cut.source if cut.target == CLIENT else cut.target

    def _rules(self, name: str) -> str:
        chains: dict[str, list[str]] = {"input": [], "output": []}
        for cut in sorted(cut for cut, count in self._cuts.items() if count > 0 and self._place(cut) == name):
            if cut.target == CLIENT:
                match, chain = f"ip daddr {self.addresses[CLIENT]}", "output"
            else:
                match, chain = f"ip saddr {self.addresses[cut.source]}", "input"
            chains[chain].append(f"{match} {VERDICTS[cut.verdict]}")
        text = ["table ip chaos", "delete table ip chaos", "table ip chaos {"]
        for chain, rules in chains.items():
            text += [
                f"chain {chain} {{",
                f"type filter hook {chain} priority 0; policy accept;",
                *rules,
                "}",
            ]
        return "\n".join([*text, "}", ""])
