"""The same under a server with a mistake: head and body are sent apart."""

from tests import guards
from tests.apps.traced import application

__all__ = ["application"]

guards.PLANTS["apart"]()
