"""Cut a student by importance (MiniMA, arXiv 2311.07052): keep what the loss would miss most.

Every layer, key-value group of heads, feed-forward channel and hidden dimension gets a mask m,
which multiplies what it adds to the residual stream. Its importance is |dL/dm| at m = 1, the
first-order change of the loss if it were cut: L is the cross-entropy a token of one recorded
answer, and the absolute values are averaged over answers.

A student is the teacher with masks set to 0, exactly. A norm divides by the mean square over the
width; over K of H dimensions that is H / K times as large, which sqrt(H / K) in the norms' weights
and H / K in their epsilon make up for.

Legend: L layers, G key-value groups, C feed-forward channels, H teacher width, K student width,
N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from draftsmith.distill import distributed
from draftsmith.distill.batch import Example, make_batch, response_states
from draftsmith.distill.models import body, head_weight
from draftsmith.distill.progress import track
from draftsmith.distill.sections import StudentSection
from draftsmith.distill.student.cut import layers_prefix
from draftsmith.distill.student.shape import chosen_layers, head_size, student_config


@dataclass(frozen=True)
class Masks:
    """One number for each part that can be cut: masks while measuring, then importances."""

    layer_L: Tensor
    group_LG: Tensor
    channel_LC: Tensor
    hidden_H: Tensor

    @classmethod
    def ones(cls, model: PreTrainedModel) -> Masks:
        config, device = model.config, model.device
        layers = config.num_hidden_layers
        shapes = (
            (layers,),
            (layers, config.num_key_value_heads),
            (layers, config.intermediate_size),
            (config.hidden_size,),
        )
        return cls(*(torch.ones(shape, device=device) for shape in shapes))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.layer_L, self.group_LG, self.channel_LC, self.hidden_H


def prune_student(
    teacher: PreTrainedModel, section: StudentSection, calibration: Sequence[Example]
) -> PreTrainedModel:
    """The most important parts of `teacher`, in the shape that `section` asks for, in float32.

    Raises:
        ValueError: the teacher cannot be cut to that shape.
    """
    student_config(teacher.config, section)  # a wrong shape must not cost the measurement
    return keep_parts(teacher, section, measure_importance(teacher, calibration))


def measure_importance(model: PreTrainedModel, examples: Sequence[Example]) -> Masks:
    """Mean of |dL/dm| over the answers of all processes; see the module."""
    assert examples, "importance is measured on recorded answers"
    masks = Masks.ones(model)
    for mask in masks.tensors():
        mask.requires_grad_()
    sums = [torch.zeros_like(mask, device="cpu", dtype=torch.float64) for mask in masks.tensors()]
    mine = examples[distributed.rank() :: distributed.world_size()]
    with track("importance", len(mine)) as bar:
        for example in mine:
            with masked(model, masks):
                gradients = torch.autograd.grad(answer_loss(model, example), masks.tensors())
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient.abs().double().cpu()
            bar.advance()
    return Masks(*(distributed.sum_over_processes(total) / len(examples) for total in sums))


def answer_loss(model: PreTrainedModel, example: Example) -> Tensor:
    """Cross-entropy in nats a token of the example's response."""
    batch = make_batch([example], 0, model.device)
    logits_NV = response_states(body(model), batch) @ head_weight(model).T
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    return torch.nn.functional.cross_entropy(logits_NV.to(wide), batch.labels_N)


