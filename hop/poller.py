# Tangled from notebooks/02_poller.ipynb. Edit the notebook.
"""Poller.

One thread asks the kernel which of many sockets are ready, and sleeps while none is.
"""

import errno
import heapq
import itertools
import logging
import os
import select
import selectors
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

__all__ = [
    "BATCH",
    "HANGUP",
    "LONGEST_WAIT",
    "PASSING",
    "READ",
    "WRITE",
    "Acceptor",
    "EpollPoller",
    "Poller",
    "SelectorPoller",
    "Timer",
    "default_poller",
    "log",
]

#: Events: bytes (or the end of input, or a new connection) can be taken without waiting.
READ = 1
#: There is room to send.
WRITE = 4
#: The connection broke or is closed both ways; reported without being asked for.
HANGUP = 8 | 16


class Timer:
    """A function and the moment (seconds of the poller's clock) at which it is due.

    Calling the timer calls the function, once, and not at all after `cancel`.
    """

    __slots__ = ("fn", "when")

    def __init__(self, when: float, fn: Callable[[], object]) -> None:
        self.when = when
        self.fn: Callable[[], object] | None = fn

    def __call__(self) -> None:
        fn, self.fn = self.fn, None
        if fn is not None:
            fn()

    def cancel(self) -> None:
        """Never call the function. Cancelling again, or too late, does nothing."""
        self.fn = None


class Poller(ABC):
    """Watches descriptors, keeps timers, and can be woken from any thread.

    Everything but `wake` belongs to the one thread that polls. Readiness is
    level-triggered: what was reported and not dealt with is reported again.
    `now` is the clock (seconds) as it stood when `poll` last returned.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock()
        self._clock = clock
        self._wake_pending = threading.Lock()
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_number = itertools.count()
        self._tidy_at = 64
        self._closed = False

    @abstractmethod
    def register(self, fd: int, events: int, exclusive: bool = False) -> None:
        """Watch `fd` for READ, WRITE or both; HANGUP is always watched.

        `exclusive`: of several processes that watch a shared listener, wake one rather
        than all (EPOLLEXCLUSIVE; ignored where the kernel lacks it). KeyError if `fd` is
        registered already, ValueError if `events` asks for nothing or something else.
        """

    @abstractmethod
    def modify(self, fd: int, events: int) -> None:
        """Watch a registered `fd` for other events. KeyError if it is not registered."""

    @abstractmethod
    def unregister(self, fd: int) -> None:
        """Forget `fd`: to be called before it is closed. KeyError if it is not registered."""

    @abstractmethod
    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait up to `timeout` seconds (None: for ever) and return pairs of fd and events.

        Returns early for a wake-up, which is not in the list, and when a timer is due.
        ValueError after `close`.
        """

    def call_later(self, delay: float, fn: Callable[[], object]) -> Timer:
        """Make `fn` due in `delay` seconds; functions of one moment keep their order."""
        if len(self._timers) >= self._tidy_at:
            self._timers = [entry for entry in self._timers if entry[2].fn is not None]
            heapq.heapify(self._timers)
            self._tidy_at = max(64, 2 * len(self._timers))
        timer = Timer(self._clock() + delay, fn)
        heapq.heappush(self._timers, (timer.when, next(self._timer_number), timer))
        return timer

    def due(self) -> list[Timer]:
        """Take out the timers whose time had come at `now`; the caller calls them."""
        ready = []
        while self._timers and self._timers[0][0] <= self.now:
            timer = heapq.heappop(self._timers)[2]
            if timer.fn is not None:
                ready.append(timer)
        return ready

    def _shorten(self, timeout: float | None) -> float | None:
        while self._timers[0][2].fn is None:
            heapq.heappop(self._timers)
            if not self._timers:
                return timeout
        wait = self._timers[0][0] - self._clock()
        if timeout is not None and timeout < wait:
            wait = timeout
        if wait < 0.0:
            return 0.0
        if wait > LONGEST_WAIT:
            return LONGEST_WAIT
        return wait

    def wake(self) -> None:
        """Let the present or the next `poll` return at once; from any thread, or a signal.

        Many calls before a `poll` cost one system call. After `close` it does nothing.
        """
        if self._wake_pending.acquire(blocking=False):
            self._ring()

    def _swallow(self, events: list[tuple[int, int]], bell: tuple[int, int]) -> None:
        if bell in events:
            events.remove(bell)
            self._hush()
            self._wake_pending.release()

    @abstractmethod
    def _ring(self) -> None:
        """Make the wake descriptor readable; from any thread."""

    @abstractmethod
    def _hush(self) -> None:
        """Wait until the wake descriptor is readable, and empty it."""

    @abstractmethod
    def _release(self) -> None:
        """Close the back end's own descriptors."""

    def close(self) -> None:
        """Release the kernel's objects, not the descriptors watched. Twice does no harm."""
        if not self._closed:
            self._closed = True
            if not self._wake_pending.acquire(blocking=False):
                self._hush()
            self._release()


def _checked(events: int) -> int:
    if events not in (READ, WRITE, READ | WRITE):
        raise ValueError(f"events must be READ, WRITE or both, not {events!r}")
    return events


def _unknown(fd: int, error: OSError) -> Exception:
    if error.errno in (errno.ENOENT, errno.EBADF):
        return KeyError(f"descriptor {fd} is not registered")
    return error


