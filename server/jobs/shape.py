"""How large a model is, from its config.json alone: parameters of body and vocabulary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A Llama-like model; others are taken for one, which is near enough for an estimate."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, folder: Path) -> Shape:
        config = json.loads((folder / "config.json").read_bytes())
        config = config.get("text_config", config)
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            intermediate=int(config.get("intermediate_size") or 4 * hidden),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    def student(self, section: dict[str, Any]) -> Shape:
        """The shape that a recipe's [student] section makes out of this teacher."""
        hidden = section["hidden_size"] or self.hidden
        heads = section["num_attention_heads"] or self.heads
        kept = section["layers"]
        narrow = hidden != self.hidden
        return Shape(
            layers=len(kept) if kept is not None else section["num_layers"] or self.layers,
            hidden=hidden,
            heads=heads,
            kv_heads=section["num_key_value_heads"] or min(heads, self.kv_heads),
            head_dim=hidden // heads if narrow else self.head_dim,
            intermediate=section["intermediate_size"]
            or (self.intermediate * hidden // self.hidden),
            vocabulary=self.vocabulary,
            tied=self.tied,
        )

    @property
    def body(self) -> int:
        """Parameters of the layers."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        return self.body + self.hidden * self.vocabulary * (1 if self.tied else 2)

    def flops(self, rows: int | None = None) -> int:
        """Of one token in one forward pass, with a head of `rows` (default: all) tokens."""
        return 2 * (self.body + self.hidden * (rows or self.vocabulary))
