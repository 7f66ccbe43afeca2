"""What kernels know of a model and of a run, as records of addresses and sizes."""

from __future__ import annotations

from lutllm.emulator.layout import record_type

#: Linears of a layer, in the order they run.
QKV, OUT, GATE_UP, DOWN = 0, 1, 2, 3
LINEARS = 4
#: Queries that share the loads of keys and values.
QUERIES = 8

#: Sizes, constants and stored float tensors of a model. *_kind: `floats.KINDS`, kv_kind that of the
#: caches; *_scale: of int8 rows, f32[vocab]; head_limit: `int8_rows.hidden_limit`; screened: 1
#: where a LUT linear, the last one, comes before the rows of the head, and head_margin is that of
#: `int8_rows.screen`.
DECODER = record_type(
    """
    layers hidden intermediate heads kv_heads head_dim vocab
    embed embed_kind embed_scale head head_kind head_scale head_limit screened final_norm cos sin
    kv_kind
    """,
    "eps",
    "head_margin",
    "score_scale",
)

#: Addresses of the norms of one layer (q_norm and k_norm 0 where absent).
LAYER = record_type("input_norm post_norm q_norm k_norm")

#: Buffers of a run. One for each token: ids, positions, caches (addresses of `KVCache.table`) i64,
#: scales, head_scales, least f32. Rows of one token: h and normed f32[hidden, padded to 16], qkv,
#: mixed (attention output), gate_up, product f32; act i8[Sa, orders, slots * v].
#: One per thread: scratch, scores (QUERIES rows of `score_row` floats, no fewer than a cache has
#: positions, and outputs). turns: i64, two for each linear, then
#: one for each layer's attention; zero before a run.
#: capture and sums: 0, or tables i64[4 L] of addresses that receive every linear's input
#: f32[tokens, D] and accumulators i32[tokens, M].
BUFFERS = record_type(
    """
    ids positions caches scales head_scales least score_row
    h h_bytes normed qkv qkv_bytes mixed mixed_bytes
    gate_up gate_up_bytes product product_bytes act act_bytes
    scratch scratch_bytes scores scores_bytes turns capture sums
    """
)
