"""Messages to peers on their way to the transport: news of a commit point travels with others.

A replica needs it to answer reads of what was just written, and nothing else waits for it. Where writes go on, the next
append or confirmation to that node leaves within a millisecond or two, and a frame of its own would cost as much as
that one: two of the eight that a write takes.
"""

from __future__ import annotations

import asyncio

from ackord_node.core import messages as m
from ackord_node.ports import PeerTransport

NEWS_S = 0.002  # a commit point waits no longer for other messages to the node


class Courier:
    def __init__(self, transport: PeerTransport) -> None:
        self._transport = transport
        self._news: dict[str, dict[int, m.Message]] = {}  # by node and tablet
        self._is_timed = False

    def send(self, node: str, message: m.Message, urgent: bool) -> None:
        kind, tablet = message[0], message[1]
        if kind == m.COMMIT:
            self._news.setdefault(node, {})[tablet] = message
            if not self._is_timed:
                self._is_timed = True
                asyncio.get_running_loop().call_later(NEWS_S, self._tell)
            return
        news = self._news.pop(node, None)
        if news is not None:
            if kind == m.APPEND:
                news.pop(tablet, None)  # it carries the commit point itself
            for told in news.values():
                self._transport.send(node, told, True)
        self._transport.send(node, message, urgent)

    def _tell(self) -> None:
        self._is_timed = False
        news, self._news = self._news, {}
        for node, tablets in news.items():
            for message in tablets.values():
                self._transport.send(node, message, True)
