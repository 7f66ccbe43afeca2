"""Vector values inside Numba functions.

A vector type is a Numba type whose value is an LLVM vector, so that values live in registers and
loops around them are ordinary Numba code. All of it is plain LLVM IR and works on every processor;
single instructions are in `simd_x86`.
Addresses are intp byte addresses (`address_of`), which keeps kernels free of array bookkeeping.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.extending import models, register_model

from lutllm.emulator.cpu import compiler_target, has_feature

#: A function whose body is generated LLVM IR. Untyped here: callers do not pass the typing context.
intrinsic: Any = extending.intrinsic

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_ELEMENTS = {
    "i8": _I8,
    "i16": ir.IntType(16),
    "i32": _I32,
    "i64": _I64,
    "f16": ir.HalfType(),
    "f32": ir.FloatType(),
}


class Vector(types.Type):
    """`lanes` elements of LLVM type `kind`; integers carry no sign, operations do."""

    def __init__(self, kind: str, lanes: int):
        self.kind, self.lanes = kind, lanes
        self.llvm = ir.VectorType(_ELEMENTS[kind], lanes)
        self.is_float = kind.startswith("f")
        super().__init__(name=f"{kind}x{lanes}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector):
        super().__init__(manager, vector, vector.llvm)


i8x8, i8x16, i8x32, i8x64 = (Vector("i8", n) for n in (8, 16, 32, 64))
i16x8, i16x16, i16x32 = (Vector("i16", n) for n in (8, 16, 32))
i32x8, i32x16 = (Vector("i32", n) for n in (8, 16))
i64x4, i64x8 = Vector("i64", 4), Vector("i64", 8)
f16x8 = Vector("f16", 8)
f32x8 = Vector("f32", 8)


def call_llvm(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
    """Call the LLVM intrinsic or external function `name`."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _constant(vector: Vector, value: float) -> Any:
    return ir.Constant(vector.llvm, [value] * vector.lanes)


def broadcast(builder: Any, vector: Vector, scalar: Any) -> Any:
    """Every lane holds `scalar`, an LLVM value of the vector's element type."""
    empty = ir.Constant(vector.llvm, ir.Undefined)
    one = builder.insert_element(empty, scalar, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, vector.lanes), None))


def _same(*args: Any) -> Vector | None:
    """The common vector type of `args`, or None (which makes Numba report a typing error)."""
    first = args[0]
    return first if isinstance(first, Vector) and all(a == first for a in args) else None


# ---------------------------------------------------------------- memory


@intrinsic
def address_of(typingctx: Any, array: Any) -> Any:
    """Address of the first element of a contiguous array, as intp."""
    if not isinstance(array, types.Array):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, context.get_value_type(types.intp))

    return types.intp(array), codegen


def _pointer(builder: Any, address: Any, pointee: Any) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


@intrinsic
def load(typingctx: Any, vector: Any, address: Any) -> Any:
    """load(f32x8, address): an unaligned vector load."""
    kind = vector.instance_type

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[1], kind.llvm), align=1)

    return kind(vector, types.intp), codegen


