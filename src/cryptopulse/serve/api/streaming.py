"""A response that is sent in pieces; a client that does not read is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Final

import structlog
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

UNREAD_S: Final = 30.0
"""A client that has not read for this long is dropped. The streams of Starlette and FastAPI have no such limit."""

_log = structlog.get_logger()


class DeadlineStream(StreamingResponse):
    """Sends `content` as it is produced."""

    def __init__(
        self,
        content: AsyncIterator[bytes] | Iterator[bytes],
        headers: Mapping[str, str],
        media_type: str,
        ended: Callable[[], None],
    ) -> None:
        """`ended` is called when the response has ended, whatever the reason."""
        super().__init__(content, 200, headers, media_type)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            async with asyncio.timeout(UNREAD_S):
                await send(message)

        try:
            async with aclosing(self.body_iterator):  # type: ignore[type-var]
                await super().__call__(scope, receive, sending)
        except TimeoutError:  # the server closes the connection, because the response is not finished
            _log.warning("sse_client_dropped", because="it did not read", after_s=UNREAD_S)
        finally:
            self._ended()
