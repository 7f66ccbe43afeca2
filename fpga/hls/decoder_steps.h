// decoder_steps.h: the steps of a decoder between two runs of a LUT linear engine.
//
// Every step reads and writes buffers of float32 beats on chip: `hidden` (the residual), `x` (what
// an engine reads, [token][at least MIN_BEATS beats]) and `y` (what it gave, each section of a
// token's results padded to whole beats). One step follows another; inside, each is dataflow. The
// buffers have two ports: a step may read two beats in a cycle, or read one and write one.
#pragma once

#include "attention.h"
#include "lut_linear.h"
#include "rms_norm.h"
#include "rotary.h"
#include "swiglu.h"

// A simulation may look at what enters each projection.
#ifndef LUTLLM_TRACE
#define LUTLLM_TRACE(projection, layer, x, run)
#endif

namespace lutllm {

enum Projection { QKV = 0, O = 1, GATE_UP = 2, DOWN = 3 };

// Where a projection of a layer is: which engine, and which linear of it.
struct Place {
    int engine, kind, slot;
};

// Results of a token: `count` vectors of `size` values, each of which starts on a beat.
struct Sections {
    int size, count;
};

template <class C>
struct Model : Decoder<C> {
    typedef Decoder<C> Base;
    static constexpr int QKV_HEADS = C::HEADS + 2 * C::KV_HEADS;
    static constexpr int ANGLE_BEATS = 2 * ceil_div(Base::HALF_DIM, Base::FLOATS);
    static constexpr int LOGIT_BEATS = ceil_div(C::VOCAB_SIZE, Base::FLOATS);
    static constexpr int CACHE_ROWS = ceil_div(C::CONTEXT, C::KV_PORTS);  // of a key head and port
    static constexpr int CACHE_BEATS = C::KV_HEADS * CACHE_ROWS * Base::HEAD_BEATS;  // of a layer
    static constexpr int FINAL_NORM = C::NORM_BASE + C::LAYERS * C::NORM_BEATS;
    static constexpr int MAX_X_BEATS =
        max_of(C::MIN_BEATS, max_of(Base::HIDDEN_BEATS, max_of(C::HEADS * Base::HEAD_BEATS,
                                                               Base::INTERMEDIATE_BEATS)));
    static constexpr int MAX_Y_BEATS =
        max_of(QKV_HEADS * Base::HEAD_BEATS, max_of(2 * Base::INTERMEDIATE_BEATS,
                                                    Base::HIDDEN_BEATS));
    // Beats of a stored row; int8 rows end in a float32 scale (int8_head.h).
    static constexpr int HEAD_ROW_BEATS =
        ceil_div(C::HIDDEN_SIZE * C::HEAD_BITS + (C::HEAD_BITS == 8 ? 32 : 0), C::AXI_BITS);
    static constexpr int EMBED_ROW_BEATS =
        ceil_div(C::HIDDEN_SIZE * C::EMBED_BITS + (C::EMBED_BITS == 8 ? 32 : 0), C::AXI_BITS);
    static_assert(C::HEAD_DIM % Base::FLOATS == 0, "heads are whole beats");

    // First beats of a layer's norms: input, post attention, queries, keys.
    static int input_norm(int layer) { return C::NORM_BASE + layer * C::NORM_BEATS; }
    static int post_norm(int layer) { return input_norm(layer) + Base::HIDDEN_BEATS; }
    static int head_norms(int layer) { return post_norm(layer) + Base::HIDDEN_BEATS; }