@intrinsic
def store(typingctx: Any, address: Any, value: Any) -> Any:
    """Unaligned store of a vector or scalar."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], args[1].type), align=1)
        return context.get_dummy_value()

    return types.void(types.intp, value), codegen


def _place(builder: Any, address: Any, offset: int, pointee: Any) -> Any:
    return _pointer(builder, builder.add(address, address.type(offset)), pointee)


def load_at(builder: Any, vector: Vector, address: Any, offset: int) -> Any:
    """Inside an intrinsic: as `load`, `offset` bytes further."""
    return builder.load(_place(builder, address, offset, vector.llvm), align=1)


def load_scalar_at(builder: Any, kind: Any, address: Any, offset: int) -> Any:
    """Inside an intrinsic: the scalar of LLVM type `kind` there."""
    return builder.load(_place(builder, address, offset, kind), align=1)


def store_at(builder: Any, address: Any, offset: int, value: Any) -> None:
    """Inside an intrinsic: as `store`, `offset` bytes further."""
    builder.store(value, _place(builder, address, offset, value.type), align=1)


def prefetch_at(builder: Any, address: Any, offset: int) -> None:
    """Inside an intrinsic: as `prefetch`, `offset` bytes further."""
    hints = [_I32(0), _I32(3), _I32(1)]  # read, keep in all levels, data
    pointer = _place(builder, address, offset, _I8)
    call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, *hints])


def _scalar_load(numba_type: Any, llvm: Any, extend: str | None, result: Any) -> Any:
    @intrinsic
    def scalar(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value = builder.load(_pointer(builder, args[0], llvm), align=1)
            return value if extend is None else getattr(builder, extend)(value, result)

        return numba_type(types.intp), codegen

    return scalar


load_u8 = _scalar_load(types.intp, _I8, "zext", _I64)
load_i8 = _scalar_load(types.intp, _I8, "sext", _I64)
load_i16 = _scalar_load(types.intp, _ELEMENTS["i16"], "sext", _I64)
load_u16 = _scalar_load(types.intp, _ELEMENTS["i16"], "zext", _I64)
load_i32 = _scalar_load(types.intp, _I32, "sext", _I64)
load_i64 = _scalar_load(types.intp, _I64, None, None)
load_f32 = _scalar_load(types.float32, ir.FloatType(), None, None)


def _scalar_store(numba_type: Any, bits: int | None) -> Any:
    @intrinsic
    def scalar(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            stored = args[1] if bits in (None, 64) else builder.trunc(args[1], ir.IntType(bits))
            builder.store(stored, _pointer(builder, args[0], stored.type), align=1)
            return context.get_dummy_value()

        return types.void(types.intp, numba_type), codegen

    return scalar


store_i8 = _scalar_store(types.intp, 8)
store_i16 = _scalar_store(types.intp, 16)
store_i32 = _scalar_store(types.intp, 32)
store_i64 = _scalar_store(types.intp, 64)
store_f32 = _scalar_store(types.float32, None)
store_f64 = _scalar_store(types.float64, None)


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at `address` (read, all levels)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        prefetch_at(builder, args[0], 0)
        return context.get_dummy_value()

    return types.void(types.intp), codegen


# ---------------------------------------------------------------- any processor


def _binary(int_op: str | None, float_op: str | None) -> Any:
    @intrinsic
    def operation(typingctx: Any, a: Any, b: Any) -> Any:
        kind = _same(a, b)
        if kind is None:
            return None
        name = float_op if kind.is_float else int_op
        if name is None:
            return None

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return getattr(builder, name)(*args)

        return kind(kind, kind), codegen

    return operation


add = _binary("add", "fadd")
sub = _binary("sub", "fsub")
mul = _binary("mul", "fmul")
div = _binary(None, "fdiv")
band = _binary("and_", None)
bor = _binary("or_", None)
bxor = _binary("xor", None)


def _extreme(int_test: str, float_test: str) -> Any:
    @intrinsic
    def operation(typingctx: Any, a: Any, b: Any) -> Any:
        kind = _same(a, b)
        if kind is None:
            return None

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            compare = builder.fcmp_ordered if kind.is_float else builder.icmp_signed
            test = compare(float_test if kind.is_float else int_test, args[0], args[1])
            return builder.select(test, args[0], args[1])

        return kind(kind, kind), codegen

    return operation


#: Signed comparison; for floats a NaN in `a` yields b.
vmin = _extreme("<", "<")
vmax = _extreme(">", ">")


@intrinsic
def splat(typingctx: Any, vector: Any, value: Any) -> Any:
    """splat(i16x16, 15): every lane holds `value` (integers are truncated to the lane)."""
    kind = vector.instance_type
    wanted = types.float32 if kind.is_float else types.intp

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = args[1]
        if not kind.is_float and kind.llvm.element.width < 64:
            scalar = builder.trunc(scalar, kind.llvm.element)
        return broadcast(builder, kind, scalar)

    return kind(vector, wanted), codegen


def _shift(name: str) -> Any:
    @intrinsic
    def operation(typingctx: Any, value: Any, count: Any) -> Any:
        if not isinstance(value, Vector) or value.is_float:
            return None

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            element = value.llvm.element
            scalar = args[1] if element.width == 64 else builder.trunc(args[1], element)
            return getattr(builder, name)(args[0], broadcast(builder, value, scalar))

        return value(value, types.intp), codegen

    return operation


shl = _shift("shl")
lshr = _shift("lshr")
ashr = _shift("ashr")


@intrinsic
def bitcast(typingctx: Any, vector: Any, value: Any) -> Any:
    """bitcast(i16x16, v): the same bits as another vector type."""
    kind = vector.instance_type

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[1], kind.llvm)

    return kind(vector, value), codegen


def _resize(name: str) -> Any:
    @intrinsic
    def operation(typingctx: Any, vector: Any, value: Any) -> Any:
        kind = vector.instance_type

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return getattr(builder, name)(args[1], kind.llvm)

        return kind(vector, value), codegen

    return operation


sext = _resize("sext")
zext = _resize("zext")
trunc = _resize("trunc")
int_to_float = _resize("sitofp")
float_to_int = _resize("fptosi")
float_extend = _resize("fpext")


@intrinsic
def unzip(typingctx: Any, a: Any, b: Any) -> Any:
    """The even and the odd lanes of a followed by b, as two vectors."""
    kind = _same(a, b)
    if kind is None:
        return None
    result = types.UniTuple(kind, 2)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        mask = ir.VectorType(_I32, kind.lanes)
        parts = [
            builder.shuffle_vector(*args, ir.Constant(mask, list(range(first, 2 * kind.lanes, 2))))
            for first in (0, 1)
        ]
        return context.make_tuple(builder, result, parts)

    return result(kind, kind), codegen


@intrinsic
def twice(typingctx: Any, value: Any) -> Any:
    """The lanes of `value` followed by themselves (16 bytes loaded into both halves)."""
    kind = Vector(value.kind, 2 * value.lanes)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lanes = ir.Constant(ir.VectorType(_I32, kind.lanes), list(range(value.lanes)) * 2)
        return builder.shuffle_vector(args[0], args[0], lanes)

    return kind(value), codegen


@intrinsic
def butterflies(typingctx: Any, value: Any) -> Any:
    """For h = 1, 2, ... below the lanes: halves a, b of every 2 h lanes become a + b, a - b."""
    if not isinstance(value, Vector) or not value.is_float:
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lanes, mask = range(value.lanes), ir.VectorType(_I32, value.lanes)
        (out,) = args
        for h in (1 << k for k in range(value.lanes.bit_length() - 1)):
            left = builder.shuffle_vector(out, out, ir.Constant(mask, [i & ~h for i in lanes]))
            right = builder.shuffle_vector(out, out, ir.Constant(mask, [i | h for i in lanes]))
            total, difference = builder.fadd(left, right), builder.fsub(left, right)
            chosen = ir.Constant(mask, [i + value.lanes * bool(i & h) for i in lanes])
            out = builder.shuffle_vector(total, difference, chosen)
        return out

    return value(value), codegen


def _unary_float(name: str) -> Any:
    @intrinsic
    def operation(typingctx: Any, value: Any) -> Any:
        if not isinstance(value, Vector) or value.kind != "f32":
            return None

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            full = f"llvm.{name}.v{value.lanes}f32"
            return call_llvm(builder, full, value.llvm, [args[0]])

        return value(value), codegen

    return operation


rint = _unary_float("rint")
vabs = _unary_float("fabs")


@intrinsic
def absolute(typingctx: Any, value: Any) -> Any:
    """|value| of integers; the lowest one, which has no opposite, stays."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        name = f"llvm.abs.v{value.lanes}{value.kind}"
        return call_llvm(builder, name, value.llvm, [args[0], ir.Constant(ir.IntType(1), 0)])

    return value(value), codegen


