"""The whole compiler on the embedded model: quantize, evaluate, generate, export, simulate.

Writes into out/demo and prints what each stage found. Takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import lutllm

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "tiny-qwen3"
PROMPT = "The people of the United States"


def stage(title: str) -> None:
    print(f"\n== {title}", flush=True)


def run(out: Path) -> list[tuple[str, str]]:
    """Run every stage and return the rows of the summary."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    artifact, design = out / "tiny-qwen3-lut", out / "tiny-qwen3-v80"

    stage("quantize: v=2, 64 activation and 16 weight centroids, 512 rows a codebook, INT8 tables")
    report = lutllm.quantize(
        MODEL, artifact, calib_tokens=8192, eval_text=MODEL / "sample.txt", progress=True
    )
    rows = [
        ("perplexity, float model", f"{report['perplexity_before']:.2f}"),
        ("perplexity, tables", f"{report['perplexity_after']:.2f}"),
        ("bits per weight, all arrays", f"{report['bits_per_weight']:.2f}"),
        ("artifact", f"{report['artifact_bytes'] / 1e6:.1f} MB in {report['seconds']:.0f} s"),
    ]

    stage("generate")
    model = lutllm.load(artifact)
    print(PROMPT, end="", flush=True)
    result = model.generate(
        PROMPT,
        max_tokens=64,
        temperature=0.8,
        seed=1,
        on_text=lambda text: print(text, end="", flush=True),
    )
    print()
    rows.append(("decode", f"{result.decode_tokens_per_s:.0f} tokens/s"))

    stage("export for the AMD V80")
    exported = lutllm.export(artifact, design)
    rows.append(("export", f"{len(exported['files'])} files for {exported['device']}"))

    stage("C simulation with g++ of the linears of layer 0 against the emulator")
    for tokens in (1, 32):
        found = lutllm.csim(design, tokens=tokens, layers=1, progress=True)
        rows.append((f"integer mismatches, {tokens} token(s)", f"{found['integer_mismatches']}"))
        if found["integer_mismatches"]:
            raise SystemExit(f"kernels and emulator differ: {found['first_divergence']}")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo")
    begun = time.monotonic()
    rows = run(parser.parse_args().out)
    rows.append(("whole demo", f"{time.monotonic() - begun:.0f} s"))
    stage("summary")
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
