// testbench.h: runs cases through a kernel and compares the results with golden files.
//
// Usage: <engine>_csim IMAGES GOLDEN [--streams] < cases
// A case is a line of seven words:  name kind slot positions outputs tokens row_fetch
//   IMAGES/<engine>/<argument>.bin    memory behind each port
//   GOLDEN/<name>/x.bin               f32[tokens][inputs]
//   GOLDEN/<name>/acc.bin             i32[tokens][outputs]
//   GOLDEN/<name>/y.bin               f32[tokens][outputs]
//   GOLDEN/<name>/codes.bin           u8[tokens][act stages][positions], searching engines only
// More tokens than the kernel takes at once are run in chunks. One line of JSON per case goes to
// standard output. Exit status 0: all cases ran (equal or not); 2: unusable input; 3: deadlock.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <time.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include <hls_burst_maxi.h>

namespace testbench {

[[noreturn]] inline void stop(const std::string& message) {
    std::fprintf(stderr, "%s\n", message.c_str());
    std::_Exit(2);
}

inline double now_seconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

struct File {
    const char* data = nullptr;
    std::size_t bytes = 0;

    explicit File(const std::string& path) {
        const int handle = open(path.c_str(), O_RDONLY);
        struct stat info;
        if (handle < 0 || fstat(handle, &info) != 0) stop(path + ": cannot be opened");
        bytes = static_cast<std::size_t>(info.st_size);
        if (bytes > 0) {
            void* mapped = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, handle, 0);
            if (mapped == MAP_FAILED) stop(path + ": cannot be mapped");
            data = static_cast<const char*>(mapped);
        }
        close(handle);
    }
};

// The images of an engine, found by the name of the kernel's argument.
template <class Beat>
class Memory {
  public:
    explicit Memory(const std::string& folder) : folder_(folder) {}

    const Beat* beats(const std::string& argument) const {
        return reinterpret_cast<const Beat*>(file(argument).data);
    }
    hls::burst_maxi<Beat> port(const std::string& argument) const {
        const File& image = file(argument);
        return hls::burst_maxi<Beat>(reinterpret_cast<const Beat*>(image.data),
                                     image.bytes / sizeof(Beat));
    }

  private:
    const File& file(const std::string& argument) const {
        auto found = files_.find(argument);
        if (found == files_.end()) {
            found = files_.emplace(argument, File(folder_ + "/" + argument + ".bin")).first;
        }
        return found->second;
    }

    std::string folder_;
    mutable std::map<std::string, File> files_;
};

struct Case {
    std::string name;
    int kind, slot, positions, outputs, tokens, row_fetch;
};

struct Difference {
    bool any = false;
    std::string what;
    int token = 0, index = 0;
    double expected = 0, found = 0;

    void note(const char* kind, int at_token, int at_index, double want, double got) {
        if (any) return;
        any = true;
        what = kind;
        token = at_token;
        index = at_index;
        expected = want;
        found = got;
    }
};

// What the streams of a run carried: the cycles that each part of the engine is busy at one step a
// cycle. The largest bounds the run; latencies and stalls come on top.
struct Counters {
    std::uint64_t channel_beats = 0;  // of the busiest channel port
    std::uint64_t search_cycles = 0, row_cycles = 0, lookup_cycles = 0;
    std::uint64_t gather_cycles = 0, output_beats = 0;
};

struct Report {
    Counters counters;
    std::uint64_t integer_mismatches = 0, code_mismatches = 0, float_mismatches = 0;
    double max_abs_error = 0, seconds = 0;
    int tokens_equal = 0;
    Difference first;
};

template <class T>
const T* golden(const std::string& folder, const char* name, std::size_t count) {
    const File file(folder + "/" + name);
    if (file.bytes < count * sizeof(T)) stop(folder + "/" + name + ": too short");
    return reinterpret_cast<const T*>(file.data);
}

// Codes that the searches of a chunk found, compared in the order of tokens.
template <class E>
void compare_codes(const Case& run, const lutllm::LinearCall& call, const std::uint8_t* expected,
                   int first_token, std::vector<bool>& differs, Report& report) {
    auto& taps = hls::sim::Scheduler::get().taps;
    const int stages = call.act_stages;
    for (int c = 0; c < E::CHANNELS; c++) {
        const auto& found = taps["channel_" + std::to_string(c) + "/found"];
        for (std::size_t i = 0; i < found.size(); i++) {
            const int token = int(i) % call.tokens;
            const int stage = int(i) / call.tokens % stages;
            const int round = int(i) / call.tokens / stages;
            const int per_block = lutllm::ceil_div(E::BLOCK_POSITIONS, E::CHAIN_CHANNELS);
            const int offset = round % per_block * E::CHAIN_CHANNELS + c % E::CHAIN_CHANNELS;
            const int block = round / per_block * E::CHAINS + c / E::CHAIN_CHANNELS;
            const int position = block * E::BLOCK_POSITIONS + offset;
            if (offset >= E::BLOCK_POSITIONS || position >= run.positions) continue;
            const std::size_t at =
                (std::size_t(first_token + token) * stages + stage) * run.positions + position;
            if (expected[at] == found[i]) continue;
            report.code_mismatches++;
            report.first.note("code", first_token + token, position, expected[at],
                              double(found[i]));
            differs[first_token + token] = true;
        }
    }
}

