"""Which thread polls, and what happens when a handler blocks: leader and followers."""

import contextlib
import logging
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from hop.connection import Connection
from hop.engine import ConnectionState, Engine
from hop.errors import ClientDisconnected
from hop.poller import READ, WRITE, Acceptor, Poller

__all__ = ["Follower", "LeaderFollowers", "Monitor"]

error_log = logging.getLogger("hop.error")

IDLE, HEAD, BODY, PAUSED, CALL, FLUSHING, CLOSING, REFUSING, LINGERING, CLOSED = ConnectionState

# What the poller watches a connection for, in each state.
INTEREST = {
    IDLE: READ,
    HEAD: READ,
    BODY: READ,
    PAUSED: 0,
    CALL: 0,
    FLUSHING: WRITE,
    CLOSING: WRITE,
    REFUSING: WRITE,
    LINGERING: READ,
    CLOSED: 0,
}

REST = 0.002  # seconds between two looks of the monitor, while nothing blocks
SHORTEST = 0.0002  # the same, while much does
CALM = 0.1  # seconds without a promotion after which it looks less often
QUIET = 50  # looks without a call after which it sleeps
BURN = 10  # switch intervals for which a handler may burn CPU before it loses the lead
BURNERS = 2  # how many such handlers run at once
SHORT = 0.0003  # seconds: a call that takes longer has blocked
FEW, MANY = 0.2, 0.6  # shares of blocking calls: below the one inline, above the other eager

SWEEP = 0.25  # seconds between two slices of the sweep
SLICES = 4  # slices of the table in one whole sweep


