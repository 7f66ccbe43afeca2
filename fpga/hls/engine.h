// engine.h: what one LUT linear engine is made of: derived sizes, word types, one call.
//
// An engine is described by a configuration struct C that the exporter renders (EngineConfig in
// fpga/design.py explains each field). Engine<C> adds everything that follows from it. Letters as
// in the rest of the project: v VEC_LEN, Ka ACT_CENTROIDS, Kw WEIGHT_CENTROIDS, G GROUP_SIZE.
//
// Work of a call, outermost first: a round sends one position to every channel; a round is run
// once per weight stage s and activation stage t; each such pass handles all tokens; a token
// handles its outputs in sub-blocks of LANES outputs. A chain of CHAIN_CHANNELS channels holds
// positions of one block, so that a pass adds under one exponent per chain.
#pragma once

// Widest word of a kernel, in bits (fpga/design.py checks an engine against it).
#ifndef AP_INT_MAX_W
#define AP_INT_MAX_W 4096
#endif
#include <ap_int.h>

#include "dataflow.h"

namespace lutllm {

constexpr int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}
constexpr int max_of(int a, int b) {
    return a > b ? a : b;
}
// Bits that tell `count` values apart, at least one.
constexpr int bits_for(int count) {
    int bits = 1;
    for (int n = count; n > 2; n = (n + 1) / 2) bits++;
    return bits;
}
constexpr int power_of_two_at_least(int n) {
    int power = 1;
    for (; power < n; power *= 2) {
    }
    return power;
}

// How far an activation is from a centroid: the METRIC of an engine.
enum Metric { L2 = 0, CHEBYSHEV = 1 };

// How words of BITS bits lie in memory beats: several to a beat, or one over several beats.
template <int BITS, int AXI_BITS>
struct Packing {
    static constexpr int SLOT_BITS = BITS > AXI_BITS ? ceil_div(BITS, AXI_BITS) * AXI_BITS
                                                     : max_of(8, power_of_two_at_least(BITS));
    static constexpr int PER_BEAT = BITS > AXI_BITS ? 1 : AXI_BITS / SLOT_BITS;
    static constexpr int BEATS = ceil_div(BITS, AXI_BITS);  // of one word
    static constexpr int beats(int words) {
        return BITS > AXI_BITS ? words * BEATS : ceil_div(words, PER_BEAT);
    }
};

// Takes words of BITS bits off a stream of beats.
template <int BITS, int AXI_BITS>
struct WordReader {
    typedef Packing<BITS, AXI_BITS> packing;
    ap_uint<AXI_BITS> beat;
    int slot;

    WordReader() : slot(0) {}

    // The next word starts a new beat.
    void align() { slot = 0; }

    template <class Beats>
    ap_uint<BITS> read(Beats& beats) {
#pragma HLS INLINE
        ap_uint<packing::BEATS * AXI_BITS> wide;
        if (packing::PER_BEAT == 1) {
        word_beats:
            for (int b = 0; b < packing::BEATS; b++) {
#pragma HLS UNROLL
                const ap_uint<AXI_BITS> part = beats.read();
                wide.range(b * AXI_BITS + AXI_BITS - 1, b * AXI_BITS) = part;
            }
            return wide.range(BITS - 1, 0);
        }
        if (slot == 0) beat = beats.read();
        const int low = slot * packing::SLOT_BITS;
        slot = slot + 1 == packing::PER_BEAT ? 0 : slot + 1;
        return beat.range(low + BITS - 1, low);
    }
};

// Count `digit` up to `base`; true when it wraps, so that a chain of these counts a loop nest.
inline bool advance(int& digit, int base) {
#pragma HLS INLINE
    digit = digit + 1 == base ? 0 : digit + 1;
    return digit == 0;
}

inline float bits_to_float(ap_uint<32> bits) {
#pragma HLS INLINE
    union {
        unsigned u;
        float f;
    } both;
    both.u = bits.to_uint();
    return both.f;
}

