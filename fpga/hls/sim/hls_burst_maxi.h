// hls_burst_maxi.h: the manual-burst memory port of Vitis HLS, for C simulation.
//
// read() hands out the beats of the requested bursts in order, write() fills the requested bursts
// in order, write_response() waits for the oldest of them. A beat without a request, a response
// before its burst is complete, or a request outside of the memory when its size is known, ends
// the program with status 3.
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
    burst_maxi(T* memory, std::size_t size = ~std::size_t(0))
        : memory_(memory), writable_(memory), size_(size) {}
    burst_maxi(const T* memory, std::size_t size = ~std::size_t(0))
        : memory_(memory), writable_(nullptr), size_(size) {}

    void read_request(std::size_t offset, std::size_t length) { request(reads_, offset, length); }

    T read() {
        if (reads_.empty()) fail("a beat is read that no burst asked for");
        auto& burst = reads_.front();
        const T& beat = memory_[burst.first];
        if (++burst.first == burst.second) reads_.pop_front();
        return beat;
    }

    void write_request(std::size_t offset, std::size_t length) {
        if (!writable_) fail("a burst writes to memory that is only read");
        request(writes_, offset, length);
    }

    void write(const T& beat) {
        if (writes_.empty()) fail("a beat is written that no burst asked for");
        auto& burst = writes_.front();
        writable_[burst.first] = beat;
        if (++burst.first == burst.second) {
            writes_.pop_front();
            written_++;
        }
    }

    void write_response() {
        if (written_ == 0) fail("a response is awaited before its burst is written");
        written_--;
    }

  private:
    typedef std::deque<std::pair<std::size_t, std::size_t>> Bursts;

    void request(Bursts& bursts, std::size_t offset, std::size_t length) {
        if (length == 0 || offset > size_ || length > size_ - offset) {
            fail("burst of " + std::to_string(length) + " beats at " + std::to_string(offset) +
                 " of a memory of " + std::to_string(size_) + " beats");
        }
        bursts.emplace_back(offset, offset + length);
    }

    static void fail(const std::string& what) {
        sim::Scheduler::get().fail("BURST: " + sim::Scheduler::get().path() + what);
    }

    const T* memory_;
    T* writable_;
    std::size_t size_;
    Bursts reads_, writes_;
    int written_ = 0;
};

}  // namespace hls
