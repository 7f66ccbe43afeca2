// Runs a head and the embedding fetch of the decoder, for tests/hls_heads.py.
//
// head_units head         standard input: a float32 vector in whole words, then the rows behind
//                         every port; standard output: the logits in whole beats, the word chosen
// head_units screen       a vector, the coarse logits of all slices, the rows; output as above
// head_units embed ROW    the rows behind one port; the float32 vector of a row, in whole words
// CONFIG.h, written by the test, declares Config.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <type_traits>
#include <vector>

#include "CONFIG.h"
#include "screened_head.h"

using namespace lutllm;

typedef Model<Config> D;
typedef D::wide V;
typedef D::beat_t beat_t;
typedef hls::burst_maxi<beat_t> port_t;
typedef std::integral_constant<bool, D::HEAD_BITS == 8> IsInt8;
typedef std::integral_constant<bool, (D::SLICES > 0)> IsScreened;

constexpr int PORT_ROWS = ceil_div(D::VOCAB_SIZE, D::VOCAB_PORTS);

template <class Beat>
static std::vector<Beat> take(int count) {
    std::vector<Beat> beats(count);
    void* data = static_cast<void*>(beats.data());
    if (std::fread(data, sizeof(Beat), count, stdin) != std::size_t(count)) std::exit(4);
    return beats;
}

static std::vector<std::vector<beat_t>> take_rows() {
    std::vector<std::vector<beat_t>> rows;
    for (int p = 0; p < D::VOCAB_PORTS; p++) {
        rows.push_back(take<beat_t>(PORT_ROWS * D::HEAD_ROW_BEATS));
    }
    return rows;
}

static void give(const std::vector<beat_t>& logits, int chosen) {
    std::fwrite(logits.data(), sizeof(beat_t), logits.size(), stdout);
    std::fwrite(&chosen, sizeof chosen, 1, stdout);
}

static port_t port_of(const std::vector<beat_t>& rows) {
    return port_t(rows.data(), rows.size());
}

static void feed(V::beats& out, const std::vector<V::beat_t>& words) {
    for (const V::beat_t& word : words) out.write(word);
}

// The vector as a head of that kind multiplies it, and the words behind a port.
template <class M>
static void spread(typename M::wide::beats& in, typename M::beats& vector,
                   typename M::beats (&out)[M::VOCAB_PORTS], std::true_type) {
    LUTLLM_REGION;
    LUTLLM_PROCESS("round", round_hidden<M>(in, vector));
    LUTLLM_PROCESS("spread", spread_vector<M>(vector, out, M::HIDDEN_BEATS + 1));
}
template <class M>
static void spread(typename M::wide::beats& in, typename M::beats& vector,
                   typename M::beats (&out)[M::VOCAB_PORTS], std::false_type) {
    LUTLLM_REGION;
    LUTLLM_PROCESS("narrow", narrow_vector<M>(in, vector));
    LUTLLM_PROCESS("spread", spread_vector<M>(vector, out, M::HIDDEN_BEATS));
}
template <class M>
static void score(const port_t& rows, typename M::beats& x, typename M::floats& out, int words,
                  std::true_type) {
    score_int8_words<M>(rows, x, out, words);
}
template <class M>
static void score(const port_t& rows, typename M::beats& x, typename M::floats& out, int words,
                  std::false_type) {
    score_words<M>(rows, x, out, words);
}

static void run_head() {
    const std::vector<V::beat_t> x = take<V::beat_t>(V::HIDDEN_BEATS);
    const std::vector<std::vector<beat_t>> rows = take_rows();
    std::vector<beat_t> logits(D::LOGIT_BEATS);
    int chosen = -1;
    {
        V::beats in("in");
        D::beats vector("vector"), vectors[D::VOCAB_PORTS];
        D::floats scores[D::VOCAB_PORTS];
        LUTLLM_NAME_STREAMS(vectors, D::VOCAB_PORTS);
        LUTLLM_NAME_STREAMS(scores, D::VOCAB_PORTS);
        LUTLLM_REGION;
        LUTLLM_PROCESS("feed", feed(in, x));
        LUTLLM_PROCESS("vector", spread<D>(in, vector, vectors, IsInt8()));
        for (int p = 0; p < D::VOCAB_PORTS; p++) {
            lutllm_region.spawn(("port_" + std::to_string(p)).c_str(), [&, p] {
                const int words = (D::VOCAB_SIZE - p + D::VOCAB_PORTS - 1) / D::VOCAB_PORTS;
                score<D>(port_of(rows[p]), vectors[p], scores[p], words, IsInt8());
            });
        }
        LUTLLM_PROCESS("choose", choose_word<D>(scores, logits.data(), chosen));
    }
    give(logits, chosen);
}

