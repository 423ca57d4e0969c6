"""The application: one kernel behind the interfaces of ASGI and of RSGI."""

from __future__ import annotations

from aegis.server.http.asgi import Asgi
from aegis.server.http.rsgi import Rsgi

__all__ = ["App"]


class App(Asgi, Rsgi):
    """An application for any ASGI server, and for granian's RSGI."""
