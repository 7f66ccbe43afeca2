// word_rows.h: rows of words in memory, of the embedding and of a head of stored floats, and the choice
// of the largest logit.
//
// Rows lie in turn behind VOCAB_PORTS ports. A row begins on a beat.
#pragma once

#include "decoder_steps.h"

namespace lutllm {

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
void embed_word(hls::burst_maxi<typename D::beat_t> rows, int base, typename D::word_t* hidden) {
    constexpr int PER_BEAT = 32 / D::EMBED_BITS;  // beats of float32 from a stored beat
    constexpr bool SCALED = D::EMBED_BITS == 8;
    constexpr int STORED_BEATS = ceil_div(D::HIDDEN_BEATS, PER_BEAT);
    if (SCALED) rows.read_request(base + D::EMBED_ROW_BEATS - 1, 1);
    rows.read_request(base, STORED_BEATS);
    const float scale = SCALED ? row_scale<D>(rows.read()) : 1.0f;
    typename D::beat_t stored = 0;
    int part = 0;
embed_loop:
    for (int b = 0; b < D::wide::HIDDEN_BEATS * D::VECTOR_LANES; b++) {
#pragma HLS PIPELINE II=1
        if (part == 0 && b < D::HIDDEN_BEATS) stored = rows.read();
        typename D::floats_t values;
    lane_loop:
        for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
            const int low = (part * D::FLOATS + j) * D::EMBED_BITS;
            const float value = stored_to_float<D::EMBED_BITS, D::EMBED_BF16>(
                stored.range(low + D::EMBED_BITS - 1, low));
            const bool used = b * D::FLOATS + j < D::HIDDEN_SIZE;  // behind it may lie the scale
            values.value[j] = !used ? 0.0f : SCALED ? value * scale : value;
        }
        hidden[b / D::VECTOR_LANES][b % D::VECTOR_LANES] = values.pack();
        advance(part, PER_BEAT);
    }
}

// A vector of words in beats.
template <class D>
void narrow_vector(typename D::wide::beats& in, typename D::beats& out) {
    typename D::word_t word;
    int lane = 0;
narrow_loop:
    for (int b = 0; b < D::wide::HIDDEN_BEATS * D::VECTOR_LANES; b++) {
#pragma HLS PIPELINE II=1
        if (lane == 0) write_word(word, in.read());
        if (b < D::HIDDEN_BEATS) out.write(word[lane]);
        advance(lane, D::VECTOR_LANES);
    }
}

// The vector that the head multiplies, in `beats` beats, to every vocabulary port.
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
void score_words(hls::burst_maxi<typename D::beat_t> rows, typename D::beats& in,
                 typename D::floats& logits, int words) {
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
    rows.read_request(0, words * ROW_BEATS);
word_loop:
    for (int i = 0; i < words * ROW_BEATS; i++) {
#pragma HLS PIPELINE II=1
        const typename D::beat_t raw = rows.read();
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

// A word and its logit, or none.
struct Choice {
    float logit;
    int word;
};

// The word of the largest of N logits, the lowest of equals; `first` is the word of logits[0].
template <int N>
struct LargestOf {
    static Choice of(const float* logits, int first) {
#pragma HLS INLINE
        const Choice low = LargestOf<(N + 1) / 2>::of(logits, first);
        const Choice high = LargestOf<N / 2>::of(logits + (N + 1) / 2, first + (N + 1) / 2);
        return high.logit > low.logit ? high : low;
    }
};
template <>
struct LargestOf<1> {
    static Choice of(const float* logits, int first) {
#pragma HLS INLINE
        Choice choice;
        choice.logit = logits[0];
        choice.word = first;
        return choice;
    }
};

constexpr int common_divisor(int a, int b) {
    for (int rest = 0; b != 0; b = rest) {
        rest = a % b;
        a = b;
    }
    return a;
}

// Logits in the order of the words to memory, and the word of the largest, the lowest of equals.
// Words of CHOICES neighbouring ports at a time, so that many ports are not kept waiting.
template <class D>
void choose_word(typename D::floats (&in)[D::VOCAB_PORTS], typename D::beat_t* logits,
                 int& chosen) {
    constexpr int CHOICES = common_divisor(D::FLOATS, D::VOCAB_PORTS);
    Choice best;
    int port = 0, lane = 0, at = 0;
    typename D::floats_t packed;
choose_loop:
    for (int i = 0; i < D::LOGIT_BEATS * D::FLOATS; i += CHOICES) {
#pragma HLS PIPELINE II=1
        float found[CHOICES];
    logit_loop:
        for (int j = 0; j < CHOICES; j++) {
#pragma HLS UNROLL
            float logit = 0.0f;
            for (int p = j; p < D::VOCAB_PORTS; p += CHOICES) {
#pragma HLS UNROLL
                if (p == port + j && i + j < D::VOCAB_SIZE) logit = in[p].read();
            }
            found[j] = i + j < D::VOCAB_SIZE ? logit : NO_SCORE;
            packed.value[lane + j] = logit;
        }
        const Choice largest = LargestOf<CHOICES>::of(found, i);
        if (i == 0 || largest.logit > best.logit) best = largest;
        lane += CHOICES;
        if (lane == D::FLOATS) {
            logits[at++] = packed.pack();
            lane = 0;
        }
        port = port + CHOICES == D::VOCAB_PORTS ? 0 : port + CHOICES;
    }
    chosen = best.word;
}

}  // namespace lutllm
