"""The command line: what it passes on, what it prints where, its exit status."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lutllm
from codegen.manifest import read_design
from fpga.decoder_design import DecoderConfig
from fpga.design import EngineConfig
from fpga.design_file import DesignChoices
from lutllm import api
from lutllm.artifact import artifact_hash
from lutllm.cli import COMMANDS, build_parser, main
from lutllm.cli.common import plain
from lutllm.cli.quantize import build_config, parse_override
from lutllm.config import LutConfig
from lutllm.errors import CheckpointError, ConfigError
from lutllm.recipes import RECIPES
from tests.tiny_models import make_model, tiny_config, write_hf, write_tokenizer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "model"
    write_hf(folder, make_model(tiny_config("qwen3")))
    return write_tokenizer(folder)


def parse_config(*words):
    return build_config(build_parser().parse_args(["quantize", "SRC", *words]))


# Options


def test_every_command_has_help(capsys):
    for command in COMMANDS:
        name = command.__name__.rsplit(".", 1)[-1].replace("evaluate", "eval")
        assert main([name, "--help"]) == 0
        assert "--json" in capsys.readouterr().out


def test_recipe_and_sizes():
    assert parse_config().default == LutConfig(block_positions=4, token_scale=True)
    config = parse_config("--recipe", "accurate", "--group-size", "64", "--seed", "5")
    assert config.default == LutConfig(
        scheme="weight",
        weight_stages=2,
        group_size=64,
        table_bits=16,
        wide_stages=4,
        codebook_positions=16,
        rotation=512,
    )
    assert config.seed == 5
    words = (
        "--scheme co --vec-len 4 --act-centroids 32 --weight-centroids 8 --act-stages 2 "
        "--no-token-scale --rotation 64"
    )
    expected = LutConfig(
        vec_len=4,
        act_centroids=32,
        weight_centroids=8,
        act_stages=2,
        block_positions=4,
        rotation=64,
    )
    assert parse_config(*words.split()).default == expected
    assert parse_config("--metric", "chebyshev").default.metric == "chebyshev"


def test_overrides():
    config = parse_config(
        *("--override", "*.down_proj:weight_stages=2"),
        *("--override", "*.down_proj:scheme=weight"),
        *("--override", "*.down_proj:token_scale=false"),
    )
    assert config.for_linear("model.layers.0.mlp.down_proj") == LutConfig(
        scheme="weight", weight_stages=2, block_positions=4
    )
    assert config.for_linear("model.layers.0.self_attn.o_proj") == config.default
    assert parse_override("a:b:seed=3") == ("a:b", "seed", 3)


@pytest.mark.parametrize("text", ["", "x", "x:y", ":y=1", "x:=1", "x:y="])
def test_malformed_override(text):
    with pytest.raises(ConfigError, match="PATTERN:FIELD=VALUE"):
        parse_override(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "best"], "no recipe 'best'; choose one of"),
        (["--vec-len", "0"], "vec_len is 0"),
        (["--scheme", "weight", "--act-stages", "2"], "act_stages is 2"),
        (["--recipe", "tiny", "--metric", "chebyshev"], "metric is 'chebyshev' in scheme 'weight'"),
        (["--override", "*:colour=1"], "unknown field 'colour'"),
        ([], "no output folder; add -o OUT"),
    ],
)
def test_settings_that_are_refused(words, message, capsys):
    assert main(["quantize", "SRC", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lutllm quantize: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["quantize"],
        ["eval", "M"],
        ["eval", "M", "--text", "F", "--ctx", "-1"],
        ["generate", "A", "--prompt", "x", "--temperature", "nan"],
        ["quantize", "S", "--vec-len", "two"],
    ],
)
def test_usage_errors_are_status_2(words, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: lutllm" in captured.err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lutllm {lutllm.__version__}\n"


# Errors


def test_missing_input_is_one_line(capsys, tmp_path):
    words = ["quantize", str(tmp_path / "none"), "-o", str(tmp_path / "out"), "--json"]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no such file or folder" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("command", ["generate", "bench", "export", "verify"])
def test_commands_on_artifacts_refuse_other_folders(command, checkpoint, tmp_path, capsys):
    extra = {"generate": ["--prompt", "x"], "export": ["-o", str(tmp_path / "x")]}.get(command, [])
    assert main([command, str(tmp_path / "none"), *extra]) == 2
    assert "no such folder" in capsys.readouterr().err
    status = main([command, str(checkpoint), *extra])
    captured = capsys.readouterr()
    assert status == (1 if command == "verify" else 2)
    assert "quantize it first" in captured.out + captured.err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (CheckpointError("the thing"), 2, "error: the thing"),
        (MemoryError(), 2, "out of memory"),
        (OSError(28, "No space left on device", "/x/y"), 2, "/x/y: No space left on device"),
        (KeyboardInterrupt(), 130, "--resume continues after the last finished layer"),
    ],
)
def test_what_goes_wrong_inside(monkeypatch, capsys, error, status, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(api, "quantize", fail)
    assert main(["quantize", "SRC", "-o", "OUT", "--json"]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_programming_errors_keep_their_traceback(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError

    monkeypatch.setattr(api, "verify", fail)
    with pytest.raises(RuntimeError):
        main(["verify", "A"])


# JSON


def test_json_is_one_object_whatever_is_printed(monkeypatch, capsys):
    def chatty(path):
        print("noise")
        return {"ok": True, "problems": [], "artifact_hash": "abc"}

    monkeypatch.setattr(api, "verify", chatty)
    assert main(["verify", "A", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"ok": True, "problems": [], "artifact_hash": "abc"}
    assert captured.out.count("\n") == 1
    assert "noise" in captured.err
    assert main(["verify", "A"]) == 0
    assert "hash abc" in capsys.readouterr().out


def test_a_no_is_status_1(monkeypatch, capsys):
    found = {"ok": False, "problems": ["one", "two"], "artifact_hash": "abc"}
    monkeypatch.setattr(api, "verify", lambda path: found)
    assert main(["verify", "A", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == found
    found = {
        "integer_mismatches": 3,
        "max_abs_error": 1.0,
        "tokens_compared": 4,
        "tokens_equal": 3,
        "first_divergence": {"linear": "x", "token": 2, "index": 7},
    }
    monkeypatch.setattr(api, "csim", lambda folder, **options: found)
    assert main(["csim", "D"]) == 1
    assert "first divergence    {'linear': 'x'" in capsys.readouterr().out


def test_plain_values():
    value = {"a": np.float32(1.5), "b": [np.int64(3), float("nan")], "c": Path("x"), 1: (True,)}
    assert plain(value) == {"a": 1.5, "b": [3, None], "c": "x", "1": [True]}


def test_eval_of_a_float_checkpoint(checkpoint, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("hello world, " * 60)
    words = ["eval", str(checkpoint), "--text", str(text), "--ctx", "16", "--max-tokens", "100"]
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert set(found) == {"perplexity", "stderr", "tokens", "ctx"}
    assert (found["tokens"], found["ctx"]) == (6 * 15, 16)
    assert "evaluating" in captured.err
    assert found == lutllm.evaluate(checkpoint, text, ctx=16, max_tokens=100)
    assert main([*words, "-q"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("perplexity ")
    assert captured.err == ""
    assert main([*words[:4], "--ctx", "9999"]) == 2
    assert "made for up to 512 positions" in capsys.readouterr().err


# The whole path on a tiny model


@pytest.fixture(scope="module")
def quantized(checkpoint, tmp_path_factory):
    """The folder of a quantized tiny model and what the command printed."""
    out = tmp_path_factory.mktemp("art") / "tiny-lut"
    words = [sys.executable, "-m", "lutllm", "quantize", str(checkpoint), "-o", str(out)]
    words += ["--calib-tokens", "1024", "--eval-tokens", "1024", "--json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return out, done


def test_quantize_reports_what_the_contract_names(quantized):
    out, done = quantized
    found = json.loads(done.stdout)
    for key in (
        "perplexity_before",
        "perplexity_after",
        "bits_per_weight",
        "artifact_bytes",
        "seconds",
        "peak_rss_bytes",
    ):
        assert found[key] > 0
    assert found["evaluation"] == {"tokens": 2 * 511, "ctx": 512}
    assert found["artifact_hash"] == artifact_hash(out)
    assert found["perplexity_after"] < 2 * found["perplexity_before"]
    assert "quantizing" in done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["perplexity_after"] == found["perplexity_after"]
    card = (out / "README.md").read_text()
    assert found["artifact_hash"] in card
    assert "perplexity after" in card


def test_resume_of_a_run_that_ended_in_its_evaluation(quantized, checkpoint, tmp_path, monkeypatch):
    """What is finished is not quantized again, unless an input changed."""
    from quant import pipeline

    folder = Path(shutil.copytree(quantized[0], tmp_path / "copy"))
    before = json.loads((folder / "report.json").read_text())
    (folder / "README.md").unlink()
    monkeypatch.setattr(pipeline, "quantize", lambda *args, **options: pytest.fail("run again"))
    options = {"calib_tokens": 1024, "eval_tokens": 1024, "resume": True}
    report = lutllm.quantize(str(checkpoint), folder, **options)
    assert report["perplexity_after"] == before["perplexity_after"]
    assert (folder / "README.md").is_file()
    with pytest.raises(pytest.fail.Exception):
        lutllm.quantize(str(checkpoint), folder, lutllm.QuantConfig(seed=1), **options)
    text = tmp_path / "other.txt"
    text.write_text("another text, " * 500)
    with pytest.raises(pytest.fail.Exception):
        lutllm.quantize(str(checkpoint), folder, calib=text, **options)


def test_verify_finds_what_was_changed(quantized, tmp_path, capsys):
    folder = Path(shutil.copytree(quantized[0], tmp_path / "copy"))
    assert main(["verify", str(folder)]) == 0
    assert artifact_hash(folder) in capsys.readouterr().out
    shard = sorted(folder.glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert main(["verify", str(folder), "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert any(shard.name in problem for problem in problems)
    shard.write_bytes(data[:-10])
    assert main(["verify", str(folder)]) == 1
    assert "not a complete safetensors file" in capsys.readouterr().out


def test_generate_streams_or_prints_json(quantized, capsys):
    words = ["generate", str(quantized[0]), "--prompt", "hello", "--max-tokens", "8"]
    assert main(words) == 0
    streamed = capsys.readouterr()
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert streamed.out == found["text"] + "\n"
    assert found["tokens"] == len(found["token_ids"])
    assert found["decode_tokens_per_s"] > 0
    assert "prompt tokens at" in streamed.err
    model = lutllm.load(quantized[0])
    messages = [{"role": "user", "content": "hello"}]
    assert model.generate(messages=messages, max_tokens=8).tokens == found["token_ids"]
    assert main([*words, "--json", "--raw", "-q"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["prompt_tokens"] == 1
    assert captured.err == ""


def test_bench_names_its_bound(quantized, tmp_path, capsys):
    words = ["bench", str(quantized[0]), "--prompt-tokens", "8", "--decode-tokens", "4"]
    assert main([*words, "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threads"] == 1
    assert found.pop("batch") == 0
    assert found.pop("batch_tokens_per_s") is None
    assert all(value > 0 for value in found.values())
    assert main([*words, "--batch", "2"]) == 0
    printed = capsys.readouterr().out
    assert "of what memory gives" in printed
    assert "tokens/s in 2 sequences" in printed
    (tmp_path / "text.txt").write_text("a few words " * 20)
    assert main([*words, "--text", str(tmp_path / "text.txt")]) == 0


def test_eval_of_an_artifact(quantized, checkpoint, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("hello world, " * 60)
    results = []
    for model in (quantized[0], checkpoint):
        words = ["eval", str(model), "--text", str(text), "--ctx", "32", "--json"]
        assert main(words) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["tokens"] == results[1]["tokens"]
    assert results[0]["perplexity"] == pytest.approx(results[1]["perplexity"], rel=0.5)
    assert results[0]["perplexity"] != results[1]["perplexity"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="C simulation needs g++")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bits", "3", "--plan"], "--plan measures nothing"),
        (["--bits", "3", "--weight-stages", "2"], "--bits chooses the weight stages"),
    ],
)
def test_bits_that_contradict_are_refused(words, message, capsys):
    assert main(["quantize", "nowhere", "-o", "out", *words]) == 2
    assert message in capsys.readouterr().err


def test_export_and_csim(quantized, tmp_path, capsys):
    design = tmp_path / "design"
    choices = DesignChoices(EngineConfig(channels=8), DecoderConfig(vocab_ports=4), 320.0)
    choices.write(tmp_path / "choices.json")
    words = ["export", str(quantized[0]), "-o", str(design), "--json"]
    assert main([*words, "--design", str(tmp_path / "choices.json")]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["device"] == "v80"
    written = read_design(design)
    assert written.engines[0].config.channels == 8
    assert written.device.clock_mhz == exported["clock_mhz"] == 320
    assert written.decoder is not None
    assert written.decoder.design.config.vocab_ports == 4
    assert exported["artifact_hash"] == artifact_hash(quantized[0])
    assert all((design / name).is_file() for name in exported["files"])
    assert main(["csim", str(design), "--tokens", "2", "--layers", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["integer_mismatches"] == 0
    assert found["tokens_equal"] == found["tokens_compared"] > 0
    assert found["first_divergence"] is None
    assert main(["csim", str(design), "--decoder", "--tokens", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens_equal"] == found["tokens_compared"] == 3
    assert found["first_divergence"] is None
    assert main(["csim", str(design), "--decoder", "--tokens", "1"]) == 0
    assert "equal tokens" in capsys.readouterr().out
    assert main(["csim", str(design), "--decoder", "--layers", "1"]) == 2
    assert main(["csim", str(tmp_path / "none")]) == 2
    assert main(["export", str(quantized[0]), "-o", str(design), "--device", "x1"]) == 2
    (tmp_path / "fast.json").write_text('{"clock_mhz": 900}')
    assert main([*words, "--design", str(tmp_path / "fast.json")]) == 2
    assert "ports of v80 take up to 400" in capsys.readouterr().err


def test_plan_writes_nothing(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["quantize", str(checkpoint), "--plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["supported"] is True
    for key in ("seconds", "peak_rss_bytes", "artifact_bytes"):
        assert found[f"estimated_{key}"] > 0
    assert list(tmp_path.iterdir()) == []


def test_module_runs_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lutllm", "verify", str(tmp_path / "none")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("lutllm verify: error: ")


def test_options_have_one_spelling():
    """Long options use dashes, and every command's words are unique."""
    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for parser in commands.choices.values():
        words = [word for action in parser._actions for word in action.option_strings]
        assert len(words) == len(set(words))
        assert not any("_" in word for word in words)


def test_recipes_are_valid():
    assert RECIPES["paper"].config == LutConfig(block_positions=4, token_scale=True)
    for name in ("tiny", "balanced", "accurate", "lossless"):
        shared = RECIPES[name].quant().for_linear("a.qkv_proj")
        assert (shared.codebook_positions, shared.rotation, shared.group_size) == (16, 512, 1024)
        assert shared.all_entries_exact
    assert RECIPES["accurate-co"].quant().for_linear("a.down_proj").rotation == 512
    assert all(recipe.purpose for recipe in RECIPES.values())
