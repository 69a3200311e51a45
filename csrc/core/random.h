// Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). A
// draw is a pure function of (seed, row, position, stream), so a row samples the same alone, in any batch, on any
// number of threads, and on the host as on a GPU.
#pragma once

#include <stdint.h>

#include "core/both.h"

namespace kdtw {

enum class RandomStream : uint32_t { kStudent, kTeacher, kAccept, kCall };

// Encrypts the counter in place; the key is used up.
KDTW_BOTH void philox4x32(uint32_t (&counter)[4], uint32_t (&key)[2]) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * counter[0], b = 0xCD9E8D57ull * counter[2];
    counter[0] = static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0];
    counter[1] = static_cast<uint32_t>(b);
    counter[2] = static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1];
    counter[3] = static_cast<uint32_t>(a);
    key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
  }
}

// Uniform in [0, 1) with 53 random bits.
KDTW_BOTH double uniform(uint64_t seed, uint64_t row, uint32_t position, RandomStream stream) {
  uint32_t bits[4] = {position, static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32),
                      static_cast<uint32_t>(stream)};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  philox4x32(bits, key);
  return ((bits[0] >> 5) * 67108864.0 + (bits[1] >> 6)) / 9007199254740992.0;
}

}  // namespace kdtw
