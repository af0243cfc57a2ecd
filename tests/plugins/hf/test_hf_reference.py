"""References, and names that could lead out of a folder."""

from __future__ import annotations

import pytest

from zooplatform.errors import SourceError
from zooplatform_hf.reference import HubReference, is_safe_path


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("gpt2", HubReference("gpt2")),
        ("org/name", HubReference("org/name")),
        ("timm/resnet18.a1_in1k", HubReference("timm/resnet18.a1_in1k")),
        ("org/name@v1.0", HubReference("org/name", "v1.0")),
        ("org/name/unet/x.safetensors", HubReference("org/name", None, "unet/x.safetensors")),
        ("org/name@abc/sub/x.bin", HubReference("org/name", "abc", "sub/x.bin")),
        ("org/name@refs/pr/3", HubReference("org/name", "refs/pr/3")),
        ("org/name@refs/pr/3/x.bin", HubReference("org/name", "refs/pr/3", "x.bin")),
        ("org/name@a%2Fb/x.bin", HubReference("org/name", "a/b", "x.bin")),
    ],
)
def test_references_are_read_and_written_back(text: str, parsed: HubReference) -> None:
    assert HubReference.parse(text) == parsed
    assert HubReference.parse(str(parsed).removeprefix("hf-hub:")) == parsed


@pytest.mark.parametrize(
    "text", ["", "/", "org/", "org/../x", "org/name@", "org/na me", "org/name/../../etc", "a--b/c"]
)
def test_malformed_references_are_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(SourceError, match=r"Write hf-hub:org/name"):
        HubReference.parse(text)


def test_two_different_revisions_are_refused() -> None:
    assert HubReference.parse("org/name@v1", revision="v1").revision == "v1"
    assert HubReference.parse("org/name", revision="v1").revision == "v1"
    with pytest.raises(SourceError, match=r"'v2' was given as well. Give one of the two"):
        HubReference.parse("org/name@v1", revision="v2")


@pytest.mark.parametrize(
    "path", ["../x", "/etc/x", "a/../../x", "a//b", ".", "a\\..\\x", "C:/x", "x\0y", ""]
)
def test_paths_that_climb_are_seen(path: str) -> None:
    assert not is_safe_path(path)
    assert is_safe_path("a/..b/c.safetensors")
