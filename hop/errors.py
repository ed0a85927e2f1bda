# Tangled from notebooks/03_connection.ipynb. Edit the notebook.
"""Two ways in which a conversation fails, and what each deserves."""

from http import HTTPStatus

__all__ = ["ClientDisconnected", "ProtocolError"]


class ProtocolError(Exception):
    """The client broke the protocol; the exception knows the answer it deserves.

    `status` is the status of that answer and `reason` a short ASCII sentence for its body.
    Nothing behind the offending byte is read again (RFC 9112, section 2.2).
    """

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(f"{status.value} {status.phrase}: {reason}")
        self.status = status
        self.reason = reason


class ClientDisconnected(ConnectionError):
    """The client went away, or would not read, while it was being answered."""
