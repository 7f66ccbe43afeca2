// rotate_input.h: Walsh-Hadamard transforms of blocks of a linear's input, on the way in.
//
// For h = 1, 2, 4, ... below call.rotation, of every whole run of 2 h channels the halves a, b
// become a + b, a - b (lutllm/rotation.py): one float32 addition each, so the bits do not depend on
// the order of work. Runs within a word of WIDE_FLOATS are one process, each longer one is another:
// a delay line of half a run. All take a word a cycle.
#pragma once

#include "engine.h"

namespace lutllm {

inline void add_and_subtract(float& a, float& b) {
#pragma HLS INLINE
    const float sum = a + b, difference = a - b;
    a = sum;
    b = difference;
}

// Runs of up to a word.
template <class E>
void rotate_within(typename E::words& in, typename E::words& out, LinearCall call) {
    int at = 0;
    const int total = call.tokens * call.in_words;
word_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=1
        const typename E::wide_t word = in.read();
        float value[E::WIDE_FLOATS];
#pragma HLS ARRAY_PARTITION variable=value type=complete
    unpack_loop:
        for (int j = 0; j < E::WIDE_FLOATS; j++) {
#pragma HLS UNROLL
            value[j] = bits_to_float(word.range(32 * j + 31, 32 * j));
        }
    step_loop:
        for (int h = 1; h < E::WIDE_FLOATS; h *= 2) {
#pragma HLS UNROLL
        pair_loop:
            for (int j = 0; j < E::WIDE_FLOATS; j++) {
#pragma HLS UNROLL
                const int last = at * E::WIDE_FLOATS + (j | (2 * h - 1));  // channel of the run
                if ((j & h) == 0 && h < call.rotation && last < call.in_features) {
                    add_and_subtract(value[j], value[j + h]);
                }
            }
        }
        typename E::wide_t result;
    pack_loop:
        for (int j = 0; j < E::WIDE_FLOATS; j++) {
#pragma HLS UNROLL
            result.range(32 * j + 31, 32 * j) = float_to_bits(value[j]);
        }
        out.write(result);
        advance(at, call.in_words);
    }
}

// Floats of two words added, or subtracted.
template <class E>
typename E::wide_t combine(typename E::wide_t left, typename E::wide_t right, bool subtract) {
#pragma HLS INLINE
    typename E::wide_t result;
float_loop:
    for (int j = 0; j < E::WIDE_FLOATS; j++) {
#pragma HLS UNROLL
        const int low = 32 * j;
        const float a = bits_to_float(left.range(low + 31, low));
        const float b = bits_to_float(right.range(low + 31, low));
        result.range(low + 31, low) = float_to_bits(subtract ? a - b : a + b);
    }
    return result;
}

// Runs of 2 SPAN words. A word leaves SPAN cycles after it came: the first of a pair as the sum,
// when the second is here, and the second as the difference. Words are kept as they came, so that
// no addition waits for another.
template <class E, int SPAN>
void rotate_across(typename E::words& in, typename E::words& out, LinearCall call) {
    typename E::wide_t first[SPAN], second[SPAN];
    bool paired[SPAN];
#pragma HLS BIND_STORAGE variable=first type=RAM_S2P impl=LUTRAM
#pragma HLS BIND_STORAGE variable=second type=RAM_S2P impl=LUTRAM
#pragma HLS DEPENDENCE variable=first type=inter direction=RAW distance=SPAN true
#pragma HLS DEPENDENCE variable=second type=inter direction=RAW distance=SPAN true
#pragma HLS DEPENDENCE variable=paired type=inter direction=RAW distance=SPAN true
    const bool rotates = SPAN * E::WIDE_FLOATS < call.rotation;
    const int delay = rotates ? SPAN : 0;
    const int total = call.tokens * call.in_words;
    int at = 0, slot = 0;
word_loop:
    for (int i = 0; i < total + delay; i++) {
#pragma HLS PIPELINE II=1
        const bool comes = i < total;
        const typename E::wide_t word = comes ? in.read() : typename E::wide_t(0);
        const int end = ((at | (2 * SPAN - 1)) + 1) * E::WIDE_FLOATS;  // of the run
        const bool completes = comes && (at & SPAN) != 0 && end <= call.in_features;
        const bool pair = i >= delay && rotates && paired[slot];
        typename E::wide_t result = word;
        if (rotates) {
            const typename E::wide_t kept = first[slot];
            result = kept;
            if (completes) result = combine<E>(kept, word, false);
            if (pair) result = combine<E>(kept, second[slot], true);
        }
        if (completes) {
            second[slot] = word;
        } else {
            first[slot] = word;
        }
        paired[slot] = completes;
        if (i >= delay) out.write(result);
        advance(at, call.in_words);
        advance(slot, SPAN);
    }
}

// The runs of 2 SPAN words and all longer ones, up to E::ROTATION floats.
template <class E, int SPAN, bool LAST = (2 * SPAN * E::WIDE_FLOATS >= E::ROTATION)>
struct LongRuns {
    template <class Calls>
    static void rotate(typename E::words& in, typename E::words& out, Calls calls) {
#pragma HLS DATAFLOW
        typename E::words longer("longer");
        LUTLLM_REGION;
        LUTLLM_CALLS("across", calls, rotate_across<E, SPAN>(in, longer, call));
        LUTLLM_PROCESS("on", LongRuns<E, 2 * SPAN>::rotate(longer, out, calls));
    }
};

template <class E, int SPAN>
struct LongRuns<E, SPAN, true> {
    template <class Calls>
    static void rotate(typename E::words& in, typename E::words& out, Calls calls) {
#pragma HLS DATAFLOW
        LUTLLM_REGION;
        LUTLLM_CALLS("across", calls, rotate_across<E, SPAN>(in, out, call));
    }
};

// x to rotated x; LONG: runs may be longer than a word.
template <class E, bool LONG = (E::WIDE_FLOATS < E::ROTATION)>
struct Rotation {
    template <class Calls>
    static void rotate(typename E::words& x, typename E::words& out, Calls calls) {
#pragma HLS DATAFLOW
        typename E::words within("within");
        LUTLLM_REGION;
        LUTLLM_CALLS("within", calls, rotate_within<E>(x, within, call));
        LUTLLM_PROCESS("on", LongRuns<E, 1>::rotate(within, out, calls));
    }
};

template <class E>
struct Rotation<E, false> {
    template <class Calls>
    static void rotate(typename E::words& x, typename E::words& out, Calls calls) {
#pragma HLS DATAFLOW
        LUTLLM_REGION;
        LUTLLM_CALLS("within", calls, rotate_within<E>(x, out, call));
    }
};

}  // namespace lutllm
