// screened_head.h: a head of int8 rows behind a LUT linear that says which rows matter.
//
//   x -> engine, slice by slice -> coarse logits -> buffer, and their largest
//   buffer -> words near the largest -> their rows, behind every port -> exact logits
//
// A word is near where its coarse logit is at least the largest less HEAD_MARGIN, in float32. The
// logit of a word is the exact one where it is near, else the coarse one (lutllm/int8_rows.py
// `screen`). Coarse logits go to memory as they come; a beat that holds a near word goes again.
#pragma once

#include "int8_head.h"

namespace lutllm {

constexpr int NO_WORD = -1;  // behind the last one

template <class D>
struct Screen {
    typedef typename D::wide V;
    static constexpr int SLICE_WORDS = D::SLICE_WIDTH / V::FLOATS;
    static constexpr int COARSE_WORDS = D::COARSE_WORDS;
    static constexpr int LOGIT_WORDS = ceil_div(D::VOCAB_SIZE, V::FLOATS);
    static constexpr int PORT_ROWS = ceil_div(D::VOCAB_SIZE, D::VOCAB_PORTS);
    static constexpr int ROWS_AHEAD = 4;  // requests of a port under way
    // A word of coarse logits that holds near ones; the last one holds none.
    struct near_t {
        typename V::beat_t logits;
        ap_uint<V::FLOATS> mask;
        int at;
    };
    // A near word and the beat of coarse logits it is in.
    struct pick_t {
        typename D::beat_t logits;
        int word;
    };
    typedef hls::stream<typename V::beat_t, SLICE_WORDS + 2> slice_words;
    typedef hls::stream<near_t, 4> nears;
    // As many words on their way as keep every port busy.
    typedef hls::stream<pick_t, max_of(64, 8 * D::VOCAB_PORTS)> picks;
    typedef hls::stream<int, 16> rows;
    typedef hls::stream<Choice, 2> choices;
    static_assert(D::SLICE_WIDTH % V::FLOATS == 0, "slices are whole words");
    static_assert(COARSE_WORDS >= LOGIT_WORDS, "slices hold the vocabulary");
};

// The input of every slice: the vector, zero-padded to the words of a call.
template <class E, class D>
void send_slices(const typename D::word_t* x, typename E::words& out, LinearCall call) {
    int at = 0;
slice_loop:
    for (int i = 0; i < D::SLICES * call.in_words; i++) {
#pragma HLS PIPELINE II=1
        typename E::wide_t word = 0;
        if (at < D::wide::HIDDEN_BEATS) word = read_word(x[at]);
        if (i < call.in_words) {
            LUTLLM_TRACE(HEAD, D::LAYERS, at, word);
        }
        out.write(word);
        advance(at, call.in_words);
    }
}

// Coarse logits in words.
template <class E, class D>
void take_slices(typename E::words& in, typename D::wide::beats& out, LinearCall call) {
    Sections slice;
    slice.size = D::SLICE_WIDTH;
    slice.count = 1;
slice_loop:
    for (int s = 0; s < D::SLICES; s++) {
        pack_output<E, D>(in, out, slice, call);
    }
}

// The floats of word `at` of the coarse logits; NO_SCORE behind the vocabulary.
template <class D>
void coarse_logits(const typename D::wide::beat_t& word, int at, float (&out)[D::wide::FLOATS]) {
#pragma HLS INLINE
    const typename D::wide::floats_t values(word);
logit_loop:
    for (int j = 0; j < D::wide::FLOATS; j++) {
#pragma HLS UNROLL
        out[j] = at * D::wide::FLOATS + j < D::VOCAB_SIZE ? values.value[j] : NO_SCORE;
    }
}

// Coarse logits to a buffer and on, and the least that is near their largest; nothing without `head`.
template <class D>
void keep_coarse(typename D::wide::beats& in, typename D::word_t* coarse,
                 typename Screen<D>::slice_words& out, float& least, bool head) {
    typedef typename D::wide V;
    float most = NO_SCORE;
keep_loop:
    for (int w = 0; w < (head ? Screen<D>::COARSE_WORDS : 0); w++) {
#pragma HLS PIPELINE II=1
        const typename V::beat_t word = in.read();
        write_word(coarse[w], word);
        if (w < Screen<D>::LOGIT_WORDS) out.write(word);
        float logits[V::FLOATS];
        coarse_logits<D>(word, w, logits);
        const float largest = LargestOf<V::FLOATS>::of(logits, 0).logit;
        if (largest > most) most = largest;
    }
    least = most - D::HEAD_MARGIN;
}

// To memory, a beat a cycle.
template <class D>
void write_coarse(typename Screen<D>::slice_words& in, typename D::beat_t* logits, bool head) {
    typename D::word_t word;
    int lane = 0;
write_loop:
    for (int b = 0; b < (head ? D::LOGIT_BEATS : 0); b++) {
#pragma HLS PIPELINE II=1
        if (lane == 0) write_word(word, in.read());
        logits[b] = word[lane];
        advance(lane, D::VECTOR_LANES);
    }
}

// Words of coarse logits that hold near words, and the largest of all that are not near.
template <class D>
void find_near(const typename D::word_t* coarse, float least, typename Screen<D>::nears& out,
               typename Screen<D>::choices& far) {
    typedef typename D::wide V;
    Choice best;
    best.logit = NO_SCORE;
    best.word = D::VOCAB_SIZE;
    typename Screen<D>::near_t found;
find_loop:
    for (int w = 0; w < Screen<D>::LOGIT_WORDS; w++) {
#pragma HLS PIPELINE II=1
        found.logits = read_word(coarse[w]);
        found.at = w;
        float logits[V::FLOATS];
        coarse_logits<D>(found.logits, w, logits);
    near_loop:
        for (int j = 0; j < V::FLOATS; j++) {
#pragma HLS UNROLL
            const bool near = w * V::FLOATS + j < D::VOCAB_SIZE && logits[j] >= least;
            found.mask.range(j, j) = near;
            if (near) logits[j] = NO_SCORE;
        }
        if (found.mask != 0) out.write(found);
        const Choice largest = LargestOf<V::FLOATS>::of(logits, w * V::FLOATS);
        if (largest.logit > best.logit) best = largest;
    }
    found.mask = 0;
    out.write(found);
    far.write(best);
}

// Near words one by one, to the port that has the row and to whoever waits for the logit.
template <class D>
void pick_words(typename Screen<D>::nears& in, typename Screen<D>::rows (&rows)[D::VOCAB_PORTS],
                typename Screen<D>::picks& out) {
    typedef typename D::wide V;
    typename Screen<D>::near_t near;
    typename Screen<D>::pick_t pick;
    near.mask = 0;
pick_loop:
    for (int i = 0; i <= D::VOCAB_SIZE; i++) {
#pragma HLS PIPELINE II=1
        if (near.mask == 0) near = in.read();
        if (near.mask == 0) break;
        int lane = 0;
    lane_loop:
        for (int j = V::FLOATS - 1; j >= 0; j--) {
#pragma HLS UNROLL
            if (near.mask.range(j, j) == 1) lane = j;
        }
        near.mask.range(lane, lane) = 0;
        const int low = lane / D::FLOATS * D::AXI_BITS;
        pick.word = near.at * V::FLOATS + lane;
        pick.logits = near.logits.range(low + D::AXI_BITS - 1, low);
    port_loop:
        for (int p = 0; p < D::VOCAB_PORTS; p++) {
#pragma HLS UNROLL
            if (pick.word % D::VOCAB_PORTS == p) rows[p].write(pick.word / D::VOCAB_PORTS);
        }
        out.write(pick);
    }
    pick.word = NO_WORD;
    out.write(pick);
end_loop:
    for (int p = 0; p < D::VOCAB_PORTS; p++) {
#pragma HLS UNROLL
        rows[p].write(NO_WORD);
    }
}

// Logits of the rows of one port that are asked for: a stored beat a cycle, ROWS_AHEAD requests
// under way, so that a row's latency hides behind the rows before it.
template <class D>
void score_near_words(hls::burst_maxi<typename D::beat_t> rows, typename D::beats& in,
                      typename Screen<D>::rows& wanted, typename D::floats& logits) {
    typename Int8Vector<D>::codes_t x[D::HEAD_ROW_BEATS];
#pragma HLS BIND_STORAGE variable=x type=RAM_2P impl=BRAM
    const float token_scale = hold_vector<D>(in, x);
    int under_way = 0, beat = 0, total = 0;
    bool end = false;
beat_loop:
    for (int i = 0; i <= Screen<D>::PORT_ROWS * D::HEAD_ROW_BEATS; i++) {
#pragma HLS PIPELINE II=1
        const bool room = under_way < Screen<D>::ROWS_AHEAD;
        if (!end && (under_way == 0 || (room && !wanted.empty()))) {
            const int row = wanted.read();
            end = row == NO_WORD;
            if (!end) {
                rows.read_request(row * D::HEAD_ROW_BEATS, D::HEAD_ROW_BEATS);
                under_way++;
            }
        }
        if (under_way == 0) break;
        const typename D::beat_t raw = rows.read();
        if (score_beat<D>(raw, x, token_scale, beat, total, logits)) under_way--;
    }
}

// Exact logits in place of the coarse ones in memory, and the word of the largest of all logits,
// the lowest of equals.
template <class D>
void settle_words(typename Screen<D>::picks& picks, typename D::floats (&exact)[D::VOCAB_PORTS],
                  typename Screen<D>::choices& far, typename D::beat_t* logits, int& chosen) {
    Choice best;
    best.logit = NO_SCORE;
    best.word = D::VOCAB_SIZE;
    typename D::floats_t packed;
    int at = NO_WORD;  // the beat in `packed`
settle_loop:
    for (int i = 0; i <= D::VOCAB_SIZE; i++) {
#pragma HLS PIPELINE II=1
        const typename Screen<D>::pick_t pick = picks.read();
        const int beat = pick.word / D::FLOATS;
        const bool end = pick.word == NO_WORD;
        if (at != NO_WORD && (end || beat != at)) logits[at] = packed.pack();
        if (end) break;
        if (beat != at) packed = typename D::floats_t(pick.logits);
        at = beat;
        float logit = 0.0f;
    port_loop:
        for (int p = 0; p < D::VOCAB_PORTS; p++) {
#pragma HLS UNROLL
            if (pick.word % D::VOCAB_PORTS == p) logit = exact[p].read();
        }
        packed.value[pick.word % D::FLOATS] = logit;
        if (logit > best.logit) {
            best.logit = logit;
            best.word = pick.word;
        }
    }
    const Choice other = far.read();
    const bool is_other =
        other.logit > best.logit || (other.logit == best.logit && other.word < best.word);
    chosen = is_other ? other.word : best.word;
}

}  // namespace lutllm
