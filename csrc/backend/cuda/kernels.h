// What the engine and a library of CUDA kernels agree on: plain C data and one table of functions. The engine is
// compiled without CUDA and opens the library at run time; nvcc's library, the simulated device's and the one made
// of nvcc's PTX all look like this.
//
// Every function returns 0 or an error number that `describe` explains. Pointers are device memory unless named host.
// Work is enqueued on `stream` and done when synchronise() has returned. Nothing is allocated but by the allocating
// functions. T tokens, N x K a weight's outputs x inputs, H heads, D head size, V vocabulary, as in operations.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "core/draft.h"
#include "core/pass.h"

extern "C" {

enum { kKdtwCudaVersion = 13 };  // of this file; the engine refuses another one

enum { kKdtwOutOfMemory = 2 };  // what allocate and allocate_host return where that is all that is wrong

enum KdtwFormat : int32_t { kKdtwFp32, kKdtwFp16, kKdtwBf16, kKdtwInt8, kKdtwScaledFp16 };

// Row n of a weight [N, K]: `stride` elements from n * stride on, the first K of them its own, the others zero; a row
// is a whole number of 16 bytes (scaled fp16: 64) and begins on such a boundary. int8, scaled fp16: times scales[n].
// Of a product with it, output n is x W^T + bias[n], and of that y then cap tanh(y / cap).
struct KdtwWeight {
  const void* data;
  const float* scales;  // int8 and scaled fp16 only
  const float* bias;    // [N]; null: none
  float cap;            // 0: none
  KdtwFormat format;
  int32_t outputs, inputs, stride;
};

// Keys and values [R, H, capacity, stride], a position's first D elements its own, the others zero; rows of 16 bytes.
struct KdtwCache {
  void *keys, *values;
  KdtwFormat format;  // fp32, fp16 or bf16
  int32_t rows, heads, head_size, stride, capacity;
};

// How a product ends: what becomes of its outputs y.
enum KdtwEpilogue : int32_t {
  kKdtwStore,     // out = y
  kKdtwAdd,       // out += y
  kKdtwActivate,  // out = function(y)
  kKdtwGate,      // out[:, f] = function(y[:, f]) y[:, N/2 + f], N/2 outputs
};
struct KdtwEnding {
  KdtwEpilogue epilogue;
  kdtw::Function function;  // of the last two
};

// Largest head size in elements, by the cache's format.
enum { kKdtwLargestHeadFp32 = 512, kKdtwLargestHead = 1024 };

// attend() reads keys in chunks. Chunks have blocks of their own where a cache has many of them and a pass has few
// queries; from so many blocks on, one for each query and head, the device is busy without that.
enum { kKdtwAttentionChunk = 64, kKdtwFewChunks = 3, kKdtwManyBlocks = 256 };

// Floats of scratch memory that attend() needs for so many tokens and heads of queries: for each query, head and chunk
// its values [D], their weights' sum and the largest score. 0 where chunks have no blocks of their own.
inline size_t kdtw_attention_scratch(const KdtwCache* cache, int32_t tokens, int32_t heads) {
  const int32_t chunks = (cache->capacity + kKdtwAttentionChunk - 1) / kKdtwAttentionChunk;
  const int32_t blocks = tokens * heads;
  const bool apart = chunks > kKdtwFewChunks && blocks < kKdtwManyBlocks;
  return apart ? static_cast<size_t>(blocks) * chunks * (cache->head_size + 2) : 0;
}

// How the requests of a pick sample, the most that one of them needs: kernels that none needs are not launched.
// Requests that need a draft's logits are decided by a block alone, and count as greedy.
enum KdtwSampling : int32_t {
  kKdtwGreedy,
  kKdtwDraws,  // from all ids that are not banned
  kKdtwCuts,   // with top-k or top-p
};
KDTW_BOTH KdtwSampling kdtw_sampling(const kdtw::Sampling& sampling, kdtw::Check check) {
  if (!(sampling.temperature > 0.0f) || kdtw::needs_draft_logits(check)) return kKdtwGreedy;
  return sampling.top_k > 0 || sampling.top_p < 1.0f ? kKdtwCuts : kKdtwDraws;
}

// What many blocks find out about a request with top-k or top-p (kernels/sift.h). Ids lie in bins by how far their
// logits are below the largest. In a few bins it is open which ids stay; those above stay, those below do not.
enum { kKdtwBins = 2048, kKdtwFew = 1024 };
struct KdtwSift {
  uint64_t masses[kKdtwBins];     // top-p: of the bin's ids
  uint64_t open[kKdtwFew];        // ids that may stay or not, with their logits, in no order
  uint32_t counts[kKdtwBins];     // top-k: of the bin's ids
  uint32_t open_count;            // above kKdtwFew: not all are in `open`
  int32_t k_bin;                  // in which top-k cuts; kKdtwBins: it cuts nowhere
  int32_t open_first, open_last;  // the bins in which top-p may cut; without top-p, or both, k_bin; also k_bin is open
  uint64_t k_count, k_mass;       // of the bins before k_bin
  uint64_t open_mass;             // of the bins before open_first
  uint64_t unused;                // a whole number of 16 bytes
};
static_assert(sizeof(KdtwSift) == 32816);

// One request's logits in one chunk of kKdtwChunk ids. Sums are of exp(x - top of the chunk).
enum { kKdtwChunk = 1024 };
struct KdtwSummary {
  float raw_top, raw_sum;  // over all ids
  float top, allowed_sum;  // over those that are not banned
  float allowed_weighted;  // of exp(x - top) (x - top) over those
  int32_t id;              // of `top`, the lowest on ties; V where all are banned
  int32_t finite, before;  // before: how many rank before the draft
  uint64_t mass;           // of ids that stay for certain, of requests that sample
};
static_assert(sizeof(KdtwSummary) == 40);

// A draft on the device (core/draft.h). A step reads and picks a token for every row; advance() runs between two steps.
struct KdtwDraftState {
  kdtw::DraftPause pause;
  int32_t steps;  // so far
  int32_t go_on;  // whether another one is wanted
};

// The device memory of a draft whose graph has `width` rows.
struct KdtwDraft {
  kdtw::DraftRules rules;  // its stops are in device memory
  KdtwDraftState* state;
  kdtw::DraftRow* rows;  // [width]; in a row that only fills up the width, `stand` is kFinished and nothing else counts
  int32_t* banned;       // [width, stops], for the requests' lists
  int32_t width;
  // What a step reads, each [width].
  int32_t *ids, *wanted;
  uint8_t* marked;
  kdtw::TokenAt *self, *cross;
  kdtw::PickRequest* requests;
  // What a step leaves: its picks [width], and those of all steps so far [steps, width].
  const kdtw::PickResult* decided;
  kdtw::PickResult* picks;
};

// A graph while it is captured.
struct KdtwCapture {
  void* graph;
  uint64_t condition;
  const int32_t* go_on;
};

struct KdtwDevice {
  char name[256];
  int32_t major, minor;
  uint64_t memory_bytes;
};

struct KdtwCudaTable {
  int32_t version;
  const char* kind;           // "CUDA", or what stands in its place
  const char* architectures;  // that the kernels were compiled for, as "75 80 … 120 and PTX"

  // Devices and memory. use_device is the calling thread's choice for all that follows; `before`: what it was.
  const char* (*describe)(int32_t error);
  int32_t (*device_count)(int32_t* count);
  int32_t (*device_info)(int32_t device, KdtwDevice* info);
  int32_t (*use_device)(int32_t device, int32_t* before);
  int32_t (*allocate)(void** memory, size_t bytes);  // on a boundary of 256 bytes
  int32_t (*release)(void* memory);
  int32_t (*allocate_host)(void** host, size_t bytes);  // pinned
  int32_t (*release_host)(void* host);
  int32_t (*create_stream)(void** stream);
  int32_t (*destroy_stream)(void* stream);
  int32_t (*synchronise)(void* stream);
  // Work that is enqueued on `stream` from now on waits for all that is on `other` by now; null: the default stream.
  int32_t (*follow)(void* stream, void* other);
  int32_t (*copy_in)(void* to, const void* host, size_t bytes, void* stream);
  int32_t (*copy_out)(void* host, const void* from, size_t bytes, void* stream);

  // out[T, K] = row ids[t] of the table times `scale`, plus mark[marked[t] - 1] where marked[t] > 0, plus the row of
  // `positions` where places[t] stands; `marked` and `positions` may be null, and a place of length 0 has no position.
  int32_t (*embed)(const KdtwWeight* table, float scale, const int32_t* ids, const uint8_t* marked, const float* mark,
                   const kdtw::TokenAt* places, const float* positions, int32_t tokens, float* out, void* stream);
  // out[i] = x[indices[i]], rows of `size` floats.
  int32_t (*gather)(const float* x, const int32_t* indices, int32_t count, int32_t size, float* out, void* stream);
  // out[T, size] = norm(x), or += where `adds`; out may be x where not.
  int32_t (*norm)(const kdtw::Norm* norm, const float* x, int32_t tokens, int32_t size, int32_t adds, float* out,
                  void* stream);
  // For products with int8 weights: to [T, stride] = round(x / scales[t]), zero from `size` on, where scales[t] is
  // largest |x| / 127; of norm(x) where that has a scale.
  int32_t (*quantise)(const float* x, const kdtw::Norm* norm, int32_t tokens, int32_t size, int32_t stride, int8_t* to,
                      float* scales, void* stream);
  // The same for products with scaled fp16: to [T, stride] = fp16(x / scales[t]), where scales[t] is the power of two
  // that puts the largest |x| into [2^14, 2^15).
  int32_t (*scale_to_fp16)(const float* x, const kdtw::Norm* norm, int32_t tokens, int32_t size, int32_t stride,
                           uint16_t* to, float* scales, void* stream);
  // out = ending(x W^T), x [T, K]; of norm(x) where that has a scale: an RMS norm. Not for weights with scales.
  int32_t (*linear)(const KdtwWeight* weight, const float* x, const kdtw::Norm* norm, int32_t tokens,
                    const KdtwEnding* ending, float* out, void* stream);
  // The same of what quantise() made, for int8.
  int32_t (*linear_int8)(const KdtwWeight* weight, const int8_t* x, const float* x_scales, int32_t tokens,
                         const KdtwEnding* ending, float* out, void* stream);
  // The same of what scale_to_fp16() made, for scaled fp16: on tensor cores.
  int32_t (*linear_tensor)(const KdtwWeight* weight, const uint16_t* x, const float* x_scales, int32_t tokens,
                           const KdtwEnding* ending, float* out, void* stream);
  // hidden [T, 2 size] (gated, gate first) or [T, size] -> out [T, size].
  int32_t (*activate)(const kdtw::Activation* activation, const float* hidden, int32_t tokens, int32_t size, float* out,
                      void* stream);
  // out[T, 2 pairs]: the cosines and sines of every token's position.
  int32_t (*angles)(const kdtw::Rotary* rotary, const kdtw::TokenAt* tokens, int32_t count, float* out, void* stream);
  // Queries or keys x [T, heads * size], `stride` apart, in place: each head normed where `norm` has a scale, and its
  // first 2 * pairs numbers turned by its token's angles [T, 2 pairs].
  int32_t (*turn_heads)(float* x, int32_t stride, int32_t tokens, int32_t heads, int32_t size, const kdtw::Norm* norm,
                        const float* angles, int32_t pairs, void* stream);
  // Copies keys and values [T, H D], `input_stride` floats from token to token, to their places in the cache.
  int32_t (*store)(const KdtwCache* cache, const kdtw::TokenAt* tokens, int32_t count, const float* keys,
                   const float* values, int32_t input_stride, void* stream);
  // Copies the first `positions` of row `from` of the cache to row `to`.
  int32_t (*copy)(const KdtwCache* cache, int32_t from, int32_t to, int32_t positions, void* stream);
  // out[T, rule's H D] = the mean of the values 0..length-1 by the rule's weights. scratch: of kdtw_attention_scratch()
  // floats.
  int32_t (*attend)(const KdtwCache* cache, const kdtw::TokenAt* tokens, int32_t count, const float* queries,
                    int32_t query_stride, const kdtw::AttentionRule* rule, float* scratch, float* out, void* stream);
  // Decides `count` requests about logits [count, V]. Scratch: summaries [count, chunks of V]; sifts [count] where some
  // request cuts.
  int32_t (*pick)(const float* logits, int32_t vocabulary, const kdtw::PickRequest* requests, int32_t count,
                  KdtwSampling sampling, KdtwSummary* summaries, KdtwSift* sifts, kdtw::PickResult* results,
                  void* stream);

  // Takes draft.decided into the rows that draft, and prepares what the next step reads; sets state->go_on. Does
  // nothing where that is 0. first: nothing has been decided yet, and a step is wanted.
  int32_t (*advance)(const KdtwDraft* draft, int32_t first, void* stream);

  // Graphs. What is enqueued on the stream between begin_graph and end_graph is not run but captured into a graph.
  // go_on, in device memory: a launch repeats the graph while *go_on is not 0, which is checked before each repetition;
  // an error where the device, the driver or the toolkit has no such graphs. Null: a launch runs it once. When
  // begin_graph has returned 0, end_graph must be called; `graph` null: what was captured is thrown away.
  int32_t (*begin_graph)(const int32_t* go_on, KdtwCapture* capture, void* stream);
  int32_t (*end_graph)(KdtwCapture* capture, void** graph, void* stream);
  int32_t (*launch_graph)(void* graph, void* stream);
  int32_t (*destroy_graph)(void* graph);
};

// The library's only exported symbol: its table, or null when it does not know that version.
const KdtwCudaTable* kdtw_cuda_table(int32_t version);
}
