"""`/ws-websockets-event`: the same protocol as /ws-websockets-std, without the thread.

Nothing of the `websockets` library's protocol had to change, for it never knew who waits. There
a thread sits in `recv`; here the poller calls `received` when something has arrived.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from examples import stats
from examples.upgrade import give, refusable, take_over
from examples.ws_websockets_std import Echo

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse


def received(channel: Any, data: bytes) -> None:
    """Answer these bytes; the protocol says when nothing more will follow."""
    output = channel.data.received(data)
    over = output and not output[-1]
    if whole := b"".join(output):
        give(channel, whole)
    if over:
        channel.close()


@refusable
def application(environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
    """Accept, and let `received` be called whenever something arrives."""
    echo = Echo()
    response = echo.accept(environ)
    channel = take_over(environ, received, stats.left("ws-websockets-event"))
    channel.data = echo
    stats.joined("ws-websockets-event")
    status = f"{response.status_code} {response.reason_phrase}"
    start_response(status, [f for f in response.headers.raw_items() if f[0] != "Connection"])
    return []
