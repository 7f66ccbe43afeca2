// attention.h: causal attention of grouped queries over a key and value cache in memory.
//
// A pass handles one key head and a block of QUERY_TOKENS tokens: QUERIES queries share every key
// and value that is read. The softmax runs along with the keys (a new maximum rescales what was
// summed before), so nothing on chip grows with the context. Any context that memory holds works.
//
//   q -> scores -> softmax -> weigh -> collect -> out
//        keys --^     values --^
//
// Cache layout: [key head][position][HEAD_BEATS], float32, for keys and for values.
#pragma once

#include <hls_burst_maxi.h>
#include <math.h>

#include "decoder.h"

namespace lutllm {

// Keys that a block of queries looks at: all up to its last token.
template <class D>
int block_keys(const TokenRun& run, int block) {
#pragma HLS INLINE
    const int end = (block + 1) * D::QUERY_TOKENS;
    return run.first + (end < run.tokens ? end : run.tokens);
}

template <class D>
int count_blocks(const TokenRun& run) {
#pragma HLS INLINE
    return (run.tokens + D::QUERY_TOKENS - 1) / D::QUERY_TOKENS;
}

// Appends the run's rows to a cache, waits until they are in memory, then reads the cache once per
// pass. rows: [token][key head][HEAD_BEATS]. The cache is that of one layer, `base` beats in, with
// room for `capacity` positions per key head.
template <class D>
void serve_cache(hls::burst_maxi<typename D::beat_t> memory, typename D::beats& rows,
                 typename D::beats& out, TokenRun run, int base, int capacity) {
append_loop:
    for (int t = 0; t < run.tokens; t++) {
    head_loop:
        for (int h = 0; h < D::KV_HEADS; h++) {
            const int at = base + (h * capacity + run.first + t) * D::HEAD_BEATS;
            memory.write_request(at, D::HEAD_BEATS);
        write_loop:
            for (int b = 0; b < D::HEAD_BEATS; b++) {
#pragma HLS PIPELINE II=1
                memory.write(rows.read());
            }
            memory.write_response();
        }
    }
pass_loop:
    for (int h = 0; h < D::KV_HEADS; h++) {
    block_loop:
        for (int block = 0; block < count_blocks<D>(run); block++) {
            const int beats = block_keys<D>(run, block) * D::HEAD_BEATS;
            memory.read_request(base + h * capacity * D::HEAD_BEATS, beats);
        read_loop:
            for (int b = 0; b < beats; b++) {
#pragma HLS PIPELINE II=1
                out.write(memory.read());
            }
        }
    }
}

// q . k * scale of every query of a pass with every key. q: [token][head][HEAD_BEATS].
template <class D>
void score_keys(typename D::beats& q, typename D::beats& keys, typename D::scores& scores,
                TokenRun run, float scale) {
    // [query of a pass][block, key head, beat]
    typename D::beat_t store[D::QUERIES][D::MAX_BLOCKS * D::KV_HEADS * D::HEAD_BEATS];
#pragma HLS ARRAY_PARTITION variable=store type=complete dim=1
    int beat = 0, head = 0, token = 0;
    const int total = run.tokens * D::HEADS * D::HEAD_BEATS;
query_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=1
        const int query = token % D::QUERY_TOKENS * D::GROUP_HEADS + head % D::GROUP_HEADS;
        const int block = token / D::QUERY_TOKENS;
        store[query][(block * D::KV_HEADS + head / D::GROUP_HEADS) * D::HEAD_BEATS + beat] =
            q.read();
        if (advance(beat, D::HEAD_BEATS) && advance(head, D::HEADS)) token++;
    }
pass_loop:
    for (int h = 0; h < D::KV_HEADS; h++) {
    block_loop:
        for (int block = 0; block < count_blocks<D>(run); block++) {
            const int keys_here = block_keys<D>(run, block);
            const int base = (block * D::KV_HEADS + h) * D::HEAD_BEATS;
            float parts[D::QUERIES][D::HEAD_BEATS];
#pragma HLS ARRAY_PARTITION variable=parts type=complete dim=0
            int b = 0;
        key_loop:
            for (int i = 0; i < keys_here * D::HEAD_BEATS; i++) {
#pragma HLS PIPELINE II=1
                const typename D::floats_t key(keys.read());
                typename D::scores_t found;
            score_loop:
                for (int query = 0; query < D::QUERIES; query++) {
#pragma HLS UNROLL
                    const typename D::floats_t x(store[query][base + b]);
                    float products[D::FLOATS];
                    for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
                        products[j] = x.value[j] * key.value[j];
                    }
                    parts[query][b] = TreeSum<D::FLOATS>::of(products);
                    found.value[query] = TreeSum<D::HEAD_BEATS>::of(parts[query]) * scale;
                }
                if (advance(b, D::HEAD_BEATS)) scores.write(found);
            }
        }
    }
}

