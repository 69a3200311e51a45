#include "backend/cpu/packed_weight.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/memory.h"
#include "backend/cpu/thread_pool.h"
#include "core/bf16.h"
#include "core/error.h"

namespace kdtw::cpu {
namespace {

// Larger int8 weights could overflow an int32 sum: 2^17 * 127 * 127 < 2^31.
constexpr int kMostInt8Inputs = 1 << 17;

int inputs_per_row(DType dtype) { return dtype == DType::kFp32 ? 1 : dtype == DType::kBf16 ? 2 : 4; }

int panel_rows(DType dtype, int inputs) {
  if (dtype == DType::kInt8) return (inputs + kChunk - 1) / kChunk * (kChunk / 4);
  return (inputs + inputs_per_row(dtype) - 1) / inputs_per_row(dtype);
}

size_t bytes_of_panel(DType dtype, int inputs) {
  const size_t rows = panel_rows(dtype, inputs) + (dtype == DType::kInt8 ? 2 : 0);
  return rows * kPanelRow;
}

int panels_of(int outputs) { return (outputs + kPanel - 1) / kPanel; }

}  // namespace

PackedWeight::PackedWeight(int outputs, int inputs, DType dtype, Blob blob)
    : Weight(outputs, inputs),
      dtype_(dtype),
      panels_(panels_of(outputs)),
      rows_(panel_rows(dtype, inputs)),
      panel_bytes_(bytes_of_panel(dtype, inputs)),
      blob_(std::move(blob)) {
  require(blob_.bytes.size() == panels_ * panel_bytes_, "packed weights of ", outputs, " x ", inputs, " take ",
          panels_ * panel_bytes_, " bytes, got ", blob_.bytes.size());
  require(reinterpret_cast<uintptr_t>(blob_.bytes.data()) % kLine == 0, "packed weights must begin on a cache line");
}

std::unique_ptr<Weight> PackedWeight::first(int count) const {
  const Blob blob{blob_.bytes.first(panels_of(count) * panel_bytes_), blob_.owner};
  auto some = std::make_unique<PackedWeight>(count, inputs, dtype_, blob);
  some->bias = bias, some->cap = cap;
  return some;
}

std::unique_ptr<PackedWeight> PackedWeight::pack(const Kernels& kernels, std::span<const float* const> parts,
                                                 std::span<const int> part_outputs, int inputs, DType dtype,
                                                 int threads,
                                                 const std::function<void(const Range&, long work)>& done) {
  require(dtype != DType::kInt8 || inputs <= kMostInt8Inputs, "int8 weights take at most ", kMostInt8Inputs,
          " inputs, got ", inputs, "; use bf16");
  std::vector<const float*> lines;  // of every output
  for (size_t part = 0; part < parts.size(); ++part)
    for (int n = 0; n < part_outputs[part]; ++n) lines.push_back(parts[part] + static_cast<size_t>(n) * inputs);
  const int outputs = static_cast<int>(lines.size()), panels = panels_of(outputs), rows = panel_rows(dtype, inputs);
  const size_t panel_bytes = bytes_of_panel(dtype, inputs);
  const auto memory = zeroed(panels * panel_bytes);
  auto* data = reinterpret_cast<std::byte*>(aligned(memory));
  parallel_for(panels, 1, threads, [&](const Range& range) {
    // The lines of one panel in its number format, as 32-bit words: one word of every line makes a row.
    std::vector<uint32_t> words(static_cast<size_t>(kPanel) * rows);
    for (int p = range.begin; p < range.end; ++p) {
      std::byte* panel = data + p * panel_bytes;
      auto* scales = reinterpret_cast<float*>(panel + static_cast<size_t>(rows) * kPanelRow);
      auto* sums = reinterpret_cast<int32_t*>(scales + kPanel);
      const int count = std::min(kPanel, outputs - p * kPanel);
      std::fill(words.begin() + static_cast<size_t>(count) * rows, words.end(), 0);
      for (int n = 0; n < count; ++n) {
        const float* line = lines[p * kPanel + n];
        uint32_t* to = words.data() + static_cast<size_t>(n) * rows;
        if (dtype == DType::kFp32) {
          std::memcpy(to, line, inputs * sizeof(float));
        } else if (dtype == DType::kBf16) {
          auto* halves = reinterpret_cast<uint16_t*>(to);
          for (int k = 0; k < inputs; ++k) halves[k] = to_bf16(line[k]);
          if (inputs % 2 != 0) halves[inputs] = 0;
        } else {
          auto* bytes = reinterpret_cast<uint8_t*>(to);
          scales[n] = kernels.quantise(line, inputs, 0, bytes, kChunk);
          sums[n] = 0;
          for (int k = 0; k < inputs; ++k) sums[n] += static_cast<int8_t>(bytes[k]);
        }
      }
      auto* row = reinterpret_cast<uint32_t*>(panel);
      for (int i = 0; i < rows; ++i, row += kPanel)
        for (int n = 0; n < kPanel; ++n) row[n] = words[static_cast<size_t>(n) * rows + i];
      done(range, 8L * kPanel * inputs);
    }
  });
  return std::make_unique<PackedWeight>(outputs, inputs, dtype, Blob{{data, panels * panel_bytes}, memory});
}

float PackedWeight::scale(int output) const {
  const std::byte* scales = panel(output / kPanel) + static_cast<size_t>(rows_) * kPanelRow;
  return reinterpret_cast<const float*>(scales)[output % kPanel];
}

void PackedWeight::unpack(int output, float* to) const {
  const std::byte* start = panel(output / kPanel);
  const int n = output % kPanel;
  const auto at = [&](int k, auto value) {
    constexpr int kPerRow = 4 / sizeof value;
    std::memcpy(&value, start + static_cast<size_t>(k / kPerRow) * kPanelRow + 4 * n + k % kPerRow * sizeof value,
                sizeof value);
    return value;
  };
  if (dtype_ == DType::kFp32) {
    for (int k = 0; k < inputs; ++k) to[k] = at(k, float{});
  } else if (dtype_ == DType::kBf16) {
    for (int k = 0; k < inputs; ++k) to[k] = from_bf16(at(k, uint16_t{}));
  } else {
    const float step = scale(output);
    for (int k = 0; k < inputs; ++k) to[k] = step * static_cast<float>(at(k, int8_t{}));
  }
}

void Operand::prepare(const Kernels& kernels, const PackedWeight& weight, const float* x, int tokens, int threads) {
  const bool int8 = weight.dtype() == DType::kInt8;
  const int K = weight.inputs, chunks = (K + kChunk - 1) / kChunk;
  const int most = kernels.gemm[static_cast<int>(weight.dtype())].max_rows;
  tokens_ = tokens;
  blocks_ = std::max(1, (tokens + most - 1) / most);
  token_bytes_ = int8 ? static_cast<size_t>(chunks) * kChunk : K * sizeof(float);
  data_ = reinterpret_cast<const std::byte*>(x);
  if (tokens <= 1 && !int8) return;
  memory_.resize(tokens * token_bytes_ / sizeof(float));
  data_ = reinterpret_cast<const std::byte*>(memory_.data());
  scales_.resize(int8 ? tokens : 0);
  parallel_for(blocks_, 1, threads, [&](int first_block, int last_block) {
    for (int b = first_block; b < last_block; ++b) {
      const int begin = first(b), rows = first(b + 1) - begin;
      float* to = memory_.data() + begin * (token_bytes_ / sizeof(float));
      for (int r = 0; r < rows; ++r) {
        const float* line = x + static_cast<size_t>(begin + r) * K;
        if (int8) {
          scales_[begin + r] = kernels.quantise(line, K, kernels.int8_offset,
                                                reinterpret_cast<uint8_t*>(to) + r * kChunk, rows * kChunk);
        } else {
          for (int k = 0; k < K; ++k) to[static_cast<size_t>(k) * rows + r] = line[k];
        }
      }
    }
  });
}

void multiply_group(const Kernels& kernels, const PackedWeight& weight, const Operand& x, int first, int last, int next,
                    float* out, int out_stride, bool accumulate) {
  for (int b = 0; b < x.blocks(); ++b) {
    const int t = x.first(b);
    kernels.gemm[static_cast<int>(weight.dtype())].run({.x = x.block(b),
                                                        .x_scales = x.scales(b),
                                                        .rows = x.first(b + 1) - t,
                                                        .panels = weight.panel(first),
                                                        .panel_bytes = weight.panel_bytes(),
                                                        .count = last - first,
                                                        .inputs = weight.inputs,
                                                        .out = out + static_cast<size_t>(t) * out_stride,
                                                        .columns = weight.outputs - first * kPanel,
                                                        .out_stride = out_stride,
                                                        .accumulate = accumulate,
                                                        .next_group = weight.panel(next),
                                                        .block = b,
                                                        .blocks = x.blocks()});
  }
}

}  // namespace kdtw::cpu
