"""hop.errors: an exception that knows its answer, and one that nobody can answer."""

from http import HTTPStatus

import pytest

from hop.errors import ClientDisconnected, ProtocolError


def test_a_protocol_error_knows_its_answer_and_says_it():
    error = ProtocolError(HTTPStatus.NOT_FOUND, "nothing is here")
    assert error.status is HTTPStatus.NOT_FOUND
    assert error.reason == "nothing is here"
    assert str(error) == "404 Not Found: nothing is here"


def test_a_client_that_left_is_a_connection_error_and_no_protocol_error():
    with pytest.raises(ConnectionError, match="gone"):
        raise ClientDisconnected("gone")
    assert not issubclass(ClientDisconnected, ProtocolError)
    assert not issubclass(ProtocolError, OSError)
