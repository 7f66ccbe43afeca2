// attention.h: causal attention of grouped queries over a key and value cache in memory.
//
// The caches are striped over KV_PORTS memory ports: position i is row i / KV_PORTS of port
// i % KV_PORTS, so that a stripe of KV_PORTS consecutive positions is read side by side. A pass
// handles one key head and a block of QUERY_TOKENS tokens: QUERIES queries share every key and
// value that is read. The softmax runs along with the stripes (a new maximum rescales what was
// summed before), so nothing on chip grows with the context. Any context that memory holds works.
//
//   q -> scores -> softmax -> weigh -> collect -> out
//        keys --^     values --^
//
// Cache layout behind a port: [key head][row][HEAD_BEATS], float32, for keys and for values.
#pragma once

#include <hls_burst_maxi.h>
#include <math.h>

#include "decoder.h"

namespace lutllm {

// Bursts of a cache under way at a time, so that their latency hides.
constexpr int CACHE_WRITES = 16, CACHE_READS = 8;
// Below every score.
constexpr float NO_SCORE = -3e38f;

// Keys that a block of queries looks at: all up to its last token.
template <class D>
int block_keys(const TokenRun& run, int block) {
#pragma HLS INLINE
    const int end = (block + 1) * D::QUERY_TOKENS;
    return run.first + (end < run.tokens ? end : run.tokens);
}

// Queries of a block, whose last one may have fewer tokens than the others.
template <class D>
int block_queries(const TokenRun& run, int block) {
#pragma HLS INLINE
    const int left = run.tokens - block * D::QUERY_TOKENS;
    return (left < D::QUERY_TOKENS ? left : D::QUERY_TOKENS) * D::GROUP_HEADS;
}

template <class D>
int count_blocks(const TokenRun& run) {
#pragma HLS INLINE
    return (run.tokens + D::QUERY_TOKENS - 1) / D::QUERY_TOKENS;
}

template <class D>
int count_stripes(int positions) {
#pragma HLS INLINE
    return (positions + D::KV_PORTS - 1) / D::KV_PORTS;
}

// How many of the first `positions` positions lie behind a port.
template <class D>
int count_rows(int positions, int port) {
#pragma HLS INLINE
    return (positions + D::KV_PORTS - 1 - port) / D::KV_PORTS;
}

// Where a process is in the passes of a run: a stripe of a block of queries of a key head. Loops are
// over all stripes of all passes, so that they never drain between passes.
template <class D>
struct PassStep {
    TokenRun run;
    int head, block, stripe;
    int keys, stripes;  // of the pass

    explicit PassStep(const TokenRun& of_run) : run(of_run), head(0), block(0), stripe(0) {
#pragma HLS INLINE
        enter_pass();
    }
    bool last_stripe() const {
#pragma HLS INLINE
        return stripe == stripes - 1;
    }
    void next_stripe() {
#pragma HLS INLINE
        if (!advance(stripe, stripes)) return;
        if (advance(block, count_blocks<D>(run))) head++;
        enter_pass();
    }