class Follower:
    """A thread of the group: waiting for the lead, leading, or finishing a call that blocked."""

    def __init__(self, group: "LeaderFollowers") -> None:
        self.group = group
        self.baton = threading.Lock()
        self.baton.acquire()
        self.cpu_clock: int | None = None
        self.thread = threading.Thread(target=self._run, name="hop", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        if hasattr(time, "pthread_getcpuclockid"):
            self.cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        self.baton.acquire()
        while self.group.lead(self):
            self.baton.acquire()

    def cpu_time(self) -> float:
        """Seconds of CPU that the thread has used."""
        return time.clock_gettime(self.cpu_clock) if self.cpu_clock is not None else 0.0

    def asleep(self) -> bool:
        """Whether the thread waits for more than a processor (proc(5); elsewhere: True)."""
        try:
            with open(f"/proc/self/task/{self.thread.native_id}/stat", "rb") as file:
                return not file.read().rpartition(b") ")[2].startswith(b"R")
        except OSError:
            return True


class LeaderFollowers:
    """One poller, the connections it watches, and the threads that take turns at leading.

    At most one thread leads at any time. It alone changes the table, the poller's registrations
    and the states of connections that nobody owns. A thread whose handler blocks loses the lead
    to a follower and owns its connection until the handler returns.
    """

    def __init__(
        self,
        poller: Poller,
        engine: Engine,
        *,
        timeouts: dict[ConnectionState, float | None],
        buffer_size: int = 1 << 16,
        max_threads: int = 64,
        max_connections: int | None = None,
        wake_monitor: Callable[[], None] = lambda: None,
    ) -> None:
        self.poller = poller
        self.engine = engine
        self.timeouts = timeouts
        self.buffer_size = buffer_size
        self.max_threads = max_threads
        self.max_connections = max_connections
        self.wake_monitor = wake_monitor
        self.now = poller.now
        self.connections: dict[int, Connection] = {}
        self.acceptors: dict[int, Acceptor] = {}
        self.calls: dict[Connection, object] = {}
        self.leader: Follower | None = None
        self.eager = False
        self.blocking = 0.0
        self.monitor_parked = False
        self._lock = threading.Lock()
        self._followers: list[Follower] = []
        self._everyone: list[Follower] = []
        self._busy = 0
        self._events: Any = iter(())
        self._mailbox: deque[tuple[Callable[..., None], Any]] = deque()
        self._polling = False
        self._again: list[Connection] = []
        self._parked: list[Connection] = []
        self._freed: list[Connection] = []
        self._doors: list[int] = []
        self._unswept: list[Connection] = []
        self._slice = 0
        self._next_sweep = 0.0
        self.stopped = threading.Event()

    # The lead

    def start(self) -> None:
        """Let a first thread lead."""
        with self._lock:
            self._pass_lead()

    def lead(self, me: Follower) -> bool:
        """Poll and serve until the lead is lost (True) or the group has stopped (False)."""
        connections = self.connections
        while not self.stopped.is_set():
            for fd, events in self._events:
                conn = connections.get(fd)
                if conn is None:
                    self._doors.append(fd)
                elif not self._serve(conn, events):
                    self._give_back(conn, me)
                    return not self.stopped.is_set()
            try:
                self._turn()
            except Exception:
                error_log.exception("error in the loop, which goes on")
        return False

    def _serve(self, conn: Connection, events: int) -> bool:
        """One event of one connection; False when the lead was lost over it."""
        if conn.owned:
            self._silence(conn)
            return True
        try:
            state = conn.state
            if FLUSHING <= state <= REFUSING:
                if conn.flush():
                    self.engine.flushed(conn)
            elif self._busy >= self.max_threads and state != LINGERING:
                self._park(conn)
                return True
            elif state == PAUSED or (state == IDLE and conn.incoming is not None):
                self.engine.resume(conn)
            else:
                data = conn.receive()
                if data is not None:
                    self.engine.received(conn, data)
                elif self.engine.draining and state == IDLE:
                    conn.state = CLOSED
        except ClientDisconnected:
            conn.state = CLOSED
        except Exception:
            error_log.exception("error in the loop; one connection is dropped")
            conn.state = CLOSED
        if conn.owned:
            return False
        if conn.state != IDLE or conn.interest != READ or conn.incoming is not None:
            self._settle(conn)
        return True

    def _turn(self) -> None:
        """Between two batches: close, read the mailbox, sweep, and wait for the next batch."""
        for conn in self._freed:
            conn.close()
        self._freed.clear()
        for fd in self._doors:
            if fd in self.acceptors:
                self.acceptors[fd].on_readable()
        self._doors.clear()
        while self._mailbox:
            fn, argument = self._mailbox.popleft()
            fn(argument)
        if self.engine.draining and not self.connections and not self.acceptors:
            self._stop()
        if self.stopped.is_set():
            return
        again, self._again = self._again, []
        self._polling = True
        events = self.poller.poll(0.0 if again or self._mailbox else self._patience())
        self._polling = False
        self.now = self.poller.now
        for timer in self.poller.due():
            timer()
        if self.connections and self.now >= self._next_sweep:
            self._sweep()
        if again:
            events = [(conn.sock.fileno(), READ) for conn in again] + events
        self._events = iter(events)

    def post(self, fn: Callable[..., None], argument: Any = None) -> None:
        """Let the leader call `fn(argument)` between two batches; from any thread."""
        self._mailbox.append((fn, argument))
        if self._polling:
            self.poller.wake()

    def _patience(self) -> float | None:
        """Seconds to wait at most; an empty server waits for ever."""
        return max(0.0, self._next_sweep - self.now) if self.connections else None

    def _sweep(self) -> None:
        """Look at a slice of the connections for deadlines that have passed."""
        self._next_sweep = self.now + SWEEP
        if not self._unswept:
            self._unswept = list(self.connections.values())
            self._slice = -(-len(self._unswept) // SLICES)
        for conn in self._unswept[-self._slice :]:
            limit = self.timeouts[conn.state]
            late = limit is not None and self.now - conn.since > limit
            if conn.owned:
                if late and conn.state == CALL:
                    conn.cut()
            elif late and (conn.interest or conn.state == PAUSED):
                self.engine.expired(conn)
                self._settle(conn)
            elif conn.state == PAUSED:
                self._again.append(conn)
        del self._unswept[-self._slice :]

    # Connections

    def admit(self, sock: socket.socket, base: dict[str, Any]) -> None:
        """Take in an accepted socket."""
        conn = Connection(sock, self, base, IDLE)
        fd = sock.fileno()
        self.connections[fd] = conn
        self.poller.register(fd, READ)
        if len(self.connections) == self.max_connections:
            for acceptor in self.acceptors.values():
                acceptor.pause()

    def _settle(self, conn: Connection) -> None:
        """Let the poller watch for what the connection's state waits for."""
        if conn.owned or conn.sock.fileno() < 0:
            return
        if conn.state == CLOSED:
            self._forget(conn)
            return
        if conn.state == IDLE and (conn.incoming is not None or self.engine.draining):
            self._again.append(conn)
        self._watch(conn, INTEREST[conn.state])

    def _watch(self, conn: Connection, interest: int) -> None:
        before, conn.interest = conn.interest, interest
        fd = conn.sock.fileno()
        if before == interest:
            return
        if not before:
            self.poller.register(fd, interest)
        elif not interest:
            self.poller.unregister(fd)
        else:
            self.poller.modify(fd, interest)

    def _forget(self, conn: Connection) -> None:
        """Out of the poller and the table; closed when the batch is over."""
        if self.connections.pop(conn.sock.fileno(), None) is conn:
            self._watch(conn, 0)
            self._freed.append(conn)
            if len(self.connections) + 1 == self.max_connections:
                for acceptor in self.acceptors.values():
                    acceptor.resume()

    def _silence(self, conn: Connection) -> None:
        """An event for a connection that another thread owns: watch it no more until it is back."""
        self._watch(conn, 0)
        if not conn.owned:
            self._settle(conn)

    def _park(self, conn: Connection) -> None:
        """Every thread is busy: what the client sends waits in the kernel."""
        self._watch(conn, 0)
        self._parked.append(conn)

    def _unpark(self, _: object) -> None:
        parked, self._parked = self._parked, []
        for conn in parked:
            conn.since = self.now
            self._settle(conn)

    # Calls into the application

    def begin(self, conn: Connection, call: object) -> None:
        """A call starts. Inline it runs under a record; eagerly the lead passes on first."""
        if conn.owned:
            return
        if self.eager:
            with self._lock:
                self._pass_lead(conn)
            return
        self.calls[conn] = call
        if self.monitor_parked:
            self.monitor_parked = False
            self.wake_monitor()

    def end(self, conn: Connection) -> None:
        """The call is over. Whoever takes its record out of `calls` has won: this thread or a
        promotion, which then is about to make the thread the connection's owner."""
        if self.calls.pop(conn, None) is None:
            with self._lock:
                pass
            if self.eager:
                self._note(conn)

    def promote(self, conn: Connection, call: object) -> bool:
        """Take the lead from a thread that is stuck in `call`; False when it was not, or no
        thread is left to take it."""
        with self._lock:
            if self._busy >= self.max_threads or self.calls.get(conn) is not call:
                return False
            try:
                follower = self._reserve()
            except RuntimeError:  # no further thread can be started
                return False
            if self.calls.pop(conn, None) is None:
                self._followers.append(follower)
                return False
            self._pass_lead(conn, follower)
        return True

    def wait_writable(self, conn: Connection) -> None:
        """Block until the client has taken what waits for it, or has stalled for too long."""
        with self._lock:
            if self.calls.pop(conn, None) is not None:
                self._pass_lead(conn)
        patience = self.timeouts[FLUSHING]
        waiter = select.poll()
        waiter.register(conn.sock, select.POLLOUT)
        while not conn.flush():
            if not waiter.poll(None if patience is None else patience * 1000):
                raise ClientDisconnected("the client stopped reading")

    def _reserve(self) -> Follower:
        if self._followers:
            return self._followers.pop()
        self._everyone.append(Follower(self))
        return self._everyone[-1]

    def _pass_lead(self, conn: Connection | None = None, follower: Follower | None = None) -> None:
        """Let a follower lead, the one that waited least; the caller holds the lock."""
        follower = follower or self._reserve()
        if conn is not None:
            conn.owned = True
            self._busy += 1
        self.leader = follower
        follower.baton.release()

    def _give_back(self, conn: Connection, me: Follower) -> None:
        """The former leader has finished: the connection returns, the thread follows."""
        with self._lock:
            self._busy -= 1
            if self.stopped.is_set():
                conn.close()
                return
            self._followers.append(me)
        if conn.state == IDLE and conn.incoming is None:
            conn.owned = False
            if conn.interest != READ:
                self.post(self._settle, conn)
        else:
            self.post(self._returned, conn)
        if self._parked:
            self.post(self._unpark)

    def _returned(self, conn: Connection) -> None:
        conn.owned = False
        self._settle(conn)

    def _note(self, conn: Connection) -> None:
        """Remember how large the share of calls that block is; when it is small, go inline."""
        took = time.monotonic() - conn.since
        self.blocking += ((took > SHORT) - self.blocking) / 64
        if self.blocking < FEW:
            self.eager = False

    def stuck(self) -> list[threading.Thread]:
        """The threads that are inside a handler at this moment."""
        with self._lock:
            idle = [*self._followers] if self.calls else [*self._followers, self.leader]
            return [each.thread for each in self._everyone if each not in idle]

    # The end

    def drain(self) -> None:
        """Accept what has completed its handshake, answer what is in flight, and stop."""
        self.post(self._drain)

    def stop(self) -> None:
        """Cut everything off."""
        self.post(self._stop)

    def _drain(self, _: object) -> None:
        self.engine.draining = True
        for acceptor in self.acceptors.values():
            acceptor.resume()  # also when it is paused
            while acceptor.on_readable():
                acceptor.resume()
            acceptor.close()
        self.acceptors.clear()
        self._again += [c for c in self.connections.values() if c.state == IDLE and not c.owned]

    def _stop(self, _: object = None) -> None:
        if self.stopped.is_set():
            return
        for acceptor in self.acceptors.values():
            acceptor.close()
        for conn in list(self.connections.values()):
            if conn.owned:
                conn.cut()
            else:
                self._forget(conn)
                conn.close()
        self.poller.close()
        with self._lock:
            self.stopped.set()
            for follower in self._followers:
                follower.baton.release()


class Monitor:
    """Watches the calls from outside: whoever is stuck in one loses the lead.

    Runs in a thread of its own, by custom the main thread. Asleep while nothing happens.
    """

    def __init__(self, groups: list[LeaderFollowers], clock: Any = time.monotonic) -> None:
        self._watches = [_Watch(group) for group in groups]
        self._clock = clock
        self._bell = threading.Lock()
        self._bell.acquire()
        self.quantum = REST
        self._promoted = clock()
        for group in groups:
            group.wake_monitor = self.wake

    def wake(self) -> None:
        """End the present sleep; from any thread."""
        with contextlib.suppress(RuntimeError):
            self._bell.release()

    def run(self, over: Callable[[], bool], may_sleep: Callable[[], bool]) -> None:
        """Look again and again until it is `over`."""
        quiet = 0
        while not over():
            quiet = 0 if self.look() else quiet + 1
            if quiet < QUIET or not may_sleep():
                self._bell.acquire(timeout=self.quantum)
            else:
                self._park()
                quiet = 0

    def _park(self) -> None:
        """Sleep until a call begins. Both sides publish, then look again: no call is missed."""
        for watch in self._watches:
            watch.group.monitor_parked = True
        if not any(watch.group.calls for watch in self._watches):
            self._bell.acquire()
        for watch in self._watches:
            watch.group.monitor_parked = False

    def look(self) -> bool:
        """Look at every group once; True when one of them was in a call."""
        now = self._clock()
        seen = [watch.look(now) for watch in self._watches]
        if any(watch.promoted for watch in self._watches):
            self._promoted = now
            self.quantum = max(self.quantum / 2, SHORTEST)
        elif now - self._promoted > CALM:
            self._promoted = now
            self.quantum = min(self.quantum * 2, REST)
        return any(seen)


class _Watch:
    """What the monitor remembers of one group between two looks."""

    def __init__(self, group: LeaderFollowers) -> None:
        self.group = group
        self.promoted = self.promoted_before = False
        self._call: object = None
        self._leader: Follower | None = None
        self._began = self._began_cpu = self._looked = self._cpu = 0.0
        self._in_call = False
        self._burners: list[Connection] = []

    def look(self, now: float) -> bool:
        """Promote a follower if the leader is stuck; True when a call was seen."""
        group, self.promoted_before, self.promoted = self.group, self.promoted, False
        conn, call = next(iter(list(group.calls.items())), (None, None))
        leader = group.leader
        if leader is None or group.eager:
            return False
        cpu = leader.cpu_time()
        self._sample(conn is not None, leader, now, cpu)
        if conn is None or call is not self._call:
            self._call, self._began, self._began_cpu = call, now, cpu
            return conn is not None
        waited, burnt = now - self._began, cpu - self._began_cpu
        if burnt < waited / 2:
            self.promoted = leader.asleep() and group.promote(conn, call)
        elif waited > BURN * sys.getswitchinterval():
            self._promote_burner(conn, call)
        return True

    def _sample(self, in_call: bool, leader: Follower, now: float, cpu: float) -> None:
        """Learn which share of the calls blocks: the leader's CPU clock stands still over them."""
        still = cpu - self._cpu < (now - self._looked) / 3
        counts = not still or (in_call and self._in_call)
        if leader is not self._leader:
            counts = still = self.promoted_before
        elif counts and still:
            counts = leader.asleep()
        self._leader, self._looked, self._cpu, self._in_call = leader, now, cpu, in_call
        group = self.group
        if counts:
            group.blocking += (still - group.blocking) / 16
            if group.blocking > MANY:
                group.blocking, group.eager = 1.0, True

    def _promote_burner(self, conn: Connection, call: object) -> None:
        self._burners = [burner for burner in self._burners if burner.owned]
        if len(self._burners) < BURNERS and self.group.promote(conn, call):
            self._burners.append(conn)
