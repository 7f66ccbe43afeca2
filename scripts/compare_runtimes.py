"""One artifact in the emulator, transformers and onnxruntime: a table of how they differ.

python scripts/compare_runtimes.py ART [ART ...] --tokens 32

"before a flip": the largest difference of logits over the tokens before the first activation code
that differs, relative to the largest logit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import lutllm
from calib.text import default_text

HEADER = (
    "| artifact | runtime | equal tokens | logits, before a flip | codes flipped | wrong sums |\n"
    "|---|---|---|---|---|---|"
)


def row(name: str, runtime: str, found: dict[str, Any]) -> str:
    error = found["max_abs_error_before_flip"] / found["max_abs_logit"]
    flips = f"{found['codes_flipped']} of {found['codes_compared']}"
    if found["first_flip"]:
        flips += f", from token {found['first_flip']['token']}"
    wrong = found.get("integer_mismatches", "-")
    equal = f"{found['tokens_equal']} of {found['tokens_compared']}"
    return f"| {name} | {runtime} | {equal} | {error:.1e} | {flips} | {wrong} |"


def in_transformers(artifact: Path, tokens: int) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    import lutllm.hf
    from lutllm.hf.compare import compare

    emulator = lutllm.load(artifact)
    ids = emulator.tokenizer.encode_prompt(default_text()[: 64 * tokens])[:tokens]
    model = AutoModelForCausalLM.from_pretrained(artifact)
    return compare(model, emulator, np.array(ids, np.int64))


def in_onnxruntime(artifact: Path, tokens: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return lutllm.export_onnx(artifact, folder, check_tokens=tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", nargs="+", type=Path, metavar="ART")
    parser.add_argument("--tokens", type=int, default=32, metavar="N")
    args = parser.parse_args()
    print(HEADER, flush=True)
    for artifact in args.artifacts:
        for name, run in (("transformers", in_transformers), ("onnxruntime", in_onnxruntime)):
            print(row(artifact.name, name, run(artifact, args.tokens)), flush=True)


if __name__ == "__main__":
    main()
