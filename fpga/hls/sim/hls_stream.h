// hls_stream.h: bounded FIFOs and cooperative processes, for C simulation.
//
// Each process of a dataflow region is a coroutine that runs until a stream blocks it. A stream
// holds no more than its depth, as in hardware, so a FIFO that is too shallow, or a process that
// expects one element too many, stops everything: that is reported with the name of every blocked
// process and of the stream it waits for, and the program ends with status 3. Elements left in a
// stream when its region ends are reported the same way.
//
// With LUTLLM_SEQUENTIAL the processes are plain calls and streams are unbounded, as in the C
// simulation of Vitis HLS.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#define LUTLLM_SIMULATION 1

namespace hls {
namespace sim {

struct Process;

// Counts of one stream, summed over all streams of the same name.
struct StreamCounts {
    std::uint64_t transactions = 0;
    std::size_t high_water = 0, depth = 0;
};

struct Process {
    ucontext_t context;
    jmp_buf resume;
    void (*body)(void*) = nullptr;  // called with `closure`, which it frees
    void* closure = nullptr;
    std::string name;
    void* stack = nullptr;
    Process* parent = nullptr;
    int children = 0;  // unfinished processes that this one spawned
    bool started = false, done = false;
    const char* verb = "";  // what it waits for: "read", "write" or "its processes"
    const std::string* stream = nullptr;
};

constexpr std::size_t STACK_BYTES = std::size_t(256) << 20;  // reserved; touched pages only count

class Scheduler {
  public:
    static Scheduler& get() {
        static Scheduler scheduler;
        return scheduler;
    }

    std::string path() const { return current_ ? current_->name + "/" : std::string(); }
    bool running() const { return current_ != nullptr; }
    Process* current() { return current_; }

    Process* spawn(const char* name, void (*body)(void*), void* closure) {
        processes_.emplace_back(new Process);
        Process* process = processes_.back().get();
        process->name = path() + name;
        process->body = body;
        process->closure = closure;
        process->parent = current_;
        if (current_) current_->children++;
        process->stack = take_stack();
        getcontext(&process->context);
        process->context.uc_stack.ss_sp = process->stack;
        process->context.uc_stack.ss_size = STACK_BYTES;
        process->context.uc_link = nullptr;
        makecontext(&process->context, reinterpret_cast<void (*)()>(&Scheduler::entry), 0);
        ready_.push_back(process);
        return process;
    }

    // Wait until every process that the caller spawned has ended.
    void join() {
        if (!current_) return run();
        while (current_->children > 0) block("its processes", nullptr);
    }

    void wake(Process*& waiting) {
        if (!waiting) return;
        ready_.push_back(waiting);
        waiting = nullptr;
    }

    // Leave the running process until someone wakes it.
    void block(const char* verb, const std::string* stream) {
        current_->verb = verb;
        current_->stream = stream;
        switches++;
        if (_setjmp(current_->resume) == 0) _longjmp(main_, 1);
    }

    [[noreturn]] void fail(const std::string& message) {
        std::fprintf(stderr, "%s\n", message.c_str());
        std::fflush(stderr);
        std::_Exit(3);
    }

    std::uint64_t switches = 0;
    std::map<std::string, StreamCounts> counts;
    std::map<std::string, std::vector<std::uint64_t>> taps;  // values seen by the streams named

  private:
    static void entry() {
        Scheduler& scheduler = get();
        scheduler.current_->body(scheduler.current_->closure);
        scheduler.current_->done = true;
        _longjmp(scheduler.main_, 1);
    }

    void* take_stack() {
        if (!stacks_.empty()) {
            void* stack = stacks_.back();
            stacks_.pop_back();
            return stack;
        }
        void* stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) fail("simulation: no address space for the stack of a process");
        return stack;
    }

    void run() {
        while (!ready_.empty()) {
            Process* volatile process = ready_.front();
            ready_.pop_front();
            current_ = process;
            if (_setjmp(main_) == 0) {
                if (process->started) _longjmp(process->resume, 1);
                process->started = true;
                setcontext(&process->context);
            }
            current_ = nullptr;
            if (process->done) finish(process);
        }
        report_deadlock();
        processes_.clear();
    }

    void finish(Process* process) {
        stacks_.push_back(process->stack);
        Process* parent = process->parent;
        if (parent && --parent->children == 0) ready_.push_back(parent);
    }

