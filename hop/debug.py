# Tangled from notebooks/13_observing.ipynb. Edit the notebook.
"""Observing.

A second port that shows what a server is doing, and answers while the server does not.
"""

import contextlib
import fcntl
import gc
import heapq
import ipaddress
import json
import linecache
import os
import resource
import socket
import sys
import termios
import threading
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from types import CodeType, FrameType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from hop.connection import Connection
from hop.engine import ConnectionState, Engine
from hop.errors import ProtocolError
from hop.hijack import Channel
from hop.leader import Follower, InlineLoop, LeaderFollowers, Monitor
from hop.listener import ListenConfig, TcpBind, UnixBind, parse_bind
from hop.poller import EpollPoller, SelectorPoller
from hop.server import Server, has_gil, snapshot
from hop.testing import serve

__all__ = [
    "CALM",
    "EXPLAINED",
    "HTML",
    "HZ",
    "IMPATIENCE",
    "LINKS",
    "METHODS",
    "METRICS",
    "NOT_TRACED",
    "PLAIN",
    "SECURITY",
    "TITLES",
    "WAITING",
    "DebugApp",
    "Doing",
    "Metric",
    "Page",
    "Query",
    "Stack",
    "call_began",
    "check_bind",
    "check_gil",
    "check_local",
    "check_site",
    "collapsed",
    "connections",
    "connections_page",
    "debug_port",
    "doing",
    "groups",
    "heading",
    "heap_page",
    "heap_switch",
    "index_page",
    "is_loopback",
    "look",
    "metrics_page",
    "number",
    "peer",
    "process_metrics",
    "queue",
    "sample",
    "server_metrics",
    "survey",
    "threads_page",
    "title",
    "tree_page",
    "unsent",
    "vars_page",
]


def check_gil() -> None:
    """ProtocolError (501) on an interpreter without the GIL."""
    if not has_gil():
        raise ProtocolError(HTTPStatus.NOT_IMPLEMENTED, "frames cannot be read without the GIL")


class Doing(NamedTuple):
    """What a thread does: `what` is call, leader, follower, monitor or other.

    In a call, `conn` is whom it is for, and `request` its method and target; empty when it is a
    handler of a channel that runs.
    """

    what: str
    conn: Connection | None = None
    request: str = ""


def doing(frames: list[FrameType]) -> Doing:
    """What the thread with these frames, the innermost first, does."""
    for frame in frames:
        if frame.f_code in (Engine._respond.__code__, Channel._call.__code__):
            conn, head = frame.f_locals.get("conn"), frame.f_locals.get("head")
            if isinstance(conn, Connection):
                return Doing("call", conn, f"{head.method} {head.target}" if head else "")
    codes = {frame.f_code for frame in frames}
    if frames[0].f_code is Follower._run.__code__:
        return Doing("follower")
    if InlineLoop.serve.__code__ in codes:
        return Doing("leader")
    return Doing("monitor" if Monitor.run.__code__ in codes else "other")


EXPLAINED = {
    "leader": "leads: waits for events, or serves one",
    "follower": "waits for the lead",
    "monitor": "watches the calls",
    "other": "does not serve requests",
}


def survey() -> list[tuple[threading.Thread, list[FrameType], Doing]]:
    """Every thread with its frames, the innermost first, and what it does. Takes no lock of the
    server's."""
    frames = snapshot()
    found = []
    for thread in threading.enumerate():
        stack = frames.get(thread.ident or 0)
        if stack:
            found.append((thread, stack, doing(stack)))
    return found


def peer(conn: Connection) -> str:
    """The other end's address, for people; "-" when there is none any more."""
    name = conn.peer_name()
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else name or "-"


def heading(does: Doing, now: float) -> str:
    """A thread's part, in one line."""
    if does.conn is None:
        return EXPLAINED[does.what]
    lead = "has lost the lead" if does.conn.owned else "still leads"
    if not does.request:
        return f"in a handler of a channel, client {peer(does.conn)}; {lead}"
    if does.conn.state is ConnectionState.HIJACKED:
        lead = "has hijacked the connection"
    seconds = max(0.0, now - does.conn.since)
    return f"in a call for {seconds:.1f} s: {does.request}, client {peer(does.conn)}; {lead}"


