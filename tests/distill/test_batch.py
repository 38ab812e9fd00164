"""Padding and masks."""

from __future__ import annotations

from pathlib import Path

import torch

from draftsmith.distill.batch import Example, make_batch, response_states
from draftsmith.distill.models import body, load_model

EXAMPLES = [Example((5, 6, 7), (8, 2), "student"), Example((9,), (2, 3, 4, 2), "recorded")]


def test_masks_go_by_position_even_where_padding_equals_the_stop_token() -> None:
    batch = make_batch(EXAMPLES, 2, torch.device("cpu"))
    assert batch.tokens_BT.tolist() == [[5, 6, 7, 8, 2], [9, 2, 3, 4, 2]]
    assert batch.attention_BT.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert batch.labels_N.tolist() == [8, 2, 2, 3, 4, 2]

    longer = make_batch(
        [*EXAMPLES, Example((1, 1, 1, 1), (2, 2, 2), "student")], 2, torch.device("cpu")
    )
    assert longer.labels_N.tolist() == [8, 2, 2, 3, 4, 2, 2, 2, 2]
    assert longer.attention_BT.sum(-1).tolist() == [5, 5, 7]


def test_padding_changes_no_hidden_state(tiny_target: Path) -> None:
    model = load_model(tiny_target, torch.float32)
    long = Example(tuple(range(20)), tuple(range(30, 50)), "student")
    device = torch.device("cpu")
    together = response_states(body(model), make_batch([EXAMPLES[0], long], 2, device))
    alone = response_states(body(model), make_batch([EXAMPLES[0]], 2, device))
    torch.testing.assert_close(together[:2], alone, rtol=1e-4, atol=1e-5)
