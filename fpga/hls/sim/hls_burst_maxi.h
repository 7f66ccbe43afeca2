// hls_burst_maxi.h: the manual-burst memory port of Vitis HLS, for C simulation.
//
// read() hands out the beats of the requested bursts in order. Reading without a request, or a
// request outside of the memory when its size is known, ends the program with status 3.
#pragma once

#include <cstddef>
#include <deque>
#include <string>
#include <utility>

#include "hls_stream.h"

namespace hls {

template <class T>
class burst_maxi {
  public:
    burst_maxi(const T* memory, std::size_t size = ~std::size_t(0))
        : memory_(memory), size_(size) {}

    void read_request(std::size_t offset, std::size_t length) {
        if (length == 0 || offset > size_ || length > size_ - offset) {
            fail("burst of " + std::to_string(length) + " beats at " + std::to_string(offset) +
                 " of a memory of " + std::to_string(size_) + " beats");
        }
        bursts_.emplace_back(offset, offset + length);
    }

    T read() {
        if (bursts_.empty()) fail("a beat is read that no burst asked for");
        auto& burst = bursts_.front();
        const T& beat = memory_[burst.first];
        if (++burst.first == burst.second) bursts_.pop_front();
        return beat;
    }

  private:
    static void fail(const std::string& what) {
        sim::Scheduler::get().fail("BURST: " + sim::Scheduler::get().path() + what);
    }

    const T* memory_;
    std::size_t size_;
    std::deque<std::pair<std::size_t, std::size_t>> bursts_;
};

}  // namespace hls
