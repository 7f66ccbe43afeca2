#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "buffer.hpp"

// The kernel under test, called with its arguments in order (tests/test_codegen_host.py).
void run_kernel(const std::vector<void*>& buffers, const std::vector<std::size_t>& beats,
                const std::vector<std::uint32_t>& numbers);

namespace vrt {
class Kernel {
  public:
    Kernel(Device&, const std::string&) {}
    MemoryConfig argMemoryConfig(const std::string&) const { return {}; }
    template <class T>
    void setArg(std::uint32_t index, Buffer<T>& buffer) {
        if (index == 0) clear();
        buffers_.push_back(buffer.data());
        beats_.push_back(buffer.size());
    }
    void setArg(std::uint32_t, std::uint32_t number) { numbers_.push_back(number); }
    void start() { run_kernel(buffers_, beats_, numbers_); }
    void wait() {}

  private:
    void clear() {
        buffers_.clear();
        beats_.clear();
        numbers_.clear();
    }
    std::vector<void*> buffers_;
    std::vector<std::size_t> beats_;
    std::vector<std::uint32_t> numbers_;
};
}  // namespace vrt
