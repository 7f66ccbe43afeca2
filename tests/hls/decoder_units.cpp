// Runs one float step of the decoder, for tests/test_hls_decoder.py.
//
// decoder_units COMMAND tokens first eps_or_scale
// Standard input: the float32 inputs of the command, each vector padded to whole beats. Standard
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
typedef D::beat_t beat_t;

static void feed(D::beats& out, const beat_t* beats, int count) {
    for (int i = 0; i < count; i++) out.write(beats[i]);
}

static void drain(D::beats& in, beat_t* beats, int count) {
    for (int i = 0; i < count; i++) beats[i] = in.read();
}

static std::vector<beat_t> take(int count) {
    std::vector<beat_t> beats(count);
    if (std::fread(static_cast<void*>(beats.data()), sizeof(beat_t), count, stdin) !=
        std::size_t(count)) {
        std::exit(4);
    }
    return beats;
}

static void give(const std::vector<beat_t>& beats) {
    std::fwrite(beats.data(), sizeof(beat_t), beats.size(), stdout);
}

static void run_norm(int tokens, float eps) {
    const std::vector<beat_t> x = take(tokens * D::HIDDEN_BEATS), w = take(D::HIDDEN_BEATS);
    std::vector<beat_t> y(x.size());
    {
        D::beats in("in"), weights("weights"), out("out");
        LUTLLM_REGION;
        LUTLLM_PROCESS("feed", feed(in, x.data(), x.size()));
        LUTLLM_PROCESS("weights", feed(weights, w.data(), w.size()));
        LUTLLM_PROCESS("norm",
                       (rms_norm<D, D::HIDDEN_BEATS>(in, weights, out, tokens, D::HIDDEN_BEATS,
                                                     D::HIDDEN_SIZE, eps)));
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
    const std::vector<beat_t> x = take(2 * tokens * D::INTERMEDIATE_BEATS);
    std::vector<beat_t> y(x.size() / 2);
    {
        D::beats in("in"), out("out");
        LUTLLM_REGION;
        LUTLLM_PROCESS("feed", feed(in, x.data(), x.size()));
        LUTLLM_PROCESS("swiglu", swiglu<D>(in, out, tokens));
        LUTLLM_PROCESS("drain", drain(out, y.data(), y.size()));
    }
    give(y);
}

// The cache so far, keys then values, [key head][CAPACITY][HEAD_BEATS]; then q, k, v of the run.
// Gives the results and both caches.
static void run_attention(TokenRun run, float scale) {
    const int per_cache = D::KV_HEADS * Config::CAPACITY * D::HEAD_BEATS;
    std::vector<beat_t> keys = take(per_cache), values = take(per_cache);
    const std::vector<beat_t> q_in = take(run.tokens * D::HEADS * D::HEAD_BEATS);
    const std::vector<beat_t> k_in = take(run.tokens * D::KV_HEADS * D::HEAD_BEATS);
    const std::vector<beat_t> v_in = take(run.tokens * D::KV_HEADS * D::HEAD_BEATS);
    std::vector<beat_t> y(q_in.size());
    {
        D::beats q("q"), k("k"), v("v"), out("out");
        LUTLLM_REGION;
        LUTLLM_PROCESS("feed_q", feed(q, q_in.data(), q_in.size()));
        LUTLLM_PROCESS("feed_k", feed(k, k_in.data(), k_in.size()));
        LUTLLM_PROCESS("feed_v", feed(v, v_in.data(), v_in.size()));
        LUTLLM_PROCESS("attention",
                       attention<D>(hls::burst_maxi<beat_t>(keys.data(), keys.size()),
                                    hls::burst_maxi<beat_t>(values.data(), values.size()), q, k, v,
                                    out, run, 0, Config::CAPACITY, scale));
        LUTLLM_PROCESS("drain", drain(out, y.data(), y.size()));
    }
    give(y);
    give(keys);
    give(values);
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
