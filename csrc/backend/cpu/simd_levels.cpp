#include "backend/cpu/simd_levels.h"

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <stdexcept>

#include "core/error.h"

namespace kdtw::cpu {
namespace {

#if defined(__x86_64__)
// Linux gives the tile registers of AMX to processes that ask for them, once for all their threads and children.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}
#endif

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const auto add = [&](const Kernels* table, bool runs) {
    if (table && runs) tables.push_back(table);
  };
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  add(amx_kernels(),
      vnni && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") && may_use_tiles());
  add(avx512_vnni_kernels(), vnni);
  add(avx512_kernels(), avx512);
  add(avx2_vnni_kernels(), avx2 && __builtin_cpu_supports("avxvnni"));
  add(avx2_kernels(), avx2);
#endif
  tables.push_back(&generic_kernels());
  return tables;
}

std::atomic<const Kernels*> current{nullptr};

}  // namespace

std::vector<std::string> simd_levels() {
  std::vector<std::string> names;
  for (const auto* table : supported()) names.push_back(table->name);
  return names;
}

void set_simd(const std::string& level) {
  for (const auto* table : supported()) {
    if (level == table->name) {
      current = table;
      return;
    }
  }
  std::string known;
  for (const auto& name : simd_levels()) known += (known.empty() ? "'" : ", '") + name + "'";
  throw std::invalid_argument(concat("SIMD level '", level, "' is not available here; choose one of ", known));
}

const Kernels& kernels() {
  if (current.load() == nullptr) current = supported().front();
  return *current.load();
}

}  // namespace kdtw::cpu