    static Sections sections(Projection projection) {
        Sections out;
        out.size = projection == QKV       ? C::HEAD_DIM
                   : projection == GATE_UP ? C::INTERMEDIATE_SIZE
                                           : C::HIDDEN_SIZE;
        out.count = projection == QKV ? QKV_HEADS : projection == GATE_UP ? 2 : 1;
        return out;
    }
    static int input_beats(Projection projection) {
        return projection == O      ? C::HEADS * Base::HEAD_BEATS
               : projection == DOWN ? Base::INTERMEDIATE_BEATS
                                    : Base::HIDDEN_BEATS;
    }
};

// Results of an engine, [token][sub][LANES padded to beats], to [token][section padded to beats].
// Where sections and sub-blocks are whole beats a beat moves in a cycle, else a value.
template <class E>
void pack_output(typename E::beats& in, typename E::beat_t* y, Sections sections,
                 LinearCall call) {
    const bool whole = E::LANES % E::FLOATS == 0 && sections.size % E::FLOATS == 0;
    const int steps = whole ? 1 : E::FLOATS;
    const int values = whole ? E::FLOATS : 1;
    typename E::beat_t beat = 0, packed = 0;
    int step = 0, part = 0, sub = 0, lane = 0, place = 0, at = 0, section = 0;
    const int total = call.tokens * call.subs * E::OUT_BEATS * steps;
pack_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=1
        if (step == 0) beat = in.read();
        if (sub == 0 && part == 0 && step == 0) section = 0;
        const bool used =
            section < sections.count && part * E::FLOATS + step < E::LANES;
        if (used && whole) {
            y[at++] = beat;
        } else if (used) {
            const int from = 32 * step, to = 32 * lane;
            if (lane == 0) packed = 0;
            packed.range(to + 31, to) = beat.range(from + 31, from);
        }
        if (used) {
            place += values;
            const bool ends = place == sections.size;
            if (!whole && (advance(lane, E::FLOATS) || ends)) {
                y[at++] = packed;
                lane = 0;
            }
            if (ends) {
                place = 0;
                section++;
            }
        }
        if (advance(step, steps) && advance(part, E::OUT_BEATS)) advance(sub, call.subs);
    }
}

template <class D>
void load_beats(const typename D::beat_t* from, typename D::beats& out, int count) {
load_loop:
    for (int i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
        out.write(from[i]);
    }
}

// Vectors of `beats` beats for an engine, zero-padded to MIN_BEATS.
template <class D>
void store_vectors(typename D::beats& in, typename D::beat_t* x, int vectors, int beats) {
    const int stride = max_of(beats, D::MIN_BEATS);
    int beat = 0;
store_loop:
    for (int i = 0; i < vectors * stride; i++) {
#pragma HLS PIPELINE II=1
        x[i] = beat < beats ? in.read() : typename D::beat_t(0);
        advance(beat, stride);
    }
}

// A stored value as float32: float32, bfloat16, float16 with its subnormal values, or int8.
template <int BITS, bool BF16>
float stored_to_float(ap_uint<BITS> bits) {
#pragma HLS INLINE
    const unsigned raw = bits.to_uint();
    if (BITS == 8) return static_cast<float>(static_cast<int>(raw ^ 128) - 128);
    if (BITS == 32) return bits_to_float(ap_uint<32>(raw));
    if (BF16) return bits_to_float(ap_uint<32>(raw << 16));
    const unsigned sign = (raw >> 15) << 31, power = raw >> 10 & 31, fraction = raw & 1023;
    const float tiny = static_cast<float>(static_cast<int>(fraction)) * 5.9604644775390625e-8f;
    const unsigned normal = (power + 112) << 23 | fraction << 13;
    return bits_to_float(ap_uint<32>(sign | (power ? normal : float_to_bits(tiny).to_uint())));
}

// The scale of an int8 row, in its last four bytes.
template <class D>
float row_scale(const typename D::beat_t& last_beat) {
#pragma HLS INLINE
    return bits_to_float(last_beat.range(D::AXI_BITS - 1, D::AXI_BITS - 32));
}

