"""What a step trains on: for each prompt the student's own response or a recorded answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from draftsmith.distill import distributed
from draftsmith.distill.answers import Answer, EncodedPrompt
from draftsmith.distill.batch import Example
from draftsmith.distill.draws import draw_bits, draw_uniform, prompts_of_step
from draftsmith.distill.recipe import Recipe, RolloutSection
from draftsmith.distill.sampling import Sampling, generate
from draftsmith.distill.vocabulary import hold_rows


def student_sampling(section: RolloutSection) -> Sampling:
    return Sampling(section.max_new_tokens, section.temperature, section.top_p, section.top_k)


def teacher_samplings(section: RolloutSection) -> list[Sampling]:
    """The first recorded answer is greedy, the others are sampled as the student's are."""
    greedy = Sampling(section.max_new_tokens, temperature=0.0)
    return [greedy] + [student_sampling(section)] * (section.answers_per_prompt - 1)


def recorded_examples(
    prompts: Sequence[EncodedPrompt], answers: Sequence[Sequence[Answer]]
) -> list[Example]:
    """Every recorded answer as an example."""
    return [
        Example(prompt.tokens, answer.tokens, "recorded")
        for prompt, options in zip(prompts, answers, strict=True)
        for answer in options
    ]


def rollout(
    student: PreTrainedModel,
    recipe: Recipe,
    steps: Sequence[int],
    prompts: Sequence[EncodedPrompt],
    answers: Sequence[Sequence[Answer]],
    stop_tokens: Sequence[int],
    dtype: torch.dtype,
) -> list[list[Example]]:
    """This process's share of each step's examples, in the same order whatever their source.

    The student's responses of all `steps` are sampled together.
    """
    every = range(distributed.rank(), recipe.train.batch_size, distributed.world_size())
    places = [(step, place) for step in steps for place in every]
    chosen = {step: prompts_of_step(recipe, step, len(prompts)) for step in steps}
    own = [(step, place) for step, place in places if _is_student(recipe, step, place)]
    autocast = torch.autocast(student.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
    with autocast, hold_rows(student, dtype):
        responses = generate(
            student,
            [prompts[chosen[step][place]].tokens for step, place in own],
            [draw_bits(recipe.seed, "rollout", step, place) for step, place in own],
            student_sampling(recipe.rollout),
            stop_tokens=stop_tokens,
            batch_size=recipe.rollout.batch_size,
        )
    sampled = dict(zip(own, responses, strict=True))

    def example(step: int, place: int) -> Example:
        index = chosen[step][place]
        if (step, place) in sampled:
            return Example(prompts[index].tokens, tuple(sampled[step, place]), "student")
        options = answers[index]
        pick = draw_bits(recipe.seed, "recorded", step, place) % len(options)
        return Example(prompts[index].tokens, options[pick].tokens, "recorded")

    return [[example(step, place) for place in every] for step in steps]


def _is_student(recipe: Recipe, step: int, place: int) -> bool:
    section = recipe.rollout
    if step < section.student_from_step:
        return False
    return draw_uniform(recipe.seed, "source", step, place) < section.student_fraction
