// swiglu.h: silu(gate) * up, and the addition of residuals.
#pragma once

#include "decoder.h"

namespace lutllm {

// gate / (1 + e^-gate).
inline float silu(float gate) {
#pragma HLS INLINE
    return gate / (1.0f + exp_float(-gate));
}

// in: per token the beats of gate, then of up. out: per token their product.
template <class D>
void swiglu(typename D::beats& in, typename D::beats& out, int tokens) {
    typename D::beat_t gates[D::INTERMEDIATE_BEATS];
    int beat = 0;
    const int per_token = 2 * D::INTERMEDIATE_BEATS;
swiglu_loop:
    for (int i = 0; i < tokens * per_token; i++) {
#pragma HLS PIPELINE II=1
        const typename D::beat_t raw = in.read();
        if (beat < D::INTERMEDIATE_BEATS) {
            gates[beat] = raw;
        } else {
            const typename D::floats_t gate(gates[beat - D::INTERMEDIATE_BEATS]);
            typename D::floats_t up(raw);
        lane_loop:
            for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
                up.value[j] = silu(gate.value[j]) * up.value[j];
            }
            out.write(up.pack());
        }
        advance(beat, per_token);
    }
}

// out = a + b, beat by beat.
template <class D>
void add_beats(typename D::beats& a, typename D::beats& b, typename D::beats& out, int count) {
add_loop:
    for (int i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
        typename D::floats_t sum(a.read());
        const typename D::floats_t other(b.read());
    lane_loop:
        for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
            sum.value[j] = sum.value[j] + other.value[j];
        }
        out.write(sum.pack());
    }
}

}  // namespace lutllm
