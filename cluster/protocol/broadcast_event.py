"""Broadcast event: wakes all waiters of an event loop, from any thread."""

import asyncio
import contextlib


class BroadcastEvent:
    """Event that wakes those that wait when it is set. Created in the event loop that waits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake all waiters. Callable from any thread, also after the loop has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake)

    async def wait(self, seconds: float) -> None:
        """Wait until the event is set, at most this long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), max(seconds, 0.0))

    def _wake(self) -> None:
        self._event.set()
        self._event = asyncio.Event()
