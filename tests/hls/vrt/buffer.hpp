// The part of the VRT interface that host/main.cpp uses, without a board: for tests.
#pragma once
#include <cstddef>
#include <vector>

#include "device.hpp"

namespace vrt {
enum class SyncType { HOST_TO_DEVICE, DEVICE_TO_HOST };
template <class T>
class Buffer {
  public:
    Buffer(const Device&, std::size_t size, MemoryConfig) : data_(size) {}
    T& operator[](std::size_t i) { return data_.at(i); }
    void sync(SyncType) {}
    T* data() { return data_.data(); }
    std::size_t size() const { return data_.size(); }

  private:
    std::vector<T> data_;
};
}  // namespace vrt
