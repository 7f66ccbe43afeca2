"""Designs exported, and their decoder kernel in C simulation beside the emulator, as Markdown.

python scripts/decoder_table.py ARTIFACT... [--rows online] [--prompt 48] [--new 64]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import lutllm
from fpga.design import ROW_MODES, EngineConfig
from fpga.design_file import DesignChoices

HEADS = (
    "artifact, rows",
    "lines, with library",
    "export s",
    "compile, run s",
    "prompt + new",
    "tokens equal",
    "rounded otherwise",
    "largest error of logits",
    "on the kernel's inputs: tokens, rounded, error of inputs, logits",
)


def lines(paths: list[Path]) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def row(artifact: Path, rows: str, prompt: int, new: int, out: Path) -> list[str]:
    """Export and simulate one artifact."""
    begun = time.monotonic()
    design = DesignChoices(EngineConfig(rows=rows)).to_dict()
    lutllm.export(artifact, out, design=design, prompt_tokens=prompt, new_tokens=new)
    exported = time.monotonic() - begun
    found = lutllm.csim(out, decoder=True, artifact=artifact)
    replay = found["replay"]
    own = [path for path in (out / "src").iterdir() if path.is_file()]
    compiled = found["seconds"] - found["simulated_seconds"]
    return [
        f"{artifact.name}, {rows}",
        f"{lines(own)}, {lines(list((out / 'hls').glob('*.cpp'))):,}",
        f"{exported:.1f}",
        f"{compiled:.1f}, {found['simulated_seconds']:.1f}",
        f"{prompt} + {new}",
        f"{found['tokens_equal']} of {found['tokens_compared']}",
        f"{found['flips']}",
        f"{found['max_logit_error']:.1e}",
        f"{replay['tokens_equal']}, {replay['flips']}, "
        f"{replay['max_input_error']:.1e}, {replay['max_logit_error']:.1e}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--rows", choices=ROW_MODES, default="auto")
    parser.add_argument("--prompt", type=int, default=48)
    parser.add_argument("--new", type=int, default=64)
    args = parser.parse_args()
    print("| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS))
    for artifact in args.artifacts:
        with tempfile.TemporaryDirectory() as folder:
            cells = row(artifact, args.rows, args.prompt, args.new, Path(folder) / "design")
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
