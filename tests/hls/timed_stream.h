// timed_stream.h: streams that know when. Stands in for hls_stream.h to count cycles.
//
// Every process has a clock, and so has the code outside of all. An iteration of a pipelined loop
// moves it by the loop's interval (tests put a call of tick() behind each PIPELINE pragma), a read
// waits for the cycle in which the element was written, a write for the cycle in which the element
// DEPTH before it was read. Processes start when their region does and end it when the last of them
// ends. So the last clock is the length of a run on hardware with no latencies but the same loops,
// intervals and FIFOs.
#pragma once

#include "untimed_stream.h"

#include <algorithm>

namespace hls {
namespace timing {

struct Clock {
    long long now = 0, busy = 0;
    long long joined = 0;                                     // end of the regions inside
    long long load_end = 0, serve_start = 0, load_busy = 0;  // of double-buffered arrays
};

inline std::map<const sim::Process*, Clock>& clocks() {
    static std::map<const sim::Process*, Clock> all;
    return all;
}

inline Clock& clock() {
    Clock& mine = clocks()[sim::Scheduler::get().current()];
    mine.now = std::max(mine.now, mine.joined);
    return mine;
}

inline long long now() { return clock().now; }

// One iteration of a pipelined loop.
inline void tick(long long interval) {
    Clock& mine = clock();
    mine.now += interval;
    mine.busy += interval;
}

// A process from start to end; prints its name, busy cycles, first and last cycle.
struct Process {
    const sim::Process* process = sim::Scheduler::get().current();
    const long long start;
    explicit Process(long long start_now) : start(start_now) {
        clocks()[process] = Clock();
        clocks()[process].now = start;
    }
    ~Process() {
        const Clock mine = clock();
        print("", mine.busy, mine.now);
        if (mine.load_busy) print("/load", mine.load_busy, mine.load_end);
        clocks().erase(process);
        Clock& outer = clocks()[process->parent];
        outer.joined = std::max(outer.joined, mine.now);
    }
    void print(const char* part, long long busy, long long end) const {
        std::fprintf(stderr, "process %s%s %lld %lld %lld\n", process->name.c_str(), part, busy,
                     start, end);
    }
};

// Loading one of two buffers while the other is served: on a time line of its own.
struct Aside {
    long long entered = now(), busy = clock().busy;
    Aside() { clock().now = std::max(clock().load_end, clock().serve_start); }
    ~Aside() {
        Clock& mine = clock();
        mine.load_busy += mine.busy - busy;
        mine.busy = busy;
        mine.load_end = mine.now;
        mine.now = mine.serve_start = std::max(entered, mine.load_end);
    }
};

// Prints where the clock outside of all processes stands when the program ends.
struct Total {
    ~Total() { std::fprintf(stderr, "process total 0 0 %lld\n", now()); }
};

template <class T>
struct Item {
    T value;
    long long written;
};

template <class T>
struct Handle {
    Item<T>* item;
    std::uint64_t to_uint64() const { return sim::bits_of(item->value, 0); }
};

}  // namespace timing

template <class T, int DEPTH = 2>
class stream : public untimed_stream<timing::Handle<T>, DEPTH> {
    typedef untimed_stream<timing::Handle<T>, DEPTH> base;

  public:
    explicit stream(const char* name = "stream") : base(name) {}

    T read() {
        timing::Item<T>* item = base::read().item;
        timing::Clock& mine = timing::clock();
        mine.now = std::max(mine.now, item->written);
        freed_.push_back(mine.now);
        due_.pop_front();
        T value = item->value;
        delete item;
        return value;
    }
    void read(T& value) { value = read(); }

    void write(const T& value) {
        timing::Item<T>* item = new timing::Item<T>{value, 0};
        base::write(timing::Handle<T>{item});  // returns when there is room
        timing::Clock& mine = timing::clock();
        if (++written_ > DEPTH) {
            mine.now = std::max(mine.now, freed_.front());
            freed_.pop_front();
        }
        item->written = mine.now;  // the reader runs after we yield
        due_.push_back(mine.now);
    }

    // Nothing has been written by now; what other processes wrote later does not count.
    bool empty() const { return due_.empty() || due_.front() > timing::clock().now; }

  private:
    std::deque<long long> due_;
    std::deque<long long> freed_;
    long long written_ = 0;
};

}  // namespace hls
