// Drafts on the device: the host sends the rows, launches, and reads what was picked.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/graph_host.h"
#include "backend/cuda/memory.h"

namespace kdtw::cuda {

// How sessions that begin from now on draft.
struct DraftSetting {
  enum How {
    kAuto,   // kLoop where the device has it, else kAhead
    kLoop,   // a graph that repeats a step until the draft ends: the host waits once a draft
    kAhead,  // a graph of one step, which the host launches `steps` times before it looks whether the draft has ended
    kHost,   // no graphs: the host takes every step, and the teacher's passes too
  };
  How how = kAuto;
  int steps = 4;
};
// how: "auto", "loop", "ahead" or "host". std::invalid_argument for other words and less than one step.
void use_drafting(const std::string& how, int steps);
DraftSetting draft_setting();

// Backend::make_drafter; null under DraftSetting::kHost.
std::unique_ptr<Drafter> make_cuda_drafter(GraphHost& host, Pool& pool, void* stream, DecoderPass pass,
                                           const Weight& head, const DraftRules& rules, int rows, int steps);

}  // namespace kdtw::cuda
