"""News of a commit point travels with other messages, and not much later than alone."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from ackord_node.core import messages as m
from ackord_node.runtime.courier import NEWS_S, Courier

NEWS = [m.COMMIT, 7, 2, 41]
APPEND: list[Any] = [m.APPEND, 7, 2, 41, 2, 41, [], 0]
CONFIRM = [m.CONFIRM, 8, 3, 99, 5]


class Sent:
    """A transport that notes what it is given."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, m.Message, bool]] = []

    def send(self, node: str, message: m.Message, urgent: bool = False) -> bool:
        self.messages.append((node, message, urgent))
        return True


def courier() -> tuple[Courier, list[tuple[str, m.Message, bool]]]:
    sent = Sent()
    return Courier(cast(Any, sent)), sent.messages


async def test_news_leaves_with_the_next_message_to_the_node() -> None:
    c, sent = courier()
    c.send("n2", NEWS, True)
    c.send("n3", CONFIRM, True)
    assert sent == [("n3", CONFIRM, True)]
    c.send("n2", CONFIRM, True)
    assert sent[1:] == [("n2", NEWS, True), ("n2", CONFIRM, True)]


async def test_an_append_of_the_tablet_makes_the_news_needless() -> None:
    c, sent = courier()
    other = [m.COMMIT, 8, 2, 5]
    c.send("n2", NEWS, True)
    c.send("n2", other, True)
    c.send("n2", APPEND, False)
    assert sent == [("n2", other, True), ("n2", APPEND, False)]
    await asyncio.sleep(4 * NEWS_S)
    assert len(sent) == 2


async def test_news_leaves_alone_soon_and_only_the_newest() -> None:
    c, sent = courier()
    c.send("n2", NEWS, True)
    c.send("n2", [m.COMMIT, 7, 2, 42], True)
    assert sent == []
    async with asyncio.timeout(3):
        while not sent:
            await asyncio.sleep(NEWS_S)
    c.send("n2", NEWS, True)
    async with asyncio.timeout(3):
        while len(sent) < 2:
            await asyncio.sleep(NEWS_S)
    assert sent == [("n2", [m.COMMIT, 7, 2, 42], True), ("n2", NEWS, True)]
