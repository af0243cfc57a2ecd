"""Set modules: padding never counts, order never counts, and the formulas are those of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from zooplatform.errors import ConfigError
from zooplatform_sne.sets import MAB, SetSettings, SetToSet, SetToVector

KINDS = ["sab", "isab", "deepsets"]
NORMS = ["pre", "post", "none"]


def settings(kind: str = "sab", norm: str = "pre") -> SetSettings:
    torch.manual_seed(0)
    return SetSettings(dim=16, heads=4, set_module=kind, norm=norm, seeds=2, inducing=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str, norm: str) -> None:
    made = settings(kind, norm)
    equivariant, invariant = SetToSet(made).eval(), SetToVector(made).eval()
    x = torch.randn(3, 7, 16)
    # Large values in the padding, so that a mask that is lost anywhere shows.
    padded = torch.cat([x, torch.full((3, 5, 16), 100.0)], dim=1)
    mask = torch.arange(12).expand(3, -1) < 7
    torch.testing.assert_close(
        equivariant(padded, mask)[:, :7], equivariant(x), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(invariant(padded, mask), invariant(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_elements(kind: str) -> None:
    made = settings(kind)
    equivariant, invariant = SetToSet(made).eval(), SetToVector(made).eval()
    x, order = torch.randn(2, 9, 16), torch.randperm(9)
    torch.testing.assert_close(equivariant(x[:, order]), equivariant(x)[:, order])
    torch.testing.assert_close(invariant(x[:, order]), invariant(x))


@pytest.mark.parametrize("kind", KINDS)
def test_every_element_and_every_parameter_counts(kind: str) -> None:
    made = settings(kind)
    module = nn.ModuleList([SetToSet(made), SetToVector(made)])
    x = torch.randn(2, 5, 16, requires_grad=True)
    module[1](module[0](x)).square().sum().backward()
    assert x.grad is not None
    assert bool((x.grad.abs().sum(-1) > 0).all())
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        # The bias of a key moves all scores of a query alike, which softmax does not see.
        half = parameter.grad[16:] if name.endswith("key_value.bias") else parameter.grad
        assert bool(half.any()), name


def test_attention_by_hand() -> None:
    """`MAB` as sums over elements: softmax((q . k) / sqrt(d / heads)), a skip, a feed-forward part, a skip."""
    block = MAB(settings(norm="post")).eval()
    x, y = torch.randn(1, 3, 16), torch.randn(1, 5, 16)
    query, (key, value) = block.query(x)[0], block.key_value(y)[0].split(16, dim=-1)
    heads = []
    for head in range(4):
        part = slice(4 * head, 4 * head + 4)
        scores = query[:, part] @ key[:, part].T / 4**0.5
        heads.append(scores.softmax(-1) @ value[:, part])
    inner = functional.layer_norm(x[0] + block.output(torch.cat(heads, -1)), (16,))
    expected = functional.layer_norm(inner + block.feed_forward(inner), (16,))
    torch.testing.assert_close(block(x, y)[0], expected)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    module = SetToVector(SetSettings(dim=16, dropout=0.5))
    x = torch.randn(2, 5, 16)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"dim": 10}, "10 cannot be split over 4 heads"),
        ({"set_module": "gru"}, "sab, isab, deepsets"),
        ({"norm": "batch"}, "pre, post, none"),
        ({"depth": -1}, "depth is -1"),
        ({"seeds": True}, "seeds is True"),
        ({"dropout": 1.0}, "below 1"),
    ],
)
def test_settings_are_checked(given: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        SetSettings(**given)  # type: ignore[arg-type]
