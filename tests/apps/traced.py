"""An application under strace, which stops threads at every system call: the monitor would take
them for handlers that sleep, and give the lead away. So no thread ever seems asleep to it."""

from hop.leader import Follower
from tests import guards

Follower.asleep = lambda self: False
application = guards.application
