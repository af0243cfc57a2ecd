"""Key filters: no key that is there is denied, few that are not are let through."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zooplatform.catalog.key_filter import KeyFilter, key_filter


@given(st.lists(st.text(), min_size=1, max_size=60))
def test_every_key_that_was_put_in_is_found(keys: list[str]) -> None:
    text = key_filter(keys)
    assert text is not None
    found = KeyFilter(text)
    assert all(key in found for key in keys)


def test_few_other_keys_pass_and_the_filter_is_small() -> None:
    text = key_filter([f"key {number}" for number in range(2000)])
    assert text is not None
    assert len(base64.b64decode(text)) == 3000
    found = KeyFilter(text)
    passed = sum(f"other {number}" in found for number in range(20_000))
    assert passed < 200  # one in a hundred; three in a thousand are expected


@pytest.mark.parametrize("count", [0, 65_537])
def test_no_filter_where_it_would_not_pay(count: int) -> None:
    assert key_filter([str(number) for number in range(count)]) is None


def test_a_file_of_few_keys_turns_others_away() -> None:
    """A shard is often alone in its table file: with 16 bits for it, one other key of sixty came through."""
    for count in (1, 2, 5):
        came = 0
        for file in range(400):
            text = key_filter([f"file {file} key {number}" for number in range(count)])
            assert text is not None
            found = KeyFilter(text)
            came += sum(f"other {number} of {file}" in found for number in range(20))
        assert came <= 40, f"{came} of 8,000 keys that {count} others let through"