// Coarse logits kept and written, then the rows of the words near the largest.
template <class M>
static void run_screen(std::true_type) {
    typedef Screen<M> S;
    const std::vector<V::beat_t> x = take<V::beat_t>(V::HIDDEN_BEATS);
    const std::vector<V::beat_t> all = take<V::beat_t>(S::COARSE_WORDS);
    const std::vector<std::vector<beat_t>> rows = take_rows();
    std::vector<beat_t> logits(D::LOGIT_BEATS), buffer(S::COARSE_WORDS * D::VECTOR_LANES);
    auto y = reinterpret_cast<typename M::word_t*>(buffer.data());
    float least = 0.0f;
    {
        V::beats coarse("coarse");
        typename S::slice_words kept("kept");
        LUTLLM_REGION;
        LUTLLM_PROCESS("feed", feed(coarse, all));
        LUTLLM_PROCESS("keep", keep_coarse<M>(coarse, y, kept, least, true));
        LUTLLM_PROCESS("write", write_coarse<M>(kept, logits.data(), true));
    }
    int chosen = -1;
    {
        V::beats in("in");
        D::beats vector("vector"), vectors[D::VOCAB_PORTS];
        D::floats scores[D::VOCAB_PORTS];
        typename S::rows wanted[D::VOCAB_PORTS];
        typename S::nears nears("nears");
        typename S::picks picks("picks");
        typename S::choices far("far");
        LUTLLM_NAME_STREAMS(vectors, D::VOCAB_PORTS);
        LUTLLM_NAME_STREAMS(scores, D::VOCAB_PORTS);
        LUTLLM_NAME_STREAMS(wanted, D::VOCAB_PORTS);
        LUTLLM_REGION;
        LUTLLM_PROCESS("feed", feed(in, x));
        LUTLLM_PROCESS("vector", spread<M>(in, vector, vectors, IsInt8()));
        LUTLLM_PROCESS("find", find_near<M>(y, least, nears, far));
        LUTLLM_PROCESS("pick", pick_words<M>(nears, wanted, picks));
        for (int p = 0; p < D::VOCAB_PORTS; p++) {
            lutllm_region.spawn(("port_" + std::to_string(p)).c_str(), [&, p] {
                score_near_words<M>(port_of(rows[p]), vectors[p], wanted[p], scores[p]);
            });
        }
        LUTLLM_PROCESS("settle", settle_words<M>(picks, scores, far, logits.data(), chosen));
    }
    give(logits, chosen);
}
template <class M>
static void run_screen(std::false_type) {
    std::exit(5);
}

static void run_embed(int row) {
    const std::vector<beat_t> rows = take<beat_t>(PORT_ROWS * D::EMBED_ROW_BEATS);
    std::vector<beat_t> hidden(V::HIDDEN_BEATS * D::VECTOR_LANES, beat_t(1));
    auto words = reinterpret_cast<D::word_t*>(hidden.data());
    embed_word<D>(port_of(rows), row * D::EMBED_ROW_BEATS, words);
    std::fwrite(hidden.data(), sizeof(beat_t), hidden.size(), stdout);
}

int main(int argc, char** argv) {
    const std::string command = argc > 1 ? argv[1] : "";
    if (command == "head" && argc == 2)
        run_head();
    else if (command == "screen" && argc == 2)
        run_screen<D>(IsScreened());
    else if (command == "embed" && argc == 3)
        run_embed(std::atoi(argv[2]));
    else
        return 5;
    return 0;
}
