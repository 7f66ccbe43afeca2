"""A learning-rate schedule over a wall-clock budget that can be repeated exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

REPLAN_EVERY = 25  # steps


@dataclass
class Pace:
    """How far training has come, from 0 to 1, one call of advance() per step.

    Every REPLAN_EVERY steps the number of steps left is estimated anew from the clock, and
    written to `plan` as [step, steps left]. The plan alone fixes the progress of every step:
    given again with follow=True, it repeats a run whatever the speed of the machine.
    """

    plan: list[list[int]] = field(default_factory=lambda: [[0, 2000]])
    follow: bool = False
    step: int = 0
    progress: float = 0.0
    left: int = 0

    def wants_plan(self) -> bool:
        return not self.follow and self.step > 0 and self.step % REPLAN_EVERY == 0

    def replan(self, seconds_left: float, seconds_per_step: float) -> None:
        left = max(0, round(seconds_left / seconds_per_step))
        self.plan.append([self.step, left])

    def begin_step(self) -> bool:
        """Take over a plan made for this step. False when no step is left."""
        for step, left in self.plan:
            if step == self.step:
                self.left = left
        return self.left > 0

    def advance(self) -> None:
        self.progress += (1.0 - self.progress) / self.left
        self.left -= 1
        self.step += 1

    def rate(self, warmup: float = 0.03, floor: float = 0.01) -> float:
        """Factor on the learning rate: linear warm-up, then a cosine down to `floor`."""
        if self.progress < warmup:
            return (self.progress + 1e-3) / (warmup + 1e-3)
        turn = math.pi * (self.progress - warmup) / (1.0 - warmup)
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(turn))
