// Drafts on the device: the host sends the rows, launches, and reads what was picked.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/memory.h"

namespace kdtw::cuda {

// How sessions that begin from now on draft.
struct DraftSetting {
  enum How {
    kAuto,   // kLoop where the device has it, else kAhead
    kLoop,   // a graph that repeats a step until the draft ends: the host waits once a draft
    kAhead,  // a graph of one step, which the host launches `steps` times before it looks whether the draft has ended
    kHost,   // no drafter: the host takes every step
  };
  How how = kAuto;
  int steps = 4;
};
// how: "auto", "loop", "ahead" or "host". std::invalid_argument for other words and less than one step.
void use_drafting(const std::string& how, int steps);

// Device memory that operations need for themselves, kept from call to call.
struct Scratch {
  Buffer logits, summaries, decided, scaled, scales;
  bool of_graphs = false;        // graphs go on using what has become too small
  std::vector<Buffer> outgrown;  // which is here
};

// What a drafter uses of its backend.
class DraftHost {
 public:
  // Enqueues the decisions about hidden [count, M] that requests in device memory ask for; says where they will be.
  virtual const KdtwResult* decide(const Weight& head, const float* hidden, const KdtwRequest* requests, int count) = 0;
  // Operations take their memory from `scratch` until the next call; null: from the backend's own.
  virtual void use_scratch(Scratch* scratch) = 0;
  virtual void wait() = 0;

 protected:
  ~DraftHost() = default;
};

// Backend::make_drafter; null under DraftSetting::kHost.
std::unique_ptr<Drafter> make_cuda_drafter(DraftHost& host, Pool& pool, void* stream, DecoderPass pass,
                                           const Weight& head, const DraftRules& rules, int rows, int steps);

inline KdtwSampling sampling_of(const Sampling& sampling) {
  return {sampling.temperature, sampling.top_k, sampling.top_p};
}

inline PickResult to_pick(const KdtwResult& result) {
  return {result.id, result.passed != 0, result.finite != 0, result.log_prob, result.confidence, result.entropy};
}

}  // namespace kdtw::cuda
