// rms_norm.h: x / sqrt(mean(x^2) + eps) * weight, for vectors and for heads.
//
// The sum has one order, however many beats move at once: a tree over the floats of a memory beat,
// NORM_PARTIALS interleaved sums of beats, a tree over those.
#pragma once

#include <math.h>

#include "decoder.h"

namespace lutllm {

// Interleaved sums: as many as the widest word has beats, eight times over, so that an addition has
// eight cycles until its sum is needed again.
constexpr int NORM_PARTIALS = 64;

struct NormPartials {
    float value[NORM_PARTIALS];
};

// Passes the vectors on and gives the partial sums of squares of each.
template <class D, class Held, class Sums>
void square_vectors(typename D::beats& in, Held& out, Sums& sums, int vectors, int beats) {
    constexpr int SLOTS = NORM_PARTIALS / D::LANES;
    static_assert(SLOTS >= 8, "additions take their time");
    float partial[SLOTS][D::LANES];
#pragma HLS ARRAY_PARTITION variable=partial type=complete dim=0
    int beat = 0, slot = 0;
square_loop:
    for (int i = 0; i < vectors * beats; i++) {
#pragma HLS PIPELINE II=1
        const typename D::beat_t raw = in.read();
        const typename D::floats_t x(raw);
        out.write(raw);
    lane_loop:
        for (int l = 0; l < D::LANES; l++) {
#pragma HLS UNROLL
            float squares[D::LANE_FLOATS];
            for (int j = 0; j < D::LANE_FLOATS; j++) {
#pragma HLS UNROLL
                const float value = x.value[l * D::LANE_FLOATS + j];
                squares[j] = value * value;
            }
            const float sum = TreeSum<D::LANE_FLOATS>::of(squares);
            partial[slot][l] = beat < SLOTS ? sum : partial[slot][l] + sum;
        }
        advance(slot, SLOTS);
        if (advance(beat, beats)) {
            NormPartials found;
        partial_loop:
            for (int p = 0; p < NORM_PARTIALS; p++) {
#pragma HLS UNROLL
                found.value[p] = p / D::LANES < beats ? partial[p / D::LANES][p % D::LANES] : 0.0f;
            }
            sums.write(found);
            slot = 0;
        }
    }
}

// 1 / sqrt(mean(x^2) + eps) of each vector; padding is zero, so `size` alone tells it. INTERVAL: the
// cycles of a vector, over which the operators are shared.
template <class D, int INTERVAL, class Sums>
void norm_factors(Sums& sums, typename D::floats& factors, int vectors, float size, float eps) {
factor_loop:
    for (int i = 0; i < vectors; i++) {
#pragma HLS PIPELINE II=INTERVAL
        const NormPartials partials = sums.read();
        const float sum = TreeSum<NORM_PARTIALS>::of(partials.value);
        factors.write(1.0f / sqrtf(sum / size + eps));
    }
}

// x * factor * weight. weights: the beats of one vector, kept after the first.
template <class D, int MAX_BEATS, class Held, class Normed>
void apply_norm(Held& in, typename D::floats& factors, typename D::beats& weights, Normed& out,
                int vectors, int beats) {
    typename D::beat_t kept[MAX_BEATS];
    float factor = 0.0f;
    int beat = 0, vector = 0;
norm_loop:
    for (int i = 0; i < vectors * beats; i++) {
#pragma HLS PIPELINE II=1
        if (beat == 0) factor = factors.read();
        const typename D::beat_t raw = vector == 0 ? weights.read() : kept[beat];
        if (vector == 0) kept[beat] = raw;
        const typename D::floats_t weight(raw);
        typename D::floats_t x(in.read());
    scale_loop:
        for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
            x.value[j] = x.value[j] * factor * weight.value[j];
        }
        out.write(x.pack());
        if (advance(beat, beats)) vector++;
    }
}

// in, out: `vectors` vectors of `beats` beats, at most MAX_BEATS; `size` values count.
template <class D, int MAX_BEATS, class Normed>
void rms_norm(typename D::beats& in, typename D::beats& weights, Normed& out, int vectors,
              int beats, float size, float eps) {
#pragma HLS DATAFLOW
    constexpr int INTERVAL = MAX_BEATS < 8 ? MAX_BEATS : 8;
    hls::stream<typename D::beat_t, MAX_BEATS + 32> held("held");
    hls::stream<NormPartials, 2> sums("sums");
    typename D::floats factors("factors");
    LUTLLM_REGION;
    LUTLLM_PROCESS("squares", square_vectors<D>(in, held, sums, vectors, beats));
    LUTLLM_PROCESS("factors", (norm_factors<D, INTERVAL>(sums, factors, vectors, size, eps)));
    LUTLLM_PROCESS("apply", apply_norm<D, MAX_BEATS>(held, factors, weights, out, vectors, beats));
}

}  // namespace lutllm
