"""Models of timm: recognised, rebuilt, refused."""

from __future__ import annotations

import pytest
import timm
import torch

from zooplatform.errors import ArchitectureError
from zooplatform.interfaces import CheckpointHeader, TensorSpec
from zooplatform_timm.adapter import TimmAdapter

# One of each large family, the smallest there is.
MODELS = (
    "resnet18",
    "vit_tiny_patch16_224",
    "mobilenetv3_small_050",
    "convnext_atto",
    "efficientnet_lite0",
    "regnetx_002",
    "densenet121",
    "swin_tiny_patch4_window7_224",
    "mixer_s32_224",
    "ghostnet_050",
    "levit_128s",
    "test_byobnet",
    "test_efficientnet_evos",
)


def header_of(state, config=None, metadata=None) -> CheckpointHeader:
    tensors = tuple(
        TensorSpec(name, str(t.dtype).removeprefix("torch."), tuple(t.shape), t.nbytes)
        for name, t in state.items()
    )
    return CheckpointHeader(
        tensors=tensors, format="test", config=config or {}, metadata=metadata or {}
    )


def randomised(name, **arguments):
    """A model none of whose tensors has its initial value, so that a forgotten one is seen."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **arguments).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.02 - 0.01)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_rebuilt_models_give_the_same_outputs(name):
    adapter, original = TimmAdapter(), randomised(name, num_classes=7)
    state = original.state_dict()
    header = header_of(dict(sorted(state.items())), {"architecture": name, "num_classes": 7})
    assert adapter.matches(header)
    found = adapter.describe(header)
    assert found["name"] == name
    rebuilt = adapter.build(found["config"]).eval()
    rebuilt.load_state_dict(state, strict=True)
    x = torch.randn(1, *original.pretrained_cfg["input_size"])
    with torch.inference_mode():
        expected = original(x)
        assert expected.isfinite().all()
        assert torch.equal(rebuilt(x), expected)

    layers = adapter.layers(header)
    assert sorted(t for layer in layers for t in layer.tensors) == sorted(state)
    firsts = [layer.tensors[0] for layer in layers]
    order = list(state)
    assert [order.index(first) for first in firsts] == sorted(order.index(f) for f in firsts)


@pytest.mark.slow
def test_models_of_all_kinds_are_matched_by_their_tensors():
    """The first model of every other of timm's modules, made without memory."""
    adapter, by_module = TimmAdapter(), {}
    for name in timm.list_models():
        by_module.setdefault(timm.model_entrypoint(name).__module__, name)
    assert len(by_module) > 50
    for name in list(by_module.values())[::2]:
        with torch.device("meta"):
            state = timm.create_model(name, pretrained=False).state_dict()
        assert adapter.matches(header_of(state, {"architecture": name})), name


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"num_classes": 3, "in_chans": 1}),
        ("resnet18", {"num_classes": 0}),
        ("vit_tiny_patch16_224", {"num_classes": 5, "in_chans": 4}),
        ("levit_128s", {"num_classes": 6}),
    ],
    ids=str,
)
def test_sizes_come_from_the_weights_when_nothing_tells_them(name, arguments):
    original = randomised(name, **arguments)
    header = header_of(original.state_dict(), metadata={"timm_model": name})
    config = TimmAdapter().describe(header)["config"]
    rebuilt = TimmAdapter().build(config).eval()
    rebuilt.load_state_dict(original.state_dict(), strict=True)
    x = torch.randn(1, arguments.get("in_chans", 3), 224, 224)
    with torch.inference_mode():
        assert torch.equal(rebuilt(x), original(x))


def test_a_configuration_as_the_hub_has_it():
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 12,
        "num_features": 192,
        "global_pool": "avg",
        "model_args": {"img_size": 64},
        "pretrained_cfg": {
            "tag": "in21k",
            "url": "https://example.org/x",
            "input_size": [3, 64, 64],
        },
    }
    original = randomised("vit_tiny_patch16_224", num_classes=12, global_pool="avg", img_size=64)
    header = header_of(original.state_dict(), config)
    found = TimmAdapter().describe(header)
    assert found["family"] == "vision_transformer"
    assert set(found["config"]) == {"architecture", "num_classes", "global_pool", "model_args"}
    rebuilt = TimmAdapter().build(found["config"]).eval()
    rebuilt.load_state_dict(original.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(rebuilt(x), original(x))


def test_other_checkpoints_are_left_to_others():
    state = timm.create_model("test_byobnet", pretrained=False).state_dict()
    adapter = TimmAdapter()
    assert not adapter.matches(header_of(state))
    assert not adapter.matches(header_of(state, {"architecture": "resnet18"}))
    assert not adapter.matches(header_of(state, {"architecture": ["test_byobnet"]}))
    assert not adapter.matches(header_of(state, {"architectures": ["BertModel"]}))
    assert not adapter.matches(header_of({}, {"architecture": "test_byobnet"}))
    for arguments in ({"depth": 10**9}, {"depth": "x"}, {"patch_size": 0}, [3], "x"):
        config = {"architecture": "test_vit", "model_args": arguments}
        assert not adapter.matches(header_of(state, config))
    with pytest.raises(ArchitectureError, match="adapter `generic`"):
        adapter.describe(header_of(state))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "has no model None"),
        ({"architecture": "resnet1"}, "has no model 'resnet1'.*pip install -U timm"),
        ({"architecture": "hf-hub:timm/resnet18.a1_in1k"}, "has no model"),
        ({"architecture": "local-dir:/tmp"}, "has no model"),
        ({"architecture": "resnet18", "model_args": [1]}, "must be an object"),
        ({"architecture": "resnet18", "model_args": {"size": 3}}, "cannot make 'resnet18'.*size"),
        ({"architecture": "resnet18", "num_classes": "many"}, "cannot make 'resnet18'"),
        ({"architecture": "resnet18", "model_args": {"pretrained": True}}, "weights come from"),
        ({"architecture": "resnet18", "model_args": {"checkpoint_path": "/x"}}, "would load"),
    ],
    ids=str,
)
def test_refusals(config, message):
    with pytest.raises(ArchitectureError, match=message):
        TimmAdapter().build(config)


def test_canonical_form_and_back():
    adapter, state = TimmAdapter(), randomised("test_byobnet").state_dict()
    layout = header_of(state).tensors
    back = adapter.from_canonical(
        dict(reversed(adapter.to_canonical(state).items())), layout=layout
    )
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    first = next(iter(state))
    with pytest.raises(ArchitectureError, match=first):
        adapter.from_canonical({n: t for n, t in state.items() if n != first}, layout=layout)
