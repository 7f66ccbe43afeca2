"""Quantizes one linear layer: input code, refit, codes with error feedback, tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lutllm.config import LutConfig
from lutllm.lut_linear import LutLinear, pack_codes
from lutllm.model_config import LinearShape
from lutllm.progress import Progress
from quant.activation import (
    CodedInput,
    InputCode,
    code_input,
    code_usage,
    decode_input,
    fit_input,
    gather_slots,
    input_codes,
    round_input,
    sample_tokens,
)
from quant.codebook import searched_sums
from quant.error_feedback import (
    SWEEP_ITERATIONS,
    CodedWeight,
    coordinate_descent,
    error_feedback,
    robust,
    with_damping,
)
from quant.exact import common_exponents, has_exact_entries, round_to, rounding_error
from quant.rotated import orthogonal
from quant.shared import shared_codebooks
from quant.tables import (
    RANGE_TOKENS,
    TableUse,
    choose_shifts,
    clear_vanished,
    code_frequency,
    exact_shifts,
)

#: Rows that `quantize_rows` works on at a time.
CHUNK_ROWS = 16384
#: Share of the squared error that rounding centroids to a common unit may add. Coordinate descent
#: takes most of it back: of 0.23 to 0.31 in linears of Qwen2.5-Coder-0.5B 0.02 to 0.07 stayed.
MOST_ADDED = 0.4


@dataclass(frozen=True)
class Effort:
    """How hard the quantizer works; the same values give the same bytes.

    damping       added to the diagonal of H, relative to its mean
    refit_damping pull of the refitted weights towards the float ones, relative likewise
    iterations    Lloyd iterations per weight codebook
    sweeps        coordinate descent sweeps
    correction    share of the residual stream's error so far that the linears which add to it are
                  fitted to take back
    """

    damping: float = 0.01
    refit_damping: float = 0.02
    iterations: int = 10
    sweeps: int = 3
    row_scale: bool = True
    correction: float = 1.0


def searches(config: LutConfig, effort: Effort) -> int:
    """Centroids, or sums of them, that each vector of a weight is compared with in all."""
    count, stages = config.weight_centroids, config.weight_stages
    first = searched_sums(count, stages, effort.iterations)
    return first + effort.sweeps * searched_sums(count, stages, SWEEP_ITERATIONS)


@dataclass
class QuantizedLinear:
    """The result for one layer: what is stored, and its float equivalent for calibration."""

    linear: LutLinear
    code: InputCode
    weight: torch.Tensor  # f32[M, C], acts on the coded input in y
    bias: torch.Tensor | None
    coded_x: torch.Tensor  # f32[C, T], the calibration inputs as the layer sees them

    def output(self) -> torch.Tensor:
        """What `apply` gives for the calibration inputs: f32[T, M]."""
        return _product(self.coded_x, self.weight, self.bias)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The linear in float arithmetic, table rounding left out. f32[T, D] -> f32[T, M]."""
        config = self.linear.config
        coded = code_input(orthogonal(x, config.rotation), self.code, config)
        return _product(coded, self.weight, self.bias)


