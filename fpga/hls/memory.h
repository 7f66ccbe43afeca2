// memory.h: processes that move beats between memory ports and streams, and nothing else.
#pragma once

#include <hls_burst_maxi.h>

#include "engine.h"

namespace lutllm {

// x: f32[tokens, in_words * WIDE_FLOATS] in memory -> one word at a time.
template <class E>
void read_input(const typename E::wide_t* memory, typename E::words& out, LinearCall call) {
    const int total = call.tokens * call.in_words;
read_input_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=1
        out.write(memory[i]);
    }
}

// What one port holds of the parameters of a linear.
template <class E>
void read_parameters(const typename E::beat_t* memory, typename E::beats& out, LinearCall call) {
    const int total = E::parameter_beats(call);
parameter_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=1
        out.write(memory[call.parameter_base + i]);
    }
}

// The next beat of every port.
template <class E>
typename E::param_row_t read_row(typename E::beats (&in)[E::PARAMETER_PORTS]) {
#pragma HLS INLINE
    typename E::param_row_t row;
port_loop:
    for (int p = 0; p < E::PARAMETER_PORTS; p++) {
#pragma HLS UNROLL
        row.range(p * E::AXI_BITS + E::AXI_BITS - 1, p * E::AXI_BITS) = in[p].read();
    }
    return row;
}

// Rows as they come.
template <class E>
void forward_rows(typename E::beats (&in)[E::PARAMETER_PORTS], typename E::param_rows& out, int rows) {
row_loop:
    for (int i = 0; i < rows; i++) {
#pragma HLS PIPELINE II=1
        out.write(read_row<E>(in));
    }
}

// Rows a beat at a time, of which the last may be incomplete.
template <class E>
void forward_beats(typename E::beats (&in)[E::PARAMETER_PORTS], typename E::param_beats& out,
                int beats) {
    typename E::param_row_t row = 0;
    int port = 0;
beat_loop:
    for (int i = 0; i < beats; i++) {
#pragma HLS PIPELINE II=1
        if (port == 0) row = read_row<E>(in);
        const int low = port * E::AXI_BITS;
        out.write(row.range(low + E::AXI_BITS - 1, low));
        advance(port, E::PARAMETER_PORTS);
    }
}

// The parameters of a linear, in the order they are needed: input scales, block exponents, gather
// indices, output scales, biases.
template <class E>
void deal_parameters(typename E::beats (&in)[E::PARAMETER_PORTS], typename E::param_rows& input_scales,
                     typename E::param_beats& block_shifts, typename E::param_beats& gather,
                     typename E::param_rows& output_scales, typename E::param_rows& biases,
                     LinearCall call) {
    forward_rows<E>(in, input_scales, ceil_div(call.in_beats, E::PARAMETER_PORTS));
    forward_beats<E>(in, block_shifts, E::shift_beats(call));
    forward_beats<E>(in, gather, E::gather_beats(call));
    forward_rows<E>(in, output_scales, call.subs * E::OUT_ROWS);
    if (call.bias) forward_rows<E>(in, biases, call.subs * E::OUT_ROWS);
}

// Runs of `beats` beats, each from a row on, to runs of `words` words of VECTOR_LANES beats, zeros
// behind the beats. Rows have more beats than words or fewer, powers of two both.
template <class E, class Words>
void widen(typename E::param_rows& in, Words& out, int runs, int beats, int words) {
    constexpr int UNIT = E::PARAMETER_PORTS < E::VECTOR_LANES ? E::PARAMETER_PORTS : E::VECTOR_LANES;
    constexpr int PIECES = E::PARAMETER_PORTS / UNIT;  // of a row
    constexpr int PLACES = E::VECTOR_LANES / UNIT;     // for them in a word
    const int pieces = ceil_div(beats, E::PARAMETER_PORTS) * PIECES, places = words * PLACES;
    const int steps = max_of(pieces, places);
    typename E::param_row_t row = 0;
    typename E::wide_t word = 0;
    int piece = 0, place = 0, at = 0;
widen_loop:
    for (int i = 0; i < runs * steps; i++) {
#pragma HLS PIPELINE II=1
        if (piece == 0 && at < pieces) row = in.read();
        if (at >= pieces) row = 0;
        const int from = piece * UNIT * E::AXI_BITS, to = place * UNIT * E::AXI_BITS;
        word.range(to + UNIT * E::AXI_BITS - 1, to) =
            row.range(from + UNIT * E::AXI_BITS - 1, from);
        advance(piece, PIECES);
        if (advance(place, PLACES) && at < places) out.write(word);
        if (advance(at, steps)) piece = place = 0;
    }
}

