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

// Largest |x| of a row; 0 where it has no reciprocal, NaN where one of x is not finite.
float largest_of(const float* x, int size) {
  constexpr float kSmallest = 1e-35f;
  float largest = 0.0f;
  for (int k = 0; k < size; ++k) {
    if (!std::isfinite(x[k])) return std::numeric_limits<float>::quiet_NaN();
    largest = std::max(largest, std::fabs(x[k]));
  }
  return largest >= kSmallest ? largest : 0.0f;
}

// Symmetric, as the CPU's: round(x / scale) with scale = largest |x| / 127. Returns the scale.
float quantise(const float* x, int size, int8_t* to) {
  const float largest = largest_of(x, size);
  if (!(largest > 0.0f)) return largest;  // the row stays zero
  const float inverse = 127.0f / largest;
  for (int k = 0; k < size; ++k) to[k] = static_cast<int8_t>(std::nearbyint(x[k] * inverse));
  return largest / 127.0f;
}

// fp16(x / scale) with the power of two that puts the largest |x| into [2^14, 2^15). Returns the scale. bf16 has fewer
// digits than fp16: of values rounded to either before, at most those below 2^-28 of the largest lose any.
float scale_to_fp16(const float* x, int size, uint16_t* to) {
  const float largest = largest_of(x, size);
  if (!(largest > 0.0f)) return largest;
  const int exponent = std::max(std::ilogb(largest) - 14, -126);  // of the scale, which is a normal number
  for (int k = 0; k < size; ++k) to[k] = to_fp16(std::ldexp(x[k], -exponent));
  return std::ldexp(1.0f, exponent);
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
  const int each = (format == kKdtwScaledFp16 ? 64 : 16) / bytes_of(format);
  return (size + each - 1) / each * each;
}

DeviceWeight::DeviceWeight(const std::shared_ptr<Pool>& pool, void* stream, std::span<const float* const> parts,
                           std::span<const int> part_outputs, int inputs, DType dtype, WeightRole role)
    : Weight(
          [&] {
            int outputs = 0;
            for (const int count : part_outputs) outputs += count;
            return outputs;
          }(),
          inputs),
      library_(pool->library()) {
  const bool tensor = role == WeightRole::kEncoder && (dtype == DType::kFp16 || dtype == DType::kBf16);
  const bool scaled = tensor || dtype == DType::kInt8;
  view_.format = tensor ? kKdtwScaledFp16 : format_of(dtype);
  view_.outputs = outputs, view_.inputs = inputs, view_.stride = padded(inputs, view_.format);
  const size_t row = static_cast<size_t>(view_.stride) * bytes_of(view_.format), matrix = row * outputs;
  bytes_ = matrix + (scaled ? outputs * sizeof(float) : 0);
  std::vector<std::byte> packed(bytes_);
  std::vector<float> rounded(inputs);
  auto* scales = reinterpret_cast<float*>(packed.data() + matrix);
  int n = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    for (int r = 0; r < part_outputs[i]; ++r, ++n) {
      const float* line = parts[i] + static_cast<size_t>(r) * inputs;
      std::byte* to = packed.data() + n * row;
      if (dtype == DType::kInt8) {
        scales[n] = quantise(line, inputs, reinterpret_cast<int8_t*>(to));
      } else if (tensor) {  // the same values as everywhere else
        std::transform(line, line + inputs, rounded.begin(),
                       [&](float x) { return dtype == DType::kFp16 ? from_fp16(to_fp16(x)) : from_bf16(to_bf16(x)); });
        scales[n] = scale_to_fp16(rounded.data(), inputs, reinterpret_cast<uint16_t*>(to));
      } else {
        pack_row(line, inputs, view_.format, to);
      }
    }
  }
  const KdtwCudaTable& table = *library_.table;
  memory_ = pool->allocate(bytes_, nullptr);
  pool->follow_program(stream);  // whose work may not be done with that memory
  check(table, table.copy_in(memory_.get(), packed.data(), bytes_, stream), "copy to the device");
  check(table, table.synchronise(stream), "copy to the device");
  view_.data = memory_.get();
  if (scaled) view_.scales = reinterpret_cast<const float*>(static_cast<const std::byte*>(memory_.get()) + matrix);
}

Blob DeviceWeight::blob() const {
  throw std::runtime_error(
      "weights in device memory have no packed bytes to keep in a file; pack them for device 'cpu'");
}

DeviceWeight::DeviceWeight(const DeviceWeight& whole, int outputs)
    : Weight(outputs, whole.inputs),
      library_(whole.library_),
      bytes_(whole.bytes_),
      memory_(whole.memory_),
      view_(whole.view_) {
  view_.outputs = outputs;
  bias = whole.bias, cap = whole.cap;
}

std::unique_ptr<Weight> DeviceWeight::first(int count) const {
  return std::unique_ptr<Weight>(new DeviceWeight(*this, count));
}

DeviceCache::DeviceCache(const std::function<std::shared_ptr<void>(size_t)>& allocate, int rows, int heads,
                         int head_size, int capacity, DType dtype) {
  require(dtype != DType::kInt8, "keys and values are cached in fp32, fp16 or bf16, not in int8");
  view_.format = format_of(dtype);
  view_.rows = rows, view_.heads = heads, view_.head_size = head_size, view_.capacity = capacity;
  view_.stride = padded(head_size, view_.format);
  const int most = view_.format == kKdtwFp32 ? kKdtwLargestHeadFp32 : kKdtwLargestHead;
  require(head_size <= most, "heads of size ", head_size, " are too large for the CUDA kernels, which take up to ",
          most, " with this cache_dtype");
  const size_t half = static_cast<size_t>(rows) * heads * capacity * view_.stride * bytes_of(view_.format);
  bytes_ = 2 * half;
  memory_ = allocate(bytes_);
  view_.keys = memory_.get();
  view_.values = static_cast<std::byte*>(memory_.get()) + half;
}

}  // namespace kdtw::cuda
