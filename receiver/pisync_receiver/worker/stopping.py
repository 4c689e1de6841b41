"""When a worker ends: asked by a signal, it finishes the step under way."""

import asyncio


class Stopping:
    """Whether the end was asked for, and waiting that such a request cuts short."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def ask(self) -> None:
        self._asked.set()

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until the end is asked for."""
        try:
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        except TimeoutError:
            pass
