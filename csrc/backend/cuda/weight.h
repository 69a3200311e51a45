// Weights and caches in device memory, laid out as the kernels read them (KdtwWeight, KdtwCache).
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "backend/cuda/memory.h"
#include "backend/operations.h"

namespace kdtw::cuda {

KdtwFormat format_of(DType dtype);
// Elements of a row of `size`, so that it is a whole number of 16 bytes (scaled fp16: 64).
int padded(int size, KdtwFormat format);
int bytes_of(KdtwFormat format);

class DeviceWeight : public Weight {
 public:
  // Packs row-major fp32 matrices [part_outputs[i], inputs] of the host, stacked along the outputs, and copies them. An
  // encoder's fp16 and bf16 become scaled fp16, which tensor cores multiply.
  DeviceWeight(const std::shared_ptr<Pool>& pool, void* stream, std::span<const float* const> parts,
               std::span<const int> part_outputs, int inputs, DType dtype, WeightRole role);

  size_t bytes() const override { return bytes_; }
  Blob blob() const override;
  std::unique_ptr<Weight> first(int count) const override;
  const KdtwWeight& view() const { return view_; }
  const Library& library() const { return library_; }

 private:
  DeviceWeight(const DeviceWeight& whole, int outputs);

  const Library& library_;
  size_t bytes_ = 0;
  std::shared_ptr<void> memory_;
  KdtwWeight view_{};
};

class DeviceCache : public KeyValueCache {
 public:
  // allocate: gives so many bytes.
  DeviceCache(const std::function<std::shared_ptr<void>(size_t)>& allocate, int rows, int heads, int head_size,
              int capacity, DType dtype);

  size_t bytes() const override { return bytes_; }
  const KdtwCache& view() const { return view_; }

 private:
  size_t bytes_ = 0;
  std::shared_ptr<void> memory_;
  KdtwCache view_{};
};

}  // namespace kdtw::cuda