def call_began(does: Doing, now: float) -> float:
    """When its call began; `now` for a thread in no call, and where nobody knows."""
    return does.conn.since if does.conn is not None and does.request else now


def threads_page() -> str:
    """The stacks of all threads; those in a call come first, the longest of them at the top."""
    check_gil()
    now = time.monotonic()
    found = survey()
    found.sort(key=lambda each: call_began(each[2], now))
    parts = []
    for thread, stack, does in found:
        places = traceback.StackSummary.extract((each, each.f_lineno) for each in stack[::-1])
        lines = "".join(places.format())
        parts.append(f"{thread.name} ({thread.native_id}): {heading(does, now)}\n{lines}")
    return f"{len(found)} threads\n\n" + "\n".join(parts)


def groups(server: Server) -> list[LeaderFollowers]:
    """The server's loops; none before it has begun."""
    return list(server._groups)


def connections(server: Server) -> list[Connection]:
    """The connections of a moment: a copy is one step, however busy the leader is."""
    return [conn for group in groups(server) for conn in group.connections.copy().values()]


def unsent(conn: Connection) -> int:
    """Bytes that the kernel has refused so far. Looks at the backlog once: it may vanish."""
    backlog = conn.backlog
    return 0 if backlog is None else backlog.size


def queue(conn: Connection, which: int) -> int:
    """Bytes in the kernel: TIOCOUTQ, sent and not confirmed; FIONREAD, arrived and not read."""
    try:
        return int.from_bytes(fcntl.ioctl(conn.sock, which, bytes(4)), sys.byteorder)
    except (OSError, ValueError):  # it has been closed meanwhile
        return 0


Query = dict[str, str]


def number(query: Query, name: str, default: float, most: float) -> float:
    """A number from 0 to `most` out of the query; ProtocolError (400) for anything else."""
    text = query.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise ProtocolError(HTTPStatus.BAD_REQUEST, f"{name} must be a number from 0 to {most:g}")
    return value


TITLES = (
    f"{'client':24} {'state':10} {'seconds':>8} {'unsent':>9} {'send-q':>9} {'recv-q':>9} owner"
)


CALM = (ConnectionState.IDLE, ConnectionState.UPGRADED, ConnectionState.HIJACKED)


def connections_page(server: Server, query: Query) -> str:
    """A line for each connection, at most `limit`: those first in which something is overdue."""
    limit = int(number(query, "limit", 100, 1000))
    everybody = connections(server)
    now = time.monotonic()
    busy = {id(does.conn): thread for thread, _, does in survey() if does.conn is not None}

    def line(conn: Connection) -> str:
        thread = busy.get(id(conn))
        owner = f"{thread.name} ({thread.native_id})" if thread and conn.owned else "leader"
        return (
            f"{peer(conn):24} {conn.state.name:10} {max(0.0, now - conn.since):8.1f}"
            f" {unsent(conn):9} {queue(conn, termios.TIOCOUTQ):9}"
            f" {queue(conn, termios.FIONREAD):9} {owner}"
        )

    chosen = heapq.nsmallest(
        limit, everybody, key=lambda conn: (conn.state in CALM and not unsent(conn), conn.since)
    )
    head = f"{len(everybody)} connections, {len(chosen)} shown\n\n{TITLES}\n"
    return head + "".join(line(conn) + "\n" for conn in chosen)


class Metric(NamedTuple):
    """A figure: its name, counter or gauge, an explanation, and the value for each `label`.

    A figure without a label has one value, under "".
    """

    name: str
    kind: str
    text: str
    values: Mapping[str, float]
    label: str = ""


