// decoder_testbench.h: runs a decoder on a prompt and writes what it gave.
//
// Usage: decoder_csim IMAGES OUT < numbers
// The numbers: new_tokens, then the words of the prompt.
//   IMAGES/<engine>/<argument>.bin   memory behind each port
//   OUT/tokens.bin                   i32[new_tokens], the words chosen
//   OUT/logits.bin                   f32[new_tokens][words]
//   OUT/inputs_<layer>_<p>.bin       f32[positions][inputs] of projection p (qkv, o, gate_up, down);
//                                    p = 4, layer = layers: of the LUT linear before the head, for
//                                    every word chosen
// Exit status 0: it ran; 2: unusable input; 3: deadlock.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "testbench.h"

namespace testbench {

// Inputs that the projections saw, by layer and projection.
inline std::map<std::pair<int, int>, std::vector<float>>& seen_inputs() {
    static std::map<std::pair<int, int>, std::vector<float>> seen;
    return seen;
}

// Word `at` of a token's vector; what lies behind the vector is left out.
template <class D, class Projection, class Word>
void note_input(Projection projection, int layer, int at, const Word& word) {
    const int width = projection == 1   ? D::HEADS * D::HEAD_DIM
                      : projection == 3 ? D::INTERMEDIATE_SIZE
                                        : D::HIDDEN_SIZE;
    std::vector<float>& seen = seen_inputs()[std::make_pair(layer, int(projection))];
    const float* values = reinterpret_cast<const float*>(&word);
    const int floats = sizeof(Word) / sizeof(float);
    for (int j = 0; j < floats && at * floats + j < width; j++) seen.push_back(values[j]);
}

// The images of all engines and of the decoder.
template <class Beat>
class Images {
  public:
    explicit Images(const std::string& folder) : folder_(folder) {}

    const Beat* beats(const std::string& owner, const std::string& argument) const {
        return memory(owner).beats(argument);
    }
    hls::burst_maxi<Beat> port(const std::string& owner, const std::string& argument) const {
        return memory(owner).port(argument);
    }

  private:
    const Memory<Beat>& memory(const std::string& owner) const {
        std::unique_ptr<Memory<Beat>>& found = owners_[owner];
        if (!found) found.reset(new Memory<Beat>(folder_ + "/" + owner));
        return *found;
    }

    std::string folder_;
    mutable std::map<std::string, std::unique_ptr<Memory<Beat>>> owners_;
};

inline void write_values(const std::string& path, const void* data, std::size_t bytes) {
    std::FILE* file = std::fopen(path.c_str(), "wb");
    if (!file || std::fwrite(data, 1, bytes, file) != bytes || std::fclose(file) != 0) {
        stop(path + ": cannot be written");
    }
}

// Ports on memory that holds a cache and lasts as long as the program. It is not a number until it
// is written, so that a position read before shows.
template <class D>
std::vector<hls::burst_maxi<typename D::beat_t>> make_cache() {
    typedef typename D::beat_t beat_t;
    const std::size_t beats = std::size_t(D::LAYERS) * D::CACHE_BEATS;
    static std::vector<std::unique_ptr<std::vector<beat_t>>> memory;
    std::vector<hls::burst_maxi<beat_t>> ports;
    for (int p = 0; p < D::KV_PORTS; p++) {
        memory.emplace_back(new std::vector<beat_t>(beats));
        std::memset(static_cast<void*>(memory.back()->data()), 0xFF, beats * sizeof(beat_t));
        ports.emplace_back(memory.back()->data(), beats);
    }
    return ports;
}

template <class D, class RunDecoder>
int run_prompt(int argc, char** argv, RunDecoder run_decoder) {
    typedef typename D::beat_t beat_t;
    if (argc != 3) stop("usage: decoder_csim IMAGES OUT < numbers");
    const Images<beat_t> images(argv[1]);
    const std::string out = argv[2];
    int new_tokens = 0, word = 0;
    std::vector<int> prompt;
    if (std::scanf("%d", &new_tokens) != 1 || new_tokens < 1) stop("new_tokens: none given");
    while (std::scanf("%d", &word) == 1) {
        if (word < 0 || word >= D::VOCAB_SIZE) stop("a word outside of the vocabulary");
        prompt.push_back(word);
    }
    std::vector<int> chosen(new_tokens, -1);
    std::vector<beat_t> logits(std::size_t(new_tokens) * D::LOGIT_BEATS);
    run_decoder(images, make_cache<D>(), make_cache<D>(), prompt.data(), chosen.data(),
                logits.data(), int(prompt.size()), new_tokens);
    if (chosen[0] < 0) stop("the sequence does not fit into the context of the decoder");
    write_values(out + "/tokens.bin", chosen.data(), chosen.size() * sizeof(int));
    std::vector<float> all;
    for (int i = 0; i < new_tokens; i++) {
        const float* row =
            reinterpret_cast<const float*>(logits.data() + std::size_t(i) * D::LOGIT_BEATS);
        all.insert(all.end(), row, row + D::VOCAB_SIZE);
    }
    write_values(out + "/logits.bin", all.data(), all.size() * sizeof(float));
    for (const auto& entry : seen_inputs()) {
        const std::string name = "/inputs_" + std::to_string(entry.first.first) + "_" +
                                 std::to_string(entry.first.second) + ".bin";
        write_values(out + name, entry.second.data(), entry.second.size() * sizeof(float));
    }
    return 0;
}

}  // namespace testbench
