// accumulate.h: block exponents, integer accumulators, results.
#pragma once

#include "engine.h"

namespace lutllm {

// int32 sums of all outputs of a token's sub-block, side by side.
template <class E>
struct AccumulatorWord {
    int lane[E::LANES];
};

// Adds up the passes: (sum of the chain - its offset) << block_shift, over chains and passes.
// acc: [token][sub]; shifts: one word per pass, 8 bits per chain.
template <class E>
void accumulate_passes(typename E::sums (&totals)[E::CHAINS], typename E::param_beats& shift_beats,
                       AccumulatorWord<E>* acc, LinearCall call) {
    constexpr int OFFSET = E::CHAIN_CHANNELS * E::ENTRY_OFFSET;
    const int passes = E::passes(call);
    ap_uint<8 * E::CHAINS> shifts[E::MAX_PASSES];
    WordReader<8 * E::CHAINS, E::AXI_BITS> reader;
shift_loop:
    for (int p = 0; p < passes; p++) {
#pragma HLS PIPELINE II=E::block_shift_packing::BEATS
        shifts[p] = reader.read(shift_beats);
    }
    int pass = 0, at = 0;
    const int per_pass = call.tokens * call.subs;
    const int total = passes * per_pass;
accumulate_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=1
#pragma HLS DEPENDENCE variable=acc type=inter direction=RAW distance=E::MIN_DISTANCE true
        typename E::sums_t total_sums[E::CHAINS];
#pragma HLS ARRAY_PARTITION variable=total_sums type=complete
    chain_loop:
        for (int c = 0; c < E::CHAINS; c++) {
#pragma HLS UNROLL
            total_sums[c] = totals[c].read();
        }
        const ap_uint<8 * E::CHAINS> shift_word = shifts[pass];
        AccumulatorWord<E> word = acc[at];
    lane_loop:
        for (int l = 0; l < E::LANES; l++) {
#pragma HLS UNROLL
            const int low = l % E::LANES_PER_WORD * E::LANE_BITS;
            int sum = 0;
            for (int c = 0; c < E::CHAINS; c++) {
#pragma HLS UNROLL
                const ap_uint<E::LANE_BITS> lane =
                    total_sums[c].word[l / E::LANES_PER_WORD].range(low + E::LANE_BITS - 1, low);
                const ap_uint<5> shift = shift_word.range(8 * c + 4, 8 * c);
                sum += (lane.to_int() - OFFSET) * (1 << shift.to_int());
            }
            word.lane[l] = pass == 0 ? sum : word.lane[l] + sum;
        }
        acc[at] = word;
        if (advance(at, per_pass)) pass++;
    }
}

// y = float(acc) * output_scale (* token_scale) (+ bias), each step rounded to float32.
template <class E>
float dequantize(int acc, float scale, float token_scale, float bias, LinearCall call) {
#pragma HLS INLINE
    float y = static_cast<float>(acc) * scale;
    if (E::TOKEN_SCALE && call.token_scale) y = y * token_scale;
    if (call.bias) y = y + bias;
    return y;
}

// Results in words, [token][sub][LANES padded to words]; with call.accumulators each word of
// results is followed by the word of its integer sums. Scales are kept after the first token.
template <class E>
void drain_results(const AccumulatorWord<E>* acc, typename E::output_words& scales,
                   typename E::output_words& biases, typename E::token_floats& token_scales,
                   typename E::words& out, LinearCall call) {
    typename E::wide_t kept_scales[E::MAX_SUBS * E::OUT_WORDS];
    typename E::wide_t kept_biases[E::MAX_SUBS * E::OUT_WORDS];
    const int per_token = call.subs * E::OUT_WORDS;
    int at = 0, sub = 0, part = 0, token = 0;
    float token_scale = 1.0f;
drain_loop:
    for (int i = 0; i < call.tokens * per_token; i++) {
#pragma HLS PIPELINE II=1
#pragma HLS DEPENDENCE variable=kept_scales type=inter direction=RAW distance=\
    E::MIN_DISTANCE true
#pragma HLS DEPENDENCE variable=kept_biases type=inter direction=RAW distance=\
    E::MIN_DISTANCE true
        if (at == 0) token_scale = token_scales.read();
        const bool first = token == 0;
        const typename E::wide_t scale = first ? scales.read() : kept_scales[at];
        if (first) kept_scales[at] = scale;
        typename E::wide_t bias = 0;
        if (call.bias) {
            bias = first ? biases.read() : kept_biases[at];
            if (first) kept_biases[at] = bias;
        }
        const AccumulatorWord<E>& word = acc[token * call.subs + sub];
        typename E::wide_t results, integers;
    float_loop:
        for (int j = 0; j < E::WIDE_FLOATS; j++) {
#pragma HLS UNROLL
            const int lane = part * E::WIDE_FLOATS + j;
            const int low = 32 * j;
            const int value = lane < E::LANES ? word.lane[lane] : 0;
            const float y =
                dequantize<E>(value, bits_to_float(scale.range(low + 31, low)), token_scale,
                              bits_to_float(bias.range(low + 31, low)), call);
            results.range(low + 31, low) = float_to_bits(y);
            integers.range(low + 31, low) = ap_uint<32>(value);
        }
        out.write(results);
        if (call.accumulators) out.write(integers);
        if (advance(part, E::OUT_WORDS)) advance(sub, call.subs);
        if (advance(at, per_token)) token++;
    }
}

template <class E>
void accumulate(typename E::sums (&totals)[E::CHAINS], typename E::param_beats& shift_beats,
                typename E::output_words& scales, typename E::output_words& biases,
                typename E::token_floats& token_scales, typename E::words& out, LinearCall call) {
    AccumulatorWord<E> acc[E::MAX_TOKENS * E::MAX_SUBS];
#pragma HLS AGGREGATE variable=acc
#pragma HLS BIND_STORAGE variable=acc type=RAM_2P impl=URAM
    accumulate_passes<E>(totals, shift_beats, acc, call);
    drain_results<E>(acc, scales, biases, token_scales, out, call);
}

}  // namespace lutllm