template <class E, class Beat>
void compare_results(const Case& run, const lutllm::LinearCall& call, const std::vector<Beat>& y,
                     const std::int32_t* acc, const float* results, int first_token,
                     std::vector<bool>& differs, Report& report) {
    for (int t = 0; t < call.tokens; t++) {
        const int token = first_token + t;
        for (int m = 0; m < run.outputs; m++) {
            const int lane = m % E::LANES;
            const std::size_t beat =
                (std::size_t(t) * call.subs + m / E::LANES) * E::OUT_BEATS + lane / E::FLOATS;
            const int low = lane % E::FLOATS * 32;
            const ap_uint<32> y_bits = y[2 * beat].range(low + 31, low);
            const ap_uint<32> acc_bits = y[2 * beat + 1].range(low + 31, low);
            const std::int32_t sum = static_cast<std::int32_t>(acc_bits.to_uint());
            const float value = lutllm::bits_to_float(y_bits);
            const std::size_t at = std::size_t(token) * run.outputs + m;
            if (sum != acc[at]) {
                report.integer_mismatches++;
                report.first.note("accumulator", token, m, acc[at], sum);
                differs[token] = true;
            }
            if (std::memcmp(&value, &results[at], sizeof value) != 0) {
                report.float_mismatches++;
                report.first.note("result", token, m, results[at], value);
                report.max_abs_error =
                    std::fmax(report.max_abs_error, std::fabs(double(value) - double(results[at])));
            }
        }
    }
}

inline std::uint64_t carried(const std::string& stream) {
    const auto& counts = hls::sim::Scheduler::get().counts;
    const auto found = counts.find(stream);
    return found == counts.end() ? 0 : found->second.transactions;
}

// Counts of everything simulated since Scheduler::counts was cleared.
template <class E>
Counters count_work() {
    Counters counters;
    const std::string inner = E::ONLINE_ROWS ? "/part/" : "/";
    for (int c = 0; c < E::CHANNELS; c++) {
        const std::string channel = "channel_" + std::to_string(c);
        const std::uint64_t beats =
            carried(channel + inner + "index_beats") + carried(channel + inner + "row_beats");
        if (beats > counters.channel_beats) counters.channel_beats = beats;
    }
    counters.search_cycles = carried("channel_0/found") * E::SEARCH_PASSES;
    counters.row_cycles = carried("channel_0" + inner + "rows");
    if (E::ONLINE_ROWS) counters.row_cycles *= E::ROW_INTERVAL;
    counters.lookup_cycles = carried("totals[0]");
    counters.gather_cycles = carried("act[0]") * E::GATHER_STEPS;
    counters.output_beats = carried("y_words");
    return counters;
}

inline void print_counters(const Counters& counters) {
    std::printf(
        "\"counters\": {\"channel_beats\": %llu, \"search_cycles\": %llu, "
        "\"row_cycles\": %llu, \"lookup_cycles\": %llu, \"gather_cycles\": %llu, "
        "\"output_beats\": %llu}",
        (unsigned long long)counters.channel_beats, (unsigned long long)counters.search_cycles,
        (unsigned long long)counters.row_cycles, (unsigned long long)counters.lookup_cycles,
        (unsigned long long)counters.gather_cycles, (unsigned long long)counters.output_beats);
}

inline void print_report(const std::string& engine, const Case& run, const Report& report) {
    std::printf("{\"engine\": \"%s\", \"linear\": \"%s\", \"tokens\": %d, \"row_fetch\": %d, ",
                engine.c_str(), run.name.c_str(), run.tokens, run.row_fetch);
    std::printf(
        "\"integer_mismatches\": %llu, \"float_mismatches\": %llu, "
        "\"max_abs_error\": %.9g, \"tokens_equal\": %d, \"seconds\": %.6f",
        (unsigned long long)(report.integer_mismatches + report.code_mismatches),
        (unsigned long long)report.float_mismatches, report.max_abs_error, report.tokens_equal,
        report.seconds);
    std::printf(", ");
    print_counters(report.counters);
    if (report.first.any) {
        std::printf(
            ", \"first_divergence\": {\"kind\": \"%s\", \"token\": %d, \"index\": %d, "
            "\"expected\": %.9g, \"found\": %.9g}",
            report.first.what.c_str(), report.first.token, report.first.index,
            report.first.expected, report.first.found);
    }
    std::printf("}\n");
    std::fflush(stdout);
}

