"""Chunks of a long list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eventsync.values.chunk import chunked


@given(st.lists(st.integers()), st.integers(1, 9))
def test_chunks(items, size):
    """Chunks are full but for the last, and hold all items in order."""
    chunks = list(chunked(iter(items), size))
    assert [item for chunk in chunks for item in chunk] == items
    assert all(len(chunk) == size for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= size for chunk in chunks)