@intrinsic
def signed_as(typingctx: Any, value: Any, other: Any) -> Any:
    """`value`, negated in the lanes where `other` is below 0."""
    kind = _same(value, other)
    if kind is None or kind.is_float:
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        negative = builder.icmp_signed("<", args[1], _constant(kind, 0))
        return builder.select(negative, builder.neg(args[0]), args[0])

    return kind(kind, kind), codegen


def widen_half(builder: Any, bits: Any) -> Any:
    """Inside an intrinsic: `half_to_float`."""
    if has_feature("f16c") or not compiler_target()[0].startswith("x86"):
        return builder.fpext(builder.bitcast(bits, f16x8.llvm), f32x8.llvm)
    wide = builder.zext(bits, i32x8.llvm)
    size = builder.and_(wide, _constant(i32x8, 0x7FFF))
    sign = builder.shl(builder.xor(wide, size), _constant(i32x8, 16))
    small = builder.bitcast(builder.shl(size, _constant(i32x8, 13)), f32x8.llvm)
    scaled = builder.fmul(small, _constant(f32x8, 2.0**112))  # exponent bias 127 - 15
    return builder.bitcast(builder.or_(builder.bitcast(scaled, i32x8.llvm), sign), f32x8.llvm)


@intrinsic
def half_to_float(typingctx: Any, value: Any) -> Any:
    """IEEE half precision bits (i16x8) as f32x8; exact for every finite value."""
    if value != i16x8:
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return widen_half(builder, args[0])

    return f32x8(i16x8), codegen


