"""What a recipe may ask for over HTTP: less than on the command line.

Only fields that are listed here are taken, so that a field that a later version adds, which may
name a path or a URL, is refused until somebody has thought about it.
"""

from __future__ import annotations

from typing import Any

_EVERY = frozenset({"*"})
_TAKEN: dict[str, frozenset[str]] = {
    "teacher": frozenset({"model", "dtype", "keep_states_gib"}),
    "student": frozenset(
        {
            "init", "layers", "num_layers", "hidden_size", "num_attention_heads",
            "num_key_value_heads", "intermediate_size", "vocabulary", "freeze_embeddings",
            "calibration_prompts", "lora",
        }
    ),
    "data": frozenset(
        {"train", "heldout", "limit", "heldout_limit", "max_prompt_tokens", "responses"}
    ),
    "rollout": frozenset(
        {
            "student_fraction", "given_fraction", "student_from_step", "steps_ahead",
            "max_new_tokens", "temperature", "top_p", "top_k", "answers_per_prompt", "batch_size",
        }
    ),
    "objective": _EVERY,  # numbers and names, and `reference`, which is looked up
    "train": frozenset(
        {
            "steps", "batch_size", "micro_batch_size", "micro_batch_tokens", "learning_rate",
            "min_learning_rate_ratio", "warmup_steps", "weight_decay", "betas", "max_grad_norm",
            "zero_stage", "dtype", "save_every", "eval_every", "keep_checkpoints",
            "gradient_checkpointing",
        }
    ),
    "evaluate": _EVERY,
    "export": frozenset({"name", "dtype"}),
}  # fmt: skip
_MOST = {
    "teacher.keep_states_gib": 16,
    "student.num_layers": 256,
    "student.hidden_size": 16384,
    "student.intermediate_size": 65536,
    "data.max_prompt_tokens": 32768,
    "rollout.max_new_tokens": 8192,
    "rollout.answers_per_prompt": 64,
    "rollout.steps_ahead": 1000,
    "rollout.batch_size": 1024,
    "train.batch_size": 4096,
    "train.micro_batch_size": 256,
    "train.micro_batch_tokens": 1 << 20,
    "train.keep_checkpoints": 10,
}


def check_tables(tables: dict[str, Any]) -> None:
    """Refuse what a recipe may not say in a job.

    Raises:
        ValueError: `section.field: reason`, without a full stop.
    """
    for section, fields in tables.items():
        if section in ("name", "seed"):
            continue
        if section not in _TAKEN:
            raise ValueError(f"{section[:100]}: it cannot be given in a job")
        if not isinstance(fields, dict):
            raise ValueError(f"{section}: it must be a table")
        for field in fields:
            if _TAKEN[section] is not _EVERY and field not in _TAKEN[section]:
                raise ValueError(f"{section}.{field[:100]}: unknown field, or none for a job")


def check_bounds(recipe: dict[str, Any], max_steps: int) -> None:
    """Refuse a valid recipe that asks for too much of this machine.

    Raises:
        ValueError: `section.field: reason`, without a full stop.
    """
    for place, most in {**_MOST, "train.steps": max_steps}.items():
        section, field = place.split(".")
        value = recipe[section][field]
        if value is not None and value > most:
            raise ValueError(f"{place}: {value} is more than {most}, the most that a job may have")
