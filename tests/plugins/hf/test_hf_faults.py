"""Everything that can go wrong between here and the Hub: cured, or one clear error."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from zooplatform.errors import SourceError
from zooplatform.testing.hub import LoopbackHub
from zooplatform_hf.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zooplatform.interfaces import Checkpoint
    from zooplatform_hf.source import HubSource

    MakeSource = Callable[..., HubSource]
    Check = Callable[[Checkpoint], None]

INFO = "GET /api/models/"
HEAD = "HEAD .*safetensors"
GET = "GET .*/resolve/.*safetensors"
TOKEN = "hf_secret"


def read(source: HubSource, ref: str, check: Check) -> None:
    (found,) = source.list(ref)
    with source.open(found) as checkpoint:
        check(checkpoint)


def refused(source: HubSource, ref: str, *, header_only: bool = False) -> str:
    def ingest() -> None:
        for found in source.list(ref):
            source.open(found, header_only=header_only).close()

    with pytest.raises(SourceError) as caught:
        ingest()
    assert str(caught.value).startswith("hf-hub:"), "the repository is named first"
    return str(caught.value)


def cached(tmp_path: Path) -> list[Path]:
    """Blobs and half-written files in the cache."""
    return [path for path in (tmp_path / "cache").rglob("*") if path.parent.name == "blobs"]


# --- cured by trying again -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("request_line", [INFO, HEAD, GET, "GET .*config.json"])
def test_a_busy_server_is_asked_again(
    hub: LoopbackHub,
    net: str,
    source: HubSource,
    assert_holds: Check,
    status: int,
    request_line: str,
) -> None:
    hub.fail(request_line, "status", status=status, times=2)
    read(source, net, assert_holds)
    assert not [fault for fault in hub.faults if fault.times]


@pytest.mark.parametrize("request_line", [INFO, HEAD, GET])
def test_retry_after_is_heeded_and_capped(
    hub: LoopbackHub, net: str, make_source: MakeSource, assert_holds: Check, request_line: str
) -> None:
    """The client itself would sleep for an hour."""
    hub.fail(request_line, "status", status=429, retry_after="3600")
    source = make_source(patience=Patience(timeout=0.5, tries=3, first_wait=0, longest_wait=0.3))
    start = time.monotonic()
    read(source, net, assert_holds)
    assert 0.3 <= time.monotonic() - start < 5


def test_a_short_retry_after_replaces_the_own_wait(
    hub: LoopbackHub, net: str, make_source: MakeSource, assert_holds: Check
) -> None:
    hub.fail(INFO, "status", status=503, retry_after="0")
    source = make_source(patience=Patience(timeout=0.5, tries=3, first_wait=60, longest_wait=60))
    read(source, net, assert_holds)


@pytest.mark.parametrize("request_line", [INFO, HEAD, GET])
@pytest.mark.parametrize("kind", ["reset", "hang"])
def test_lost_connections_are_made_again(
    hub: LoopbackHub, net: str, source: HubSource, assert_holds: Check, request_line: str, kind: str
) -> None:
    hub.fail(request_line, kind, seconds=3)  # type: ignore[arg-type]
    read(source, net, assert_holds)


@pytest.mark.parametrize("kind", ["cut", "reset", "hang"])
def test_a_download_that_breaks_in_the_middle_is_made_again(
    hub: LoopbackHub, net: str, source: HubSource, assert_holds: Check, tmp_path: Path, kind: str
) -> None:
    hub.fail(GET, kind, after_bytes=100_000, seconds=3)  # type: ignore[arg-type]
    read(source, net, assert_holds)
    assert len(cached(tmp_path)) == 1, "no half file is left"


def test_a_slow_server_that_goes_on_is_waited_for(
    hub: LoopbackHub, net: str, source: HubSource, assert_holds: Check
) -> None:
    hub.fail(GET, "slow", seconds=0.002)
    start = time.monotonic()
    read(source, net, assert_holds)
    assert time.monotonic() - start > 0.35, "it took longer than any single time-out"


def test_main_may_move_while_it_is_read(
    hub: LoopbackHub, net: str, source: HubSource, assert_holds: Check
) -> None:
    repo = hub.store.repos[net]
    old = repo.refs["main"]
    hub.fail(HEAD, "call", call=lambda: repo.commit({"model.safetensors": b"another"}))
    (found,) = source.list(net)
    with source.open(found) as checkpoint:
        assert_holds(checkpoint)
        assert checkpoint.info.revision == old != repo.refs["main"]


def test_a_corrupt_download_is_made_again(
    hub: LoopbackHub, net: str, source: HubSource, assert_holds: Check
) -> None:
    hub.fail(GET, "corrupt", after_bytes=5000)
    read(source, net, assert_holds)


def test_a_corrupt_file_in_the_cache_is_replaced(
    hub: LoopbackHub, net: str, source: HubSource, assert_holds: Check, tmp_path: Path
) -> None:
    read(source, net, assert_holds)
    (blob,) = cached(tmp_path)
    data = bytearray(blob.read_bytes())
    data[1234] ^= 4
    blob.write_bytes(data)
    read(source, net, assert_holds)


@pytest.mark.parametrize("header_only", [True, False])
def test_a_server_without_ranges_will_do(
    hub: LoopbackHub, net: str, source: HubSource, header_only: bool
) -> None:
    hub.fail("GET .*/resolve/", "no-ranges", times=9)
    (found,) = source.list(net)
    with source.open(found, header_only=header_only) as checkpoint:
        assert len(checkpoint.header.tensors) == 3
        assert checkpoint.header.config["num_classes"] == 10


# --- one clear error -------------------------------------------------------------------------------


@pytest.mark.parametrize("request_line", [INFO, HEAD, GET])
def test_a_server_that_stays_busy_ends_the_attempt(
    hub: LoopbackHub, net: str, source: HubSource, tmp_path: Path, request_line: str
) -> None:
    fault = hub.fail(request_line, "status", status=503, times=99)
    text = refused(source, net)
    assert "out of service for now (status 503, 3 attempts)" in text
    assert "try again later: zoo ingest hf-hub:org/net" in text
    assert fault.times == 96
    assert not cached(tmp_path)


def test_too_many_requests_tell_to_log_in(hub: LoopbackHub, net: str, source: HubSource) -> None:
    hub.fail(INFO, "status", status=429, times=99)
    assert "status 429" in (text := refused(source, net))
    assert "hf auth login" in text


@pytest.mark.parametrize("header_only", [True, False])
@pytest.mark.parametrize("request_line", [INFO, "(HEAD|GET) .*safetensors"])
def test_a_hanging_server_ends_in_a_time_out(
    hub: LoopbackHub, net: str, source: HubSource, request_line: str, header_only: bool
) -> None:
    """Without a time-out of ours the client waits as long as the server does."""
    hub.fail(request_line, "hang", seconds=60, times=99)
    start = time.monotonic()
    text = refused(source, net, header_only=header_only)
    assert time.monotonic() - start < 15
    assert "no whole answer in 3 attempts" in text
    assert "each may stay silent for 0.5 s" in text


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_a_download_that_never_ends_is_given_up(
    hub: LoopbackHub, net: str, source: HubSource, tmp_path: Path, kind: str
) -> None:
    hub.fail(GET, kind, after_bytes=1000, times=99)  # type: ignore[arg-type]
    text = refused(source, net)
    assert "no whole answer in 3 attempts" in text or "broke 3 times" in text
    assert not cached(tmp_path)


def test_a_download_that_stays_corrupt_is_refused_and_removed(
    hub: LoopbackHub, net: str, source: HubSource, tmp_path: Path
) -> None:
    hub.fail(GET, "corrupt", after_bytes=150_000, times=99)
    text = refused(source, net)
    assert "The download is corrupt: its SHA-256 is" in text
    assert not cached(tmp_path)
    assert not [path for path in (tmp_path / "cache").rglob("*.safetensors") if path.is_symlink()]


def test_a_corrupt_small_file_is_refused(hub: LoopbackHub, net: str, source: HubSource) -> None:
    hub.fail("GET .*config.json", "corrupt", after_bytes=3, times=99)
    assert "config.json: The download is corrupt: its git SHA-1" in refused(source, net)


def test_names_that_climb_are_refused(hub: LoopbackHub, source: HubSource, weights: Path) -> None:
    for name in ("../../evil.safetensors", "/evil.safetensors"):
        hub.store.repos.clear()
        hub.store.repo("org/evil", {"model.safetensors": weights, name: b"x"})
        text = refused(source, "org/evil")
        assert f"lists a file {name!r}, whose name leads out of the repository" in text


@pytest.mark.parametrize("has_token", [False, True])
def test_gated(hub: LoopbackHub, net: str, make_source: MakeSource, has_token: bool) -> None:
    hub.store.users[TOKEN] = "me"
    hub.store.repos[net].gated = True
    text = refused(make_source(token=TOKEN if has_token else None), net)
    assert "The repository org/net is gated" in text
    assert f"Ask for access at {hub.url}/org/net" in text
    assert ("hf auth login" in text) != has_token


def test_gated_and_granted(
    hub: LoopbackHub, net: str, make_source: MakeSource, assert_holds: Check
) -> None:
    hub.store.users[TOKEN] = "me"
    hub.store.repos[net].gated = True
    hub.store.repos[net].granted.add("me")
    read(make_source(token=TOKEN), net, assert_holds)


@pytest.mark.parametrize("has_token", [False, True])
@pytest.mark.parametrize("private", [False, True])
def test_missing_or_private(
    hub: LoopbackHub, net: str, make_source: MakeSource, private: bool, has_token: bool
) -> None:
    hub.store.users[TOKEN] = "me"
    if private:
        hub.store.repos[net].private = True
    else:
        del hub.store.repos[net]
    text = refused(make_source(token=TOKEN if has_token else None), net)
    assert f"There is no repository org/net at {hub.url}, or it is private" in text
    assert ("hf auth login" in text) != has_token


def test_a_wrong_token(net: str, make_source: MakeSource) -> None:
    assert "refuses the token in use. Run `hf auth login`" in refused(make_source(token="x"), net)


def test_missing_revision(net: str, source: HubSource) -> None:
    text = refused(source, f"{net}@v9")
    assert "The repository org/net has no branch, tag or commit 'v9'" in text
    assert "zoo ingest hf-hub:org/net" in text


def test_missing_file(net: str, source: HubSource) -> None:
    text = refused(source, f"{net}/other.safetensors")
    assert "org/net has no file 'other.safetensors' at this commit" in text
    assert "weights in model.safetensors" in text


def test_no_weights(hub: LoopbackHub, source: HubSource) -> None:
    hub.store.repo("org/empty", {"README.md": b"# nothing", "optimizer.pt": b"x"})
    text = refused(source, "org/empty")
    assert "no weights among the 2 file(s) of org/empty: README.md, optimizer.pt" in text


def test_a_pointer_in_place_of_weights(hub: LoopbackHub, source: HubSource) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    hub.store.repo("org/lfs", {"model.safetensors": pointer})
    assert "Git LFS pointer" in refused(source, "org/lfs")


def test_nobody_at_home(make_source: MakeSource) -> None:
    with LoopbackHub() as gone:
        url = gone.url
    text = refused(make_source(endpoint=url), "org/net")
    assert f"{url} cannot be reached" in text
    assert "hf download org/net --local-dir DIR" in text


def test_offline(
    net: str,
    source: HubSource,
    monkeypatch: pytest.MonkeyPatch,
    assert_holds: Check,
    tmp_path: Path,
) -> None:
    from huggingface_hub import constants

    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        text = refused(source, net)
        assert "HF_HUB_OFFLINE is set" in text
        assert "hf download org/net --local-dir DIR" in text
    read(source, net, assert_holds)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (snapshot,) = (tmp_path / "cache" / "models--org--net" / "snapshots").iterdir()
    assert f"zoo ingest local:{snapshot}" in refused(source, net)


def test_another_web_server(hub: LoopbackHub, source: HubSource) -> None:
    hub.store.repo("org/net", {"a": b"b"}).info = lambda *_, **__: ["no", "dictionary"]  # type: ignore[assignment,method-assign,return-value]
    assert "is not a Hub's" in refused(source, "org/net")


# --- the token -------------------------------------------------------------------------------------


@pytest.mark.parametrize("header_only", [False, True])
def test_the_token_stays_at_the_hub(
    hub: LoopbackHub, net: str, make_source: MakeSource, assert_holds: Check, header_only: bool
) -> None:
    """LFS files come from another host, which must not see who asks."""
    hub.store.users[TOKEN] = "me"
    hub.store.repos[net].private = True
    hub.store.repos[net].granted.add("me")
    with LoopbackHub(hub.store) as cdn:
        hub.cdn = cdn
        source = make_source(token=TOKEN)
        (found,) = source.list(net)
        with source.open(found, header_only=header_only) as checkpoint:
            if not header_only:
                assert_holds(checkpoint)
        assert cdn.requests
        for request in cdn.requests:
            assert TOKEN not in str(request), "the token went to another host"
    assert all(TOKEN in request.headers["authorization"] for request in hub.requests)


@pytest.mark.parametrize("request_line", [INFO, HEAD, GET, "GET .*config.json"])
def test_a_redirect_of_any_request_does_not_carry_the_token(
    hub: LoopbackHub, net: str, make_source: MakeSource, assert_holds: Check, request_line: str
) -> None:
    hub.store.users[TOKEN] = "me"
    with LoopbackHub(hub.store) as stranger:
        hub.fail(request_line, "redirect", location=stranger.url, times=99)
        source = make_source(token=TOKEN)
        if request_line == HEAD:
            # What a redirected HEAD says of a file must come with the redirect itself.
            assert "is not a Hub's" in refused(source, net)
        else:
            read(source, net, assert_holds)
            assert stranger.requests
        for request in stranger.requests:
            assert TOKEN not in str(request), "the token went to another host"
