"""What a step of an engine takes: a model with few coefficients, fitted to this machine.

A forward pass streams every weight once and multiplies it with every position. Up to some number
of positions it waits for memory, beyond for arithmetic (the roofline model, Williams et al. 2009):

    pass(n) = pass_s + layer_s * depth + roof(layers, n) + roof(head, scored positions)
    roof(weights, n) = max(bytes * byte_s, 2 * weights * n * flop_s)

`layer_s` is what eager execution spends on a layer whatever its width; on small models it is as
much as the products. A step of the target alone is `step_s + pass(B)`. With K drafts the target
looks at B (K + 1) positions, and so does the draft's first pass, which also reads what the target
has just said; K - 1 passes of B positions follow.

Left out: keys and values, activations, and that a small draft may stay in the processor's cache.

Legend: B requests that decode, K lookahead, n positions of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.optimize import nnls

from draftsmith.distill.student.sizing import Size


class LatencyModel(BaseModel):
    """Coefficients in seconds, and where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    step_s: float
    """Of a step, whatever it runs: scheduling, sampling, output."""
    pass_s: float
    """Of a forward pass, whatever the model."""
    layer_s: float
    """Of a layer, whatever its width."""
    byte_s: float
    """Of a byte of weights, read from memory."""
    flop_s: float
    """Of a multiplication or an addition."""
    source: str
    """What it was fitted to, in words."""
    relative_error: float | None = None
    """Root mean square of the fit's relative errors, where steps of an engine were fitted."""

    def forward_seconds(self, size: Size, positions: int, scored: int) -> float:
        """One pass over `positions`, of which `scored` get logits."""
        return (
            self.pass_s + self.layer_s * size.depth + self._kernel_seconds(size, positions, scored)
        )

    def plain_seconds(self, target: Size, batch: int) -> float:
        """A step of the target alone."""
        return self.step_s + self.forward_seconds(target, batch, batch)

    def speculative_seconds(self, target: Size, draft: Size, batch: int, lookahead: int) -> float:
        """t(B, K): a step with `lookahead` >= 1 drafts for each of `batch` requests."""
        wide = batch * (lookahead + 1)
        first = self.forward_seconds(draft, wide, batch)
        later = (lookahead - 1) * self.forward_seconds(draft, batch, batch)
        return self.step_s + self.forward_seconds(target, wide, wide) + first + later

    def cost_ratio(self, target: Size, draft: Size, batch: int) -> float:
        """c: a pass of the draft by a step of the target alone."""
        return self.forward_seconds(draft, batch, batch) / self.plain_seconds(target, batch)

    def _kernel_seconds(self, size: Size, positions: int, scored: int) -> float:
        in_head = size.rows * size.width
        return self._roof(size.layers, size.item_bytes, positions) + self._roof(
            in_head, size.item_bytes, scored
        )

    def _roof(self, weights: int, item_bytes: int, positions: int) -> float:
        return weights * max(item_bytes * self.byte_s, 2 * positions * self.flop_s)


_FITS = {
    (0, 1, 2, 3): "",
    (0, 1, 3): "; seconds a layer by torch, as one depth of draft shows none",
    (0, 1): "; seconds a layer and of kernels by torch, as all steps wait for memory alike",
}
"""Columns of `_row` that are fitted, the first that the steps tell apart, and what is then said."""


@dataclass(frozen=True)
class EngineStep:
    """A measured step: median seconds of `batch` requests with `lookahead` drafts each.

    draft: None where the target runs alone, and the lookahead is 0.
    """

    target: Size
    draft: Size | None
    batch: int
    lookahead: int
    seconds: float


_ARITHMETIC = (1.0, *np.geomspace(0.125, 16, 29).tolist())
"""Seconds of a product beside torch's, if those of a byte are torch's: an engine may compute on
fewer cores, or by other kernels. The first is kept where steps that only read show none."""
_BETTER = 0.98
"""Error by that of the first from which another one is believed."""


def fit_to_engine(kernels: LatencyModel, steps: Sequence[EngineStep], source: str) -> LatencyModel:
    """Fit `step_s`, `pass_s`, `layer_s` and both kernel times to an engine's steps.

    Least squares of the relative errors, no coefficient below 0. Passes and layers can be told
    apart only by drafts of several depths, and kernels from passes only where some steps compute
    rather than read: what the steps do not show is kept from `kernels`, and the source says so.

    Args:
        kernels: gives the shape of the roofline, and what the steps do not show.

    Raises:
        ValueError: too few kinds of steps to fit anything.
    """
    fits = [
        _fit(kernels.model_copy(update={"flop_s": kernels.flop_s * one}), steps, source)
        for one in _ARITHMETIC
    ]
    best = min(fits, key=_error)
    return best if _error(best) < _BETTER * _error(fits[0]) else fits[0]


def _error(model: LatencyModel) -> float:
    assert model.relative_error is not None, "it was fitted"
    return model.relative_error


def _fit(kernels: LatencyModel, steps: Sequence[EngineStep], source: str) -> LatencyModel:
    """With one factor of both kernel times."""
    seconds = np.array([step.seconds for step in steps])
    rows = np.array([_row(kernels, step) for step in steps])
    relative = _relative(rows, seconds)
    kept = next((one for one in _FITS if _are_independent(relative[:, list(one)])), None)
    if kept is None:
        raise ValueError(
            "A latency model needs steps of at least two lookaheads and two batch sizes: profile "
            "more of them."
        )
    coefficients = np.array([0.0, 0.0, kernels.layer_s, 1.0])
    coefficients[list(kept)] = 0.0
    given = rows @ coefficients
    weighted = rows[:, list(kept)] / seconds[:, None]
    coefficients[list(kept)], _ = nnls(weighted, (seconds - given) / seconds)
    step_s, pass_s, layer_s, factor = coefficients.tolist()
    error = np.sqrt(np.mean((rows @ coefficients / seconds - 1) ** 2))
    return LatencyModel(
        step_s=step_s,
        pass_s=pass_s,
        layer_s=layer_s,
        byte_s=kernels.byte_s * factor,
        flop_s=kernels.flop_s * factor,
        source=source + _FITS[kept],
        relative_error=float(error),
    )


def _are_independent(columns: np.ndarray) -> bool:
    return len(columns) >= 4 and bool(np.linalg.matrix_rank(columns) == columns.shape[1])


def _row(kernels: LatencyModel, step: EngineStep) -> list[float]:
    """How often the step pays `step_s`, `pass_s` and `layer_s`, and its kernels' seconds."""
    unit = {"step_s": 0.0, "pass_s": 0.0, "layer_s": 0.0, "byte_s": 0.0, "flop_s": 0.0}
    parts = (
        unit | {"step_s": 1.0},
        unit | {"pass_s": 1.0},
        unit | {"layer_s": 1.0},
        unit | {"byte_s": kernels.byte_s, "flop_s": kernels.flop_s},
    )
    return [_step_seconds(LatencyModel(**part, source=""), step) for part in parts]


def _step_seconds(model: LatencyModel, step: EngineStep) -> float:
    if step.draft is None:
        return model.plain_seconds(step.target, step.batch)
    return model.speculative_seconds(step.target, step.draft, step.batch, step.lookahead)


def _relative(rows: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Rows by their seconds, columns of one length: what a rank is to be judged on."""
    scaled = rows / seconds[:, None]
    scaled /= np.linalg.norm(scaled, axis=0)
    return scaled
