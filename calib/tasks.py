"""Zero-shot tasks: multiple choice, and the last word of a passage, from local JSON lines.

A line is {"query", "choices", "gold"} or {"context", "continuation"}. The model is a function from
token ids to logits. An answer is scored by its log-likelihood after the question.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calib.text import read_text
from lutllm.errors import ConfigError
from lutllm.progress import Progress

Logits = Callable[[np.ndarray], np.ndarray]
Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Item:
    """A question. gold: index into choices; a passage to complete has one choice."""

    context: str
    choices: tuple[str, ...]
    gold: int

    @property
    def completes(self) -> bool:
        """Scored by whether the model would write the answer itself."""
        return len(self.choices) == 1


def read_task(path: str | Path, limit: int | None = None) -> list[Item]:
    """The first `limit` items of a task file; ConfigError names the line that is not one."""
    items: list[Item] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if limit is not None and len(items) == limit:
            break
        if line.strip():
            items.append(_item(line, f"{path}, line {number}"))
    if not items:
        raise ConfigError(f"{path}: holds no task items")
    return items


def _item(line: str, where: str) -> Item:
    try:
        value = json.loads(line)
        if "continuation" in value:
            return Item(value["context"], (" " + value["continuation"].strip(),), 0)
        query, choices, gold = value["query"].strip(), value["choices"], int(value["gold"])
        # "Answer:" belongs to the question: its likelihood is not that of an answer
        query += "\nAnswer:" if query.startswith("Question:") else ""
        item = Item(query, tuple(" " + c.strip() for c in choices), gold)
    except (ValueError, TypeError, KeyError, AttributeError) as cause:
        raise ConfigError(
            f"{where}: not a task item ({cause!r}); a line needs query, choices and gold, or "
            "context and continuation"
        ) from None
    if not 0 <= gold < len(choices) or len(choices) < 2:
        raise ConfigError(f"{where}: gold is {gold} of {len(choices)} choices")
    return item


@dataclass(frozen=True)
class Scores:
    """Per item: right by log-likelihood, right by log-likelihood per character."""

    right: np.ndarray
    right_per_character: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        return {
            "accuracy": float(self.right.mean()),
            "accuracy_stderr": _stderr(self.right),
            "accuracy_norm": float(self.right_per_character.mean()),
            "accuracy_norm_stderr": _stderr(self.right_per_character),
            "items": len(self.right),
        }


def _stderr(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def score(
    items: Sequence[Item], encode: Encode, logits: Logits, context: int, progress: bool = False
) -> Scores:
    """Score every item. logits: i64[T] -> f32[T, V]; context: most tokens the model takes."""
    right, normed = np.zeros(len(items)), np.zeros(len(items))
    with Progress(len(items), "scoring", progress) as bar:
        for i, item in enumerate(items):
            found = [_answer(item.context, c, encode, logits, context) for c in item.choices]
            if item.completes:
                right[i] = normed[i] = float(found[0][1])
            else:
                likelihood = np.array([f[0] for f in found])
                lengths = np.array([len(c.strip()) for c in item.choices])
                right[i] = likelihood.argmax() == item.gold
                normed[i] = (likelihood / np.maximum(lengths, 1)).argmax() == item.gold
            bar.advance(note=f"accuracy {right[: i + 1].mean():.3f}")
    return Scores(right, normed)


def _answer(
    context: str, answer: str, encode: Encode, logits: Logits, limit: int
) -> tuple[float, bool]:
    """Log-likelihood of an answer, and whether every token of it ranks first.

    Question and answer are encoded together; the answer starts where the ids part from those of
    the question alone, as tokens may reach over the border.
    """
    question, ids = list(encode(context)), list(encode(context + answer))
    start = next((i for i, (a, b) in enumerate(zip(question, ids, strict=False)) if a != b), None)
    start = min(len(question), len(ids) - 1) if start is None else start
    start = max(1, start)
    cut = max(0, len(ids) - limit)
    if cut >= start:
        raise ConfigError(f"an answer of {len(ids) - start} tokens leaves no room in {limit}")
    ids, start = ids[cut:], start - cut
    rows = logits(np.array(ids[:-1]))[start - 1 :].astype(np.float64)
    targets = np.array(ids[start:])
    top = rows.max(axis=1)
    normaliser = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
    likelihood = float((rows[np.arange(len(targets)), targets] - normaliser).sum())
    return likelihood, bool((rows.argmax(axis=1) == targets).all())


def paired(own: Scores, reference: Scores) -> dict[str, Any]:
    """Difference of accuracies on the same items, with the error of the difference."""
    gap = own.right - reference.right
    return {
        "reference_accuracy": float(reference.right.mean()),
        "reference_accuracy_norm": float(reference.right_per_character.mean()),
        "accuracy_change": float(gap.mean()),
        "accuracy_change_stderr": _stderr(gap),
        "answers_changed": float((own.right != reference.right).mean()),
    }
