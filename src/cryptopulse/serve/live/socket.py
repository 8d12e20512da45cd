"""The WebSocket over which a page gets its topics.

A page sends `{"topics": […]}`, all that it wants from now on, as often as it likes. It gets JSON lists of messages
(`Message.text`), each made once for all pages, and after two quiet seconds an empty list, so that it can tell a
connection that is dead from one on which nothing happens.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import msgspec
from fastapi import WebSocket, WebSocketDisconnect

from cryptopulse.serve.live.live import Live, Subscription

PATH: Final = "/live"
"""Where the socket is."""
QUIET_S: Final = 2.0
"""After so long without a message an empty list is sent."""

_TOPICS_MAX = 16
_TOPIC_LETTERS_MAX = 80
_GOING_AWAY, _REFUSED, _NOT_UNDERSTOOD = 1001, 1008, 1007


class _Wanted(msgspec.Struct):
    topics: list[str]


async def serve_socket(socket: WebSocket, live: Live) -> None:
    """Serves one page until it goes or `live` ends. A page of another site is refused."""
    if not _is_own(socket):
        await socket.close(_REFUSED)
        return
    await socket.accept()
    async with live.subscribe() as subscription:
        tasks = [asyncio.create_task(work(socket, subscription)) for work in (_listen, _send)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _is_own(socket: WebSocket) -> bool:
    """Browsers name the site of the page that opens a socket, and let any page open one to anywhere."""
    origin = socket.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == socket.headers.get("host")


async def _listen(socket: WebSocket, subscription: Subscription) -> None:
    with suppress(WebSocketDisconnect):
        while True:
            try:
                wanted = msgspec.json.decode(await socket.receive_text(), type=_Wanted)
            except (msgspec.DecodeError, KeyError):
                await socket.close(_NOT_UNDERSTOOD)
                return
            topics = {topic for topic in wanted.topics[:_TOPICS_MAX] if len(topic) <= _TOPIC_LETTERS_MAX}
            subscription.set(topics)


async def _send(socket: WebSocket, subscription: Subscription) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):  # gone meanwhile
        while True:
            try:
                async with asyncio.timeout(QUIET_S):
                    batch = await subscription.batch()
            except TimeoutError:
                await socket.send_text("[]")
                continue
            if not batch:
                await socket.close(_GOING_AWAY)
                return
            await socket.send_text(f"[{','.join([message.text for message in batch])}]")
