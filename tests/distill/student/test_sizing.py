"""What a student costs, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from draftsmith.distill.student.sizing import cost_ratio, size_of


def config(tied: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=1000,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=tied,
    )


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_bytes_and_products(tied: bool) -> None:
    size = size_of(config(tied), torch.bfloat16)
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32
    layer = attention + 3 * 32 * 96 + 2 * 32
    assert size.layers == 3 * layer + 32
    assert size.embedding == 32_000
    assert size.head == (0 if tied else 32_000)
    assert size.stored_bytes == 2 * (3 * layer + 32 + (1 if tied else 2) * 32_000)
    assert size.bytes_a_token == 2 * (3 * layer + 32 + 32_000 + 32), "tied or not, the head is read"
    assert size.flops_a_token == 2 * (3 * layer + 32 + 32_000)


def test_fewer_rows_are_read_but_all_are_stored() -> None:
    whole, few = (size_of(config(True), torch.bfloat16, rows) for rows in (None, 100))
    assert few.stored_bytes == whole.stored_bytes
    assert whole.bytes_a_token - few.bytes_a_token == 2 * 900 * 32
    assert cost_ratio(whole, whole) == 1
    assert cost_ratio(few, whole) == few.bytes_a_token / whole.bytes_a_token < 1
