"""Write the trained model as a Hugging Face folder, with its card and its evaluation text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from tiny_corpus import (
    HELD_OUT,
    NOVEL,
    PARAGRAPH_CHARS,
    SPEECHES,
    Corpus,
    calibration_text,
    sample_text,
)
from tiny_model import TinyQwen3
from tiny_tokenizer import END_OF_TEXT, tokenizer_config
from tokenizers import Tokenizer
from torch import Tensor

if TYPE_CHECKING:
    from train_tiny import Trainer

SHARD_BYTES = 3 * 2**20


@dataclass(frozen=True)
class Perplexity:
    """Of the bf16 weights on the held-out text, by windows of `context` tokens.

    value, stderr: per token; per_byte: the same loss spread over the bytes of the text.
    """

    value: float
    stderr: float
    per_byte: float
    tokens: int
    context: int


@torch.no_grad()
def perplexity(model: TinyQwen3, tokens: Tensor, text_bytes: int) -> Perplexity:
    """Each window of max_position_embeddings tokens predicts all of its tokens but the first."""
    context = model.config.max_position_embeddings
    losses = []
    for window in tokens.split(context):
        if len(window) > 1:
            losses.append(model.loss(window[None], reduction="none"))
    loss = torch.cat(losses).double()
    mean, stderr = loss.mean(), loss.std() / len(loss) ** 0.5
    return Perplexity(
        value=mean.exp().item(),
        stderr=(mean.exp() * stderr).item(),
        per_byte=(mean * len(tokens) / text_bytes).exp().item(),
        tokens=len(loss),
        context=context,
    )


def round_to_bf16(model: TinyQwen3) -> dict[str, Tensor]:
    """Round the weights in place, so that what is measured is what is written."""
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return state


def write_shards(state: dict[str, Tensor], folder: Path) -> int:
    """Safetensors files of at most SHARD_BYTES and their index. Returns the bytes of all."""
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for name, tensor in state.items():
        if tensor.nbytes > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor.contiguous()
        room -= tensor.nbytes
    for stale in folder.glob("model-*.safetensors"):
        stale.unlink()
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file_name, metadata={"format": "pt"})
        (folder / file_name).chmod(0o644)
        weight_map |= dict.fromkeys(shard, file_name)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)
    return total


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def export(
    trainer: Trainer,
    tokenizer: Tokenizer,
    corpus: Corpus,
    training_tokens: int,
    folder: Path,
    calibration: Path,
) -> None:
    """Everything of models/tiny-qwen3, and the default calibration text."""
    folder.mkdir(parents=True, exist_ok=True)
    model, config = trainer.model, trainer.model.config
    end = tokenizer.token_to_id(END_OF_TEXT)
    stops = [end, tokenizer.token_to_id("<|im_end|>")]
    state = round_to_bf16(model)
    write_shards(state, folder)
    write_json(folder / "config.json", config.to_hf(end))
    write_json(
        folder / "generation_config.json",
        {
            "do_sample": True,
            "eos_token_id": stops,
            "pad_token_id": end,
            "temperature": 0.8,
            "top_k": 40,
            "top_p": 0.95,
        },
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer_config(config.max_position_embeddings))
    sample = sample_text(corpus)
    (folder / "sample.txt").write_text(sample)
    tokens = torch.tensor(tokenizer.encode(sample).ids)
    measured = perplexity(model, tokens, len(sample.encode()))
    record = training_record(trainer, training_tokens, measured)
    (folder / "training.json").write_text(format_record(record))
    (folder / "README.md").write_text(model_card(record, sum(t.numel() for t in state.values())))
    write_calibration(corpus, calibration)
    print(f"{folder}: perplexity {measured.value:.3f} +- {measured.stderr:.3f} per token")


def training_record(trainer: Trainer, training_tokens: int, measured: Perplexity) -> dict:
    """What was done, enough to repeat it."""
    return {
        "torch": torch.__version__,
        "recipe": asdict(trainer.recipe),
        "training_tokens": training_tokens,
        "steps": trainer.pace.step,
        "tokens_seen": trainer.tokens_seen,
        "budget_minutes": trainer.budget_s / 60,
        "minutes": round(trainer.used_s / 60, 1),
        "held_out": asdict(measured),
        "history": trainer.history,
        "plan": trainer.pace.plan,
    }


def format_record(record: dict) -> str:
    """JSON with one line per entry of the long lists."""
    lines = []
    for key, value in record.items():
        if isinstance(value, list):
            items = ",\n".join(f"    {json.dumps(item)}" for item in value)
            lines.append(f'  "{key}": [\n{items}\n  ]')
        else:
            lines.append(f'  "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_calibration(corpus: Corpus, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "default.txt").write_text(calibration_text(corpus))
    (folder / "SOURCES.md").write_text(
        f"default.txt: excerpts, about one half each, of {SPEECHES.title}, and {NOVEL.title} "
        f"(npm {SPEECHES.name}@{SPEECHES.version}, {NOVEL.name}@{NOVEL.version}).\n\n"
        "Licence: both texts are in the public domain; the npm data files are dedicated to it "
        "(ODC-PDDL-1.0, contents CC0-1.0).\n"
    )


def model_card(record: dict, parameters: int) -> str:
    held_out, recipe = record["held_out"], record["recipe"]
    speeches = ", ".join(_speech_title(name) for name in HELD_OUT)
    return f"""---