@intrinsic
def float_bits(typingctx: Any, value: Any) -> Any:
    """The 32 bits of a float32 as a number from 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.zext(builder.bitcast(args[0], _I32), _I64)

    return types.intp(types.float32), codegen


def _fused() -> bool:
    return has_feature("fma") or not compiler_target()[0].startswith("x86")


def multiply_add(builder: Any, kind: Vector, a: Any, b: Any, c: Any) -> Any:
    if not _fused():
        return builder.fadd(builder.fmul(a, b), c)
    return call_llvm(builder, f"llvm.fma.v{kind.lanes}f32", kind.llvm, [a, b, c])


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c: one rounding where the processor fuses, two where it cannot."""
    kind = _same(a, b, c)
    if kind is None:
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return multiply_add(builder, kind, *args)

    return kind(kind, kind, kind), codegen


def _reduce(combine: Callable[[Any, Any, Any], Any]) -> Any:
    """Lanes combined pairwise, upper half onto lower half: the order is the same everywhere."""

    @intrinsic
    def operation(typingctx: Any, value: Any) -> Any:
        if not isinstance(value, Vector) or value.kind != "f32":
            return None

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            total, count = args[0], value.lanes
            while count > 1:
                count //= 2
                mask = ir.VectorType(_I32, count)
                low = ir.Constant(mask, list(range(count)))
                high = ir.Constant(mask, list(range(count, 2 * count)))
                total = combine(
                    builder,
                    builder.shuffle_vector(total, total, low),
                    builder.shuffle_vector(total, total, high),
                )
            return builder.extract_element(total, _I32(0))

        return types.float32(value), codegen

    return operation


sum_lanes = _reduce(lambda builder, a, b: builder.fadd(a, b))
max_lanes = _reduce(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


# ---------------------------------------------------------------- threads


@intrinsic
def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at `address`; returns its value before."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, args[0], _I64), args[1], "seq_cst")

    return types.int64(types.intp, types.int64), codegen


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    """The int64 at `address`, read with sequential consistency."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(builder, args[0], _I64), "seq_cst", 8)

    return types.int64(types.intp), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """Tell the processor that this is a spin loop."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if compiler_target()[0].startswith("x86_64"):
            call_llvm(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), codegen


#: Number of the futex system call by processor; Linux only.
_FUTEX = {"x86_64": 202, "aarch64": 98}
_FUTEX_WAIT, _FUTEX_WAKE, _ALL = 128, 129, 2**31 - 1  # of this process alone


def _futex(builder: Any, args: list[Any]) -> None:
    """syscall(SYS_futex, *args) where there is one; sched_yield elsewhere, nothing on Windows."""
    number = _FUTEX.get(compiler_target()[0].split("-")[0])
    if sys.platform == "linux" and number is not None:
        none = _I64(0)
        call_llvm(builder, "syscall", _I64, [_I64(number), *args, none, none, none])
    elif sys.platform != "win32":
        call_llvm(builder, "sched_yield", _I32, [])


@intrinsic
def sleep_while(typingctx: Any, address: Any, value: Any) -> Any:
    """Sleep until `wake_all` while the 32 bits at `address` are those of `value`.

    May return early; where the system has no such call, other threads run first.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        low = builder.and_(args[1], _I64(0xFFFFFFFF))
        _futex(builder, [args[0], _I64(_FUTEX_WAIT), low])
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), codegen


@intrinsic
def wake_all(typingctx: Any, address: Any) -> Any:
    """Wake every thread in `sleep_while` at `address`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _futex(builder, [args[0], _I64(_FUTEX_WAKE), _I64(_ALL)])
        return context.get_dummy_value()

    return types.void(types.intp), codegen
