// Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy
// as 1, 2, 3"). A draw is a pure function of (seed, row, position, stream), so a row samples the
// same alone, in any batch and on any number of threads.
#pragma once

#include <array>
#include <cstdint>

namespace kdtw {

enum class RandomStream : uint32_t { kStudent = 0, kTeacher = 1, kAccept = 2, kCall = 3 };

inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * counter[0];
    const uint64_t b = 0xCD9E8D57ull * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

// Uniform in [0, 1) with 53 random bits.
inline double uniform(uint64_t seed, uint64_t row, uint32_t position, RandomStream stream) {
  const auto bits = philox4x32(
      {position, static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32), static_cast<uint32_t>(stream)},
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return ((bits[0] >> 5) * 67108864.0 + (bits[1] >> 6)) / 9007199254740992.0;
}

}  // namespace kdtw
