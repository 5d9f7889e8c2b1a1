"""Requests and changes of weights take turns, so that every response comes from one policy version."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager


class VersionGate:
    """Lets many requests in, or one change of version. For one event loop.

    A change waits for the requests that are inside; those that come meanwhile wait for the change.
    """

    def __init__(self, version: int | None) -> None:
        self.version = version  # a change sets it, inside
        self._num_inside = 0
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def is_open(self) -> bool:
        return self._is_open.is_set()

    @asynccontextmanager
    async def request(self) -> AsyncIterator[int | None]:
        """Inside, the version is the one that is given, from the first token to the last."""
        while not self._is_open.is_set():
            await self._is_open.wait()
        with self._inside():
            yield self.version

    @asynccontextmanager
    async def change(self, *, drain_s: float) -> AsyncIterator[None]:
        """Inside, no request is. One change at a time.

        Raises `TimeoutError` where requests are still inside after `drain_s`; the gate is then as it was. A block that fails
        leaves the gate shut: nobody knows which version a request would meet.
        """
        self._is_open.clear()
        try:
            async with asyncio.timeout(drain_s):
                await self._is_empty.wait()
        except BaseException:
            self._is_open.set()
            raise
        yield
        self._is_open.set()

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Nothing is awaited at its end: a request that is cancelled leaves as well."""
        self._num_inside += 1
        self._is_empty.clear()
        try:
            yield
        finally:
            self._num_inside -= 1
            if not self._num_inside:
                self._is_empty.set()
