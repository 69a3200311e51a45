// CUDA's header of this name, on the simulated device: the .cu files that nvcc compiles run on the CPU when g++ finds
// this header in the place of CUDA's. Each CUDA thread is a fiber; the fibers of a block take turns only where they
// synchronise, in an order that the caller chooses, so a kernel that relies on one order fails in another.
//
//   types.h     keywords and vectors              runtime.h  memory, streams, events, graphs
//   kernel.h    what a kernel's body may call     control.h  what a test may set and read
#pragma once

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernel.h"
#include "runtime.h"
#include "types.h"

namespace simt {

// A kernel as translated from nvcc's PTX: arguments[i] points to parameter i.
struct TranslatedKernel {
  void (*run)(void** arguments);
  std::vector<std::pair<size_t, size_t>> shared;  // its shared arrays: offset and bytes
};
// By the names that kernel_name gives; empty where the sources themselves run.
std::map<std::string, TranslatedKernel>& translated_kernels();
// Null where the sources run; std::runtime_error for one that is missing among the translated.
const TranslatedKernel* find_translated(const std::string& name);

// A kernel ready to run. call: the kernel and its arguments, the only host memory that kernels may read.
struct Work {
  std::string name;
  dim3 grid, block;
  void (*run)(void* call) = nullptr;  // makes one CUDA thread's call
  std::shared_ptr<void> call;
  size_t call_bytes = 0;
  const TranslatedKernel* translated = nullptr;  // what to run in the kernel's place; null: the kernel
};
void enqueue_launch(Work work, cudaStream_t stream);
void bad_argument(const std::string& kernel, int index);
bool is_device_pointer(const void* p);
// "const char* simt::spelled() [with auto kKernel = a::{anonymous}::k<b::T, 4>]" becomes "k<T, 4>".
std::string kernel_name(const std::string& spelled);

template <auto kKernel>
const char* spelled() {
  return __PRETTY_FUNCTION__;
}

template <typename... P>
struct Call {
  void (*kernel)(P...);
  const TranslatedKernel* translated;
  std::tuple<P...> arguments;

  // Not instrumented: what happens before the kernel is not the kernel's.
  __attribute__((no_sanitize("thread"))) static void run(void* self) {
    auto* call = static_cast<Call*>(self);
    if (!call->translated) return std::apply(call->kernel, call->arguments);
    void* pointers[sizeof...(P)];
    void** next = pointers;
    std::apply([&](auto&... each) { ((*next++ = (void*)&each), ...); }, call->arguments);
    call->translated->run(pointers);
  }
};

template <auto kKernel, typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, A&&... values) {
  static const std::string name = kernel_name(spelled<kKernel>());
  std::tuple<P...> arguments(static_cast<P>(values)...);
  int index = 0;
  const auto check = [&](const auto& value) {
    if constexpr (std::is_pointer_v<std::remove_cvref_t<decltype(value)>>) {
      if (value != nullptr && !is_device_pointer(value)) bad_argument(name, index);
    }
    ++index;
  };
  std::apply([&](const auto&... each) { (check(each), ...); }, arguments);
  Work work{name, grid, block};
  work.translated = find_translated(name);
  work.run = Call<P...>::run;
  work.call = std::make_shared<Call<P...>>(Call<P...>{kernel, work.translated, std::move(arguments)});
  work.call_bytes = sizeof(Call<P...>);
  enqueue_launch(std::move(work), stream);
}

}  // namespace simt

// What csrc/backend/cuda/rt.h defines for nvcc.
#define KDTW_SHARED(T, name, n) \
  T* name = (T*)::simt::shared_slot(SIMT_SITE, sizeof(T) * (n), alignof(T) > 16 ? alignof(T) : 16, #name)
#define KDTW_LAUNCH(kernel, grid, block, stream, ...) \
  ::simt::launch<(kernel)>(kernel, grid, block, static_cast<cudaStream_t>(stream), __VA_ARGS__)
#define KDTW_MMA_16x8x8(d, a, b) ::simt::mma(SIMT_SITE, a, b, d)
