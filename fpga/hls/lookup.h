// lookup.h: a row spread over the outputs by weight index, and packed SIMD accumulation.
//
// Every cycle LANES outputs pick their entry from the row and add it to the sum that comes down the
// chain of channels. Entries are offset binary, so sums only grow and LANES_PER_WORD of them share
// one adder of 48 bits without carries between lanes (engine.h proves the widths).
#pragma once

#include "engine.h"

namespace lutllm {

// The head of a chain.
template <class E>
void start_sums(typename E::sums& out, LinearCall call) {
    typename E::sums_t zero;
word_loop:
    for (int w = 0; w < E::WORDS; w++) {
#pragma HLS UNROLL
        zero.word[w] = 0;
    }
    const int total = E::passes(call) * call.tokens * call.subs;
start_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=1
        out.write(zero);
    }
}

// Entries of LANES outputs, added to the packed sums.
template <class E>
void add_entries(typename E::sums_t& sums,
                 const ap_uint<E::TABLE_BITS> (&entry)[E::WEIGHT_CENTROIDS],
                 const typename E::index_t& index) {
#pragma HLS INLINE
word_loop:
    for (int w = 0; w < E::WORDS; w++) {
#pragma HLS UNROLL
        typename E::word_t packed = 0;
    lane_loop:
        for (int l = 0; l < E::LANES_PER_WORD; l++) {
#pragma HLS UNROLL
            const int output = w * E::LANES_PER_WORD + l;
            if (output < E::LANES) {
                const int low = output * E::WEIGHT_CODE_BITS;
                const ap_uint<E::WEIGHT_CODE_BITS> code =
                    index.range(low + E::WEIGHT_CODE_BITS - 1, low);
                packed |= typename E::word_t(entry[code.to_uint()]) << (l * E::LANE_BITS);
            }
        }
        const typename E::word_t sum = sums.word[w] + packed;
#pragma HLS BIND_OP variable=sum op=add impl=dsp
        sums.word[w] = sum;
    }
}

// One channel of a chain: [record][act stage][token][sub-block]. Indices are used as they arrive
// by the first token of a record and kept for the others.
template <class E>
void lookup(typename E::indices& indices, typename E::rows& rows, typename E::sums& in,
            typename E::sums& out, LinearCall call) {
    typename E::index_t kept[E::MAX_SUBS];
#pragma HLS BIND_STORAGE variable=kept type=RAM_2P impl=LUTRAM
    ap_uint<E::TABLE_BITS> entry[E::WEIGHT_CENTROIDS];
#pragma HLS ARRAY_PARTITION variable=entry type=complete
    int stage = 0, token = 0, sub = 0, part = 0;
    const int total = E::passes(call) * call.tokens * call.subs;
lookup_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=1
#pragma HLS DEPENDENCE variable=kept type=inter direction=RAW distance=E::MIN_DISTANCE true
        const bool first = stage == 0 && token == 0;
        const typename E::index_t index = first ? indices.read() : kept[sub];
        if (first) kept[sub] = index;
        if (part == 0) {
            const typename E::row_t row = rows.read();
        entry_loop:
            for (int k = 0; k < E::WEIGHT_CENTROIDS; k++) {
#pragma HLS UNROLL
                entry[k] = row.range(k * E::TABLE_BITS + E::TABLE_BITS - 1, k * E::TABLE_BITS);
            }
        }
        typename E::sums_t sums = in.read();
        add_entries<E>(sums, entry, index);
        out.write(sums);
        advance(part, E::SUBS_PER_GROUP);
        if (advance(sub, call.subs)) {
            part = 0;
            if (advance(token, call.tokens)) advance(stage, call.act_stages);
        }
    }
}

}  // namespace lutllm
