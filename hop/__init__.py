# Tangled from notebooks/08_server.ipynb. Edit the notebook.
"""hop: an event-loop HTTP/1.1 server for WSGI applications, written as a book."""

from hop.engine import Engine
from hop.errors import ClientDisconnected, ProtocolError
from hop.listener import ListenConfig
from hop.parser import Limits
from hop.server import Server
from hop.storage import Storage

__all__ = [
    "ClientDisconnected",
    "Engine",
    "Limits",
    "ListenConfig",
    "ProtocolError",
    "Server",
    "Storage",
]
