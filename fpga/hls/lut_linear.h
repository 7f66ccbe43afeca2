// lut_linear.h: the channels of a LUT linear engine. The rendered top function wires them up.
//
//   x -> (rotate) -> scale -> round -> gather --+-> channel 0 -> channel 1 -> ... --+-> accumulate -> y
//                                   |   (a chain adds up its channels)  |
//                                   +-> the other chains ---------------+
//
// Processes run through all calls of a run, each at its own pace (LUTLLM_CALLS).
//
// A channel: search -> repeat -> rows -> lookup, its memory read by plan -> bursts.
#pragma once

#include "accumulate.h"
#include "centroid_search.h"
#include "lookup.h"
#include "memory.h"
#include "quantize_input.h"
#include "rotate_input.h"
#include "row_source.h"

namespace lutllm {

// Codes searched, rows from tables or fetched.
template <class E, class Calls>
void table_channel(hls::burst_maxi<typename E::beat_t> memory, typename E::acts& act,
                   typename E::centroids& centroids, typename E::sums& in, typename E::sums& out,
                   Calls calls) {
#pragma HLS DATAFLOW
    typename E::items found("found"), codes("codes"), to_table("to_table"), to_fetch("to_fetch");
    typename E::jobs jobs("jobs");
    typename E::beats index_beats("index_beats");
    typename E::lead_beats row_beats("row_beats");
    typename E::indices indices("indices");
    typename E::rows rows("rows");
    LUTLLM_REGION;
    LUTLLM_CALLS("search", calls, centroid_search<E>(act, centroids, found, call));
    LUTLLM_CALLS("repeat", calls, repeat_items<E>(found, codes, call));
    LUTLLM_CALLS("route", calls, route_codes<E>(codes, to_table, to_fetch, call));
    LUTLLM_CALLS("plan", calls, plan_tables<E>(to_fetch, jobs, call));
    LUTLLM_CALLS("bursts", calls,
                 read_bursts<E>(memory, jobs, index_beats, row_beats, count_table_bursts<E>(call),
                                count_table_beats<E>(call)));
    LUTLLM_CALLS("unpack", calls,
                 unpack_words<E, E::INDEX_BITS>(index_beats, indices,
                                                call.rounds * call.weight_stages, call.subs));
    LUTLLM_CALLS("rows", calls, rows_from_tables<E>(row_beats, to_table, rows, call));
    LUTLLM_CALLS("lookup", calls, lookup<E>(indices, rows, in, out, call));
}

// What the two kinds of channel with computed rows have in common.
template <class E, class Calls>
void online_part(hls::burst_maxi<typename E::beat_t> memory, typename E::items& vectors,
                 typename E::sums& in, typename E::sums& out, Calls calls) {
#pragma HLS DATAFLOW
    typename E::jobs jobs("jobs");
    typename E::beats index_beats("index_beats");
    typename E::lead_beats row_beats("row_beats");
    typename E::record_shifts shifts("shifts");
    typename E::codebook_beats codebooks("codebooks");
    typename E::indices indices("indices");
    typename E::rows rows("rows");
    LUTLLM_REGION;
    LUTLLM_CALLS("plan", calls, plan_codebooks<E>(jobs, call));
    LUTLLM_CALLS("bursts", calls,
                 read_bursts<E>(memory, jobs, index_beats, row_beats,
                                count_codebook_bursts<E>(call), count_codebook_beats<E>(call)));
    LUTLLM_CALLS("unpack", calls,
                 unpack_words<E, E::INDEX_BITS>(index_beats, indices,
                                                call.rounds * call.weight_stages, call.subs));
    LUTLLM_CALLS("route", calls, route_codebooks<E>(row_beats, shifts, codebooks, call));
    LUTLLM_CALLS("rows", calls, rows_online<E>(shifts, codebooks, vectors, rows, call));
    LUTLLM_CALLS("lookup", calls, lookup<E>(indices, rows, in, out, call));
}

// Codes searched, rows computed from the centroid found.
template <class E, class Calls>
void coded_online_channel(hls::burst_maxi<typename E::beat_t> memory, typename E::acts& act,
                          typename E::centroids& centroids, typename E::sums& in,
                          typename E::sums& out, Calls calls) {
#pragma HLS DATAFLOW
    typename E::items found("found"), vectors("vectors");
    LUTLLM_REGION;
    LUTLLM_CALLS("search", calls, centroid_search<E>(act, centroids, found, call));
    LUTLLM_CALLS("repeat", calls, repeat_items<E>(found, vectors, call));
    LUTLLM_PROCESS("part", online_part<E>(memory, vectors, in, out, calls));
}

// No search: rows computed from the activation itself.
template <class E, class Calls>
void online_channel(hls::burst_maxi<typename E::beat_t> memory, typename E::acts& act,
                    typename E::sums& in, typename E::sums& out, Calls calls) {
#pragma HLS DATAFLOW
    typename E::items vectors("vectors");
    LUTLLM_REGION;
    LUTLLM_CALLS("repeat", calls, repeat_items<E>(act, vectors, call));
    LUTLLM_PROCESS("part", online_part<E>(memory, vectors, in, out, calls));
}

// Float32 words to integers, and those to their channels.
template <class E, class Calls>
void quantize_words(typename E::words& x, typename E::input_words& input_scales,
                    typename E::param_beats& gather_beats, typename E::acts (&act)[E::CHANNELS],
                    typename E::token_floats& token_scales, Calls calls) {
#pragma HLS DATAFLOW
    typename E::token_words z("z");
    typename E::token_floats largest("largest");
    typename E::quantizeds quantized("quantized");
    LUTLLM_REGION;
    LUTLLM_CALLS("scale", calls, scale_input<E>(x, input_scales, z, largest, call));
    LUTLLM_CALLS("round", calls, round_input<E>(z, largest, quantized, token_scales, call));
    LUTLLM_CALLS("gather", calls, gather_input<E>(quantized, gather_beats, act, call));
}

// What an engine does with its input; ROTATES: before that some of its linears rotate it.
template <class E, bool ROTATES = (E::ROTATION > 0)>
struct InputStage {
    template <class Calls>
    static void run(typename E::words& x, typename E::input_words& input_scales,
                    typename E::param_beats& gather_beats, typename E::acts (&act)[E::CHANNELS],
                    typename E::token_floats& token_scales, Calls calls) {
#pragma HLS DATAFLOW
        typename E::words rotated("rotated");
        LUTLLM_REGION;
        LUTLLM_PROCESS("rotate", Rotation<E>::rotate(x, rotated, calls));
        LUTLLM_PROCESS("quantize", quantize_words<E>(rotated, input_scales, gather_beats, act,
                                                     token_scales, calls));
    }
};

template <class E>
struct InputStage<E, false> {
    template <class Calls>
    static void run(typename E::words& x, typename E::input_words& input_scales,
                    typename E::param_beats& gather_beats, typename E::acts (&act)[E::CHANNELS],
                    typename E::token_floats& token_scales, Calls calls) {
        quantize_words<E>(x, input_scales, gather_beats, act, token_scales, calls);
    }
};

// Float32 input to one position per channel, round and token.
template <class E, class Calls>
void quantize_input(typename E::words& x, typename E::input_words& input_scales,
                    typename E::param_beats& gather_beats, typename E::acts (&act)[E::CHANNELS],
                    typename E::token_floats& token_scales, Calls calls) {
    InputStage<E>::run(x, input_scales, gather_beats, act, token_scales, calls);
}

}  // namespace lutllm
