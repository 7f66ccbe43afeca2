"""Products of 16 tokens with 16 outputs by AMX tiles, for `products`.

A tile is 16 rows of 64 bytes. `tdpbsud` adds to each of 16 x 16 sums the products of 64 signed
bytes with 64 unsigned ones: here the factors of a token in eight quads with the centroids of an
output. Tiles 0 to 3 are the sums of two times 16 tokens and two parts, 4 and 5 factors, 6 and 7
centroids.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from lutllm.emulator.jit import inline
from lutllm.emulator.layout import PART_BYTES, PARTS, QUAD, TILE
from lutllm.emulator.simd import (
    add,
    call_llvm,
    i32x16,
    intrinsic,
    load,
    shl,
    store,
)

_TOKENS = 16
#: Quads whose factors fill a row.
_QUADS = 8
_SUM_BYTES = 4 * 16 * 16

_I8, _I64, _VOID = ir.IntType(8), ir.IntType(64), ir.VoidType()


def _tile(builder: Any, name: str, *args: Any) -> None:
    """An instruction on tiles, which are numbers."""
    values = [_I8(a) if isinstance(a, int) else a for a in args]
    call_llvm(builder, f"llvm.x86.{name}", _VOID, values)


def _at(builder: Any, address: Any, offset: int) -> Any:
    return builder.inttoptr(builder.add(address, address.type(offset)), _I8.as_pointer())


@intrinsic
def _configure(typingctx: Any) -> Any:
    """Eight tiles of 16 rows of 64 bytes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        size = bytearray(64)
        size[0] = 1  # the only palette
        for tile in range(8):
            size[16 + 2 * tile], size[48 + tile] = 64, 16
        words = [int.from_bytes(size[i : i + 8], "little") for i in range(0, 64, 8)]
        kind = ir.ArrayType(_I64, 8)
        place = cgutils.alloca_once(builder, kind)
        builder.store(ir.Constant(kind, words), place)
        _tile(builder, "ldtilecfg", builder.bitcast(place, _I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _release(typingctx: Any) -> Any:
    """Tiles are unused again, so that switching threads need not save them."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _tile(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _clear(typingctx: Any) -> Any:
    """Sums of 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        for tile in range(4):
            _tile(builder, "tilezero", tile)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _multiply_add(
    typingctx: Any, groups: Any, factors: Any, bytes_each: Any, centroids: Any
) -> Any:
    """Add the products of eight quads. groups: a tuple with an element for each 16 tokens, whose
    factors lie bytes_each apart.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        for part in range(2):
            at = _at(builder, args[3], part * PART_BYTES)
            _tile(builder, "tileloadd64", 6 + part, at, _I64(64))
        for group in range(len(groups)):
            first = builder.mul(args[2], args[2].type(group * _TOKENS))
            at = _at(builder, builder.add(args[1], first), 0)
            _tile(builder, "tileloadd64", 4 + group, at, args[2])
            for part in range(2):
                _tile(builder, "tdpbsud", 2 * group + part, 4 + group, 6 + part)
        return context.get_dummy_value()

    return types.void(groups, types.intp, types.intp, types.intp), codegen


@intrinsic
def _store_sums(typingctx: Any, groups: Any, out: Any) -> Any:
    """out: i32[tokens, 2, 16]."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        for tile in range(2 * len(groups)):
            offset = tile // 2 * 2 * _SUM_BYTES + tile % 2 * 64
            _tile(builder, "tilestored64", tile, _at(builder, args[1], offset), _I64(128))
        return context.get_dummy_value()

    return types.void(groups, types.intp), codegen


@inline
def _some_tokens(
    groups: Any,
    centroids: int,
    factors: int,
    bytes_each: int,
    slots: int,
    shift: int,
    sums: int,
    work: int,
) -> None:
    """The first tokens, 16 for each element of groups. work: room for i32[tokens, 2, 16]."""
    for part in range(0, PARTS, 2):
        _clear()
        at = centroids + part * PART_BYTES
        for slot in range(0, slots, QUAD * _QUADS):
            _multiply_add(groups, factors + 2 * slot, bytes_each, at + 32 * slot)
        _store_sums(groups, work)
        for n in range(_TOKENS * len(groups)):
            for i in range(0, 128, 64):
                out = sums + 4 * TILE * n + 64 * part + i
                store(out, add(load(i32x16, out), shl(load(i32x16, work + 128 * n + i), shift)))


@inline
def multiply_tokens(
    centroids: int, factors: int, bytes_each: int, slots: int, tokens: int, shift: int, sums: int
) -> int:
    """As `products._multiply_all` for as many tokens as fill tiles; returns how many these are.

    Behind the centroids of all slots anything may lie: it meets factors of 0.
    """
    done = tokens // _TOKENS * _TOKENS
    pairs = done // (2 * _TOKENS) * 2 * _TOKENS
    work = centroids + PARTS * PART_BYTES
    for n in range(0, pairs, 2 * _TOKENS):
        a, out = factors + n * bytes_each, sums + 4 * TILE * n
        _some_tokens((0, 0), centroids, a, bytes_each, slots, shift, out, work)
    for n in range(pairs, done, _TOKENS):
        a, out = factors + n * bytes_each, sums + 4 * TILE * n
        _some_tokens((0,), centroids, a, bytes_each, slots, shift, out, work)
    return done


@inline
def begin_tiles() -> None:
    """Before `multiply_tokens`, in each thread: other libraries set up tiles of their own."""
    _configure()


@inline
def end_tiles() -> None:
    _release()