// A row of the embedding, `base` beats in, to the residual of its token.
template <class D>
void embed_word(const typename D::beat_t* rows, int base, typename D::beat_t* hidden) {
    constexpr int PER_BEAT = 32 / D::EMBED_BITS;  // beats of float32 from a stored beat
    constexpr bool SCALED = D::EMBED_BITS == 8;
    const float scale = SCALED ? row_scale<D>(rows[base + D::EMBED_ROW_BEATS - 1]) : 1.0f;
    typename D::beat_t stored = 0;
    int part = 0, at = base;
embed_loop:
    for (int b = 0; b < D::HIDDEN_BEATS; b++) {
#pragma HLS PIPELINE II=1
        if (part == 0) stored = rows[at++];
        typename D::floats_t values;
    lane_loop:
        for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
            const int low = (part * D::FLOATS + j) * D::EMBED_BITS;
            const float value = stored_to_float<D::EMBED_BITS, D::EMBED_BF16>(
                stored.range(low + D::EMBED_BITS - 1, low));
            const bool used = b * D::FLOATS + j < D::HIDDEN_SIZE;  // behind it may lie the scale
            values.value[j] = !SCALED ? value : used ? value * scale : 0.0f;
        }
        hidden[b] = values.pack();
        advance(part, PER_BEAT);
    }
}

// The residual, beat by beat; with `add`, after hidden += y.
template <class D>
void update_residual(typename D::beat_t* hidden, const typename D::beat_t* y, bool add,
                     typename D::beats& out, int count) {
residual_loop:
    for (int i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
        typename D::floats_t sum(hidden[i]);
        const typename D::floats_t other(y[i]);
    lane_loop:
        for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
            if (add) sum.value[j] = sum.value[j] + other.value[j];
        }
        const typename D::beat_t beat = sum.pack();
        hidden[i] = beat;
        out.write(beat);
    }
}

// hidden (with `add`, after hidden += y) -> norm -> x. norm: first beat of the weights in
// `constants`.
template <class D>
void normalize(const typename D::beat_t* constants, int norm, typename D::beat_t* hidden,
               const typename D::beat_t* y, bool add, typename D::beat_t* x, int tokens) {
#pragma HLS DATAFLOW
    typename D::beats in("in"), weights("weights"), out("out");
    LUTLLM_REGION;
    LUTLLM_PROCESS("hidden", update_residual<D>(hidden, y, add, in, tokens * D::HIDDEN_BEATS));
    LUTLLM_PROCESS("weights", load_beats<D>(constants + norm, weights, D::HIDDEN_BEATS));
    LUTLLM_PROCESS("norm", (rms_norm<D, D::HIDDEN_BEATS>(in, weights, out, tokens, D::HIDDEN_BEATS,
                                                         D::HIDDEN_SIZE, D::EPS)));
    LUTLLM_PROCESS("store", store_vectors<D>(out, x, tokens, D::HIDDEN_BEATS));
}

// y: [token][gate, up][INTERMEDIATE_BEATS] -> two streams, a beat of each in a cycle.
template <class D>
void split_gate_up(const typename D::beat_t* y, typename D::beats& gate, typename D::beats& up,
                   int tokens) {
    int beat = 0, at = 0;
split_loop:
    for (int i = 0; i < tokens * D::INTERMEDIATE_BEATS; i++) {
#pragma HLS PIPELINE II=1
        gate.write(y[at]);
        up.write(y[at + D::INTERMEDIATE_BEATS]);
        at += advance(beat, D::INTERMEDIATE_BEATS) ? D::INTERMEDIATE_BEATS + 1 : 1;
    }
}

// silu(gate) * up, y -> x.
template <class D>
void activate(const typename D::beat_t* y, typename D::beat_t* x, int tokens) {
#pragma HLS DATAFLOW
    typename D::beats gate("gate"), up("up"), out("out");
    LUTLLM_REGION;
    LUTLLM_PROCESS("gate_up", split_gate_up<D>(y, gate, up, tokens));
    LUTLLM_PROCESS("swiglu", swiglu<D>(gate, up, out, tokens * D::INTERMEDIATE_BEATS));
    LUTLLM_PROCESS("store", store_vectors<D>(out, x, tokens, D::INTERMEDIATE_BEATS));
}

