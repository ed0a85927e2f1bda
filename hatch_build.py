"""The wheel holds `hop` alone, so it must not promise nbconvert an exporter of `book`."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WithoutBook(BuildHookInterface[Any]):
    """Drop the tangler's entry point from a built wheel; keep it in a development install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Run by hatchling before a wheel is built; `version` is "standard" or "editable"."""
        if version == "standard":
            self.metadata.core.entry_points.pop("nbconvert.exporters", None)