def server_metrics(server: Server) -> Iterator[Metric]:
    """What the server has of connections, threads and room."""
    everybody, loops, engine = connections(server), groups(server), server.engine
    yield Metric("hop_requests_total", "counter", "Calls of the application so far.",
                 {"": engine.requests})  # fmt: skip
    states = Counter(conn.state for conn in everybody)
    by_state = {state.name.lower(): states[state] for state in ConnectionState}
    yield Metric("hop_connections", "gauge", "Connections, by state.", by_state, "state")
    yield Metric("hop_connections_max", "gauge", "How many may be there at the same time.",
                 {"": server.max_connections})  # fmt: skip
    yield Metric("hop_unsent_bytes", "gauge", "Output that waits for slow clients.",
                 {"": sum(map(unsent, everybody))})  # fmt: skip
    threads = Counter(does.what for _, _, does in survey())
    by_part = {part: threads[part] for part in ("call", *EXPLAINED)}
    yield Metric("hop_threads", "gauge", "Threads of the process, by what they do.",
                 by_part, "part")  # fmt: skip
    modes = {mode: sum(getattr(loop, mode) for loop in loops) for mode in ("eager", "full")}
    yield Metric("hop_groups", "gauge", "Groups that pass on the lead before each call, and "
                 "groups that have no thread left.", modes, "mode")  # fmt: skip
    yield Metric("hop_mail", "gauge", "Letters to the leaders, not read yet.",
                 {"": sum(len(loop._mailbox) for loop in loops)})  # fmt: skip
    free = {place: engine.storage.free(place) for place in ("memory", "disk")}
    yield Metric("hop_body_room_bytes", "gauge", "Room left for bodies.", free, "place")


def process_metrics() -> Iterator[Metric]:
    """What the process has used of the machine."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield Metric("process_cpu_seconds_total", "counter", "CPU time, of user and system.",
                 {"": used.ru_utime + used.ru_stime})  # fmt: skip
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    yield Metric("process_peak_memory_bytes", "gauge", "Most memory so far.", {"": peak})
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
        yield Metric("process_resident_memory_bytes", "gauge", "Memory in use.",
                     {"": pages * resource.getpagesize()})  # fmt: skip
    yield Metric("process_open_fds", "gauge", "Open descriptors.",
                 {"": len(os.listdir("/dev/fd")) - 1})  # fmt: skip
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Metric("process_max_fds", "gauge", "Descriptors allowed.", {"": limit})
    switches = {"voluntary": used.ru_nvcsw, "involuntary": used.ru_nivcsw}
    yield Metric("process_context_switches_total", "counter", "Times a thread was stopped.",
                 switches, "kind")  # fmt: skip
    runs = {str(number): each["collections"] for number, each in enumerate(gc.get_stats())}
    yield Metric("python_gc_collections_total", "counter", "Runs of the garbage collector.",
                 runs, "generation")  # fmt: skip


def vars_page(server: Server) -> str:
    """The figures as JSON: a number, or an object with a number for each label."""
    figures = [*server_metrics(server), *process_metrics()]
    values = {each.name: each.values if each.label else each.values[""] for each in figures}
    return json.dumps({"pid": os.getpid(), "addresses": server.addresses, **values}, indent=1)


def metrics_page(server: Server) -> str:
    """The figures in Prometheus's text format 0.0.4."""
    lines = []
    for name, kind, text, values, label in (*server_metrics(server), *process_metrics()):
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        for key, value in values.items():
            labels = f'{{{label}="{key}"}}' if label else ""
            lines.append(f"{name}{labels} {value}")
    return "\n".join(lines) + "\n"


Stack = tuple[str, tuple[CodeType, ...]]

#: Where a thread of hop's stands when it has nothing to do: one of its two innermost frames.
WAITING = frozenset(
    function.__code__
    for function in (
        EpollPoller.poll, SelectorPoller.poll, Follower._run, Monitor.run, Monitor._park,
    )
)  # fmt: skip


def look(found: Counter[Stack], waiting: bool = False) -> None:
    """Count the stack of each thread but this one; those that wait for work only on demand."""
    me = threading.get_ident()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frames in snapshot().items():
        codes = tuple(frame.f_code for frame in frames)
        if ident != me and (waiting or not WAITING.intersection(codes[:2])):
            found[names.get(ident, "?"), codes[::-1]] += 1


