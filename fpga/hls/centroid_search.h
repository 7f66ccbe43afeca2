// centroid_search.h: bandwidth-aware parallel centroid search.
//
// SEARCH_SEGMENTS chains of SEARCH_CHAIN processing elements score PES centroids a cycle; a code
// takes SEARCH_PASSES cycles. Choose PES so that a search is never slower than what it feeds: the
// look-ups of its row (prefill) or the beats of its indices (decode). Centroids arrive pass by pass
// at the pace of their port, are used as they arrive by the first token and kept for the others.
//
// Score of centroid c for x, by the METRIC of the engine; the largest wins, the lowest index among
// equals:
//   L2         sum over components of c * (2x - c) = |x|^2 - |x - c|^2
//   CHEBYSHEV  -1 - the largest |x - c| of a component: no multipliers
#pragma once

#include "engine.h"

namespace lutllm {

template <class E>
struct SearchTypes {
    // The rest after a stage may exceed the first grid by one bit.
    static constexpr int REST_BITS = E::ACT_BITS + (E::MAX_ACT_STAGES > 1 ? 1 : 0);
    static constexpr int CENTROID_BITS = 8 + E::STAGE_BITS * (E::MAX_ACT_STAGES - 1);
    static constexpr int TERM_BITS = max_of(REST_BITS + 1, CENTROID_BITS) + 1;    // 2x - c
    static constexpr int DIFFERENCE_BITS = max_of(REST_BITS, CENTROID_BITS) + 1;  // x - c
    static constexpr int SCORE_BITS =
        E::METRIC == CHEBYSHEV ? DIFFERENCE_BITS : CENTROID_BITS + TERM_BITS + bits_for(E::VEC_LEN);
    static_assert(SCORE_BITS <= 64, "scores fit 64 bits");

