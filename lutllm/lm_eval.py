"""An artifact in lm-eval: after `import lutllm.lm_eval`, the harness knows the model "lutllm".

    import lutllm.lm_eval
    from lm_eval import simple_evaluate

    simple_evaluate("lutllm", "path=qwen-lut", tasks=["piqa"])

`evaluate` here does the same offline, with task files of `calib.tasks` beside tasks by name. Float
checkpoints need no adapter: lm-eval has its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Neither a task file nor an artifact needs the network; a user who wants the hub sets these to 0.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as cause:
    raise ImportError(
        'lutllm.lm_eval needs the package lm_eval; run: pip install "lutllm[eval]"'
    ) from cause

from calib.tasks import read_task
from lutllm.emulator.model import LutModel
from lutllm.emulator.sampling import Sampling
from lutllm.errors import ConfigError

#: Tokens that generate_until adds where a task does not say.
MAX_TOKENS = 256


@register_model("lutllm")
class LutLM(TemplateLM):
    """path: artifact folder; threads, context: as in `lutllm.load`."""

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        context: int | None = None,
        **ignored: Any,  # batch_size and device, which lm-eval always passes
    ):
        super().__init__()
        self.model = LutModel.load(path, threads, context)

    @property
    def eot_token_id(self) -> int:
        return (self.model.tokenizer.eos_ids or (0,))[0]

    @property
    def prefix_token_id(self) -> int:
        bos = self.model.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        return self.model.context

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Like the scorer of `calib.tasks`, without special tokens."""
        return self.model.tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return [self._score(context, answer) for _, context, answer in requests]

    def _score(self, context: Sequence[int], answer: Sequence[int]) -> tuple[float, bool]:
        """Log-likelihood of `answer` after `context`, and whether each token of it ranks first."""
        ids = np.array([*context, *answer], np.int64)[-(self.max_length + 1) :]
        if len(answer) >= len(ids):
            raise ConfigError(
                f"an answer of {len(answer)} tokens leaves no room for its question in a context "
                f"of {self.max_length}; give a larger context"
            )
        rows = self.model.logits(ids[:-1])[-len(answer) :].astype(np.float64)
        targets = ids[-len(answer) :]
        top = rows.max(axis=1)
        normaliser = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
        total = (rows[np.arange(len(targets)), targets] - normaliser).sum()
        return float(total), bool((rows.argmax(axis=1) == targets).all())

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, in windows that do not overlap."""
        out = []
        for request in requests:
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            )
            pairs = map(make_disjoint_window, windows)
            out.append(sum(self._score(context, answer)[0] for context, answer in pairs))
        return out

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [self._generate(*request.args) for request in requests]

    def _generate(self, prompt: str, options: dict[str, Any]) -> str:
        """Text after `prompt` up to the first of options["until"]."""
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else until
        limit = int(options.get("max_gen_toks", MAX_TOKENS))
        warm = options.get("do_sample", False)
        sampling = Sampling(float(options.get("temperature") or 0.0) if warm else 0.0)
        rng = np.random.default_rng(0)
        ids = self.tok_encode(prompt)[-max(1, self.max_length - limit) :]
        self.model.reset()
        logits, text = self.model.prefill(ids), ""
        tokens: list[int] = []
        while len(tokens) < limit:
            token = sampling.choose(logits, rng)
            if token in self.model.tokenizer.eos_ids:
                break
            tokens.append(token)
            text = self.model.tokenizer.decode(tokens)
            if any(stop in text for stop in until) or self.model.cache.length == self.max_length:
                break
            logits = self.model.decode(token)
        return min((text.split(stop)[0] for stop in until if stop), key=len, default=text)


def task_config(path: str | Path) -> dict[str, Any]:
    """A task file of `calib.tasks` as a task of lm-eval, named after the file."""
    path = Path(path).resolve()
    items = read_task(path)
    if len({item.completes for item in items}) > 1:
        raise ConfigError(f"{path}: holds questions and passages; lm-eval takes one kind a task")
    common = {
        "task": path.stem,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "target_delimiter": " ",
        "metadata": {"version": 1.0},
    }
    if items[0].completes:
        return common | {
            "output_type": "loglikelihood",
            "doc_to_text": "{{context}}",
            "doc_to_target": " {{continuation.strip()}}",  # the delimiter is for choices only
            "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
        }
    answer = "{% if query.strip().startswith('Question:') %}\nAnswer:{% endif %}"
    return common | {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query.strip()}}" + answer,
        "doc_to_choice": "{{choices | map('trim') | list}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


def evaluate(
    path: str | Path,
    tasks: Sequence[str | Path],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    threads: int | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of an artifact by task.

    tasks: .jsonl files of `calib.tasks`, or names of lm-eval tasks: those of the YAML files in
    include_path, or without it those that come with lm-eval, whose data must be in the hub's cache.
    """
    known = TaskManager(
        include_path=None if include_path is None else str(include_path),
        include_defaults=include_path is None and any(not _is_file(t) for t in tasks),
    )
    wanted: list[Any] = [task_config(t) if _is_file(t) else str(t) for t in tasks]
    unknown = sorted(t for t in wanted if isinstance(t, str) and t not in known.all_tasks)
    if unknown:
        raise ConfigError(
            f"no lm-eval task {unknown[0]!r}; give a .jsonl file, the name of a task, or the "
            "folder of its YAML file"
        )
    found = simple_evaluate(
        LutLM(path, threads),
        tasks=wanted,
        task_manager=known,
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
    )
    assert found is not None  # None is what other ranks of a distributed run get
    return {task: _metrics(values) for task, values in found["results"].items()}


def _is_file(task: str | Path) -> bool:
    return str(task).endswith((".jsonl", ".json"))


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """The numbers among the results of a task; "acc,none" becomes "acc"."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
