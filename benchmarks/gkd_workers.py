"""The contenders of `gkd.py`: one step of training for each line on stdin, one JSON line each.

Started by `gkd.py` with its task as JSON.

Legend: B sequences, T positions, N trained tokens, V vocabulary, H student width.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from figures import resident_bytes
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from draftsmith.distill import distributed
from draftsmith.distill.batch import Example, make_batch, response_states
from draftsmith.distill.micro_batches import micro_batches
from draftsmith.distill.models import (
    body,
    default_device,
    head_weight,
    load_model,
    load_tokenizer,
    quiet_libraries,
    stop_tokens,
    torch_dtype,
)
from draftsmith.distill.prompts import load_prompts
from draftsmith.distill.recipe import Recipe, parse_recipe
from draftsmith.distill.student import make_student
from draftsmith.distill.trainee import autocast

LEARNING_RATE, CLIP, BETA = 1e-4, 1.0, 0.5


def texts(task: SimpleNamespace, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """One batch of sequences of equal lengths, consecutive pieces of the built-in prompts."""
    text = "\n\n".join(prompt.messages[-1]["content"] for prompt in load_prompts(_prompts(task)))
    tokens = tokenizer(text)["input_ids"]
    length = task.prompt_tokens + task.response_tokens
    assert len(tokens) >= task.batch * length, "the built-in prompts are too short"
    pieces = [tokens[start * length : (start + 1) * length] for start in range(task.batch)]
    cut = task.prompt_tokens
    return [Example(tuple(one[:cut]), tuple(one[cut:]), "recorded") for one in pieces]


def _prompts(task: SimpleNamespace) -> str:
    return recipe_of(task).data.train


def recipe_of(task: SimpleNamespace) -> Recipe:
    content: dict[str, Any] = {
        "name": "gkd",
        "teacher": {"model": task.teacher, "dtype": task.dtype},
        "student": {"num_layers": task.layers},
        "rollout": {
            "student_fraction": float(task.on_policy),
            "max_new_tokens": task.response_tokens,
        },
        "objective": {"divergence": "jsd", "beta": BETA},
        "train": {
            "steps": task.steps,
            "batch_size": task.batch,
            "micro_batch_size": task.micro_batch,
            "learning_rate": LEARNING_RATE,
            "min_learning_rate_ratio": 1.0,
            "max_grad_norm": CLIP,
            "dtype": task.dtype,
            "zero_stage": 0,
        },
    }
    return parse_recipe(content, "gkd.py")


def draftsmith(task: SimpleNamespace, teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    from draftsmith.distill.answers import Answer, EncodedPrompt
    from draftsmith.distill.manifest import target_identity
    from draftsmith.distill.replay import ReplayBuffer
    from draftsmith.distill.rollout import rollout
    from draftsmith.distill.run import Prepared
    from draftsmith.distill.teacher import LiveTeacher, Transforms
    from draftsmith.distill.train import train_step
    from draftsmith.distill.trainee import start_engine, whole_student

    recipe, tokenizer = recipe_of(task), load_tokenizer(Path(task.teacher))
    stops, examples = stop_tokens(teacher, tokenizer), texts(task, tokenizer)
    live = LiveTeacher(teacher, stops[0])
    run = Prepared(
        teacher=live,
        target=live,
        transforms=Transforms(recipe, tokenizer),
        reference=None,
        student=student,
        dtype=torch_dtype(task.dtype),
        stop_tokens=stops,
        prompts=[EncodedPrompt(str(row), one.prompt) for row, one in enumerate(examples)],
        answers=[[Answer(row, 0, one.response)] for row, one in enumerate(examples)],
        heldout=[],
        heldout_given=[],
        teacher_folder=Path(task.teacher),
        identity=target_identity(Path(task.teacher)),
    )
    if task.kept_states:
        live.keep_signals(examples, 2**30)
    engine = start_engine(student, recipe, run.dtype)
    course, replay = recipe.objective.start(recipe), ReplayBuffer(0)

    def step(number: int) -> tuple[float, float]:
        with whole_student(engine) as whole:
            (drawn,) = rollout(
                whole, recipe, [number], run.prompts, run.answers, stops, run.dtype, course, replay
            )
        record = train_step(engine, run, recipe, course, number, drawn)
        return record["tokens"], record["loss"]

    serve(task.steps, step)


def passes(task: SimpleNamespace, teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """What no loss can do without: both models' passes and their products with the head, with a
    given gradient of the student's logits. No divergence, no optimiser."""
    tokenizer = load_tokenizer(Path(task.teacher))
    dtype, device = torch_dtype(task.dtype), default_device()
    examples, pad = texts(task, tokenizer), stop_tokens(teacher, tokenizer)[0]
    parts = micro_batches(examples, recipe_of(task).train)
    columns = head_weight(student).shape[0]
    rows = max(len(part) for part in parts) * task.response_tokens
    gradient_NV = torch.randn(rows, columns, device=device).to(dtype)

    def step(_: int) -> tuple[float, float]:
        tokens = 0
        for part in parts:
            batch = make_batch(part, pad, device)
            with torch.no_grad(), autocast(device, dtype):
                functional.linear(response_states(body(teacher), batch), head_weight(teacher))
            with autocast(device, dtype):
                hidden_NH = response_states(body(student), batch)
                logits_NV = functional.linear(hidden_NH, head_weight(student))
            logits_NV.backward(gradient_NV[: len(logits_NV)])
            tokens += len(logits_NV)
        student.zero_grad()
        return tokens, 0.0

    serve(task.steps, step)


