// The table of CPU kernels that differ by instruction set. {gemm,attention,kernels}_body.h hold the one source of
// them; kernels_{avx512,avx2,generic}.cpp compile it; the best supported table is chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/backend.h"

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

// One head of a few queries of one row: out = softmax(q k^T + bias) v, each query over keys 0..length-1 of its token.
struct Attention {
  const float* queries;  // D floats each, query_stride apart
  int query_stride;
  const TokenAt* tokens;  // where the queries stand
  int count;              // of the queries, at most max_queries
  const float* keys;      // as key_value_cache.h lays them out
  const float* values;
  int head_size;      // D
  int value_stride;   // 4-byte columns of a row of values
  const float* bias;  // this head's line of PositionBias::table, or null
  int lowest, highest;
  float* scratch;  // count * the longest length rounded up to kKeyBlock
  float* out;      // D floats each, out_stride apart
  int out_stride;
};

struct Kernels {
  const char* name;
  int max_rows;     // most rows of a product
  int max_queries;  // most queries of one attention

  void (*gemm)(const Product& product);
  void (*rms_norm)(const float* x, const float* scale, float epsilon, int size, float* out);
  void (*relu)(const float* x, int size, float* out);
  void (*gated_gelu)(const float* gate, const float* linear, int size, float* out);
  // By the cache's DType. The bits for a query are the same in any company.
  void (*attend[2])(const Attention& attention);
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