class EpollPoller(Poller):
    """The poller on Linux: epoll, called directly, with an eventfd to wake it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._epoll = select.epoll()
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC)
        self._bell = (self._eventfd, READ)
        self._epoll.register(self._eventfd, READ)

    def register(self, fd: int, events: int, exclusive: bool = False) -> None:
        flags = _checked(events) | (select.EPOLLEXCLUSIVE if exclusive else 0)
        try:
            self._epoll.register(fd, flags)
        except FileExistsError:
            raise KeyError(f"descriptor {fd} is registered already") from None

    def modify(self, fd: int, events: int) -> None:
        try:
            self._epoll.modify(fd, _checked(events))
        except OSError as error:
            raise _unknown(fd, error) from None

    def unregister(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except OSError as error:
            raise _unknown(fd, error) from None

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        if self._timers:
            timeout = self._shorten(timeout)
        events = self._epoll.poll(timeout, BATCH)
        self.now = self._clock()
        if self._wake_pending.locked():
            self._swallow(events, self._bell)
        return events

    def _ring(self) -> None:
        os.eventfd_write(self._eventfd, 1)

    def _hush(self) -> None:
        os.eventfd_read(self._eventfd)

    def _release(self) -> None:
        self._epoll.close()
        os.close(self._eventfd)


#: Events that one call of epoll returns at most; the rest stay first in the kernel's queue.
BATCH = 512

#: Seconds: no sleep before a timer is longer (epoll's time-out is 32 bits of milliseconds).
LONGEST_WAIT = 86400.0

_FOR_SELECTOR = {
    READ: selectors.EVENT_READ,
    WRITE: selectors.EVENT_WRITE,
    READ | WRITE: selectors.EVENT_READ | selectors.EVENT_WRITE,
}
_FROM_SELECTOR = {mask: events for events, mask in _FOR_SELECTOR.items()}


class SelectorPoller(Poller):
    """The poller everywhere: the standard library's best selector and a socket pair.

    It cannot tell a hang-up from readiness: where epoll says HANGUP it says READ or WRITE,
    whichever was asked for, and the next `recv` or `send` tells.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._selector = selectors.DefaultSelector()
        self._ear, self._mouth = socket.socketpair()
        self._bell = (self._ear.fileno(), READ)
        self._selector.register(self._ear.fileno(), selectors.EVENT_READ)

    def _ring(self) -> None:
        self._mouth.send(b"!")

    def _hush(self) -> None:
        self._ear.recv(1)

    def register(self, fd: int, events: int, exclusive: bool = False) -> None:
        self._selector.register(fd, _FOR_SELECTOR[_checked(events)])

    def modify(self, fd: int, events: int) -> None:
        self._selector.modify(fd, _FOR_SELECTOR[_checked(events)])

    def unregister(self, fd: int) -> None:
        self._selector.unregister(fd)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        if self._closed:
            raise ValueError("the poller is closed")
        if self._timers:
            timeout = self._shorten(timeout)
        ready = self._selector.select(timeout)
        self.now = self._clock()
        events = [(key.fd, _FROM_SELECTOR[mask]) for key, mask in ready]
        if self._wake_pending.locked():
            self._swallow(events, self._bell)
        return events

    def _release(self) -> None:
        self._selector.close()
        self._ear.close()
        self._mouth.close()


def default_poller(clock: Callable[[], float] = time.monotonic) -> Poller:
    """The best poller here, or the one that HOP_POLLER ("epoll", "selector") names.

    ValueError for another name.
    """
    name = os.environ.get("HOP_POLLER") or ("epoll" if hasattr(select, "epoll") else "selector")
    if name == "epoll":
        return EpollPoller(clock)
    if name == "selector":
        return SelectorPoller(clock)
    raise ValueError(f"HOP_POLLER must be epoll or selector, not {name!r}")


log = logging.getLogger("hop.error")

# accept(2): errors of the one connection that was to be accepted, not of the listener.
PASSING = frozenset({
    errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.ENOPROTOOPT,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EOPNOTSUPP,
})


class Acceptor:
    """Takes connections from a non-blocking listener and hands them to `deliver`.

    At most `batch` at a time, so that a crowd at the door does not starve those inside.
    When the listener fails (out of descriptors or memory) it leaves the poller and comes
    back after `pause` seconds. The thread that polls calls `on_readable`.
    """

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        deliver: Callable[[socket.socket], object],
        *,
        batch: int = 64,
        pause: float = 0.1,
        exclusive: bool = False,
    ) -> None:
        self.sock = sock
        self._poller = poller
        self._deliver = deliver
        self._batch = batch
        self._pause = pause
        self._exclusive = exclusive
        self._watching = False
        self._complained = False
        self._retry: Timer | None = None
        self.resume()

    def fileno(self) -> int:
        """The listener's descriptor."""
        return self.sock.fileno()

    def pause(self) -> None:
        """Accept nothing until `resume`; who connects waits in the kernel's backlog."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._watching:
            self._poller.unregister(self.sock.fileno())
            self._watching = False

    def resume(self) -> None:
        """Accept (again)."""
        self.pause()
        self._poller.register(self.sock.fileno(), READ, self._exclusive)
        self._watching = True

    def close(self) -> None:
        """Stop accepting and close the listener."""
        self.pause()
        self.sock.close()

    def on_readable(self) -> int:
        """Accept what waits, up to `batch`; returns how many were delivered."""
        delivered = 0
        for _ in range(self._batch):
            if not self._watching:
                return delivered
            try:
                connection, _address = self.sock.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in PASSING:
                    continue
                self._step_back(error)
                return delivered
            connection.setblocking(False)
            delivered += 1
            self._deliver(connection)
        self._complained = False
        return delivered

    def _step_back(self, error: OSError) -> None:
        if not self._complained:
            log.error("accept failed, trying again every %g s: %s", self._pause, error)
            self._complained = True
        self.pause()
        self._retry = self._poller.call_later(self._pause, self.resume)
