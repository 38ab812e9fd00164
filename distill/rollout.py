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
    step: int,
    prompts: Sequence[EncodedPrompt],
    answers: Sequence[Sequence[Answer]],
    stop_tokens: Sequence[int],
    dtype: torch.dtype,
) -> list[Example]:
    """This process's share of the step's examples, in the same order whatever their source."""
    places = range(distributed.rank(), recipe.train.batch_size, distributed.world_size())
    chosen = prompts_of_step(recipe, step, len(prompts))
    own = [place for place in places if _is_student(recipe, step, place)]
    with torch.autocast(student.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        responses = generate(
            student,
            [prompts[chosen[place]].tokens for place in own],
            [draw_bits(recipe.seed, "rollout", step, place) for place in own],
            student_sampling(recipe.rollout),
            stop_tokens=stop_tokens,
            batch_size=recipe.rollout.batch_size,
        )
    sampled = dict(zip(own, responses, strict=True))
    examples = []
    for place in places:
        prompt = prompts[chosen[place]]
        if place in sampled:
            examples.append(Example(prompt.tokens, tuple(sampled[place]), "student"))
        else:
            options = answers[chosen[place]]
            pick = draw_bits(recipe.seed, "recorded", step, place) % len(options)
            examples.append(Example(prompt.tokens, options[pick].tokens, "recorded"))
    return examples


def _is_student(recipe: Recipe, step: int, place: int) -> bool:
    section = recipe.rollout
    if step < section.student_from_step:
        return False
    return draw_uniform(recipe.seed, "source", step, place) < section.student_fraction
