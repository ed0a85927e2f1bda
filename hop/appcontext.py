# Tangled from notebooks/05_response.ipynb. Edit the notebook.
"""What a handler may know about its request and its connection."""

from typing import Protocol

__all__ = ["Client", "RequestContext"]


class Client(Protocol):
    """What the context asks of a connection."""

    def peer_name(self) -> tuple[str, int] | str:
        """The address of the other end."""

    def gone(self) -> bool:
        """Whether the other end has left."""


class RequestContext:
    """`environ["hop.context"]`: who asks, until when, and whether they still wait.

    `deadline` is a reading of `time.monotonic()` after which the answer is no longer wanted, or
    None when the engine sets no `request_timeout`.
    """

    __slots__ = ("conn", "deadline")

    def __init__(self, conn: Client, deadline: float | None) -> None:
        self.conn = conn
        self.deadline = deadline

    @property
    def remote_address(self) -> tuple[str, int] | str:
        """`(host, port)` of the client; for a unix socket its path, mostly empty."""
        return self.conn.peer_name()

    @property
    def gone(self) -> bool:
        """True once the client has closed its end; nobody will read the answer."""
        return self.conn.gone()
