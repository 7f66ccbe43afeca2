// decoder.h: what the float steps of a decoder layer are made of: derived sizes, streams.
//
// A configuration struct C gives the sizes of the model (as in its config.json) and of the engine.
// Vectors travel as float32 beats, zero-padded to whole beats; heads are padded to whole beats too.
// Whole vectors, which lie on chip, move in words of VECTOR_LANES beats: Decoder<C, VECTOR_LANES>,
// where a word is called a beat.
#pragma once

#include "float_math.h"

namespace lutllm {

template <class C, int BEATS = 1>
struct Decoder : C {
    typedef Decoder<C, C::VECTOR_LANES> wide;  // the same in words
    static constexpr int LANES = BEATS;        // memory beats that move at once
    static constexpr int LANE_FLOATS = C::AXI_BITS / 32;
    static constexpr int FLOATS = LANE_FLOATS * LANES;
    static constexpr int HIDDEN_BEATS = ceil_div(C::HIDDEN_SIZE, FLOATS);
    static constexpr int INTERMEDIATE_BEATS = ceil_div(C::INTERMEDIATE_SIZE, FLOATS);
    static constexpr int HEAD_BEATS = ceil_div(C::HEAD_DIM, FLOATS);
    static constexpr int HALF_DIM = C::HEAD_DIM / 2;
    static constexpr int GROUP_HEADS = C::HEADS / C::KV_HEADS;     // query heads per key head
    static constexpr int QUERIES = GROUP_HEADS * C::QUERY_TOKENS;  // that share the keys read
    static constexpr int MAX_BLOCKS = ceil_div(C::MAX_TOKENS, C::QUERY_TOKENS);
    // Words of what attention gives of a token: its heads, a beat behind the other.
    static constexpr int ATTENDED_WORDS = ceil_div(C::HEADS * HEAD_BEATS, C::VECTOR_LANES);

    typedef ap_uint<C::AXI_BITS * LANES> beat_t;
    typedef FloatBeat<C::AXI_BITS * LANES> floats_t;
    typedef hls::stream<beat_t, max_of(4, 32 / LANES)> beats;
    typedef hls::stream<float, 4> floats;
    struct products_t {  // of a beat of every query with one of every key of a stripe
        float value[QUERIES][C::KV_PORTS];
    };
    struct step_t {  // of the softmax, one stripe: out = out * decay + sum of weight * v
        float decay[QUERIES];
        float weight[QUERIES][C::KV_PORTS];
    };
    typedef hls::stream<products_t, 2 * HEAD_BEATS> products;  // softmax takes a key's at once
    typedef hls::stream<step_t, 4> steps;
    typedef hls::stream<beat_t, max_of(32, 2 * HEAD_BEATS)> head_beats;  // whole heads

    static_assert(C::HEADS % C::KV_HEADS == 0, "key heads divide the query heads");
    static_assert(C::HEAD_DIM % 2 == 0, "rotary embedding needs pairs");
};

// A word of a buffer on chip. Every beat of it has a bank of its own, so that steps may move words
// or beats.
template <class C>
struct Banks {
    typedef ap_uint<C::AXI_BITS> word_t[C::VECTOR_LANES];
};

template <int BITS, int COUNT>
ap_uint<BITS * COUNT> read_word(const ap_uint<BITS> (&banks)[COUNT]) {
#pragma HLS INLINE
    ap_uint<BITS * COUNT> word;
bank_loop:
    for (int l = 0; l < COUNT; l++) {
#pragma HLS UNROLL
        word.range(l * BITS + BITS - 1, l * BITS) = banks[l];
    }
    return word;
}

template <int BITS, int COUNT>
void write_word(ap_uint<BITS> (&banks)[COUNT], const ap_uint<BITS * COUNT>& word) {
#pragma HLS INLINE
bank_loop:
    for (int l = 0; l < COUNT; l++) {
#pragma HLS UNROLL
        banks[l] = word.range(l * BITS + BITS - 1, l * BITS);
    }
}

// Where tokens that pass the layers together are: `first` is the position of the first one.
struct TokenRun {
    int tokens;
    int first;
};

}  // namespace lutllm
