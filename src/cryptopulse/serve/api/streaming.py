"""A response that is sent piece by piece, to one who reads it: who does not is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Final

import structlog
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

UNREAD_S: Final = 30.0
"""Who has not read for so long is dropped. Neither Starlette's nor FastAPI's own streams have such a bound."""

_log = structlog.get_logger()


class DeadlineStream(StreamingResponse):
    """`content`, as it is made."""

    def __init__(
        self,
        content: AsyncIterator[bytes] | Iterator[bytes],
        headers: Mapping[str, str],
        media_type: str,
        ended: Callable[[], None],
    ) -> None:
        """`ended` is called when nothing more is sent, however that came."""
        super().__init__(content, 200, headers, media_type)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            async with asyncio.timeout(UNREAD_S):
                await send(message)

        try:
            async with aclosing(self.body_iterator):  # type: ignore[type-var]
                await super().__call__(scope, receive, sending)
        except TimeoutError:  # the server closes the connection of an answer that was not finished
            _log.warning("sse_client_dropped", because="it did not read", after_s=UNREAD_S)
        finally:
            self._ended()
