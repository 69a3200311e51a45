// Stands in for the CUDA backend in builds without it: asking for the device is one clear sentence.
#include "backend/backend.h"
#include "core/error.h"

namespace kdtw {

std::unique_ptr<Backend> make_cuda_backend(int) {
  throw std::invalid_argument(
      "device 'cuda' was asked for, but this version of kdtw_fast has no CUDA backend; use 'cpu'");
}

}  // namespace kdtw
