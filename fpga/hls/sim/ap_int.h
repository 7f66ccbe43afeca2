// ap_int.h: a light stand-in for the arbitrary-precision integers of Vitis HLS, for C simulation.
//
// What the kernels use and no more: ap_int and ap_uint up to 64 bits with the widths that Vitis
// gives to the results of +, -, *, shifts and logic; and ap_uint words of any width, read and
// written by bit ranges. A result wider than 64 bits does not compile: narrow the operands.
// A default-constructed value is not initialised, as in Vitis.
#pragma once

#include <cstdint>
#include <type_traits>

namespace apsim {

template <int W, bool S>
struct native {
    typedef typename std::conditional<
        (W <= 8), std::int8_t,
        typename std::conditional<
            (W <= 16), std::int16_t,
            typename std::conditional<(W <= 32), std::int32_t, std::int64_t>::type>::type>::type
        signed_type;
    typedef typename std::conditional<S, signed_type,
                                      typename std::make_unsigned<signed_type>::type>::type type;
};

constexpr int max_of(int a, int b) {
    return a > b ? a : b;
}

// Bits `lo` to `lo + width - 1` of little-endian words; width 1 to 64.
inline std::uint64_t get_bits(const std::uint64_t* words, int lo, int width) {
    const int word = lo >> 6, shift = lo & 63;
    std::uint64_t bits = words[word] >> shift;
    if (shift + width > 64) bits |= words[word + 1] << (64 - shift);
    return width == 64 ? bits : bits & ((std::uint64_t(1) << width) - 1);
}

inline void set_bits(std::uint64_t* words, int lo, int width, std::uint64_t bits) {
    const int word = lo >> 6, shift = lo & 63;
    const std::uint64_t mask = width == 64 ? ~std::uint64_t(0) : (std::uint64_t(1) << width) - 1;
    bits &= mask;
    words[word] = (words[word] & ~(mask << shift)) | (bits << shift);
    if (shift + width > 64) {
        words[word + 1] = (words[word + 1] & ~(mask >> (64 - shift))) | (bits >> (64 - shift));
    }
}

}  // namespace apsim

template <int W, bool S, bool WIDE = (W > 64)>
struct ap_int_base;

// A range of bits of a word, as range(hi, lo) returns it.
template <int W>
struct ap_range_ref {
    ap_int_base<W, false>* owner;
    int hi, lo;

    int width() const { return hi - lo + 1; }
    std::uint64_t to_uint64() const { return owner->get(lo, width() < 64 ? width() : 64); }
    unsigned to_uint() const { return static_cast<unsigned>(to_uint64()); }
    operator std::uint64_t() const { return to_uint64(); }
    ap_range_ref& operator=(std::uint64_t bits) {
        owner->set(lo, width() < 64 ? width() : 64, bits);
        for (int done = 64; done < width(); done += 64) {
            owner->set(lo + done, width() - done < 64 ? width() - done : 64, 0);
        }
        return *this;
    }
    // Copies bits; those of itself, too. NOLINTNEXTLINE(bugprone-unhandled-self-assignment)
    ap_range_ref& operator=(const ap_range_ref& other) { return copy(*other.owner, other.lo); }
    template <int X>
    ap_range_ref& operator=(const ap_range_ref<X>& other) {
        return copy(*other.owner, other.lo);
    }
    template <int X, bool S>
    ap_range_ref& operator=(const ap_int_base<X, S>& other) {
        return copy(other, 0);
    }

  private:
    template <class Source>
    ap_range_ref& copy(const Source& source, int from) {
        for (int done = 0; done < width(); done += 64) {
            const int step = width() - done < 64 ? width() - done : 64;
            owner->set(lo + done, step, source.get_padded(from + done, step));
        }
        return *this;
    }
};

// Up to 64 bits: held in the native integer that fits.
template <int W, bool S>
struct ap_int_base<W, S, false> {
    static_assert(W >= 1, "an integer has at least one bit");
    typedef typename apsim::native<W, S>::type raw_t;
    typedef typename std::conditional<S, std::int64_t, std::uint64_t>::type wide_t;
    static constexpr int width = W;
    raw_t raw;

    ap_int_base() = default;
    template <class I, class = typename std::enable_if<std::is_integral<I>::value>::type>
    constexpr ap_int_base(I value)
        : raw(trim(static_cast<wide_t>(value),
                   sizeof(I) * 8 <= W && (S || std::is_unsigned<I>::value))) {}
    template <int X, bool T>
    constexpr ap_int_base(const ap_int_base<X, T, false>& other)
        : raw(trim(static_cast<wide_t>(other.raw), fits<X, T>())) {}
    template <int X>
    ap_int_base(const ap_int_base<X, false, true>& other)
        : raw(trim(static_cast<wide_t>(other.word[0]), false)) {}
    template <int X>
    ap_int_base(const ap_range_ref<X>& range)
        : raw(trim(static_cast<wide_t>(range.to_uint64()), false)) {}