// Input scales of a call.
template <class E>
void widen_inputs(typename E::param_rows& in, typename E::input_words& out, LinearCall call) {
    widen<E>(in, out, 1, call.in_beats, call.in_words);
}

// Output scales of a call, or its biases where it has them.
template <class E>
void widen_outputs(typename E::param_rows& in, typename E::output_words& out, bool used,
                   LinearCall call) {
    if (used) widen<E>(in, out, call.subs, E::OUT_BEATS, E::OUT_WORDS);
}

// Centroids of CENTROID_SHARE channels, one search pass at a time: [round][stage][pass][channel].
template <class E>
void read_centroids(const typename E::beat_t* memory,
                    typename E::centroids (&out)[E::CENTROID_SHARE], LinearCall call) {
    typedef typename E::centroid_packing packing;
    const int total = packing::beats(call.rounds * call.act_stages * E::SEARCH_PASSES);
    ap_uint<packing::BEATS * E::AXI_BITS> wide;
    int part = 0;
    int left = call.rounds * call.act_stages * E::SEARCH_PASSES;
centroid_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=packing::PER_BEAT
        const typename E::beat_t beat = memory[call.centroid_base + i];
        wide.range(part * E::AXI_BITS + E::AXI_BITS - 1, part * E::AXI_BITS) = beat;
        if (!advance(part, packing::BEATS)) continue;
    word_loop:
        for (int w = 0; w < packing::PER_BEAT; w++) {
        share_loop:
            for (int c = 0; c < E::CENTROID_SHARE; c++) {
#pragma HLS UNROLL
                const int low = w * packing::SLOT_BITS + c * E::PES_BITS;
                const typename E::centroids_t word = wide.range(low + E::PES_BITS - 1, low);
                if (w < left) out[c].write(word);
            }
        }
        left -= packing::PER_BEAT;
    }
}

// Runs the bursts that a plan asks for, up to READ_AHEAD of them under way at a time, so that the
// latency of a burst hides behind the beats of those before it. The loop is over all `beats` of all
// `bursts`, so that it never drains between bursts. It waits for the plan only when no burst is
// under way: indices come while the codes that the rows depend on are not known yet.
template <class E>
void read_bursts(hls::burst_maxi<typename E::beat_t> memory, typename E::jobs& jobs,
                 typename E::beats& index_beats, typename E::lead_beats& row_beats, int bursts,
                 int beats) {
    typename E::job_t pending[E::READ_AHEAD];
#pragma HLS ARRAY_PARTITION variable=pending type=complete
    int first = 0, next = 0, under_way = 0, left = bursts;
    int done = 0;  // beats of the burst in slot `first`
beat_loop:
    for (int i = 0; i < beats; i++) {
#pragma HLS PIPELINE II=1
        const bool room = under_way < E::READ_AHEAD;
        if (left > 0 && (under_way == 0 || (room && !jobs.empty()))) {
            const typename E::job_t job = jobs.read();
            memory.read_request(job.address.to_uint(), job.beats.to_uint());
            pending[next] = job;
            advance(next, E::READ_AHEAD);
            under_way++;
            left--;
        }
        const typename E::job_t due = pending[first];
        const typename E::beat_t beat = memory.read();
        if (due.is_index == 1)
            index_beats.write(beat);
        else
            row_beats.write(beat);
        if (advance(done, due.beats.to_int())) {
            advance(first, E::READ_AHEAD);
            under_way--;
        }
    }
}

// Beats to words, for `runs` runs of `words` words; each run starts on a beat.
template <class E, int BITS, class Words>
void unpack_words(typename E::beats& beats, Words& words, int runs, int words_per_run) {
    constexpr int INTERVAL = Packing<BITS, E::AXI_BITS>::BEATS;
    WordReader<BITS, E::AXI_BITS> reader;
    int word = 0;
word_loop:
    for (int i = 0; i < runs * words_per_run; i++) {
#pragma HLS PIPELINE II=INTERVAL
        if (word == 0) reader.align();
        words.write(reader.read(beats));
        advance(word, words_per_run);
    }
}

// Results of all tokens, in the order of the stream.
template <class E>
void write_output(typename E::words& words, typename E::wide_t* memory, LinearCall call) {
    const int total = call.tokens * call.subs * E::OUT_WORDS * (call.accumulators ? 2 : 1);
write_output_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=1
        memory[i] = words.read();
    }
}

}  // namespace lutllm
