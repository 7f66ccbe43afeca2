// rotary.h: rotary embedding; element i of a head pairs with i + HEAD_DIM / 2.
#pragma once

#include "decoder.h"

namespace lutllm {

template <class D>
void load_head(typename D::beats& in, float* head) {
load_loop:
    for (int b = 0; b < D::HEAD_BEATS; b++) {
#pragma HLS PIPELINE II=1
        const typename D::floats_t x(in.read());
    lane_loop:
        for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
            head[b * D::FLOATS + j] = x.value[j];
        }
    }
}

// a cos - b sin in the first half, b cos + a sin in the second.
template <class D>
void rotate_head(const float* head, const float* cosine, const float* sine,
                 typename D::beats& out) {
rotate_loop:
    for (int b = 0; b < D::HEAD_BEATS; b++) {
#pragma HLS PIPELINE II=1
        typename D::floats_t y;
    lane_loop:
        for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
            const int i = b * D::FLOATS + j;
            const bool first = i < D::HALF_DIM;
            const int pair = first ? i : i - D::HALF_DIM;
            const float own = head[i];
            const float other = head[first ? i + D::HALF_DIM : pair];
            const float turned = other * sine[pair];
            y.value[j] = i < D::HEAD_DIM ? own * cosine[pair] + (first ? -turned : turned) : 0.0f;
        }
        out.write(y.pack());
    }
}

// in, out: [tokens][heads][HEAD_BEATS]. angles: per token the beats of cos, then of sin, each
// HALF_DIM values padded to whole beats.
template <class D>
void rotate(typename D::beats& in, typename D::beats& angles, typename D::beats& out, int tokens,
            int heads) {
    constexpr int ANGLE_BEATS = ceil_div(D::HALF_DIM, D::FLOATS);
    constexpr int PADDED = D::HEAD_BEATS * D::FLOATS;
token_loop:
    for (int t = 0; t < tokens; t++) {
        float cosine[ANGLE_BEATS * D::FLOATS], sine[ANGLE_BEATS * D::FLOATS];
#pragma HLS ARRAY_PARTITION variable=cosine type=complete
#pragma HLS ARRAY_PARTITION variable=sine type=complete
    angle_loop:
        for (int b = 0; b < 2 * ANGLE_BEATS; b++) {
#pragma HLS PIPELINE II=1
            const typename D::floats_t x(angles.read());
        angle_lane_loop:
            for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
                if (b < ANGLE_BEATS)
                    cosine[b * D::FLOATS + j] = x.value[j];
                else
                    sine[(b - ANGLE_BEATS) * D::FLOATS + j] = x.value[j];
            }
        }
    head_loop:
        for (int h = 0; h < heads; h++) {
#pragma HLS DATAFLOW
            float head[PADDED];
#pragma HLS ARRAY_PARTITION variable=head type=complete
            load_head<D>(in, head);
            rotate_head<D>(head, cosine, sine, out);
        }
    }
}

}  // namespace lutllm
