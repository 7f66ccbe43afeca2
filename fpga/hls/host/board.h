// board.h: what the host programs of a design share: beats, files, images in the board's memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <vrt/buffer.hpp>
#include <vrt/device.hpp>
#include <vrt/kernel.hpp>

template <int BYTES>
struct alignas(BYTES) MemoryBeat {
    std::uint32_t word[BYTES / 4];
};

inline std::vector<char> read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) throw std::runtime_error(path + ": cannot be read");
    std::vector<char> bytes(static_cast<std::size_t>(file.tellg()));
    file.seekg(0);
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return bytes;
}

// A file in the memory behind an argument of a kernel, added to `images`.
template <class Beat>
void load_image(vrt::Device& device, const vrt::Kernel& kernel, const std::string& argument,
                const std::string& path, std::vector<vrt::Buffer<Beat>>& images) {
    const std::vector<char> bytes = read_file(path);
    images.emplace_back(device, bytes.size() / sizeof(Beat), kernel.argMemoryConfig(argument));
    for (std::size_t i = 0; i < bytes.size() / sizeof(Beat); i++) {
        std::memcpy(&images.back()[i], &bytes[i * sizeof(Beat)], sizeof(Beat));
    }
    images.back().sync(vrt::SyncType::HOST_TO_DEVICE);
}
