// rms_norm.h: x / sqrt(mean(x^2) + eps) * weight, for vectors and for heads.
#pragma once

#include <math.h>

#include "decoder.h"

namespace lutllm {

// Passes the vectors on and gives 1 / sqrt(mean(x^2) + eps) of each. Padding is zero, so `size`
// alone tells it. The beats of a vector are summed in PARTIALS interleaved sums.
template <class D, class Held>
void norm_factors(typename D::beats& in, Held& out, typename D::floats& factors, int vectors,
                  int beats, float size, float eps) {
    constexpr int PARTIALS = 8;
    float partial[PARTIALS];
#pragma HLS ARRAY_PARTITION variable=partial type=complete
    int beat = 0, slot = 0;
factor_loop:
    for (int i = 0; i < vectors * beats; i++) {
#pragma HLS PIPELINE II=1
        const typename D::beat_t raw = in.read();
        const typename D::floats_t x(raw);
        out.write(raw);
        float squares[D::FLOATS];
    square_loop:
        for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
            squares[j] = x.value[j] * x.value[j];
        }
        const float sum = TreeSum<D::FLOATS>::of(squares);
        partial[slot] = beat < PARTIALS ? sum : partial[slot] + sum;
        advance(slot, PARTIALS);
        if (advance(beat, beats)) {
            float used[PARTIALS];
        used_loop:
            for (int p = 0; p < PARTIALS; p++) {
#pragma HLS UNROLL
                used[p] = p < beats ? partial[p] : 0.0f;
            }
            factors.write(1.0f / sqrtf(TreeSum<PARTIALS>::of(used) / size + eps));
            slot = 0;
        }
    }
}

// x * factor * weight. weights: the beats of one vector, kept after the first.
template <class D, int MAX_BEATS, class Held>
void apply_norm(Held& in, typename D::floats& factors, typename D::beats& weights,
                typename D::beats& out, int vectors, int beats) {
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
template <class D, int MAX_BEATS>
void rms_norm(typename D::beats& in, typename D::beats& weights, typename D::beats& out,
              int vectors, int beats, float size, float eps) {
#pragma HLS DATAFLOW
    hls::stream<typename D::beat_t, MAX_BEATS + 32> held("held");
    typename D::floats factors("factors");
    LUTLLM_REGION;
    LUTLLM_PROCESS("factors", norm_factors<D>(in, held, factors, vectors, beats, size, eps));
    LUTLLM_PROCESS("apply", apply_norm<D, MAX_BEATS>(held, factors, weights, out, vectors, beats));
}

}  // namespace lutllm
