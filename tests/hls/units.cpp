// Runs one engine header at a time on streams given in a file, for tests/test_hls_units.py.
//
// units COMMAND CONFIG tokens row_fetch bias rounds groups subs act_stages weight_stages
//     table_bits wide_stages in_beats token_scale rotation in_features
// Standard input: the input streams of the command, each as a count and its elements; an element
// is as many little-endian 64-bit words as it needs. Standard output: the output streams likewise.
// CONFIGS.h, rendered by the test, declares Config0, Config1, ... and UNITS_DISPATCH.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "CONFIGS.h"
#include "lut_linear.h"

using namespace lutllm;

static std::uint64_t read_word() {
    std::uint64_t word = 0;
    if (std::fread(&word, sizeof word, 1, stdin) != 1) std::exit(4);
    return word;
}

static void write_word(std::uint64_t word) {
    std::fwrite(&word, sizeof word, 1, stdout);
}

template <int W>
static void read_value(ap_uint<W>& value) {
    for (int low = 0; low < W; low += 64) {
        const int high = (low + 64 < W ? low + 64 : W) - 1;
        value.range(high, low) = read_word();
    }
}

template <int W>
static void write_value(const ap_uint<W>& value) {
    for (int low = 0; low < W; low += 64) {
        const int high = (low + 64 < W ? low + 64 : W) - 1;
        write_word(value.range(high, low).to_uint64());
    }
}

static void read_value(float& value) {
    value = bits_to_float(ap_uint<32>(read_word()));
}
static void write_value(float value) {
    write_word(float_to_bits(value).to_uint());
}

template <class Stream, class T>
static void feed(Stream& stream, T) {
    const std::uint64_t count = read_word();
    for (std::uint64_t i = 0; i < count; i++) {
        T value;
        read_value(value);
        stream.write(value);
    }
}

template <class E, class Stream>
static void feed_sums(Stream& stream) {
    const std::uint64_t count = read_word();
    for (std::uint64_t i = 0; i < count; i++) {
        typename E::sums_t sums;
        for (int w = 0; w < E::WORDS; w++) read_value(sums.word[w]);
        stream.write(sums);
    }
}

template <class Stream>
static void drain(Stream& stream) {
    write_word(stream.size());
    while (!stream.empty()) write_value(stream.read());
}

template <class E, class Stream>
static void drain_sums(Stream& stream) {
    write_word(stream.size());
    while (!stream.empty()) {
        const typename E::sums_t sums = stream.read();
        for (int w = 0; w < E::WORDS; w++) write_value(sums.word[w]);
    }
}

template <class E>
static void run_search(const LinearCall& call) {
    typename E::acts act;
    typename E::centroids centroids;
    typename E::items items, repeated;
    feed(act, typename E::act_t());
    feed(centroids, typename E::centroids_t());
    centroid_search<E>(act, centroids, items, call);
    repeat_items<E>(items, repeated, call);
    drain(repeated);
}

template <class E>
static void run_tables(const LinearCall& call) {
    typename E::lead_beats beats;
    typename E::items codes;
    typename E::rows rows;
    feed(beats, typename E::beat_t());
    feed(codes, typename E::item_t());
    rows_from_tables<E>(beats, codes, rows, call);
    drain(rows);
}

template <class E>
static void run_online(const LinearCall& call) {
    typename E::lead_beats beats;
    typename E::items vectors;
    typename E::rows rows;
    feed(beats, typename E::beat_t());
    feed(vectors, typename E::item_t());
    typename E::record_shifts shifts;
    typename E::codebook_beats codebooks;
    route_codebooks<E>(beats, shifts, codebooks, call);
    rows_online<E>(shifts, codebooks, vectors, rows, call);
    drain(rows);
}

template <class E>
static void run_lookup(const LinearCall& call) {
    typename E::indices indices;
    typename E::rows rows;
    typename E::sums in, out;
    feed(indices, typename E::index_t());
    feed(rows, typename E::row_t());
    feed_sums<E>(in);
    lookup<E>(indices, rows, in, out, call);
    drain_sums<E>(out);
}

template <class E>
static void run_accumulate(const LinearCall& call) {
    typename E::sums totals[E::CHAINS];
    typename E::param_beats shifts;
    typename E::output_words scales, biases;
    typename E::token_floats token_scales;
    typename E::words out;
    for (int c = 0; c < E::CHAINS; c++) feed_sums<E>(totals[c]);
    feed(shifts, typename E::beat_t());
    feed(scales, typename E::beat_t());
    feed(biases, typename E::beat_t());
    feed(token_scales, 0.0f);
    accumulate<E>(totals, shifts, scales, biases, token_scales, out, call);
    drain(out);
}

