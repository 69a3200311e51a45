// The functions that g++ -fsanitize=thread calls around every load and store, answered by our checker in the place of
// libtsan. Kernels alone are compiled so; the host code in the same files calls them too, and access() lets it pass.
#include "check.h"

#define PC __builtin_return_address(0)  // in the kernel

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}

#define ACCESSES(n)                                                                                \
  void __tsan_read##n(void* p) { simt::check::access(p, n, false, false, PC); }                    \
  void __tsan_write##n(void* p) { simt::check::access(p, n, true, false, PC); }                    \
  void __tsan_unaligned_read##n(void* p) { simt::check::access(p, n, false, false, PC); }          \
  void __tsan_unaligned_write##n(void* p) { simt::check::access(p, n, true, false, PC); }          \
  void __tsan_volatile_read##n(void* p) { simt::check::access(p, n, false, false, PC); }           \
  void __tsan_volatile_write##n(void* p) { simt::check::access(p, n, true, false, PC); }           \
  void __tsan_unaligned_volatile_read##n(void* p) { simt::check::access(p, n, false, false, PC); } \
  void __tsan_unaligned_volatile_write##n(void* p) { simt::check::access(p, n, true, false, PC); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, unsigned long n) { simt::check::access(p, n, false, false, PC); }
void __tsan_write_range(void* p, unsigned long n) { simt::check::access(p, n, true, false, PC); }

// C++ atomics of host code (std::shared_ptr counts by them); kernels have CUDA's.
#define ATOMICS(bits, T)                                                                                            \
  T __tsan_atomic##bits##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }           \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }           \
  T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_add(volatile T* p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_sub(volatile T* p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_compare_exchange_val(volatile T* p, T c, T v, int, int) {                                 \
    __atomic_compare_exchange_n(p, &c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                               \
    return c;                                                                                                       \
  }
ATOMICS(8, unsigned char)
ATOMICS(16, unsigned short)
ATOMICS(32, unsigned)
ATOMICS(64, unsigned long)
}
