"""Bodies of many megabytes, down and up, by a client that does as little as it can with them."""

import re
import select
import socket
import time

from examples.load import HOST, Order

BLOCK = 1 << 20
LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
# Discard what has arrived instead of copying it, so that the server is what is measured (tcp(7)).
DISCARD = socket.MSG_TRUNC


class Transfer:
    """A connection on which one body after the other goes down, or up."""

    def __init__(self, order: Order) -> None:
        self.sock = socket.create_connection((HOST, order.port), 30)
        self.sock.setblocking(False)
        self.head = (
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
            % (order.path.encode(), order.size)
            if order.kind == "upload"
            else b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % order.path.encode()
        )
        self.size = order.size if order.kind == "upload" else 0
        self.down = order.kind == "download"
        self.expected = order.size
        self.buffer, self.block = bytearray(BLOCK), memoryview(bytes(BLOCK))
        self.begin()

    def begin(self) -> None:
        """The next request."""
        self.started = time.perf_counter()
        self.unsent, self.left = self.head, self.size
        self.answer, self.missing = b"", -1

    @property
    def interest(self) -> int:
        return select.EPOLLOUT if self.unsent or self.left else select.EPOLLIN

    def send(self) -> None:
        """As much of the request as the kernel takes."""
        if self.unsent:
            self.unsent = self.unsent[self.sock.send(self.unsent) :]
        else:
            self.left -= self.sock.send(self.block[: min(BLOCK, self.left)])

    def receive(self) -> bool:
        """What has arrived of the answer; whether it is whole. ConnectionError if it never will."""
        if self.missing >= 0 and self.down:
            size = self.sock.recv_into(self.buffer, BLOCK, DISCARD)
            self.missing -= size
        else:
            data = self.sock.recv(4096)
            size = len(data)
            self.answer += data
            head = self.answer.find(b"\r\n\r\n")
            if head >= 0:
                length = LENGTH.search(self.answer, 0, head)
                if length is None:
                    raise ConnectionError("an answer without Content-Length")
                self.missing = int(length[1]) - (len(self.answer) - head - 4)
        if not size:
            raise ConnectionError("closed before the answer was complete")
        return self.missing == 0

    def succeeded(self) -> bool:
        """Whether all of the body came, or was received: `workloads.sink` says how much."""
        head, _, body = self.answer.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        whole = bool(length and int(length[1]) == self.expected) if self.down else (
            body == b"%d" % self.expected
        )
        return head[9:10] == b"2" and whole


def transfer(order: Order) -> tuple[list[float], int]:
    """Seconds that each whole transfer took, and how many of them failed.

    None begins after `order.seconds`; those under way are completed. Raises ConnectionError when
    the server closes in between, TimeoutError when nothing moves for half a minute.
    """
    poller, latencies, errors = select.epoll(), [], 0
    transfers = {each.sock.fileno(): each for each in (
        Transfer(order) for _ in range(order.connections)
    )}
    for fd, each in transfers.items():
        poller.register(fd, each.interest)
    until = time.perf_counter() + order.seconds
    while transfers:
        events = poller.poll(30)
        if not events:
            raise TimeoutError("the server stands still")
        for fd, event in events:
            each, interest = transfers[fd], transfers[fd].interest
            if event & select.EPOLLOUT:
                each.send()
            elif each.receive():
                latencies.append(time.perf_counter() - each.started)
                errors += not each.succeeded()
                each.begin()
                if time.perf_counter() >= until:
                    transfers.pop(fd).sock.close()
                    continue
            if each.interest != interest:
                poller.modify(fd, each.interest)
    poller.close()
    return latencies, errors