template <class E>
static void run_quantize(const LinearCall& call) {
    typename E::words x;
    typename E::input_words scales;
    typename E::param_beats gather;
    typename E::acts act[E::CHANNELS];
    typename E::token_floats token_scales;
    feed(x, typename E::beat_t());
    feed(scales, typename E::beat_t());
    feed(gather, typename E::beat_t());
    const OneCall run = {call};
    quantize_input<E>(x, scales, gather, act, token_scales, run);
    for (int c = 0; c < E::CHANNELS; c++) drain(act[c]);
    drain(token_scales);
}

// Beats of a memory, given as a stream.
template <class E>
static std::vector<typename E::beat_t> take_memory() {
    std::vector<typename E::beat_t> beats(read_word());
    for (typename E::beat_t& beat : beats) read_value(beat);
    return beats;
}

// The memory of a centroid port: what its channels get.
template <class E>
static void run_centroids(const LinearCall& call) {
    const std::vector<typename E::beat_t> memory = take_memory<E>();
    typename E::centroids out[E::CENTROID_SHARE];
    read_centroids<E>(memory.data(), out, call);
    for (int c = 0; c < E::CENTROID_SHARE; c++) drain(out[c]);
}

// The memories of all parameter ports: input scales, exponents, gather indices, output scales and
// biases, floats in words.
template <class E>
static void run_parameters(const LinearCall& call) {
    typename E::beats ports[E::PARAMETER_PORTS];
    typename E::param_rows input_scales, output_scales, biases;
    typename E::param_beats shifts, gather;
    typename E::input_words inputs;
    typename E::output_words outputs, bias_words;
    for (int p = 0; p < E::PARAMETER_PORTS; p++) {
        const std::vector<typename E::beat_t> memory = take_memory<E>();
        if (int(memory.size()) != E::parameter_beats(call)) std::exit(6);
        read_parameters<E>(memory.data(), ports[p], call);
    }
    deal_parameters<E>(ports, input_scales, shifts, gather, output_scales, biases, call);
    widen_inputs<E>(input_scales, inputs, call);
    widen_outputs<E>(output_scales, outputs, true, call);
    widen_outputs<E>(biases, bias_words, call.bias, call);
    drain(inputs);
    drain(shifts);
    drain(gather);
    drain(outputs);
    drain(bias_words);
}

// The memory of a channel, then the codes whose rows are fetched: indices, and beats of rows.
template <class E>
static void run_bursts(const LinearCall& call) {
    std::vector<typename E::beat_t> memory = take_memory<E>();
    const hls::burst_maxi<typename E::beat_t> port(memory.data(), memory.size());
    typename E::items codes;
    typename E::jobs jobs;
    typename E::beats index_beats;
    typename E::lead_beats row_beats;
    typename E::indices indices;
    feed(codes, typename E::item_t());
    if (E::ONLINE_ROWS) {
        plan_codebooks<E>(jobs, call);
        read_bursts<E>(port, jobs, index_beats, row_beats, count_codebook_bursts<E>(call),
                       count_codebook_beats<E>(call));
    } else {
        plan_tables<E>(codes, jobs, call);
        read_bursts<E>(port, jobs, index_beats, row_beats, count_table_bursts<E>(call),
                       count_table_beats<E>(call));
    }
    unpack_words<E, E::INDEX_BITS>(index_beats, indices, call.rounds * call.weight_stages,
                                   call.subs);
    drain(indices);
    drain(row_beats);
}

template <class E, bool TABLES>
struct Rows {
    static void run(const LinearCall& call) { run_tables<E>(call); }
};
template <class E>
struct Rows<E, false> {
    static void run(const LinearCall& call) { run_online<E>(call); }
};

template <class C>
static void run_command(const std::string& command, const LinearCall& call) {
    typedef Engine<C> E;
    if (command == "search")
        run_search<E>(call);
    else if (command == "rows")
        Rows<E, !E::ONLINE_ROWS>::run(call);
    else if (command == "lookup")
        run_lookup<E>(call);
    else if (command == "accumulate")
        run_accumulate<E>(call);
    else if (command == "quantize")
        run_quantize<E>(call);
    else if (command == "centroids")
        run_centroids<E>(call);
    else if (command == "parameters")
        run_parameters<E>(call);
    else if (command == "bursts")
        run_bursts<E>(call);
    else
        std::exit(5);
}

int main(int argc, char** argv) {
    if (argc != 17) return 5;
    int number[15];
    for (int i = 0; i < 15; i++) number[i] = std::atoi(argv[i + 2]);
    LinearCall call = LinearCall();
    call.tokens = number[1];
    call.row_fetch = number[2] != 0;
    call.accumulators = true;
    call.bias = number[3] != 0;
    call.rounds = number[4];
    call.groups = number[5];
    call.subs = number[6];
    call.act_stages = number[7];
    call.weight_stages = number[8];
    call.table_bits = number[9];
    call.wide_stages = number[10];
    call.in_beats = number[11];
    call.in_words = number[11];
    call.token_scale = number[12] != 0;
    call.rotation = number[13];
    call.in_features = number[14];
    const std::string command = argv[1];
    UNITS_DISPATCH(number[0])
    return 0;
}
