// swiglu.h: silu(gate) * up.
#pragma once

#include "decoder.h"

namespace lutllm {

// gate / (1 + e^-gate).
inline float silu(float gate) {
#pragma HLS INLINE
    return gate / (1.0f + exp_float(-gate));
}

// silu(gate) * up, beat by beat.
template <class D>
void swiglu(typename D::beats& gates, typename D::beats& ups, typename D::beats& out, int count) {
swiglu_loop:
    for (int i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
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