inline ap_uint<32> float_to_bits(float value) {
#pragma HLS INLINE
    union {
        unsigned u;
        float f;
    } both;
    both.f = value;
    return ap_uint<32>(both.u);
}

// One linear layer as a run of the engine: sizes after padding, and where its data starts.
struct LinearCall {
    int tokens;         // of this run, at most MAX_TOKENS
    bool row_fetch;     // read only the rows of the codes found, instead of whole tables
    bool accumulators;  // write the integer sums beside the results
    bool bias;
    bool token_scale;  // every token is coded relative to its largest input
    int rotation;      // floats of a block that is rotated before coding, 0 = none
    int in_features;
    int rounds;  // positions per channel
    int groups;  // groups that the sub-blocks cover
    int subs;    // sub-blocks of LANES outputs
    int act_stages;
    int weight_stages;
    int table_bits;     // of an entry of the first weight stages, where rows are computed
    int wide_stages;    // how many these are
    int in_beats;       // beats of one token's input, float32, in memory
    int in_words;       // the same in words of VECTOR_LANES beats, as it comes
    int channel_base;   // first beat of the linear in the memory of every channel
    int centroid_base;  // in the memory of every centroid port
    int parameter_base;
};

// The calls that an engine runs one after another: here a single one.
struct OneCall {
    LinearCall call;
    int count() const { return 1; }
    bool skips(int) const { return false; }
    LinearCall at(int) const { return call; }
};

template <class C>
struct Engine : C {
    typedef C config;

    // Activations: the integer grid of the search, or 8 bits where rows are computed from them.
    static constexpr int STAGE_BITS = 3;  // one more activation stage refines the grid by 2^3
    static constexpr int ACT_BITS = C::SEARCH ? 10 + STAGE_BITS * (C::MAX_ACT_STAGES - 1) : 8;
    static constexpr int FLOATS = C::AXI_BITS / 32;  // per beat
    // Floats come and go in words of VECTOR_LANES beats; a token's input and a sub-block's results
    // start on one.
    static constexpr int WIDE_BITS = C::AXI_BITS * C::VECTOR_LANES;
    static constexpr int WIDE_FLOATS = FLOATS * C::VECTOR_LANES;
    static constexpr int MAX_IN_WORDS =
        max_of(ceil_div(C::MAX_IN_BEATS, C::VECTOR_LANES), C::MIN_DISTANCE);
    static constexpr int OUT_WORDS = ceil_div(C::LANES, WIDE_FLOATS);  // of one sub-block
    static constexpr int SLOTS = C::CHANNELS * C::VEC_LEN;             // activations of one round
    static constexpr int GATHER_STEPS = ceil_div(SLOTS, C::GATHER_LANES);
    static constexpr int GATHER_INDEX_BITS = 16;
    static constexpr int NO_CHANNEL = (1 << GATHER_INDEX_BITS) - 1;  // the slot is padding: zero

    // Search: SEGMENTS x CHAIN processing elements take PASSES cycles per token and stage.
    static constexpr int PES = C::SEARCH_SEGMENTS * C::SEARCH_CHAIN;
    static constexpr int SEARCH_PASSES = ceil_div(C::ACT_CENTROIDS, PES);
    static constexpr int CENTROID_SHARE = ceil_div(C::CHANNELS, C::CENTROID_PORTS);
    static constexpr int CODE_BITS = bits_for(C::ACT_CENTROIDS);
    static constexpr int VECTOR_BITS = 8 * C::VEC_LEN;  // an int8 centroid
    static constexpr int PES_BITS = PES * VECTOR_BITS;  // the centroids of one search pass

    // Rows and look-up.
    static constexpr int RESIDUAL_TABLE_BITS = 8;  // at most, of later weight stages
    static constexpr int ENTRY_OFFSET = 1 << (C::TABLE_BITS - 1);  // entries are offset binary
    static constexpr int ROW_BITS = C::WEIGHT_CENTROIDS * C::TABLE_BITS;
    static constexpr int WEIGHT_CODE_BITS = bits_for(C::WEIGHT_CENTROIDS);
    static constexpr int INDEX_BITS = C::LANES * WEIGHT_CODE_BITS;
    static constexpr int SUBS_PER_GROUP = C::GROUP_SIZE / C::LANES;
    static constexpr int MAX_GROUPS = ceil_div(C::MAX_SUBS, SUBS_PER_GROUP);
    static constexpr int CODEBOOK_BITS = C::WEIGHT_CENTROIDS * VECTOR_BITS;

