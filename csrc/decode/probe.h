// Times passes of one model on random tokens, by operation: what `kdtw bench` shows and costs are made of.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/transformer.h"

namespace kdtw {

// What the operations of a pass are added up under.
enum class Operation : uint8_t { kLinear, kHead, kAttention, kOther };
inline constexpr int kOperations = 4;

struct OperationCost {
  double seconds = 0.0;
  double weight_bytes = 0.0;  // packed weights that were read, each as often as a product asked for it
  double flops = 0.0;         // of products with weights, keys and values; a multiply-add counts as two
};

struct PassCosts {
  std::vector<double> seconds;  // of each repeat, all operations and what lies between them
  // Of one pass, the mean over the repeats; on the CPU only, where an operation has ended when it returns.
  std::array<OperationCost, kOperations> operations;
};

// One model and its caches for R rows, written up to the history. Every repeat of decode() reads the same positions
// after the history, as if the rows had been rewound. Passes are those that the host enqueues, and have ended on the
// device when their time is taken.
class Probe {
 public:
  // Caches of `history` + `most_tokens` positions. device: the model's. Threads 0 = all.
  Probe(const std::string& device, std::shared_ptr<const Transformer> model, int rows, int source_tokens, int history,
        int most_tokens, int threads);
  ~Probe();

  // The encoder over all rows, cross-attention keys and values included.
  PassCosts encode(int repeats, const Poll& poll);

  // One decoder pass of `tokens` new tokens of every row, of which the head is asked about the last `asked`: about
  // the last for its greedy pick, about those before whether the next token is the greedy pick (a draft's check).
  // tokens = asked = 1 is a step, asked = 1 a catch-up, asked = tokens a verification. Throws NonFiniteError.
  PassCosts decode(int tokens, int asked, int repeats, const Poll& poll);

  size_t cache_bytes() const;

 private:
  class ProfiledOperations;

  int32_t random_id(int row, int position) const;
  template <typename Pass>
  PassCosts repeated(int repeats, Pass&& pass);

  const std::shared_ptr<const Transformer> model_;
  const int source_tokens_, history_, most_tokens_;
  std::array<OperationCost, kOperations> costs_;
  Backend backend_;
  Operations& operations_;
  Buffer end_;  // a number that is read when all before it has ended
  ModelState state_;
  Workspace encoding_;
  std::unique_ptr<Runner> runner_;
};

}  // namespace kdtw