  private:
    void enter_pass() {
#pragma HLS INLINE
        keys = block_keys<D>(run, block);
        stripes = count_stripes<D>(keys);
    }
};

// Stripes of all passes.
template <class D>
int count_all_stripes(const TokenRun& run) {
    int stripes = 0;
count_loop:
    for (int block = 0; block < count_blocks<D>(run); block++) {
        stripes += count_stripes<D>(block_keys<D>(run, block));
    }
    return D::KV_HEADS * stripes;
}

// The run's rows, [token][key head][HEAD_BEATS], to the ports of their positions.
template <class D>
void deal_rows(typename D::beats& rows, typename D::beats (&out)[D::KV_PORTS], TokenRun run) {
    int beat = 0, port = run.first % D::KV_PORTS;
deal_loop:
    for (int i = 0; i < run.tokens * D::KV_HEADS * D::HEAD_BEATS; i++) {
#pragma HLS PIPELINE II=1
        const typename D::beat_t row = rows.read();
    port_loop:
        for (int p = 0; p < D::KV_PORTS; p++) {
#pragma HLS UNROLL
            if (p == port) out[p].write(row);
        }
        if (advance(beat, D::KV_HEADS * D::HEAD_BEATS)) advance(port, D::KV_PORTS);
    }
}

// Appends the run's rows to the part of a cache behind one port, and waits until they are in
// memory. The cache is that of one layer, `base` beats in, with `capacity` rows per key head.
template <class D>
void append_rows(hls::burst_maxi<typename D::beat_t>& memory, typename D::beats& rows,
                 TokenRun run, int port, int base, int capacity) {
#pragma HLS INLINE
    const int end = count_rows<D>(run.first + run.tokens, port);
    int waiting = 0;
append_loop:
    for (int row = count_rows<D>(run.first, port); row < end; row++) {
    head_loop:
        for (int h = 0; h < D::KV_HEADS; h++) {
            if (waiting == CACHE_WRITES)
                memory.write_response();
            else
                waiting++;
            memory.write_request(base + (h * capacity + row) * D::HEAD_BEATS, D::HEAD_BEATS);
        write_loop:
            for (int b = 0; b < D::HEAD_BEATS; b++) {
#pragma HLS PIPELINE II=1
                memory.write(rows.read());
            }
        }
    }
response_loop:
    for (int i = 0; i < waiting; i++) {
        memory.write_response();
    }
}

// Asks for the rows of a pass and goes on to the next pass that has any; beats asked for, 0 after
// the last pass. first_block: the first whose keys reach the port.
template <class D>
int ask_rows(hls::burst_maxi<typename D::beat_t>& memory, TokenRun run, int port, int base,
             int capacity, int first_block, int& head, int& block) {
#pragma HLS INLINE
    if (head == D::KV_HEADS) return 0;
    const int beats = count_rows<D>(block_keys<D>(run, block), port) * D::HEAD_BEATS;
    memory.read_request(base + head * capacity * D::HEAD_BEATS, beats);
    block++;
    if (block == count_blocks<D>(run)) {
        block = first_block;
        head++;
    }
    return beats;
}

// The rows of every pass, one burst each.
template <class D>
void read_rows(hls::burst_maxi<typename D::beat_t>& memory, typename D::beats& out, TokenRun run,
               int port, int base, int capacity) {
#pragma HLS INLINE
    int first_block = 0, rows = 0;
count_loop:
    for (int block = 0; block < count_blocks<D>(run); block++) {
        const int here = count_rows<D>(block_keys<D>(run, block), port);
        if (here == 0) first_block++;
        rows += here;
    }
    int asked[CACHE_READS];  // beats of the bursts under way
#pragma HLS ARRAY_PARTITION variable=asked type=complete
    int head = rows > 0 ? 0 : D::KV_HEADS, block = first_block;
ask_loop:
    for (int i = 0; i < CACHE_READS; i++) {
        asked[i] = ask_rows<D>(memory, run, port, base, capacity, first_block, head, block);
    }
    int slot = 0, done = 0;
read_loop:
    for (int b = 0; b < D::KV_HEADS * rows * D::HEAD_BEATS; b++) {
#pragma HLS PIPELINE II=1
        out.write(memory.read());
        if (advance(done, asked[slot])) {
            asked[slot] = ask_rows<D>(memory, run, port, base, capacity, first_block, head, block);
            advance(slot, CACHE_READS);
        }
    }
}

// The part of a cache behind one port: takes the run's rows, then gives those of every pass.
template <class D>
void serve_cache(hls::burst_maxi<typename D::beat_t> memory, typename D::beats& rows,
                 typename D::beats& out, TokenRun run, int port, int base, int capacity) {
    append_rows<D>(memory, rows, run, port, base, capacity);
    read_rows<D>(memory, out, run, port, base, capacity);
}

// One beat of every position of a stripe; zeros for positions from `keys` on.
template <class D>
void read_stripe(typename D::beats (&in)[D::KV_PORTS], typename D::floats_t (&out)[D::KV_PORTS],
                 int stripe, int keys) {
#pragma HLS INLINE
port_loop:
    for (int p = 0; p < D::KV_PORTS; p++) {
#pragma HLS UNROLL
        typename D::beat_t raw = 0;
        if (stripe * D::KV_PORTS + p < keys) raw = in[p].read();
        out[p] = typename D::floats_t(raw);
    }
}

// q . k of every query of a pass with every key, beat by beat. q: [token][head][HEAD_BEATS].
template <class D>
void score_keys(typename D::beats& q, typename D::beats (&keys)[D::KV_PORTS],
                typename D::products& products, TokenRun run) {
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
    PassStep<D> at(run);
    int b = 0;
    const int beats = count_all_stripes<D>(run) * D::HEAD_BEATS;
key_loop:
    for (int i = 0; i < beats; i++) {
#pragma HLS PIPELINE II=1
        typename D::floats_t key[D::KV_PORTS];
        read_stripe<D>(keys, key, at.stripe, at.keys);
        typename D::products_t found;
    score_loop:
        for (int query = 0; query < D::QUERIES; query++) {
#pragma HLS UNROLL
            const int row = (at.block * D::KV_HEADS + at.head) * D::HEAD_BEATS + b;
            const typename D::floats_t x(store[query][row]);
            for (int p = 0; p < D::KV_PORTS; p++) {
#pragma HLS UNROLL
                float terms[D::FLOATS];
                for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
                    terms[j] = x.value[j] * key[p].value[j];
                }
                found.value[query][p] = TreeSum<D::FLOATS>::of(terms);
            }
        }
        products.write(found);
        if (advance(b, D::HEAD_BEATS)) at.next_stripe();
    }
}

