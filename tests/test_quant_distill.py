"""Distillation: gradients, a falling loss, resumption, and a result that is a valid artifact."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from calib.decoder import FloatDecoder
from calib.operators import rms_norm
from lutllm import intmath
from lutllm.artifact import EMBEDDING, Artifact, artifact_hash
from lutllm.checkpoint import Checkpoint, open_checkpoint
from lutllm.config import METRICS, LutConfig, QuantConfig
from lutllm.emulator.runner import table_engine
from lutllm.emulator.team import Team
from lutllm.intmath import lut_linear
from lutllm.lut_linear import LutLinear
from quant.baseline import relative_error
from quant.distill import DistillConfig, Student, distill, trained_tensors
from quant.divergence import divergence
from quant.pipeline import CalibrationConfig, quantize
from quant.student import StudentLinear, _decoded
from tests.helpers import random_input, random_linear
from tests.quant_problem import data, run
from tests.tiny_models import make_model, tiny_config, write_hf

CALIBRATION = CalibrationConfig(tokens=512, ctx=64)
IDS = np.random.default_rng(0).integers(0, 300, 3000)
WINDOWS = IDS[:2560].reshape(40, 64)
CONFIG = QuantConfig(
    LutConfig(act_centroids=16, group_size=64),
    {"*.mlp.*": {"scheme": "weight", "weight_stages": 2, "weight_centroids": 4}},
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Artifact]:
    folder = tmp_path_factory.mktemp("model")
    checkpoint = open_checkpoint(write_hf(folder, make_model(tiny_config("qwen3"))))
    checkpoint.write_tokenizer = lambda dest: None  # type: ignore[method-assign]
    out = folder / "artifact"
    quantize(checkpoint, out, CONFIG, IDS, calibration=CALIBRATION, progress=False)
    return checkpoint, Artifact.open(out)


@pytest.mark.parametrize(
    "config",
    [
        LutConfig(group_size=48),
        LutConfig(group_size=64, act_stages=2, weight_stages=2),
        LutConfig(group_size=64, act_stages=2, token_scale=True, rotation=16),
        LutConfig(scheme="weight", vec_len=3, weight_centroids=30, group_size=100),
        LutConfig(scheme="weight", group_size=64, rotation=32),
        LutConfig(scheme="weight", group_size=64, rotation=32, codebook_positions=9, table_bits=16),
    ],
    ids=str,
)
def test_student_linear_is_the_tables_up_to_rounding(config: LutConfig) -> None:
    x, _ = data()
    linear = run(config).linear
    found = StudentLinear(linear).apply(x[:40]).detach()
    assert relative_error(found, torch.from_numpy(lut_linear(x[:40].numpy(), linear))) < 0.006
    trained = StudentLinear(linear).trained()
    assert np.array_equal(trained.weight_codebook, linear.weight_codebook)
    assert np.allclose(trained.output_scale, linear.output_scale)


@pytest.mark.parametrize("shared", [1, 3])
def test_gradients_equal_those_of_the_decoded_weight(shared: int) -> None:
    config = LutConfig(
        scheme="weight",
        weight_stages=2,
        group_size=48,
        codebook_positions=shared,
        table_bits=16,
        wide_stages=2,
    )
    linear = random_linear(config, 20, 70)
    student = StudentLinear(linear)
    x = torch.from_numpy(random_input(6, 20)).requires_grad_()
    probe = torch.randn(6, 70, generator=torch.Generator().manual_seed(0))
    (student.apply(x) * probe).sum().backward()

    # The same layer with torch indexing alone.
    books = student.books.detach().clone().requires_grad_()
    integers = (books * student._rms).clamp(-127, 127)
    integers = integers + (integers.round() - integers).detach()
    codes = torch.from_numpy(linear.unpack_weight_codes().astype(np.int64))
    group = torch.arange(70) // 48
    weight = 0.0
    for s in range(2):
        unit = integers[s][np.arange(10) // shared] * student._unit[s]
        p = torch.arange(len(unit))[:, None]
        weight = weight + unit[p, group[None], codes[s]]  # [P, M, v]
    matrix = weight.permute(0, 2, 1).reshape(-1, 70)
    x2 = x.detach().clone().requires_grad_()
    z = x2[:, linear.input_perm] * torch.from_numpy(linear.input_scale)
    top = z.detach().abs().amax(1, keepdim=True).clamp(min=1e-30)
    z = z * (127 / top)
    z = z + (z.round() - z).detach()
    y = z @ matrix * student._output_scale * (top / 127)
    (y * probe).sum().backward()
    assert torch.allclose(books.grad, student.books.grad, rtol=1e-3, atol=1e-4)
    assert torch.allclose(x2.grad, x.grad, rtol=1e-3, atol=1e-4)
    assert torch.allclose((y * probe).sum(0), student.gain.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scheme", ["weight", "co"])
def test_one_stage_is_exact_in_bfloat16(scheme: str) -> None:
    linear = random_linear(LutConfig(scheme=scheme, group_size=48), 20, 70)
    x = torch.from_numpy(random_input(9, 20))
    exact = StudentLinear(linear, torch.float32).apply(x)
    rounded = StudentLinear(linear, torch.bfloat16).apply(x)
    # Nothing is rounded but the product itself, to 8 bits.
    assert torch.allclose(exact, rounded, rtol=2.0**-8, atol=1e-6)
    assert not torch.equal(exact, rounded)


def test_gradients_in_bfloat16_are_those_in_float32() -> None:
    linear = random_linear(LutConfig(scheme="weight", weight_stages=2, group_size=48), 64, 70)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        student = StudentLinear(linear, dtype)
        x = torch.from_numpy(random_input(50, 64)).requires_grad_()
        student.apply(x).square().sum().backward()
        found.append((student.books.grad, student.gain.grad, x.grad))
    for a, b in zip(*found, strict=True):
        assert relative_error(b, a) < 1e-4


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("stages", "token_scale"), [(1, False), (2, False), (2, True)])
def test_activation_centroids_get_the_gradient_of_their_tokens(
    stages: int, token_scale: bool, metric: str
) -> None:
    config = LutConfig(
        act_stages=stages, act_centroids=5, group_size=48, metric=metric, token_scale=token_scale
    )
    linear = random_linear(config, 20, 70)
    student = StudentLinear(linear)
    x = torch.from_numpy(random_input(9, 20)).requires_grad_()
    probe = torch.randn(9, 70, generator=torch.Generator().manual_seed(0))
    (student.apply(x) * probe).sum().backward()

    # The same with the codes of intmath and torch indexing.
    x_int, token = intmath.quantize_activation(x.detach().numpy(), linear)
    unit = torch.ones(9, 1) if token is None else torch.from_numpy(token)[:, None]
    found = intmath.search(x_int, linear.act_codebook, metric)
    codes = torch.from_numpy(found.astype(np.int64))
    books = student.act_books.detach().clone().requires_grad_()
    centroids = books * student._act_rms * student._act_unit
    p = torch.arange(linear.num_positions)[None]
    z = sum(centroids[t][p, codes[:, t]] for t in range(stages)).flatten(1)
    weight = _decoded((student.integers() * student._unit).detach(), student._codes, 48)
    (z @ weight * unit * student._output_scale * probe).sum().backward()
    assert torch.allclose(books.grad, student.act_books.grad, rtol=1e-3, atol=1e-4)
    fine = 1 if token_scale else 8 ** (stages - 1)
    slot_scale = torch.from_numpy(linear.input_scale) / fine
    straight = (probe * student._output_scale) @ weight.t() * slot_scale
    expected = torch.zeros_like(x)
    expected[:, linear.input_perm] = straight
    assert torch.allclose(x.grad, expected, rtol=1e-3, atol=1e-4)


def test_trained_activation_centroids_are_stored() -> None:
    linear = random_linear(LutConfig(group_size=48), 20, 70)
    student = StudentLinear(linear)
    with torch.no_grad():
        student.act_books *= -1
    trained = student.trained()
    assert np.array_equal(trained.act_codebook, -linear.act_codebook)
    assert np.array_equal(trained.weight_codebook, linear.weight_codebook)


def test_divergence_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(300, 16, generator=generator).requires_grad_()
    teacher = torch.randn(300, 16, generator=generator)
    head, other = torch.randn(2, 50, 16, generator=generator)
    found = torch.log_softmax(student @ head.t(), -1)
    target = torch.log_softmax(teacher @ other.t(), -1)
    loss = (target.exp() * (target - found)).sum(-1).mean()
    loss.backward()
    value, gradient = divergence(student.detach(), teacher, (head, other), gradient=True)
    assert value == pytest.approx(loss.item(), rel=1e-4)
    assert torch.allclose(gradient, student.grad, atol=1e-5)
    same, _ = divergence(teacher, teacher, (head, head), gradient=False)
    assert same == pytest.approx(0, abs=1e-5)


def test_divergence_of_predictions_far_apart() -> None:
    logits = torch.tensor([[0.0, 150.0, -80.0], [90.0, 0.0, 89.0], [0.0, 0.0, 0.0]])
    others = torch.tensor([[200.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-300.0, 2.0, 2.0]])
    heads = torch.eye(3), torch.eye(3)
    value, gradient = divergence(logits, others, heads, gradient=True)
    found, target = torch.log_softmax(logits, -1), torch.log_softmax(others, -1)
    expected = (target.exp() * (target - found)).sum(-1).mean()
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(gradient, (found.exp() - target.exp()) / 3, atol=1e-6)


def test_the_student_has_the_stored_embedding_and_head(
    pair: tuple[Checkpoint, Artifact], tmp_path: Path
) -> None:
    checkpoint = pair[0]
    config = dataclasses.replace(CONFIG, head="int8")
    out = tmp_path / "artifact"
    quantize(checkpoint, out, config, IDS, calibration=CALIBRATION, progress=False)
    artifact = Artifact.open(out)
    student = Student.from_artifact(artifact, FloatDecoder(checkpoint))
    head = artifact.float32(artifact.head_name)
    assert np.array_equal(student.head.numpy(), head)
    assert not np.array_equal(head, checkpoint.tensor(artifact.head_name))
    bare = dataclasses.replace(student, layers=[], linears=[])  # embedding, then final norm
    rows = torch.from_numpy(artifact.float32(EMBEDDING)[IDS[None, :40]])
    eps = checkpoint.model.rms_norm_eps
    assert torch.equal(bare.hidden(IDS[None, :40]), rms_norm(rows, student.final_norm, eps))


def test_distillation_lowers_the_divergence(pair: tuple[Checkpoint, Artifact]) -> None:
    config = DistillConfig(steps=60, windows=4, learning_rate=1e-2)
    student, record = distill(pair[1], pair[0], WINDOWS[:32], WINDOWS[32:], config, progress=False)
    assert len(record["curve"]) == 60
    assert record["held_out_after"] < 0.95 * record["held_out_before"]
    for layer in range(2):
        linears, norms = trained_tensors(student, layer)
        assert len(linears) == 4
        assert len(norms) == 4
        for linear in linears:
            linear.validate()


class Stop(Exception):
    pass


def test_resumed_distillation_gives_the_same_result(
    pair: tuple[Checkpoint, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quant import distill as module

    config = DistillConfig(steps=6, windows=2, learning_rate=1e-2)
    arguments = (pair[1], pair[0], WINDOWS[:8], WINDOWS[38:], config)
    whole, record = distill(*arguments, progress=False)

    original = module._train_step
    calls = 0

    def stop(*rest):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Stop
        return original(*rest)

    monkeypatch.setattr(module, "SAVE_INTERVAL_S", 0.0)
    monkeypatch.setattr(module, "_train_step", stop)
    state = tmp_path / "distill.npz"
    with pytest.raises(Stop):
        distill(*arguments, state_path=state, progress=False)
    monkeypatch.setattr(module, "_train_step", original)
    resumed, again = distill(*arguments, state_path=state, progress=False)
    assert again == record
    assert [step for step, _ in record["held_out_curve"]] == [0, 1, 2, 3, 4, 5, 6]
    for a, b in zip(whole.tensors(), resumed.tensors(), strict=True):
        assert torch.equal(a, b)


def test_rate_warms_up_and_decays() -> None:
    config = DistillConfig(steps=100, learning_rate=1.0, warmup=0.05)
    rates = [config.rate(i) for i in range(100)]
    assert rates[0] < rates[2] < rates[4]
    assert rates[4] > rates[50] > rates[99] > 0


def test_student_reads_the_artifact(pair: tuple[Checkpoint, Artifact]) -> None:
    student = Student.from_artifact(pair[1], FloatDecoder(pair[0]))
    hidden = student.hidden(WINDOWS[:2])
    assert hidden.shape == (2, 64, 64)
    assert torch.isfinite(hidden).all()


@pytest.mark.parametrize(
    "config",
    [
        LutConfig(group_size=48),
        LutConfig(group_size=64, act_stages=2, weight_stages=2, table_bits=16),
        LutConfig(scheme="weight", weight_centroids=30, group_size=100),
    ],
    ids=str,
)
def test_student_with_an_engine_is_the_tables_to_the_bit(config: LutConfig) -> None:
    x, _ = data()
    student = StudentLinear(run(config).linear, engine=table_engine(Team(2)))
    for _ in range(2):
        found = student.apply(x[:40])
        expected = lut_linear(x[:40].numpy(), student.trained())
        assert np.array_equal(found.detach().numpy(), expected)
        found.square().sum().backward()
        with torch.no_grad():  # as a training step does
            for value in student.parameters():
                assert value.grad is not None
                value -= 0.2 * value.abs().mean() * value.grad.sign()


@pytest.mark.parametrize("metric", ["l2", "chebyshev"])
@pytest.mark.parametrize("act_stages", [1, 2])
def test_codes_of_the_engine_give_the_gradients_of_the_search(act_stages: int, metric: str) -> None:
    x, _ = data()
    linear = run(LutConfig(group_size=48, act_stages=act_stages, metric=metric)).linear
    probe = torch.randn(40, linear.out_features, generator=torch.Generator().manual_seed(1))
    gradients = []
    for engine in (None, table_engine(Team(2))):
        student = StudentLinear(linear, engine=engine)
        inputs = x[:40].clone().requires_grad_()
        (student.apply(inputs) * probe).sum().backward()
        assert inputs.grad is not None
        assert student.act_books is not None
        gradients.append([inputs.grad, student.act_books.grad, student.books.grad])
    for searched, found in zip(*gradients, strict=True):
        assert torch.equal(searched, found)


class _Reference:
    """A runner over the numpy definition."""

    def __init__(self, linear: LutLinear):
        self.linear = linear

    def update(self, linear: LutLinear) -> None:
        self.linear = linear

    def apply(self, x: np.ndarray) -> tuple[np.ndarray, None]:
        return lut_linear(x, self.linear), None


def _reference_engine(linear: LutLinear) -> _Reference:
    return _Reference(linear)


def test_quantization_sees_the_rounding_of_entries(pair: tuple[Checkpoint, Artifact]) -> None:
    """Later layers are fitted to what the tables give: another engine, other codes."""
    checkpoint, artifact = pair
    folder = Path(artifact.path)
    out = {}
    for name, engine in (("kernels", table_engine()), ("numpy", _reference_engine)):
        out[name] = folder.with_name(name)
        quantize(
            checkpoint,
            out[name],
            CONFIG,
            IDS,
            calibration=CALIBRATION,
            engine=engine,
            progress=False,
        )
    found = {name: artifact_hash(path) for name, path in out.items()}
    assert found["kernels"] == found["numpy"]
    assert found["kernels"] != artifact_hash(folder)


def test_distillation_measures_what_runs(pair: tuple[Checkpoint, Artifact]) -> None:
    checkpoint, artifact = pair
    records = [
        distill(
            artifact,
            checkpoint,
            WINDOWS[:8],
            WINDOWS[8:10],
            DistillConfig(steps=2, windows=1, dtype=torch.float32),
            engine=engine,
            progress=False,
        )[1]
        for engine in (table_engine(), _reference_engine, None)
    ]
    assert records[0] == records[1]
    assert records[0]["held_out_before"] != records[2]["held_out_before"]
