"""A class that grows over several cells."""
# A class that is begun twice is what these tests are about, and what checkers warn of.
# ruff: noqa: F811
# mypy: ignore-errors

import dataclasses
import enum
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from book.continued import continued


def test_members_come_onto_the_earlier_class_and_its_live_instances():
    class Loop:
        def first(self):
            return "first"

    begun, alive = Loop, Loop()

    @continued
    class Loop:
        limit = 3

        def second(self):
            return self.first() + " second"

    assert Loop is begun
    assert alive.second() == "first second"
    assert alive.limit == 3


def test_a_member_that_comes_again_replaces_the_earlier_one():
    class Loop:
        def poll(self):
            return 1

        def wait(self):
            return self.poll()

    @continued
    class Loop:
        def poll(self):
            return 2

    assert Loop().wait() == 2


def test_it_is_found_among_the_globals_of_a_cell():
    cell: dict[str, Any] = {"__name__": "cell", "continued": continued}
    exec("class Loop:\n    x = 1", cell)
    begun = cell["Loop"]
    exec("@continued\nclass Loop:\n    y = 2", cell)
    assert cell["Loop"] is begun
    assert (begun.x, begun.y) == (1, 2)


class Base:
    def greet(self) -> str:
        return "base"

    @classmethod
    def make(cls) -> str:
        return "base " + cls.__name__


def loud(function: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> str:
        return function(*args).upper()

    return wrapper


def test_zero_argument_super_and_dunder_class_mean_the_earlier_class():
    class Loop(Base):
        pass

    begun = Loop

    @continued
    class Loop:
        def greet(self):
            return "loop " + super().greet()

        @classmethod
        def make(cls):
            return "loop " + super().make()

        @property
        def shy(self):
            return super().greet()

        @shy.setter
        def shy(self, value):
            self.said = super().greet() + value

        @staticmethod
        def which():
            return __class__

        @loud
        @loud
        def shout(self):
            return super().greet()

        @functools.cached_property
        def once(self):
            return super().greet()

        def later(self):
            return [super(__class__, self).greet() for _ in range(2)]

    loop = Loop()
    assert loop.greet() == "loop base"
    assert Loop.make() == "loop base Loop"
    assert loop.shy == "base"
    loop.shy = "!"
    assert loop.said == "base!"
    assert Loop.which() is begun
    assert loop.shout() == "BASE"
    assert loop.once == loop.once == "base"
    assert loop.later() == ["base", "base"]


def test_private_names_are_mangled_alike():
    class Loop:
        def __init__(self):
            self.__secret = 5

    @continued
    class Loop:
        def tell(self):
            return self.__secret

    assert Loop().tell() == 5


def test_descriptors_learn_their_owner():
    seen = []

    class Named:
        def __set_name__(self, owner, name):
            seen.append((owner, name))

    class Loop:
        pass

    begun = Loop

    @continued
    class Loop:
        field = Named()

    assert seen[-1] == (begun, "field")


def test_annotations_are_merged_and_the_docstring_is_replaced():
    class Loop:
        """Before."""

        x: int

    @continued
    class Loop:
        y: str = ""

    assert Loop.__doc__ == "Before."
    assert Loop.__annotations__ == {"x": int, "y": str}

    @continued
    class Loop:
        """After."""

    assert Loop.__doc__ == "After."
    assert Loop.__annotations__ == {"x": int, "y": str}


def test_an_abstract_method_that_comes_later_counts():
    class Loop(ABC):
        @abstractmethod
        def poll(self): ...

    @continued
    class Loop:
        @abstractmethod
        def wake(self): ...

    with pytest.raises(TypeError, match="wake"):
        type("Half", (Loop,), {"poll": lambda self: 1})()

    @continued
    class Loop:
        def poll(self):
            return 1

        def wake(self):
            return 2

    assert Loop().poll() == 1


def test_methods_come_onto_a_class_with_slots_a_dataclass_an_enum():
    class Slotted:
        __slots__ = ("x",)

    @continued
    class Slotted:
        def double(self):
            return 2 * self.x

    slotted = Slotted()
    slotted.x = 4
    assert slotted.double() == 8

    @dataclasses.dataclass(frozen=True, slots=True)
    class Point:
        x: int

    @continued
    class Point:
        def double(self):
            return 2 * self.x

    assert Point(3).double() == 6

    class State(enum.Enum):
        IDLE = 1

    @continued
    class State:
        def busy(self):
            return self is not State.IDLE

        @property
        def shown(self):
            return self.name.lower()

    assert (State.IDLE.busy(), State.IDLE.shown) == (False, "idle")


def test_the_same_bases_may_be_named_again():
    class Loop(Base):
        pass

    @continued
    class Loop(Base):
        x = 1

    assert Loop.x == 1


def test_a_class_that_was_never_begun_is_refused():
    with pytest.raises(NameError, match="Nowhere is continued here, but was begun nowhere"):

        @continued
        class Nowhere:
            pass


def test_a_class_of_another_module_is_refused():
    from concurrent.futures import Future

    with pytest.raises(TypeError, match=r"it belongs to concurrent\.futures\._base"):

        @continued
        class Future:
            x = 1


def test_other_bases_are_refused():
    class Loop:
        pass

    with pytest.raises(TypeError, match="Loop cannot be continued with other bases"):

        @continued
        class Loop(Base):
            pass


def test_another_metaclass_is_refused():
    class Meta(type):
        pass

    class Loop:
        pass

    with pytest.raises(TypeError, match="another metaclass"):

        @continued
        class Loop(metaclass=Meta):
            pass


def test_slots_are_refused():
    class Loop:
        pass

    with pytest.raises(TypeError, match="__slots__: its instances have their layout already"):

        @continued
        class Loop:
            __slots__ = ("x",)


def test_an_attribute_over_a_slot_is_refused():
    class Loop:
        __slots__ = ("x",)

    with pytest.raises(TypeError, match="the attribute x: it is a slot"):

        @continued
        class Loop:
            x = 1


def test_a_field_of_a_dataclass_is_refused():
    @dataclasses.dataclass
    class Point:
        x: int

    with pytest.raises(TypeError, match="the field y: its __init__ is made already"):

        @continued
        class Point:
            y: int = 0


def test_a_post_init_that_a_dataclass_would_not_call_is_refused():
    @dataclasses.dataclass
    class Point:
        x: int

    with pytest.raises(TypeError, match="__post_init__"):

        @continued
        class Point:
            def __post_init__(self):
                pass


def test_a_field_of_a_named_tuple_is_refused():
    class Point(NamedTuple):
        x: int

    with pytest.raises(TypeError, match="the field y: its __new__ is made already"):

        @continued
        class Point:
            y: int


def test_a_member_of_an_enum_is_refused():
    class State(enum.Enum):
        IDLE = 1

    with pytest.raises(TypeError, match="the member BUSY: an Enum is complete"):

        @continued
        class State:
            BUSY = 2


def test_a_refusal_leaves_the_class_alone():
    class Loop:
        pass

    begun = Loop
    with pytest.raises(TypeError):

        @continued
        class Loop:
            __slots__ = ("x",)

            def poll(self):
                return __class__

    assert not hasattr(begun, "poll")