HZ = 99  # looks in a second
IMPATIENCE = 0.0001  # seconds for which a look waits, at most, while another thread has the GIL


def sample(seconds: float, stop: threading.Event, waiting: bool = False) -> Counter[Stack]:
    """How often each stack was found, in `seconds` or until `stop`, with HZ looks a second."""
    found: Counter[Stack] = Counter()
    moment, interval = time.monotonic(), sys.getswitchinterval()
    end = moment + seconds
    sys.setswitchinterval(min(interval, IMPATIENCE))
    try:
        while moment < end and not stop.wait(max(0.0, moment - time.monotonic())):
            look(found, waiting)
            moment = max(moment + 1 / HZ, time.monotonic())
    finally:
        sys.setswitchinterval(interval)
    return found


def title(code: CodeType) -> str:
    """A function's name and the end of its file's path."""
    path = "/".join(code.co_filename.rsplit("/", 2)[-2:])
    return f"{code.co_qualname} ({path})".replace(";", ",")


def collapsed(found: Counter[Stack]) -> str:
    """A profile for flame graph tools: "thread;outer;inner count", a line for each stack."""
    lines = (
        ";".join([name.replace(";", ","), *map(title, codes)]) + f" {count}\n"
        for (name, codes), count in found.most_common()
    )
    return "".join(lines)


def tree_page(found: Counter[Stack], seconds: float, cpu: float) -> str:
    """A profile as pyinstrument's HTML; ProtocolError (501) if that is not installed.

    It took `seconds`, in which the process used `cpu` seconds of CPU time.
    """
    try:
        from pyinstrument.renderers import HTMLRenderer
        from pyinstrument.session import Session
    except ImportError:
        raise ProtocolError(
            HTTPStatus.NOT_IMPLEMENTED,
            "pyinstrument is not there (pip install 'http-over-polling[debug]'); "
            "format=collapsed needs nothing",
        ) from None

    def record(stack: Stack) -> list[str]:
        frames = [f"{each.co_qualname}\0{each.co_filename}\0{each.co_firstlineno}"
                  for each in stack[1]]  # fmt: skip
        return ["all threads\0hop\x000", f"{stack[0]}\0<thread>\x000", *frames]

    session = Session.from_json({
        "frame_records": [(record(stack), count / HZ) for stack, count in found.items()],
        "start_time": time.time() - seconds, "duration": seconds, "cpu_time": cpu,
        "sample_count": found.total(), "start_call_stack": [""],
        "min_interval": 1 / HZ, "max_interval": 1 / HZ, "target_description": "hop",
    })  # fmt: skip
    page: str = HTMLRenderer().render(session)
    return page


NOT_TRACED = """\
Nothing is traced. Tracing makes the server slower and needs memory of its own, so it is
switched on and off by POST: curl -X POST 'http://THIS/debug/heap?do=start' (or do=stop), or by
the buttons of the index.
"""


def heap_page(query: Query) -> str:
    """The `top` lines by what was allocated there since the start of tracing and still lives."""
    top = int(number(query, "top", 20, 1000))
    if not tracemalloc.is_tracing():
        return NOT_TRACED
    lives, peak = tracemalloc.get_traced_memory()
    own = tracemalloc.get_tracemalloc_memory()
    snapshot = tracemalloc.take_snapshot().filter_traces(
        [tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, __file__)]
    )
    lines = [f"{lives:,} bytes allocated since the start still live (peak {peak:,}; "
             f"the tracing itself needs {own:,})\n"]  # fmt: skip
    for each in snapshot.statistics("lineno")[:top]:
        place = each.traceback[0]
        source = linecache.getline(place.filename, place.lineno).strip()
        lines.append(f"{each.size:12,} B {each.count:8,} blocks  "
                     f"{place.filename}:{place.lineno}\n{'':32}{source}")  # fmt: skip
    return "\n".join(lines) + "\n"


