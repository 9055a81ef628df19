"""What several commands take: scenes, spans of time, a reason for the audit."""

from __future__ import annotations

import re
import time
from difflib import get_close_matches
from typing import Annotated

import typer

from common.task import SCENE_ALIASES, SceneName

ALL_SCENES = tuple(scene.value for scene in SceneName)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"(?:\d+(?:\.\d+)?[smhdw])+")
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def scene_name(text: str) -> str:
    """Return the scene that ``text`` names, by itself or by an alias."""
    name = SCENE_ALIASES.get(text, text)
    if name not in ALL_SCENES:
        known = (*ALL_SCENES, *SCENE_ALIASES)
        close = get_close_matches(text, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there is: {', '.join(known)}"
        raise typer.BadParameter(f"no scene {text!r}; {hint}")
    return name


def span(text: str) -> float:
    """Return the seconds of a span such as 90s, 30m, 2h, 1h30m, 7d or 2w."""
    if not _SPAN.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is no span of time; write 90s, 30m, 2h, 1h30m or 7d")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def local_time(milliseconds: int) -> str:
    """Return a moment of the server's clock (Unix, ms) as this machine's time of day."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(milliseconds / 1000))


SceneOption = Annotated[
    str | None, typer.Option(parser=scene_name, metavar="SCENE", help="Only this scene.")
]
Why = Annotated[str, typer.Option(metavar="TEXT", help="The reason, for the audit.")]