    template <int X, bool T>
    static constexpr bool fits() {
        return (S == T && X <= W) || (S && !T && X < W);
    }
    static constexpr raw_t trim(wide_t value, bool safe) {
        return (safe || W == 64)
                   ? static_cast<raw_t>(value)
                   : static_cast<raw_t>(
                         S ? static_cast<wide_t>(
                                 static_cast<std::int64_t>(static_cast<std::uint64_t>(value)
                                                           << (64 - W)) >>
                                 (64 - W))
                           : value & static_cast<wide_t>(~std::uint64_t(0) >> (64 - W)));
    }

    operator raw_t() const { return raw; }
    int to_int() const { return static_cast<int>(raw); }
    unsigned to_uint() const { return static_cast<unsigned>(raw); }
    std::int64_t to_int64() const { return static_cast<std::int64_t>(raw); }
    std::uint64_t to_uint64() const { return static_cast<std::uint64_t>(raw); }

    std::uint64_t get(int lo, int count) const {
        const std::uint64_t bits = static_cast<std::uint64_t>(raw) >> lo;
        return count == 64 ? bits : bits & ((std::uint64_t(1) << count) - 1);
    }
    std::uint64_t get_padded(int lo, int count) const { return lo < 64 ? get(lo, count) : 0; }
    void set(int lo, int count, std::uint64_t bits) {
        std::uint64_t word = static_cast<std::uint64_t>(raw);
        apsim::set_bits(&word, lo, count, bits);
        raw = trim(static_cast<wide_t>(word), false);
    }
    ap_range_ref<W> range(int hi, int lo) const {
        static_assert(!S, "ranges are taken of unsigned words");
        return ap_range_ref<W>{const_cast<ap_int_base*>(this), hi, lo};
    }
    ap_range_ref<W> operator()(int hi, int lo) const { return range(hi, lo); }

    template <class R>
    ap_int_base& operator+=(const R& right) {
        return *this = *this + right;
    }
    template <class R>
    ap_int_base& operator-=(const R& right) {
        return *this = *this - right;
    }
    template <class R>
    ap_int_base& operator|=(const R& right) {
        return *this = *this | right;
    }
    ap_int_base& operator++() { return *this = ap_int_base(raw + 1); }
};

// Wider words: little-endian 64-bit limbs, read and written by ranges. Always unsigned.
template <int W, bool S>
struct ap_int_base<W, S, true> {
    static_assert(!S, "signed integers stop at 64 bits");
    static constexpr int width = W;
    static constexpr int LIMBS = (W + 63) / 64;
    std::uint64_t word[LIMBS];

    ap_int_base() = default;
    template <class I, class = typename std::enable_if<std::is_integral<I>::value>::type>
    ap_int_base(I value) {
        word[0] = static_cast<std::uint64_t>(value);
        for (int i = 1; i < LIMBS; i++) word[i] = value < 0 ? ~std::uint64_t(0) : 0;
        if (W % 64) word[LIMBS - 1] &= ~std::uint64_t(0) >> (64 - W % 64);
    }
    template <int X, bool T>
    ap_int_base(const ap_int_base<X, T>& other) {
        copy(other, 0, X < W ? X : W);
    }
    template <int X>
    ap_int_base(const ap_range_ref<X>& range) {
        copy(*range.owner, range.lo, range.width() < W ? range.width() : W);
    }

    std::uint64_t get(int lo, int count) const { return apsim::get_bits(word, lo, count); }
    std::uint64_t get_padded(int lo, int count) const {
        if (lo >= W) return 0;
        return get(lo, count < W - lo ? count : W - lo);
    }
    void set(int lo, int count, std::uint64_t bits) { apsim::set_bits(word, lo, count, bits); }
    ap_range_ref<W> range(int hi, int lo) const {
        return ap_range_ref<W>{const_cast<ap_int_base*>(this), hi, lo};
    }
    ap_range_ref<W> operator()(int hi, int lo) const { return range(hi, lo); }

  private:
    void clear() {
        for (int i = 0; i < LIMBS; i++) word[i] = 0;
    }
    template <class Source>
    void copy(const Source& source, int from, int count) {
        clear();
        for (int done = 0; done < count; done += 64) {
            word[done >> 6] = source.get(from + done, count - done < 64 ? count - done : 64);
        }
    }
};

template <int W>
struct ap_int : ap_int_base<W, true> {
    using ap_int_base<W, true>::ap_int_base;
    ap_int() = default;
    ap_int(const ap_int_base<W, true>& other) : ap_int_base<W, true>(other) {}
};