def heap_switch(query: Query) -> str:
    """Start or stop tracing, as `do` says; ProtocolError (400) for anything else."""
    switch = {"start": tracemalloc.start, "stop": tracemalloc.stop}.get(query.get("do", ""))
    if switch is None:
        raise ProtocolError(HTTPStatus.BAD_REQUEST, "do must be start or stop")
    switch()
    return f"tracing: {'on' if tracemalloc.is_tracing() else 'off'}\n"


def is_loopback(host: str) -> bool:
    """Whether a host, without a port, is this machine under a name or number of the loopback."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_local(environ: dict[str, Any]) -> None:
    """ProtocolError (403) unless client and Host are of the loopback, or the client came by a
    unix socket."""
    try:
        host = urlsplit("//" + environ.get("HTTP_HOST", "")).hostname or ""
    except ValueError:
        host = ""
    client = environ.get("REMOTE_ADDR", "")
    if client and not is_loopback(client):
        raise ProtocolError(HTTPStatus.FORBIDDEN, "for clients on this machine only")
    if not is_loopback(host):
        raise ProtocolError(HTTPStatus.FORBIDDEN, "the Host must be localhost or its address")


def check_site(environ: dict[str, Any]) -> None:
    """ProtocolError (403) when another site's page makes a browser ask: by Fetch Metadata, or,
    where the browser sends none, by an Origin (RFC 6454) that is not this Host's."""
    host, origin = environ.get("HTTP_HOST", "").lower(), environ.get("HTTP_ORIGIN")
    own = origin is None or origin.lower() in (f"http://{host}", f"https://{host}")
    site = environ.get("HTTP_SEC_FETCH_SITE", "none" if own else "cross-site")
    if site not in ("none", "same-origin"):
        raise ProtocolError(HTTPStatus.FORBIDDEN, "another site asks; type the address instead")


PLAIN, HTML = "text/plain; charset=utf-8", "text/html; charset=utf-8"
METRICS = "text/plain; version=0.0.4; charset=utf-8"

LINKS = {
    "threads": "what every thread does, and its stack: why does nobody get an answer?",
    "connections": "clients, states, what waits for whom (limit=100)",
    "profile?seconds=5": "where the time goes, as a tree (needs pyinstrument)",
    "profile?seconds=5&format=collapsed": "the same as text, for flame graph tools; "
    "waiting=1 adds threads that wait for work",
    "heap": "what was allocated since tracing was started, and still lives (top=20)",
    "vars": "figures, as JSON",
    "metrics": "the same for Prometheus",
}

SECURITY = [
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Content-Security-Policy", "default-src 'none'; script-src 'unsafe-inline'; "
     "style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'"),
]  # fmt: skip


def index_page() -> str:
    """Links to the pages, and the two buttons."""
    rows = "".join(
        f'<dt><a href="/debug/{link}">{link}</a></dt><dd>{text}</dd>\n'
        for link, text in ((link.replace("&", "&amp;"), text) for link, text in LINKS.items())
    )
    buttons = "".join(
        f'<form method="post" action="/debug/heap?do={do}"><button>{do} tracing</button></form>\n'
        for do in ("start", "stop")
    )
    return f"<!doctype html>\n<title>hop</title>\n<h1>hop</h1>\n<dl>\n{rows}</dl>\n{buttons}"


Page = tuple[str, str]  # content type and text