    // Packed sums: a lane holds CHAIN_CHANNELS entries without carrying into the next.
    static constexpr int DSP_BITS = 48;
    static constexpr int LANE_BITS = C::TABLE_BITS + bits_for(C::CHAIN_CHANNELS);
    static constexpr int LANES_PER_WORD = DSP_BITS / LANE_BITS;
    static constexpr int WORD_BITS = LANES_PER_WORD * LANE_BITS;
    static constexpr int WORDS = ceil_div(C::LANES, LANES_PER_WORD);
    static constexpr int CHAINS = C::CHANNELS / C::CHAIN_CHANNELS;
    static constexpr int OUT_BEATS = ceil_div(C::LANES, FLOATS);  // of one sub-block

    static constexpr int OUT_ROWS = ceil_div(OUT_BEATS, C::PARAMETER_PORTS);  // of its scales

    typedef ap_uint<C::AXI_BITS> beat_t;
    typedef ap_uint<C::AXI_BITS * C::PARAMETER_PORTS> param_row_t;  // a beat of every port
    typedef ap_uint<WIDE_BITS> wide_t;                              // WIDE_FLOATS float32
    typedef ap_uint<ACT_BITS * WIDE_FLOATS> quantized_t;            // as many integers
    typedef ap_uint<GATHER_INDEX_BITS * C::GATHER_LANES> gather_t;
    typedef ap_uint<ACT_BITS * C::VEC_LEN> act_t;  // x_int of one position
    typedef ap_uint<PES_BITS> centroids_t;
    // What a token looks up with: a code, or the integer vector that its row is computed from.
    typedef ap_uint<(C::ONLINE_ROWS ? VECTOR_BITS : CODE_BITS)> item_t;
    typedef ap_uint<ROW_BITS> row_t;
    typedef ap_uint<INDEX_BITS> index_t;
    typedef ap_uint<WORD_BITS> word_t;
    struct sums_t {
        word_t word[WORDS];
    };
    struct job_t {
        ap_uint<32> address;  // beats from the start of the channel's memory
        ap_uint<24> beats;
        ap_uint<1> is_index;
    };

    typedef Packing<ROW_BITS, C::AXI_BITS> row_packing;
    typedef Packing<INDEX_BITS, C::AXI_BITS> index_packing;
    typedef Packing<CODEBOOK_BITS, C::AXI_BITS> codebook_packing;
    typedef Packing<8, C::AXI_BITS> shift_packing;
    typedef Packing<8 * CHAINS, C::AXI_BITS> block_shift_packing;
    typedef Packing<CENTROID_SHARE * PES_BITS, C::AXI_BITS> centroid_packing;
    typedef Packing<GATHER_INDEX_BITS * C::GATHER_LANES, C::AXI_BITS> gather_packing;
    static constexpr int MAX_ROW_BEATS = row_packing::beats(MAX_GROUPS);
    // What a channel takes in before the first index of a record: the rows of a token, or a
    // codebook.
    static constexpr int MAX_LEAD_BEATS =
        C::ONLINE_ROWS ? C::MAX_ACT_STAGES * shift_packing::beats(MAX_GROUPS) +
                             codebook_packing::beats(MAX_GROUPS)
                       : MAX_ROW_BEATS;

    // Records whose codebooks are held beside their indices, ahead of the look-ups.
    static constexpr int HELD_RECORDS = C::ONLINE_ROWS ? max_of(1, C::INDEX_FIFO / C::MAX_SUBS) : 1;

