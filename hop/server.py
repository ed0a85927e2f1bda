# Tangled from notebooks/08_server.ipynb. Edit the notebook.
"""Server.

Wiring, options, signals, and an end that loses nobody.
"""

import contextlib
import dataclasses
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import accumulate, chain, repeat, takewhile
from types import FrameType
from typing import Any, NoReturn

from hop.adaptor import ErrorStream, base_environ
from hop.engine import ConnectionState, Engine
from hop.hijack import Bridge
from hop.leader import LeaderFollowers, Monitor
from hop.listener import ListenConfig, close_listener, describe, open_listener, open_sibling
from hop.poller import Acceptor, Poller, default_poller

__all__ = ["STOP", "Processes", "Server"]

error_log = logging.getLogger("hop.error")

STOP = (signal.SIGTERM, signal.SIGINT)  # what a supervisor sends, and what Ctrl-C sends


def _timeouts(
    idle: float | None,
    head: float | None,
    body: float | None,
    call: float | None,
    output: float | None,
    linger: float | None,
) -> dict[ConnectionState, float | None]:
    """How long a connection may stay in each state, in seconds."""
    return {
        ConnectionState.IDLE: idle,
        ConnectionState.HEAD: head,
        ConnectionState.BODY: body,
        ConnectionState.PAUSED: body,
        ConnectionState.CALL: call,
        ConnectionState.FLUSHING: output,
        ConnectionState.CLOSING: output,
        ConnectionState.REFUSING: output,
        ConnectionState.LINGERING: linger,
        ConnectionState.UPGRADED: None,  # it has deadlines of its own
        ConnectionState.HIJACKED: None,
        ConnectionState.CLOSED: None,
    }


SPARE = 64  # descriptors left to the application


