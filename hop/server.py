"""Wiring, options, signals, and an end that loses nobody."""

import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from hop.adaptor import ErrorStream, base_environ
from hop.engine import ConnectionState, Engine
from hop.leader import LeaderFollowers, Monitor
from hop.listener import ListenConfig, close_listener, describe, open_listener
from hop.poller import Acceptor, default_poller

__all__ = ["Server"]

error_log = logging.getLogger("hop.error")


class Server:
    """Serves an engine on listening sockets.

    Times are seconds, sizes bytes, and None switches a limit off. `keep_alive_timeout`: an idle
    connection; `read_timeout`: a head, from its first byte; `body_timeout`: a body, and one second
    more for each KiB; `write_timeout`: a client that takes nothing of its answer;
    `linger_timeout`: one that was refused and does not close; `shutdown_timeout`: what is in
    flight when a signal ends the server. `max_connections` is by default what the descriptor
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
        keep_alive_timeout: float | None = 30.0,
        read_timeout: float | None = 10.0,
        body_timeout: float | None = 30.0,
        write_timeout: float | None = 30.0,
        linger_timeout: float = 2.0,
        shutdown_timeout: float | None = 30.0,
        listen: ListenConfig | None = None,
    ) -> None:
        self.engine = engine
        self.pollers = pollers
        self.processes = processes
        self.max_threads = max_threads
        self.max_connections = max_connections or _descriptors() - 64
        self.buffer_size = buffer_size
        self.shutdown_timeout = shutdown_timeout
        self.listen = listen or ListenConfig()
        self.addresses: list[str] = []
        self.timeouts: dict[ConnectionState, float | None] = {
            ConnectionState.IDLE: keep_alive_timeout,
            ConnectionState.HEAD: read_timeout,
            ConnectionState.BODY: body_timeout,
            ConnectionState.PAUSED: body_timeout,
            ConnectionState.CALL: engine.request_timeout,
            ConnectionState.FLUSHING: write_timeout,
            ConnectionState.CLOSING: write_timeout,
            ConnectionState.REFUSING: write_timeout,
            ConnectionState.LINGERING: linger_timeout,
            ConnectionState.CLOSED: None,
        }
        self.started = threading.Event()
        self.finished = threading.Event()
        self._groups: list[LeaderFollowers] = []
        self._monitor: Monitor | None = None
        self._deadline: float | None = None
        self._ending = False

    def serve(self, *binds: str) -> None:
        """Serve on every bind (by default ":1826") until `shutdown` or a signal.

        Raises ValueError for a bind that is none and OSError for one that cannot be had.
        """
        listeners: list[socket.socket] = []
        try:
            for bind in binds or (":1826",):
                listeners.append(open_listener(bind, self.listen))
            self.addresses = [describe(listener) for listener in listeners]
            if self.processes > 1:
                Processes(self, listeners).run()
            else:
                self.serve_sockets(listeners)
        finally:
            for listener in listeners:
                close_listener(listener)

    def serve_sockets(self, listeners: list[socket.socket], *, shared: bool = False) -> None:
        """Serve on open listeners; `shared`: other processes accept from them as well."""
        self._groups = [self._group(listeners, shared) for _ in range(self.pollers)]
        self._monitor = Monitor(self._groups)
        restore = self._catch_signals()
        try:
            for group in self._groups:
                group.start()
            self.started.set()
            self._monitor.run(self._over, lambda: not self._ending)
        finally:
            restore()
            self._end()
            self.finished.set()

    def shutdown(self, timeout: float | None = None) -> bool:
        """Stop gracefully and wait for it: accept what has completed its handshake, answer what
        is in flight, close what is idle; what is left after `timeout` seconds is cut off.

        To be called from another thread than `serve`. True when nothing had to be cut.
        """
        self.begin_shutdown(timeout)
        self.finished.wait()
        return self._deadline is None or time.monotonic() < self._deadline

    def begin_shutdown(self, timeout: float | None = None) -> None:
        """The same without waiting; a second call ends the server at once."""
        if timeout is None:
            timeout = self.shutdown_timeout
        if self._ending:
            timeout = 0.0
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._ending = True
        for group in self._groups:
            group.drain()
        if self._monitor is not None:
            self._monitor.wake()

    def _group(self, listeners: list[socket.socket], shared: bool) -> LeaderFollowers:
        group = LeaderFollowers(
            default_poller(),
            self.engine,
            timeouts=self.timeouts,
            buffer_size=self.buffer_size,
            max_threads=self.max_threads,
            max_connections=max(1, self.max_connections // self.pollers),
        )
        for listener in listeners:
            base = self._base_environ(listener)
            acceptor = Acceptor(
                group.poller,
                listener.dup(),
                lambda sock, base=base: group.admit(sock, base),  # type: ignore[misc]
                exclusive=shared or self.pollers > 1,
            )
            group.acceptors[acceptor.fileno()] = acceptor
        return group

    def _base_environ(self, listener: socket.socket) -> dict[str, Any]:
        name = listener.getsockname()
        host, port = name[:2] if isinstance(name, tuple) else ("localhost", "80")
        return base_environ(
            "localhost" if host in ("", "::", "0.0.0.0") else host,
            str(port),
            ErrorStream(error_log),
            multithread=self.max_threads > 1,
            multiprocess=self.processes > 1,
        )

    def _over(self) -> bool:
        if all(group.stopped.is_set() for group in self._groups):
            return True
        return self._ending and self._deadline is not None and time.monotonic() >= self._deadline

    def _end(self) -> None:
        """Cut off what is left, and say where it was stuck."""
        for group in self._groups:
            if not group.stopped.is_set():
                _log_stacks(group)
                group.stop()
        for group in self._groups:
            group.stopped.wait(1.0)

    def _catch_signals(self) -> Callable[[], None]:
        """SIGTERM and SIGINT stop gracefully, if this is the main thread; returns the undoing."""
        if threading.current_thread() is not threading.main_thread():
            return lambda: None
        before = {
            number: signal.signal(number, lambda *_: self.begin_shutdown())
            for number in (signal.SIGTERM, signal.SIGINT)
        }

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        return restore


def _descriptors() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _log_stacks(group: LeaderFollowers) -> None:
    frames = sys._current_frames()
    for thread in group.stuck():
        if thread.ident in frames:
            stack = "".join(traceback.format_stack(frames[thread.ident]))
            error_log.error("cut off at shutdown, stuck here:\n%s", stack)


class Processes:
    """The parent of several servers: one listener, as many processes as were asked for.

    Forked before any thread or poller exists. A child that dies is replaced; a signal to the
    parent ends them all, gracefully the first time.
    """

    def __init__(self, server: Server, listeners: list[socket.socket]) -> None:
        self._server = server
        self._listeners = listeners
        self._children: dict[int, float] = {}
        self._signals = 0

    def run(self) -> None:
        """Fork, wait, replace, until a signal comes and all children have gone."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        while len(self._children) < self._server.processes:
            self._fork()
        self._server.started.set()
        while self._children:
            pid, status = os.wait()
            born = self._children.pop(pid, None)
            if self._signals or born is None:
                continue
            error_log.error("process %d ended with status %d; starting another", pid, status)
            if time.monotonic() - born < 1.0:
                time.sleep(0.5)
            if not self._signals:
                self._fork()
        self._server.finished.set()

    def _fork(self) -> None:
        numbers = {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        pid = os.fork()
        if pid:
            self._children[pid] = time.monotonic()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
            return
        status = 1
        try:
            for number in numbers:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
            self._server.serve_sockets(self._listeners, shared=True)
            status = 0
        except BaseException:
            error_log.exception("a server process failed")
        finally:
            logging.shutdown()
            os._exit(status)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signals += 1
        for pid in self._children:
            os.kill(pid, number)
