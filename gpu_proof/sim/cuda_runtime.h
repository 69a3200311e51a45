// CUDA's header of this name, on the simulated device: the .cu files that nvcc compiles run on the CPU when g++ finds
// this header in the place of CUDA's. Each CUDA thread is a fiber; the fibers of a block take turns only where they
// synchronise, in an order that the caller chooses, so a kernel that relies on one order fails in another.
//
//   types.h     keywords and vectors              runtime.h  memory, streams, events, graphs
//   kernel.h    what a kernel's body may call     control.h  what a test may set and read
#pragma once

#include <memory>
#include <tuple>
#include <utility>

#include "kernel.h"
#include "runtime.h"
#include "types.h"

namespace simt {

// A kernel ready to run. call: the kernel and its arguments, the only host memory that kernels may read.
struct Work {
  const void* kernel;
  const char* spelled;  // as the launch names it
  dim3 grid, block;
  size_t static_shared;  // known before the launch for translated kernels only
  size_t dynamic_shared;
  void (*run)(void* call);  // makes one CUDA thread's call
  std::shared_ptr<void> call;
  size_t call_bytes;
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

template <typename... P>
struct Call {
  void (*kernel)(P...);
  std::tuple<P...> arguments;

  // Not instrumented: what happens before the kernel is not the kernel's.
  __attribute__((no_sanitize("thread"))) static void run(void* self) {
    auto* call = static_cast<Call*>(self);
    const auto entry = call->kernel;
    std::apply(entry, call->arguments);
  }
};

// The same for what nvcc made of the kernel.
template <typename... P>
struct TranslatedCall {
  TranslatedKernel kernel;
  std::tuple<P...> arguments;
  void* pointers[sizeof...(P) + 1];

  static void run(void* self) {
    auto* call = static_cast<TranslatedCall*>(self);
    call->kernel.run(call->pointers);
  }
};

template <typename... P, typename... A>
void launch(const char* spelled, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
            A&&... values) {
  Work work{reinterpret_cast<const void*>(kernel), spelled, grid, block, 0, shared, nullptr, nullptr, 0};
  std::tuple<P...> arguments(static_cast<P>(values)...);
  std::apply(
      [&](const auto&... each) {
        int index = 0;
        ((usable_argument(each) ? void() : bad_argument(spelled, index), ++index), ...);
      },
      arguments);
#ifdef KDTW_SIMT_PTX
  using Made = TranslatedCall<P...>;
  auto call = std::make_shared<Made>(Made{find_translated(work.kernel, spelled), std::move(arguments), {}});
  void** next = call->pointers;
  std::apply([&](auto&... each) { ((*next++ = (void*)&each), ...); }, call->arguments);
  work.static_shared = call->kernel.static_shared;
#else
  using Made = Call<P...>;
  auto call = std::make_shared<Made>(Made{kernel, std::move(arguments)});
#endif
  work.run = Made::run;
  work.call_bytes = sizeof(Made);
  work.call = std::move(call);
  enqueue_launch(std::move(work), stream);
}

}  // namespace simt

// What csrc/backend/cuda/rt.h defines for nvcc.
#define KDTW_SHARED(T, name, n) \
  T* name = (T*)::simt::shared_slot(SIMT_SITE, sizeof(T) * (n), alignof(T) > 16 ? alignof(T) : 16, #name)
#define KDTW_LAUNCH(kernel, grid, block, shared, stream, ...) \
  ::simt::launch(#kernel, kernel, grid, block, shared, stream, __VA_ARGS__)
#define KDTW_MMA_16x8x8(d, a, b) ::simt::mma(SIMT_SITE, a, b, d)
