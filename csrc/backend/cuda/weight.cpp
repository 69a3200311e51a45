#include "backend/cuda/weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/bf16.h"
#include "core/error.h"
#include "core/fp16.h"

namespace kdtw::cuda {
namespace {

// Symmetric, as the CPU's: round(x / scale) with scale = largest |x| / 127; NaN when one of x is not finite.
float quantise(const float* x, int size, int8_t* to) {
  constexpr float kSmallest = 1e-35f;  // of what has a reciprocal
  float largest = 0.0f;
  bool finite = true;
  for (int k = 0; k < size; ++k) {
    finite = finite && std::isfinite(x[k]);
    largest = std::max(largest, std::fabs(x[k]));
  }
  const bool usable = finite && largest >= kSmallest;
  const float inverse = usable ? 127.0f / largest : 0.0f;
  for (int k = 0; k < size; ++k) to[k] = usable ? static_cast<int8_t>(std::nearbyint(x[k] * inverse)) : int8_t{0};
  return finite ? (usable ? largest / 127.0f : 0.0f) : std::numeric_limits<float>::quiet_NaN();
}

void pack_row(const float* x, int size, KdtwFormat format, std::byte* to) {
  auto* halves = reinterpret_cast<uint16_t*>(to);
  if (format == kKdtwFp32) std::memcpy(to, x, size * sizeof(float));
  if (format == kKdtwFp16) std::transform(x, x + size, halves, to_fp16);
  if (format == kKdtwBf16) std::transform(x, x + size, halves, to_bf16);
}

}  // namespace

KdtwFormat format_of(DType dtype) {
  switch (dtype) {
    case DType::kFp32:
      return kKdtwFp32;
    case DType::kFp16:
      return kKdtwFp16;
    case DType::kBf16:
      return kKdtwBf16;
    case DType::kInt8:
      return kKdtwInt8;
  }
  throw std::logic_error("a dtype without a format");
}

int bytes_of(KdtwFormat format) { return format == kKdtwFp32 ? 4 : format == kKdtwInt8 ? 1 : 2; }

int padded(int size, KdtwFormat format) {
  const int each = 16 / bytes_of(format);
  return (size + each - 1) / each * each;
}

DeviceWeight::DeviceWeight(const std::shared_ptr<Pool>& pool, void* stream, std::span<const float* const> parts,
                           std::span<const int> part_outputs, int inputs, DType dtype)
    : Weight(
          [&] {
            int outputs = 0;
            for (const int count : part_outputs) outputs += count;
            return outputs;
          }(),
          inputs),
      library_(pool->library()) {
  view_.format = format_of(dtype);
  view_.outputs = outputs, view_.inputs = inputs, view_.stride = padded(inputs, view_.format);
  const size_t row = static_cast<size_t>(view_.stride) * bytes_of(view_.format), matrix = row * outputs;
  bytes_ = matrix + (dtype == DType::kInt8 ? outputs * sizeof(float) : 0);
  std::vector<std::byte> packed(bytes_);
  auto* scales = reinterpret_cast<float*>(packed.data() + matrix);
  int n = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    for (int r = 0; r < part_outputs[i]; ++r, ++n) {
      const float* line = parts[i] + static_cast<size_t>(r) * inputs;
      std::byte* to = packed.data() + n * row;
      if (dtype == DType::kInt8) {
        scales[n] = quantise(line, inputs, reinterpret_cast<int8_t*>(to));
      } else {
        pack_row(line, inputs, view_.format, to);
      }
    }
  }
  const KdtwCudaTable& table = *library_.table;
  memory_ = pool->allocate(bytes_, nullptr);
  check(table, table.copy_in(memory_.get(), packed.data(), bytes_, stream), "copy to the device");
  check(table, table.synchronise(stream), "copy to the device");
  view_.data = memory_.get();
  if (dtype == DType::kInt8)
    view_.scales = reinterpret_cast<const float*>(static_cast<const std::byte*>(memory_.get()) + matrix);
}

std::span<const std::byte> DeviceWeight::blob() const {
  throw std::runtime_error(
      "weights in device memory have no packed bytes to keep in a file; pack them for device 'cpu'");
}

DeviceCache::DeviceCache(Pool& pool, void* stream, int rows, int heads, int head_size, int capacity, DType dtype) {
  require(dtype != DType::kInt8, "keys and values are cached in fp32, fp16 or bf16, not in int8");
  view_.format = format_of(dtype);
  view_.rows = rows, view_.heads = heads, view_.head_size = head_size, view_.capacity = capacity;
  view_.stride = padded(head_size, view_.format);
  const int most = view_.format == kKdtwFp32 ? kKdtwLargestHeadFp32 : kKdtwLargestHead;
  require(head_size <= most, "heads of size ", head_size, " are too large for the CUDA kernels, which take up to ",
          most, " with this cache_dtype");
  const size_t half = static_cast<size_t>(rows) * heads * capacity * view_.stride * bytes_of(view_.format);
  bytes_ = 2 * half;
  memory_ = pool.allocate(bytes_, stream);
  view_.keys = memory_.get();
  view_.values = static_cast<std::byte*>(memory_.get()) + half;
}

}  // namespace kdtw::cuda
