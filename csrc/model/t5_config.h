// The numbers that define a T5: everything that changes the maths is here, and nothing is guessed.
#pragma once

#include <string>

#include "backend/operations.h"
#include "core/error.h"

namespace kdtw {

struct T5Config {
  std::string name = "model";  // for messages: "student", "teacher", a folder
  int vocabulary = 0;          // V
  int model_size = 0;          // M (d_model)
  int head_size = 0;           // D (d_kv)
  int heads = 0;               // H
  int feed_forward = 0;        // F (d_ff)
  int encoder_layers = 0;
  int decoder_layers = 0;
  int bias_buckets = 32;
  int bias_max_distance = 128;
  float epsilon = 1e-6f;
  Activation activation = Activation::kRelu;
  bool scale_outputs = false;        // multiply the decoder's output by M^-1/2 before the head (T5 v1.0)
  bool has_head = false;             // a head of its own; otherwise the embedding is the head, too (tied)
  bool has_mark = false;             // the student's teacher_token_embedding (beta, Eq. 15)
  int teachers = 1;                  // with it: how many teachers have a vector there
  DType dtype = DType::kFp32;        // of the weight matrices; norms, biases and beta are fp32
  DType cache_dtype = DType::kFp32;  // of keys and values; not int8

  int inner() const { return heads * head_size; }
  bool gated() const { return activation == Activation::kGatedGelu; }

  void validate() const {
    const auto positive = [&](int value, const char* field) {
      require(value > 0, name, ": config field ", field, " must be positive, got ", value);
    };
    positive(vocabulary, "vocab_size");
    positive(model_size, "d_model");
    positive(head_size, "d_kv");
    positive(heads, "num_heads");
    positive(feed_forward, "d_ff");
    positive(encoder_layers, "num_layers");
    positive(decoder_layers, "num_decoder_layers");
    require(bias_buckets >= 4 && bias_buckets % 2 == 0, name,
            ": config field relative_attention_num_buckets must be even and at least 4, got ", bias_buckets);
    require(bias_max_distance > bias_buckets / 2, name,
            ": config field relative_attention_max_distance must exceed half the buckets (", bias_buckets / 2,
            "), got ", bias_max_distance);
    require(teachers >= 1 && teachers <= 32, name, ": a student has 1 to 32 teachers, got ", teachers);
    require(cache_dtype != DType::kInt8, name, ": keys and values are not cached in int8");
    require(epsilon > 0.0f, name, ": config field layer_norm_epsilon must be positive, got ", epsilon);
  }
};

}  // namespace kdtw
