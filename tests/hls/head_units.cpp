// Runs the int8 head and the embedding fetch of the decoder, for tests/test_hls_head.py.
//
// head_units head         standard input: a float32 vector in whole words, then the rows behind
//                         every port; standard output: the logits in whole beats, the word chosen
// head_units embed ROW    the rows behind one port; the float32 vector of a row, in whole words
// CONFIG.h, written by the test, declares Config.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "CONFIG.h"
#include "int8_head.h"

using namespace lutllm;

typedef Model<Config> D;
typedef D::wide V;
typedef D::beat_t beat_t;

constexpr int PORT_ROWS = ceil_div(D::VOCAB_SIZE, D::VOCAB_PORTS);

template <class Beat>
static std::vector<Beat> take(int count) {
    std::vector<Beat> beats(count);
    void* data = static_cast<void*>(beats.data());
    if (std::fread(data, sizeof(Beat), count, stdin) != std::size_t(count)) std::exit(4);
    return beats;
}

static void feed(V::beats& out, const std::vector<V::beat_t>& words) {
    for (const V::beat_t& word : words) out.write(word);
}

static void run_head() {
    const std::vector<V::beat_t> x = take<V::beat_t>(V::HIDDEN_BEATS);
    std::vector<std::vector<beat_t>> rows;
    for (int p = 0; p < D::VOCAB_PORTS; p++) {
        rows.push_back(take<beat_t>(PORT_ROWS * D::HEAD_ROW_BEATS));
    }
    std::vector<beat_t> logits(D::LOGIT_BEATS);
    int chosen = -1;
    {
        V::beats in("in");
        D::beats rounded("rounded"), vectors[D::VOCAB_PORTS];
        D::floats scores[D::VOCAB_PORTS];
        LUTLLM_NAME_STREAMS(vectors, D::VOCAB_PORTS);
        LUTLLM_NAME_STREAMS(scores, D::VOCAB_PORTS);
        LUTLLM_REGION;
        LUTLLM_PROCESS("feed", feed(in, x));
        LUTLLM_PROCESS("round", round_hidden<D>(in, rounded));
        LUTLLM_PROCESS("spread", spread_vector<D>(rounded, vectors, D::HIDDEN_BEATS + 1));
        for (int p = 0; p < D::VOCAB_PORTS; p++) {
            lutllm_region.spawn(("port_" + std::to_string(p)).c_str(), [&, p] {
                const hls::burst_maxi<beat_t> memory(
                    static_cast<const beat_t*>(rows[p].data()), rows[p].size());
                const int words = (D::VOCAB_SIZE - p + D::VOCAB_PORTS - 1) / D::VOCAB_PORTS;
                score_int8_words<D>(memory, vectors[p], scores[p], words);
            });
        }
        LUTLLM_PROCESS("choose", choose_word<D>(scores, logits.data(), chosen));
    }
    std::fwrite(logits.data(), sizeof(beat_t), logits.size(), stdout);
    std::fwrite(&chosen, sizeof chosen, 1, stdout);
}

static void run_embed(int row) {
    const std::vector<beat_t> rows = take<beat_t>(PORT_ROWS * D::EMBED_ROW_BEATS);
    std::vector<beat_t> hidden(V::HIDDEN_BEATS * D::VECTOR_LANES, beat_t(1));
    const hls::burst_maxi<beat_t> memory(rows.data(), rows.size());
    auto words = reinterpret_cast<D::word_t*>(hidden.data());
    embed_word<D>(memory, row * D::EMBED_ROW_BEATS, words);
    std::fwrite(hidden.data(), sizeof(beat_t), hidden.size(), stdout);
}

int main(int argc, char** argv) {
    const std::string command = argc > 1 ? argv[1] : "";
    if (command == "head" && argc == 2)
        run_head();
    else if (command == "embed" && argc == 3)
        run_embed(std::atoi(argv[2]));
    else
        return 5;
    return 0;
}
