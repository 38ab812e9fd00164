"""The controller against a simulated engine whose costs and acceptance are known."""

import itertools
import math
import random
import statistics
from collections.abc import Callable

import pytest

from draftsmith.server.speculation.acceptance import RecentAcceptance, block_efficiencies
from draftsmith.server.speculation.controller import LookaheadController

Cost = Callable[[int, int], float]


class Machine:
    """An engine: t(B, K) seconds a step, each proposed token right with chance `right`.

    `reading`: seconds that a draft takes for each step that it rested, once it proposes again.
    """

    def __init__(
        self, cost: Cost, right: float, max_lookahead: int, seed: int = 0, reading: float = 0.0
    ) -> None:
        self.cost, self.right, self.reading = cost, right, reading
        self._rested = 0
        self.controller = LookaheadController(max_lookahead)
        self.random = random.Random(seed)
        self.seconds = self.tokens = 0.0
        self.lookaheads: list[int] = []
        self._verified = max_lookahead

    def run(self, steps: int, num_decoding: int = 1) -> None:
        for _ in range(steps):
            drafted = self.controller.choose(num_decoding)
            for _ in range(num_decoding):
                accepted = 0
                while accepted < self._verified and self.random.random() < self.right:
                    accepted += 1
                self.tokens += accepted + 1
                if self._verified:
                    self.controller.observe_proposal(self._verified, accepted)
            took = self.cost(num_decoding, drafted) * self.random.choice([0.95, 1.0, 1.05])
            self._rested += 1
            if drafted:
                took += self.reading * min(self._rested, 200)
                self._rested = 0
            if self._verified == drafted:
                self.controller.observe_step(num_decoding, drafted, took)
            else:
                self.controller.observe_change(num_decoding, took)
            self.seconds += took
            self.lookaheads.append(drafted)
            self._verified = drafted


def best(cost: Cost, right: float, num_decoding: int, max_lookahead: int) -> int:
    tokens = block_efficiencies([right] * max_lookahead)
    return max(range(max_lookahead + 1), key=lambda k: tokens[k] / cost(num_decoding, k))


def linear(draft: float, verify: float) -> Cost:
    """A plain step of 1, each drafted token `draft`, each verified one `verify` a request."""
    return lambda num_decoding, k: 1 + k * (draft + verify * num_decoding)


def in_spells(cost: dict[int, float], seed: int, noise: float = 0.0) -> Cost:
    """Costs by lookahead; once in 200 steps all are 1.6 times as high for 5 to 60 steps."""
    spells, left = random.Random(seed), 0

    def seconds(_: int, k: int) -> float:
        nonlocal left
        if left == 0 and spells.random() < 1 / 200:
            left = spells.randint(5, 60)
        left = max(0, left - 1)
        slowed = cost[k] * (1.6 if left else 1.0)
        return slowed * spells.uniform(1 - noise, 1 + noise) if noise else slowed

    return seconds


@pytest.mark.parametrize(
    ("draft", "right"), [(0.1, 0.9), (0.25, 0.6), (0.25, 0.9), (0.6, 0.5), (1.2, 0.9), (0.05, 0.3)]
)
def test_it_finds_the_lookahead_that_is_best(draft: float, right: float) -> None:
    cost = linear(draft, 0.0)
    machine = Machine(cost, right, max_lookahead=6)
    machine.run(3000)
    tokens = block_efficiencies([right] * 6)
    wanted = tokens[best(cost, right, 1, 6)] / cost(1, best(cost, right, 1, 6))
    chosen = machine.controller.chosen()[1]
    assert tokens[chosen] / cost(1, chosen) >= 0.96 * wanted


@pytest.mark.parametrize("right", [0.05, 0.4, 0.7, 0.95])
def test_it_is_nearly_never_slower_than_no_draft(right: float) -> None:
    """The price of learning and probing: below 3 % of all time, over 20,000 steps."""
    machine = Machine(linear(0.4, 0.0), right, max_lookahead=4)
    machine.run(20_000)
    assert machine.tokens / machine.seconds >= 0.97


def test_what_a_rested_draft_has_to_read_counts_as_the_price_of_a_trial() -> None:
    """After 200 steps it reads for as long as eight steps take; a draft can never pay here."""
    plain = 0.029
    machine = Machine(lambda _, k: plain + 0.008 * k, 0.1, max_lookahead=3, reading=8 * plain / 200)
    machine.run(1000, num_decoding=4)
    tokens, seconds = machine.tokens, machine.seconds
    machine.run(20_000, num_decoding=4)
    speed = (machine.tokens - tokens) / 4 / (machine.seconds - seconds)
    assert speed * plain >= 0.985