class DebugApp:
    """A WSGI application that shows what a server of the same process is doing.

    It answers clients on this machine only, unless `allow_remote`. `stop()` ends a profile that
    runs.
    """

    def __init__(self, server: Server, *, allow_remote: bool = False) -> None:
        self.allow_remote = allow_remote
        self._stopping = threading.Event()
        self._alone = threading.Lock()
        self._pages: dict[str, Callable[[Query], Page]] = {
            "/debug/": lambda query: (HTML, index_page()),
            "/debug/threads": lambda query: (PLAIN, threads_page()),
            "/debug/connections": lambda query: (PLAIN, connections_page(server, query)),
            "/debug/vars": lambda query: ("application/json", vars_page(server)),
            "/debug/metrics": lambda query: (METRICS, metrics_page(server)),
            "/debug/profile": self.profile,
            "/debug/heap": lambda query: (PLAIN, heap_page(query)),
        }

    def stop(self) -> None:
        """End a profile that runs, and begin no other; from any thread."""
        self._stopping.set()

    def profile(self, query: Query) -> Page:
        """Where the time goes in the next `seconds`, as a tree or as collapsed stacks."""
        check_gil()
        seconds = number(query, "seconds", 5, 60)
        form = query.get("format", "html")
        if form not in ("html", "collapsed"):
            raise ProtocolError(HTTPStatus.BAD_REQUEST, "format must be html or collapsed")
        if form == "html":
            tree_page(Counter(), 0, 0)  # if it cannot be done, say so now
        cpu = time.process_time()
        found = sample(seconds, self._stopping, query.get("waiting") == "1")
        cpu = time.process_time() - cpu
        if form == "html":
            return HTML, tree_page(found, seconds, cpu)
        return PLAIN, collapsed(found)

    def answer(self, method: str, path: str, query: Query) -> Page:
        """The page at `path`. ProtocolError for what is refused."""
        page = self._pages.get(path)
        if page is None:
            raise ProtocolError(HTTPStatus.NOT_FOUND, "the index is at /debug/")
        if method not in METHODS.get(path, METHODS[""]):
            raise ProtocolError(HTTPStatus.METHOD_NOT_ALLOWED, f"not by {method}")
        if method == "POST":
            return PLAIN, heap_switch(query)
        if path not in ("/debug/profile", "/debug/heap"):
            return page(query)
        if not self._alone.acquire(blocking=False):
            raise ProtocolError(HTTPStatus.CONFLICT, "a profile or a snapshot is being taken")
        try:
            return page(query)
        finally:
            self._alone.release()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """The page that is asked for, or why there is none."""
        path, query = environ["PATH_INFO"], dict(parse_qsl(environ.get("QUERY_STRING", "")))
        headers = [*SECURITY]
        try:
            if not self.allow_remote:
                check_local(environ)
            check_site(environ)
            kind, text = self.answer(environ["REQUEST_METHOD"], path, query)
            status = HTTPStatus.OK
        except ProtocolError as error:
            status, kind = error.status, PLAIN
            text = f"{status.value} {status.phrase}: {error.reason}\n"
            if status == HTTPStatus.METHOD_NOT_ALLOWED:
                headers.append(("Allow", ", ".join(METHODS.get(path, METHODS[""]))))
        body = text.encode(errors="backslashreplace")
        headers += [("Content-Type", kind), ("Content-Length", str(len(body)))]
        start_response(f"{status.value} {status.phrase}", headers)
        return [body]


METHODS = {"": ("GET", "HEAD"), "/debug/heap": ("GET", "HEAD", "POST")}


def check_bind(bind: str) -> None:
    """ValueError if others than this machine's users could reach it, or if it is no bind."""
    where = parse_bind(bind)
    if isinstance(where, UnixBind):
        return
    hosts = []
    if isinstance(where, TcpBind) and where.host:
        found = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
        hosts = [str(address[0]) for *_, address in found]
    if not hosts or not all(map(is_loopback, hosts)):
        raise ValueError(f"the debug address {bind!r} could be reached from other machines: use "
                         "localhost:6060 or unix:/path, or allow it explicitly")  # fmt: skip


@contextlib.contextmanager
def debug_port(
    server: Server, bind: str = "localhost:6060", *, allow_remote: bool = False
) -> Iterator[str]:
    """Show on a port of its own, while the block runs, what `server` is doing; gives the URL.

    `server` may run already. ValueError if it is to have several processes, or if other
    machines could reach the port without `allow_remote`; OSError if it cannot be had.
    """
    if server.processes > 1:
        raise ValueError("a debug address needs processes=1: each process would need its own")
    if not allow_remote:
        check_bind(bind)
    app = DebugApp(server, allow_remote=allow_remote)
    with serve(app, bind=bind, shutdown_timeout=1.0, max_threads=8, max_connections=64,
               listen=ListenConfig(unix_mode=0o600)) as served:  # fmt: skip
        try:
            yield served.url
        finally:
            app.stop()
