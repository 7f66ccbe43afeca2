#pragma once
#include <string>

namespace vrt {
struct MemoryConfig {};
struct Device {
    Device(const std::string&, const std::string&) {}
    void cleanup() {}
};
}  // namespace vrt