// y: [token][query heads, key heads, value heads][HEAD_BEATS] -> three streams; a beat of the
// queries and one of keys or values in a cycle.
template <class D>
void split_heads(const typename D::beat_t* y, typename D::beats& q, typename D::beats& k,
                 typename D::beats& v, int tokens) {
    constexpr int Q_BEATS = D::HEADS * D::HEAD_BEATS, KV_BEATS = D::KV_HEADS * D::HEAD_BEATS;
    constexpr int STEPS = max_of(Q_BEATS, 2 * KV_BEATS);
    int step = 0, at = 0;
split_loop:
    for (int i = 0; i < tokens * STEPS; i++) {
#pragma HLS PIPELINE II=1
        if (step < Q_BEATS) q.write(y[at + step]);
        if (step < 2 * KV_BEATS) {
            const typename D::beat_t value = y[at + Q_BEATS + step];
            if (step < KV_BEATS)
                k.write(value);
            else
                v.write(value);
        }
        if (advance(step, STEPS)) at += D::QKV_HEADS * D::HEAD_BEATS;
    }
}

// What attention needs of `constants`: the norms of queries and keys, then the angles of every
// token, once for queries and once for keys.
template <class D>
void read_angles(const typename D::beat_t* constants, int norms, typename D::beats& q_norm,
                 typename D::beats& k_norm, typename D::beats& q_angles,
                 typename D::beats& k_angles, TokenRun run) {
    const int norm_beats = D::QK_NORM ? 2 * D::HEAD_BEATS : 0;
norm_loop:
    for (int i = 0; i < norm_beats; i++) {
#pragma HLS PIPELINE II=1
        const typename D::beat_t weight = constants[norms + i];
        if (i < D::HEAD_BEATS)
            q_norm.write(weight);
        else
            k_norm.write(weight);
    }
angle_loop:
    for (int i = 0; i < run.tokens * D::ANGLE_BEATS; i++) {
#pragma HLS PIPELINE II=1
        const typename D::beat_t angle = constants[run.first * D::ANGLE_BEATS + i];
        q_angles.write(angle);
        k_angles.write(angle);
    }
}

// The norm of queries or keys, where the model has one.
template <class D>
void norm_heads(typename D::beats& in, typename D::beats& weights, typename D::beats& out,
                int vectors) {
    if (D::QK_NORM) {
        rms_norm<D, D::HEAD_BEATS>(in, weights, out, vectors, D::HEAD_BEATS, D::HEAD_DIM, D::EPS);
    } else {
    pass_loop:
        for (int i = 0; i < vectors * D::HEAD_BEATS; i++) {
#pragma HLS PIPELINE II=1
            out.write(in.read());
        }
    }
}

// What a layer's attention works on: y -> norm -> rotary -> queries, and keys and values by the
// port that caches them.
template <class D>
void prepare_heads(const typename D::beat_t* y, const typename D::beat_t* constants,
                   typename D::beats& q, typename D::beats (&k)[D::KV_PORTS],
                   typename D::beats (&v)[D::KV_PORTS], TokenRun run, int layer) {
#pragma HLS DATAFLOW
    typename D::beats q_in("q_in"), k_in("k_in"), v_in("v_in");
    typename D::beats q_weights("q_weights"), k_weights("k_weights");
    typename D::beats q_angles("q_angles"), k_angles("k_angles");
    typename D::beats q_normed("q_normed"), k_normed("k_normed"), k_turned("k_turned");
    LUTLLM_REGION;
    LUTLLM_PROCESS("split", split_heads<D>(y, q_in, k_in, v_in, run.tokens));
    LUTLLM_PROCESS("angles", read_angles<D>(constants, D::head_norms(layer), q_weights, k_weights,
                                            q_angles, k_angles, run));
    LUTLLM_PROCESS("q_norm", norm_heads<D>(q_in, q_weights, q_normed, run.tokens * D::HEADS));
    LUTLLM_PROCESS("k_norm", norm_heads<D>(k_in, k_weights, k_normed, run.tokens * D::KV_HEADS));
    LUTLLM_PROCESS("q_rotary", rotate<D>(q_normed, q_angles, q, run.tokens, D::HEADS));
    LUTLLM_PROCESS("k_rotary", rotate<D>(k_normed, k_angles, k_turned, run.tokens, D::KV_HEADS));
    LUTLLM_PROCESS("deal_keys", deal_rows<D>(k_turned, k, run));
    LUTLLM_PROCESS("deal_values", deal_rows<D>(v_in, v, run));
}

