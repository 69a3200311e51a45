// How passes of one model are run: answer these questions, draft these rows. The default is a loop on the host; a
// device may have its own, with graphs, replays and streams. Who uses a runner asks it nothing about itself.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/operations.h"
#include "core/bell.h"
#include "core/draft.h"

namespace kdtw {

// A model's decoder over placed tokens: gives the normed hidden states of those wanted, [wanted, M]. It reads what its
// rows' caches hold and adds the tokens to them.
using DecoderPass = std::function<const float*(const PassTokens& placed, const Poll& poll)>;
// A pass in memory of its own, which does not move as long as passes have no more than so many tokens.
using MakePass = std::function<DecoderPass(int tokens)>;

// Largest pass in tokens; longer work is cut (results do not depend on the cuts). Enough rows to be bound by
// arithmetic, few enough for the activations to stay in the cache and for Ctrl-C to be heard between layers.
inline constexpr int kMostTokens = 256;

// Steps that rows draft before the session looks again: Ctrl-C is heard in between, and a wait for so many steps is
// little beside them.
inline constexpr int kLongestDraft = 64;

// [i]: what row i of a draft picked, in order; the last one is what it stopped at, if it did.
using Picks = std::vector<std::vector<PickResult>>;

class Runner {
 public:
  // operations and head outlive the runner.
  Runner(Operations& operations, const MakePass& make_pass, const Weight& head)
      : operations_(operations), pass_(make_pass(0)), head_(head) {}
  virtual ~Runner() = default;
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  // A call begins: what the program has enqueued on the device elsewhere comes before it. bell: ends drafts between two
  // steps on the host; one that the device runs goes on to its end. Or null.
  virtual void begin(const Bell* bell) { bell_ = bell; }
  // Ends the device's work. Whether another session may go on with this runner, where making another one would take
  // long and would give the same.
  virtual bool rest() { return false; }
  // Offers work that this model's next pass needs (an encoder's): it may be enqueued now, beside other models' passes,
  // or not at all. Memory that it uses must not be used by anything else.
  virtual void offer(const std::function<void()>& work);
  // A pass over tokens in host lists, of any number; requests[i] is decided at tokens.wanted[i].
  virtual void answer(const PassTokens& tokens, std::span<const PickRequest> requests, std::span<PickResult> results,
                      const Poll& poll);
  // Lets up to kLongestDraft steps draft by the rules of core/draft.h, at least one, until goes_on says no. `unread`:
  // the rows' tokens that no pass has read, up to their newest, each row's newest wanted.
  virtual void draft(std::span<DraftRow> rows, const DraftRules& rules, const DraftPause& pause,
                     const PassTokens& unread, Picks& picks, const Poll& poll);

 protected:
  Operations& operations_;
  const DecoderPass pass_;
  const Weight& head_;

 private:
  const Bell* bell_ = nullptr;
  // Kept for their memory.
  std::vector<int32_t> wanted_, ids_, step_wanted_, banned_;
  std::vector<TokenAt> self_, cross_;
  std::vector<size_t> drafting_;  // rows
  std::vector<PickRequest> requests_;
  std::vector<PickResult> results_;
};

// A device, for one user at a time.
struct Backend {
  std::unique_ptr<Operations> operations;
  // A runner of up to `rows` rows.
  std::function<std::unique_ptr<Runner>(const MakePass& make_pass, const Weight& head, int rows)> make_runner;
};

// The device that a user's word means, "cpu" or "cuda:<index>". Known are "cpu", "cuda", "cuda:<index>" and "auto", the
// first CUDA device where there is one. std::invalid_argument with one sentence for a device that cannot be used here.
std::string resolve_device(const std::string& device);
// For a device that resolve_device knows; threads are the CPU's.
Backend make_backend(const std::string& device, int threads);
Backend make_cuda_backend(int index);
// Why the CUDA device cannot be used and what to do, after "device … was asked for, but "; empty when it can.
std::string why_no_cuda(int index);

}  // namespace kdtw