// Scores to softmax steps, per pass. A key after a query's own token has no weight. After the last
// key of a pass one more step carries 1 / (sum of weights) in `weight`.
template <class D>
void softmax_steps(typename D::scores& scores, typename D::steps& steps, TokenRun run) {
pass_loop:
    for (int h = 0; h < D::KV_HEADS; h++) {
    block_loop:
        for (int block = 0; block < count_blocks<D>(run); block++) {
            const int keys = block_keys<D>(run, block);
            float largest[D::QUERIES], sum[D::QUERIES];
#pragma HLS ARRAY_PARTITION variable=largest type=complete
#pragma HLS ARRAY_PARTITION variable=sum type=complete
        key_loop:
            for (int key = 0; key <= keys; key++) {
// The beats of a key take as long to arrive; within them `sum` is updated, one product and sum.
#pragma HLS PIPELINE II=D::HEAD_BEATS
                typename D::scores_t found;
                if (key < keys) found = scores.read();
                typename D::step_t step;
            query_loop:
                for (int query = 0; query < D::QUERIES; query++) {
#pragma HLS UNROLL
                    const int token = block * D::QUERY_TOKENS + query / D::GROUP_HEADS;
                    const bool seen = key <= run.first + token;
                    const float score = found.value[query];
                    if (key == keys) {
                        step.decay[query] = 1.0f;
                        step.weight[query] = 1.0f / sum[query];
                    } else if (key == 0) {
                        largest[query] = score;
                        sum[query] = 1.0f;
                        step.decay[query] = 0.0f;
                        step.weight[query] = 1.0f;
                    } else if (!seen) {
                        step.decay[query] = 1.0f;
                        step.weight[query] = 0.0f;
                    } else {
                        const bool higher = score > largest[query];
                        const float gap = exp_float(-fabsf(score - largest[query]));
                        step.decay[query] = higher ? gap : 1.0f;
                        step.weight[query] = higher ? 1.0f : gap;
                        sum[query] = sum[query] * step.decay[query] + step.weight[query];
                        if (higher) largest[query] = score;
                    }
                }
                steps.write(step);
            }
        }
    }
}

// Sums of values by weight. out: per pass [query][HEAD_BEATS].
template <class D>
void weigh_values(typename D::steps& steps, typename D::beats& values, typename D::beats& out,
                  TokenRun run) {
pass_loop:
    for (int h = 0; h < D::KV_HEADS; h++) {
    block_loop:
        for (int block = 0; block < count_blocks<D>(run); block++) {
            const int keys = block_keys<D>(run, block);
            typename D::floats_t sum[D::QUERIES][D::HEAD_BEATS];
#pragma HLS ARRAY_PARTITION variable=sum type=complete dim=1
            typename D::step_t step;
            int b = 0;
        value_loop:
            for (int i = 0; i < keys * D::HEAD_BEATS; i++) {
#pragma HLS PIPELINE II=1
                if (b == 0) step = steps.read();
                const typename D::floats_t value(values.read());
            query_loop:
                for (int query = 0; query < D::QUERIES; query++) {
#pragma HLS UNROLL
                    for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
                        const float before = i < D::HEAD_BEATS ? 0.0f : sum[query][b].value[j];
                        sum[query][b].value[j] =
                            before * step.decay[query] + step.weight[query] * value.value[j];
                    }
                }
                advance(b, D::HEAD_BEATS);
            }
            const typename D::step_t last = steps.read();
            int query = 0;
        result_loop:
            for (int i = 0; i < D::QUERIES * D::HEAD_BEATS; i++) {
#pragma HLS PIPELINE II=1
                typename D::floats_t y = sum[query][b];
                for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
                    y.value[j] = y.value[j] * last.weight[query];
                }
                out.write(y.pack());
                if (advance(b, D::HEAD_BEATS)) query++;
            }
        }
    }
}

// Results of all passes in the order [token][head][HEAD_BEATS].
template <class D>
void collect_heads(typename D::beats& in, typename D::beats& out, TokenRun run) {
    typename D::beat_t store[D::MAX_BLOCKS * D::QUERY_TOKENS * D::HEADS * D::HEAD_BEATS];
pass_loop:
    for (int h = 0; h < D::KV_HEADS; h++) {
    block_loop:
        for (int block = 0; block < count_blocks<D>(run); block++) {
            int b = 0, query = 0;
        in_loop:
            for (int i = 0; i < D::QUERIES * D::HEAD_BEATS; i++) {
#pragma HLS PIPELINE II=1
                const int token = block * D::QUERY_TOKENS + query / D::GROUP_HEADS;
                const int head = h * D::GROUP_HEADS + query % D::GROUP_HEADS;
                store[(token * D::HEADS + head) * D::HEAD_BEATS + b] = in.read();
                if (advance(b, D::HEAD_BEATS)) query++;
            }
        }
    }
out_loop:
    for (int i = 0; i < run.tokens * D::HEADS * D::HEAD_BEATS; i++) {
#pragma HLS PIPELINE II=1
        out.write(store[i]);
    }
}

// q, k, v: rotated queries and keys, and values of the run; out: [token][head][HEAD_BEATS].
template <class D>
void attention(hls::burst_maxi<typename D::beat_t> key_memory,
               hls::burst_maxi<typename D::beat_t> value_memory, typename D::beats& q,
               typename D::beats& k, typename D::beats& v, typename D::beats& out, TokenRun run,
               int base, int capacity, float scale) {
#pragma HLS DATAFLOW
    typename D::beats keys("keys"), values("values"), passes("passes");
    typename D::scores scores("scores");
    typename D::steps steps("steps");
    LUTLLM_REGION;
    LUTLLM_PROCESS("key_cache", serve_cache<D>(key_memory, k, keys, run, base, capacity));
    LUTLLM_PROCESS("value_cache", serve_cache<D>(value_memory, v, values, run, base, capacity));
    LUTLLM_PROCESS("scores", score_keys<D>(q, keys, scores, run, scale));
    LUTLLM_PROCESS("softmax", softmax_steps<D>(scores, steps, run));
    LUTLLM_PROCESS("weigh", weigh_values<D>(steps, values, passes, run));
    LUTLLM_PROCESS("collect", collect_heads<D>(passes, out, run));
}

}  // namespace lutllm
