// int8_head.h: the output head of int8 rows with one scale each.
//
// A row is HIDDEN_SIZE bytes, zeros, and in its last four bytes the float32 scale. The arithmetic
// is that of lutllm/int8_rows.py: the vector becomes integers once, sums of products are exact, and
// a logit is float(sum) * scale of the row * scale of the vector.
#pragma once

#include "word_rows.h"

namespace lutllm {

// The vector as integers of up to HEAD_LIMIT, in 32 bits each, then a beat with its scale.
template <class D>
void round_hidden(typename D::wide::beats& in, typename D::beats& out) {
    typedef typename D::wide V;
    typename D::word_t kept[V::HIDDEN_BEATS];
#pragma HLS ARRAY_PARTITION variable=kept type=complete dim=2
    ap_uint<31> top = 0;  // positive floats are ordered as integers
largest_loop:
    for (int w = 0; w < V::HIDDEN_BEATS; w++) {
#pragma HLS PIPELINE II=1
        const typename V::beat_t raw = in.read();
        write_word(kept[w], raw);
        ap_uint<31> high = top;
    magnitude_loop:
        for (int j = 0; j < V::FLOATS; j++) {
#pragma HLS UNROLL
            const ap_uint<31> magnitude = raw.range(32 * j + 30, 32 * j);
            if (magnitude > high) high = magnitude;
        }
        top = high;
    }
    const float largest = bits_to_float(top), limit = static_cast<float>(D::HEAD_LIMIT);
    const float factor = largest >= power_of_two(-100) ? limit / largest : 0.0f;
round_loop:
    for (int b = 0; b < D::HIDDEN_BEATS; b++) {
#pragma HLS PIPELINE II=1
        const typename D::floats_t values(kept[b / D::VECTOR_LANES][b % D::VECTOR_LANES]);
        typename D::beat_t rounded;
    value_loop:
        for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
            const float scaled = values.value[j] * factor;
            const float low = scaled < -limit ? -limit : scaled;
            int integer;
            round_to_integer(low > limit ? limit : low, integer);
            rounded.range(32 * j + 31, 32 * j) = ap_uint<32>(static_cast<unsigned>(integer));
        }
        out.write(rounded);
    }
    typename D::beat_t last = 0;
    last.range(31, 0) = float_to_bits(largest / limit);
    out.write(last);
}

// A rounded vector beside a row: 16 bits for every value of a stored beat.
template <class D>
struct Int8Vector {
    static constexpr int VALUES = D::AXI_BITS / 8;
    typedef ap_uint<16 * VALUES> codes_t;
};

// The vector to x, its scale returned.
template <class D>
float hold_vector(typename D::beats& in, typename Int8Vector<D>::codes_t* x) {
    constexpr int PARTS = Int8Vector<D>::VALUES / D::FLOATS;
    typename Int8Vector<D>::codes_t codes;
    int part = 0, row = 0;
vector_loop:
    for (int b = 0; b < D::HEAD_ROW_BEATS * PARTS; b++) {
#pragma HLS PIPELINE II=1
        typename D::beat_t raw = 0;
        if (b < D::HIDDEN_BEATS) raw = in.read();
    code_loop:
        for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
            const int low = 16 * (part * D::FLOATS + j);
            codes.range(low + 15, low) = raw.range(32 * j + 15, 32 * j);
        }
        if (advance(part, PARTS)) x[row++] = codes;
    }
    const typename D::beat_t last = in.read();
    return bits_to_float(last.range(31, 0));
}

// Sum of products of a stored beat.
template <class D>
int multiply_beat(const typename D::beat_t& raw, const typename Int8Vector<D>::codes_t& x) {
#pragma HLS INLINE
    int sum = 0;
product_loop:
    for (int j = 0; j < Int8Vector<D>::VALUES; j++) {
#pragma HLS UNROLL
        const ap_int<8> weight = raw.range(8 * j + 7, 8 * j);
        const ap_int<16> code = x.range(16 * j + 15, 16 * j);  // 0 where the scale lies
        sum += code.to_int() * weight.to_int();
    }
    return sum;
}

// Adds a stored beat of a row to its sum; true after the last one, whose logit goes out.
template <class D>
bool score_beat(const typename D::beat_t& raw,
                const typename Int8Vector<D>::codes_t (&x)[D::HEAD_ROW_BEATS], float token_scale,
                int& beat, int& total, typename D::floats& logits) {
#pragma HLS INLINE
    const int sum = multiply_beat<D>(raw, x[beat]);
    total = beat == 0 ? sum : total + sum;
    if (!advance(beat, D::HEAD_ROW_BEATS)) return false;
    const float scaled = static_cast<float>(total) * row_scale<D>(raw);
    logits.write(scaled * token_scale);
    return true;
}

// Logits of the words behind one port: a stored beat a cycle.
template <class D>
void score_int8_words(hls::burst_maxi<typename D::beat_t> rows, typename D::beats& in,
                      typename D::floats& logits, int words) {
    typename Int8Vector<D>::codes_t x[D::HEAD_ROW_BEATS];
#pragma HLS BIND_STORAGE variable=x type=RAM_2P impl=BRAM
    const float token_scale = hold_vector<D>(in, x);
    int beat = 0, total = 0;
    rows.read_request(0, words * D::HEAD_ROW_BEATS);
word_loop:
    for (int i = 0; i < words * D::HEAD_ROW_BEATS; i++) {
#pragma HLS PIPELINE II=1
        const typename D::beat_t raw = rows.read();
        score_beat<D>(raw, x, token_scale, beat, total, logits);
    }
}

}  // namespace lutllm
