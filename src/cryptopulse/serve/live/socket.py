"""The WebSocket over which a page gets its topics.

A page sends `{"topics": […]}`, all topics that it wants from now on. It may send that again: only the newest request
counts, and it takes effect at once a few times, then at most twice a second. If a page sends continuously, two of its
messages a second are read. It gets JSON lists of messages (`LiveMessage.text`), each encoded once for all pages, and an
empty list after two quiet seconds, so that it can tell a dead connection from a quiet one.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import msgspec
from fastapi import WebSocket, WebSocketDisconnect

from cryptopulse.serve.live.hub import Live, Subscription
from cryptopulse.token_bucket import TokenBucket

PATH: Final = "/live"
"""The path of the socket."""
QUIET_S: Final = 2.0
"""After this time without a message an empty list is sent."""

_TOPICS_MAX = 16
_TOPIC_LETTERS_MAX = 80
_REQUESTS_AT_ONCE, _REQUEST_EVERY_S = 5, 0.5  # a page that mounts its parts sends several within a moment
_MESSAGES_AT_ONCE, _MESSAGE_EVERY_S = 15, 0.5
_GOING_AWAY, _NOT_UNDERSTOOD, _REFUSED = 1001, 1007, 1008


class _Wanted(msgspec.Struct):
    topics: list[str]


async def serve_socket(socket: WebSocket, live: Live) -> None:
    """Serves one page until it leaves or `live` ends. Refuses pages of other sites."""
    # Browsers let any page open a socket to any site, but send the page's origin.
    origin = socket.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != socket.headers.get("host"):
        await socket.close(_REFUSED)
        return
    await socket.accept()
    async with live.subscribe() as subscription:
        tasks = [asyncio.create_task(work(socket, subscription)) for work in (_receive, _send)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _receive(socket: WebSocket, subscription: Subscription) -> None:
    requests = TokenBucket(_REQUESTS_AT_ONCE, _REQUEST_EVERY_S)
    messages = TokenBucket(_MESSAGES_AT_ONCE, _MESSAGE_EVERY_S)
    newest: tuple[str, ...] = ()
    timer: asyncio.TimerHandle | None = None

    def subscribe() -> None:
        nonlocal timer
        timer = None
        requests.take(time.monotonic())
        subscription.set(newest)

    try:
        while True:
            topics = msgspec.json.decode(await socket.receive_text(), type=_Wanted).topics[:_TOPICS_MAX]
            newest = tuple(dict.fromkeys(topic for topic in topics if len(topic) <= _TOPIC_LETTERS_MAX))
            if timer is None:  # else the running timer applies the newest request
                timer = asyncio.get_running_loop().call_later(requests.wait_s(time.monotonic()), subscribe)
            if not messages.take(now_s := time.monotonic()):
                await asyncio.sleep(messages.wait_s(now_s))
                messages.take(time.monotonic())
    except (msgspec.DecodeError, KeyError):
        await socket.close(_NOT_UNDERSTOOD)
    except WebSocketDisconnect:
        return
    finally:
        if timer is not None:
            timer.cancel()


async def _send(socket: WebSocket, subscription: Subscription) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):  # the page has left
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
