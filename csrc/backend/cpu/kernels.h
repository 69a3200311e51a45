// The table of CPU kernels that differ by instruction set. The *_body.h files hold the one source of
// them; kernels_{avx512,avx2,generic}.cpp compile it; the best supported table is chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/operations.h"

namespace kdtw::cpu {

// Weights are packed in panels of kPanel outputs; a panel is a stream of rows of kPanelRow bytes (packed_weight.h).
inline constexpr int kPanel = 32;
inline constexpr int kPanelRow = 128;
// Panels that a product takes at a time.
inline constexpr int kGroup = 4;
// int8 tokens are read kChunk inputs at a time, and int8 panels are padded with zeros to whole chunks.
inline constexpr int kChunk = 64;
// Keys are cached in blocks of kKeyBlock positions: block b of a head is [D][kKeyBlock].
inline constexpr int kKeyBlock = 16;

// A few tokens times a few neighbouring panels: out[r * out_stride + n] (+)= sum_k x[r][k] w[n][k] for n < columns.
// fp32 and bf16 weights: fp32 sums with one accumulator per output and k ascending. int8: exact integer sums a,
// then float(a) * (x_scales[r] * scale of output n), which is the same number at every SIMD level.
struct Product {
  const void* x;          // a block of an Operand
  const float* x_scales;  // int8: of every row
  int rows;
  const std::byte* panels;
  size_t panel_bytes;
  int count;   // panels, at most kGroup
  int inputs;  // K
  float* out;
  int columns;  // outputs from the first of these panels on that exist; may exceed the panels
  int out_stride;
  bool accumulate;
  // Only for the order in which memory is read: the kGroup panels whose turn is next, and which of how many blocks of
  // tokens, all multiplied with these panels before, this is.
  const std::byte* next_group;
  int block, blocks;
};

struct Gemm {
  void (*run)(const Product& product);
  int max_rows;  // of a product
};

// A few queries of one row and of heads that share keys: out = softmax(cap(scale * q k^T) + bias) v, each query over
// the keys 0..length-1 of its token that its window reaches (AttentionRule).
struct Attention {
  const float* queries;  // D floats each, query_stride apart
  int query_stride;
  const TokenAt* tokens;  // where the queries stand, token_stride apart: 1, or 0 for the heads of one token
  int token_stride;
  int count;          // of the queries, at most max_queries
  int skipped;        // keys before these, whole blocks of them, that no query of the group sees
  const float* keys;  // as key_value_cache.h lays them out
  const float* values;
  int head_size;      // D
  int value_stride;   // 4-byte columns of a row of values
  const float* bias;  // this head's line of PositionBias::table, or null
  int lowest, highest;
  float scale, cap;
  int window;
  float* scratch;  // count * the longest length rounded up to kKeyBlock
  float* out;      // D floats each, out_stride apart
  int out_stride;
};

struct Kernels {
  const char* name;
  int max_queries;  // most queries of one attention

  Gemm gemm[3];  // by the weight's DType
  // Quantises x symmetrically: to = round(x / scale) + offset with scale = largest |x| / 127, and returns scale; NaN
  // when one of x is not finite, 0 when all are zero or smaller than 1e-35. Chunk c is written to to + c *
  // chunk_stride, the last one padded with zeros. The same bytes and scale at every SIMD level.
  float (*quantise)(const float* x, int size, uint8_t offset, uint8_t* to, long chunk_stride);
  uint8_t int8_offset;  // of tokens: 128 where gemm takes unsigned ones, otherwise 0
  // Of one token, by Norm::centred; shift may be null. out may be x.
  void (*norm[2])(const float* x, const float* scale, const float* shift, float epsilon, int size, float* out);
  // By Activation::function and gated: of an x alone, or of a gate and what it is multiplied with.
  void (*activate[4][2])(const float* x, const float* linear, int size, float* out);
  void (*soft_cap)(const float* x, int size, float cap, float* out);  // cap * tanh(x / cap)
  // By the cache's DType. The bits for a query are the same in any company.
  void (*attend[2])(const Attention& attention);
  // Largest value and its lowest index; finite = false when any of the values is NaN or infinite.
  void (*argmax)(const float* x, int size, float* best, int* index, bool* finite);
  // sum of exp((x - shift) * scale) in one fixed order
  double (*sum_exp)(const float* x, int size, float shift, float scale);
  // sum of exp(x - shift) (x - shift) in one fixed order; what lies 87 below the shift counts as that
  double (*sum_weighted_exp)(const float* x, int size, float shift);
  // out = exp((x - shift) * scale)
  void (*exp_scaled)(const float* x, int size, float shift, float scale, float* out);
};

const Kernels& generic_kernels();
// nullptr where the build has none:
const Kernels* avx2_kernels();
const Kernels* avx2_vnni_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_vnni_kernels();
const Kernels* amx_kernels();

}  // namespace kdtw::cpu
