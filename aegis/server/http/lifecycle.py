"""How an application is opened and closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aegis.errors import AegisError, NotReady

__all__ = ["Lifecycle"]


@dataclass(slots=True)
class Lifecycle:
    """How the application is opened and closed; opening is tried again after a failure."""

    opening: Callable[[], Awaitable[None]]
    stopping: Callable[[], None]
    closing: Callable[[], Awaitable[None]]
    reloading: Callable[[], None] = lambda: None
    is_open: bool = False
    is_closing: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def open(self) -> None:
        """Open once, whoever asks first.

        Raises:
            NotReady: It cannot be opened, and why.
        """
        async with self.lock:
            if self.is_open:
                return
            if self.is_closing:
                raise NotReady("the server is stopping")
            try:
                await self.opening()
            except AegisError as error:
                raise NotReady(str(error)) from error
            self.is_open = True

    async def close(self) -> None:
        """Close what was opened."""
        self.is_closing = True
        async with self.lock:
            if self.is_open:
                self.is_open = False
                await self.closing()
