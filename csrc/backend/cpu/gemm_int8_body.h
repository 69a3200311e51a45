// Products of quantised tokens with panels of int8 weights (Product in kernels.h), written once over a vector of
// int32 sums `I` with as many lanes as `V`, and over Quad, four inputs of one token beside every lane. Integer sums are
// exact, so their order is free and all instruction sets agree.
// The including file defines, beside what gemm_body.h needs: kOffset, kInt8Rows, start, quad, load_weights, dot,
// to_float.

inline const float* scales_of(const Product& product, int panel) {
  const long rows = (product.inputs + kChunk - 1) / kChunk * (kChunk / 4);
  return reinterpret_cast<const float*>(product.panels + panel * product.panel_bytes + rows * kPanelRow);
}

// One token's outputs of some panels from their sums.
template <int kCount>
[[gnu::always_inline]] inline void write_scaled(const I (&sums)[kCount], const Product& product, int first, int row) {
  const V token = set1(product.x_scales[row]);
  V scaled[kCount];
#pragma GCC unroll 16
  for (int v = 0; v < kCount; ++v) {
    const V scale = load(scales_of(product, first + v / kVectors) + v % kVectors * kWidth);
    scaled[v] = mul(to_float(sums[v]), mul(token, scale));
  }
  write_line(scaled, product.out + first * kPanel + static_cast<long>(row) * product.out_stride,
             product.columns - first * kPanel, product.accumulate);
}

// x: [chunks][kRows][kChunk] bytes. A panel: a row of kPanel x 4 inputs per quad, then kPanel scales, then kPanel sums.
template <int kRows, int kPanels>
void int8_tile(const Product& product, int first) {
  const int chunks = (product.inputs + kChunk - 1) / kChunk;
  const long stride = product.panel_bytes;
  const auto* x = static_cast<const uint8_t*>(product.x);
  const std::byte* row = product.panels + first * stride;
  I acc[kRows][kPanels * kVectors];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const auto* sums = reinterpret_cast<const int32_t*>(scales_of(product, first + p) + kPanel) + v * kWidth;
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) acc[r][p * kVectors + v] = start(sums);
    }
  // One flat loop: GCC keeps the sums of nested ones in memory.
  constexpr int kQuads = kChunk / 4;
  Prefetcher<kPanels> prefetcher(product, first, chunks * kQuads);
  for (int i = 0; i < chunks * kQuads; ++i, row += kPanelRow) {
    prefetcher.step();
    const uint8_t* inputs = x + i / kQuads * (kRows * kChunk) + i % kQuads * 4;
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const auto* weights = reinterpret_cast<const float*>(row + p * stride);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Quad input = quad(inputs + r * kChunk);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          acc[r][p * kVectors + v] = dot(acc[r][p * kVectors + v], input, load_weights(weights + v * kWidth));
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) write_scaled(acc[r], product, first, r);
}

template <int kRows, int kPanels>
void int8_panels(const Product& product, int first) {
  for (; first + kPanels <= product.count; first += kPanels) int8_tile<kRows, kPanels>(product, first);
  if constexpr (kPanels > 1) int8_panels<kRows, kPanels / 2>(product, first);
}

template <int kRows = kInt8Rows>
void int8_gemm(const Product& product) {
  if (product.rows == kRows) return int8_panels<kRows, together(kRows, kInt8Rows)>(product, 0);
  if constexpr (kRows > 1) int8_gemm<kRows - 1>(product);
}