@pytest.mark.parametrize("right", [0.3, 0.5])
def test_slow_spells_of_the_machine_mislead_it_briefly(right: float) -> None:
    """Once in 200 steps all is 1.6 times as slow for 5 to 60 steps, whatever is drafted.

    The lookahead in use is measured then, the others are not: comparing it with what they took
    before would change to one that does not pay, and stay there.
    """
    cost = {0: 29.0, 1: 42.0, 2: 51.0, 3: 60.0}  # ms with four requests, as measured
    shares = []
    for seed in range(8):
        machine = Machine(in_spells(cost, seed), right, max_lookahead=3, seed=seed)
        machine.run(5000, num_decoding=4)
        undisturbed = sum(cost[k] for k in machine.lookaheads)
        tokens = block_efficiencies([right] * 3)
        ideal = max(tokens[k] / cost[k] for k in cost)
        shares.append(machine.tokens / 4 / undisturbed / ideal)
    assert statistics.mean(shares) >= 0.965, shares


def test_it_drafts_less_when_load_grows_and_more_again_when_it_falls() -> None:
    cost = linear(0.1, 0.2)
    machine = Machine(cost, 0.8, max_lookahead=4)
    for num_decoding, wanted in ((1, {2, 3, 4}), (16, {0}), (1, {2, 3, 4})):
        assert best(cost, 0.8, num_decoding, 4) in wanted
        machine.run(1500, num_decoding)
        settled = machine.lookaheads[-200:]
        assert sum(one in wanted for one in settled) > 150, settled


def test_a_batch_that_passes_through_other_sizes_wakes_no_draft() -> None:
    controller = LookaheadController(3)
    rising = {0: 0.02, 1: 0.05, 2: 0.08, 3: 0.11}
    controller.restore({1: {0: 0.02, 1: 0.021, 2: 0.022, 3: 0.03}, 16: rising}, [0.7] * 3)
    assert controller.chosen() == {1: 2, 16: 0}
    wave = [*[16] * 20, 8, 4, 2, 1, 1, *[16] * 20]
    assert {controller.choose(size) for size in wave} == {0}
    assert controller.chosen() == {1: 2, 2: 3, 4: 3, 8: 3, 16: 0}, "they have learnt nothing yet"
    stays = [controller.choose(1) for _ in range(6)]
    assert stays == [0, 0, 0, 0, 2, 2], "less at once, more when it stays"
    assert controller.choose(16) == 0


def test_a_batch_that_never_stays_at_a_size_is_learnt_too() -> None:
    machine = Machine(linear(0.3, 0.1), 0.2, max_lookahead=3)
    for size in [1, 2] * 400:
        machine.run(1, size)
    assert set(machine.lookaheads[-100:]) == {0}


def test_a_trial_of_a_large_batch_is_short() -> None:
    """Sixteen requests say in four steps what one says in eight."""
    lengths = {}
    for size in (1, 16):
        machine = Machine(linear(0.3, 0.1), 0.2, max_lookahead=1)
        machine.run(3000, size)
        trials = [list(run) for k, run in itertools.groupby(machine.lookaheads) if k]
        lengths[size] = statistics.median(len(one) for one in trials[1:])
    assert lengths == {1: 10, 16: 6}


def test_it_notices_that_the_text_became_easier() -> None:
    """At lookahead 0 nothing is verified: only probing can tell that drafting pays again."""
    machine = Machine(linear(0.3, 0.0), 0.1, max_lookahead=4)
    machine.run(1500)
    assert machine.controller.chosen()[1] == 0
    machine.right = 0.95
    machine.run(12_000)
    assert machine.controller.chosen()[1] == 4


@pytest.mark.parametrize(("before", "after"), [(0.6, 0.15), (0.15, 0.6)])
def test_a_shift_of_the_text_is_answered_within_a_minute(before: float, after: float) -> None:
    """One request with the costs that were measured, each 200th step the first of a slow spell."""
    cost = {0: 0.029, 1: 0.034, 2: 0.038, 3: 0.042}
    tokens = block_efficiencies([after] * 3)
    speeds = {k: tokens[k] / cost[k] for k in cost}
    right = {k for k, speed in speeds.items() if speed >= 0.95 * max(speeds.values())}
    settled = []
    for seed in range(20):
        machine = Machine(in_spells(cost, seed, 0.15), before, max_lookahead=3, seed=seed)
        machine.run(1200)
        machine.right, began, wrong_until = after, machine.seconds, 0.0
        while machine.seconds < began + 90:
            machine.run(1)
            if machine.controller.chosen()[1] not in right:
                wrong_until = machine.seconds - began
        settled.append(wrong_until)
    assert statistics.median(settled) < 30, settled
    assert sorted(settled)[-4] < 60, settled


