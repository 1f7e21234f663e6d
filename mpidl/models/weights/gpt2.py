"""GPT-2 of Hugging Face Transformers."""

from __future__ import annotations

from mpidl.models.weights.formats import Format, Source, Tensors, norm_sources, transpose
from mpidl.nn import Dense, Embedding, Model, Residual

FIRST = "h.0.attn.c_attn.weight"


class GPT2(Format):
    """Tensors wte, wpe, h.<block>, ln_f, optionally with a prefix; weights are (in, out) as ours.

    Where the output layer shares the weights of the embedding, it gets a copy.
    """

    @staticmethod
    def matches(tensors: Tensors) -> bool:
        return any(name.endswith(FIRST) for name in tensors)

    @staticmethod
    def sources(model: Model, tensors: Tensors) -> dict[str, Source]:
        prefix = next(name[: -len(FIRST)] for name in tensors if name.endswith(FIRST))
        embeddings = [layer.name for layer in model.walk() if isinstance(layer, Embedding)]
        embedding = embeddings[0] if embeddings else "embedding1"
        head = "lm_head.weight" if "lm_head.weight" in tensors else f"{prefix}wte.weight"
        sources = {
            f"{embedding}.weight": Source(f"{prefix}wte.weight"),
            f"{embedding}.positions": Source(f"{prefix}wpe.weight"),
            **norm_sources("layer_norm1", f"{prefix}ln_f", running=False),
        }
        residuals = [layer.name for layer in model.walk() if isinstance(layer, Residual)]
        pairs = zip(residuals[::2], residuals[1::2], strict=False)
        for index, (attention, feed_forward) in enumerate(pairs):
            sources |= _block(attention, feed_forward, f"{prefix}h.{index}")
        for layer in model.layers:
            if isinstance(layer, Dense):
                sources[f"{layer.name}.weight"] = Source(head, transpose)
        return sources

    @staticmethod
    def is_ignored(name: str) -> bool:
        return name.endswith((".attn.bias", ".attn.masked_bias"))


def _block(attention: str, feed_forward: str, theirs: str) -> dict[str, Source]:
    sources = norm_sources(f"{attention}.body.layer_norm1", f"{theirs}.ln_1", running=False)
    sources |= norm_sources(f"{feed_forward}.body.layer_norm1", f"{theirs}.ln_2", running=False)
    pairs = {
        f"{attention}.body.self_attention1.qkv": "attn.c_attn",
        f"{attention}.body.self_attention1.out": "attn.c_proj",
        f"{feed_forward}.body.dense1": "mlp.c_fc",
        f"{feed_forward}.body.dense2": "mlp.c_proj",
    }
    for ours, part in pairs.items():
        for name in ("weight", "bias"):
            sources[f"{ours}.{name}"] = Source(f"{theirs}.{part}.{name}")
    return sources
