// Chooses a device by its name, and says what fused operations are made of.
#include "backend/runner.h"

#include <charconv>
#include <utility>

#include "core/error.h"

namespace kdtw {
namespace {

// The index of "cuda" or "cuda:<index>", -1 for other words.
int cuda_index(const std::string& device) {
  if (device == "cuda") return 0;
  if (device.rfind("cuda:", 0) != 0) return -1;
  int index = -1;
  const char* const end = device.data() + device.size();
  const auto [stop, error] = std::from_chars(device.data() + 5, end, index);
  return error == std::errc() && stop == end ? index : -1;
}

}  // namespace

std::string resolve_device(const std::string& device) {
  if (device == "cpu") return device;
  if (device == "auto") return why_no_cuda(0).empty() ? "cuda:0" : "cpu";
  const int index = cuda_index(device);
  require(index >= 0, "unknown device '", device, "'; known are 'cpu', 'cuda', 'cuda:<index>' and 'auto'");
  const std::string why = why_no_cuda(index);
  require(why.empty(), "device '", device, "' was asked for, but ", why);
  return concat("cuda:", index);
}

Backend make_backend(const std::string& device, int threads) {
  const std::string resolved = resolve_device(device);
  if (resolved != "cpu") return make_cuda_backend(cuda_index(resolved));
  auto operations = make_cpu_operations(threads);
  Operations& own = *operations;
  return {std::move(operations), [&own](const MakePass& make_pass, const Weight& head, int) {
            return std::make_unique<Runner>(own, make_pass, head);
          }};
}

void Operations::norm_linear(const Weight& weight, const float* x, const Norm& norm, int tokens, float* normed,
                             float* out) {
  if (norm.scale != nullptr) this->norm(norm, x, tokens, weight.inputs, normed);
  linear(weight, norm.scale != nullptr ? normed : x, tokens, out, false);
}

void Operations::norm_linear_activate(const Weight& weight, Activation activation, const float* x, const Norm& norm,
                                      int tokens, float* normed, float* hidden, float* out) {
  norm_linear(weight, x, norm, tokens, normed, hidden);
  activate(activation, hidden, tokens, weight.outputs / (activation.gated ? 2 : 1), out);
}

}  // namespace kdtw
