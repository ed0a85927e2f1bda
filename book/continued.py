"""Let a class grow over several cells of a notebook."""

import abc
import dataclasses
import enum
import gc
import inspect
import sys
from types import CellType, MemberDescriptorType
from typing import Any, TypeVar

C = TypeVar("C", bound=type)

# What Python writes into every class by itself. The annotations are merged instead.
_OF_THE_CLASS_ITSELF = {
    "__module__", "__qualname__", "__dict__", "__weakref__", "__doc__", "__annotations__",
    "__annotate__", "__annotate_func__", "__annotations_cache__", "__firstlineno__",
    "__static_attributes__", "__orig_bases__",
}  # fmt: skip


def continued(cls: C) -> C:
    """Copy the members of *cls* onto the earlier class of its name, and return that one.

    A member that comes again replaces the earlier one; instances that exist already have the
    new members too. TypeError for what cannot be added to a class that exists: other bases,
    `__slots__`, fields of a dataclass or of a named tuple, members of an Enum. NameError if
    no class of this name was begun.
    """
    frame = sys._getframe(1)
    earlier = frame.f_locals.get(cls.__name__, frame.f_globals.get(cls.__name__))
    if not isinstance(earlier, type):
        raise NameError(f"class {cls.__name__} is continued here, but was begun nowhere")
    if reason := _refusal(earlier, cls):
        raise TypeError(f"class {cls.__name__} cannot be continued with {reason}")
    _point_super_at(earlier, cls)
    _copy_members(earlier, cls)
    return earlier  # type: ignore[return-value]


def _refusal(earlier: type, cls: type) -> str | None:
    """What *cls* would add that a class has to have from its beginning; None if nothing."""
    members, annotations = vars(cls), inspect.get_annotations(cls)
    if earlier.__module__ != cls.__module__:
        return f"anything here: it belongs to {earlier.__module__}"
    if cls.__bases__ not in ((object,), earlier.__bases__):
        return "other bases: name all of them where it begins"
    if type(cls) not in (type, type(earlier)):
        return "another metaclass: name it where it begins"
    if "__slots__" in members:
        return "__slots__: its instances have their layout already"
    for name in members:
        if name in vars(earlier) and isinstance(vars(earlier)[name], MemberDescriptorType):
            return f"the attribute {name}: it is a slot of the instances"
    if dataclasses.is_dataclass(earlier):
        if annotations:
            return f"the field {next(iter(annotations))}: its __init__ is made already"
        if "__post_init__" in members:
            return "__post_init__: its __init__ is made already, and does not call it"
    if issubclass(earlier, tuple) and annotations:
        return f"the field {next(iter(annotations))}: its __new__ is made already"
    if issubclass(earlier, enum.Enum):
        new = [name for name, value in members.items() if _is_enum_member(name, value)]
        if new:
            return f"the member {new[0]}: an Enum is complete once it is made"
    return None


def _is_enum_member(name: str, value: Any) -> bool:
    return not (name.startswith("_") or hasattr(value, "__get__"))


def _point_super_at(earlier: type, cls: type) -> None:
    """Make zero-argument super() and `__class__` in the methods of *cls* mean *earlier*.

    The compiler gives such methods a cell that holds their class. The collector knows every
    cell that holds *cls*, however deep in decorators the method sits.
    """
    for cell in gc.get_referrers(cls):
        if isinstance(cell, CellType):
            cell.cell_contents = earlier


def _copy_members(earlier: type, cls: type) -> None:
    for name, member in vars(cls).items():
        if name in _OF_THE_CLASS_ITSELF:
            continue
        setattr(earlier, name, member)
        if set_name := getattr(type(member), "__set_name__", None):
            set_name(member, earlier, name)
    if cls.__doc__ is not None:
        earlier.__doc__ = cls.__doc__
    if annotations := inspect.get_annotations(cls):
        earlier.__annotations__ = {**inspect.get_annotations(earlier), **annotations}
    abc.update_abstractmethods(earlier)
