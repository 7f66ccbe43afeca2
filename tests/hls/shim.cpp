// Checks of the simulation headers. Usage: shim [deadlock | leftover | outside | burst | response]
#include <ap_int.h>
#include <hls_burst_maxi.h>
#include <hls_stream.h>

#include <cstdio>
#include <cstring>
#include <type_traits>

#include "dataflow.h"

static int failures = 0;

#define CHECK(condition)                                    \
    if (!(condition)) {                                     \
        std::printf("line %d: %s\n", __LINE__, #condition); \
        failures++;                                         \
    }

template <int W, bool S>
int width_of(const ap_int_base<W, S>&) {
    return W;
}

static void check_integers() {
    CHECK(ap_int<8>(200).to_int() == -56);
    CHECK(ap_uint<4>(-1).to_int() == 15);
    CHECK(ap_int<10>(-512).to_int() == -512);
    CHECK(ap_int<10>(512).to_int() == -512);
    CHECK(ap_uint<64>(-1).to_uint64() == ~0ull);
    CHECK(width_of(ap_int<8>(1) * ap_int<12>(1)) == 20);
    CHECK(width_of(ap_uint<8>(1) + ap_uint<8>(1)) == 9);
    CHECK(width_of(ap_uint<8>(1) + ap_int<8>(1)) == 10);
    CHECK((ap_uint<8>(255) + ap_uint<8>(255)).to_int() == 510);
    CHECK((ap_uint<8>(3) - ap_uint<8>(5)).to_int() == -2);
    CHECK((ap_int<8>(-128) * ap_int<8>(-128)).to_int() == 16384);
    CHECK((ap_uint<8>(200) << 1).to_int() == 144);  // a shift keeps the width
    CHECK((ap_int<8>(-3) >> 1).to_int() == -2);
    CHECK(ap_int<8>(-1) < ap_uint<8>(0));
    CHECK(ap_uint<48>(1) << 47 == ap_uint<48>(1ull << 47));
    ap_int<8> sum = 127;
    sum += ap_int<8>(1);
    CHECK(sum.to_int() == -128);
}

static void check_ranges() {
    ap_uint<256> wide = 0;
    wide.range(130, 60) = ap_uint<71>(-1);
    CHECK(wide.range(59, 0).to_uint64() == 0);
    CHECK(wide.range(63, 60).to_uint64() == 15);
    CHECK(wide.range(127, 64).to_uint64() == ~0ull);
    CHECK(wide.range(131, 128).to_uint64() == 7);
    const ap_uint<71> part = wide.range(130, 60);
    CHECK(part.range(63, 0).to_uint64() == ~0ull && part.range(70, 64).to_uint64() == 127);
    ap_uint<100> copy = wide;
    CHECK(copy.range(99, 64).to_uint64() == (1ull << 36) - 1);
    ap_uint<12> small = 0;
    small.range(7, 4) = 9;
    CHECK(small.to_uint() == 0x90);
    CHECK(sizeof(ap_uint<256>) == 32);
    ap_uint<256> bytes;
    const char text[33] = "0123456789abcdef0123456789abcdef";
    std::memcpy(static_cast<void*>(&bytes), text, 32);
    CHECK(bytes.range(15, 8).to_uint64() == '1');
}

static void produce(hls::stream<int, 2>& out, int count) {
    for (int i = 0; i < count; i++) out.write(i);
}

static void consume(hls::stream<int, 2>& in, int count, int& sum) {
    for (int i = 0; i < count; i++) sum += in.read();
}

static int run(int produced, int consumed) {
    int sum = 0;
    hls::stream<int, 2> numbers("numbers");
    LUTLLM_REGION;
    LUTLLM_PROCESS("producer", produce(numbers, produced));
    LUTLLM_PROCESS("consumer", consume(numbers, consumed, sum));
    return sum;
}

static void nested(int& sum) {
    hls::stream<int, 2> numbers("numbers");
    LUTLLM_REGION;
    LUTLLM_PROCESS("producer", produce(numbers, 100));
    LUTLLM_PROCESS("consumer", consume(numbers, 100, sum));
}

static void check_processes() {
    int left = 0, right = 0;
    {
        LUTLLM_REGION;
        LUTLLM_PROCESS("left", nested(left));
        LUTLLM_PROCESS("right", nested(right));
    }
    CHECK(left == 4950 && right == 4950);
    const auto& counts = hls::sim::Scheduler::get().counts;
    CHECK(counts.at("left/numbers").transactions == 100);
    CHECK(counts.at("left/numbers").high_water <= 2);
}

static void check_bursts() {
    ap_uint<64> memory[4];
    for (int i = 0; i < 4; i++) memory[i] = i;
    hls::burst_maxi<ap_uint<64> > port(memory, 4);
    port.read_request(2, 2);
    port.read_request(0, 1);
    CHECK(port.read().to_int() == 2);
    CHECK(port.read().to_int() == 3);
    CHECK(port.read().to_int() == 0);
    port.write_request(1, 2);
    port.write(ap_uint<64>(7));
    port.write(ap_uint<64>(8));
    port.write_response();
    CHECK(memory[1].to_int() == 7 && memory[2].to_int() == 8 && memory[3].to_int() == 3);
}

int main(int argc, char** argv) {
    const char* mode = argc > 1 ? argv[1] : "";
    if (!std::strcmp(mode, "deadlock")) run(5, 6);
    if (!std::strcmp(mode, "leftover")) run(6, 5);
    if (!std::strcmp(mode, "outside")) hls::stream<int>("alone").read();
    if (!std::strcmp(mode, "burst"))
        hls::burst_maxi<ap_uint<64> >(static_cast<ap_uint<64>*>(nullptr), 4).read_request(3, 2);
    if (!std::strcmp(mode, "response")) {
        ap_uint<64> memory[2];
        hls::burst_maxi<ap_uint<64> > port(memory, 2);
        port.write_request(0, 2);
        port.write(ap_uint<64>(1));
        port.write_response();
    }
    check_integers();
    check_ranges();
    check_processes();
    check_bursts();
    return failures ? 1 : 0;
}
