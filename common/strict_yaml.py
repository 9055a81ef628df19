"""YAML that people write: a field that stands twice is refused, where YAML would drop the first."""

from __future__ import annotations

from typing import Any

import yaml


def parse(text: str) -> Any:
    """Return what ``text`` holds. Raises `ValueError` naming line and reason."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(_in_words(error)) from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


class _Loader(yaml.SafeLoader):
    """Makes nothing but plain values, and of each key one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _in_words(error: yaml.YAMLError) -> str:
    """Return the line and what is wrong there."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    return where + (getattr(error, "problem", None) or str(error).splitlines()[0])
