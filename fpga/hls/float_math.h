// float_math.h: float32 functions of the decoder in single operations of a stated order, so that
// hardware and simulation agree.
#pragma once

#include "engine.h"

namespace lutllm {

// Sum of N values as a balanced tree: neighbours first.
template <int N>
struct TreeSum {
    static float of(const float* values) {
#pragma HLS INLINE
        return TreeSum<(N + 1) / 2>::of(values) + TreeSum<N / 2>::of(values + (N + 1) / 2);
    }
};
template <>
struct TreeSum<1> {
    static float of(const float* values) {
#pragma HLS INLINE
        return values[0];
    }
};

// 2^power for -126 <= power <= 127.
inline float power_of_two(int power) {
#pragma HLS INLINE
    return bits_to_float(ap_uint<32>((power + 127) << 23));
}

// rint(value) for |value| < 2^21, as in quantize_input.h, but as a float as well.
inline float round_to_integer(float value, int& integer) {
#pragma HLS INLINE
    const float shifted = value + 12582912.0f;
    integer = static_cast<int>(float_to_bits(shifted).to_uint()) - 0x4B400000;
    return shifted - 12582912.0f;
}

// e^x within 2 units of the last place; x is clamped to +-87. x = n ln 2 + r, ln 2 in two parts,
// and a polynomial in |r| < 0.35 (coefficients of the Cephes library).
inline float exp_float(float x) {
#pragma HLS INLINE
    const float low = x < -87.0f ? -87.0f : x;
    const float clamped = low > 87.0f ? 87.0f : low;
    int n;
    const float whole = round_to_integer(clamped * 1.44269504f, n);
    const float r = (clamped - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * (r * r) + r) + 1.0f;
    return p * power_of_two(n);
}

// Float32 values of a memory beat.
template <int AXI_BITS>
struct FloatBeat {
    static constexpr int FLOATS = AXI_BITS / 32;
    typedef ap_uint<AXI_BITS> beat_t;
    float value[FLOATS];

    FloatBeat() {}
    explicit FloatBeat(const beat_t& beat) {
#pragma HLS INLINE
    unpack_loop:
        for (int j = 0; j < FLOATS; j++) {
#pragma HLS UNROLL
            value[j] = bits_to_float(beat.range(32 * j + 31, 32 * j));
        }
    }
    beat_t pack() const {
#pragma HLS INLINE
        beat_t beat;
    pack_loop:
        for (int j = 0; j < FLOATS; j++) {
#pragma HLS UNROLL
            beat.range(32 * j + 31, 32 * j) = float_to_bits(value[j]);
        }
        return beat;
    }
};

}  // namespace lutllm
