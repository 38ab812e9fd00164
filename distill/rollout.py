"""What a step trains on: for each prompt the student's own response or a recorded one.

Whose it is follows from the recipe's mixture or from an objective's schedule, by a draw that
belongs to the step and the place in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from draftsmith.distill import distributed
from draftsmith.distill.answers import Answer, EncodedPrompt
from draftsmith.distill.batch import Example
from draftsmith.distill.draws import draw_bits, draw_uniform, prompts_of_step
from draftsmith.distill.objectives import Course
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.replay import ReplayBuffer
from draftsmith.distill.rollout_engine import RolloutEngine
from draftsmith.distill.sampling import Sampling, generate
from draftsmith.distill.sections import RolloutSection
from draftsmith.distill.vocabulary import hold_rows


def student_sampling(section: RolloutSection) -> Sampling:
    return Sampling(section.max_new_tokens, section.temperature, section.top_p, section.top_k)


def teacher_samplings(section: RolloutSection) -> list[Sampling]:
    """The first recorded answer is greedy, the others are sampled as the student's are."""
    greedy = Sampling(section.max_new_tokens, temperature=0.0)
    return [greedy] + [student_sampling(section)] * (section.answers_per_prompt - 1)


def serving_sampling(recipe: Recipe) -> Sampling:
    """How the target is going to be sampled, and so how held-out answers are."""
    section = recipe.evaluate
    return Sampling(recipe.rollout.max_new_tokens, section.temperature, section.top_p)


def heldout_examples(
    prompts: Sequence[EncodedPrompt], answers: Sequence[Sequence[Answer]]
) -> list[Example]:
    """The target's one answer to each held-out prompt."""
    return [
        Example(prompt.tokens, answer.tokens, "recorded")
        for prompt, (answer, *_) in zip(prompts, answers, strict=True)
    ]


def recorded_examples(
    prompts: Sequence[EncodedPrompt], answers: Sequence[Sequence[Answer]]
) -> list[Example]:
    """Every answer of the teacher and of the data as an example, none twice."""
    examples = []
    for prompt, options in zip(prompts, answers, strict=True):
        texts = [answer.tokens for answer in options]
        texts += [prompt.answer] if prompt.answer is not None else []
        examples += [Example(prompt.tokens, text, "recorded") for text in texts]
    return list(dict.fromkeys(examples))


def generate_in_trainer(
    student: PreTrainedModel,
    dtype: torch.dtype,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    stop_tokens: Sequence[int],
    batch_size: int,
) -> list[list[int]]:
    """The student's responses by Hugging Face, on float32 weights that compute in `dtype`."""
    is_bfloat16 = dtype == torch.bfloat16
    autocast = torch.autocast(student.device.type, torch.bfloat16, enabled=is_bfloat16)
    with autocast, hold_rows(student, dtype):
        return generate(
            student, prompts, seeds, sampling, stop_tokens=stop_tokens, batch_size=batch_size
        )


def rollout(
    student: PreTrainedModel,
    recipe: Recipe,
    steps: Sequence[int],
    prompts: Sequence[EncodedPrompt],
    answers: Sequence[Sequence[Answer]],
    stop_tokens: Sequence[int],
    dtype: torch.dtype,
    course: Course,
    replay: ReplayBuffer,
    engine: RolloutEngine | None = None,
) -> list[list[Example]]:
    """This process's share of each step's examples, in the same order whatever their source.

    The student's responses of all `steps` are sampled together, in `engine` where one is given,
    and put into `replay` after the steps have been drawn: what is replayed was written before.
    """
    size = recipe.train.batch_size
    every = range(distributed.rank(), size, distributed.world_size())
    chosen = {step: prompts_of_step(recipe, step, len(prompts)) for step in steps}
    sources = {
        (step, place): course.source(
            step, draw_uniform(recipe.seed, "source", step, place), len(replay)
        )
        for step in steps
        for place in range(size)
    }
    own = [(step, place) for step in steps for place in every if sources[step, place] == "student"]
    own_prompts = [prompts[chosen[step][place]].tokens for step, place in own]
    seeds = [draw_bits(recipe.seed, "rollout", step, place) for step, place in own]
    sampling = student_sampling(recipe.rollout)
    if "student" not in sources.values():  # of any process: an engine need not learn the weights
        responses: list[list[int]] = []
    elif engine is not None:
        responses = engine.generate(student, steps[0], own_prompts, seeds, sampling, stop_tokens)
    else:
        at_a_time = recipe.rollout.batch_size
        responses = generate_in_trainer(
            student, dtype, own_prompts, seeds, sampling, stop_tokens, at_a_time
        )
    sampled = dict(zip(own, responses, strict=True))

    def example(step: int, place: int) -> Example:
        prompt, options = prompts[chosen[step][place]], answers[chosen[step][place]]
        source = sources[step, place]
        if source == "student":
            return Example(prompt.tokens, tuple(sampled[step, place]), "student", steps[0])
        if source == "replay":
            return replay[draw_bits(recipe.seed, "replay", step, place) % len(replay)]
        if source == "given":
            assert prompt.answer is not None, "prepare() checks that every prompt has one"
            return Example(prompt.tokens, prompt.answer, "recorded")
        pick = draw_bits(recipe.seed, "recorded", step, place) % len(options)
        return Example(prompt.tokens, options[pick].tokens, "recorded")

    drawn = [[example(step, place) for place in every] for step in steps]
    if replay.capacity:
        written = {place: example(*place) for place in own}
        parts = distributed.gather_objects(written)
        everyone = {place: one for part in parts for place, one in part.items()}
        replay.add([everyone[place] for place in sorted(everyone)])
    return drawn
