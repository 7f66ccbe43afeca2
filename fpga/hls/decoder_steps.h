// decoder_steps.h: the steps of a decoder beside its LUT linear engines.
//
// Engines and steps form a ring of streams of float32 words, VECTOR_LANES beats each:
//
//   engine -> pack -> deal -+-> residual -> norm ----------------------+-> inputs -> engine
//                           +-> queries, keys, values -> attention ----+
//                           +-> gate, up -> SwiGLU --------------------+
//
// Every process runs through all layers at its own pace: what an engine gives of one token is
// added, normed and on its way back while it still gives that of the next. Many tokens pass the
// layers in two parts, so that the engines work on one while the steps work on the other (TURNS).
//
// A vector starts on a word. The residual `hidden` and the attended heads lie on chip, in buffers
// with a bank for every beat: heads, which attention takes a beat at a time, are written as such.
#pragma once

#include "attention.h"
#include "lut_linear.h"
#include "rms_norm.h"
#include "rotary.h"
#include "swiglu.h"

// A simulation may look at what enters each projection: word `at` of a token's vector.
#ifndef LUTLLM_TRACE
#define LUTLLM_TRACE(projection, layer, at, word)
#endif

namespace lutllm {

enum Projection { QKV = 0, O = 1, GATE_UP = 2, DOWN = 3, HEAD = 4 };

// Tokens that pass the layers in one run: up to MAX_TOKENS in one part, more in two.
struct Parts {
    TokenRun part[2];
    int count;
};

// The order in which projections of the parts take their turns in a layer; `back`: of the layer so
// many before. The second part is half a layer behind the first, so that between two projections of
// a part there is always one of the other, and behind qkv, before attention is needed, a long one.
struct Turn {
    Projection projection;
    int part, back;
};
static const Turn TURNS[8] = {{QKV, 0, 0},     {DOWN, 1, 1}, {O, 0, 0},    {QKV, 1, 0},
                              {GATE_UP, 0, 0}, {O, 1, 0},    {DOWN, 0, 0}, {GATE_UP, 1, 0}};

// Turn number `at` of a run: all processes take them in this order.
struct Step {
    Projection projection;
    int part, layer;
    bool used;  // there is such a layer and such a part
    TokenRun run;

    Step(int at, int layers, const Parts& parts) {
#pragma HLS INLINE
        const Turn turn = TURNS[at % 8];
        projection = turn.projection;
        part = turn.part;
        layer = at / 8 - turn.back;
        used = layer >= 0 && layer < layers && part < parts.count;
        run = parts.part[part];
    }
    // Its results are added to the residual.
    bool adds() const { return used && (projection == O || projection == DOWN); }
    // The norm after that, counted from that of the first layer's input.
    int norm() const { return 2 * layer + (projection == O ? 1 : 2); }
};

// Where a projection of a layer is: which engine, and which linear of it.
struct Place {
    int engine, kind, slot;
};

// Results of a token: `count` vectors of `size` values, each of which starts on a word.
struct Sections {
    int size, count;
};

template <class C>
struct Model : Decoder<C> {
    typedef Decoder<C> Base;
    typedef typename Base::wide wide;          // the same in words
    typedef typename Banks<C>::word_t word_t;  // a word of a buffer
    static constexpr int QKV_HEADS = C::HEADS + 2 * C::KV_HEADS;
    static constexpr int ANGLE_BEATS = 2 * ceil_div(Base::HALF_DIM, Base::FLOATS);
    static constexpr int LOGIT_BEATS = ceil_div(C::VOCAB_SIZE, Base::FLOATS);
    static constexpr int CACHE_ROWS = ceil_div(C::CONTEXT, C::KV_PORTS);  // of a key head and port
    static constexpr int CACHE_BEATS = C::KV_HEADS * CACHE_ROWS * Base::HEAD_BEATS;  // of a layer
    static constexpr int FINAL_NORM = C::NORM_BASE + C::LAYERS * C::NORM_BEATS;
    static constexpr int NORMS = 2 * C::LAYERS + 1;  // of vectors, the final one last
    static constexpr int STEPS = 8 * (C::LAYERS + 1);  // the second part ends in a turn behind
    static constexpr int RUN_TOKENS = 2 * C::MAX_TOKENS;
    // Words of the coarse logits of a token.
    static constexpr int COARSE_WORDS = C::SLICES * ceil_div(C::SLICE_WIDTH, wide::FLOATS);
    // Beats of a stored row; int8 rows end in a float32 scale (int8_head.h).
    static constexpr int HEAD_ROW_BEATS =
        ceil_div(C::HIDDEN_SIZE * C::HEAD_BITS + (C::HEAD_BITS == 8 ? 32 : 0), C::AXI_BITS);
    static constexpr int EMBED_ROW_BEATS =
        ceil_div(C::HIDDEN_SIZE * C::EMBED_BITS + (C::EMBED_BITS == 8 ? 32 : 0), C::AXI_BITS);
    // Results that wait: the heads of a token, which move in words while attention takes beats;
    // gates until their ups are there, and those while wide words are gated in several cycles.
    typedef hls::stream<typename wide::beat_t, C::HEADS * wide::HEAD_BEATS> query_words;
    typedef hls::stream<typename wide::beat_t, C::KV_HEADS * wide::HEAD_BEATS> key_words;
    typedef hls::stream<typename wide::beat_t, wide::INTERMEDIATE_BEATS + 2> gate_words;
    // Inputs of a part that wait until the engine has taken one of the other part: as long as all
    // of them have room, an engine gets rid of its results whatever it takes next.
    typedef hls::stream<typename wide::beat_t, C::MAX_TOKENS * wide::HIDDEN_BEATS> normed_words;
    typedef hls::stream<typename wide::beat_t, C::MAX_TOKENS * wide::INTERMEDIATE_BEATS>
        gated_words;
    static_assert(C::HEAD_DIM % Base::FLOATS == 0, "heads are whole beats");

