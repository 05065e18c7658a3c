"""Something happened: whoever waits for that in an event loop is told, from whatever thread."""

import asyncio
import contextlib


class Bell:
    """Rings for all who wait at that moment. Made in the event loop that waits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def ring(self) -> None:
        """May be called from any thread, also after the loop has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ring)

    async def wait(self, seconds: float) -> None:
        """Until it rings, or this long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), max(seconds, 0.0))

    def _ring(self) -> None:
        self._event.set()
        self._event = asyncio.Event()