// The sum of every dot product of a stripe over the beats of a head.
template <class D>
void sum_products(typename D::products& in, float (&scores)[D::QUERIES][D::KV_PORTS]) {
#pragma HLS INLINE
    float parts[D::QUERIES][D::KV_PORTS][D::HEAD_BEATS];
#pragma HLS ARRAY_PARTITION variable=parts type=complete dim=0
beat_loop:
    for (int b = 0; b < D::HEAD_BEATS; b++) {
#pragma HLS UNROLL
        const typename D::products_t part = in.read();
        for (int query = 0; query < D::QUERIES; query++) {
            for (int p = 0; p < D::KV_PORTS; p++) {
                parts[query][p][b] = part.value[query][p];
            }
        }
    }
sum_loop:
    for (int query = 0; query < D::QUERIES; query++) {
        for (int p = 0; p < D::KV_PORTS; p++) {
            scores[query][p] = TreeSum<D::HEAD_BEATS>::of(parts[query][p]);
        }
    }
}

// Scores to softmax steps, per pass. A key after a query's own token has no weight. The step of the
// last stripe carries 1 / (sum of weights), so that what it gives is the result.
template <class D>
void softmax_steps(typename D::products& products, typename D::steps& steps, TokenRun run,
                   float scale) {
    float largest[D::QUERIES], sum[D::QUERIES];
#pragma HLS ARRAY_PARTITION variable=largest type=complete
#pragma HLS ARRAY_PARTITION variable=sum type=complete
    PassStep<D> at(run);
    const int stripes = count_all_stripes<D>(run);
stripe_loop:
    for (int i = 0; i < stripes; i++) {
// The beats of a key take as long to arrive; within them `sum` is updated, one product and sum.
#pragma HLS PIPELINE II=D::HEAD_BEATS
        float scores[D::QUERIES][D::KV_PORTS];
        sum_products<D>(products, scores);
        typename D::step_t step;
    query_loop:
        for (int query = 0; query < D::QUERIES; query++) {
#pragma HLS UNROLL
            const int own = run.first + at.block * D::QUERY_TOKENS + query / D::GROUP_HEADS;
            const float before = at.stripe == 0 ? NO_SCORE : largest[query];
            const float so_far = at.stripe == 0 ? 0.0f : sum[query];
            float top = before, score[D::KV_PORTS], weights[D::KV_PORTS];
            bool seen[D::KV_PORTS];
        largest_loop:
            for (int p = 0; p < D::KV_PORTS; p++) {
#pragma HLS UNROLL
                const int position = at.stripe * D::KV_PORTS + p;
                seen[p] = position <= own && position < at.keys;
                score[p] = scores[query][p] * scale;
                if (seen[p] && score[p] > top) top = score[p];
            }
            for (int p = 0; p < D::KV_PORTS; p++) {
#pragma HLS UNROLL
                weights[p] = seen[p] ? exp_float(score[p] - top) : 0.0f;
            }
            const float decay = exp_float(before - top);
            const float total = so_far * decay + TreeSum<D::KV_PORTS>::of(weights);
            const float factor = at.last_stripe() ? 1.0f / total : 1.0f;
            step.decay[query] = decay * factor;
            for (int p = 0; p < D::KV_PORTS; p++) {
#pragma HLS UNROLL
                step.weight[query][p] = weights[p] * factor;
            }
            largest[query] = top;
            sum[query] = total;
        }
        steps.write(step);
        at.next_stripe();
    }
}

