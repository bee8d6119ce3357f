"""The patterns of topic exchanges: as kombu matches them, but in linear time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.virtual.exchange import TopicExchange as KombuTopicExchange

from eventsync.transports.leased.topic import TopicExchange

WORDS = st.sampled_from(["a", "b", "ab", "", "x+y", "(", "é"])
OURS, KOMBUS = TopicExchange(None), KombuTopicExchange(None)


@given(
    st.lists(st.one_of(WORDS, st.sampled_from(["*", "#"])), min_size=1, max_size=5),
    st.lists(WORDS, min_size=1, max_size=5),
)
def test_patterns_match_as_kombus_do(pattern, words):
    pattern, key = ".".join(pattern), ".".join(words)
    ours = OURS._match(OURS.key_to_pattern(pattern), key)
    assert ours == bool(KOMBUS._match(KOMBUS.key_to_pattern(pattern), key))


@pytest.mark.parametrize("pattern", [".".join(["#"] * 200) + ".x", ".".join(["#", "a"] * 100)])
def test_hostile_patterns_take_no_time(pattern):
    key = ".".join(["a"] * 2000)
    began = time.thread_time()
    OURS._match(OURS.key_to_pattern(pattern), key)
    assert time.thread_time() - began < 2.0
