// quantize_input.h: float32 activations to integers, and the positions to their channels.
//
// The arithmetic is that of lutllm/intmath.py to the bit: single float32 operations, halves rounded
// to even.
#pragma once

#include "engine.h"

namespace lutllm {

constexpr int ACT_LIMIT = 511;  // largest integer activation in units of a first-stage centroid
constexpr int CENTROID_LIMIT = 127;  // the same where tokens have scales
constexpr float TINY_INPUT = 1e-30f;  // a token with no larger input is zero

// rint(value) for |value| <= 2^21. Adding 1.5 * 2^23 leaves the integer in the low mantissa bits.
inline int round_half_even(float value) {
#pragma HLS INLINE
    const float shifted = value + 12582912.0f;
    return static_cast<int>(float_to_bits(shifted).to_uint()) - 0x4B400000;
}

inline int quantize_value(float value, int limit) {
#pragma HLS INLINE
    const float bound = static_cast<float>(limit);
    const float clamped = value > bound ? bound : value < -bound ? -bound : value;
    return round_half_even(clamped);
}

// z = x * input_scale, in words, and the largest |z| of each token.
template <class E>
void scale_input(typename E::words& x, typename E::input_words& input_scales,
                 typename E::token_words& z, typename E::token_floats& largest, LinearCall call) {
    typename E::wide_t kept[E::MAX_IN_WORDS];  // scales, read with the first token
    ap_uint<31> top = 0;                       // positive floats are ordered as integers
    int token = 0, at = 0;
    const int total = call.tokens * call.in_words;
scale_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=1
#pragma HLS DEPENDENCE variable=kept type=inter direction=RAW distance=E::MIN_DISTANCE true
        const typename E::wide_t scale = token == 0 ? input_scales.read() : kept[at];
        if (token == 0) kept[at] = scale;
        const typename E::wide_t in = x.read();
        typename E::wide_t scaled;
        ap_uint<31> high = at == 0 ? ap_uint<31>(0) : top;
    float_loop:
        for (int j = 0; j < E::WIDE_FLOATS; j++) {
#pragma HLS UNROLL
            const int low = 32 * j;
            const float product =
                bits_to_float(in.range(low + 31, low)) * bits_to_float(scale.range(low + 31, low));
            const ap_uint<32> bits = float_to_bits(product);
            scaled.range(low + 31, low) = bits;
            const ap_uint<31> magnitude = bits.range(30, 0);
            if (magnitude > high) high = magnitude;
        }
        top = high;
        z.write(scaled);
        if (at + 1 == call.in_words) largest.write(bits_to_float(top));
        if (advance(at, call.in_words)) token++;
    }
}

// z to integers. With token scales each token is brought to the same largest value, and the scale
// that undoes this goes with the token to the results.
template <class E>
void round_input(typename E::token_words& z, typename E::token_floats& largest,
                 typename E::quantizeds& out, typename E::token_floats& token_scales,
                 LinearCall call) {
    const int fine = E::SEARCH ? E::STAGE_BITS * (call.act_stages - 1) : 0;
    const int limit = (call.token_scale ? CENTROID_LIMIT : ACT_LIMIT) << fine;
    const float most = static_cast<float>(limit);
    float inverse = 0.0f;
    int at = 0;
round_loop:
    for (int i = 0; i < call.tokens * call.in_words; i++) {
#pragma HLS PIPELINE II=1
        if (at == 0) {
            const float top = largest.read();
            inverse = top > TINY_INPUT ? most / top : 0.0f;
            token_scales.write(call.token_scale ? top / static_cast<float>(CENTROID_LIMIT) : 1.0f);
        }
        const typename E::wide_t in = z.read();
        typename E::quantized_t word;
    float_loop:
        for (int j = 0; j < E::WIDE_FLOATS; j++) {
#pragma HLS UNROLL
            const float value = bits_to_float(in.range(32 * j + 31, 32 * j));
            const float scaled = call.token_scale ? value * inverse : value;
            const int low = j * E::ACT_BITS;
            word.range(low + E::ACT_BITS - 1, low) =
                ap_uint<E::ACT_BITS>(quantize_value(scaled, limit));
        }
        out.write(word);
        advance(at, call.in_words);
    }
}

// Gathers each round's activations by input_perm and sends a position to every channel. The
// integers of all tokens are held in GATHER_LANES / 2 copies: two reads a cycle each.
template <class E>
void gather_input(typename E::quantizeds& in, typename E::param_beats& gather_beats,
                  typename E::acts (&act)[E::CHANNELS], LinearCall call) {
    typedef ap_uint<E::ACT_BITS> value_t;
    constexpr int COPIES = ceil_div(E::GATHER_LANES, 2);
    typename E::quantized_t store[COPIES][E::MAX_TOKENS * E::MAX_IN_WORDS];
#pragma HLS ARRAY_PARTITION variable=store type=complete dim=1
#pragma HLS BIND_STORAGE variable=store type=RAM_2P impl=URAM
    const int words = call.tokens * call.in_words;
load_loop:
    for (int i = 0; i < words; i++) {
#pragma HLS PIPELINE II=1
        const typename E::quantized_t word = in.read();
    copy_loop:
        for (int c = 0; c < COPIES; c++) {
#pragma HLS UNROLL
            store[c][i] = word;
        }
    }

    WordReader<E::GATHER_INDEX_BITS * E::GATHER_LANES, E::AXI_BITS> reader;
    typename E::gather_t kept[E::GATHER_STEPS];  // indices of the round, read with the first token
#pragma HLS ARRAY_PARTITION variable=kept type=complete
    value_t slots[E::GATHER_STEPS * E::GATHER_LANES];
#pragma HLS ARRAY_PARTITION variable=slots type=complete
    int token = 0, step = 0;
    const int total = call.rounds * call.tokens * E::GATHER_STEPS;
gather_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=1
        const typename E::gather_t indices = token == 0 ? reader.read(gather_beats) : kept[step];
        if (token == 0) kept[step] = indices;
    lane_loop:
        for (int j = 0; j < E::GATHER_LANES; j++) {
#pragma HLS UNROLL
            const int index_low = j * E::GATHER_INDEX_BITS;
            const ap_uint<E::GATHER_INDEX_BITS> index =
                indices.range(index_low + E::GATHER_INDEX_BITS - 1, index_low);
            const bool padding = index == E::NO_CHANNEL;
            const int channel = padding ? 0 : index.to_int();
            const typename E::quantized_t word =
                store[j / 2][token * call.in_words + channel / E::WIDE_FLOATS];
            const int low = channel % E::WIDE_FLOATS * E::ACT_BITS;
            const value_t value = word.range(low + E::ACT_BITS - 1, low);
            slots[step * E::GATHER_LANES + j] = padding ? value_t(0) : value;
        }
        if (!advance(step, E::GATHER_STEPS)) continue;
    channel_loop:
        for (int c = 0; c < E::CHANNELS; c++) {
#pragma HLS UNROLL
            typename E::act_t vector;
            for (int k = 0; k < E::VEC_LEN; k++) {
#pragma HLS UNROLL
                vector.range(k * E::ACT_BITS + E::ACT_BITS - 1, k * E::ACT_BITS) =
                    slots[c * E::VEC_LEN + k];
            }
            act[c].write(vector);
        }
        advance(token, call.tokens);
    }
}

}  // namespace lutllm
