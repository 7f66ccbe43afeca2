"""The emulator's model against the numpy reference, itself, and its promises."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lutllm import intmath
from lutllm.artifact import Artifact
from lutllm.config import KV_DTYPES, QuantConfig
from lutllm.emulator import LutModel, model, reference
from lutllm.emulator.bench import bench, bench_ids
from lutllm.emulator.cpu import ISA, SETS, usable_features
from lutllm.emulator.floats import half_bits
from lutllm.emulator.jit import kernel
from lutllm.emulator.sampling import Sampling
from lutllm.emulator.simd import load_f32, store_i16
from lutllm.errors import ArtifactError, ConfigError
from tests.make_artifact import tiny_config, write_artifact, write_tokenizer

ARCHS = ("llama", "qwen2", "qwen3")
#: Float steps differ from numpy's in the order of additions and in exp: relative to the logits'
#: standard deviation, unless a code flips.
TOLERANCE = 1e-4
TEMPLATE = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}>"

QUANT = {
    "llama": {"default": {}},
    "qwen2": {
        "default": {"scheme": "weight", "weight_stages": 2, "group_size": 40},
        "overrides": {"*.down_proj": {"scheme": "co", "act_stages": 2}},
    },
    "qwen3": {
        "default": {"act_stages": 2, "weight_stages": 2},
        "overrides": {
            "model.layers.1.*": {"vec_len": 3, "weight_centroids": 20, "act_stages": 1},
            "*.o_proj": {"scheme": "weight", "act_stages": 1},
        },
    },
}
KIND = {"llama": "F16", "qwen2": "F32", "qwen3": "BF16"}


def quant_config(arch: str) -> QuantConfig:
    return QuantConfig.from_dict(
        {"quant_method": "lutllm", "format_version": 1, **QUANT[arch], "seed": 0}
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    out = {}
    for arch in ARCHS:
        out[arch] = tmp_path_factory.mktemp(arch)
        write_artifact(out[arch], tiny_config(arch), quant_config(arch), kind=KIND[arch])
        write_tokenizer(out[arch], 301, TEMPLATE)
    return out


@pytest.fixture(scope="module", params=ARCHS)
def folder(request, folders) -> Path:
    return folders[request.param]


@pytest.fixture(scope="module")
def lut_model(folder) -> LutModel:
    return LutModel.load(folder, threads=2)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 301, 45)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> LutModel:
    """A model for what does not depend on the architecture."""
    path = tmp_path_factory.mktemp("one")
    write_artifact(path, tiny_config("qwen3"))
    write_tokenizer(path, 301, TEMPLATE)
    return LutModel.load(path, threads=2)


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("kv", KV_DTYPES)
def test_logits_and_integers_equal_the_reference(kv, folder, ids):
    """The reference goes on from the kernels' inputs: its floats may differ in the last bit, and
    an activation rounded the other way would make all that follows incomparable."""
    artifact = Artifact.open(folder)
    lut_model = LutModel.load(folder, threads=2, kv=kv)
    inputs, sums = lut_model.capture(ids)
    expected_inputs: dict[str, np.ndarray] = {}

    def replace(name: str, x: np.ndarray) -> np.ndarray:
        expected_inputs[name] = x
        return inputs[name]

    expected = reference.logits(artifact, ids, replace, kv)
    got = lut_model.logits(ids)
    assert np.abs(got - expected).max() < TOLERANCE * expected.std()
    np.testing.assert_array_equal(got.argmax(1), expected.argmax(1))
    assert list(inputs) == [shape.name for shape in artifact.model.linears()]
    for shape in artifact.model.linears():
        x = inputs[shape.name]
        want = expected_inputs[shape.name]
        np.testing.assert_allclose(x, want, rtol=1e-3, atol=TOLERANCE * want.std())
        np.testing.assert_array_equal(
            sums[shape.name], intmath.accumulate(x, artifact.linear(shape))[0]
        )


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
def test_half_precision_caches_change_little_and_take_half(folder, ids):
    """Prefill and decode agree here too; a batch is made of the same kernels."""
    single, half = (LutModel.load(folder, threads=2, kv=kv) for kv in KV_DTYPES)
    logits = half.logits(ids)
    assert half.cache.nbytes * 2 == single.cache.nbytes
    assert not np.array_equal(logits, single.logits(ids))
    half.reset()
    np.testing.assert_array_equal(np.array([half.decode(int(i)) for i in ids]), logits)
    with pytest.raises(ConfigError, match="kv is 'F8'; choose F32 or F16"):
        LutModel.load(folder, kv="F8")


def test_half_precision_is_that_of_numpy():
    """Every half, what lies halfway between two, one bit more and less, and what has no half."""
    halves = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[:-1] + halves[1:]) / 2
    near = np.concatenate([halves, between[np.isfinite(between)], np.float32([65519, 65520, 1e9])])
    near = np.concatenate([near, np.nextafter(near, np.inf), np.nextafter(near, -np.inf)])
    values = np.ascontiguousarray(np.concatenate([near, -near, np.float32([np.nan])]), np.float32)
    out = np.zeros(len(values), np.uint16)
    _halves(values.ctypes.data, out.ctypes.data, len(values))
    with np.errstate(over="ignore"):
        want = values.astype(np.float16)
    np.testing.assert_array_equal(out.view(np.float16), want)


@kernel
def _halves(values: int, out: int, count: int) -> None:
    for i in range(count):
        store_i16(out + 2 * i, half_bits(load_f32(values + 4 * i)))


def test_prefill_equals_decode_to_the_bit(lut_model, ids):
    together = lut_model.logits(ids)
    lut_model.reset()
    one_by_one = np.array([lut_model.decode(int(i)) for i in ids])
    np.testing.assert_array_equal(together, one_by_one)
    lut_model.reset()
    lut_model.prefill(ids[:7])
    np.testing.assert_array_equal(lut_model.prefill(ids[7:]), together[-1])


def test_threads_never_change_a_result(folder, lut_model, ids):
    expected = lut_model.logits(ids)
    for threads in (1, 3):
        other = LutModel.load(folder, threads=threads)
        np.testing.assert_array_equal(other.logits(ids), expected)
        np.testing.assert_array_equal(other.decode(5), lut_model.prefill([5]))
        lut_model.logits(ids)


def test_chunks_and_cache_growth_change_nothing(lut_model, ids, monkeypatch):
    expected = lut_model.logits(ids)
    monkeypatch.setattr(model, "CHUNK", 8)
    monkeypatch.setattr("lutllm.emulator.cache._FIRST_CAPACITY", 16)
    other = LutModel.load(lut_model.path, threads=2)
    assert other.cache.capacity == 16
    np.testing.assert_array_equal(other.logits(ids), expected)
    assert other.cache.capacity == 64


def test_losses_are_those_of_the_logits(lut_model, ids, monkeypatch):
    monkeypatch.setattr(model, "HEAD_CHUNK", 10)
    windows = np.array([ids[:20], ids[20:40]])
    losses = lut_model.nll(windows)
    for window, row in zip(windows, losses, strict=True):
        logits = lut_model.logits(window).astype(np.float64)
        shifted = logits - logits.max(1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        np.testing.assert_allclose(row, -log_p[np.arange(19), window[1:]], rtol=1e-5)


def fingerprints(folders: list[str]) -> list[dict[str, str]]:
    """Digests of logits and of every accumulator, for each artifact."""
    ids = np.random.default_rng(0).integers(0, 301, 12)
    out = []
    for folder in folders:
        lut_model = LutModel.load(folder, threads=1)
        _, sums = lut_model.capture(ids)
        arrays = {**sums, "logits": lut_model.logits(ids)}
        out.append({name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in arrays.items()})
    return out


@pytest.mark.parametrize("isa", SETS)
def test_kernel_sets_give_the_same_bits(isa, folders):
    if isa == ISA:
        pytest.skip(f"the kernels of {isa} are the ones in use")
    if not SETS[isa] <= usable_features():
        pytest.skip(f"this processor lacks {', '.join(sorted(SETS[isa] - usable_features()))}")
    paths = [str(path) for path in folders.values()]
    script = "import json, sys; from tests.test_emulator import fingerprints; "
    script += "print(json.dumps(fingerprints(sys.argv[1:])))"
    done = subprocess.run(
        [sys.executable, "-c", script, *paths],
        env={**os.environ, "LUTLLM_ISA": isa},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == fingerprints(paths)


# ---------------------------------------------------------------- text


def test_greedy_generation_is_the_argmax(one):
    ids = one.tokenizer.encode_prompt("hello")
    one.reset()
    logits = one.prefill(ids)
    expected = []
    for _ in range(6):
        expected.append(int(logits.argmax()))
        logits = one.decode(expected[-1])
    pieces: list[str] = []
    out = one.generate("hello", max_tokens=6, on_text=pieces.append)
    assert out.tokens == expected
    assert out.text == "".join(pieces) == str(out) == one.tokenizer.decode(expected)
    assert out.finish_reason == "length"
    assert out.prompt_tokens == len(ids)
    assert min(out.prefill_tokens_per_s, out.decode_tokens_per_s) > 0


def test_sampling_follows_the_seed(one):
    runs = [
        one.generate("hello", max_tokens=12, temperature=1.5, seed=seed).tokens
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_generation_stops_at_eos(one, monkeypatch):
    first = one.generate("hello", max_tokens=4).tokens
    monkeypatch.setattr(one.tokenizer, "eos_ids", (first[2],))
    out = one.generate("hello", max_tokens=4)
    assert out.finish_reason == "stop"
    assert out.tokens == first[: first.index(first[2])]


def test_messages_go_through_the_chat_template(one):
    chat = one.generate(messages=[{"role": "user", "content": "hi"}], max_tokens=3)
    assert chat.tokens == one.generate("[hi]>", max_tokens=3).tokens


def test_generation_ends_with_the_context(one):
    short = LutModel.load(one.path, threads=1, context=10)
    out = short.generate("12345678", max_tokens=50)
    assert out.finish_reason == "length"
    assert len(out.tokens) == 3  # two fit, and one more is known from the last logits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({}, "either a prompt or messages"),
        ({"prompt": "a", "messages": []}, "either a prompt or messages"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens is 0"),
        ({"prompt": "a", "temperature": -1.0}, "temperature is -1"),
        ({"prompt": "a", "top_p": 0.0}, "top_p is 0"),
        ({"prompt": "a", "top_k": -1}, "top_k is -1"),
        ({"prompt": "a" * 900}, "the context ends at 700"),
    ],
)
def test_wrong_requests_are_told(one, arguments, message):
    with pytest.raises(ConfigError, match=message):
        one.generate(**arguments)


def test_wrong_tokens_and_contexts_are_told(one):
    with pytest.raises(ConfigError, match="token id 301 is not in the vocabulary"):
        one.logits([1, 301])
    with pytest.raises(ConfigError, match="at least one"):
        one.logits([])
    with pytest.raises(ConfigError, match="context is 701"):
        LutModel.load(one.path, context=701)


def test_logits_that_are_not_finite_are_told(one, monkeypatch):
    bad = np.full(301, np.nan, np.float32)
    monkeypatch.setattr(one, "prefill", lambda ids: bad)
    with pytest.raises(ArtifactError, match="lutllm verify"):
        one.generate("a", max_tokens=1)


def test_sampling_keeps_the_likeliest():
    rng = np.random.default_rng(0)
    logits = np.log(np.array([0.1, 0.2, 0.4, 0.3], np.float32))
    assert Sampling().choose(logits, rng) == 2
    assert Sampling(1.0, top_k=1).choose(logits, rng) == 2
    assert Sampling(1.0, top_p=0.3).choose(logits, rng) == 2
    draws = [Sampling(1.0, top_k=2).choose(logits, rng) for _ in range(2000)]
    assert set(draws) == {2, 3}
    assert abs(draws.count(2) / 2000 - 4 / 7) < 0.05
    draws = [Sampling(1.0, top_p=0.75).choose(logits, rng) for _ in range(2000)]
    assert set(draws) == {1, 2, 3}
    draws = [Sampling(1.0).choose(logits, rng) for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(draws) / 4000, [0.1, 0.2, 0.4, 0.3], atol=0.04)


# ---------------------------------------------------------------- machine


def resident_bytes(folder: Path) -> dict[str, int]:
    """Bytes of each file of a folder that this process has in memory as mapped pages."""
    out: dict[str, int] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            path = Path(line.split(" ")[-1])
        elif line.startswith("Rss:") and path.parent == folder:
            out[path.name] = out.get(path.name, 0) + 1024 * int(line.split()[1])
    return out


def test_pages_of_packed_files_are_given_back(tmp_path):
    if not Path("/proc/self/smaps").exists():
        pytest.skip("needs /proc")
    write_artifact(tmp_path, tiny_config("llama", intermediate_size=8000))
    size = (tmp_path / "layer-0.safetensors").stat().st_size
    held = LutModel.load(tmp_path, threads=1)
    assert held.table_bytes > 0
    assert resident_bytes(tmp_path)["layer-0.safetensors"] < size / 4


def test_reading_linears_in_turn_holds_pages_of_one(tmp_path):
    if not Path("/proc/self/smaps").exists():
        pytest.skip("needs /proc")
    write_artifact(tmp_path, tiny_config("llama", intermediate_size=8000, num_hidden_layers=3))
    size = (tmp_path / "layer-0.safetensors").stat().st_size
    artifact = Artifact.open(tmp_path)
    for _ in artifact.linears():
        assert sum(resident_bytes(tmp_path).values()) < 1.5 * size
    assert sum(resident_bytes(tmp_path).values()) < size


def test_bench_reports_speed_and_its_bound(one, monkeypatch):
    monkeypatch.setattr("lutllm.emulator.bench.BANDWIDTH_BYTES", 1 << 20)
    report = bench(one, prompt_tokens=12, decode_tokens=3, repeats=2)
    assert report["threads"] == 2
    for key in ("prefill_tokens_per_s", "decode_tokens_per_s", "decode_gb_per_s"):
        assert report[key] > 0
    assert report["memory_gb_per_s"] > 0
    assert report["decode_bytes_per_token"] > one.table_bytes
    assert report["batch_tokens_per_s"] is None
    assert bench(one, prompt_tokens=5, decode_tokens=2, batch=3)["batch_tokens_per_s"] > 0


def test_bench_takes_the_tokens_of_a_text(one):
    assert list(bench_ids(one, "hello there", 4)) == one.tokenizer.encode("hello there")[:4]
    with pytest.raises(ConfigError, match="tokens, 4000 are needed; give a longer one"):
        bench(one, prompt_tokens=3990, decode_tokens=10, text="hello there")


# ---------------------------------------------------------------- several sequences


def test_a_batch_gives_each_sequence_what_it_gets_alone(folder):
    """Prompts of different lengths, caches that grow at different times, threads that share."""
    rng = np.random.default_rng(7)
    prompts = [rng.integers(0, 301, n) for n in (3, 40, 254, 17, 1)]
    steps = rng.integers(0, 301, (6, len(prompts)))
    alone = LutModel.load(folder, threads=1)
    expected = []
    for number, prompt in enumerate(prompts):
        alone.reset()
        rows = [alone.prefill(prompt)] + [alone.decode(int(t)) for t in steps[:, number]]
        expected.append(np.stack(rows))
    for threads in (1, 3):
        together = LutModel.load(folder, threads=threads)
        caches = [together.new_cache() for _ in prompts]
        found = [
            [together.prefill(prompt, cache)] for prompt, cache in zip(prompts, caches, strict=True)
        ]
        for tokens in steps:
            for rows, row in zip(found, together.decode_batch(tokens, caches), strict=True):
                rows.append(row)
        for rows, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(np.stack(rows), wanted)
        assert [cache.length for cache in caches] == [len(p) + 6 for p in prompts]
        assert together.cache.length == 0


def test_batches_larger_than_a_chunk(lut_model, ids, monkeypatch):
    caches = [lut_model.new_cache() for _ in range(5)]
    first = lut_model.decode_batch(ids[:5], caches)
    monkeypatch.setattr(model, "CHUNK", 2)
    again = lut_model.decode_batch(ids[:5], [lut_model.new_cache() for _ in range(5)])
    np.testing.assert_array_equal(first, again)


def test_batch_refuses_what_does_not_fit(lut_model):
    cache, other = lut_model.new_cache(), lut_model.new_cache()
    with pytest.raises(ConfigError, match="2 tokens for 1 caches"):
        lut_model.decode_batch([1, 2], [cache])
    with pytest.raises(ConfigError, match="each needs one of its own"):
        lut_model.decode_batch([1, 2], [cache, cache])
    cache.length = lut_model.context
    with pytest.raises(ConfigError, match="the context ends at"):
        lut_model.decode_batch([1, 2], [other, cache])
    assert other.length == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_of_a_batch_are_those_of_generate(lut_model, temperature):
    prompts = ["ab", "a longer prompt, so that lengths differ", "x"]
    options = {"max_tokens": 12, "temperature": temperature, "seed": 4}
    found = lut_model.generate_batch(prompts, **options)
    for prompt, one in zip(prompts, found, strict=True):
        alone = lut_model.generate(prompt, **options)
        assert (one.text, one.tokens) == (alone.text, alone.tokens)
        assert one.finish_reason == alone.finish_reason
        assert one.prompt_tokens == alone.prompt_tokens


def test_no_prompts_no_texts(lut_model):
    assert lut_model.generate_batch([]) == []
