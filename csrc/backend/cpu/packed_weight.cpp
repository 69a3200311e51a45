#include "backend/cpu/packed_weight.h"

#include <algorithm>

#include "backend/cpu/memory.h"
#include "backend/cpu/thread_pool.h"

namespace kdtw::cpu {

PackedWeight::PackedWeight(int outputs, int inputs, DType dtype)
    : Weight(outputs, inputs),
      dtype_(dtype),
      panels_((outputs + kPanel - 1) / kPanel),
      panel_bytes_(sizeof(float) * kPanel * inputs),
      memory_(zeroed(bytes())),
      data_(reinterpret_cast<std::byte*>(aligned(memory_))) {}

void PackedWeight::pack(std::span<const float* const> parts, std::span<const int> part_outputs, int threads) {
  std::vector<const float*> lines;  // of every output
  lines.reserve(outputs);
  for (size_t part = 0; part < parts.size(); ++part)
    for (int n = 0; n < part_outputs[part]; ++n) lines.push_back(parts[part] + static_cast<size_t>(n) * inputs);
  parallel_for(panels_, 1, threads, [&](int first, int last) {
    for (int p = first; p < last; ++p) {
      auto* to = reinterpret_cast<float*>(data_ + p * panel_bytes_);
      const int count = std::min(kPanel, outputs - p * kPanel);
      for (int k = 0; k < inputs; ++k, to += kPanel)
        for (int n = 0; n < count; ++n) to[n] = lines[p * kPanel + n][k];
    }
  });
}

void PackedWeight::unpack(int output, float* to) const {
  const auto* column = reinterpret_cast<const float*>(panel(output / kPanel)) + output % kPanel;
  for (int k = 0; k < inputs; ++k) to[k] = column[static_cast<size_t>(k) * kPanel];
}

void Operand::prepare(const Kernels& kernels, const PackedWeight& weight, const float* x, int tokens, int threads) {
  const int K = weight.inputs;
  tokens_ = tokens;
  blocks_ = std::max(1, (tokens + kernels.max_rows - 1) / kernels.max_rows);
  stride_ = K * sizeof(float);
  data_ = reinterpret_cast<const std::byte*>(x);
  if (tokens <= 1) return;
  memory_.resize(static_cast<size_t>(tokens) * K);
  data_ = reinterpret_cast<const std::byte*>(memory_.data());
  parallel_for(blocks_, 1, threads, [&](int first_block, int last_block) {
    for (int b = first_block; b < last_block; ++b) {
      const int rows = first(b + 1) - first(b);
      float* to = memory_.data() + static_cast<size_t>(first(b)) * K;
      for (int r = 0; r < rows; ++r) {
        const float* line = x + static_cast<size_t>(first(b) + r) * K;
        for (int k = 0; k < K; ++k) to[static_cast<size_t>(k) * rows + r] = line[k];
      }
    }
  });
}

void multiply(const Kernels& kernels, const PackedWeight& weight, const Operand& x, int first, int last, float* out,
              int out_stride, bool accumulate) {
  // All blocks of tokens of a few panels before the next panels: those panels stay in the cache.
  constexpr int kGroup = 4;
  for (int p = first; p < last; p += kGroup) {
    const int end = std::min(p + kGroup, last);
    for (int b = 0; b < x.blocks(); ++b) {
      const int t = x.first(b);
      kernels.gemm({.x = x.block(b),
                    .rows = x.first(b + 1) - t,
                    .panels = weight.panel(p),
                    .panel_bytes = weight.panel_bytes(),
                    .count = end - p,
                    .inputs = weight.inputs,
                    .out = out + static_cast<size_t>(t) * out_stride + (p - first) * kPanel,
                    .columns = weight.outputs - p * kPanel,
                    .out_stride = out_stride,
                    .accumulate = accumulate});
    }
  }
}

}  // namespace kdtw::cpu