    // Streams: deep enough that no process waits for a later one.
    typedef hls::stream<beat_t, 2> param_beats;
    typedef hls::stream<param_row_t, 2> param_rows;
    typedef hls::stream<beat_t, C::BEAT_FIFO> beats;
    typedef hls::stream<beat_t, max_of(C::BEAT_FIFO, MAX_LEAD_BEATS * HELD_RECORDS)> lead_beats;
    // The shifts of all stages of a record come before its codebooks, and those of the next record
    // may come before the last of them is used.
    typedef hls::stream<beat_t, 2 * C::MAX_ACT_STAGES * shift_packing::beats(MAX_GROUPS)>
        record_shifts;
    typedef hls::stream<beat_t, 4> codebook_beats;
    typedef hls::stream<wide_t, max_of(4, C::BEAT_FIFO / C::VECTOR_LANES)> words;
    typedef hls::stream<wide_t, MAX_IN_WORDS + 2> token_words;
    typedef hls::stream<wide_t, MAX_IN_WORDS> input_words;              // one for every input
    typedef hls::stream<wide_t, C::MAX_SUBS * OUT_WORDS> output_words;  // one for every output
    typedef hls::stream<float, C::MAX_TOKENS> token_floats;
    typedef hls::stream<quantized_t, 4> quantizeds;
    typedef hls::stream<gather_t, 4> gathers;
    typedef hls::stream<ap_uint<8 * CHAINS>, 4> block_shifts;
    typedef hls::stream<act_t, 4> acts;
    typedef hls::stream<centroids_t, 2 * SEARCH_PASSES> centroids;
    typedef hls::stream<item_t, 4> items;
    typedef hls::stream<job_t, 4> jobs;
    typedef hls::stream<row_t, 4> rows;
    typedef hls::stream<index_t, C::INDEX_FIFO> indices;
    typedef hls::stream<sums_t, 4> sums;

    static_assert(C::SEARCH || C::ONLINE_ROWS, "without a search rows are computed on line");
    static_assert(C::CHANNELS % C::CHAIN_CHANNELS == 0, "chains divide the channels");
    static_assert(C::CHANNELS % C::CENTROID_PORTS == 0,
                  "each centroid port serves as many channels");
    static_assert((C::PARAMETER_PORTS & (C::PARAMETER_PORTS - 1)) == 0 &&
                      (C::VECTOR_LANES & (C::VECTOR_LANES - 1)) == 0,
                  "rows of parameters and words of vectors divide one another");
    static_assert(C::GROUP_SIZE % C::LANES == 0, "sub-blocks divide a group");
    static_assert(C::CHAIN_CHANNELS <= C::BLOCK_POSITIONS, "a chain stays within one block");
    static_assert(C::CHAIN_CHANNELS * ((1 << C::TABLE_BITS) - 1) < (1 << LANE_BITS),
                  "a lane holds the largest sum of a chain");
    static_assert(WORD_BITS <= DSP_BITS, "the lanes of a word fit one DSP adder");
    static_assert(ROW_BITS <= AP_INT_MAX_W && INDEX_BITS <= AP_INT_MAX_W &&
                      (!C::SEARCH || CENTROID_SHARE * PES_BITS <= AP_INT_MAX_W) &&
                      WIDE_BITS <= AP_INT_MAX_W && C::AXI_BITS * C::PARAMETER_PORTS <= AP_INT_MAX_W,
                  "words are at most AP_INT_MAX_W bits wide");
    static_assert(C::AXI_BITS % 64 == 0, "beats are whole 64-bit words");
    static_assert(C::MAX_IN_BEATS * FLOATS < NO_CHANNEL, "a gather index names any input channel");
    static_assert(C::MAX_SUBS >= C::MIN_DISTANCE, "buffers are reread after MIN_DISTANCE cycles");

