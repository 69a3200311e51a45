// What a fuzzer's bytes mean: numbers near the edges of what is allowed, and now and then anything.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <source_location>
#include <vector>

namespace kdtw::fuzz {

class Bytes : public FuzzedDataProvider {
 public:
  using FuzzedDataProvider::FuzzedDataProvider;

  int small(int low, int high) { return ConsumeIntegralInRange<int>(low, high); }
  bool rarely() { return small(0, 15) == 15; }
  // A small number mostly, else one that overflows something.
  int size(int low, int high) {
    if (!rarely()) return small(low, high);
    return PickValueInArray<int>({0, -1, 1 << 15, 1 << 16, (1 << 30) - 1, 1 << 30, std::numeric_limits<int>::max(),
                                  std::numeric_limits<int>::min()});
  }
  float number() {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    switch (small(0, 7)) {
      case 0:
        return PickValueInArray({0.0f, -0.0f, 1e-40f, 3e38f, -3e38f, kInfinity, -kInfinity, std::nanf("")});
      case 1:
        return ConsumeFloatingPoint<float>();
      default:
        return ConsumeFloatingPointInRange(-4.0f, 4.0f);
    }
  }
  std::vector<float> numbers(size_t count) {
    std::vector<float> values(count);
    // What repeats is enough for a matrix, and leaves bytes for the rest.
    const size_t own = std::min<size_t>(count, small(1, 24));
    for (size_t i = 0; i < count; ++i) values[i] = i < own ? number() : values[i % own] * 0.75f;
    return values;
  }
  std::vector<int32_t> ids(int low, int high, int vocabulary) {
    std::vector<int32_t> found(small(low, high));
    for (auto& id : found) id = small(0, vocabulary - 1);
    return found;
  }
};

// A broken promise ends the run like a crash.
inline void hold(bool ok, const std::source_location& at = std::source_location::current()) {
  if (ok) return;
  std::fprintf(stderr, "%s:%u: a promise is broken\n", at.file_name(), at.line());
  std::abort();
}

}  // namespace kdtw::fuzz
