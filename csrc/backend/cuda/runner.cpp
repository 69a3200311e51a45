#include "backend/cuda/runner.h"

#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "backend/cuda/drafts.h"
#include "backend/cuda/replays.h"
#include "core/error.h"

namespace kdtw::cuda {
namespace {

enum class How { kAuto, kLoop, kAhead, kHost };

struct Setting {
  How how = How::kAuto;
  int steps = 4;

  bool operator==(const Setting&) const = default;
};
std::mutex setting_mutex;
Setting setting;

class CudaRunner : public Runner {
 public:
  CudaRunner(Operations& operations, GraphHost& host, const MakePass& make_pass, const Weight& head, int rows,
             Setting setting)
      : Runner(operations, make_pass, head), host_(host), make_pass_(make_pass), rows_(rows), setting_(setting) {
    loops_ = setting.how != How::kAhead && setting.how != How::kHost && host.pool().runs_loops();
    if (setting.how == How::kLoop && !loops_)
      throw std::runtime_error("graphs with loops do not run on this device; draft 'ahead' instead");
  }

  void begin(const Bell* bell) override {
    Runner::begin(bell);
    host_.follow_program();
  }

  bool rest() override {
    join();
    host_.wait();
    const std::lock_guard lock(setting_mutex);
    return setting_ == setting;
  }

  void offer(const std::function<void()>& work) override {
    aside_ = true;
    host_.aside(work);
  }

  void answer(const PassTokens& tokens, std::span<const PickRequest> requests, std::span<PickResult> results,
              const Poll& poll) override {
    join();
    if (setting_.how != How::kHost && !requests.empty() && tokens.ids.size() <= kMostReplayed) {
      if (!replays_) replays_.emplace(host_, make_pass_(kMostReplayed), head_);
      poll();
      replays_->answer(tokens, requests, results);
      return;
    }
    Runner::answer(tokens, requests, results, poll);
  }

  void draft(std::span<DraftRow> rows, const DraftRules& rules, const DraftPause& pause, const PassTokens& unread,
             Picks& picks, const Poll& poll) override {
    join();
    DraftPause here = pause;
    here.at_unseen = 1;  // its encoder can run beside the next draft
    if (setting_.how == How::kHost) {
      Runner::draft(rows, rules, here, unread, picks, poll);
      return;
    }
    poll();
    if (!drafts_)
      drafts_.emplace(host_, make_pass_(2 * rows_), head_, rules, rows_, loops_, setting_.how == How::kLoop,
                      setting_.steps);
    const float* hidden = nullptr;
    if (unread.ids.size() > rows.size()) hidden = pass_(operations_.place(unread), poll);
    drafts_->draft(rows, rules, here, hidden, picks);
  }

 private:
  void join() {
    if (std::exchange(aside_, false)) host_.join();
  }

  GraphHost& host_;
  const MakePass make_pass_;
  const int rows_;
  const Setting setting_;
  bool loops_ = false;
  bool aside_ = false;  // work was put aside and not joined yet
  std::optional<Drafts> drafts_;
  std::optional<Replays> replays_;
};

}  // namespace

void use_drafting(const std::string& how, int steps) {
  const std::map<std::string, How> known = {
      {"auto", How::kAuto}, {"loop", How::kLoop}, {"ahead", How::kAhead}, {"host", How::kHost}};
  const auto found = known.find(how);
  require(found != known.end(), "unknown way to draft '", how, "'; known are 'auto', 'loop', 'ahead' and 'host'");
  require(steps >= 1, "steps must be 1 or more, got ", steps);
  const std::lock_guard lock(setting_mutex);
  setting = {found->second, steps};
}

std::unique_ptr<Runner> make_cuda_runner(Operations& operations, GraphHost& host, const MakePass& make_pass,
                                         const Weight& head, int rows) {
  const std::lock_guard lock(setting_mutex);
  return std::make_unique<CudaRunner>(operations, host, make_pass, head, rows, setting);
}

}  // namespace kdtw::cuda
