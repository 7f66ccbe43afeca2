"""Which linear gets how many stages: the least expected damage within a budget of bits."""

from __future__ import annotations

import math

import numpy as np

#: Units of the budget that the exact search distinguishes; sizes are rounded up beyond it.
_MAX_UNITS = 20_000


def allocate(cost: np.ndarray, price: np.ndarray, budget: int) -> np.ndarray:
    """The choice per item with the least total cost within the budget.

    cost: f64[items, options]; price: i64[items, options]; budget: in units of price. A multiple
    choice knapsack, solved exactly by dynamic programming over the budget, in units of the
    prices' greatest common divisor (larger ones where that leaves too many, prices rounded up).
    Returns i64[items]. Raises ValueError when the cheapest options exceed the budget.
    """
    items, options = cost.shape
    base = price.min(axis=1)
    left = budget - int(base.sum())
    if left < 0:
        raise ValueError(f"the cheapest choice takes {int(base.sum())} of a budget of {budget}")
    extra = price - base[:, None]
    unit = max(math.gcd(*extra.ravel().tolist()), -(-left // _MAX_UNITS), 1)
    extra = -(-extra // unit)
    room = left // unit
    best = np.zeros(room + 1)  # least cost with at most so many units
    taken = np.zeros((items, room + 1), np.int8)
    for i in range(items):
        trials = np.full((options, room + 1), np.inf)
        for o in range(options):
            step = int(extra[i, o])
            if step <= room:
                trials[o, step:] = best[: room + 1 - step] + cost[i, o]
        taken[i] = trials.argmin(axis=0)
        best = trials.min(axis=0)
    choice = np.empty(items, np.int64)
    at = room
    for i in reversed(range(items)):
        choice[i] = taken[i, at]
        at -= int(extra[i, choice[i]])
    return choice
