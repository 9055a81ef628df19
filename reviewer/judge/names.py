"""Which model a name stands for, whoever serves it and however small it was made."""

from __future__ import annotations

import re

_QUANTISED = (
    r"awq|gptq|gguf|ggml|mlx|exl[23]|bnb|nf4|mxfp4|nvfp4|fp(?:4|8|16)|bf16|int(?:4|8)"
    r"|w\d+a\d+|[348]-?bit|dynamic|i?q\d(?:_[a-z0-9]+)*"
)
_DATED = (
    r"\d{4}-\d{2}-\d{2}"  # 2026-03-17
    r"|(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"  # 20260317
    r"|(?:0[1-9]|1[0-2])-?(?:0[1-9]|[12]\d|3[01])"  # 0317; not 2507, which tells models apart
)
_SUFFIX = re.compile(rf"(?:[-_.](?:{_QUANTISED})|-(?:{_DATED}|latest))$")


def kin(model: str) -> str:
    """Return what a model is called without who serves it, its date, tag or quantisation.

    Rather one name too few than too many: of two models taken for one, only one judges.
    """
    name = model.casefold().strip().strip("/").rpartition("/")[2]
    name = re.split("[:@]", name, maxsplit=1)[0]
    while (shorter := _SUFFIX.sub("", name)) not in ("", name):
        name = shorter
    return name or model.casefold()
