#include "backend/cuda/library.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>

#include "backend/operations.h"
#include "core/error.h"

namespace kdtw::cuda {
namespace {

std::atomic<const Library*> current{nullptr};

// Of libkdtw_cuda.so in the folder of the file that this code was loaded from.
std::string default_path() {
  if (const char* named = std::getenv("KDTW_CUDA_LIBRARY"); named != nullptr && *named != '\0') return named;
  Dl_info here;
  if (dladdr(reinterpret_cast<const void*>(&default_path), &here) == 0) return "libkdtw_cuda.so";
  return (std::filesystem::path(here.dli_fname).parent_path() / "libkdtw_cuda.so").string();
}

const Library& open(const std::string& path) {
  static std::mutex mutex;
  static std::map<std::string, Library> opened;
  const std::lock_guard lock(mutex);
  if (const auto found = opened.find(path); found != opened.end()) return found->second;
  if (!std::filesystem::exists(path))
    throw std::runtime_error(concat("this build has no CUDA library (", path,
                                    " is not there); install a CUDA toolkit with nvcc and build with KDTW_CUDA=1, "
                                    "or use device 'cpu'"));
  void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr)
    throw std::runtime_error(concat("the CUDA library does not load (", dlerror(),
                                    "); build kdtw_fast again, or use "
                                    "device 'cpu'"));
  const auto get = reinterpret_cast<decltype(&kdtw_cuda_table)>(dlsym(handle, "kdtw_cuda_table"));
  const KdtwCudaTable* const table = get != nullptr ? get(kKdtwCudaVersion) : nullptr;
  if (table == nullptr) {
    dlclose(handle);
    throw std::runtime_error(concat("the CUDA library ", path, " is of another version of kdtw_fast; build it again, ",
                                    "or use device 'cpu'"));
  }
  return opened.emplace(path, Library{path, table}).first->second;
}

}  // namespace

const Library& library() {
  if (current.load() == nullptr) current = &open(default_path());
  return *current.load();
}

void use_library(const std::string& path) { current = &open(path.empty() ? default_path() : path); }

std::vector<std::string> devices(const Library& library) {
  std::vector<std::string> names;
  int32_t count = 0;
  if (library.table->device_count(&count) != 0) return names;
  for (int32_t i = 0; i < count; ++i) {
    KdtwDevice info{};
    check(*library.table, library.table->device_info(i, &info), "description of a device");
    char text[400];
    std::snprintf(text, sizeof text, "%s, compute capability %d.%d, %.1f GB", info.name, info.major, info.minor,
                  static_cast<double>(info.memory_bytes) / 1e9);
    names.emplace_back(text);
  }
  return names;
}

void check(const KdtwCudaTable& table, int32_t status, const char* doing) {
  if (status == 0) return;
  // Some errors stay: each later call of the process gives them again, whoever caused them.
  const bool stays = table.synchronise(nullptr) == status;
  throw std::runtime_error(concat(table.kind, " error in ", doing, ": ", table.describe(status),
                                  stays ? "; work that was enqueued before may be the cause, and this process cannot "
                                          "use the device any more"
                                        : ""));
}

}  // namespace kdtw::cuda

namespace kdtw {

std::string why_no_cuda(int index) {
  const cuda::Library* library = nullptr;
  try {
    library = &cuda::library();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  int32_t count = 0;
  if (const int32_t status = library->table->device_count(&count); status != 0)
    return concat("CUDA cannot be used here (", library->table->describe(status),
                  "); check the driver with nvidia-smi, or use device 'cpu'");
  if (count == 0) return "the driver reports no CUDA device; check nvidia-smi, or use device 'cpu'";
  if (index >= count) return concat("there are ", count, " CUDA devices, counted from 0");
  return {};
}

}  // namespace kdtw
