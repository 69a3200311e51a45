// Products of fp32 tokens with panels of weights (Product in kernels.h), written once over the vector type `V` that the
// including file defines; see kernels_body.h for how. Every output has one accumulator, and inputs are added in
// ascending order: the sum for an output is the same whatever kRows and kPanels are, which is what makes a
// catch-up over rows equal to single steps.

constexpr int kVectors = kPanel / kWidth;  // vectors per panel row

template <int kRows, int kPanels>
inline void gemm_tile(const float* __restrict x, const float* __restrict w, long panel_stride, int K, int columns,
                      float* __restrict out, int out_stride, bool accumulate) {
  V acc[kRows][kPanels * kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < kPanels * kVectors; ++v) acc[r][v] = zero();
  for (int k = 0; k < K; ++k) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const float* row = w + p * panel_stride + static_cast<long>(k) * kPanel;
      prefetch(row + kPrefetch * kPanel);
      if constexpr (kPanel * 4 > 64) prefetch(row + kPrefetch * kPanel + 16);
      V weight[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) weight[v] = load(row + v * kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const V input = set1(x[k * kRows + r]);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) acc[r][p * kVectors + v] = fma(input, weight[v], acc[r][p * kVectors + v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    float* line = out + static_cast<long>(r) * out_stride;
    if (columns >= kPanels * kPanel) {
#pragma GCC unroll 16
      for (int v = 0; v < kPanels * kVectors; ++v) {
        float* to = line + v * kWidth;
        store(to, accumulate ? add(load(to), acc[r][v]) : acc[r][v]);
      }
    } else {  // the last panel is partly padding
      float whole[kPanels * kPanel];
#pragma GCC unroll 16
      for (int v = 0; v < kPanels * kVectors; ++v) store(whole + v * kWidth, acc[r][v]);
      for (int n = 0; n < columns; ++n) line[n] = accumulate ? line[n] + whole[n] : whole[n];
    }
  }
}

template <int kRows>
void gemm_rows(const Product& product) {
  // Panels side by side: at least eight independent accumulators hide the latency of the multiply-add.
  constexpr int kTogether = (8 + kRows * kVectors - 1) / (kRows * kVectors);
  const long stride = product.panel_bytes / sizeof(float);
  const auto* x = static_cast<const float*>(product.x);
  const auto* w = reinterpret_cast<const float*>(product.panels);
  int p = 0;
  for (; p + kTogether <= product.count; p += kTogether)
    gemm_tile<kRows, kTogether>(x, w + p * stride, stride, product.inputs, product.columns - p * kPanel,
                                product.out + p * kPanel, product.out_stride, product.accumulate);
  for (; p < product.count; ++p)
    gemm_tile<kRows, 1>(x, w + p * stride, stride, product.inputs, product.columns - p * kPanel,
                        product.out + p * kPanel, product.out_stride, product.accumulate);
}

template <int kRows>
void gemm_dispatch(const Product& product) {
  if (product.rows == kRows) return gemm_rows<kRows>(product);
  if constexpr (kRows > 1) gemm_dispatch<kRows - 1>(product);
}

void gemm(const Product& product) { gemm_dispatch<kMaxRows>(product); }