inline void print_streams() {
    for (const auto& entry : hls::sim::Scheduler::get().counts) {
        std::fprintf(stderr, "%s: %llu transactions, %llu of %llu held\n", entry.first.c_str(),
                     (unsigned long long)entry.second.transactions,
                     (unsigned long long)entry.second.high_water,
                     (unsigned long long)entry.second.depth);
    }
}

template <class E, class SelectCall, class RunKernel>
Report run_case(const Case& run, const std::string& folder,
                const Memory<typename E::beat_t>& memory, SelectCall select_call,
                RunKernel run_kernel) {
    typedef typename E::beat_t beat_t;
    const lutllm::LinearCall whole = select_call(run.kind, run.slot, run.tokens, run.row_fetch, 1);
    const File x_file(folder + "/x.bin");
    const std::size_t inputs = x_file.bytes / sizeof(float);
    const std::int32_t* acc =
        golden<std::int32_t>(folder, "acc.bin", std::size_t(run.tokens) * run.outputs);
    const float* results = golden<float>(folder, "y.bin", std::size_t(run.tokens) * run.outputs);
    const bool coded = E::SEARCH && !E::ONLINE_ROWS;
    const std::uint8_t* codes =
        coded ? golden<std::uint8_t>(folder, "codes.bin",
                                     std::size_t(run.tokens) * whole.act_stages * run.positions)
              : nullptr;
    const File acc_file(folder + "/acc.bin");
    const std::size_t golden_tokens = acc_file.bytes / sizeof(std::int32_t) / run.outputs;
    const std::size_t width = inputs / golden_tokens;
    if (width > std::size_t(whole.in_beats) * E::FLOATS) stop(folder + ": inputs do not fit");

    Report report;
    std::vector<bool> differs(run.tokens, false);
    auto& scheduler = hls::sim::Scheduler::get();
    scheduler.counts.clear();
    for (int first = 0; first < run.tokens; first += E::MAX_TOKENS) {
        Case chunk = run;
        chunk.tokens = run.tokens - first < E::MAX_TOKENS ? run.tokens - first : E::MAX_TOKENS;
        const lutllm::LinearCall call =
            select_call(run.kind, run.slot, chunk.tokens, run.row_fetch, 1);
        std::vector<float> padded(std::size_t(chunk.tokens) * call.in_beats * E::FLOATS, 0.0f);
        for (int t = 0; t < chunk.tokens; t++) {
            std::memcpy(&padded[std::size_t(t) * call.in_beats * E::FLOATS],
                        x_file.data + std::size_t(first + t) * width * sizeof(float),
                        width * sizeof(float));
        }
        std::vector<beat_t> x(padded.size() / E::FLOATS);
        std::memcpy(static_cast<void*>(x.data()), padded.data(), padded.size() * sizeof(float));
        std::vector<beat_t> y(2 * std::size_t(chunk.tokens) * call.subs * E::OUT_BEATS);
        scheduler.taps.clear();
        for (int c = 0; coded && c < E::CHANNELS; c++) {
            scheduler.taps["channel_" + std::to_string(c) + "/found"];
        }
        const double start = now_seconds();
        run_kernel(memory, x.data(), y.data(), chunk);
        report.seconds += now_seconds() - start;
        if (coded) compare_codes<E>(run, call, codes, first, differs, report);
        compare_results<E>(run, call, y, acc, results, first, differs, report);
    }
    for (const bool different : differs) report.tokens_equal += !different;
    report.counters = count_work<E>();
    return report;
}

template <class E, class SelectCall, class RunKernel>
int run_cases(int argc, char** argv, const std::string& engine, SelectCall select_call,
              RunKernel run_kernel) {
    static_assert(sizeof(typename E::beat_t) == E::AXI_BITS / 8, "beats lie as in memory");
    if (argc < 3) stop("usage: " + engine + "_csim IMAGES GOLDEN [--streams] < cases");
    const Memory<typename E::beat_t> memory(std::string(argv[1]) + "/" + engine);
    char name[512];
    Case run;
    while (std::scanf("%511s %d %d %d %d %d %d", name, &run.kind, &run.slot, &run.positions,
                      &run.outputs, &run.tokens, &run.row_fetch) == 7) {
        run.name = name;
        std::fprintf(stderr, "case %s, %d tokens, row fetch %d\n", name, run.tokens, run.row_fetch);
        const std::string folder = std::string(argv[2]) + "/" + run.name;
        print_report(engine, run, run_case<E>(run, folder, memory, select_call, run_kernel));
    }
    if (argc > 3 && std::string(argv[3]) == "--streams") print_streams();
    return 0;
}

}  // namespace testbench
