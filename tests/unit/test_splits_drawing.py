"""Drawing a split: ratios, groups, strata, and that nothing but content and seed decides."""

from __future__ import annotations

import hashlib
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zooplatform.errors import ConfigError
from zooplatform.splits.drawing import draw, join_groups, parse_ratio, seats

THIRDS = parse_ratio("70/15/15")


def contents(count: int, salt: str = "") -> list[str]:
    return [hashlib.md5(f"{salt}{i}".encode()).hexdigest() for i in range(count)]


def singles(count: int) -> list[list[int]]:
    return [[i] for i in range(count)]


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("70/15/15", {"train": Fraction(7, 10), "val": Fraction(3, 20), "test": Fraction(3, 20)}),
        ("80/20", {"train": Fraction(4, 5), "test": Fraction(1, 5)}),
        ("0.5/0.25/0.25", {"train": Fraction(1, 2), "val": Fraction(1, 4), "test": Fraction(1, 4)}),
        ("1/0/1", {"train": Fraction(1, 2), "test": Fraction(1, 2)}),
    ],
)
def test_ratios(text: str, shares: dict[str, Fraction]) -> None:
    assert parse_ratio(text) == shares


@pytest.mark.parametrize(
    "text", ["", "70", "70/15/15/5", "a/b", "70/-15/45", "0/0/0", "1/0/nan", "1/"]
)
def test_other_ratios_are_refused_with_the_form_that_works(text: str) -> None:
    with pytest.raises(ConfigError, match="70/15/15"):
        parse_ratio(text)


@given(st.integers(3, 500), st.lists(st.integers(1, 100), min_size=3, max_size=3))
def test_seats_are_whole_and_never_far_from_the_share(count: int, parts: list[int]) -> None:
    ratio = parse_ratio("/".join(map(str, parts)))
    given_seats = seats(count, ratio)
    assert sum(given_seats.values()) == count
    assert min(given_seats.values()) >= 1
    for role, share in ratio.items():
        # A role that would get none takes its seat from the largest.
        assert abs(given_seats[role] - share * count) < 3


def test_fewer_groups_than_roles_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 groups cannot fill train, val, test"):
        seats(2, THIRDS)


def test_the_whole_gets_its_share_exactly() -> None:
    roles = draw(singles(1000), contents(1000), ratio=THIRDS, seed=0)
    assert Counter(roles) == {"train": 700, "val": 150, "test": 150}


def test_the_draw_is_the_published_function_of_seed_and_content() -> None:
    """Frozen: a change of these roles would give every published split another meaning."""
    known, groups = contents(24), [[at, at + 8, at + 16] for at in range(8)]
    roles = draw(groups, known, ratio=parse_ratio("50/25/25"), seed=7)

    def digest(group: list[int]) -> bytes:
        text = "\n".join(sorted(known[at] for at in group))
        return hashlib.blake2b(text.encode(), key=b"7", digest_size=16).digest()

    order = sorted(groups, key=digest)
    assert [{roles[at] for at in group} for group in order] == [
        *({"train"}, {"val"}, {"test"}, {"train"}),
        *({"train"}, {"val"}, {"test"}, {"train"}),
    ]


@settings(deadline=None)
@given(st.permutations(range(40)), st.integers(-(2**63), 2**63 - 1))
def test_the_order_in_which_members_come_changes_nothing(order: list[int], seed: int) -> None:
    known, groups = contents(40), [[i, i + 1] for i in range(0, 40, 2)]
    plain = draw(groups, known, ratio=THIRDS, seed=seed)
    moved = [known[at] for at in order]
    place = {at: new for new, at in enumerate(order)}
    shuffled = [[place[at] for at in group] for group in groups]
    shuffled = [shuffled[at % 20] for at in order if at < 20]
    again = draw(shuffled, moved, ratio=THIRDS, seed=seed)
    assert dict(zip(moved, again, strict=True)) == dict(zip(known, plain, strict=True))


def test_seeds_differ_and_roles_are_independent_of_the_seed_of_another_draw() -> None:
    known = contents(3000)
    first = draw(singles(3000), known, ratio=THIRDS, seed=1)
    second = draw(singles(3000), known, ratio=THIRDS, seed=2)
    both = sum(a == b == "train" for a, b in zip(first, second, strict=True))
    assert abs(both / 3000 - 0.49) < 0.03


def test_groups_follow_keys_and_equal_contents_to_the_end() -> None:
    groups = join_groups(["a", "a", "b", "b", "c"], ["1", "2", "2", "3", "4"])
    assert sorted(map(sorted, groups)) == [[0, 1, 2, 3], [4]]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=40))
def test_groups_are_the_connected_parts(pairs: list[tuple[int, int]]) -> None:
    keys, marks = [k for k, _ in pairs], [f"c{c}" for _, c in pairs]
    groups = join_groups(keys, marks)
    assert sorted(at for group in groups for at in group) == list(range(len(pairs)))
    owner = {at: number for number, group in enumerate(groups) for at in group}
    for a in range(len(pairs)):
        # Reachable by a walk over shared keys and contents.
        seen, todo = {a}, [a]
        while todo:
            at = todo.pop()
            for b in range(len(pairs)):
                if b not in seen and (keys[b] == keys[at] or marks[b] == marks[at]):
                    seen.add(b)
                    todo.append(b)
        assert seen == {b for b in range(len(pairs)) if owner[b] == owner[a]}


def test_every_stratum_gets_its_share() -> None:
    strata = ["rare"] * 40 + ["common"] * 400 + ["single"]
    roles = draw(singles(441), contents(441), ratio=THIRDS, seed=3, strata=strata)
    for name, size in Counter(strata).items():
        counted = Counter(r for r, s in zip(roles, strata, strict=True) if s == name)
        for role, share in THIRDS.items():
            assert abs(counted[role] - float(share) * size) <= 2, (name, counted)
    unstratified = draw(singles(441), contents(441), ratio=THIRDS, seed=3)
    assert unstratified != roles


def test_a_group_counts_for_the_stratum_of_most_of_its_members() -> None:
    known, groups = contents(12), [[i, i + 1, i + 2] for i in range(0, 12, 3)]
    mixed = ["a", "a", "b"] * 2 + ["b", "b", "a"] * 2
    pure = ["a"] * 6 + ["b"] * 6
    ratio = parse_ratio("50/50")
    assert draw(groups, known, ratio=ratio, seed=0, strata=mixed) == draw(
        groups, known, ratio=ratio, seed=0, strata=pure
    )
