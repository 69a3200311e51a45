// The numbers that define a model. Every field is a value: the core knows no family of models, and guesses nothing.
// kdtw_fast/families/ says what the configs that people have mean in these words.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "backend/operations.h"
#include "core/error.h"

namespace kdtw {

// A stack of layers that are alike: an encoder or a decoder.
struct StackConfig {
  int layers = 0;        // 0: the model has no such stack
  int model_size = 0;    // M
  int heads = 0;         // H, of queries
  int key_heads = 0;     // of keys and values; divides H
  int head_size = 0;     // D
  int feed_forward = 0;  // F
  Activation activation;
  bool layer_norm = false;        // norms centre and divide by the deviation; otherwise by the root of the mean square
  float epsilon = 1e-6f;          // of norms
  bool query_norm_whole = false;  // a norm of queries or keys is over all heads together, not over each
  float embedding_scale = 1.0f;
  float attention_scale = 1.0f;  // of q k^T
  float attention_cap = 0.0f;    // c of c tanh(x / c) over the scaled scores; 0 = none
  int bias_buckets = 0;          // T5's relative position bias; 0 = none
  int bias_max_distance = 0;
  bool bias_per_layer = false;       // otherwise the first layer's is everybody's
  int positions = 0;                 // rows of the table of position embeddings; 0 = none
  int first_position = 0;            // the row of position 0
  int rotary_pairs = 0;              // pairs of a head's numbers that are rotated by position; 0 = none
  std::vector<int> windows;          // by layer: keys less than so far away are seen; 0 = all. Empty: all, everywhere
  std::vector<float> rotary_scales;  // by kind of frequencies: what cosines and sines are multiplied by
  std::vector<int> rotary_kind;      // by layer: which kind. Empty: the only one

  int query_size() const { return heads * head_size; }
  int key_size() const { return key_heads * head_size; }
  int projected() const { return query_size() + 2 * key_size(); }
  // Rows are shorter than 2^28 tokens, and sums with a window must not overflow.
  int window(int layer) const { return windows.empty() || windows[layer] >= 1 << 28 ? 0 : windows[layer]; }
  int rotary(int layer) const { return rotary_kind.empty() ? 0 : rotary_kind[layer]; }
  int rotary_kinds() const { return rotary_pairs > 0 ? static_cast<int>(rotary_scales.size()) : 0; }
};

struct Config {
  std::string name = "model";  // for messages: "student", "teacher", a folder
  int vocabulary = 0;          // V
  StackConfig encoder;         // no layers: the source is a prompt, which the decoder reads before what it writes
  StackConfig decoder;
  bool has_head = false;             // a head of its own; otherwise the embedding is the head, too (tied)
  float head_cap = 0.0f;             // c of c tanh(x / c) over the logits; 0 = none
  int teachers = 0;                  // rows of the student's teacher_token_embedding (beta, Eq. 15); 0: it has none
  DType dtype = DType::kFp32;        // of the weight matrices; norms, biases, tables of positions and beta are fp32
  DType cache_dtype = DType::kFp32;  // of keys and values; not int8
  // Beside dtype int8: weights that are bf16 instead, each by the name of its first tensor, and what int8 would lose in
  // them (Transformer::int8_losses).
  std::map<std::string, double> kept;

  bool has_encoder() const { return encoder.layers > 0; }

  // std::invalid_argument, naming the field, where the numbers make no model.
  void validate() const;
};

}  // namespace kdtw
