"""What a handler may know about its connection."""

from hop.appcontext import RequestContext


class Client:
    """A connection as far as the context looks at it."""

    def __init__(self, name: tuple[str, int] | str, has_left: bool) -> None:
        self.name, self.has_left = name, has_left

    def peer_name(self) -> tuple[str, int] | str:
        return self.name

    def gone(self) -> bool:
        return self.has_left


def test_the_address_is_that_of_the_client():
    assert RequestContext(Client(("192.0.2.7", 50123), False), None).remote_address == (
        "192.0.2.7",
        50123,
    )
    assert RequestContext(Client("", False), None).remote_address == ""


def test_gone_is_asked_anew_each_time():
    client = Client("", False)
    context = RequestContext(client, 12.5)
    assert (context.gone, context.deadline) == (False, 12.5)
    client.has_left = True
    assert context.gone
