// Products of fp32 tokens with panels of fp32 or bf16 weights (Product in kernels.h), written once over the vector type
// `V` that the including file defines; see kernels_body.h for how. Every output has one accumulator and its inputs are
// added in ascending order: the sum for an output is the same whatever kRows and kPanels are, which is what makes a
// catch-up over rows equal to single steps. bf16 weights become fp32 numbers before they are multiplied, so the sums
// are those of an fp32 model with the same values.

constexpr int kVectors = kPanel / kWidth;  // vectors of one input's kPanel weights

// Panels side by side in a tile of `rows` tokens: as many as registers allow, because independent sums hide the latency
// of the multiply-add and because several streams are read faster than one.
constexpr int together(int rows, int most_rows) { return rows * kGroup <= most_rows ? kGroup : most_rows / rows; }

// Asks for panel rows before a tile reads them. A tile of several panels runs kAhead rows ahead in each of them. A tile
// of one panel is one stream, and memory serves one stream more slowly than several: it asks for the next group of
// panels instead, those panels in turns. All blocks of tokens share that, so that it also goes on while they are
// computed.
template <int kPanels>
class Prefetcher {
 public:
  Prefetcher(const Product& product, int first, int rows)
      : panels_(kPanels > 1 ? product.panels + first * product.panel_bytes : product.next_group),
        panel_bytes_(product.panel_bytes),
        rows_(rows),
        at_(kPanels > 1 ? kAhead : (product.block * product.count + first) * static_cast<long>(rows) / product.blocks),
        blocks_(product.blocks) {}

  // To be called once for every row.
  [[gnu::always_inline]] inline void step() {
    if constexpr (kPanels > 1) {
      if (at_ >= rows_) {  // on to the panels of the next tile
        at_ = 0;
        panels_ += kPanels * panel_bytes_;
      }
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) prefetch_row(panels_ + p * panel_bytes_ + at_ * kPanelRow);
      ++at_;
    } else if (--left_ == 0) {
      left_ = blocks_;
      prefetch_row(panels_ + at_ % kGroup * panel_bytes_ + at_ / kGroup * kPanelRow);
      ++at_;
    }
  }

 private:
  static constexpr int kAhead = 24;

  static inline void prefetch_row(const std::byte* row) {
    prefetch(row);
    prefetch(row + kPanelRow / 2);
  }

  const std::byte* panels_;
  const long panel_bytes_, rows_;
  long at_;
  const int blocks_;
  int left_ = 1;
};

// Adds the first kUsed inputs of one row of each panel. x: [kUsed][kRows].
template <typename Row, int kUsed, int kRows, int kPanels>
[[gnu::always_inline]] inline void add_row(const float* x, const float* row, long panel_stride,
                                           V (&acc)[kRows][kPanels * kVectors]) {
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p, row += panel_stride) {
#pragma GCC unroll 2
    for (int k = 0; k < kUsed; ++k) {
      V weight[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) weight[v] = Row::read(row, k, v);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const V input = set1(x[k * kRows + r]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) acc[r][p * kVectors + v] = fma(input, weight[v], acc[r][p * kVectors + v]);
      }
    }
  }
}

// One line of outputs; `columns` of them exist.
template <int kCount>
[[gnu::always_inline]] inline void write_line(const V (&sums)[kCount], float* out, int columns, bool accumulate) {
  if (columns >= kCount * kWidth) {
#pragma GCC unroll 16
    for (int v = 0; v < kCount; ++v) {
      float* to = out + v * kWidth;
      store(to, accumulate ? add(load(to), sums[v]) : sums[v]);
    }
  } else {  // the last panel is partly padding
    float whole[kCount * kWidth];
#pragma GCC unroll 16
    for (int v = 0; v < kCount; ++v) store(whole + v * kWidth, sums[v]);
    for (int n = 0; n < columns; ++n) out[n] = accumulate ? out[n] + whole[n] : whole[n];
  }
}

template <typename Row, int kRows, int kPanels>
void gemm_tile(const Product& product, int first) {
  const long stride = product.panel_bytes / sizeof(float);
  const auto* x = static_cast<const float*>(product.x);
  const auto* row = reinterpret_cast<const float*>(product.panels) + first * stride;
  V acc[kRows][kPanels * kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < kPanels * kVectors; ++v) acc[r][v] = zero();
  const int K = product.inputs, rows = K / Row::kInputs;
  Prefetcher<kPanels> prefetcher(product, first, rows);
  for (int i = 0; i < rows; ++i, row += kPanel, x += Row::kInputs * kRows) {
    prefetcher.step();
    add_row<Row, Row::kInputs, kRows, kPanels>(x, row, stride, acc);
  }
  if (K % Row::kInputs != 0) add_row<Row, 1, kRows, kPanels>(x, row, stride, acc);
  float* out = product.out + first * kPanel;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
    write_line(acc[r], out + static_cast<long>(r) * product.out_stride, product.columns - first * kPanel,
               product.accumulate);
}

template <typename Row, int kRows, int kPanels>
void gemm_panels(const Product& product, int first) {
  for (; first + kPanels <= product.count; first += kPanels) gemm_tile<Row, kRows, kPanels>(product, first);
  if constexpr (kPanels > 1) gemm_panels<Row, kRows, kPanels / 2>(product, first);
}

template <typename Row, int kMost, int kRows = kMost>
void gemm(const Product& product) {
  if (product.rows == kRows) return gemm_panels<Row, kRows, together(kRows, kMost)>(product, 0);
  if constexpr (kRows > 1) gemm<Row, kMost, kRows - 1>(product);
}

float quantise(const float* x, int size, uint8_t offset, uint8_t* to, long chunk_stride) {
  constexpr float kSmallest = 1e-35f;  // of what has a reciprocal
  // x * 0 is 0 for finite values and NaN otherwise, and NaN stays in a sum.
  V top = zero(), poison = zero();
  float largest = 0.0f, poisoned = 0.0f;
  int k = 0;
  for (; k + kWidth <= size; k += kWidth) {
    const V v = load(x + k);
    top = max(top, max(v, sub(zero(), v)));
    poison = fma(v, zero(), poison);
  }
  float tops[kWidth], poisons[kWidth];
  store(tops, top);
  store(poisons, poison);
  for (int i = 0; i < kWidth; ++i) {
    largest = tops[i] > largest ? tops[i] : largest;
    poisoned += poisons[i];
  }
  for (; k < size; ++k) {
    const float magnitude = x[k] < 0.0f ? -x[k] : x[k];
    largest = magnitude > largest ? magnitude : largest;
    poisoned += x[k] * 0.0f;
  }
  const bool finite = poisoned == 0.0f, usable = finite && largest >= kSmallest;
  const float inverse = usable ? 127.0f / largest : 0.0f;
  const V factor = set1(inverse);
  for (k = 0; k < size; k += kChunk, to += chunk_stride) {
    float chunk[kChunk] = {};
    const float* from = x + k;
    if (!usable || size - k < kChunk) {
      for (int i = 0; usable && i < size - k; ++i) chunk[i] = from[i];
      from = chunk;
    }
    for (int i = 0; i < kChunk; i += kWidth) store_int8(to + i, mul(load(from + i), factor));
    for (int i = 0; i < kChunk; ++i) to[i] ^= offset;
  }
  return finite ? (usable ? largest / 127.0f : 0.0f) : __builtin_nanf("");
}
