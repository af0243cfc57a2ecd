"""Which family a network belongs to, as far as names, shapes and its config.json tell."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from zooplatform.interfaces import LayerSpec, TensorSpec

__all__ = ["guess_family"]

# The first family all of whose patterns are found among the tensor names; the telling ones come first.
_PATTERNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("lora", (r"lora_(A|B|down|up)\b",)),
    ("clip", (r"(^|\.)text_model\.", r"(^|\.)vision_model\.")),
    ("diffusion-unet", (r"(^|\.)down_blocks\.\d", r"(^|\.)up_blocks\.\d", r"(^|\.)mid_block\.")),
    ("swin", (r"relative_position_bias_table$", r"layers[._]\d+\.blocks\.\d+\.")),
    ("vit", (r"patch_embed", r"(blocks|layer|layers)\.\d+\.\S*(attn|attention)",)),
    ("vit", (r"(^|\.)conv_proj\.", r"encoder_layer_\d+\.")),
    ("t5", (r"block\.\d+\.layer\.\d+\.SelfAttention\.",)),
    ("llama", (r"layers\.\d+\.self_attn\.q_proj", r"layers\.\d+\.mlp\.gate_proj")),
    ("gpt", (r"(^|\.)h\.\d+\.(attn|self_attention)\.",)),
    ("gpt", (r"gpt_neox\.layers\.\d+\.",)),
    ("bert", (r"encoder\.layer\.\d+\.attention\.(self|attn)\.",)),
    ("bert", (r"transformer\.layer\.\d+\.attention\.q_lin",)),
    ("convnext", (r"stages\.\d+\.(blocks|layers)?\.?\d+\.(conv_dw|dwconv)",)),
    ("convnext", (r"features\.\d+\.\d+\.layer_scale$",)),
    ("densenet", (r"denselayer\d+\.",)),
    ("mobilenet", (r"blocks\.\d+\.\d+\.(conv_dw|conv_pwl)",)),
    ("mobilenet", (r"features\.\d+\.(conv|block)\.\d+\.",)),
    ("resnet", (r"layers?\.?\d+\.\d+\.conv\d+\.",)),
    ("vgg", (r"features\.\d+\.(weight|bias)$", r"classifier\.\d+\.|pre_logits\.")),
)  # fmt: skip


def guess_family(
    tensors: Sequence[TensorSpec], layers: Iterable[LayerSpec], config: Mapping[str, Any]
) -> str:
    """The family: `model_type` of a transformers configuration, else a guess, else `unknown`."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type:
        return model_type
    names = [tensor.name for tensor in tensors]
    for family, patterns in _PATTERNS:
        if all(any(re.search(pattern, name) for name in names) for pattern in patterns):
            return family
    types = {layer.type for layer in layers}
    if "attention" in types:
        return "transformer"
    if "recurrent" in types:
        return _recurrent_kind(tensors)
    if "conv" in types:
        return "cnn"
    return "mlp" if "linear" in types else "unknown"


def _recurrent_kind(tensors: Iterable[TensorSpec]) -> str:
    """From the number of gates: rows of the recurrent matrix per hidden unit."""
    for tensor in tensors:
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            continue
        if re.search(r"weight_hh", tensor.name):
            gates, rest = divmod(tensor.shape[0], tensor.shape[1])
        elif re.search(r"recurrent_kernel", tensor.name):
            gates, rest = divmod(tensor.shape[1], tensor.shape[0])
        else:
            continue
        if not rest and gates in {3, 4}:
            return "lstm" if gates == 4 else "gru"
    return "rnn"
