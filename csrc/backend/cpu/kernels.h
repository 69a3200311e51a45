// The table of CPU kernels that differ by instruction set. gemm_body.h and kernels_body.h hold the one source of
// them; kernels_{avx512,avx2,generic}.cpp compile it; the best supported table is chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kdtw::cpu {

// Weights are packed in panels of kPanel outputs (packed_weight.h).
inline constexpr int kPanel = 32;
// Keys are cached in blocks of kKeyBlock positions: block b of a head is [D][kKeyBlock].
inline constexpr int kKeyBlock = 16;

// A few tokens times a few neighbouring panels: out[r * out_stride + n] (+)= sum_k x[k][r] * w[n][k] for n < columns,
// the sum with one accumulator per output and k ascending.
struct Product {
  const void* x;  // a block of an Operand: [inputs][rows]
  int rows;
  const std::byte* panels;
  size_t panel_bytes;
  int count;   // panels
  int inputs;  // K
  float* out;
  int columns;  // outputs from the first of these panels on that exist; may exceed the panels
  int out_stride;
  bool accumulate;
};

struct Kernels {
  const char* name;
  int max_rows;  // most rows of a product

  void (*gemm)(const Product& product);
  void (*rms_norm)(const float* x, const float* scale, float epsilon, int size, float* out);
  void (*relu)(const float* x, int size, float* out);
  void (*gated_gelu)(const float* gate, const float* linear, int size, float* out);
  // One query of one head against `length` keys; keys blocked, values [.., value_stride]. bias_* as in
  // PositionBias for this head with the query's position, or table == nullptr. scores: scratch of
  // length rounded up to kKeyBlock. out: D floats; scratch_out: value_stride floats.
  void (*attend)(const float* query, const float* keys, const float* values, int length, int head_size,
                 int value_stride, const float* bias_table, int lowest, int highest, int position, float* scores,
                 float* scratch_out, float* out);
  // Largest value and its lowest index; finite = false when any of the values is NaN or infinite.
  void (*argmax)(const float* x, int size, float* best, int* index, bool* finite);
  // sum of exp(x - shift) in one fixed order
  double (*sum_exp)(const float* x, int size, float shift);
  // out = exp((x - shift) * scale)
  void (*exp_scaled)(const float* x, int size, float shift, float scale, float* out);
};

const Kernels& generic_kernels();
const Kernels* avx2_kernels();    // nullptr where the build has none
const Kernels* avx512_kernels();  // nullptr where the build has none

}  // namespace kdtw::cpu