// Sums of values by weight; those after the last stripe of a pass are the heads of its queries.
template <class D>
void weigh_values(typename D::steps& steps, typename D::beats (&values)[D::KV_PORTS],
                  typename D::head_beats (&out)[D::QUERIES], TokenRun run) {
    typename D::floats_t sum[D::QUERIES][D::HEAD_BEATS];
#pragma HLS ARRAY_PARTITION variable=sum type=complete dim=1
    typename D::step_t step;
    PassStep<D> at(run);
    int b = 0;
    const int beats = count_all_stripes<D>(run) * D::HEAD_BEATS;
value_loop:
    for (int i = 0; i < beats; i++) {
#pragma HLS PIPELINE II=1
#pragma HLS DEPENDENCE variable=sum type=inter direction=RAW distance=D::HEAD_BEATS true
        if (b == 0) step = steps.read();
        typename D::floats_t value[D::KV_PORTS];
        read_stripe<D>(values, value, at.stripe, at.keys);
        const int queries = at.last_stripe() ? block_queries<D>(run, at.block) : 0;
    query_loop:
        for (int query = 0; query < D::QUERIES; query++) {
#pragma HLS UNROLL
            typename D::floats_t y;
            for (int j = 0; j < D::FLOATS; j++) {
#pragma HLS UNROLL
                float terms[D::KV_PORTS];
                for (int p = 0; p < D::KV_PORTS; p++) {
#pragma HLS UNROLL
                    terms[p] = step.weight[query][p] * value[p].value[j];
                }
                const float before = at.stripe == 0 ? 0.0f : sum[query][b].value[j];
                y.value[j] = before * step.decay[query] + TreeSum<D::KV_PORTS>::of(terms);
            }
            sum[query][b] = y;
            if (query < queries) out[query].write(y.pack());
        }
        if (advance(b, D::HEAD_BEATS)) at.next_stripe();
    }
}

// Heads of all passes, token by token: [token][head][HEAD_BEATS], ATTENDED_WORDS a token. The
// tokens of a block are complete, and go out, when it was collected for the last key head.
template <class D>
void collect_heads(typename D::head_beats (&in)[D::QUERIES], typename D::wide::beats& out,
                   TokenRun run) {
    typename Banks<D>::word_t x[D::MAX_TOKENS * D::ATTENDED_WORDS];
#pragma HLS ARRAY_PARTITION variable=x type=complete dim=2
#pragma HLS BIND_STORAGE variable=x type=RAM_2P impl=URAM
    constexpr int BEATS = D::HEADS * D::HEAD_BEATS;
    int b = 0, query = 0, block = 0, key_head = 0;
    int sent = 0, ready = 0;  // words
collect_loop:
    for (int i = 0; i < run.tokens * (BEATS + D::ATTENDED_WORDS); i++) {
#pragma HLS PIPELINE II=1
        if (sent < ready) {
            out.write(read_word(x[sent++]));
            continue;
        }
        typename D::beat_t beat = 0;
        for (int q = 0; q < D::QUERIES; q++) {
#pragma HLS UNROLL
            if (q == query) beat = in[q].read();
        }
        const int token = block * D::QUERY_TOKENS + query / D::GROUP_HEADS;
        const int head = key_head * D::GROUP_HEADS + query % D::GROUP_HEADS;
        const int at = head * D::HEAD_BEATS + b;
    bank_loop:
        for (int l = 0; l < D::VECTOR_LANES; l++) {
#pragma HLS UNROLL
            const int lane = at % D::VECTOR_LANES;
            const bool behind = at == BEATS - 1 && l > lane;  // the last head, in its word
            if (l == lane || behind) {
                x[token * D::ATTENDED_WORDS + at / D::VECTOR_LANES][l] =
                    behind ? typename D::beat_t(0) : beat;
            }
        }
        if (!advance(b, D::HEAD_BEATS) || !advance(query, block_queries<D>(run, block))) continue;
        if (key_head == D::KV_HEADS - 1) ready = (token + 1) * D::ATTENDED_WORDS;
        if (advance(block, count_blocks<D>(run))) key_head++;
    }
}

// q: rotated queries, [token][head][HEAD_BEATS]; keys, values: what the caches give, by port; out:
// the heads of every token, in words.
template <class D>
void attention(typename D::beats& q, typename D::beats (&keys)[D::KV_PORTS],
               typename D::beats (&values)[D::KV_PORTS], typename D::wide::beats& out,
               TokenRun run, float scale) {
#pragma HLS DATAFLOW
    typename D::products products("products");
    typename D::steps steps("steps");
    typename D::head_beats heads[D::QUERIES];
    LUTLLM_NAME_STREAMS(heads, D::QUERIES);
    LUTLLM_REGION;
    LUTLLM_PROCESS("scores", score_keys<D>(q, keys, products, run));
    LUTLLM_PROCESS("softmax", softmax_steps<D>(products, steps, run, scale));
    LUTLLM_PROCESS("weigh", weigh_values<D>(steps, values, heads, run));
    LUTLLM_PROCESS("collect", collect_heads<D>(heads, out, run));
}

}  // namespace lutllm
