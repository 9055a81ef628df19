"""What is shown of data: it stays behind its fence, and what is cut is marked."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from workers.chat import fence, view

DATA = st.text("`~ab \n\r\t\u2028", max_size=60) | st.text(max_size=60)


@given(DATA)
def test_nothing_in_the_data_can_close_its_fence(data: str) -> None:
    opening, *inside, closing = fence(data).split("\n")
    assert "\n".join(inside) == data
    assert opening == closing
    assert re.fullmatch("`{3,}", opening)
    # Closed by a line of at least as many back-ticks, in whatever way a reader ends its lines.
    assert not [
        line for line in data.splitlines() if re.search("`" * len(opening), line)
    ]  # fmt: skip


@given(st.text(max_size=300), st.integers(3, 100))
def test_a_view_is_the_text_or_its_beginning_and_end_with_the_cut_marked(
    text: str, limit: int
) -> None:
    shown = view(text, limit)
    if len(text) <= limit:
        assert shown == text
        return
    head, tail = text[: limit * 2 // 3], text[len(text) - (limit - limit * 2 // 3) :]
    assert shown == (
        f"{head}\n[… {len(text) - limit} of {len(text)} characters left out …]\n{tail}"
    )
    assert len(head) + len(tail) == limit