    // First beat of the norms of a layer's queries, then keys.
    static int head_norms(int layer) {
        return C::NORM_BASE + layer * C::NORM_BEATS + 2 * Base::HIDDEN_BEATS;
    }

    static Sections sections(Projection projection) {
        Sections out;
        out.size = projection == QKV       ? C::HEAD_DIM
                   : projection == GATE_UP ? C::INTERMEDIATE_SIZE
                                           : C::HIDDEN_SIZE;
        out.count = projection == QKV ? QKV_HEADS : projection == GATE_UP ? 2 : 1;
        return out;
    }
    static int input_words(Projection projection) {
        return projection == O      ? ceil_div(C::HEADS * Base::HEAD_BEATS, C::VECTOR_LANES)
               : projection == DOWN ? wide::INTERMEDIATE_BEATS
                                    : wide::HIDDEN_BEATS;
    }
};

// The parts of a run of up to RUN_TOKENS tokens.
template <class D>
Parts split_run(TokenRun run) {
    Parts parts;
    parts.count = run.tokens > D::MAX_TOKENS ? 2 : 1;
    parts.part[0] = parts.part[1] = run;
    if (parts.count > 1) {
        parts.part[0].tokens = (run.tokens + 1) / 2;
        parts.part[1].tokens = run.tokens / 2;
        parts.part[1].first = run.first + parts.part[0].tokens;
    }
    return parts;
}

// What an engine reads: vectors as they come, zero-padded to the words of a call.
template <class E, class D, class Words>
void send_vectors(Words& in, typename E::words& out, Step step, LinearCall call) {
    const int words = D::input_words(step.projection);
    int at = 0;
send_loop:
    for (int i = 0; i < call.tokens * call.in_words; i++) {
#pragma HLS PIPELINE II=1
        typename E::wide_t word = 0;
        if (at < words) word = in.read();
        LUTLLM_TRACE(step.projection, step.layer, at, word);
        out.write(word);
        advance(at, call.in_words);
    }
}

// Floats that pack_output moves in a cycle, where LANES results lie in words of WIDE floats and
// sections have `size`: the most that never straddle anything. Where that holds for all sections of
// a model it is a constant, and nothing needs to be shifted.
template <class E, class D>
int packing_unit(int size) {
#pragma HLS INLINE
    constexpr int WHOLE = E::LANES < E::WIDE_FLOATS ? E::LANES : E::WIDE_FLOATS;
    constexpr bool EVEN = E::LANES % WHOLE == 0 && E::WIDE_FLOATS % WHOLE == 0;
    constexpr bool ALWAYS = EVEN && D::HEAD_DIM % WHOLE == 0 && D::HIDDEN_SIZE % WHOLE == 0 &&
                            D::INTERMEDIATE_SIZE % WHOLE == 0;
    if (ALWAYS || (EVEN && size % WHOLE == 0)) return WHOLE;
    return E::LANES % E::FLOATS == 0 && size % E::FLOATS == 0 ? E::FLOATS : 1;
}

// `to` with `count` floats of `from`, from one place to another.
template <class E>
void move_floats(typename E::wide_t& to, int to_at, const typename E::wide_t& from, int from_at,
                 int count) {
#pragma HLS INLINE
move_loop:
    for (int j = 0; j < E::WIDE_FLOATS; j++) {
#pragma HLS UNROLL
        if (j < count) {
            const int low = 32 * (to_at + j), source = 32 * (from_at + j);
            to.range(low + 31, low) = from.range(source + 31, source);
        }
    }
}

// Results of an engine, [token][sub][LANES padded to words], to [token][section padded to words].
template <class E, class D>
void pack_output(typename E::words& in, typename D::wide::beats& out, Sections sections,
                 LinearCall call) {
    const int unit = packing_unit<E, D>(sections.size);
    const int steps = ceil_div(E::LANES, unit);
    typename E::wide_t word = 0, packed = 0;
    int sub = 0, step = 0, from = 0, to = 0, place = 0, section = 0;
pack_loop:
    for (int i = 0; i < call.tokens * call.subs * steps; i++) {
#pragma HLS PIPELINE II=1
        if (from == 0) word = in.read();
        if (sub == 0 && step == 0) section = 0;
        if (section < sections.count) {
            if (to == 0) packed = 0;
            move_floats<E>(packed, to, word, from, unit);
            place += unit;
            to = to + unit == E::WIDE_FLOATS ? 0 : to + unit;
            const bool ends = place == sections.size;
            if (ends || to == 0) {
                out.write(packed);
                to = 0;
            }
            if (ends) {
                place = 0;
                section++;
            }
        }
        from = from + unit == E::WIDE_FLOATS ? 0 : from + unit;
        if (advance(step, steps)) {
            from = 0;
            advance(sub, call.subs);
        }
    }
}

// The norms of all vectors from `constants`, so that a norm need not wait for a beat at a time:
// those of a layer's input and after attention, layer by layer, then the final one.
template <class D>
void load_norms(const typename D::beat_t* constants, typename D::word_t* norms) {
    typedef typename D::wide V;
    constexpr int STEPS = V::HIDDEN_BEATS * D::VECTOR_LANES;
    int from = D::NORM_BASE, step = 0, lane = 0, at = 0, of_layer = 0;
load_loop:
    for (int i = 0; i < D::NORMS * STEPS; i++) {
#pragma HLS PIPELINE II=1
        norms[at][lane] = step < D::HIDDEN_BEATS ? constants[from + step] : typename D::beat_t(0);
        if (advance(lane, D::VECTOR_LANES)) at++;
        if (advance(step, STEPS)) {
            const bool next_layer = advance(of_layer, 2);
            from += next_layer ? D::NORM_BEATS - D::HIDDEN_BEATS : D::HIDDEN_BEATS;
        }
    }
}

template <class D>
void load_words(const typename D::word_t* from, typename D::wide::beats& out, int count) {
load_loop:
    for (int i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
        out.write(read_word(from[i]));
    }
}

template <class D>
void forward_words(typename D::wide::beats& in, typename D::wide::beats& out, int count) {
forward_loop:
    for (int i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
        out.write(in.read());
    }
}

template <class D, class Words>
void store_words(Words& in, typename D::word_t* to, int count) {
store_loop:
    for (int i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
        write_word(to[i], in.read());
    }
}

// Heads of tokens: those of the queries, keys, values.
template <class D>
void deal_heads(typename D::wide::beats& in, typename D::query_words& q, typename D::key_words& k,
                typename D::key_words& v, int tokens) {
    constexpr int KEYS = D::HEADS * D::wide::HEAD_BEATS;
    constexpr int VALUES = KEYS + D::KV_HEADS * D::wide::HEAD_BEATS;
    constexpr int ALL = VALUES + D::KV_HEADS * D::wide::HEAD_BEATS;
    int at = 0;
heads_loop:
    for (int i = 0; i < tokens * ALL; i++) {
#pragma HLS PIPELINE II=1
        const typename D::wide::beat_t word = in.read();
        if (at < KEYS)
            q.write(word);
        else if (at < VALUES)
            k.write(word);
        else
            v.write(word);
        advance(at, ALL);
    }
}

// Gates of a token, then its ups.
template <class D>
void deal_gates(typename D::wide::beats& in, typename D::gate_words& gate,
                typename D::gate_words& up, int tokens) {
    constexpr int GATES = D::wide::INTERMEDIATE_BEATS;
    int at = 0;
gate_loop:
    for (int i = 0; i < tokens * 2 * GATES; i++) {
#pragma HLS PIPELINE II=1
        const typename D::wide::beat_t word = in.read();
        if (at < GATES)
            gate.write(word);
        else
            up.write(word);
        advance(at, 2 * GATES);
    }
}

// Results of the projections to the steps that take them.
template <class D>
void deal_results(typename D::wide::beats& in, typename D::wide::beats& added,
                  typename D::query_words& q, typename D::key_words& k, typename D::key_words& v,
                  typename D::gate_words& gate, typename D::gate_words& up, Parts parts) {
step_loop:
    for (int i = 0; i < D::STEPS; i++) {
        const Step step(i, D::LAYERS, parts);
        if (!step.used) continue;
        if (step.projection == QKV)
            deal_heads<D>(in, q, k, v, step.run.tokens);
        else if (step.projection == GATE_UP)
            deal_gates<D>(in, gate, up, step.run.tokens);
        else
            forward_words<D>(in, added, step.run.tokens * D::wide::HIDDEN_BEATS);
    }
}

// Vectors that go on behind a step that adds to the residual: all, or behind the last layer that of
// the last token, with `head`.
template <class D>
int vectors_normed(const Step& step, const Parts& parts, bool head) {
#pragma HLS INLINE
    if (step.norm() + 1 < D::NORMS) return step.run.tokens;
    return head && step.part + 1 == parts.count ? 1 : 0;
}

// The residual of a part; with `add`, after results were added to it. The last `vectors` go on.
template <class D>
void add_vectors(typename D::word_t* hidden, typename D::wide::beats& added, bool add,
                 typename D::wide::beats& out, int tokens, int vectors) {
    typedef typename D::wide V;
residual_loop:
    for (int i = 0; i < tokens * V::HIDDEN_BEATS; i++) {
#pragma HLS PIPELINE II=1
        typename V::floats_t sum(read_word(hidden[i]));
        if (add) {
            const typename V::floats_t other(added.read());
        lane_loop:
            for (int j = 0; j < V::FLOATS; j++) {
#pragma HLS UNROLL
                sum.value[j] = sum.value[j] + other.value[j];
            }
        }
        const typename V::beat_t word = sum.pack();
        write_word(hidden[i], word);
        if (i >= (tokens - vectors) * V::HIDDEN_BEATS) out.write(word);
    }
}

// The residual for every norm: of the embeddings, then whenever results were added to it.
template <class D>
void add_results(typename D::word_t* hidden, typename D::wide::beats& added,
                 typename D::wide::beats& out, Parts parts, bool head) {
    const int second = parts.part[0].tokens * D::wide::HIDDEN_BEATS;  // where its words lie
part_loop:
    for (int p = 0; p < parts.count; p++) {
        const int tokens = parts.part[p].tokens;
        add_vectors<D>(hidden + (p ? second : 0), added, false, out, tokens, tokens);
    }
step_loop:
    for (int i = 0; i < D::STEPS; i++) {
        const Step step(i, D::LAYERS, parts);
        if (!step.adds()) continue;
        add_vectors<D>(hidden + (step.part ? second : 0), added, true, out, step.run.tokens,
                       vectors_normed<D>(step, parts, head));
    }
}

// A norm of some vectors. norm: the words of its weights.
template <class D>
void normalize(const typename D::word_t* norm, typename D::wide::beats& in,
               typename D::normed_words& out, int vectors) {
#pragma HLS DATAFLOW
    typedef typename D::wide V;
    typename V::beats weights("weights");
    LUTLLM_REGION;
    LUTLLM_PROCESS("weights", load_words<D>(norm, weights, vectors ? V::HIDDEN_BEATS : 0));
    LUTLLM_PROCESS("norm", (rms_norm<V, V::HIDDEN_BEATS>(in, weights, out, vectors, V::HIDDEN_BEATS,
                                                         D::HIDDEN_SIZE, D::EPS)));
}

// All norms of vectors in turn, with `head` the final one of the last token.
template <class D>
void norm_vectors(const typename D::word_t* norms, typename D::wide::beats& in,
                  typename D::normed_words& out, Parts parts, bool head) {
part_loop:
    for (int p = 0; p < parts.count; p++) {
        normalize<D>(norms, in, out, parts.part[p].tokens);
    }
step_loop:
    for (int i = 0; i < D::STEPS; i++) {
        const Step step(i, D::LAYERS, parts);
        if (!step.adds()) continue;
        normalize<D>(norms + step.norm() * D::wide::HIDDEN_BEATS, in, out,
                     vectors_normed<D>(step, parts, head));
    }
}

// silu(gate) * up, of all tokens and layers.
template <class D>
void activate(typename D::gate_words& gate, typename D::gate_words& up,
              typename D::gated_words& out, Parts parts) {
    const int tokens = parts.part[0].tokens + (parts.count > 1 ? parts.part[1].tokens : 0);
    swiglu<typename D::wide>(gate, up, out, D::LAYERS * tokens * D::wide::INTERMEDIATE_BEATS);
}

// Heads in words, each from a word on, to beats.
template <class D, class Words>
void narrow_heads(Words& in, typename D::beats& out, int heads) {
    typename D::word_t word;
    int beat = 0;
narrow_loop:
    for (int i = 0; i < heads * D::HEAD_BEATS; i++) {
#pragma HLS PIPELINE II=1
        const int lane = beat % D::VECTOR_LANES;
        if (lane == 0) write_word(word, in.read());
        out.write(word[lane]);
        advance(beat, D::HEAD_BEATS);
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

// What a layer's attention works on: results -> norm -> rotary -> queries, and keys and values by
// the port that caches them.
template <class D>
void prepare_heads(typename D::query_words& q_words, typename D::key_words& k_words,
                   typename D::key_words& v_words, const typename D::beat_t* constants,
                   typename D::beats& q, typename D::beats (&k)[D::KV_PORTS],
                   typename D::beats (&v)[D::KV_PORTS], TokenRun run, int layer) {
#pragma HLS DATAFLOW
    typename D::beats q_in("q_in"), k_in("k_in"), v_in("v_in");
    typename D::beats q_weights("q_weights"), k_weights("k_weights");
    typename D::beats q_angles("q_angles"), k_angles("k_angles");
    typename D::beats q_normed("q_normed"), k_normed("k_normed"), k_turned("k_turned");
    LUTLLM_REGION;
    LUTLLM_PROCESS("queries", narrow_heads<D>(q_words, q_in, run.tokens * D::HEADS));
    LUTLLM_PROCESS("keys", narrow_heads<D>(k_words, k_in, run.tokens * D::KV_HEADS));
    LUTLLM_PROCESS("values", narrow_heads<D>(v_words, v_in, run.tokens * D::KV_HEADS));
    LUTLLM_PROCESS("angles", read_angles<D>(constants, D::head_norms(layer), q_weights, k_weights,
                                            q_angles, k_angles, run));
    LUTLLM_PROCESS("q_norm", norm_heads<D>(q_in, q_weights, q_normed, run.tokens * D::HEADS));
    LUTLLM_PROCESS("k_norm", norm_heads<D>(k_in, k_weights, k_normed, run.tokens * D::KV_HEADS));
    LUTLLM_PROCESS("q_rotary", rotate<D>(q_normed, q_angles, q, run.tokens, D::HEADS));
    LUTLLM_PROCESS("k_rotary", rotate<D>(k_normed, k_angles, k_turned, run.tokens, D::KV_HEADS));
    LUTLLM_PROCESS("deal_keys", deal_rows<D>(k_turned, k, run));
    LUTLLM_PROCESS("deal_values", deal_rows<D>(v_in, v, run));
}

}  // namespace lutllm
