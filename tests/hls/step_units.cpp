// Runs the steps beside the engines of a decoder, for tests/test_hls_steps.py.
//
// step_units heads TOKENS FIRST  the results of qkv_proj of layer 1, then `constants`; gives queries,
//                                and keys and values port by port
// step_units ring TOKENS HEAD    embeddings, norms, then the results of every step in turn; gives
//                                queries, keys, values, normed and gated vectors, each in order
// Standard input and output: float32, vectors in whole words, constants and heads in beats.
// CONFIG.h, written by the test, declares Config.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "CONFIG.h"
#include "decoder_steps.h"

using namespace lutllm;

typedef Model<Config> D;
typedef D::wide V;
typedef D::beat_t beat_t;
typedef V::beat_t wide_t;

template <class Beat>
static std::vector<Beat> take(int count) {
    std::vector<Beat> beats(count);
    void* data = static_cast<void*>(beats.data());
    if (std::fread(data, sizeof(Beat), count, stdin) != std::size_t(count)) std::exit(4);
    return beats;
}

template <class Beat>
static void give(const std::vector<Beat>& beats) {
    std::fwrite(beats.data(), sizeof(Beat), beats.size(), stdout);
}

template <class Stream, class Beat>
static void feed(Stream& out, const std::vector<Beat>& beats) {
    for (const Beat& beat : beats) out.write(beat);
}

template <class Stream, class Beat>
static void drain(Stream& in, std::vector<Beat>& beats) {
    for (Beat& beat : beats) beat = in.read();
}

static void run_heads(TokenRun run) {
    const std::vector<wide_t> q = take<wide_t>(run.tokens * D::HEADS * V::HEAD_BEATS);
    const std::vector<wide_t> k = take<wide_t>(run.tokens * D::KV_HEADS * V::HEAD_BEATS);
    const std::vector<wide_t> v = take<wide_t>(k.size());
    const std::vector<beat_t> constants = take<beat_t>(D::FINAL_NORM + D::HIDDEN_BEATS);
    std::vector<beat_t> turned(run.tokens * D::HEADS * D::HEAD_BEATS);
    std::vector<std::vector<beat_t>> rows(2 * D::KV_PORTS);
    {
        D::query_words q_in("q");
        D::key_words k_in("k"), v_in("v");
        D::beats out("out"), keys[D::KV_PORTS], values[D::KV_PORTS];
        LUTLLM_NAME_STREAMS(keys, D::KV_PORTS);
        LUTLLM_NAME_STREAMS(values, D::KV_PORTS);
        LUTLLM_REGION;
        LUTLLM_PROCESS("q", feed(q_in, q));
        LUTLLM_PROCESS("k", feed(k_in, k));
        LUTLLM_PROCESS("v", feed(v_in, v));
        LUTLLM_PROCESS("heads", prepare_heads<D>(q_in, k_in, v_in, constants.data(), out, keys,
                                                 values, run, 1));
        LUTLLM_PROCESS("drain", drain(out, turned));
        for (int p = 0; p < 2 * D::KV_PORTS; p++) {
            const int port = p % D::KV_PORTS;
            const int count = count_rows<D>(run.first + run.tokens, port) -
                              count_rows<D>(run.first, port);
            rows[p].resize(count * D::KV_HEADS * D::HEAD_BEATS);
            lutllm_region.spawn(("port_" + std::to_string(p)).c_str(), [&, p, port] {
                drain(p < D::KV_PORTS ? keys[port] : values[port], rows[p]);
            });
        }
    }
    give(turned);
    for (const std::vector<beat_t>& port : rows) give(port);
}

static void run_ring(TokenRun run, bool head) {
    const Parts parts = split_run<D>(run);
    std::vector<wide_t> hidden = take<wide_t>(run.tokens * V::HIDDEN_BEATS);
    std::vector<wide_t> norms = take<wide_t>(D::NORMS * V::HIDDEN_BEATS);
    const int per_token = D::QKV_HEADS * V::HEAD_BEATS + 2 * V::HIDDEN_BEATS +
                          2 * V::INTERMEDIATE_BEATS;
    const std::vector<wide_t> all = take<wide_t>(D::LAYERS * run.tokens * per_token);
    const int total = D::LAYERS * run.tokens;
    std::vector<wide_t> q_out(total * D::HEADS * V::HEAD_BEATS);
    std::vector<wide_t> k_out(total * D::KV_HEADS * V::HEAD_BEATS), v_out(k_out.size());
    std::vector<wide_t> normed_out((2 * total + (head ? 1 : 0)) * V::HIDDEN_BEATS);
    std::vector<wide_t> gated_out(total * V::INTERMEDIATE_BEATS);
    auto hidden_words = reinterpret_cast<D::word_t*>(hidden.data());
    auto norm_words = reinterpret_cast<const D::word_t*>(norms.data());
    {
        V::beats results("results"), added("added"), states("states");
        D::query_words q("q");
        D::key_words k("k"), v("v");
        D::gate_words gate("gate"), up("up");
        D::normed_words normed("normed");
        D::gated_words gated("gated");
        LUTLLM_REGION;
        LUTLLM_PROCESS("feed", feed(results, all));
        LUTLLM_PROCESS("deal", deal_results<D>(results, added, q, k, v, gate, up, parts));
        LUTLLM_PROCESS("residual", add_results<D>(hidden_words, added, states, parts, head));
        LUTLLM_PROCESS("norm", norm_vectors<D>(norm_words, states, normed, parts, head));
        LUTLLM_PROCESS("gating", activate<D>(gate, up, gated, parts));
        LUTLLM_PROCESS("q", drain(q, q_out));
        LUTLLM_PROCESS("k", drain(k, k_out));
        LUTLLM_PROCESS("v", drain(v, v_out));
        LUTLLM_PROCESS("normed", drain(normed, normed_out));
        LUTLLM_PROCESS("gated", drain(gated, gated_out));
    }
    give(q_out);
    give(k_out);
    give(v_out);
    give(normed_out);
    give(gated_out);
}

int main(int argc, char** argv) {
    if (argc != 4) return 5;
    const std::string command = argv[1];
    const int tokens = std::atoi(argv[2]), number = std::atoi(argv[3]);
    const TokenRun run = {tokens, command == "heads" ? number : 0};
    if (command == "heads")
        run_heads(run);
    else if (command == "ring")
        run_ring(run, number != 0);
    else
        return 5;
    return 0;
}