template <int W>
struct ap_uint : ap_int_base<W, false> {
    using ap_int_base<W, false>::ap_int_base;
    ap_uint() = default;
    ap_uint(const ap_int_base<W, false>& other) : ap_int_base<W, false>(other) {}
};

// Result widths as in UG1399, "Arbitrary Precision Integer Library".
namespace apsim {

template <int W1, bool S1, int W2, bool S2>
struct widths {
    static constexpr bool SIGNED = S1 || S2;
    static constexpr int LEFT = W1 + (S2 && !S1), RIGHT = W2 + (S1 && !S2);
    static constexpr int LOGIC = max_of(LEFT, RIGHT);
    typedef ap_int_base<LOGIC + 1, SIGNED> sum;
    typedef ap_int_base<LOGIC + 1, true> difference;
    typedef ap_int_base<W1 + W2, SIGNED> product;
    typedef ap_int_base<LOGIC, SIGNED> logic;
};

// 32-bit arithmetic where the result fits it: the host compiler can use vectors.
template <class R>
struct carrier {
    typedef typename std::conditional<(R::width < 32), std::int32_t, std::int64_t>::type type;
};

template <class I>
struct as_ap {
    typedef ap_int_base<std::is_same<I, bool>::value ? 1 : int(sizeof(I) * 8),
                        std::is_signed<I>::value>
        type;
};

}  // namespace apsim

#define APSIM_BINARY(OP, RESULT)                                                    \
    template <int W1, bool S1, int W2, bool S2>                                     \
    inline typename apsim::widths<W1, S1, W2, S2>::RESULT operator OP(              \
        const ap_int_base<W1, S1, false>& a, const ap_int_base<W2, S2, false>& b) { \
        typedef typename apsim::widths<W1, S1, W2, S2>::RESULT result;              \
        typedef typename apsim::carrier<result>::type carrier;                      \
        return result(static_cast<carrier>(a.raw) OP static_cast<carrier>(b.raw));  \
    }                                                                               \
    template <int W, bool S, class I,                                               \
              class = typename std::enable_if<std::is_integral<I>::value>::type>    \
    inline auto operator OP(const ap_int_base<W, S, false>& a, I b)                 \
        ->decltype(a OP typename apsim::as_ap<I>::type(b)) {                        \
        return a OP typename apsim::as_ap<I>::type(b);                              \
    }                                                                               \
    template <int W, bool S, class I,                                               \
              class = typename std::enable_if<std::is_integral<I>::value>::type>    \
    inline auto operator OP(I a, const ap_int_base<W, S, false>& b)                 \
        ->decltype(typename apsim::as_ap<I>::type(a) OP b) {                        \
        return typename apsim::as_ap<I>::type(a) OP b;                              \
    }

APSIM_BINARY(+, sum)
APSIM_BINARY(-, difference)
APSIM_BINARY(*, product)
APSIM_BINARY(|, logic)
APSIM_BINARY(&, logic)
APSIM_BINARY(^, logic)
#undef APSIM_BINARY

// A shift keeps the width of its left operand: bits that leave are lost.
template <int W, bool S>
inline ap_int_base<W, S> operator<<(const ap_int_base<W, S, false>& a, int count) {
    return ap_int_base<W, S>(static_cast<std::int64_t>(static_cast<std::uint64_t>(a.raw) << count));
}
template <int W, bool S>
inline ap_int_base<W, S> operator>>(const ap_int_base<W, S, false>& a, int count) {
    return ap_int_base<W, S>(a.raw >> count);
}
template <int W, bool S>
inline ap_int_base<W + 1, true> operator-(const ap_int_base<W, S, false>& a) {
    return ap_int_base<W + 1, true>(-static_cast<std::int64_t>(a.raw));
}

#define APSIM_COMPARE(OP)                                                        \
    template <int W1, bool S1, int W2, bool S2>                                  \
    inline bool operator OP(const ap_int_base<W1, S1, false>& a,                 \
                            const ap_int_base<W2, S2, false>& b) {               \
        return a.to_int64() OP b.to_int64();                                     \
    }                                                                            \
    template <int W, bool S, class I,                                            \
              class = typename std::enable_if<std::is_integral<I>::value>::type> \
    inline bool operator OP(const ap_int_base<W, S, false>& a, I b) {            \
        return a.to_int64() OP static_cast<std::int64_t>(b);                     \
    }                                                                            \
    template <int W, bool S, class I,                                            \
              class = typename std::enable_if<std::is_integral<I>::value>::type> \
    inline bool operator OP(I a, const ap_int_base<W, S, false>& b) {            \
        return static_cast<std::int64_t>(a) OP b.to_int64();                     \
    }

APSIM_COMPARE(<)
APSIM_COMPARE(>)
APSIM_COMPARE(<=)
APSIM_COMPARE(>=)
APSIM_COMPARE(==)
APSIM_COMPARE(!=)
#undef APSIM_COMPARE
