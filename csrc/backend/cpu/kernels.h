// The table of CPU kernels that differ by instruction set. kernels_body.h holds the one source of them;
// kernels_{avx512,avx2,generic}.cpp compile it; the best supported table is chosen at run time.
#pragma once

#include <cstdint>

namespace kdtw::cpu {

// Weights are packed in panels of kPanel output columns: panel p is [K][kPanel], zero-padded.
inline constexpr int kPanel = 32;
// Keys are cached in blocks of kKeyBlock positions: block b of a head is [D][kKeyBlock].
inline constexpr int kKeyBlock = 16;

struct Kernels {
  const char* name;
  int max_rows;  // most rows of one micro-kernel call

  // out[r * out_stride + n] (+)= sum_k x[k * rows + r] * panel(n)[k], k ascending with one accumulator per
  // output, for rows <= max_rows, panels [first, last). x is interleaved [K][rows].
  void (*gemm)(const float* x, int rows, const float* panels, int first, int last, int K, int N, float* out,
               int out_stride, bool accumulate);
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
