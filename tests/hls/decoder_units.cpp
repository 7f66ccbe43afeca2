// Runs one float step of the decoder, for tests/test_hls_decoder.py.
//
// decoder_units COMMAND tokens first eps_or_scale
// Standard input: the float32 inputs of the command, each vector padded to whole beats (those of
// norm and swiglu to whole words). Standard
// output: its float32 outputs, padded likewise. CONFIG.h, written by the test, declares Config.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "CONFIG.h"
#include "attention.h"
#include "rms_norm.h"
#include "rotary.h"
#include "swiglu.h"

using namespace lutllm;

typedef Decoder<Config> D;
typedef Decoder<Config, Config::VECTOR_LANES> V;  // whole vectors: in words
typedef D::beat_t beat_t;

template <class Stream, class Beat>
static void feed(Stream& out, const Beat* beats, int count) {
    for (int i = 0; i < count; i++) out.write(beats[i]);
}

template <class Stream, class Beat>
static void drain(Stream& in, Beat* beats, int count) {
    for (int i = 0; i < count; i++) beats[i] = in.read();
}

template <class Beat = beat_t>
static std::vector<Beat> take(int count) {
    std::vector<Beat> beats(count);
    if (std::fread(static_cast<void*>(beats.data()), sizeof(Beat), count, stdin) !=
        std::size_t(count)) {
        std::exit(4);
    }
    return beats;
}

template <class Beat>
static void give(const std::vector<Beat>& beats) {
    std::fwrite(beats.data(), sizeof(Beat), beats.size(), stdout);
}

static void run_norm(int tokens, float eps) {
    const std::vector<V::beat_t> x = take<V::beat_t>(tokens * V::HIDDEN_BEATS);
    const std::vector<V::beat_t> w = take<V::beat_t>(V::HIDDEN_BEATS);
    std::vector<V::beat_t> y(x.size());
    {
        V::beats in("in"), weights("weights"), out("out");
        LUTLLM_REGION;
        LUTLLM_PROCESS("feed", feed(in, x.data(), x.size()));
        LUTLLM_PROCESS("weights", feed(weights, w.data(), w.size()));
        LUTLLM_PROCESS("norm",
                       (rms_norm<V, V::HIDDEN_BEATS>(in, weights, out, tokens, V::HIDDEN_BEATS,
                                                     V::HIDDEN_SIZE, eps)));
        LUTLLM_PROCESS("drain", drain(out, y.data(), y.size()));
    }
    give(y);
}

static void run_rotate(int tokens) {
    const int angle_beats = 2 * ceil_div(D::HALF_DIM, D::FLOATS);
    const std::vector<beat_t> x = take(tokens * D::HEADS * D::HEAD_BEATS);
    const std::vector<beat_t> a = take(tokens * angle_beats);
    std::vector<beat_t> y(x.size());
    {
        D::beats in("in"), angles("angles"), out("out");
        LUTLLM_REGION;
        LUTLLM_PROCESS("feed", feed(in, x.data(), x.size()));
        LUTLLM_PROCESS("angles", feed(angles, a.data(), a.size()));
        LUTLLM_PROCESS("rotate", rotate<D>(in, angles, out, tokens, D::HEADS));
        LUTLLM_PROCESS("drain", drain(out, y.data(), y.size()));
    }
    give(y);
}

static void run_swiglu(int tokens) {
    const std::vector<V::beat_t> gates = take<V::beat_t>(tokens * V::INTERMEDIATE_BEATS);
    const std::vector<V::beat_t> ups = take<V::beat_t>(gates.size());
    std::vector<V::beat_t> y(gates.size());
    {
        V::beats gate("gate"), up("up"), out("out");
        LUTLLM_REGION;
        LUTLLM_PROCESS("feed_gate", feed(gate, gates.data(), gates.size()));
        LUTLLM_PROCESS("feed_up", feed(up, ups.data(), ups.size()));
        LUTLLM_PROCESS("swiglu", swiglu<V>(gate, up, out, gates.size()));
        LUTLLM_PROCESS("drain", drain(out, y.data(), y.size()));
    }
    give(y);
}

