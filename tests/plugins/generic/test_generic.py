"""Layers, their types and order, and the family, from names and shapes."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zooplatform.errors import ArchitectureError
from zooplatform.interfaces import CheckpointHeader, TensorSpec
from zooplatform_generic.adapter import GenericAdapter


def header_of(state, config=None) -> CheckpointHeader:
    tensors = tuple(
        TensorSpec(name, str(t.dtype).removeprefix("torch."), tuple(t.shape), t.nbytes)
        for name, t in state.items()
    )
    return CheckpointHeader(tensors=tensors, format="test", config=config or {})


def header_of_shapes(shapes, config=None) -> CheckpointHeader:
    tensors = tuple(TensorSpec(name, "float32", shape, 0) for name, shape in shapes.items())
    return CheckpointHeader(tensors=tensors, format="test", config=config or {})


def types_of(state) -> dict[str, str]:
    return {layer.name: layer.type for layer in GenericAdapter().layers(header_of(state))}


MIXED = {
    "conv": nn.Conv2d(3, 4, 3),
    "conv1d": nn.Conv1d(3, 4, 3),
    "up": nn.ConvTranspose3d(3, 4, 3),
    "bn": nn.BatchNorm2d(4),
    "ln": nn.LayerNorm(4),
    "rms": nn.RMSNorm(4),
    "emb": nn.Embedding(9, 4),
    "lstm": nn.LSTM(4, 5, num_layers=2, bidirectional=True),
    "cell": nn.GRUCell(4, 5),
    "attn": nn.MultiheadAttention(4, 2),
    "fc": nn.Linear(4, 2),
    "free": nn.Linear(4, 2, bias=False),
    "prelu": nn.PReLU(4),
    "bilinear": nn.Bilinear(2, 3, 4),
}


def test_types_of_torch_layers():
    assert types_of(nn.ModuleDict(MIXED).state_dict()) == {
        "conv": "conv",
        "conv1d": "conv",
        "up": "conv",
        "bn": "norm",
        "ln": "norm",
        "rms": "norm",
        "emb": "embedding",
        "lstm": "recurrent",
        "cell": "recurrent",
        "attn": "attention",
        "attn.out_proj": "attention",
        "fc": "linear",
        "free": "linear",
        "prelu": "other",
        "bilinear": "conv",
    }


def test_a_layer_holds_all_its_tensors_weight_first():
    state = nn.ModuleDict(MIXED).state_dict()
    layers = GenericAdapter().layers(header_of(dict(reversed(state.items()))))
    by_name = {layer.name: layer.tensors for layer in layers}
    assert by_name["bn"] == (
        "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked",
    )  # fmt: skip
    assert by_name["conv"] == ("conv.weight", "conv.bias")
    assert len(by_name["lstm"]) == 16
    assert by_name["attn"] == ("attn.in_proj_weight", "attn.in_proj_bias")
    assert [layer.name for layer in layers] == list(dict.fromkeys(
        name.rpartition(".")[0] for name in reversed(state)
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"weight": (2, 3), "bias": (2,)}, {"(root)": "linear"}),
        ({"cls_token": (1, 1, 8), "pos_embed": (1, 5, 8)}, {"cls_token": "other", "pos_embed": "other"}),
        ({"a/conv2d/kernel:0": (3, 3, 1, 8), "a/conv2d/bias:0": (8,)}, {"a/conv2d": "conv"}),
        ({"x.LayerNorm.gamma": (4,), "x.LayerNorm.beta": (4,)}, {"x.LayerNorm": "norm"}),
        ({"blocks.0.ls1.gamma": (4,)}, {"blocks.0.ls1": "other"}),
        ({"l.self_attn.q_proj.weight": (4, 4), "l.mlp.up_proj.weight": (8, 4)},
         {"l.self_attn.q_proj": "attention", "l.mlp.up_proj": "linear"}),
        ({"m.embed_tokens.weight": (9, 4), "m.patch_embed.proj.weight": (4, 3, 2, 2)},
         {"m.embed_tokens": "embedding", "m.patch_embed.proj": "conv"}),
        ({"m.mlp.experts.weight": (8, 4, 4)}, {"m.mlp.experts": "linear"}),
        ({"l.fc.qweight": (4, 4), "l.fc.qzeros": (1, 4), "l.fc.scales": (1, 4)}, {"l.fc": "linear"}),
        ({"l.fc.weight": (16, 1), "l.fc.weight.absmax": (4,)}, {"l.fc": "linear"}),
        ({"l.parametrizations.weight.original0": (4, 1), "l.parametrizations.weight.original1": (4, 3),
          "l.bias": (4,)}, {"l": "linear"}),
        ({"": (2,), ".": (), "a..weight": (2, 2)}, {"": "other", ".": "other", "a.": "linear"}),
    ],
    ids=lambda value: next(iter(value)) or "empty name",
)  # fmt: skip
def test_types_from_names_and_shapes(shapes, expected):
    layers = GenericAdapter().layers(header_of_shapes(shapes))
    assert {layer.name: layer.type for layer in layers} == expected
    assert sorted(t for layer in layers for t in layer.tensors) == sorted(shapes)


@pytest.mark.parametrize(
    ("name", "family", "counts"),
    [
        ("resnet18", "resnet", {"conv": 20, "norm": 20, "linear": 1}),
        ("vit_tiny_patch16_224", "vit", {"conv": 1, "norm": 25, "attention": 24, "linear": 25}),
        ("convnext_atto", "convnext", {}),
        ("mobilenetv3_small_050", "mobilenet", {}),
        ("densenet121", "densenet", {"conv": 120, "norm": 121, "linear": 1}),
        ("swin_tiny_patch4_window7_224", "swin", {}),
        ("vgg11", "vgg", {}),
    ],
)
def test_families_and_layers_of_known_networks(name, family, counts):
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    found = GenericAdapter().describe(header_of(model.state_dict()))
    assert found["family"] == family
    layers = GenericAdapter().layers(header_of(model.state_dict()))
    for kind, count in counts.items():
        assert sum(layer.type == kind for layer in layers) == count, kind


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "vgg11", "convnext_atto"])
def test_a_file_sorted_by_name_gets_the_order_of_the_network(name):
    with torch.device("meta"):
        state = timm.create_model(name, pretrained=False).state_dict()
    adapter = GenericAdapter()
    parameters = {n: t for n, t in state.items() if t.ndim > 1 and n.endswith(".weight")}
    expected = [layer.name for layer in adapter.layers(header_of(parameters))]
    by_name = adapter.layers(header_of(dict(sorted(parameters.items()))))
    assert [layer.name for layer in by_name] == expected


BERT = {
    "embeddings.word_embeddings.weight": (100, 8),
    "encoder.layer.0.attention.self.query.weight": (8, 8),
    "encoder.layer.0.attention.self.query.bias": (8,),
    "encoder.layer.0.attention.output.dense.weight": (8, 8),
    "encoder.layer.0.intermediate.dense.weight": (32, 8),
    "encoder.layer.0.output.dense.weight": (8, 32),
    "encoder.layer.10.output.dense.weight": (8, 32),
    "encoder.layer.2.output.dense.weight": (8, 32),
    "pooler.dense.weight": (8, 8),
}


def test_layers_of_a_sorted_transformer_come_in_its_order():
    layers = GenericAdapter().layers(header_of_shapes(dict(sorted(BERT.items()))))
    assert [layer.name for layer in layers] == [
        "embeddings.word_embeddings",
        "encoder.layer.0.attention.self.query",
        "encoder.layer.0.attention.output.dense",
        "encoder.layer.0.intermediate.dense",
        "encoder.layer.0.output.dense",
        "encoder.layer.2.output.dense",
        "encoder.layer.10.output.dense",
        "pooler.dense",
    ]


@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        (BERT, "bert"),
        ({"model.layers.0.self_attn.q_proj.weight": (4, 4), "model.layers.0.mlp.gate_proj.weight": (8, 4)}, "llama"),
        ({"transformer.h.0.attn.c_attn.weight": (4, 12), "transformer.wte.weight": (9, 4)}, "gpt"),
        ({"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4)}, "t5"),
        ({"base.q_proj.lora_A.weight": (2, 4), "base.q_proj.lora_B.weight": (4, 2)}, "lora"),
        ({"rnn.weight_ih_l0": (20, 3), "rnn.weight_hh_l0": (20, 5)}, "lstm"),
        ({"rnn.weight_ih_l0": (15, 3), "rnn.weight_hh_l0": (15, 5)}, "gru"),
        ({"rnn.weight_ih_l0": (5, 3), "rnn.weight_hh_l0": (5, 5)}, "rnn"),
        ({"l/kernel:0": (3, 20), "l/recurrent_kernel:0": (5, 20)}, "lstm"),
        ({"a.self_attn.in_proj_weight": (12, 4)}, "transformer"),
        ({"conv1.weight": (4, 1, 3, 3), "fc.weight": (2, 4)}, "cnn"),
        ({"0.weight": (4, 3), "2.weight": (2, 4)}, "mlp"),
        ({"scale": (1,)}, "unknown"),
        ({}, "unknown"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_families(shapes, family):
    found = GenericAdapter().describe(header_of_shapes(shapes))
    assert (found["family"], found["name"], found["config"]) == (family, family, {})


def test_a_transformers_configuration_names_family_and_class():
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 4}
    found = GenericAdapter().describe(header_of_shapes({"a": (1,)}, config))
    assert (found["family"], found["name"]) == ("qwen3", "Qwen3ForCausalLM")
    with pytest.raises(ArchitectureError, match=r"Qwen3ForCausalLM.*pip install transformers"):
        GenericAdapter().build(found["config"])
    with pytest.raises(ArchitectureError, match="zoo plugins new architecture"):
        GenericAdapter().build({})


names = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            ["weight", "bias", "attn", "3", "conv1", "emb", "norm", "h", "", "/", ":0"]
        ),
        max_size=6,
    ).map(".".join),
)
shapes = st.lists(st.integers(0, 2**40), max_size=6).map(tuple)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
configs = st.dictionaries(st.sampled_from(["model_type", "architectures", "x"]), json_values)


@given(tensors=st.dictionaries(names, shapes, max_size=20), config=configs)
def test_no_state_dict_makes_it_fail(tensors, config):
    adapter, header = GenericAdapter(), header_of_shapes(tensors, config)
    assert adapter.matches(header)
    found = adapter.describe(header)
    assert isinstance(found["family"], str)
    assert isinstance(found["name"], str)
    layers = adapter.layers(header)
    assert sorted(t for layer in layers for t in layer.tensors) == sorted(tensors)
    assert [layer.index for layer in layers] == list(range(len(layers)))
    assert {layer.type for layer in layers} <= {
        "conv", "linear", "norm", "embedding", "attention", "recurrent", "other",
    }  # fmt: skip


def test_canonical_form_and_back():
    adapter, state = GenericAdapter(), nn.ModuleDict(MIXED).state_dict()
    layout = header_of(state).tensors
    back = adapter.from_canonical(
        dict(reversed(adapter.to_canonical(state).items())), layout=layout
    )
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    with pytest.raises(ArchitectureError, match=r"name and shape: fc\.bias"):
        adapter.from_canonical({n: t for n, t in state.items() if n != "fc.bias"}, layout=layout)
    with pytest.raises(ArchitectureError, match="name and shape: extra"):
        adapter.from_canonical({**state, "extra": torch.zeros(1)}, layout=layout)
