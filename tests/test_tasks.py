"""Zero-shot scoring against likelihoods computed by hand, and refusal of what is not a task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from calib.tasks import Item, Scores, paired, read_task, score
from lutllm.errors import ConfigError

#: One token a character; the model prefers the character after the last one in the alphabet.
VOCAB = 128


def encode(text: str) -> list[int]:
    return [ord(c) for c in text]


def alphabet(ids: np.ndarray) -> np.ndarray:
    """Logits 3 for the next code point, 1 for a blank, 0 elsewhere."""
    logits = np.zeros((len(ids), VOCAB), np.float32)
    logits[:, ord(" ")] = 1
    logits[np.arange(len(ids)), (np.asarray(ids) + 1) % VOCAB] = 3
    return logits


def test_choices_by_likelihood() -> None:
    items = [
        Item("ab", ("cd", "xy"), 0),
        Item("ab", ("xy", "cd"), 0),
        # Two expected characters beat three of which two are expected, and lose per character
        # only where the longer one is likelier a character.
        Item("ab", ("c", "cde"), 1),
    ]
    found = score(items, encode, alphabet, 100)
    assert found.right.tolist() == [1, 0, 0]
    assert found.right_per_character.tolist() == [1, 0, 0]


def test_likelihood_value() -> None:
    from calib.tasks import _answer

    likelihood, greedy = _answer("ab", "cz", encode, alphabet, 100)
    total = np.log(np.exp(3) + np.exp(1) + (VOCAB - 2))
    assert likelihood == pytest.approx((3 - total) + (0 - total))
    assert not greedy
    assert _answer("ab", "cde", encode, alphabet, 100)[1]


def test_completion_counts_when_every_token_ranks_first() -> None:
    items = [Item("abc", ("def",), 0), Item("abc", ("dex",), 0)]
    assert score(items, encode, alphabet, 100).right.tolist() == [1, 0]


def test_long_questions_lose_their_beginning() -> None:
    item = Item("z" * 50 + "ab", ("cd", "xy"), 0)
    assert score([item], encode, alphabet, 10).right.tolist() == [1]
    with pytest.raises(ConfigError, match="leaves no room"):
        score([Item("a", ("b" * 30, "c"), 0)], encode, alphabet, 10)


def test_tokens_that_reach_over_the_border() -> None:
    """A tokenizer that joins the blank to the word: the answer starts at the joined token."""

    def joined(text: str) -> list[int]:
        return [ord(c) for c in text.replace(" c", "C")]

    item = Item("ab ", ("cd", "xy"), 0)
    assert joined("ab cd")[:2] == joined("ab ")[:2]
    assert len(score([item], joined, alphabet, 100).right) == 1


def test_paired_difference() -> None:
    own = Scores(np.array([1.0, 0, 1, 0]), np.zeros(4))
    reference = Scores(np.array([1.0, 1, 1, 1]), np.ones(4))
    found = paired(own, reference)
    assert found["accuracy_change"] == -0.5
    assert found["answers_changed"] == 0.5
    assert found["accuracy_change_stderr"] == pytest.approx(np.std([0, -1, 0, -1], ddof=1) / 2)


def test_task_files(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    lines = [
        {"query": "Question: why? ", "choices": ["so", "not "], "gold": 1},
        {"query": "He went", "choices": ["home", "out"], "gold": 0},
        {"context": "In the", "continuation": "end"},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    items = read_task(path)
    assert items[0] == Item("Question: why?\nAnswer:", (" so", " not"), 1)
    assert items[1].choices == (" home", " out")
    assert items[2].completes
    assert read_task(path, limit=1) == items[:1]
    for bad, message in [
        ('{"query": "a"}', "line 1: not a task item"),
        ("[1, 2]", "line 1: not a task item"),
        ("{", "line 1: not a task item"),
        ('{"query": "a", "choices": ["b", "c"], "gold": 2}', "gold is 2 of 2"),
    ]:
        path.write_text(bad)
        with pytest.raises(ConfigError, match=message):
            read_task(path)