def serve(steps: int, step: Callable[[int], tuple[float, float]]) -> None:
    ready()
    for number in range(steps):
        sys.stdin.readline()
        began = time.perf_counter()
        tokens, loss = step(number)
        report(time.perf_counter() - began, tokens, loss)


def ready() -> None:
    print("{}", flush=True)


def report(seconds: float, tokens: float, loss: float) -> None:
    figures = {"seconds": seconds, "tokens": tokens, "loss": loss}
    print(json.dumps(figures | {"peak_bytes": resident_bytes("VmHWM")}), flush=True)


class TurnTaking(TrainerCallback):
    """Times the steps of TRL's own loop, each after a line on stdin."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        sys.stdin.readline()
        self.trainer.trained_tokens, self.trainer.loss_value = 0, 0.0
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        seconds = time.perf_counter() - self.began
        report(seconds, self.trainer.trained_tokens, self.trainer.loss_value)


def trl(task: SimpleNamespace, teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    tokenizer = load_tokenizer(Path(task.teacher))
    examples = texts(task, tokenizer)
    pad = stop_tokens(teacher, tokenizer)[0]

    def collate(rows: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        chosen = [examples[row["index"]] for row in rows]
        batch = make_batch(chosen, pad, torch.device("cpu"))
        labels_BT = batch.tokens_BT.clone()
        labels_BT[:, : task.prompt_tokens] = -100
        prompts_BT = batch.tokens_BT[:, : task.prompt_tokens]
        return {
            "input_ids": batch.tokens_BT,
            "attention_mask": batch.attention_BT,
            "labels": labels_BT,
            "prompts": prompts_BT,
            "prompt_attention_mask": torch.ones_like(prompts_BT),
        }

    class Counting(GKDTrainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            loss = super().training_step(model, inputs, num_items_in_batch)
            self.trained_tokens += int((inputs["labels"][:, 1:] != -100).sum())
            self.loss_value += float(loss)
            return loss

    arguments = GKDConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=task.micro_batch,
        gradient_accumulation_steps=task.batch // task.micro_batch,
        gradient_checkpointing=task.checkpointing,
        max_steps=task.steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=CLIP,
        lmbda=float(task.on_policy),
        beta=BETA,
        temperature=1.0,
        max_new_tokens=task.response_tokens,
        bf16=task.dtype == "bfloat16",
        use_cpu=default_device().type == "cpu",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = Counting(
        model=student,
        teacher_model=teacher,
        args=arguments,
        data_collator=collate,
        train_dataset=Dataset.from_dict({"index": list(range(task.batch)) * task.steps}),
        processing_class=tokenizer,
    )
    trainer.add_callback(TurnTaking(trainer))
    random.seed(0)
    ready()
    trainer.train()


def main() -> None:
    task = SimpleNamespace(**json.loads(sys.argv[1]))
    quiet_libraries()
    if task.library == "draftsmith":
        distributed.start_processes()
    teacher = load_model(Path(task.teacher), torch_dtype(task.dtype)).to(default_device())
    student = make_student(teacher, recipe_of(task).student, seed=0).to(default_device())
    {"draftsmith": draftsmith, "passes": passes, "trl": trl}[task.library](task, teacher, student)


if __name__ == "__main__":
    main()
