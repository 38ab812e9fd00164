"""LK losses (arXiv 2602.23881): train the acceptance rate a = sum min(p, q) itself.

    lk          -log a, whose gradient is that of the total variation divided by a
    lk_hybrid   l KL(p || q) + (1 - l) (1 - a),   l = exp(-eta a) held fixed

The gradient of 1 - a alone vanishes where a draft is far from its target; dividing by a, or
starting from KL, mends that.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from draftsmith.distill.objectives.objective import Charge, DivergenceSection, register


@register
class LKSection(DivergenceSection):
    name: Literal["lk"] = "lk"

    def charge(self, step: int, steps: int) -> Charge:
        return Charge(divergence="lk", temperature=self.temperature)


@register
class LKHybridSection(DivergenceSection):
    name: Literal["lk_hybrid"] = "lk_hybrid"
    eta: float = Field(3.0, ge=0)
    """How fast it turns from KL to total variation as the overlap grows."""

    def charge(self, step: int, steps: int) -> Charge:
        return Charge(divergence="lk_hybrid", eta=self.eta, temperature=self.temperature)