    typedef ap_int<REST_BITS> rest_t;
    typedef ap_int<CENTROID_BITS> scaled_t;
    typedef ap_int<DIFFERENCE_BITS> difference_t;
    typedef ap_int<SCORE_BITS> score_t;
    struct best_t {
        score_t score;
        ap_uint<E::CODE_BITS> code;
        ap_uint<E::VECTOR_BITS> centroid;
    };
    struct vector_t {
        rest_t value[E::VEC_LEN];
    };
};

// Component k of a centroid on the grid of its stage.
template <class E>
typename SearchTypes<E>::scaled_t component(ap_uint<E::VECTOR_BITS> centroid, int k, int shift) {
#pragma HLS INLINE
    const ap_int<8> stored = centroid.range(8 * k + 7, 8 * k);
    return typename SearchTypes<E>::scaled_t(stored) << shift;
}

template <class E>
typename SearchTypes<E>::score_t squared_score(const typename SearchTypes<E>::vector_t& x,
                                               ap_uint<E::VECTOR_BITS> centroid, int shift) {
#pragma HLS INLINE
    typename SearchTypes<E>::score_t score = 0;
component_loop:
    for (int k = 0; k < E::VEC_LEN; k++) {
#pragma HLS UNROLL
        const typename SearchTypes<E>::scaled_t c = component<E>(centroid, k, shift);
        const ap_int<SearchTypes<E>::TERM_BITS> term = x.value[k] + x.value[k] - c;
        score += c * term;
    }
    return score;
}

template <class E>
typename SearchTypes<E>::score_t chebyshev_score(const typename SearchTypes<E>::vector_t& x,
                                                 ap_uint<E::VECTOR_BITS> centroid, int shift) {
#pragma HLS INLINE
    typename SearchTypes<E>::difference_t largest = 0;
component_loop:
    for (int k = 0; k < E::VEC_LEN; k++) {
#pragma HLS UNROLL
        typename SearchTypes<E>::difference_t size = x.value[k] - component<E>(centroid, k, shift);
        if (size < 0) size = -size;
        if (size > largest) largest = size;
    }
    return -1 - largest;  // every bit inverted
}

// One processing element.
template <class E>
typename SearchTypes<E>::score_t score_centroid(const typename SearchTypes<E>::vector_t& x,
                                                ap_uint<E::VECTOR_BITS> centroid, int shift) {
#pragma HLS INLINE
    return E::METRIC == CHEBYSHEV ? chebyshev_score<E>(x, centroid, shift)
                                  : squared_score<E>(x, centroid, shift);
}

// Best of the PES centroids of one pass; `first` is the code of the first of them.
template <class E>
typename SearchTypes<E>::best_t search_pass(const typename SearchTypes<E>::vector_t& x,
                                            const typename E::centroids_t& centroids, int first,
                                            int shift) {
#pragma HLS INLINE
    typename SearchTypes<E>::best_t best[E::SEARCH_SEGMENTS];
#pragma HLS ARRAY_PARTITION variable=best type=complete
segment_loop:
    for (int s = 0; s < E::SEARCH_SEGMENTS; s++) {
#pragma HLS UNROLL
    chain_loop:
        for (int j = 0; j < E::SEARCH_CHAIN; j++) {
#pragma HLS UNROLL
            const int k = s * E::SEARCH_CHAIN + j;
            const ap_uint<E::VECTOR_BITS> centroid =
                centroids.range(k * E::VECTOR_BITS + E::VECTOR_BITS - 1, k * E::VECTOR_BITS);
            const typename SearchTypes<E>::score_t score = score_centroid<E>(x, centroid, shift);
            if (j == 0 || score > best[s].score) {
                best[s].score = score;
                best[s].code = first + k;
                best[s].centroid = centroid;
            }
        }
    }
    // Neighbours first: the left one always has the lower codes, so it wins ties.
tree_loop:
    for (int step = 1; step < E::SEARCH_SEGMENTS; step *= 2) {
#pragma HLS UNROLL
    merge_loop:
        for (int s = 0; s + step < E::SEARCH_SEGMENTS; s += 2 * step) {
#pragma HLS UNROLL
            if (best[s + step].score > best[s].score) best[s] = best[s + step];
        }
    }
    return best[0];
}

// acts: one position per round and token. Items: per round, stage and token the code found or,
// where rows are computed on line, the centroid itself. A stage codes the rest left by those
// before.
template <class E>
void centroid_search(typename E::acts& act, typename E::centroids& centroids,
                     typename E::items& items, LinearCall call) {
    typedef SearchTypes<E> types;
    typename E::centroids_t kept[E::SEARCH_PASSES];
#pragma HLS ARRAY_PARTITION variable=kept type=complete
    typename types::vector_t rest[E::MAX_TOKENS];
    typename types::vector_t x;
    typename types::best_t best;
    int token = 0, pass = 0, stage = 0;
    const int total = call.rounds * call.act_stages * call.tokens * E::SEARCH_PASSES;
search_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=1
        const typename E::centroids_t word = token == 0 ? centroids.read() : kept[pass];
        if (token == 0) kept[pass] = word;
        if (pass == 0 && (E::MAX_ACT_STAGES == 1 || stage == 0)) {
            const typename E::act_t in = act.read();
            for (int k = 0; k < E::VEC_LEN; k++) {
#pragma HLS UNROLL
                const ap_int<E::ACT_BITS> value =
                    in.range(k * E::ACT_BITS + E::ACT_BITS - 1, k * E::ACT_BITS);
                x.value[k] = value;
            }
        } else if (pass == 0) {
            x = rest[token];
        }
        const int shift = E::STAGE_BITS * (call.act_stages - 1 - stage);
        const typename types::best_t found = search_pass<E>(x, word, pass * E::PES, shift);
        if (pass == 0 || found.score > best.score) best = found;
        if (!advance(pass, E::SEARCH_PASSES)) continue;

        items.write(E::ONLINE_ROWS ? typename E::item_t(best.centroid)
                                   : typename E::item_t(best.code));
        if (E::MAX_ACT_STAGES > 1) {
            for (int k = 0; k < E::VEC_LEN; k++) {
#pragma HLS UNROLL
                rest[token].value[k] = x.value[k] - component<E>(best.centroid, k, shift);
            }
        }
        if (advance(token, call.tokens)) advance(stage, call.act_stages);
    }
}

// The items of a round once for every weight stage: [round][weight stage][act stage][token].
template <class E>
void repeat_items(typename E::items& in, typename E::items& out, LinearCall call) {
    typename E::item_t kept[E::MAX_ACT_STAGES * E::MAX_TOKENS];
    const int per_round = call.act_stages * call.tokens;
    const int total = call.rounds * call.weight_stages * per_round;
    int stage = 0, at = 0;
repeat_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=1
        const typename E::item_t item = stage == 0 ? in.read() : kept[at];
        if (E::MAX_WEIGHT_STAGES > 1 && stage == 0) kept[at] = item;
        out.write(item);
        if (advance(at, per_round)) advance(stage, call.weight_stages);
    }
}

// Codes go to the reader that fetches their rows, or to the table that holds them.
template <class E>
void route_codes(typename E::items& in, typename E::items& to_table, typename E::items& to_fetch,
                 LinearCall call) {
    const int total = E::passes(call) * call.tokens;
route_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=1
        const typename E::item_t code = in.read();
        if (call.row_fetch)
            to_fetch.write(code);
        else
            to_table.write(code);
    }
}

}  // namespace lutllm
