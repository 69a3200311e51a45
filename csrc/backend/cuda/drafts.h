// Drafts on the device: the host sends the rows, launches graphs of a step, and reads what was picked.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "backend/cuda/graph.h"
#include "backend/cuda/graph_host.h"
#include "backend/runner.h"

namespace kdtw::cuda {

class Drafts : private GraphUser {
 public:
  // For drafts of up to `rows` rows. loops: one launch repeats the step until the draft ends; otherwise, and from the
  // first step on that the device takes into no loop (an error where only_loops), the host launches `ahead` steps,
  // looks whether the draft has ended, and launches more (see use_drafting).
  Drafts(GraphHost& host, DecoderPass pass, const Weight& head, const DraftRules& rules, int rows, bool loops,
         bool only_loops, int ahead);
  ~Drafts() { table_.synchronise(stream_); }

  // As Runner::draft. hidden: the hidden states of the rows' newest tokens [rows, M], where a pass has read them
  // already, so that the first step only decides; or null.
  void draft(std::span<DraftRow> rows, const DraftRules& rules, const DraftPause& pause, const float* hidden,
             Picks& picks);

 private:
  // Offsets in the exchange of host and device. The host sends all that lies before `picks`; the device's answer is
  // everything from `state` on.
  struct Places {
    size_t stops, first_allowed, state, rows, picks, bytes;
  };
  Places places(int width, int steps) const;
  KdtwDraft view(const DraftRules& rules, int width, const Places& at) const;
  void send(std::span<const DraftRow> rows, const DraftRules& rules, const DraftPause& pause, int width,
            const Places& at);
  void read(const Places& at, int width, int steps);
  const Graph& graph(int width, KdtwSampling sampling, const KdtwDraft& draft);
  const Graph* loop(int width, KdtwSampling sampling, const KdtwDraft& draft);

  // Device memory that lasts as long as the drafts.
  template <typename T>
  T* array(size_t count) {
    memory_.push_back(pool_.allocate(std::max<size_t>(count * sizeof(T), 1), stream_));
    return static_cast<T*>(memory_.back().get());
  }

  const int stop_count_;
  bool loops_;
  const bool only_loops_;
  const int ahead_;
  const Exchange exchange_;
  std::vector<std::shared_ptr<void>> memory_;                              // on the device
  KdtwDraft shared_{};                                                     // what all widths share
  std::map<std::pair<int, KdtwSampling>, std::unique_ptr<Graph>> graphs_;  // by width
};

}  // namespace kdtw::cuda
