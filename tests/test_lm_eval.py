"""lm-eval and the built-in scorer on the same task files, offline."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import lutllm
from lutllm.cli import main
from lutllm.errors import ConfigError
from tests.embedded import SAMPLE, embedded_artifact

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from lm_eval.api.instance import Instance

from lutllm.lm_eval import LutLM, evaluate, task_config


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Data sets that lm-eval makes of our files stay out of the user's cache."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Questions and passages from text that the embedded model was not trained on."""
    folder = tmp_path_factory.mktemp("tasks")
    sentences = [s.strip() for s in SAMPLE.read_text().split(". ") if 60 < len(s) < 200][:24]
    halves = [(s[: len(s) // 2].rsplit(" ", 1)[0], s) for s in sentences]
    questions = []
    for i, (start, whole) in enumerate(halves):
        choices = [whole[len(start) :].strip(), halves[i - 1][1][-40:].strip(), "x y z"]
        query = f"Question: {start} " if i % 3 == 0 else start
        questions.append({"query": query, "choices": np.roll(choices, i).tolist(), "gold": i % 3})
    passages = [
        {"context": whole.rsplit(" ", 1)[0], "continuation": whole.rsplit(" ", 1)[1]}
        for _, whole in halves
    ] + [{"context": "1 2 3 1 2 3 1 2", "continuation": "3"}]
    for name, items in (("questions", questions), ("passages", passages)):
        lines = "\n".join(json.dumps(item) for item in items)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def model():
    return LutLM(embedded_artifact(), threads=1)


def test_both_scorers_agree(tasks):
    questions, passages = tasks / "questions.jsonl", tasks / "passages.jsonl"
    found = evaluate(embedded_artifact(), [questions, passages], threads=1)
    own = lutllm.evaluate_task(embedded_artifact(), questions)
    assert found["questions"]["acc"] == own["accuracy"]
    assert found["questions"]["acc_norm"] == own["accuracy_norm"]
    assert 0 < own["accuracy"] < 1
    own = lutllm.evaluate_task(embedded_artifact(), passages)
    assert found["passages"]["acc"] == own["accuracy"]


def test_command_with_a_task_of_its_own(tasks, tmp_path, capsys):
    """A YAML file as people have them, and rolling perplexity."""
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": SAMPLE.read_text()[:600]}))
    (tmp_path / "rolling.yaml").write_text(
        "task: own_text\ndataset_path: json\ndataset_kwargs:\n"
        f"  data_files:\n    test: {text}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\n"
        "doc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list:\n  - metric: word_perplexity\n"
    )
    words = ["eval", str(embedded_artifact()), "--tasks", "own_text"]
    assert main([*words, "--tasks-path", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = LutLM(embedded_artifact(), threads=1)
    ids = model.tok_encode(SAMPLE.read_text()[:600])
    nll = model.model.nll(np.array([[model.prefix_token_id, *ids]])).sum()
    words_in_text = len(SAMPLE.read_text()[:600].split())
    expected = math.exp(nll / words_in_text)
    assert found["own_text"]["word_perplexity"] == pytest.approx(expected, rel=0.05)
    words = ["eval", str(embedded_artifact()), "--tasks", str(tasks / "questions.jsonl")]
    assert main([*words, "--limit", "3"]) == 0
    assert capsys.readouterr().out.startswith("questions: ")
    assert main([*words, "--record"]) == 2
    assert "use --task FILE" in capsys.readouterr().err
    words = ["eval", str(embedded_artifact()), "--tasks", "nothing", "--tasks-path", str(tmp_path)]
    assert main(words) == 2
    assert "no lm-eval task 'nothing'" in capsys.readouterr().err


def test_long_texts_go_in_windows(model):
    """Every token is predicted once, whatever the context."""
    text = SAMPLE.read_text()[:900]
    short = LutLM(embedded_artifact(), threads=1, context=64)
    request = [Instance("loglikelihood_rolling", {}, (text,), 0)]
    ids = model.tok_encode(text)
    assert len(ids) > 2 * 64
    expected = 0.0
    for first in range(0, len(ids), 64):
        part = ids[first : first + 64]
        before = ids[first - 1] if first else short.prefix_token_id
        if len(part) < 64:  # the last window is moved back so that it is full
            before, part = None, ids[-64:]
            kept = len(ids) - first
            rows = short._score(ids[-65:-kept], ids[-kept:])[0]
            expected += rows
            continue
        expected += short._score([before], part)[0]
    assert short.loglikelihood_rolling(request)[0] == pytest.approx(expected, rel=1e-6)


def test_text_ends_at_the_first_stop(model):
    free = model._generate("The people of", {"max_gen_toks": 12})
    assert free == model.model.generate("The people of", max_tokens=12).text
    stop = free[len(free) // 2 :][:3]
    found = model.generate_until([Instance("generate_until", {}, ("The people of", {}), 0)])
    assert found[0].startswith(free)
    cut = model._generate("The people of", {"max_gen_toks": 12, "until": [stop]})
    assert cut == free.split(stop)[0]


def test_what_is_refused(tmp_path):
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        '{"query": "a", "choices": ["b", "c"], "gold": 0}\n{"context": "a", "continuation": "b"}'
    )
    with pytest.raises(ConfigError, match="one kind a task"):
        task_config(path)
    short = LutLM(embedded_artifact(), threads=1, context=8)
    with pytest.raises(ConfigError, match="leaves no room"):
        short._score([1], list(range(2, 12)))