    static int index_beats(const LinearCall& call) { return index_packing::beats(call.subs); }
    static int row_beats(const LinearCall& call) { return row_packing::beats(call.groups); }
    static int passes(const LinearCall& call) {
        return call.rounds * call.weight_stages * call.act_stages;
    }
    static int shift_beats(const LinearCall& call) {
        return block_shift_packing::beats(passes(call));
    }
    static int gather_beats(const LinearCall& call) {
        return gather_packing::beats(call.rounds * GATHER_STEPS);
    }
    // Beats of a linear behind each parameter port.
    static int parameter_beats(const LinearCall& call) {
        return ceil_div(call.in_beats, C::PARAMETER_PORTS) +
               ceil_div(shift_beats(call), C::PARAMETER_PORTS) +
               ceil_div(gather_beats(call), C::PARAMETER_PORTS) +
               call.subs * OUT_ROWS * (call.bias ? 2 : 1);
    }
    // Beats of one (round, weight stage) in a channel: indices, then what its rows come from.
    static int record_beats(const LinearCall& call) {
        return index_beats(call) + (C::ONLINE_ROWS
                                        ? call.act_stages * shift_packing::beats(call.groups) +
                                              codebook_packing::beats(call.groups)
                                        : call.act_stages * C::ACT_CENTROIDS * row_beats(call));
    }
};

// The run of linear number `slot` of layer kind K (a struct rendered beside the configuration).
template <class E, class K>
LinearCall make_call(int slot, int tokens, bool row_fetch, bool accumulators) {
#pragma HLS INLINE
    constexpr int POSITIONS = ceil_div(K::IN_FEATURES, E::VEC_LEN);
    constexpr int BLOCKS = ceil_div(POSITIONS, E::BLOCK_POSITIONS);
    constexpr int ROUNDS =
        ceil_div(BLOCKS, E::CHAINS) * ceil_div(E::BLOCK_POSITIONS, E::CHAIN_CHANNELS);
    constexpr int SUBS = max_of(ceil_div(K::OUT_FEATURES, E::LANES), E::MIN_DISTANCE);
    constexpr int IN_BEATS = max_of(ceil_div(K::IN_FEATURES, E::FLOATS), E::MIN_DISTANCE);
    constexpr int IN_WORDS = max_of(ceil_div(K::IN_FEATURES, E::WIDE_FLOATS), E::MIN_DISTANCE);
    static_assert(SUBS <= E::MAX_SUBS, "outputs fit the accumulators");
    static_assert(IN_BEATS <= E::MAX_IN_BEATS, "inputs fit the buffers");
    static_assert(ROUNDS * K::ACT_STAGES * K::WEIGHT_STAGES <= E::MAX_PASSES, "passes fit");
    static_assert(K::ACT_STAGES <= E::MAX_ACT_STAGES, "activation stages fit");
    static_assert(K::WEIGHT_STAGES <= E::MAX_WEIGHT_STAGES, "weight stages fit");
    static_assert(K::TABLE_BITS <= E::TABLE_BITS, "entries fit");
    static_assert(K::ROTATION <= E::ROTATION, "the steps of a rotation are there");
    static_assert(!K::TOKEN_SCALE || E::TOKEN_SCALE, "results are scaled by token");
    LinearCall call;
    call.tokens = tokens;
    call.row_fetch = row_fetch;
    call.accumulators = accumulators;
    call.bias = K::BIAS;
    call.token_scale = K::TOKEN_SCALE;
    call.rotation = K::ROTATION;
    call.in_features = K::IN_FEATURES;
    call.rounds = ROUNDS;
    call.groups = ceil_div(SUBS, E::SUBS_PER_GROUP);
    call.subs = SUBS;
    call.act_stages = K::ACT_STAGES;
    call.weight_stages = K::WEIGHT_STAGES;
    call.table_bits = K::TABLE_BITS;
    call.wide_stages = K::WIDE_STAGES;
    call.in_beats = IN_BEATS;
    call.in_words = IN_WORDS;
    call.channel_base = K::CHANNEL_BASE + slot * K::CHANNEL_BEATS;
    call.centroid_base = K::CENTROID_BASE + slot * K::CENTROID_BEATS;
    call.parameter_base = K::PARAMETER_BASE + slot * K::PARAMETER_BEATS;
    return call;
}

}  // namespace lutllm
