// Chooses a backend by the device's name. The build decides which file provides make_cuda_backend.
#include "backend/backend.h"

#include "core/error.h"

namespace kdtw {

std::unique_ptr<Backend> make_backend(const std::string& device, int threads) {
  if (device == "cpu") return make_cpu_backend(threads);
  if (device.rfind("cuda", 0) == 0) return make_cuda_backend(0);
  throw std::invalid_argument(concat("unknown device '", device, "'; this build has 'cpu'"));
}

}  // namespace kdtw