@contextmanager
def masked(model: PreTrainedModel, masks: Masks) -> Iterator[None]:
    """Let `masks` multiply what the parts of `model` write, until the context ends."""
    handles = [
        model.get_input_embeddings().register_forward_hook(
            lambda module, inputs, output: output * masks.hidden_H.to(output.dtype)
        )
    ]
    heads_a_group = model.config.num_attention_heads // model.config.num_key_value_heads
    repeats = heads_a_group * head_size(model.config)
    layers: Any = body(model).layers
    for index, layer in enumerate(layers):
        group_G, channel_C = masks.group_LG[index], masks.channel_LC[index]
        inputs = {
            layer.self_attn.o_proj: group_G.repeat_interleave(repeats),
            layer.mlp.down_proj: channel_C,
        }
        written_H = masks.layer_L[index] * masks.hidden_H
        for projection, mask in inputs.items():
            handles.append(projection.register_forward_pre_hook(_times_input(mask)))
            handles.append(projection.register_forward_hook(_times_output(written_H)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def keep_parts(
    teacher: PreTrainedModel, section: StudentSection, importance: Masks
) -> PreTrainedModel:
    """Copy the most important parts of `teacher`, in their old order, into a new student."""
    config = student_config(teacher.config, section)
    student: PreTrainedModel = AutoModelForCausalLM.from_config(config).float()
    layers = chosen_layers(section, teacher.config.num_hidden_layers)
    layers = layers or _largest(importance.layer_L, config.num_hidden_layers).tolist()
    hidden_K = _largest(importance.hidden_H, config.hidden_size)
    norm_scale = (teacher.config.hidden_size / config.hidden_size) ** 0.5
    per_layer = [_Kept.of(teacher, config, importance, layer, hidden_K) for layer in layers]
    source, prefix = teacher.state_dict(), layers_prefix(student)
    state = {}
    for name in student.state_dict():
        kept, origin = per_layer[0], name  # outside of layers only the width is cut
        if name.startswith(prefix):
            index, rest = name.removeprefix(prefix).split(".", 1)
            kept, origin = per_layer[int(index)], f"{prefix}{layers[int(index)]}.{rest}"
        part = name.split(".")[-2]
        weight = kept.select(part, source[origin].float().cpu())
        state[name] = weight * norm_scale if part in _NORMS else weight
    student.load_state_dict(state)
    return student


_NORMS = ("input_layernorm", "post_attention_layernorm", "norm")
# What rows and columns of each weight stand for. Others are kept whole: the vocabulary, and the
# norms of a single head.
_ROWS = {
    "q_proj": "heads",
    "k_proj": "groups",
    "v_proj": "groups",
    "o_proj": "hidden",
    "gate_proj": "channels",
    "up_proj": "channels",
    "down_proj": "hidden",
} | dict.fromkeys(_NORMS, "hidden")
_COLUMNS = {"o_proj": "heads", "down_proj": "channels"} | dict.fromkeys(
    ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head"), "hidden"
)


@dataclass(frozen=True)
class _Kept:
    """Indices of one layer: rows of the query heads, of the key-value heads, and so on."""

    heads: Tensor
    groups: Tensor
    channels: Tensor
    hidden: Tensor

    @classmethod
    def of(
        cls,
        teacher: PreTrainedModel,
        config: PretrainedConfig,
        importance: Masks,
        layer: int,
        hidden_K: Tensor,
    ) -> _Kept:
        groups = _largest(importance.group_LG[layer], config.num_key_value_heads)
        size = head_size(teacher.config)
        heads_a_group = config.num_attention_heads // config.num_key_value_heads
        return cls(
            heads=_blocks(groups, size * heads_a_group),
            groups=_blocks(groups, size),
            channels=_largest(importance.channel_LC[layer], config.intermediate_size),
            hidden=hidden_K,
        )

    def select(self, part: str, weight: Tensor) -> Tensor:
        if part in _ROWS:
            weight = weight.index_select(0, getattr(self, _ROWS[part]))
        if part in _COLUMNS and weight.dim() == 2:
            weight = weight.index_select(1, getattr(self, _COLUMNS[part]))
        return weight


def _largest(importance: Tensor, count: int) -> Tensor:
    """Ascending indices of the `count` largest; the first ones where they are equal."""
    return importance.argsort(descending=True, stable=True)[:count].sort().values


def _blocks(index_G: Tensor, size: int) -> Tensor:
    """Rows of the blocks of `size` rows that `index_G` names."""
    return (index_G[:, None] * size + torch.arange(size)).flatten()


def _times_input(mask: Tensor) -> Callable[[torch.nn.Module, tuple[Tensor]], Tensor]:
    return lambda module, inputs: inputs[0] * mask.to(inputs[0].dtype)


def _times_output(mask: Tensor) -> Callable[[torch.nn.Module, tuple[Tensor], Tensor], Tensor]:
    return lambda module, inputs, output: output * mask.to(output.dtype)