typedef std::vector<std::vector<beat_t>> Cache;  // what lies behind each port
constexpr int CACHE_ROWS = ceil_div(Config::CAPACITY, D::KV_PORTS);

static Cache take_cache() {
    Cache cache;
    for (int p = 0; p < D::KV_PORTS; p++) {
        cache.push_back(take(D::KV_HEADS * CACHE_ROWS * D::HEAD_BEATS));
    }
    return cache;
}

static void give_cache(const Cache& cache) {
    for (const std::vector<beat_t>& port : cache) give(port);
}

// All ports of a cache, side by side.
static void serve_ports(Cache& cache, D::beats& rows, D::beats (&out)[D::KV_PORTS], TokenRun run) {
    D::beats dealt[D::KV_PORTS];
    LUTLLM_NAME_STREAMS(dealt, D::KV_PORTS);
    LUTLLM_REGION;
    LUTLLM_PROCESS("deal", deal_rows<D>(rows, dealt, run));
    for (int p = 0; p < D::KV_PORTS; p++) {
        lutllm_region.spawn(("port_" + std::to_string(p)).c_str(), [&, p] {
            const hls::burst_maxi<beat_t> memory(cache[p].data(), cache[p].size());
            serve_cache<D>(memory, dealt[p], out[p], run, p, 0, CACHE_ROWS);
        });
    }
}

// The cache so far, keys then values, [port][key head][row][HEAD_BEATS]; then q, k, v of the run.
// Gives the results, ATTENDED_WORDS a token, and both caches.
static void run_attention(TokenRun run, float scale) {
    Cache key_cache = take_cache(), value_cache = take_cache();
    const std::vector<beat_t> q_in = take(run.tokens * D::HEADS * D::HEAD_BEATS);
    const std::vector<beat_t> k_in = take(run.tokens * D::KV_HEADS * D::HEAD_BEATS);
    const std::vector<beat_t> v_in = take(run.tokens * D::KV_HEADS * D::HEAD_BEATS);
    std::vector<V::beat_t> x(run.tokens * D::ATTENDED_WORDS);
    {
        D::beats q("q"), k("k"), v("v"), keys[D::KV_PORTS], values[D::KV_PORTS];
        LUTLLM_NAME_STREAMS(keys, D::KV_PORTS);
        LUTLLM_NAME_STREAMS(values, D::KV_PORTS);
        V::beats out("out");
        LUTLLM_REGION;
        LUTLLM_PROCESS("feed_q", feed(q, q_in.data(), q_in.size()));
        LUTLLM_PROCESS("feed_k", feed(k, k_in.data(), k_in.size()));
        LUTLLM_PROCESS("feed_v", feed(v, v_in.data(), v_in.size()));
        LUTLLM_PROCESS("key_cache", serve_ports(key_cache, k, keys, run));
        LUTLLM_PROCESS("value_cache", serve_ports(value_cache, v, values, run));
        LUTLLM_PROCESS("attention", attention<D>(q, keys, values, out, run, scale));
        LUTLLM_PROCESS("drain", drain(out, x.data(), x.size()));
    }
    give(x);
    give_cache(key_cache);
    give_cache(value_cache);
}

static void run_exp(int count) {
    const std::vector<beat_t> x = take(count);
    std::vector<beat_t> y(x.size());
    for (int i = 0; i < count; i++) {
        D::floats_t values(x[i]);
        for (int j = 0; j < D::FLOATS; j++) values.value[j] = exp_float(values.value[j]);
        y[i] = values.pack();
    }
    give(y);
}

int main(int argc, char** argv) {
    if (argc != 5) return 5;
    const std::string command = argv[1];
    const TokenRun run = {std::atoi(argv[2]), std::atoi(argv[3])};
    const float number = std::strtof(argv[4], nullptr);
    if (command == "norm")
        run_norm(run.tokens, number);
    else if (command == "rotate")
        run_rotate(run.tokens);
    else if (command == "swiglu")
        run_swiglu(run.tokens);
    else if (command == "attention")
        run_attention(run, number);
    else if (command == "exp")
        run_exp(run.tokens);
    else
        return 5;
    return 0;
}
