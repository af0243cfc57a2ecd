"""Which tensors form a layer, what kind of layer it is and in which order layers come."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from zooplatform.interfaces import LayerSpec, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["layers_of"]

# Last parts of a name that only say which tensor of a layer it is, in the order in which a layer shows them.
_SUFFIXES = (
    "weight", "kernel", "weight_v", "weight_g", "gamma", "embeddings", "qweight", "weight_packed",
    "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "depthwise_kernel",
    "pointwise_kernel", "recurrent_kernel", "bias", "beta", "in_proj_bias", "bias_k", "bias_v",
    "running_mean", "running_var", "moving_mean", "moving_variance", "num_batches_tracked",
    "weight_scale", "weight_zero_point", "weight_shape", "input_scale", "scales", "qzeros", "g_idx",
    "absmax", "quant_map", "quant_state", "SCB",
)  # fmt: skip
_SUFFIX_ORDER = {suffix: order for order, suffix in enumerate(_SUFFIXES)}
_RECURRENT = re.compile(r"(weight|bias)_(ih|hh|hr)(_l\d+)?(_reverse)?")

_NORM = re.compile(r"norm|(^|[._/])(bn|ln|gn|rms)[_\d]*([._/]|_f$|$)|batch_?norm|layer_?norm", re.I)
_ACTIVATION = re.compile(r"p?relu|(^|[._/])act", re.I)
_EMBEDDING = re.compile(r"emb(ed|eddings?|eds)?([._/\d]|$)|(^|[._/])(wte|wpe)([._/]|$)", re.I)
_TOKEN = re.compile(r"embed_(tokens|positions)|(token|position|word|char)[a-z_]*_?emb", re.I)
_ATTENTION = re.compile(r"(^|[._/0-9])[a-z_]*(attn|attention|mha)[a-z_]*\d*([._/]|$)", re.I)
_EXPERTS = re.compile(r"(^|[._/])experts([._/]|$)")


def layers_of(tensors: Sequence[TensorSpec]) -> tuple[LayerSpec, ...]:
    """The layers of a state dict, from the input to the output as far as that can be known.

    Every tensor is in exactly one layer.

    Args:
        tensors: the layout; names must differ.
    """
    groups: dict[str, list[tuple[int, int, TensorSpec]]] = {}
    for position, tensor in enumerate(tensors):
        layer, suffix = _split(tensor.name)
        groups.setdefault(layer, []).append((_tensor_order(suffix), position, tensor))
    names = list(groups)
    if _is_sorted(tensors):
        names.sort(key=_usual_order)
    result = []
    for index, name in enumerate(names):
        members = [tensor for _, _, tensor in sorted(groups[name], key=lambda item: item[:2])]
        kind = _layer_type(name, members)
        result.append(LayerSpec(index, name, kind, tuple(tensor.name for tensor in members)))
    return tuple(result)


# --- grouping ---------------------------------------------------------------------------------


def _split(name: str) -> tuple[str, str]:
    """Layer and last part of a tensor name; the last part is empty when the tensor stands alone."""
    plain = name.removesuffix(":0")  # as TensorFlow writes them
    # bitsandbytes and torch parametrizations put their tensors below the weight.
    plain = re.sub(r"\.parametrizations\.(\w+)\.original(\d)$", r".\1_\2", plain)
    plain = re.sub(r"\.weight\.(absmax|quant_map|quant_state\.\S+)$", r".\1", plain)
    match = re.fullmatch(r"(?:(.*)[./])?([^./]*)", plain, re.S)
    if match is None:
        return name, ""
    prefix, last = match[1] or "", match[2]
    if last in _SUFFIX_ORDER or _RECURRENT.fullmatch(last) or re.fullmatch(r"weight_\d", last):
        return prefix or "(root)", last
    return name, ""


def _tensor_order(suffix: str) -> int:
    # Matrices and biases of recurrent layers stay as the file has them; weight_0 is a parametrization.
    if _RECURRENT.fullmatch(suffix) or re.fullmatch(r"weight_\d", suffix):
        return 0
    return _SUFFIX_ORDER.get(suffix, len(_SUFFIX_ORDER))


# --- types ------------------------------------------------------------------------------------


def _layer_type(name: str, members: Sequence[TensorSpec]) -> str:
    by_suffix = {_split(tensor.name)[1]: tensor for tensor in members}
    if any(_RECURRENT.fullmatch(s) or s == "recurrent_kernel" for s in by_suffix):
        return "recurrent"
    if by_suffix.keys() & {"in_proj_weight", "q_proj_weight"}:
        return "attention"
    if by_suffix.keys() & {"running_mean", "running_var", "moving_mean", "moving_variance"}:
        return "norm"
    if by_suffix.keys() & {"qweight", "weight_packed"}:
        return "attention" if _ATTENTION.search(name) else "linear"
    weight = members[0]
    num_axes = len(weight.shape)
    if "" in by_suffix and num_axes != 2:
        return "other"  # class tokens, logit scales, masks
    if num_axes == 1:
        if _ACTIVATION.search(name.rpartition(".")[2]):
            return "other"
        is_scaled = {"weight", "bias"} <= by_suffix.keys() or {"gamma", "beta"} <= by_suffix.keys()
        return "norm" if is_scaled or _NORM.search(name) else "other"
    if num_axes in {3, 4, 5}:
        return "linear" if _EXPERTS.search(name) else "conv"
    if num_axes != 2:
        return "other"
    if "bias" not in by_suffix and _is_embedding(name):
        return "embedding"
    if "" in by_suffix:
        return "other"
    return "attention" if _ATTENTION.search(name) else "linear"


def _is_embedding(name: str) -> bool:
    return "patch" not in name and bool(_EMBEDDING.search(name) or _TOKEN.search(name))


# --- order ------------------------------------------------------------------------------------


def _is_sorted(tensors: Iterable[TensorSpec]) -> bool:
    """Whether the names of each dtype are in alphabetical order, as safetensors files have them.

    Two tensors say nothing: `bias` before `weight` is then as good as any order.
    """
    by_dtype: dict[str, list[str]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor.name)
    longest = max(map(len, by_dtype.values()), default=0)
    return longest > 2 and all(names == sorted(names) for names in by_dtype.values())


# Where parts of a name stand among their siblings; anything else is in the middle, by its number.
_MIDDLE = 5
_RANKS = tuple(
    (rank, re.compile(pattern))
    for rank, pattern in (
        (0, r".*(embed|embd)\w*|wte|wpe|stem\w*|conv_stem|(cls|class|dist|reg)_token|patch\w*"),
        (0, r"vision_(model|tower)|encoder|shared"),
        (1, r"norm1|ln_?1|input_layernorm|layernorm_before|layer_norm1|self_attn_layer_norm"),
        (
            2,
            r"(self_)?attn|(self_)?attention|self|qkv|in_proj|c_attn|[qkv](_proj)?|query|key|value",
        ),
        (3, r"norm2|ln_?2|post_attention_layernorm|layernorm_after|layer_norm2"),
        (4, r"intermediate|gate_proj|up_proj|c_fc|fc1"),
        (6, r"output|o_proj|out_proj|c_proj|down_proj|fc2|downsample|shortcut"),
        (7, r"LayerNorm|final_layer_norm|blocks"),
        (8, r"norm|ln_f|layernorm|layer_norm|final_norm|pooler|conv_head"),
        (
            9,
            r"(lm_|mlp_)?head|heads|fc|classifier|cls|logits?|qa_outputs|score|last_linear|decoder",
        ),
    )
)
_KINDS = (re.compile(r"conv|linear|fc|dense"), re.compile(r"bn|norm|ln|gn"))


def _usual_order(layer: str) -> list[tuple[int, int, int, str]]:
    """Sort key of a layer name: stem before numbered parts before head, `conv1` before `bn1`."""
    return [_part_order(part) for part in re.split(r"[./]", layer)]


def _part_order(part: str) -> tuple[int, int, int, str]:
    rank = next((rank for rank, pattern in _RANKS if pattern.fullmatch(part)), _MIDDLE)
    number = re.search(r"\d{1,9}", part)
    kind = next((i for i, pattern in enumerate(_KINDS) if pattern.match(part)), len(_KINDS))
    return rank, int(number[0]) if number else -1, kind, part
