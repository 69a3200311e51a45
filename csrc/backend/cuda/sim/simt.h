// Runs CUDA sources on the CPU, for proofs without a GPU: the same .cu file that nvcc compiles, compiled by g++ with
// this header in the place of CUDA's. One fiber runs per CUDA thread; fibers of a block are switched only where they
// synchronise, in an order the caller chooses, so that a kernel that relies on an order gives another result.
//
//   types.h     vectors, half and bfloat16        runtime.h  memory, streams, events, graphs
//   kernel.h    what a kernel's body may call     control.h  what a test may set and read
#pragma once

#include <functional>
#include <memory>
#include <tuple>
#include <vector>

#include "backend/cuda/sim/kernel.h"
#include "backend/cuda/sim/runtime.h"
#include "backend/cuda/sim/types.h"

namespace simt {

// A kernel ready to run: body makes one CUDA thread's call. arguments: where its parameters lie, readable by kernels.
struct Work {
  const void* kernel;
  const char* spelled;  // as the launch names it
  dim3 grid, block;
  size_t static_shared;  // known before the launch for translated kernels only
  size_t dynamic_shared;
  bool cooperative;
  std::function<void()> body;
  const void* arguments;
  size_t argument_bytes;
};
void enqueue_launch(Work work, cudaStream_t stream);
void bad_argument(const char* kernel, int index);
bool is_device_pointer(const void* p);

// A kernel as translated from nvcc's PTX: arguments[i] points to parameter i.
struct TranslatedKernel {
  void (*run)(void** arguments);
  unsigned static_shared;  // bytes before its dynamic shared memory, gaps included
};
TranslatedKernel find_translated(const void* kernel, const char* spelled);

template <typename T>
bool usable_argument(const T& value) {
  if constexpr (std::is_pointer_v<T>)
    return value == nullptr || is_device_pointer(reinterpret_cast<const void*>(value));
  else
    return true;
}

template <typename... P, typename... A>
void launch(const char* spelled, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
            bool cooperative, A&&... values) {
  auto arguments = std::make_shared<std::tuple<P...>>(static_cast<P>(values)...);
  std::apply(
      [&](const auto&... each) {
        int index = 0;
        ((usable_argument(each) ? void() : bad_argument(spelled, index), ++index), ...);
      },
      *arguments);
  Work work{reinterpret_cast<const void*>(kernel),
            spelled,
            grid,
            block,
            0,
            shared,
            cooperative,
            {},
            arguments.get(),
            sizeof(*arguments)};
#ifdef KDTW_SIMT_PTX  // what nvcc made of this kernel runs, not what g++ made of it
  const TranslatedKernel translated = find_translated(work.kernel, spelled);
  auto pointers = std::make_shared<std::vector<void*>>();
  std::apply([&](auto&... each) { (pointers->push_back((void*)&each), ...); }, *arguments);
  work.static_shared = translated.static_shared;
  work.body = [translated, arguments, pointers] { translated.run(pointers->data()); };
#else
  work.body = [kernel, arguments] { std::apply(kernel, *arguments); };
#endif
  enqueue_launch(std::move(work), stream);
}

}  // namespace simt