license: apache-2.0
language: en
pipeline_tag: text-generation
---

# tiny-qwen3

A language model of the Qwen3 architecture with {parameters / 1e6:.2f} million parameters,
made for the tests and the demo of lutllm: they run the whole path on a trained network, on a
machine that has nothing else. It writes in the manner of presidents and whalers and knows nothing.
It is a base model: the tokenizer has a chat template, so that chat interfaces can be tried, but no
dialogue was trained.

6 layers, hidden size 192, 6 query heads and 2 key/value heads of 32, q and k norm, MLP 512,
vocabulary 2048, tied embeddings, context 512, weights in bfloat16.

## Numbers

| | |
|---|---|
| Perplexity per token on held-out text | **{held_out["value"]:.2f} ± {held_out["stderr"]:.2f}** \
(standard error) |
| Perplexity per byte, same text | {held_out["per_byte"]:.3f} |
| Held-out tokens, window | {held_out["tokens"]}, {held_out["context"]} |
| Training text | {record["training_tokens"] / 1e6:.2f} M tokens |
| Tokens seen in training | {record["tokens_seen"] / 1e6:.2f} M in {record["steps"]} steps |
| Training time | {record["minutes"]:.0f} minutes on two busy CPU cores |

Measured on the bfloat16 weights with float32 arithmetic, over windows that do not overlap; each
window predicts all of its tokens but the first. `training.json` holds the course of training.

## Text

| Text | Source | Licence |
|---|---|---|
| {SPEECHES.title} | npm `{SPEECHES.name}@{SPEECHES.version}` | {SPEECHES.licence} |
| {NOVEL.title} | npm `{NOVEL.name}@{NOVEL.version}` | {NOVEL.licence} |

Four whole speeches were held out of training and of the tokenizer, and are `sample.txt`:
{speeches}.
The speeches come without paragraphs; the script breaks them at the end of the first sentence past
{PARAGRAPH_CHARS} characters.

## Training

Byte-level BPE tokenizer with the splits of Qwen. Muon (rate {recipe["matrix_lr"]}) for the matrices
of the layers, AdamW (rate {recipe["other_lr"]}) for the rest, {recipe["windows_per_step"]} windows
of 512 tokens per step (in halves up to {recipe["short_until"]:.0%} of the run), cosine schedule,
float32.

```
python scripts/train_tiny.py --minutes {record["budget_minutes"]:g} --seed {recipe["seed"]}
```

The schedule follows the clock, so another run gives another model. To repeat this one step by
step (same weights with the same PyTorch build on the same kind of processor):

```
python scripts/train_tiny.py --replay models/tiny-qwen3/training.json
```

## Licence

Apache-2.0, as the rest of this repository. The text it was trained on is in the public domain.
"""


def _speech_title(name: str) -> str:
    year, *words = name.split("_")
    return f"{' '.join(word.capitalize() for word in words[:-1])} {year}"
