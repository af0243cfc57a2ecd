"""Draws a split from what the members are.

Nothing here looks at ids, names, times or the order in which members come: a group is known by the content hashes of
its networks, and hashes of these with the seed decide. The same networks give the same split on every machine.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

__all__ = ["ROLES", "draw", "join_groups", "parse_ratio", "seats"]

ROLES = ("train", "val", "test")

_T = TypeVar("_T")


def parse_ratio(text: str) -> dict[str, Fraction]:
    """Shares of the roles from `70/15/15` (train/val/test) or `80/20` (train/test); roles with no share are left out.

    Raises:
        ConfigError: it is neither.
    """
    parts = text.split("/")
    names = {2: ("train", "test"), 3: ROLES}.get(len(parts))
    try:
        shares = [Fraction(part.strip()) for part in parts]
    except (ValueError, ZeroDivisionError):
        shares = []
    if names is None or not shares or min(shares) < 0 or not sum(shares):
        raise ConfigError(
            f"Ratio {text!r} is not usable. Write train/val/test as 70/15/15, or train/test as 80/20."
        )
    total = sum(shares)
    return {name: share / total for name, share in zip(names, shares, strict=True) if share}


def join_groups(keys: Sequence[Hashable], contents: Sequence[str]) -> list[list[int]]:
    """Members (as positions) that have to stay on one side: those of one key, and those of equal content.

    Both relations are followed to the end: two groups that share one network are one group.
    """
    parent = list(range(len(keys)))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    first: dict[tuple[str, Hashable], int] = {}
    for at, (key, content) in enumerate(zip(keys, contents, strict=True)):
        for mark in (("key", key), ("content", content)):
            other = root(first.setdefault(mark, at))
            parent[root(at)] = other
    groups: dict[int, list[int]] = defaultdict(list)
    for at in range(len(keys)):
        groups[root(at)].append(at)
    return list(groups.values())


def seats(count: int, ratio: Mapping[str, Fraction]) -> dict[str, int]:
    """How many of `count` groups each role gets: by largest remainder, and at least one each.

    Raises:
        ConfigError: there are fewer groups than roles.
    """
    if count < len(ratio):
        raise ConfigError(
            f"{count} {'group' if count == 1 else 'groups'} cannot fill {', '.join(ratio)}."
        )
    given = {role: int(share * count) for role, share in ratio.items()}
    by_remainder = sorted(ratio, key=lambda role: given[role] - ratio[role] * count)
    for role in by_remainder[: count - sum(given.values())]:
        given[role] += 1
    for role in ratio:
        if not given[role]:
            given[max(given, key=lambda name: given[name])] -= 1
            given[role] = 1
    return given


def draw(
    groups: Sequence[Sequence[int]],
    contents: Sequence[str],
    *,
    ratio: Mapping[str, Fraction],
    seed: int,
    strata: Sequence[str] | None = None,
) -> list[str]:
    """The role of every member.

    Groups are put in the order of a hash of the seed and their contents, stratum by stratum, and roles are dealt along
    this order, always to the role that lags most behind its share. So each stratum gets its share to within a group or
    two, and the whole gets it exactly.

    Args:
        groups: positions of members that stay together.
        contents: content hash of every member.
        ratio: shares of the roles.
        seed: decides the order.
        strata: stratum of every member; a group counts for the one that most of its members are in.
    """
    count = len(groups)
    wanted = seats(count, ratio)
    given = dict.fromkeys(wanted, 0)
    roles = [""] * len(contents)

    def place(group: Sequence[int]) -> tuple[str, bytes]:
        stratum = "" if strata is None else _most_common([strata[at] for at in group])
        return stratum, _digest({contents[at] for at in group}, seed)

    for position, group in enumerate(sorted(groups, key=place), start=1):
        # In whole numbers, so that no rounding differs between machines.
        role = max(
            (role for role in wanted if given[role] < wanted[role]),
            key=lambda role: wanted[role] * position - given[role] * count,
        )
        given[role] += 1
        for at in group:
            roles[at] = role
    return roles


def _digest(contents: set[str], seed: int) -> bytes:
    text = "\n".join(sorted(contents)).encode()
    return hashlib.blake2b(text, key=str(seed).encode(), digest_size=16).digest()


def _most_common(values: Sequence[str]) -> str:
    """The most frequent value, of several the first in order."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))
