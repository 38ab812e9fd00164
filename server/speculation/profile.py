"""What `draftsmith profile` measured on one machine, and what follows from it for each load.

Legend: B requests that decode, K lookahead, tau(K) tokens a target call, t(B, K) seconds a step.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from draftsmith.server.speculation.acceptance import block_efficiencies


class Profile(BaseModel):
    """Measured step times and acceptance of one target with one draft.

    A step of one request brings tau(K) tokens, so its speed beside plain decoding is
    tau(K) * t_plain(B) / t(B, K), and it breaks even where tau(K) = t(B, K) / t_plain(B).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    target: str
    draft: str
    temperature: float
    machine: str
    versions: dict[str, str]
    seconds: dict[int, dict[int, float]]
    """B -> K -> median seconds of a step; K = 0 is a step with the draft loaded but not asked."""
    plain_seconds: dict[int, float]
    """B -> median seconds of a step of the target alone."""
    acceptance: list[float] = Field(min_length=1)
    """Chance that position 1..K is accepted, given that the positions before it were."""

    @model_validator(mode="after")
    def _one_plain_time_for_each_load(self) -> Profile:
        if self.seconds.keys() != self.plain_seconds.keys() or not self.seconds:
            raise ValueError("seconds and plain_seconds must cover the same batch sizes")
        if max(max(row) for row in self.seconds.values()) > len(self.acceptance):
            raise ValueError("acceptance must cover every lookahead in seconds")
        return self

    @property
    def tokens_per_call(self) -> list[float]:
        """tau for K = 0, 1, ..."""
        return block_efficiencies(self.acceptance)

    def break_even(self, num_decoding: int, lookahead: int) -> float:
        """tau from which on this lookahead is faster than the target alone."""
        return self.seconds[num_decoding][lookahead] / self.plain_seconds[num_decoding]

    def speedup(self, num_decoding: int, lookahead: int) -> float:
        """Tokens a second beside the target alone, at the measured acceptance."""
        return self.tokens_per_call[lookahead] / self.break_even(num_decoding, lookahead)

    def best_lookahead(self, num_decoding: int) -> int:
        """The fastest measured lookahead at this load; 0 where none is faster than none."""
        row = self.seconds[num_decoding]
        return max(row, key=lambda lookahead: self.speedup(num_decoding, lookahead))

    def pays(self, num_decoding: int) -> bool:
        """Whether the best lookahead is faster than the target alone."""
        return self.speedup(num_decoding, self.best_lookahead(num_decoding)) > 1

    def cost_ratio(self, num_decoding: int) -> float:
        """c: seconds that each further draft token adds to a step, beside a plain step.

        The slope of t(B, K) over K >= 1, least squares; it holds the draft's own step and the
        further position that the target verifies.
        """
        row = {k: one for k, one in self.seconds[num_decoding].items() if k >= 1}
        if len(row) < 2:
            raise ValueError("A cost ratio needs the times of two lookaheads: profile more of K.")
        mean_k, mean_s = sum(row) / len(row), sum(row.values()) / len(row)
        slope = sum((k - mean_k) * (one - mean_s) for k, one in row.items())
        slope /= sum((k - mean_k) ** 2 for k in row)
        return slope / self.plain_seconds[num_decoding]


def read_profile(path: Path) -> Profile:
    """Raises ValueError where `path` is missing or holds no profile."""
    try:
        return Profile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"The profile {path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise ValueError(
            f"{path} is not a profile ({where}: {first['msg']}): write one with "
            "`draftsmith profile`."
        ) from error


def check_profile(profile: Profile, target: Path, draft: Path | None) -> None:
    """Raises ValueError unless `profile` was measured with these two models."""
    for role, measured, served in (
        ("target", profile.target, target.name),
        ("draft", profile.draft, draft.name if draft is not None else "none"),
    ):
        if measured != served:
            raise ValueError(
                f"the profile was measured with the {role} {measured}, and {served} is served: "
                "run `draftsmith profile` for this pair"
            )
