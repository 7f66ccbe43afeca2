// swiglu.h: silu(gate) * up.
#pragma once

#include "decoder.h"

namespace lutllm {

// gate / (1 + e^-gate).
inline float silu(float gate) {
#pragma HLS INLINE
    return gate / (1.0f + exp_float(-gate));
}

// Beats of silu(gate) * up in a cycle, at most: its operators take as much of a device as those of
// all norms, and a word of more beats may as well take its time.
constexpr int GATED_BEATS = 4;

// silu(gate) * up, word by word.
template <class D, class Words, class Gated>
void swiglu(Words& gates, Words& ups, Gated& out, int count) {
    constexpr int INTERVAL = ceil_div(D::LANES, GATED_BEATS);
swiglu_loop:
    for (int i = 0; i < count; i++) {
#pragma HLS PIPELINE II=INTERVAL
        const typename D::floats_t gate(gates.read());
        typename D::floats_t up(ups.read());
    lane_loop:
        for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
            up.value[j] = silu(gate.value[j]) * up.value[j];
        }
        out.write(up.pack());
    }
}

}  // namespace lutllm
