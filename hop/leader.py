# Tangled from notebooks/07_leader.ipynb. Edit the notebook.
"""Leader and followers.

The thread that polls also calls the handler, and loses the lead when the handler blocks.
"""

import contextlib
import logging
import os
import select
import socket
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from hop.connection import Connection, Keeping
from hop.engine import ConnectionState, Engine
from hop.errors import ClientDisconnected
from hop.poller import READ, WRITE, Acceptor, Poller

__all__ = ["Follower", "InlineLoop", "LeaderFollowers", "Monitor"]

error_log = logging.getLogger("hop.error")

(IDLE, HEAD, BODY, PAUSED, CALL, FLUSHING, CLOSING, REFUSING, LINGERING, UPGRADED, HIJACKED,
 CLOSED) = ConnectionState  # fmt: skip

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
    UPGRADED: READ,  # and WRITE, while something waits to be sent
    HIJACKED: 0,
    CLOSED: 0,
}


class InlineLoop:
    """One poller, the connections it watches, and one thread at a time that serves them.

    Everything but `post` belongs to that thread. Handlers run on it, one after the other.
    Sizes are bytes; `timeouts` has the seconds that a connection may stay in each state (None:
    for ever). A connection that is `owned` belongs to another thread, which never happens here.
    """

    def __init__(
        self,
        poller: Poller,
        engine: Engine,
        *,
        timeouts: dict[ConnectionState, float | None],
        buffer_size: int = 1 << 16,
        max_unsent: int = 1 << 20,
        max_connections: int | None = None,
    ) -> None:
        self.poller = poller
        self.engine = engine
        self.timeouts = timeouts
        self.buffer_size = buffer_size
        self.max_unsent = max_unsent
        self.draining = False
        self.max_connections = max_connections
        self.keeping: Keeping | None = None
        self.now = poller.now
        self.connections: dict[int, Connection] = {}
        self.acceptors: dict[int, Acceptor] = {}
        self.full = self.over = False
        self.stopped = threading.Event()
        self._events: Any = iter(())
        self._answers: deque[tuple[Connection, bytes]] = deque()
        self._gathering = False
        self._release_at = self._gather_from = self._haste = 0.0
        self._doors: list[int] = []
        self._freed: list[Connection] = []
        self._again: list[Connection] = []
        self._parked: OrderedDict[Connection, None] = OrderedDict()
        self._mailbox: deque[tuple[Callable[..., None], Any]] = deque()
        self._polling = False
        self._unswept: list[Connection] = []
        self._slice = 0
        self._next_sweep = 0.0

    def admit(self, sock: socket.socket, base: dict[str, Any]) -> None:
        """Take in an accepted socket."""
        fd = sock.fileno()
        self.poller.register(fd, READ)
        self.connections[fd] = Connection(sock, self, base, IDLE)
        if len(self.connections) == self.max_connections and not self.draining:
            for acceptor in self.acceptors.values():
                acceptor.pause()

    def _watch(self, conn: Connection, interest: int) -> None:
        before, conn.interest = conn.interest, interest
        if before == interest:
            return
        fd = conn.sock.fileno()
        if not before:
            self.poller.register(fd, interest)
        elif not interest:
            self.poller.unregister(fd)
        else:
            self.poller.modify(fd, interest)

    def _settle(self, conn: Connection) -> None:
        """Let the poller watch for what the connection's state waits for."""
        if conn.owned or conn.sock.fileno() < 0:
            return
        if conn.state is UPGRADED:
            conn.incoming.settle()
        if conn.state == CLOSED:
            self._forget(conn)
            return
        if conn.state == IDLE and (conn.incoming is not None or self.draining):
            self._again.append(conn)
        room = WRITE if conn.state in (BODY, UPGRADED) and conn.backlog is not None else 0
        self._watch(conn, INTEREST[conn.state] | room)

    def _forget(self, conn: Connection) -> None:
        """Out of the poller and the table; closed when the batch is over."""
        fd = conn.sock.fileno()
        if self.connections.get(fd) is not conn:
            return
        del self.connections[fd]
        self._parked.pop(conn, None)
        self._watch(conn, 0)
        self._freed.append(conn)
        if len(self.connections) + 1 == self.max_connections:
            for acceptor in self.acceptors.values():
                acceptor.resume()

    def _step(self, conn: Connection) -> None:
        """Do what the connection is ready for, as its state has it."""
        if conn.state in (PAUSED, IDLE):
            self.engine.resume(conn)
        elif conn.state in (HEAD, BODY, LINGERING):
            if conn.backlog is not None:  # a 100 (Continue)
                conn.flush()
            data = conn.receive()
            if data is not None:
                self.engine.received(conn, data)
        elif conn.state is not CLOSED and conn.flush():
            self.engine.flushed(conn)

    def begin(self, conn: Connection, call: object) -> None:
        """Application code starts to run for `conn`; `call` is an object of this call alone."""

    def end(self, conn: Connection) -> None:
        """Application code has returned."""

    def answer(self, conn: Connection, data: bytes) -> None:
        """Send a whole answer: at once, or a moment later with the others of the batch."""
        if self._gathering and not conn.owned and conn.backlog is None:
            self._answers.append((conn, data))
        else:
            conn.write(data)

    def _serve(self, conn: Connection) -> bool:
        """An event of a connection; False when the lead was lost over it."""
        if (conn.owned or self.full) and self._set_aside(conn):
            return True
        if self._parked:
            self._parked.pop(conn, None)
        calm = False
        try:
            if conn.state is IDLE and conn.incoming is None:
                data = conn.receive()
                if data is not None:
                    self.engine.received(conn, data)
                elif self.draining:
                    conn.state = CLOSED
                calm = conn.state is IDLE and conn.incoming is None
            elif conn.state is UPGRADED:
                calm = conn.incoming.ready()
            else:
                self._step(conn)
        except ClientDisconnected:
            conn.state = CLOSED
        except Exception:
            error_log.exception("error in the loop; one connection is dropped")
            self.engine.drop(conn)
        if conn.owned:
            return False
        if not calm or conn.interest != READ:
            self._settle(conn)
        return True

    def _set_aside(self, conn: Connection) -> bool:
        """Whether its turn must wait: another thread owns it, or none is left for its call."""
        if conn.owned:
            self._silence(conn)
        elif conn.state < FLUSHING or conn.state is UPGRADED:
            self._park(conn)
        else:
            return False
        return True

    def _silence(self, conn: Connection) -> None:
        """Another thread owns it: watch it no more, unless it came back at this moment."""
        self._hush(conn)
        if not conn.owned:
            self._settle(conn)

    def _hush(self, conn: Connection) -> None:
        """Read nothing from it. What waits on an upgraded connection is sent all the same."""
        if conn.state is UPGRADED:
            waits = not conn.incoming.flush()
        else:
            waits = conn.owned and conn.push()
        self._watch(conn, WRITE if waits else 0)

    def assist(self, conn: Connection) -> None:
        """Send what waits on `conn` while its owner makes more."""
        if conn.owned:
            self.post(self._silence, conn)

    def again(self, conn: Connection) -> None:
        """Serve `conn` in the next batch, whether or not the poller reports it."""
        self._again.append(conn)

    def serve(self) -> Connection | None:
        """Serve until the end (None), or until the lead is lost over the returned connection."""
        while not self.over:
            try:
                conn = self._batch()
                if conn is not None:
                    return conn
                self._between()
            except Exception:
                error_log.exception("error in the loop, which goes on")
                time.sleep(BREATH)
        return None

    def _batch(self) -> Connection | None:
        """Serve what is left of the batch; the connection over which the lead was lost."""
        if self._answers:
            self._release()
        connections, looked = self.connections, self.now
        for fd, _ in self._events:
            conn = connections.get(fd)
            if conn is None:
                self._doors.append(fd)
            elif not self._serve(conn):
                return conn
            if self._answers:
                before, looked = looked, time.monotonic()
                if looked > before + QUICK or looked > self._release_at:
                    self._release()
                    looked = time.monotonic()
        if self._answers:
            self._release()
        return None

    def _release(self) -> None:
        """Send the answers that were held back."""
        now, answers = time.monotonic(), self._answers
        if now > self._release_at + OVERDUE:
            again = now < self._gather_from + self._haste
            self._haste = min(2 * self._haste, LONGEST_HASTE) if again else HASTE
            self._gather_from = now + self._haste
        self._release_at = now + GATHER
        while answers:
            conn, data = answers.popleft()
            at_rest = conn.state is IDLE  # unless an error behind its answer has ended it
            try:
                conn.write(data)
                if conn.backlog is None:
                    continue
                conn.state = FLUSHING
            except ClientDisconnected:
                conn.state = CLOSED
            if at_rest:
                self._settle(conn)

    def post(self, fn: Callable[..., None], argument: Any = None) -> None:
        """Let the leader call `fn(argument)` between two batches; from any thread."""
        self._mailbox.append((fn, argument))
        if self._polling:
            self.poller.wake()

    def _wait(self) -> None:
        """Wait for the next batch, and look at the clock."""
        self._polling = True
        ready = self.poller.poll(self._patience())
        self._polling = False
        self.now = self.poller.now
        once = len(ready) >= CROWD and not (self._again or self._parked)
        self._gathering = once and self.now > self._gather_from
        self._release_at = self.now + GATHER
        if self._again:
            ready = [(conn.sock.fileno(), READ) for conn in self._again] + ready
            self._again = []
        if self._parked and not self.full:
            ready = self._unpark() + ready
        self._events = iter(ready)
        for timer in self.poller.due():
            try:
                timer()
            except Exception:
                error_log.exception("error in a timer")

    def _patience(self) -> float | None:
        """Seconds to wait at most; an empty server waits for ever."""
        if self._again or self._mailbox or (self._parked and not self.full):
            return 0.0
        return max(0.0, self._next_sweep - self.now) if self.connections else None

    def _between(self) -> None:
        """Between two batches: deadlines, the mail, close, let in, and wait for the next one."""
        if self.connections and self.now >= self._next_sweep:
            self._sweep()
        while self._mailbox and not self.over:
            fn, argument = self._mailbox.popleft()
            fn(argument)
        for conn in self._freed:
            conn.close()
        self._freed.clear()
        doors, self._doors = self._doors, []
        for fd in doors:
            if fd in self.acceptors:
                self.acceptors[fd].on_readable()
        if self.draining and not self.connections and not self.acceptors:
            self._stop()
        if not self.over:
            self._wait()

    def _sweep(self) -> None:
        """Look at a slice of the connections for deadlines that have passed."""
        self._next_sweep = self.now + SWEEP
        if not self._unswept:
            self._unswept = list(self.connections.values())
            self._slice = -(-len(self._unswept) // SLICES)
        looked_at = self._unswept[-self._slice :]
        del self._unswept[-self._slice :]
        for conn in looked_at:
            self._look_at(conn)

    def _look_at(self, conn: Connection) -> None:
        if conn.owned:  # asked first: what the owner changes meanwhile is not ours to judge
            if conn.state == CALL and self._late(conn):
                conn.cut()
        elif conn.state is UPGRADED:
            conn.incoming.look(self.now)
        elif not self._late(conn):
            if conn.state == PAUSED:
                self._again.append(conn)
        elif conn.state == PAUSED or (conn.interest and not conn.has_news(conn.interest)):
            self.engine.expired(conn)
            self._settle(conn)

    def _late(self, conn: Connection) -> bool:
        limit = self.timeouts[conn.state]
        return limit is not None and self.now - conn.since > limit

    def _park(self, conn: Connection) -> None:
        """No thread is left for a call: what the client sends waits in the kernel."""
        self._parked.setdefault(conn)
        self._hush(conn)

    def _room(self) -> int:
        """How many calls may begin that block; asked only while one may."""
        return 1

    def _unpark(self) -> list[tuple[int, int]]:
        """Events for as many of the parked as there is room for, the oldest first."""
        going = list(islice(self._parked, max(0, self._room())))
        for conn in going:
            conn.since = self.now
        return [(conn.sock.fileno(), READ) for conn in going]

    def wait_writable(self, conn: Connection) -> None:
        """Block until the client has taken what waits for it.

        Raises ClientDisconnected when it has not read for too long.
        """
        patience = self.timeouts[FLUSHING]
        waiter = select.poll()
        waiter.register(conn.sock, select.POLLOUT)
        while not conn.flush():
            if not waiter.poll(None if patience is None else patience * 1000):
                raise ClientDisconnected("the client stopped reading")

    def drain(self) -> None:
        """Accept what has completed its handshake, answer what is in flight, and stop."""
        self.post(self._drain)

    def stop(self) -> None:
        """Cut everything off."""
        self.post(self._stop)

    def _drain(self, _: object) -> None:
        self.draining = True
        for acceptor in self.acceptors.values():
            acceptor.resume()
            while acceptor.on_readable():
                pass
            acceptor.close()
        self.acceptors.clear()
        for conn in self.connections.values():
            if conn.state is UPGRADED or conn.state is HIJACKED:
                conn.incoming.drain()
            elif conn.state == IDLE and not conn.owned:
                self._again.append(conn)

    def _stop(self, _: object = None) -> None:
        try:
            self._cut_off()
            for conn in self.connections.values():
                if not conn.owned:
                    if conn.state is UPGRADED:
                        conn.incoming.conclude()
                    if conn.backlog is not None:
                        conn.reset()
                    self.engine.drop(conn)
                    conn.close()
        finally:
            self.stopped.set()

    def _cut_off(self) -> None:
        """Nothing begins any more, and nobody comes back."""
        self.over = True
        for acceptor in self.acceptors.values():
            acceptor.close()
        self.poller.close()
        for conn in self.connections.values():
            if conn.owned:
                conn.cut()

    def excuse(self, conn: Connection) -> bool:
        """The call may take for ever; False when nobody else could serve meanwhile."""
        return True

    def welcome_back(self, conn: Connection) -> None:
        """An excused call is over after all."""


BREATH = 0.05  # seconds after an error in the loop

CROWD = 16  # events in a batch: in a smaller one no answer waits
GATHER = 0.001  # seconds for which an answer may wait for others,
QUICK = 0.00005  # and seconds that one of these others may take
OVERDUE = 0.002  # seconds more than GATHER, for which a slow call has made it wait
HASTE = 0.03  # seconds for which nothing is held back after that;
LONGEST_HASTE = 1.0  # and at most, when it comes again and again

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
        """Seconds of CPU that the thread has used; 0.0 where nobody can tell."""
        try:
            return time.clock_gettime(self.cpu_clock) if self.cpu_clock is not None else 0.0
        except OSError:  # the thread has ended
            return 0.0

    def asleep(self) -> bool:
        """Whether the thread waits for more than a processor (proc(5); elsewhere: True)."""
        try:
            fd = os.open(f"/proc/self/task/{self.thread.native_id}/stat", os.O_RDONLY)
            try:
                return not os.read(fd, 1024).rpartition(b") ")[2].startswith(b"R")
            finally:
                os.close(fd)
        except OSError:
            return True


class LeaderFollowers(InlineLoop):
    """A loop whose threads take turns: who is held up by a handler loses the lead to another.

    At most one thread leads at any time. It alone changes the table, the poller's registrations
    and the states of connections that nobody owns. A thread that has lost the lead owns its
    connection until the handler returns. At most `max_threads` threads do; then no call begins
    until one of them is back. Other options: see InlineLoop.
    """

    def __init__(
        self, poller: Poller, engine: Engine, *, max_threads: int = 64, **options: Any
    ) -> None:
        super().__init__(poller, engine, **options)
        self.max_threads = max_threads
        self.leader: Follower | None = None
        self.calls: dict[Connection, object] = {}
        self.eager = False
        self.blocking, self.duration = 0.0, 1.0
        self.monitor_parked = False
        self.may_be_patient = (
            sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_OTHER
        )
        self.wake_monitor: Callable[[], None] = lambda: None
        self._keeper = Keeping(self.buffer_size)
        self._lock = threading.Lock()
        self._everyone: list[Follower] = []
        self._followers: list[Follower] = []
        self._busy = self.vacancies = 0

    def start(self) -> None:
        """Let a first thread lead, and a second one wait. RuntimeError if there can be none."""
        with self._lock:
            self._everyone = [Follower(self), Follower(self)]
            self._followers = [*self._everyone]
            self._pass_lead(self._followers.pop())

    def lead(self, me: Follower) -> bool:
        """Serve until the lead is lost and the call is over; False when the thread is to end."""
        self.be_patient(self.eager and self._busy >= TURNS)
        conn = self.serve()
        return conn is not None and self._give_back(conn, me)

    def _reserve(self) -> Follower | None:
        """The follower that waited least, else a new one; None if no thread can be started."""
        if self._followers:
            return self._followers.pop()
        try:
            follower = Follower(self)
        except RuntimeError:
            return None
        self._everyone.append(follower)
        return follower

    def _pass_lead(self, follower: Follower | None, conn: Connection | None = None) -> None:
        """Let `follower` lead; the thread that did owns `conn` now. The caller has the lock."""
        if conn is not None:
            conn.owned = True
            self._busy += 1
            self.full = self._busy >= self.max_threads
        self.leader = follower
        if follower is not None:
            follower.baton.release()

    def _hand_over(self, conn: Connection) -> bool:
        """Pass the lead on of one's own accord; False when there is no thread to take it."""
        with self._lock:
            follower = self._reserve()
            if follower is not None:
                self._pass_lead(follower, conn)
            return follower is not None

    def _offer_thread(self) -> None:
        """A thread is free: wake the leader if connections wait for one."""
        if self._parked and self._polling:
            self.poller.wake()

    def _room(self) -> int:
        return self.max_threads - self._busy

    def begin(self, conn: Connection, call: object) -> None:
        """A call starts. Inline it runs under a record; eagerly the lead passes on first."""
        if conn.owned:
            if conn.push():
                self.assist(conn)
            return
        if self.eager:
            conn.since = time.monotonic()
            if self._leave_lead(conn) or self._hand_over(conn):
                if conn.push():
                    self.assist(conn)
                return
        self.calls[conn] = call
        if self.monitor_parked:
            self.monitor_parked = False
            self.wake_monitor()

    def end(self, conn: Connection) -> None:
        """The call is over. Whoever takes its record out of `calls` has won: this thread, or
        a promotion, which then makes this thread the connection's owner."""
        if self.calls.pop(conn, None) is None:
            with self._lock:  # a promotion that has won may still be at work
                pass
            if self.eager:
                self._note(time.monotonic() - conn.since)

    def _note(self, took: float) -> None:
        """Remember how long calls take, and which share blocks; when it is small, go inline."""
        self.duration += (took - self.duration) / 64
        self.blocking += ((took > SHORT) - self.blocking) / 64
        if self.blocking < FEW and self.eager:
            self.eager = False
            self.post(self.be_patient, False)
            self.wake_monitor()

    def promote(self, conn: Connection, call: object) -> bool:
        """Take the lead from a thread that is stuck in `call`.

        False when it was not, or when there is no thread to take it.
        """
        with self._lock:
            if self.calls.get(conn) is not call:
                return False
            follower = self._reserve()
            if follower is None:
                return False
            if self.calls.pop(conn, None) is None:  # it has ended while a thread was started
                self._followers.append(follower)
                return False
            self._pass_lead(follower, conn)
        if conn.push():
            self.assist(conn)
        return True

    def wait_writable(self, conn: Connection) -> None:
        if self.calls.pop(conn, None) is not None and not self._hand_over(conn):
            raise ClientDisconnected("no thread is left to wait for a slow client")
        super().wait_writable(conn)

    def _give_back(self, conn: Connection, me: Follower) -> bool:
        """The former leader has finished: the connection returns, the thread follows.

        False when nobody needs the thread: the group has stopped, or enough others are there.
        """
        at_rest = conn.state == IDLE and conn.incoming is None
        with self._lock:
            over, needed = self.over, False
            if not over:
                self._busy -= 1
                self.full = self._busy >= self.max_threads
                lies = self.leader is None
                needed = lies or self._busy + len(self._followers) < self.max_threads
                if lies:
                    self._pass_lead(me)
                elif needed:
                    self._followers.append(me)
                else:
                    self._everyone.remove(me)
                conn.owned = False  # from here on it is the leader's
        if over:
            if conn.state is UPGRADED:
                conn.incoming.conclude()
            conn.close()
            return False
        if not at_rest or conn.interest != READ or self.draining:
            self.post(self._settle, conn)
        self._offer_thread()
        return needed

    def excuse(self, conn: Connection) -> bool:
        call = self.calls.pop(conn, None)
        if call is not None and not self._hand_over(conn):
            self.calls[conn] = call
            return False
        with self._lock:
            self._busy -= 1
            self.full = self._busy >= self.max_threads
        self.appoint()  # whoever was expected back was perhaps this thread
        self._offer_thread()
        self.be_patient(False)  # it may stay away for hours
        return True

    def be_patient(self, patient: bool) -> None:
        """Let whoever runs go on when the calling thread wakes, or not (sched(7))."""
        if self.may_be_patient:
            policy = os.SCHED_BATCH if patient else os.SCHED_OTHER
            with contextlib.suppress(OSError):  # it may be forbidden; then we do without
                if os.sched_getscheduler(0) != policy:
                    os.sched_setscheduler(0, policy, os.sched_param(0))

    def welcome_back(self, conn: Connection) -> None:
        with self._lock:
            self._busy += 1

    def stuck(self) -> list[threading.Thread]:
        """The threads that are inside a handler at this moment."""
        with self._lock:
            idle = [*self._followers] if self.calls else [*self._followers, self.leader]
            return [each.thread for each in self._everyone if each not in idle]

    def _cut_off(self) -> None:
        with self._lock:
            try:
                super()._cut_off()
            finally:
                for follower in self._followers:
                    follower.baton.release()
                self._followers.clear()

    def keep_lock(self, wanted: bool) -> None:
        """Let reading and writing keep the interpreter's lock, or not."""
        self.keeping = self._keeper if wanted else None

    def _leave_lead(self, conn: Connection) -> bool:
        """Let nobody lead for a moment, if this call is the last and somebody is expected soon."""
        with self._lock:
            last = self._busy == self.max_threads - 1
            lies = last and self.duration < SOON * self._busy and not self._mailbox
            if lies:
                self.vacancies += 1
                self._pass_lead(None, conn)
        if lies and self.monitor_parked:
            self.monitor_parked = False
            self.wake_monitor()
        return lies

    def appoint(self) -> None:
        """Let a follower lead if nobody does, and nobody has come back for it."""
        with self._lock:
            if self.leader is None and self._everyone and not self.over:
                follower = self._reserve()
                if follower is not None:
                    self._pass_lead(follower)

    def stop(self) -> None:
        super().stop()
        self.appoint()


SHORT = 0.0003  # seconds: a call that takes longer has blocked
FEW, MANY = 0.02, 0.5  # shares: of calls that block, inline below; of looks, eager above

REST = 0.002  # seconds between two looks of the monitor, while calls are seen that do not block
PEACE = 0.004  # the same, while no call is seen at all
SHORTEST = 0.0002  # the same, while much does
DOUBT = 0.00005  # seconds until a call that was seen for the first time is looked at again
CALM = 0.1  # seconds without a promotion after which it looks less often
BUSY = 4000  # requests a second: more is much, even if no call is seen
DROWSY, LONG = 8, 0.024  # looks with little to see after which it rests longer, and how long
QUIET = 50  # looks with little to see after which it sleeps
NAP = 1.0  # seconds of a sleep, after which Python has a chance to call signal handlers
BURN = 10  # switch intervals for which a handler may burn CPU before it loses the lead
BURNERS = 2  # how many such handlers run at once,
FORBEARANCE = 0.05  # and after how many seconds of one more it is let go all the same
COMPANY = 0.25  # share of the time that others compute, from which on the leader keeps the lock


class Watch:
    """What the monitor remembers of one group between two looks."""

    def __init__(
        self, group: LeaderFollowers, process_time: Callable[[], float] = time.process_time
    ) -> None:
        self.group = group
        self.called = self.doubtful = self.promoted = False
        self._process_time = process_time
        self._call: object = None
        self._leader: Follower | None = None
        self._looked = self._cpu = self._spent = self._began = self._began_cpu = 0.0
        self._requests = self._vacancies = 0
        self._burners: list[Connection] = []

    def look(self, now: float) -> bool:
        """Promote a follower if the leader is stuck; True when there is much to see."""
        group, leader = self.group, self.group.leader
        if leader is None or (group.eager and not group.calls):
            if leader is None and group.vacancies == self._vacancies:
                group.appoint()
            self._vacancies = group.vacancies
            self.called = self.doubtful = self.promoted = False
            group.keep_lock(False)
            return leader is None
        conn, call = next(iter(list(group.calls.items())), (None, None))
        cpu = leader.cpu_time()
        company = self._company(leader, now, cpu)
        group.keep_lock(company)
        self._estimate(leader, call, now, cpu, company)
        self.doubtful = conn is not None and call is not self._call and not self.doubtful
        if call is not self._call:
            self._call, self._began, self._began_cpu = call, now, cpu
        self.called = conn is not None
        self.promoted = conn is not None and self._judge(leader, conn, now, cpu, company)
        new = group.engine.requests - self._requests
        busy = self.called or new > BUSY * (now - self._looked)
        self._leader, self._looked, self._cpu = leader, now, cpu
        self._requests += new
        return busy

    def _company(self, leader: Follower, now: float, cpu: float) -> bool:
        """Whether others than the leader compute; of a new leader nobody can tell yet."""
        before, self._spent = self._spent, self._process_time()
        if self.group.eager or not cpu:
            return False
        if leader is not self._leader:
            return self.group.keeping is not None
        others = (self._spent - before) - (cpu - self._cpu)
        return others > COMPANY * (now - self._looked)

    def _judge(
        self, leader: Follower, conn: Connection, now: float, cpu: float, company: bool
    ) -> bool:
        """Promote over a call that blocks, or that has burnt for too long; True if it blocked."""
        waited, burnt = now - self._began, cpu - self._began_cpu
        if burnt < waited / 2 and (company or leader.asleep()):
            return self.group.promote(conn, self._call) and not company
        if waited > BURN * sys.getswitchinterval():
            self._burners = [burner for burner in self._burners if burner.owned]
            room = BURNERS + waited // FORBEARANCE
            if len(self._burners) < room and self.group.promote(conn, self._call):
                self._burners.append(conn)
        return False

    def _estimate(
        self, leader: Follower, call: object, now: float, cpu: float, company: bool
    ) -> None:
        """Learn which share of the calls blocks: the leader's CPU clock stands still in them."""
        turn = (now - self._looked) / (10 if company else 3)
        if leader is not self._leader:
            if not self.promoted:
                return
            blocked = True
        elif cpu - self._cpu >= turn:
            blocked = False
        elif call is not None and self._call is not None and (company or leader.asleep()):
            blocked = True
        else:
            return
        group = self.group
        group.blocking += (blocked - group.blocking) / 16
        if group.blocking > MANY:
            group.blocking, group.eager = 1.0, True


TURNS = 4  # calls at the same time, from which on the threads of an eager group are patient

SOON = 0.0005  # seconds in which a thread must be expected back, so that the lead may lie


class Monitor:
    """Watches the calls from outside: whoever is stuck in one loses the lead.

    Runs in a thread of its own, by custom the main thread. Asleep while nothing happens.
    """

    def __init__(
        self, groups: list[LeaderFollowers], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.quantum = REST
        self._watches = [Watch(group) for group in groups]
        self._clock = clock
        self._promoted = clock()
        self._bell = threading.Lock()
        self._bell.acquire()
        for group in groups:
            group.wake_monitor = self.wake

    def wake(self) -> None:
        """End the present sleep, or the next one; from any thread, or a signal."""
        with contextlib.suppress(RuntimeError):  # it was rung already
            self._bell.release()

    def look(self) -> bool:
        """Look at every group once; True when one of them has much to do."""
        now = self._clock()
        seen = [watch.look(now) for watch in self._watches]
        if any(watch.promoted for watch in self._watches):
            self._promoted = now
            self.quantum = max(self.quantum / 2, SHORTEST)
        elif now - self._promoted > CALM:
            self._promoted = now
            self.quantum = min(self.quantum * 2, PEACE)
        if any(watch.called for watch in self._watches):
            self.quantum = min(self.quantum, REST)
        return any(seen)

    def run(self, over: Callable[[], bool], may_sleep: Callable[[], bool]) -> None:
        """Look again and again until it is `over`."""
        quiet = 0
        while not over():
            quiet = 0 if self.look() else quiet + 1
            if quiet < QUIET or not may_sleep():
                if self._bell.acquire(timeout=self._pause(quiet)):
                    quiet = 0
            else:
                self._park()
                quiet = 0

    def _pause(self, quiet: int) -> float:
        """Seconds until the next look, after so many in a row with little to see."""
        if any(watch.doubtful for watch in self._watches):
            return DOUBT
        return self.quantum if quiet < DROWSY else LONG

    def _park(self) -> None:
        """Sleep until a call begins. Both sides publish, then look again: no call is missed."""
        for watch in self._watches:
            watch.group.monitor_parked = True
        if not any(watch.group.calls or watch.group.leader is None for watch in self._watches):
            while not self._bell.acquire(timeout=NAP):
                pass  # a signal that came just before the sleep is heard now, and rings
        for watch in self._watches:
            watch.group.monitor_parked = False