// The normed residual, in `beats` beats, to every vocabulary port.
template <class D>
void spread_vector(typename D::beats& in, typename D::beats (&out)[D::VOCAB_PORTS], int beats) {
spread_loop:
    for (int b = 0; b < beats; b++) {
#pragma HLS PIPELINE II=1
        const typename D::beat_t beat = in.read();
        for (int p = 0; p < D::VOCAB_PORTS; p++) {
#pragma HLS UNROLL
            out[p].write(beat);
        }
    }
}

// Logits of the words behind one port: a stored beat a cycle, summed as in rms_norm.h.
template <class D>
void score_words(const typename D::beat_t* rows, typename D::beats& in, typename D::floats& logits,
                 int words) {
    constexpr int VALUES = D::AXI_BITS / D::HEAD_BITS;
    constexpr int ROW_BEATS = D::HEAD_ROW_BEATS;
    constexpr int PARTIALS = 8;
    float x[ROW_BEATS][VALUES], partial[PARTIALS];
#pragma HLS ARRAY_PARTITION variable=x type=complete dim=2
#pragma HLS ARRAY_PARTITION variable=partial type=complete
    int part = 0, row = 0;
vector_loop:
    for (int b = 0; b < ROW_BEATS * VALUES / D::FLOATS; b++) {
#pragma HLS PIPELINE II=1
        typename D::beat_t raw = 0;
        if (b < D::HIDDEN_BEATS) raw = in.read();
        const typename D::floats_t values(raw);
        for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
            x[row][part * D::FLOATS + j] = values.value[j];
        }
        if (advance(part, VALUES / D::FLOATS)) row++;
    }
    int beat = 0, slot = 0;
word_loop:
    for (int i = 0; i < words * ROW_BEATS; i++) {
#pragma HLS PIPELINE II=1
        const typename D::beat_t raw = rows[i];
        float products[VALUES];
        for (int j = 0; j < VALUES; j++) {
#pragma HLS UNROLL
            const int low = j * D::HEAD_BITS;
            const float weight =
                stored_to_float<D::HEAD_BITS, D::HEAD_BF16>(raw.range(low + D::HEAD_BITS - 1, low));
            products[j] = x[beat][j] * weight;
        }
        const float sum = TreeSum<VALUES>::of(products);
        partial[slot] = beat < PARTIALS ? sum : partial[slot] + sum;
        advance(slot, PARTIALS);
        if (advance(beat, ROW_BEATS)) {
            float used[PARTIALS];
            for (int p = 0; p < PARTIALS; p++) {
#pragma HLS UNROLL
                used[p] = p < ROW_BEATS ? partial[p] : 0.0f;
            }
            logits.write(TreeSum<PARTIALS>::of(used));
            slot = 0;
        }
    }
}

// Logits in the order of the words to memory, and the word of the largest, the lowest of equals.
template <class D>
void choose_word(typename D::floats (&in)[D::VOCAB_PORTS], typename D::beat_t* logits,
                 int& chosen) {
    float best = 0.0f;
    int word = 0, port = 0, lane = 0, at = 0;
    typename D::floats_t packed;
choose_loop:
    for (int i = 0; i < D::LOGIT_BEATS * D::FLOATS; i++) {
#pragma HLS PIPELINE II=1
        float logit = 0.0f;
        if (i < D::VOCAB_SIZE) {
        port_loop:
            for (int p = 0; p < D::VOCAB_PORTS; p++) {
#pragma HLS UNROLL
                if (p == port) logit = in[p].read();
            }
            if (i == 0 || logit > best) {
                best = logit;
                word = i;
            }
        }
        packed.value[lane] = logit;
        if (advance(lane, D::FLOATS)) logits[at++] = packed.pack();
        advance(port, D::VOCAB_PORTS);
    }
    chosen = word;
}

}  // namespace lutllm
