# Tangled from notebooks/08_server.ipynb. Edit the notebook.
"""Server.

Wiring, options, signals, and an end that loses nobody.
"""

import contextlib
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
from typing import Any, NoReturn

from hop.adaptor import ErrorStream, base_environ
from hop.engine import ConnectionState, Engine
from hop.leader import LeaderFollowers, Monitor
from hop.listener import ListenConfig, close_listener, describe, open_listener
from hop.poller import Acceptor, default_poller

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
    answer before the application is paused. `max_connections` is by default what the descriptor
    limit allows; beyond it clients wait in the kernel's backlog.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        pollers: int = 1,
        processes: int = 1,
        max_threads: int = 64,
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
        self.engine = engine
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
            multithread=self.max_threads > 1,
            multiprocess=self.processes > 1,
        )

    def _group(self, shared: bool) -> LeaderFollowers:
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
            acceptor = Acceptor(
                group.poller,
                listener.dup(),
                lambda sock, base=base: group.admit(sock, base),  # type: ignore[misc]
                exclusive=shared or self.pollers > 1,
            )
            group.acceptors[acceptor.fileno()] = acceptor
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
                signal.signal(number, handler)

    def run(self, *, signals: tuple[signal.Signals, ...] = STOP, shared: bool = False) -> None:
        """Serve in this process; `shared`: other processes accept from the listeners as well."""
        self._groups = [self._group(shared) for _ in range(self.pollers)]
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
        a bind that is none and OSError for one that cannot be had.
        """
        try:
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
            self.close_listeners()
            self.finished.set()


def _log_stacks(group: LeaderFollowers) -> None:
    """Write into the log where each thread is that does not come back from a handler."""
    frames = sys._current_frames()
    for thread in group.stuck():
        if thread.ident in frames:
            stack = "".join(traceback.format_stack(frames[thread.ident]))
            error_log.error("cut off at shutdown, stuck here:\n%s", stack)


class Processes:
    """The parent of several servers: one set of listeners, as many processes as were asked for.

    Forks before any thread or poller exists. A child that dies is replaced; a signal to the
    parent ends them all, gracefully the first time. Runs in the main thread.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._children: dict[int, float] = {}
        self._stopping = False
        self._lifeline = (-1, -1)

    def run(self) -> None:
        """Fork, wait, replace, until a signal comes and all children have gone."""
        handlers = {number: signal.signal(number, self._pass_on) for number in STOP}
        self._lifeline = os.pipe()
        try:
            for _ in range(self._server.processes):
                self._fork()
            self._server.started.set()
            while self._children:
                self._wait()
        finally:
            for end in self._lifeline:
                os.close(end)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _pass_on(self, *_: object) -> None:
        """A signal: every child gets it, and nobody is let in by way of the parent."""
        self._stopping = True
        for pid in list(self._children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        self._server.close_listeners()

    def _fork(self) -> None:
        """Start a child, unless the end has begun."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
        try:
            if self._stopping:
                return
            pid = os.fork()
            if not pid:
                self._serve()
            self._children[pid] = time.monotonic()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)

    def _serve(self) -> NoReturn:
        """The life of a child; never returns."""
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, lambda *_: self._server.begin_shutdown())
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
            os.close(self._lifeline[1])
            threading.Thread(target=self._outlive_nobody, name="hop lifeline", daemon=True).start()
            self._server.run(signals=(signal.SIGTERM,), shared=True)
            status = 0
        except BaseException:
            error_log.exception("a server process failed")
        finally:
            logging.shutdown()
            os._exit(status)

    def _outlive_nobody(self) -> None:
        """Stop when the parent is no more: then the pipe has no writer left."""
        os.read(self._lifeline[0], 1)
        self._server.begin_shutdown()

    def _wait(self) -> None:
        """Wait for a child's end, and replace it unless the end of all has begun."""
        pid, status = os.waitpid(-1, 0)
        born = self._children.pop(pid, None)
        if born is None or self._stopping:
            return
        code = os.waitstatus_to_exitcode(status)
        error_log.error("process %d ended with status %d; starting another", pid, code)
        if time.monotonic() - born < 1.0:
            time.sleep(0.5)
        self._fork()