def _room() -> int:
    """How many connections the descriptor limit allows."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, (1 << 20 if limit == resource.RLIM_INFINITY else limit) - SPARE)


class Server:
    """Serves an engine on listening sockets, once.

    Times are seconds, sizes bytes, and None switches a limit off. `keep_alive_timeout`: an idle
    connection; `read_timeout`: a head, from its first byte; `body_timeout`: a body, and one second
    more for each KiB; `write_timeout`: a client that takes nothing of its answer;
    `linger_timeout`: one that was refused and does not close; `shutdown_timeout`: what is in
    flight when a signal ends the server. `max_unsent` is what one connection may keep of its
    answer before the application is paused. `max_hijacked` threads may be lent for good to
    connections that left HTTP, beyond `max_threads`. `max_connections` is by default what the
    descriptor limit allows; beyond it clients wait in the kernel's backlog.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        pollers: int = 1,
        processes: int = 1,
        max_threads: int = 64,
        max_hijacked: int = 1000,
        max_connections: int | None = None,
        buffer_size: int = 1 << 16,
        max_unsent: int = 1 << 20,
        keep_alive_timeout: float | None = 30.0,
        read_timeout: float | None = 10.0,
        body_timeout: float | None = 30.0,
        write_timeout: float | None = 30.0,
        linger_timeout: float = 2.0,
        shutdown_timeout: float | None = 30.0,
        listen: ListenConfig | None = None,
    ) -> None:
        self.engine, engine.bridge = engine, Bridge(max_hijacked)
        self.pollers, self.processes, self.max_threads = pollers, processes, max_threads
        self.max_connections = _room() if max_connections is None else max_connections
        self.buffer_size, self.max_unsent = buffer_size, max_unsent
        self.timeouts = _timeouts(
            keep_alive_timeout, read_timeout, body_timeout,
            engine.request_timeout, write_timeout, linger_timeout,
        )  # fmt: skip
        self.shutdown_timeout = shutdown_timeout
        self.listen = listen or ListenConfig()
        self.addresses: list[str] = []
        self.started, self.finished = threading.Event(), threading.Event()
        self._prepare()

    def _prepare(self) -> None:
        """The state of a server that has not begun."""
        self._listeners: list[socket.socket] = []
        self._groups: list[LeaderFollowers] = []
        self._monitor: Monitor | None = None
        self._family: Processes | None = None
        self._deadline: float | None = None
        self._ending = self._cut = False

    def _base_environ(self, listener: socket.socket) -> dict[str, Any]:
        """What environ says about the listener, the same for all of its connections."""
        name = listener.getsockname()
        host, port = name[:2] if isinstance(name, tuple) else ("localhost", 80)
        return base_environ(
            "localhost" if host in ("", "::", "0.0.0.0") else host,
            str(port),
            ErrorStream(error_log),
            multithread=self.max_threads > 1 or self.pollers > 1,
            multiprocess=self.processes > 1,
        )

    def _group(self) -> LeaderFollowers:
        """A poller and its threads, and a door for every listener."""
        group = LeaderFollowers(
            default_poller(),
            self.engine,
            timeouts=self.timeouts,
            buffer_size=self.buffer_size,
            max_unsent=self.max_unsent,
            max_threads=self.max_threads,
            max_connections=max(1, self.max_connections // self.pollers),
        )
        for listener in self._listeners:
            base = self._base_environ(listener)
            shared = self.pollers > 1 or (self.processes > 1 and not _dealt(listener))
            door = (SharedDoor if shared else Acceptor)(
                group.poller,
                listener.dup(),
                lambda sock, base=base: group.admit(sock, base),  # type: ignore[misc]
            )
            group.acceptors[door.fileno()] = door
        return group

    def close_listeners(self) -> None:
        """Let nobody else connect; from any thread, and as often as one likes."""
        with contextlib.suppress(IndexError):
            while True:
                close_listener(self._listeners.pop())

    def _drain_group(self, group: LeaderFollowers) -> None:
        """Two letters, from the leader to itself: it reads both before it may end."""
        group.drain()
        group.post(self._door_closed)

    def _door_closed(self, _: object = None) -> None:
        """A group has let in who waited. After the last one nobody may connect any more."""
        if not any(group.acceptors for group in self._groups):
            self.close_listeners()

    def begin_shutdown(self, timeout: float | None = None) -> None:
        """As `shutdown`, without waiting; a second call ends the server at once."""
        if timeout is None:
            timeout = self.shutdown_timeout
        if self._ending:
            timeout = 0.0
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._ending = True
        self._drain()

    def _drain(self) -> None:
        for group in self._groups:
            group.post(self._drain_group, group)
        if self._monitor is not None:
            self._monitor.wake()
        if self._family is not None:
            self._family.ring()

    def shutdown(self, timeout: float | None = None) -> bool:
        """Stop gracefully and wait for it: accept what has completed its handshake, answer what
        is in flight, close what is idle; what is left after `timeout` seconds is cut off.

        To be called from another thread than `serve`. True when nothing had to be cut.
        """
        self.begin_shutdown(timeout)
        self.finished.wait()
        return not self._cut

    def _over(self) -> bool:
        """Whether every group has stopped, or the deadline has come."""
        if all(group.stopped.is_set() for group in self._groups):
            return True
        return self._ending and self._deadline is not None and time.monotonic() >= self._deadline

    def _end(self) -> None:
        """Cut off what is left, and say where it was stuck."""
        for group in self._groups:
            if not group.stopped.is_set():
                self._cut = True
                _log_stacks(group)
                group.stop()
        for group in self._groups:
            group.stopped.wait(1.0)

    @contextlib.contextmanager
    def _stopped_by(self, signals: tuple[signal.Signals, ...]) -> Iterator[None]:
        """Let signals end the server while the block runs, if this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {
            number: signal.signal(number, lambda *_: self.begin_shutdown()) for number in signals
        }
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def run(self, *, signals: tuple[signal.Signals, ...] = STOP) -> None:
        """Serve in this process, on the listeners that are open."""
        self._groups = [self._group() for _ in range(self.pollers)]
        self._monitor = Monitor(self._groups)
        with self._stopped_by(signals):
            try:
                for group in self._groups:
                    group.start()
                self.started.set()
                if self._ending:
                    self._drain()
                self._monitor.run(self._over, lambda: not self._ending)
            finally:
                self._end()

    def serve(self, *binds: str, announce: Callable[[list[str]], object] | None = None) -> None:
        """Serve on every bind (by default ":1826") until `shutdown` or a signal.

        `announce` is called with the addresses once clients can connect. Raises ValueError for
        a bind that is none and OSError for one that cannot be had. Several processes want the
        main thread.
        """
        try:
            if self.processes > 1 and DEALS:
                self.listen = dataclasses.replace(self.listen, reuse_port=True)
            for bind in binds or (":1826",):
                self._listeners.append(open_listener(bind, self.listen))
            self.addresses = [describe(listener) for listener in self._listeners]
            if announce is not None:
                announce(self.addresses)
            if self.processes > 1:
                Processes(self).run()
            else:
                self.run()
        finally:
            try:
                self.close_listeners()
            finally:
                self.finished.set()


class SharedDoor(Acceptor):
    """An acceptor of a listener that others watch, too: one client, then it is others' turn.

    The kernel wakes the first in its list of watchers; who registers anew goes to the end.
    """

    def __init__(
        self, poller: Poller, sock: socket.socket, deliver: Callable[[socket.socket], object]
    ) -> None:
        super().__init__(poller, sock, deliver, batch=1, exclusive=True)

    def on_readable(self) -> int:
        delivered = super().on_readable()
        if delivered and self._watching:
            self.resume()
        return delivered


def _dealt(listener: socket.socket) -> bool:
    """Whether the kernel deals connections out to several listeners on this one's port."""
    return listener.family != socket.AF_UNIX and bool(
        listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
    )


LOOKING = threading.Lock()  # the garbage collector is kept still by one observer at a time


def has_gil() -> bool:
    """Whether this interpreter has the GIL, without which frames cannot be read safely."""
    return not hasattr(sys, "_is_gil_enabled") or sys._is_gil_enabled()


def snapshot() -> dict[int, list[FrameType]]:
    """The frames of each thread, the innermost first, by its number. Empty without the GIL.

    The walk is one call into C without a run of the garbage collector: no thread moves meanwhile.
    """
    if not has_gil():
        return {}
    taken: dict[int, dict[int, FrameType]] = {}
    current = map(taken.setdefault, (0,), iter(sys._current_frames, None))
    innermost = chain.from_iterable(map(dict.values, current))
    links: Any = map(chain, zip(innermost), repeat(repeat("f_back")))
    walks: Any = map(takewhile, repeat(bool), map(accumulate, links, repeat(getattr)))
    with LOOKING:
        enabled = gc.isenabled()
        gc.disable()
        try:
            stacks = list(map(list, walks))  # here it happens
        finally:
            if enabled:
                gc.enable()
    return dict(zip(taken[0], stacks, strict=True))


def _log_stacks(group: LeaderFollowers) -> None:
    """Write into the log where each thread is that does not come back from a handler."""
    frames = snapshot()
    for thread in group.stuck():
        stack = frames.get(thread.ident or 0, [])[::-1]
        places = traceback.StackSummary.extract((each, each.f_lineno) for each in stack)
        text = "".join(places.format())
        if not has_gil():
            text = f"thread {thread.name}, whose stack cannot be read without the GIL\n"
        if text:
            error_log.error("cut off at shutdown, stuck here:\n%s", text)


DEALS = sys.platform == "linux"  # elsewhere SO_REUSEPORT may give everything to one listener


class Processes:
    """The parent of several servers: as many processes as were asked for, on the same ports.

    Forks before any thread or poller exists. Every child has a place, with listeners of its own
    where the kernel can deal; one that dies is replaced there. A signal to the parent ends them
    all, gracefully the first time. Runs in the main thread.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._places = [server._listeners]
        self._vacant = dict.fromkeys(range(server.processes), 0.0)  # place: when to fill it
        self._children: dict[int, tuple[int, float]] = {}  # number: place, when it was born
        self._sent: signal.Signals | None = None
        self._before: dict[int, Any] = {}
        self._ear, self._mouth = socket.socketpair()
        self._lifeline = os.pipe()

    def ring(self) -> None:
        """Let the parent look what there is to do; from any thread."""
        with contextlib.suppress(OSError):  # it has ended
            self._mouth.send(b"\0")

    @contextlib.contextmanager
    def _hearing(self) -> Iterator[None]:
        """While the block runs, every signal is a byte that the ear receives."""
        self._mouth.setblocking(False)
        wakeup = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        numbers = (*STOP, signal.SIGCHLD)
        for number in numbers:
            self._before[number] = signal.signal(number, lambda *_: None) or signal.SIG_DFL
        try:
            yield
        finally:
            for caught, handler in self._before.items():
                signal.signal(caught, handler)
            signal.set_wakeup_fd(wakeup)

    def run(self) -> None:
        """Fork, wait, replace, until the server is told to end and all children have gone."""
        with contextlib.ExitStack() as undo:
            undo.callback(self._close)
            undo.enter_context(self._hearing())
            self._open_places()
            self._server._family = self
            self._attend()
            self._server.started.set()
            while self._children or not self._server._ending:
                self._hear()
                self._reap()
                self._attend()

    def _open_places(self) -> None:
        """A queue for every process, where the kernel can deal; else one more door to the same."""
        server = self._server
        for _ in range(1, server.processes):
            self._places.append([])
            for first in server._listeners:
                own = open_sibling(first, server.listen) if _dealt(first) else first.dup()
                self._places[-1].append(own)

    def _close_places(self) -> None:
        for listeners in self._places:
            while listeners:
                close_listener(listeners.pop())

    def _close(self) -> None:
        self._server._family = None
        self._close_places()
        self._ear.close()
        self._mouth.close()
        for end in self._lifeline:
            os.close(end)

    def _hear(self) -> None:
        """Sleep until somebody rings, a signal comes, or something is due."""
        self._ear.settimeout(self._patience())
        with contextlib.suppress(TimeoutError, BlockingIOError):
            for number in self._ear.recv(4096):
                if number in STOP:
                    self._server.begin_shutdown()

    def _patience(self) -> float | None:
        """Seconds until something is due; None if nothing is."""
        deadline = self._server._deadline
        if not self._server._ending:
            moments = list(self._vacant.values())
        elif deadline is None or self._sent == signal.SIGKILL:
            moments = []
        else:
            moments = [deadline + GRACE if self._sent == signal.SIGQUIT else deadline]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _fork(self, place: int) -> int:
        """Start the child of a place; its number. OSError when there can be none."""
        _flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, TOLD)
        try:
            number = os.fork()
            if not number:
                self._serve(place)
            return number
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)

    def _serve(self, place: int) -> NoReturn:
        """The life of a child; never returns."""
        status = 1
        try:
            self._begin(place)
            self._server.run(signals=())
            status = int(self._server._cut)
        except BaseException:
            error_log.exception("a server process failed")
        finally:
            with contextlib.suppress(Exception):
                logging.shutdown()
            _flush()
            os._exit(status)

    def _begin(self, place: int) -> None:
        """From a copy of the parent to a child with a place of its own."""
        server = self._server
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, self._before[signal.SIGCHLD])
        signal.signal(signal.SIGTERM, lambda *_: self._leave())
        signal.signal(signal.SIGQUIT, lambda *_: server.begin_shutdown(0.0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)
        self._ear.close()
        self._mouth.close()
        os.close(self._lifeline[1])
        server._family, server._listeners = None, self._places.pop(place)
        for listener in [each for others in self._places for each in others]:
            listener.close()
        threading.Thread(target=self._outlive_nobody, name="hop lifeline", daemon=True).start()

    def _leave(self) -> None:
        """Stop gracefully; told more than once, it is the same stop."""
        if not self._server._ending:
            self._server.begin_shutdown()

    def _outlive_nobody(self) -> None:
        """Stop when the parent is no more: then the pipe has no writer left."""
        os.read(self._lifeline[0], 1)
        self._leave()

    def _attend(self) -> None:
        """Let everybody go if the end has begun; else fill the places that are due."""
        if self._server._ending:
            self._let_go()
            return
        for place, due in list(self._vacant.items()):
            if due <= time.monotonic():
                try:
                    number = self._fork(place)
                except OSError as error:
                    error_log.error("no process can be started, trying again: %s", error)
                    self._vacant[place] = time.monotonic() + BREATHER
                else:
                    del self._vacant[place]
                    self._children[number] = place, time.monotonic()

    def _reap(self) -> None:
        """Count those who have ended, and vacate their places."""
        for number, (place, born) in list(self._children.items()):
            ended, status = os.waitpid(number, os.WNOHANG)
            if ended:
                del self._children[number]
                self._ended(number, place, born, os.waitstatus_to_exitcode(status))

    def _ended(self, number: int, place: int, born: float, status: int) -> None:
        """A child has ended: at the end of all, or before its time."""
        if self._server._ending:
            self._server._cut |= status != 0
            return
        error_log.error("process %d ended with status %d; starting another", number, status)
        now = time.monotonic()
        self._vacant[place] = now + (BREATHER if now - born < YOUNG else 0.0)

    def _let_go(self) -> None:
        """Close the doors, and send the children what fits the hour."""
        self._close_places()
        deadline = self._server._deadline
        late = -1.0 if deadline is None else time.monotonic() - deadline
        fits = signal.SIGTERM if late < 0 else signal.SIGQUIT if late < GRACE else signal.SIGKILL
        if fits != self._sent:
            self._sent = fits
            for number in self._children:
                os.kill(number, fits)


GRACE = 5.0  # seconds after the deadline in which a child may still end by itself

TOLD = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)  # what a child must not miss at its birth


def _flush() -> None:
    """Let nothing that was printed or logged wait in a buffer that is about to be lost."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


BREATHER = 0.5  # seconds for which the place of a child stays vacant that died young,
YOUNG = 1.0  # in its first second