def test_small_differences_change_nothing() -> None:
    """Lookaheads 0 to 3 are equally fast: a controller without hysteresis would wander."""
    tokens = block_efficiencies([0.5] * 3)
    machine = Machine(lambda _, k: tokens[k], 0.5, max_lookahead=3)
    machine.run(4000)
    chosen = machine.lookaheads[600:]
    changes = sum(one != other for one, other in itertools.pairwise(chosen))
    assert changes <= 60


def test_fixed_is_fixed_and_still_measures() -> None:
    controller = LookaheadController(3, adaptive=False)
    for _ in range(200):
        assert controller.choose(2) == 3
        controller.observe_step(2, 3, 0.05)
        controller.observe_proposal(3, 0)
    assert controller.times.table() == {2: {3: pytest.approx(0.05)}}
    assert controller.acceptance.tokens_per_call()[3] < 1.1


def test_a_profile_leaves_nothing_to_learn() -> None:
    controller = LookaheadController(4)
    controller.restore({1: {0: 1.0, 2: 1.2, 4: 1.4}, 8: {0: 1.0, 2: 3.0, 4: 5.0}}, [0.9] * 4)
    assert [controller.choose(1) for _ in range(5)] == [4] * 5
    assert [controller.choose(8) for _ in range(5)] == [0] * 5


def test_a_new_draft_gets_its_chance() -> None:
    machine = Machine(linear(0.3, 0.0), 0.1, max_lookahead=4)
    machine.run(1500)
    assert machine.controller.chosen()[1] == 0
    machine.right = 0.95
    machine.controller.forget_acceptance()
    machine.run(200)
    assert machine.controller.chosen()[1] == 4


def test_the_doubt_of_tau_is_what_estimates_scatter_by() -> None:
    """The variance that is claimed, beside that of the estimates of 600 independent texts."""
    chances, trials = [0.6, 0.5, 0.4], 300
    texts = random.Random(0)
    estimates, claimed = [], []
    for _ in range(600):
        recent = RecentAcceptance(3, half_life=1e9)
        for _ in range(trials):
            accepted = 0
            while accepted < 3 and texts.random() < chances[accepted]:
                accepted += 1
            recent.observe(3, accepted)
        tokens = recent.tokens_per_call()
        estimates.append([math.log(tokens[k] / tokens[1]) for k in range(4)])
        claimed.append(recent.doubts(1))
    for k in (0, 2, 3):
        scatter = statistics.variance(row[k] for row in estimates)
        assert statistics.mean(row[k] for row in claimed) == pytest.approx(scatter, rel=0.2)
    assert claimed[0][1] == 0, "nothing is in doubt beside itself"


def test_a_position_that_is_not_tried_gets_doubtful() -> None:
    recent = RecentAcceptance(2)
    for _ in range(200):
        recent.observe(2, 1)
    first, second = recent.doubts(0)[1:]
    for _ in range(500):
        recent.observe(1, 1)
        recent.idle(1)
    assert recent.doubts(0)[1] <= 1.01 * first
    assert recent.doubts(1)[2] > 2 * (second - first)
    assert recent.conditional()[1] == pytest.approx(0, abs=0.1), "what was seen is not forgotten"


def test_acceptance_by_position_is_exact_and_forgets() -> None:
    recent = RecentAcceptance(3, half_life=1e9)
    for accepted in [0] * 40 + [1] * 30 + [2] * 20 + [3] * 10:
        recent.observe(3, accepted)
    # 60 of 100 first tokens, 30 of those 60 second ones, 10 of those 30 third ones.
    expected = [60 / 100, 30 / 60, 10 / 30]
    assert recent.conditional() == pytest.approx(expected, abs=0.06)
    assert block_efficiencies(expected) == pytest.approx([1, 1.6, 1.9, 2.0])

    quick = RecentAcceptance(1, half_life=16)
    for _ in range(400):
        quick.observe(1, 0)
    for _ in range(64):
        quick.observe(1, 1)
    assert quick.conditional()[0] > 0.8