def _product(coded: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """coded: f32[C, T], weight: f32[M, C] -> f32[T, M]."""
    y = coded.t() @ weight.t()
    return y if bias is None else y.add_(bias)


def quantize_linear(
    shape: LinearShape,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    x_float: torch.Tensor,
    x_quant: torch.Tensor,
    config: LutConfig,
    effort: Effort,
    seed: int,
    token_weights: torch.Tensor | None = None,
    lacking: torch.Tensor | None = None,
) -> QuantizedLinear:
    """Quantize W so that coded inputs of the quantized model give the outputs of the float model.

    weight: f32[M, D]; x_float, x_quant: f32[T, D], inputs of this layer in the float model and in
    the model whose earlier layers are quantized; token_weights: f32[T] with mean 1, how much the
    squared output error of a token counts, None for all alike; lacking: f32[T, M], what the outputs
    are to give beside those of the float model.
    """
    weight, x_float, x_quant = (orthogonal(m, config.rotation) for m in (weight, x_float, x_quant))
    inputs = _code_inputs(weight, x_float, x_quant, config, seed, token_weights)
    extra = None if lacking is None else lacking.t() @ inputs.weighted
    coded, row_scale = _code_rows(weight, inputs, config, effort, extra)
    linear = _assemble(shape, config, inputs, coded, row_scale, bias)
    final = torch.from_numpy(coded.values) * row_scale[:, None]
    return QuantizedLinear(linear, inputs.code, final, bias, inputs.coded_x)


def quantize_rows(
    shape: LinearShape,
    weight: torch.Tensor,
    x_float: torch.Tensor,
    x_quant: torch.Tensor,
    config: LutConfig,
    effort: Effort,
    seed: int,
    progress: bool = False,
) -> LutLinear:
    """`quantize_linear` for very many rows, CHUNK_ROWS at a time: an output head.

    Row groups do not depend on each other, so only the working memory differs.
    """
    weight, x_float, x_quant = (orthogonal(m, config.rotation) for m in (weight, x_float, x_quant))
    inputs = _code_inputs(weight, x_float, x_quant, config, seed, None)
    size = max(1, CHUNK_ROWS // config.group_size) * config.group_size
    parts = []
    chunks = weight.split(size)
    with Progress(len(chunks), f"quantizing {shape.name}", progress) as bar:
        for rows in chunks:
            coded, row_scale = _code_rows(rows, inputs, config, effort)
            coded.values = coded.values[:0]  # only large
            parts.append((coded, row_scale))
            bar.advance()
    coded = CodedWeight.join([part for part, _ in parts])
    row_scale = torch.cat([scale for _, scale in parts])
    return _assemble(shape, config, inputs, coded, row_scale, None)


@dataclass
class _CodedInputs:
    """What the rows of a weight matrix share: the code of the input and its moments.

    coded_x: f32[C, T]; weighted: f32[T, C], the same times the weights of the tokens over T;
    moment H, cross S: f32[C, C], see `refit`; uses: as `choose_shifts` wants.
    """

    code: InputCode
    coded_x: torch.Tensor
    weighted: torch.Tensor
    moment: torch.Tensor
    cross: torch.Tensor
    uses: list[TableUse]


def _code_inputs(
    weight: torch.Tensor,
    x_float: torch.Tensor,
    x_quant: torch.Tensor,
    config: LutConfig,
    seed: int,
    token_weights: torch.Tensor | None,
) -> _CodedInputs:
    if token_weights is None:
        token_weights = torch.ones(len(x_quant))
    code = fit_input(x_quant, weight, config, seed, token_weights)
    coded = input_codes(x_quant, code, config) if config.scheme == "co" else None
    coded_x = decode_input(coded, code) if coded else round_input(x_quant, code)
    weighted = (coded_x * (token_weights / len(x_quant))).t()
    moment = coded_x @ weighted
    cross = gather_slots(x_float, code.perm, code.column_norm) @ weighted
    shares = token_weights.numpy()
    uses = (
        _coded_uses(code, coded, config, shares)
        if coded
        else _rounded_use(code, config, x_quant, shares, seed)
    )
    return _CodedInputs(code, coded_x, weighted, moment, cross, uses)


def _code_rows(
    weight: torch.Tensor,
    inputs: _CodedInputs,
    config: LutConfig,
    effort: Effort,
    extra: torch.Tensor | None = None,
) -> tuple[CodedWeight, torch.Tensor]:
    """Codes of the rows of W f32[M, D], normalised, and their scales f32[M]. extra: see `refit`."""
    code, moment = inputs.code, inputs.moment
    target = refit(_slot_weight(weight, code), moment, inputs.cross, effort.refit_damping, extra)
    row_scale = _row_scales(target) if effort.row_scale else torch.ones(len(target))
    normal = target / row_scale[:, None]
    row_weights = (row_scale / row_scale.pow(2).mean().sqrt()).pow(2).numpy()
    step = code.rho if config.scheme == "co" else np.where(code.rho > 0, code.rho, 1.0)
    shared = None
    if config.codebook_positions > 1:
        shared = shared_codebooks(normal, row_weights, step, config, effort.iterations)
    coded = error_feedback(
        normal,
        moment,
        row_weights,
        step,
        config,
        damping=effort.damping,
        iterations=effort.iterations,
        given=shared,
    )
    exponents = _share_exponents(coded, normal, moment, config)
    for _ in range(effort.sweeps):
        coordinate_descent(
            coded,
            normal,
            moment,
            row_weights,
            config,
            damping=effort.damping,
            iterations=0 if shared else SWEEP_ITERATIONS,
            exponents=exponents,
        )
    gain = best_row_gain(
        torch.from_numpy(coded.values), normal, with_damping(moment, effort.damping)
    )
    return coded, row_scale * gain


def _share_exponents(
    coded: CodedWeight, target: torch.Tensor, moment: torch.Tensor, config: LutConfig
) -> np.ndarray | None:
    """Exponents i32[P, Sw] to which the centroids have been rounded, so that table entries may be
    dot products; None where that would cost accuracy.
    """
    if coded.shared:
        return coded.exponents[:, 0]
    if not has_exact_entries(config):
        return None
    exponents = common_exponents(coded, config)
    rest = torch.from_numpy(coded.values) - target
    error = float(((rest @ moment) * rest).sum()) / len(rest)
    squares = moment.diagonal().numpy().reshape(coded.step.shape)
    if rounding_error(coded, exponents, squares * np.square(coded.step)) > MOST_ADDED * error:
        return None
    round_to(coded, exponents, config)
    return exponents


def _slot_weight(weight: torch.Tensor, code: InputCode) -> torch.Tensor:
    """W in slot order, acting on y: column / u, zero at padding. f32[M, D] -> f32[M, C]."""
    index = torch.from_numpy(np.maximum(code.perm, 0).astype(np.int64))
    used = code.column_norm > 0
    inverse = np.where(used, 1.0 / np.where(used, code.column_norm, 1.0), 0.0).astype(np.float32)
    return weight[:, index] * torch.from_numpy(inverse)


def refit(
    weight: torch.Tensor,
    moment: torch.Tensor,
    cross: torch.Tensor,
    damping: float,
    extra: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weights that best give the float outputs, and E beside, from the coded inputs.

    W' = (W (S + lambda I) + E Yq^T)(H + lambda I)^-1 minimises |W Yf + E - W' Yq|^2 +
    lambda |W' - W|^2, with H = Yq Yq^T and S = Yf Yq^T. weight: f32[M, C]; moment H, cross S:
    f32[C, C]; extra E Yq^T: f32[M, C].
    """
    ridge = damping * float(moment.diagonal().mean()) + 1e-12
    right = weight @ cross + ridge * weight
    if extra is not None:
        right += extra

    def solve(scale: float) -> torch.Tensor:
        factor = torch.linalg.cholesky(with_damping(moment, scale))
        return torch.cholesky_solve(right.t(), factor).t().contiguous()

    return robust(solve, damping)


def _row_scales(weight: torch.Tensor) -> torch.Tensor:
    """Root mean square of each row, kept away from zero. f32[M, C] -> f32[M]."""
    scale = weight.pow(2).mean(1).sqrt()
    return scale.clamp(min=1e-4 * float(scale.mean()) + 1e-20)


def best_row_gain(values: torch.Tensor, weight: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """Factor per row that minimises the output error of gain * values against weight. f32[M]."""
    product = values @ moment
    energy = (product * values).sum(1)
    gain = (product * weight).sum(1) / energy.clamp(min=1e-20)
    return torch.where((energy > 1e-20) & (gain > 0.25) & (gain < 4), gain, torch.ones_like(gain))


def _assemble(
    shape: LinearShape,
    config: LutConfig,
    inputs: _CodedInputs,
    coded: CodedWeight,
    row_scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> LutLinear:
    """The stored arrays of the layer, validated."""
    code, uses = inputs.code, inputs.uses
    if coded.shared:
        exponents = common_exponents(coded, config)  # groups may come from several calls
        round_to(coded, exponents, config)
    integers = coded.integers.copy()
    if coded.shared:
        table_shift, block_shift, unit = exact_shifts(exponents, integers.shape[1], config)
    else:
        share = code_frequency(coded.codes, config.weight_centroids, config.group_size)
        table_shift, block_shift, unit = choose_shifts(
            uses, integers, share, coded.exponents, config
        )
        if config.vec_len <= 2:
            clear_vanished(integers, table_shift)
    linear = LutLinear(
        name=shape.name,
        config=config,
        in_features=shape.in_features,
        out_features=shape.out_features,
        input_perm=code.perm,
        input_scale=code.input_scale(config),
        act_codebook=code.codebook,
        weight_codebook=np.ascontiguousarray(
            integers[:: config.codebook_positions].transpose(2, 0, 1, 3, 4)
        ),
        weight_codes=pack_codes(coded.codes, config.code_bits),
        table_shift=np.ascontiguousarray(table_shift),
        block_shift=np.ascontiguousarray(block_shift),
        output_scale=(row_scale.double() * 2.0**unit).float().numpy(),
        bias=None if bias is None else bias.numpy(),
    )
    linear.validate()
    return linear


def _coded_uses(
    code: InputCode, coded: CodedInput, config: LutConfig, weights: np.ndarray
) -> list[TableUse]:
    """The centroids of each activation stage, with the weighted share of their codes.

    A table entry of a token is worth its scale.
    """
    assert code.codebook is not None
    worth = weights if coded.unit is None else weights * np.square(coded.unit)
    return [
        TableUse(np.swapaxes(stage, 0, 1), code_usage(c, config.act_centroids, worth).T)
        for stage, c in zip(code.codebook, coded.codes, strict=True)
    ]


def _rounded_use(
    code: InputCode, config: LutConfig, x: torch.Tensor, weights: np.ndarray, seed: int
) -> list[TableUse]:
    """A sample of the rounded activations x f32[T, D], scheme "weight", weights f32[T]."""
    drawn = sample_tokens(len(x), RANGE_TOKENS, seed)
    scale = code.column_norm * code.rho.reshape(-1)
    z = gather_slots(x[torch.from_numpy(drawn)], code.perm, scale).numpy()
    x_int = np.rint(z * (127.0 / np.maximum(np.abs(z).max(axis=0), 1e-30)))
    vectors = np.ascontiguousarray(x_int.T).reshape(x_int.shape[1], -1, config.vec_len)
    # A table entry of a token is worth its scale.
    worth = weights[drawn] * np.square(np.abs(z).max(axis=0))
    share = np.repeat((worth / worth.sum())[:, None], vectors.shape[1], axis=1)
    return [TableUse(vectors, share.astype(np.float32))]