    void report_deadlock() {
        std::string text;
        int blocked = 0;
        for (auto& process : processes_) {
            if (process->done) continue;
            blocked++;
            text += "\n  " + process->name + " waits for " + process->verb;
            if (process->stream) text += " of " + *process->stream;
        }
        if (blocked) fail("DEADLOCK: " + std::to_string(blocked) + " processes blocked" + text);
    }

    std::deque<Process*> ready_;
    std::vector<std::unique_ptr<Process>> processes_;
    std::vector<void*> stacks_;
    Process* current_ = nullptr;
    jmp_buf main_;
};

// A dataflow region: spawns its processes and, at the end of its scope, waits for them.
class Region {
  public:
    template <class Body>
    void spawn(const char* name, const Body& body) {
        Scheduler::get().spawn(name, &run<Body>, new Body(body));
    }
    ~Region() { Scheduler::get().join(); }

  private:
    template <class Body>
    static void run(void* closure) {
        Body* body = static_cast<Body*>(closure);
        (*body)();
        delete body;
    }
};

template <class T>
auto bits_of(const T& value, int) -> decltype(value.to_uint64()) {
    return value.to_uint64();
}
template <class T>
std::uint64_t bits_of(const T&, long) {
    return 0;
}

}  // namespace sim

template <class T, int DEPTH = 2>
class stream {
  public:
    explicit stream(const char* name = "stream") { set_name(name); }
    stream(const stream&) = delete;
    stream& operator=(const stream&) = delete;

    ~stream() {
        sim::Scheduler& scheduler = sim::Scheduler::get();
        if (count_) {
            scheduler.fail("LEFTOVER: stream " + name_ + " ends with " + std::to_string(count_) +
                           " elements that no process read");
        }
        sim::StreamCounts& counts = scheduler.counts[name_];
        counts.transactions += transactions_;
        counts.depth = DEPTH;
        if (high_water_ > counts.high_water) counts.high_water = high_water_;
    }

    void set_name(const std::string& name) {
        sim::Scheduler& scheduler = sim::Scheduler::get();
        name_ = scheduler.path() + name;
        auto tap = scheduler.taps.find(name_);
        tap_ = tap == scheduler.taps.end() ? nullptr : &tap->second;
    }

    void set_name(const char* array, int index) {
        set_name(std::string(array) + "[" + std::to_string(index) + "]");
    }

    T read() {
        if (count_ == 0) wait(reader_, "read");
        T value = ring_[first_];
        first_ = first_ + 1 == capacity_ ? 0 : first_ + 1;
        count_--;
        if (writer_) sim::Scheduler::get().wake(writer_);
        return value;
    }
    void read(T& value) { value = read(); }

    void write(const T& value) {
        if (count_ == capacity_) make_room();
        std::size_t at = first_ + count_;
        ring_[at < capacity_ ? at : at - capacity_] = value;
        if (++count_ > high_water_) high_water_ = count_;
        transactions_++;
        if (tap_) tap_->push_back(sim::bits_of(value, 0));
        if (reader_) sim::Scheduler::get().wake(reader_);
    }

    bool empty() const { return count_ == 0; }
    bool full() const { return count_ == capacity_; }
    std::size_t size() const { return count_; }

  private:
    __attribute__((noinline)) void wait(sim::Process*& waiting, const char* verb) {
        sim::Scheduler& scheduler = sim::Scheduler::get();
        if (!scheduler.running()) {
            scheduler.fail("stream " + name_ + ": " + verb + " blocks outside of a process");
        }
        do {
            waiting = scheduler.current();
            scheduler.block(verb, &name_);
        } while (verb[0] == 'r' ? count_ == 0 : count_ == capacity_);
    }

    __attribute__((noinline)) void make_room() {
#ifdef LUTLLM_SEQUENTIAL
        std::unique_ptr<T[]> larger(new T[2 * capacity_]);
        for (std::size_t i = 0; i < count_; i++) larger[i] = ring_[(first_ + i) % capacity_];
        ring_ = std::move(larger);
        first_ = 0;
        capacity_ *= 2;
#else
        if (sim::Scheduler::get().running())
            wait(writer_, "write");
        else
            sim::Scheduler::get().fail("stream " + name_ + ": write blocks outside of a process");
#endif
    }

    static_assert(DEPTH >= 1, "a stream holds at least one element");
    std::size_t capacity_ = DEPTH, first_ = 0, count_ = 0, high_water_ = 0;
    std::uint64_t transactions_ = 0;
    std::unique_ptr<T[]> ring_{new T[DEPTH]};
    std::string name_;
    std::vector<std::uint64_t>* tap_ = nullptr;
    sim::Process *reader_ = nullptr, *writer_ = nullptr;
};

}  // namespace hls
